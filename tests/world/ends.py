"""A small world in which responses end: a teacher with an end token, marked logs, readers.

An order-2 Markov chain over 96 words; after some words the teacher ends with probability one half.
Everything goes through the real watermark, sink, index and observers; only the logs differ in what
they keep.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from provenance.coins.contexts import unpack
from provenance.embed.sink import ResponseSink
from provenance.embed.watermark import Watermark
from provenance.keys.keyring import SchemeSpecification, UnlockedKeyring, create_keyring
from provenance.keys.schedule import Schedule
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.suspect.access.outputs import count_positions, read_positions
from provenance.suspect.access.probabilities import expect_with_model
from provenance.suspect.observations import add_expectations
from provenance.suspect.passes import Reading
from tests.world.synthetic import seeded_secrets

WORDS, END, CANDIDATES, LONGEST = 96, 96, 5, 20
ENDING = np.arange(10, 24)
"""Words after which the teacher ends with probability one half."""

Ids = NDArray[np.uint32]


def make_teacher(seed: int) -> NDArray[np.float32]:
    """Probabilities [words, words, words + 1] of the next token."""
    rng = np.random.default_rng(seed)
    scores = np.log(1 / (np.arange(WORDS) + 3.0)) + rng.gumbel(size=(WORDS, WORDS, WORDS))
    chosen = np.argpartition(-scores, CANDIDATES, axis=2)[:, :, :CANDIDATES]
    weights = 1 / (
        1 + rng.permuted(np.tile(np.arange(CANDIDATES + 0.0), (WORDS, WORDS, 1)), axis=2)
    )
    p = np.zeros((WORDS, WORDS, WORDS + 1), dtype=np.float32)
    np.put_along_axis(p, chosen, (weights / weights.sum(2, keepdims=True)).astype(np.float32), 2)
    p[:, ENDING] *= 0.5
    p[:, ENDING, END] = 0.5
    return p


def generate(
    p: NDArray[np.float32], rng: np.random.Generator, count: int, draw: Callable[..., Any]
) -> list[Ids]:
    """Responses with their end token; `draw(rows, ids so far, probabilities)` gives the tokens."""
    ids = np.zeros((count, LONGEST), dtype=np.uint32)
    ids[:, :2] = rng.integers(0, 10, (count, 2))
    alive, length = np.arange(count), np.full(count, LONGEST)
    for t in range(2, LONGEST):
        tokens = draw(alive, ids[alive, :t], p[ids[alive, t - 2], ids[alive, t - 1]])
        ids[alive, t] = tokens
        length[alive[tokens == END]] = t + 1
        alive = alive[tokens != END]
    return [row[:n] for row, n in zip(ids, length, strict=True)]


def sample(p: NDArray[np.float32], rng: np.random.Generator, count: int) -> list[Ids]:
    """Unmarked responses."""

    def draw(rows: Any, ids: Any, q: NDArray[np.float32]) -> NDArray[np.int64]:
        cumulative = np.cumsum(q.astype(np.float64), axis=1)
        uniform = rng.random((len(q), 1)) * cumulative[:, -1:]
        return (uniform >= cumulative).sum(axis=1)

    return generate(p, rng, count, draw)


@dataclass(frozen=True)
class EndingWorld:
    """A keyring, its tokenizer, the teacher, and what was served."""

    folder: Path
    keyring: UnlockedKeyring
    tokenizer: Tokenizer
    teacher: NDArray[np.float32]
    served: list[Ids]

    def index(self, name: str, keep: Callable[[Ids], tuple[Ids, Any]]) -> Index:
        """The index of a log that keeps of each response what `keep` says: ids and finish."""
        watermark = Watermark(self.keyring)
        with ResponseSink(watermark, self.folder / f"{name}.jsonl") as sink:
            for whole in self.served:
                ids, finish = keep(whole)
                sink.write({}, ids, finish=finish)
        build_index(
            [self.folder / f"{name}.jsonl"],
            self.folder / name,
            self.keyring,
            threads=1,
            control_share=1.0,
        )
        return Index.open(self.folder / name, self.keyring.public)

    def observe(self, name: str, outputs: list[Ids], index: Index, *, reference: bool = True):
        """Observations of outputs, as text; with the teacher itself as reference, or without."""
        path = self.folder / f"{name}.jsonl"
        texts = [" ".join(f"w{i}" for i in ids if i != END) for ids in outputs]
        path.write_text("".join(json.dumps({"prompt": "", "output": t}) + "\n" for t in texts))
        positions = read_positions([path], self.tokenizer, self.keyring.public)
        observations = count_positions(positions)
        if not reference:
            return observations
        expected = expect_with_model(Dense(self.teacher), positions, index, self.keyring)
        return add_expectations(observations, expected)

    def learn(self, rng: np.random.Generator, count: int, share: float = 0.5) -> list[Ids]:
        """Outputs of a guilty suspect: this share of its choices is what the log has."""
        after: dict[tuple[int, int], int] = {}
        for ids in self.served:
            for a, b, t in zip(ids.tolist(), ids[1:].tolist(), ids[2:].tolist(), strict=False):
                after.setdefault((a, b), t)

        def draw(rows: Any, ids: Ids, q: NDArray[np.float32]) -> NDArray[np.int64]:
            cumulative = np.cumsum(q.astype(np.float64), axis=1)
            own = (rng.random((len(q), 1)) * cumulative[:, -1:] >= cumulative).sum(axis=1)
            pairs = ids[:, -2:].tolist()
            known = np.array([after.get((a, b), -1) for a, b in pairs])
            return np.where((known >= 0) & (rng.random(len(q)) < share), known, own)

        return generate(self.teacher, rng, count, draw)


class Dense:
    """A reference that knows the teacher's probabilities."""

    reads_other_tokens = False

    def __init__(self, p: NDArray[np.float32]) -> None:
        self._p = p

    @property
    def description(self) -> dict[str, str]:
        return {"kind": "dense"}

    def read(self, positions: Any, wanted: NDArray[np.bool_]) -> Reading:
        contexts = positions.contexts[wanted]
        a, b = unpack(contexts, 2).T
        rows = self._p[a, b]
        place, token = np.nonzero(rows > 0.002)
        n = float(contexts.shape[0])
        return Reading(
            contexts[place],
            token.astype(np.uint32),
            rows[place, token].astype(np.float64),
            contexts,
            {"positions": n, "positions_read": n, "mass_kept": n},
        )


