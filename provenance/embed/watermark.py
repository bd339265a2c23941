"""The watermark itself: labels -> key of a context -> draw. Knows no serving stack.

Which key decides a token is said in `provenance.embed.rules`, and how its coins choose among the
candidates in `provenance.marks.own.draws`; both are compiled. This module decides what they are
given.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import ArrayLike, NDArray

from provenance.coins.words import KEY_BYTES, read_key
from provenance.embed.batch import MANY, NOTHING, draw_among_few
from provenance.embed.rules import (
    NO_WINDOWS,
    PromptContexts,
    check_labels,
    check_prompts,
    find_keys,
    find_marked,
    leaves_choice,
    name_keys,
)
from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.keys.keyring import Key
from provenance.keys.marking import MarkingKeys
from provenance.keys.schedule import SELECTOR_KEY, KeyName
from provenance.keys.worker import open_keys
from provenance.marks.own import Scheme, make_scheme
from provenance.marks.own.draws import GUMBEL, choose, choose_by_race, draw_plain_of_many
from provenance.marks.own.scheme import draw_unmarked
from provenance.served.records import Labels

_SCATTERED = 64
"""Up to this fraction of the vocabulary, scattered coins are cheaper than a whole row of them."""
_FEW = 512
_WARM_UP = 512
"""Contexts that are tried: some are marked by any share that is of use."""
Prompts = Sequence[PromptContexts] | PromptContexts
"""One a row: each from `read_prompt`, or all from `read_prompts`."""
_UNREAD = PromptContexts(NO_WINDOWS, np.empty((0, 2), dtype=np.int64))


@dataclass(frozen=True)
class Draw:
    """One drawn token, and the key whose coins chose it (None: an ordinary draw).

    drawn : whether the coins had a choice; a log says this of the token
    """

    token: int
    key: Key | None
    drawn: bool = False


class Watermark:
    """Draws tokens under a keyring. Holds no state but its own source of fresh randomness.

    Parameters
    ----------
    keyring : an unlocked keyring, or a worker's keys of one; its scheme is used
    generator : source of fresh uniforms for ordinary draws (and for schemes that need them);
        default: a new one seeded by the operating system. No global generator is touched.
    """

    def __init__(self, keyring: MarkingKeys, generator: np.random.Generator | None = None) -> None:
        self.keyring = keyring
        specification = keyring.public.scheme
        self.scheme: Scheme = make_scheme(specification.name, specification.parameters)
        self._generator = generator if generator is not None else np.random.default_rng()
        self._code = self.scheme.code
        self._size = keyring.public.vocabulary_size
        self._ends = keyring.schedule.ends
        self._selector = read_key(keyring.key(*SELECTOR_KEY).reveal())
        self._known: list[Key] = []
        self._table = np.empty((0, KEY_BYTES // 4), dtype=np.uint32)
        self._numbers: dict[tuple[str | None, ...], NDArray[np.int64]] = {}

    @classmethod
    def load(cls, path: Path | str, generator: np.random.Generator | None = None) -> Watermark:
        """Open a keyring's folder or a worker's file; see `keys.worker.open_keys` for errors."""
        return cls(open_keys(path), generator)

    def check_labels(self, labels: Labels) -> None:
        """Raise ConfigurationMismatchError if a label names a slot but has no key there.

        A new week must be added to the keyring before it is served: it is never silently unmarked.
        """
        check_labels(self.keyring, labels, names_may_be_unknown=True)

    def draw(
        self,
        labels: Labels,
        response: NDArray[np.uint32],
        candidates: NDArray[np.uint32],
        probabilities: NDArray[np.float64],
        prompt: PromptContexts | None = None,
    ) -> Draw:
        """Draw the next token of one response.

        Parameters
        ----------
        labels : attribute values of the request
        response : uint32 [n], ids generated so far, without prompt and padding
        candidates : uint32 [m], ids that survive top-k / top-p
        probabilities : float64 [m], their *final* probabilities; need not be normalised
        prompt : from `read_prompt`; a keyring that reads the prompt must be given it, UsageError

        Cost: one coin a candidate where the context is marked; else one uniform.
        """
        (key,) = self.next_keys([labels], [response], None if prompt is None else [prompt])
        return self._draw(key, response, candidates, probabilities, self._generator.random())

    def draw_batch(
        self,
        labels: Sequence[Labels],
        responses: Sequence[NDArray[np.uint32]],
        probabilities: NDArray[np.float64],
        prompts: Prompts | None = None,
    ) -> list[Draw]:
        """Draw the next token of each row of a batch; rows are independent of each other.

        Parameters
        ----------
        labels, responses, prompts : one entry per row, as for `draw`
        probabilities : float64 [rows, vocabulary], final; tokens with probability 0 are no
            candidates
        """
        if not len(labels) == len(responses) == probabilities.shape[0]:
            raise UsageError(
                f"labels, responses and probabilities must have one entry per row; got "
                f"{len(labels)}, {len(responses)} and {probabilities.shape[0]}."
            )
        draws = []
        for row, key in enumerate(self.next_keys(labels, responses, prompts)):
            candidates = np.flatnonzero(probabilities[row]).astype(np.uint32)
            p, uniform = probabilities[row, candidates], float(self._generator.random())
            draws.append(self._draw(key, responses[row], candidates, p, uniform))
        return draws

    def key_numbers(self, labels: Sequence[Labels]) -> NDArray[np.int64]:
        """For `draw_scores`: what the labels of each row mean, worked out once per request.

        Returns int64 [rows, slots]: the number of the row's key in each slot, -1 for none. Raises
        ConfigurationMismatchError if a label has no key.
        """
        rows = [self._numbers_of(mapping) for mapping in labels]
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self._ends))

    def read_prompt(self, ids: ArrayLike) -> PromptContexts:
        """The contexts of a prompt, integers [n], worked out once per request."""
        return self.read_prompts([ids])

    def read_prompts(self, prompts: Sequence[ArrayLike]) -> PromptContexts:
        """For `draw_scores`: those of the prompt of each row."""
        reads = self.keyring.reads_prompt
        return PromptContexts.read(
            prompts if reads else [()] * len(prompts), self.keyring.context_width
        )

    def next_keys(
        self,
        labels: Sequence[Labels],
        responses: Sequence[NDArray[np.uint32]],
        prompts: Prompts | None = None,
    ) -> list[Key | None]:
        """The key that decides the next token of each row; None: an ordinary draw.

        Parameters: one mapping, one uint32 [n] and one prompt a row, as for `draw`. A server can
        leave the rows without a key to its own sampler. Cost: one comparison a token, one coin a
        row, and a search in the prompt of a row with a key.
        """
        check_prompts(self.keyring, prompts, len(responses))
        lengths = np.array([ids.shape[0] for ids in responses], dtype=np.int64)
        padded = np.zeros((len(responses), int(lengths.max(initial=0))), dtype=np.uint32)
        for row, ids in enumerate(responses):
            padded[row, : ids.shape[0]] = ids
        numbers = self.key_numbers(labels)
        width = self.keyring.context_width
        found = find_keys(
            padded, lengths, width, self._selector, self._ends, numbers, NO_WINDOWS, _UNREAD.bounds
        )
        if self.keyring.reads_prompt and prompts is not None:  # not joined: they may be long
            for row in np.flatnonzero(found >= 0).tolist():
                if prompts[row].hold(responses[row][-width:]):
                    found[row] = -1
        return [None if number < 0 else self._known[number] for number in found]

    def draw_scores(
        self,
        numbers: NDArray[np.int64],
        responses: NDArray[np.uint32],
        scores: NDArray[np.float32],
        prompts: PromptContexts | None = None,
        drawn: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.int64]:
        """Draw the next token of each row of a batch from logits: the fast path of the adapters.

        Parameters
        ----------
        numbers : int64 [rows, slots], from `key_numbers`
        responses : uint32 [rows, n], ids generated so far, without prompt and padding
        scores : float32 [rows, vocabulary], *final* logits (after temperature, top-k, top-p), minus
            infinity for what is no candidate; need not be normalised
        prompts : from `read_prompts`, one a row; a keyring that reads the prompt needs them
        drawn : bool [rows], filled in: whether a coin decided the row, as a log says it

        Returns
        -------
        int64 [rows]. Raises UsageError if a row has no candidate or a score that is not a number.

        Notes
        -----
        Over the same keys and uniforms the tokens are those of `draw_batch` on the softmax, up to
        rounding: draws among many candidates compute in float32, as the scores are. Cost: one pass
        over the scores where few candidates are left; else a few, and a row of coins if marked.
        """
        check_prompts(self.keyring, prompts, responses.shape[0])
        if prompts is None or not self.keyring.reads_prompt:
            prompts = _UNREAD
        responses = responses.astype(np.uint32, order="C", copy=False)
        if not scores.flags.c_contiguous:
            scores = np.ascontiguousarray(scores)
        uniforms = self._generator.random((scores.shape[0],))
        decided = np.empty(scores.shape[0], dtype=np.bool_) if drawn is None else drawn
        tokens, smallest, largest = draw_among_few(
            scores,
            responses,
            self.keyring.context_width,
            self._selector,
            self._ends,
            numbers,
            prompts.windows,
            prompts.bounds,
            self._table,
            *self._code,
            uniforms,
            scores.shape[1] // _SCATTERED + _FEW,
            decided,
        )
        if smallest <= MANY:
            smallest = 0
            for row, token in enumerate(tokens.tolist()):
                if token <= MANY:
                    key = MANY - 1 - token
                    uniform = float(uniforms[row])
                    token = self._draw_among_many(key, responses[row], scores[row], uniform)
                    tokens[row] = token
                    decided[row] = key >= 0 and leaves_choice(scores[row])
                    largest = max(largest, token if key >= 0 else NOTHING)
                smallest = min(smallest, token)
        if smallest < 0:
            raise UsageError(
                "scores must leave every row a candidate and be numbers; they do not. "
                "Pass the model's final logits."
            )
        if largest >= self._size:
            self._check_size(int(largest))
        found: NDArray[np.int64] = tokens
        return found

    def warm_up(self) -> None:
        """Have everything compiled that a draw calls: seconds, so that no response waits for it."""
        contexts = np.arange(_WARM_UP, dtype=np.uint32)[:, np.newaxis] % self._size
        responses = list(np.repeat(contexts, self.keyring.context_width, axis=1))
        prompts = self.read_prompts([()] * len(responses))
        keys = self.next_keys([{}] * len(responses), responses, prompts)
        for key, response in zip(keys, responses, strict=True):
            if key is not None:
                for size in (2, self._size):
                    candidates = np.arange(size, dtype=np.uint32)
                    self._draw(key, response, candidates, np.ones(size), 0.5)
                return

    def make_seeds(self, rows: int) -> list[bytes]:
        """32 fresh secret bytes a row, for draws elsewhere: see `torch_batch.DeviceWatermark`."""
        return [self._generator.bytes(KEY_BYTES) for _ in range(rows)]

    def marked_positions(
        self, labels: Labels, response: NDArray[np.uint32], prompt: ArrayLike | None = None
    ) -> NDArray[np.bool_]:
        """Which tokens of a finished response were drawn under a key: see `find_marked`."""
        return find_marked(self.keyring, labels, response, prompt)

    def _numbers_of(self, labels: Labels) -> NDArray[np.int64]:
        """Numbers of the keys in the table, by slot; new keys enter the table."""
        schedule = self.keyring.schedule
        values = tuple(labels.get(name) for name in schedule.attributes)
        if values not in self._numbers:
            self._numbers[values] = np.array(
                list(map(self._number_of, name_keys(schedule, labels))), dtype=np.int64
            )
        return self._numbers[values]

    def _number_of(self, name: KeyName | None) -> int:
        if name is None:
            return -1
        key = self.keyring.key(*name)
        if key not in self._known:
            self._known.append(key)
            self._table = np.concatenate([self._table, read_key(key.reveal())[np.newaxis]])
        return self._known.index(key)

    def _draw(
        self,
        key: Key | None,
        response: NDArray[np.uint32],
        candidates: NDArray[np.uint32],
        probabilities: NDArray[np.float64],
        uniform: float,
    ) -> Draw:
        if key is None:
            return Draw(int(candidates[draw_unmarked(probabilities, uniform)]), None)
        context = response[-self.keyring.context_width :]
        self._check_size(int(candidates.max()))
        if candidates.shape[0] <= self._size // _SCATTERED + _FEW:
            words = key.words(np.tile(context, (candidates.shape[0], 1)), candidates)
        else:
            words = key.row(context, self._size)[candidates]
        token = int(candidates[self.scheme.draw(probabilities, words, uniform)])
        with np.errstate(divide="ignore"):
            has_choice = bool(leaves_choice(np.log(probabilities)))
        return Draw(token, key, has_choice)

    def _draw_among_many(
        self, number: int, response: NDArray[np.uint32], scores: NDArray[np.float32], uniform: float
    ) -> int:
        """One row with a whole row of coins; -1 if a score is not a number."""
        size, code = scores.shape[0], self._code
        if number < 0:
            top = scores.max()
            return (
                int(draw_plain_of_many(np.exp(scores - top), uniform))
                if np.isfinite(top)
                else NOTHING
            )
        words = self._known[number].row(response[-self.keyring.context_width :], size)
        if code.kind == GUMBEL:
            return int(choose_by_race(scores, words))
        top = float(scores.max())
        if not np.isfinite(top):
            return NOTHING
        return int(choose(*code, np.exp(scores.astype(np.float64) - top), words, uniform))

    def _check_size(self, token: int) -> None:
        if token >= self._size:
            raise ConfigurationMismatchError(
                f"candidates must be below the keyring's vocabulary size {self._size}; got "
                f"{token}. Use the keyring of this model."
            )
