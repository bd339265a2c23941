"""Serving requests through an adapter, and what the rules say of every draw that came back.

The half of `provenance.embed.conformance` that gathers: the requests, the replay of their
responses, and the state of the global generators. Judges nothing.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from provenance.embed.rules import name_keys
from provenance.embed.watermark import Watermark
from provenance.errors import UsageError
from provenance.keys.keyring import Key, SchemeSpecification, UnlockedKeyring, create_keyring
from provenance.keys.schedule import Schedule
from provenance.served.records import ServedResponse

SLOT: Final = "trial"
TRIALS: Final = tuple(f"trial-{i:02d}" for i in range(24))
_SHARES: Final = {"global": 0.3, SLOT: 0.5}
_ATTEMPTS: Final = 64
_TURNS: Final = 4
_FIRST_DRAWS: Final = 20
"""Draws right after a prompt whose end lies in a marked slot: what one line of the report needs."""


@dataclass(frozen=True)
class Request:
    """One request: ids of the prompt and the labels."""

    prompt: tuple[int, ...]
    labels: Mapping[str, str]


class Adapter(Protocol):
    """What the test of an adapter implements.

    Attributes
    ----------
    tokenizer : tokenizer.json of the model
    vocabulary_size : of the model
    end_token : id that ends a response; give one that the model draws now and then
    prompts : ids; at least four prompts of at least two different lengths
    new_tokens : at most so many tokens a response, 24 .. 64; rows of a batch end earlier. Some
        prompts grow by four times as many
    """

    tokenizer: Path
    vocabulary_size: int
    end_token: int
    prompts: Sequence[Sequence[int]]
    new_tokens: int

    def generate(
        self, keys: Path, requests: Sequence[Request], seed: int
    ) -> Sequence[ServedResponse | NDArray[np.uint32]]:
        """Serve the requests together, marked under the keyring in the folder `keys`.

        `seed` fixes all fresh randomness of the watermark. Returns for each request what the sink
        is given, or only its ids: without prompt and padding, up to and with the end token, of
        `new_tokens` ids if it did not end. The folder is the same at every call but the last, which
        has one of before the prompt was read: a stack that keeps its keyring must start anew.
        """
        ...

    def probabilities(
        self, prompt: Sequence[int], response: NDArray[np.uint32]
    ) -> NDArray[np.float64]:
        """Final probabilities (after temperature, top-k, top-p) before every token of a response.

        Returns float64 [n, vocabulary_size] or more rows: row i after prompt and response[:i].
        """
        ...


class Served:
    """72 requests served once: 24 labels once each, one label 24 times, no label 24 times.

    Attributes: adapter, keyring, requests, responses (their ids), finishes (how they ended, if the
    adapter says it) and draws (all of them, replayed); later_draws, those of 24 requests that go
    on from a prompt and four responses.
    """

    def __init__(self, adapter: Adapter, folder: Path) -> None:
        self.adapter = adapter
        self._generator = np.random.default_rng(0)
        prompts = [tuple(int(i) for i in prompt) for prompt in adapter.prompts]
        labels = [*TRIALS, *[TRIALS[0]] * len(TRIALS), *[None] * len(TRIALS)]
        self.requests = [
            Request(prompts[i % len(prompts)], {SLOT: trial} if trial else {})
            for i, trial in enumerate(labels)
        ]
        self.keys = folder / "keys"
        self.keyring = self._make_keyring(self.keys, reads_prompt=True)
        self._keys_before, self._keyring_before = self._make_keys_of_before(folder)
        served = self._serve(self.requests, 1)
        self.responses, self.finishes = list(map(_ids, served)), [one.finish for one in served]
        self.draws = self._replay_all(self.requests, self.responses, self.keyring)
        turns = [self._go_on(i) for i in range(len(TRIALS))]
        self.later_draws = self._replay_all(turns, self.generate(turns, 8), self.keyring)

    def _go_on(self, i: int) -> Request:
        """Request i after the responses of a few others, as in a conversation."""
        said = [self.responses[i + j][:-1].tolist() for j in range(_TURNS)]
        request = self.requests[i]
        return Request((*request.prompt, *chain.from_iterable(said)), request.labels)

    def serve_before(self) -> list[ReplayedDraw]:
        """The draws of the 72 requests under a keyring of before, which does not read the prompt.

        To be asked for last, and once: a stack may have to start anew for another keyring.
        """
        served = self.adapter.generate(self._keys_before, self.requests, 9)
        responses = [_ids(_as_response(one)) for one in served]
        return self._replay_all(self.requests, responses, self._keyring_before)

    def _make_keyring(self, keys: Path, reads_prompt: bool) -> UnlockedKeyring:
        return create_keyring(
            keys,
            self.adapter.tokenizer,
            self.adapter.vocabulary_size,
            SchemeSpecification("gumbel"),
            Schedule.from_shares(_SHARES, {SLOT: TRIALS}),
            1,
            reads_prompt,
        )

    def _make_keys_of_before(self, folder: Path) -> tuple[Path, UnlockedKeyring]:
        """A keyring under which the ends of enough prompts would be marked, if they counted.

        Only the selector decides that, so the coins stay as random as ever.
        """
        for attempt in range(_ATTEMPTS):
            keys = folder / f"before-{attempt}"
            keyring = self._make_keyring(keys, reads_prompt=False)
            ends = [np.array(request.prompt[-1:], dtype=np.uint32) for request in self.requests]
            keyed = [
                _key_after(keyring, end, request.labels)
                for end, request in zip(ends, self.requests, strict=True)
            ]
            if sum(key is not None for key in keyed) >= _FIRST_DRAWS:
                return keys, keyring
        raise UsageError(
            "the adapter's prompts must not be empty, and end in a few different tokens; "
            f"{_ATTEMPTS} keyrings marked hardly one of their ends. Give other prompts."
        )

    def generate(self, requests: Sequence[Request], seed: int) -> list[NDArray[np.uint32]]:
        """Serve the requests in one batch; the ids of the responses."""
        return list(map(_ids, self._serve(requests, seed)))

    def _serve(self, requests: Sequence[Request], seed: int) -> list[ServedResponse]:
        return list(map(_as_response, self.adapter.generate(self.keys, requests, seed)))

    def _replay_all(
        self,
        requests: Sequence[Request],
        responses: Sequence[NDArray[np.uint32]],
        keyring: UnlockedKeyring,
    ) -> list[ReplayedDraw]:
        pairs = zip(requests, responses, strict=True)
        return [draw for request, ids in pairs for draw in self.replay(request, ids, keyring)]

    def replay(
        self,
        request: Request,
        response: NDArray[np.uint32],
        keyring: UnlockedKeyring | None = None,
    ) -> Iterator[ReplayedDraw]:
        """What each token of one response should have been; its end token is one of them."""
        adapter, keyring = self.adapter, keyring or self.keyring
        watermark = Watermark(keyring)
        p = adapter.probabilities(request.prompt, response)
        tokens = response.astype(np.int64)
        prompt = np.array(request.prompt, dtype=np.uint32)
        marked = watermark.marked_positions(request.labels, response, prompt)
        for i, token in enumerate(tokens):
            row = p[i] / p[i].sum()
            before = response[:i] if i else prompt
            key = _key_after(keyring, before[-1:], request.labels)
            coin = None
            if key is not None:
                words = key.row(before[-1:], row.shape[0])
                coin = watermark.scheme.draw(row, words, 0.0)
            place = row[row > row[token]].sum()
            place += self._generator.random() * row[row == row[token]].sum()
            yield ReplayedDraw(
                token=int(token),
                coin=coin,
                first=i == 0,
                repeated=i > 0 and bool((response[: i - 1] == before[-1]).any()),
                marked=bool(marked[i]),
                key=None if key is None else (key.fingerprint, int(before[-1])),
                possible=bool(row[token] > 0),
                place=min(float(place), 1 - 1e-12),
                luck=0.0 if coin is None else float(row[coin]),
                end=float(row[adapter.end_token]),
            )


def _key_after(
    keyring: UnlockedKeyring, context: NDArray[np.uint32], labels: Mapping[str, str]
) -> Key | None:
    """The key of a context, were it the first of its kind in a response: rule 3 alone."""
    (slot,) = keyring.slots_of(context[np.newaxis])
    name = name_keys(keyring.schedule, labels)[int(slot)]
    return None if name is None else keyring.key(*name)


def _as_response(one: ServedResponse | NDArray[np.uint32]) -> ServedResponse:
    return one if isinstance(one, ServedResponse) else ServedResponse(token_ids=one)


def _ids(response: ServedResponse) -> NDArray[np.uint32]:
    return np.asarray(response.token_ids, dtype=np.uint32)


@dataclass(frozen=True)
class ReplayedDraw:
    """One draw, beside what the rules say of it.

    Attributes
    ----------
    token : what was drawn
    coin : what the coins of its context's key draw; None without a key
    first : the context is the end of the prompt, so it must not count
    repeated : the context already stood before a token of the response
    marked : the rules demand the draw of the coins
    key : fingerprint of the key, and the context: equal ones are equal coins
    possible : the model gives the token a probability above 0
    place : where the token stands among the probabilities, likeliest first, made continuous:
        uniform in [0, 1] if the draw is right
    luck : probability that an ordinary draw hits `coin`
    end : probability of the end token
    """

    token: int
    coin: int | None
    first: bool
    repeated: bool
    marked: bool
    key: tuple[str, int] | None
    possible: bool
    place: float
    luck: float
    end: float

    @property
    def prompted(self) -> bool:
        """True if there is a key, but the context stands in the prompt and nowhere else yet."""
        return not (self.coin is None or self.marked or self.first or self.repeated)


def distinct_draws(draws: Sequence[ReplayedDraw]) -> list[ReplayedDraw]:
    """The marked draws with coins of their own: the first for each key and context."""
    found: dict[tuple[str, int], ReplayedDraw] = {}
    for draw in draws:
        if draw.marked and draw.key is not None:
            found.setdefault(draw.key, draw)
    return list(found.values())


@contextmanager
def seeded_globals(seed: int) -> Iterator[Callable[[], dict[str, tuple[bool, bytes]]]]:
    """Seeds the global generators, tells what changed since, and puts them back.

    `with seeded_globals(1) as changed:`; changed() maps a generator to whether its state moved, and
    to the state. Of torch, only what is already imported.
    """
    torch: Any = sys.modules.get("torch")
    kept = random.getstate(), np.random.get_state(legacy=False), torch and torch.get_rng_state()

    def read() -> dict[str, bytes]:
        state: Any = np.random.get_state(legacy=False)["state"]
        found = {"random": repr(random.getstate()).encode()}
        found["numpy"] = state["key"].tobytes() + str(state["pos"]).encode()
        if torch is not None:
            found["torch"] = torch.get_rng_state().numpy().tobytes()
        return found

    random.seed(seed)
    np.random.seed(seed)
    if torch is not None:
        torch.manual_seed(seed)
    before = read()
    try:
        yield lambda: {name: (value != before[name], value) for name, value in read().items()}
    finally:
        random.setstate(kept[0])
        np.random.set_state(kept[1])
        if torch is not None:
            torch.set_rng_state(kept[2])