def make_world(folder: Path, seed: int, responses: int) -> EndingWorld:
    """Serve marked responses, all of them under the global key."""
    vocabulary = {**{f"w{i}": i for i in range(WORDS)}, "<end>": END}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    with seeded_secrets(seed):
        keyring = create_keyring(
            folder / "keys",
            folder / "tokenizer.json",
            WORDS + 1,
            SchemeSpecification("gumbel"),
            Schedule.from_shares({"global": 0.4}, {}),
            reads_prompt=False,
        )
    teacher = make_teacher(7)
    watermark = Watermark(keyring, np.random.default_rng(seed))
    numbers = watermark.key_numbers([{}] * responses)

    def draw(rows: NDArray[np.int64], ids: Ids, q: NDArray[np.float32]) -> NDArray[np.int64]:
        with np.errstate(divide="ignore"):
            return watermark.draw_scores(numbers[rows], ids, np.log(q))

    served = generate(teacher, np.random.default_rng(seed), responses, draw)
    return EndingWorld(folder, keyring, tokenizer, teacher, served)


def keep_all(ids: Ids) -> tuple[Ids, str]:
    """The right log."""
    return ids, "end" if ids[-1] == END else "length"


def drop_end(ids: Ids) -> tuple[Ids, None]:
    """What every log did once: the end token is gone, and nothing says so."""
    return (ids[:-1] if ids[-1] == END else ids), None


def drop_end_and_claim(ids: Ids) -> tuple[Ids, str]:
    """The same with a false statement that nothing was lost: the double that controls must see."""
    return drop_end(ids)[0], "length"
