"""Innocent suspects (and one guilty one) of the fast world: `PairCounts` without n(c).

A suspect's own text does not depend on the key: it is drawn once, and the library counts its
positions and its references. What depends on the key (a model that reads the marked log, outputs
that quote a marked passage, a student of the log) is counted anew under every key.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from provenance.coins.contexts import unpack
from provenance.suspect.access.outputs import count_positions
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.observations import Expectations, Observations, add_expectations
from provenance.suspect.positions import Positions, find_positions
from tests.world.innocents.counting import drop_ends, list_draws, retokenise
from tests.world.innocents.language import LETTERS, Language
from tests.world.innocents.traffic import Responses, Traffic, serve

Integers = NDArray[np.int64]
Masses = NDArray[np.float64]
_LEAST = 0.002
_LISTED = 20


@dataclass(frozen=True)
class Log:
    """What was served under one key."""

    key: int
    share: float
    seed: int
    language: Language
    responses: Responses


@dataclass(frozen=True)
class Shown:
    """Pairs of a suspect under one key.

    rows : int64 [m], place of each pair in the universe of its source, -1 if it is not there
    contexts, tokens : int64 [m]
    masses, totals, expected : N(c, t), N(c) and E(c, t): float64, int64, float64 [m]
    """

    rows: Integers
    contexts: Integers
    tokens: Integers
    masses: Masses
    totals: Integers
    expected: Masses


class Source(Protocol):
    """A suspect with its reference. `contexts`, `tokens`: its universe, the pairs known beforehand.

    Coin-free weights of the control variate are means over other keys, pair by pair of the
    universe; pairs outside get none.
    """

    contexts: Integers
    tokens: Integers
    sampled: bool

    def show(self, log: Log) -> Shown:
        """What it shows under this key."""


# ---------------------------------------------------------------------------- a suspect's own text


def observe_text(
    language: Language, traffic: Traffic, seed: int, *, as_text: bool = False
) -> tuple[Positions, Observations]:
    """Unmarked outputs as a user brings them: without ends; `as_text`: re-tokenised."""
    responses = drop_ends(serve(language, traffic, None, 0, seed), language)
    if as_text:
        responses = retokenise(responses, language)
    stops = np.cumsum(responses.lengths)[:-1]
    outputs = np.split(responses.ids.astype(np.uint32), stops)
    positions = find_positions(outputs, [], [], language.width, {})
    return positions, count_positions(positions)


@dataclass(frozen=True)
class Text:
    """A fixed sample of outputs beside a fixed reference."""

    contexts: Integers
    tokens: Integers
    masses: Masses
    totals: Integers
    expected: Masses
    sampled: bool = True

    @classmethod
    def of(cls, observations: Observations, language: Language) -> Text:
        """In the names of the fast world."""
        return cls(
            _name(observations.contexts, language),
            observations.tokens.astype(np.int64),
            observations.masses,
            observations.totals,
            observations.expected,
            observations.sampled,
        )

    @classmethod
    def listed(cls, observations: Observations, suspect: Language, reference: Language | None):  # type: ignore[no-untyped-def]
        """Logprobs over the suspect's own outputs: of its twenty best ids at every position."""
        contexts, first = np.unique(_name(observations.contexts, suspect), return_index=True)
        totals = observations.totals[first]
        pairs = _Support.of(suspect, reference, contexts, _LISTED)
        n = totals[pairs.rows]
        return cls(contexts[pairs.rows], pairs.tokens, n * pairs.own, n, n * pairs.other, False)

    def show(self, log: Log) -> Shown:
        """The same under every key."""
        del log
        rows = np.arange(self.contexts.size)
        return Shown(rows, self.contexts, self.tokens, self.masses, self.totals, self.expected)


def expect_with(language: Language, observations: Observations, suspect: Language) -> Observations:
    """A model as reference: its probabilities, the end's too, at the suspect's positions."""
    packed, first = np.unique(observations.contexts, return_index=True)
    states = suspect.states_of(_name(packed, suspect))
    known = states >= 0
    rows, places = np.nonzero(language.probabilities[states[known]] > _LEAST)
    states, totals = states[known][rows], observations.totals[first][known][rows]
    expectations = Expectations(
        packed[known][rows],
        language.candidates[states, places].astype(np.uint32),
        totals * language.probabilities[states, places],
        {"kind": "model"},
    )
    return add_expectations(observations, expectations)


def expect_with_ngrams(positions: Positions, observations: Observations, language: Language):  # type: ignore[no-untyped-def]
    """k-grams of other unmarked text as reference."""
    reference = NgramReference(positions, language.ids, language.width)
    return add_expectations(observations, reference.expect(observations))


def _name(packed: Integers, language: Language) -> Integers:
    """Packed contexts of the library in the names of the fast world."""
    columns = unpack(packed, language.width).astype(np.int64)
    return columns[:, 0] if language.width == 1 else columns[:, 0] * language.stride + columns[:, 1]


# ------------------------------------------------------------------------ models that read the log


@dataclass(frozen=True)
class _Support:
    """Ids that either speaker may put after each of some contexts, sorted by context and id.

    rows int64 [m] into the contexts, tokens int64 [m], own and other float64 [m]: probabilities.
    """

    rows: Integers
    tokens: Integers
    own: Masses
    other: Masses

    @classmethod
    def of(
        cls, own: Language, other: Language | None, contexts: Integers, listed: int | None = None
    ) -> _Support:
        states = own.states_of(contexts)
        found = np.flatnonzero(states >= 0)
        parts = [_probable(own, states[found], listed)]
        if other is not None:
            parts.append(_probable(other, states[found], None))
        rows = np.concatenate([part[0] for part in parts])
        tokens = np.concatenate([part[1] for part in parts])
        codes, places = np.unique(rows * own.ids + tokens, return_inverse=True)
        masses = np.zeros((2, codes.size))
        begin = 0
        for number, part in enumerate(parts):
            masses[number, places[begin : begin + part[0].size]] = part[2]
            begin += part[0].size
        rows, tokens = np.divmod(codes, own.ids)
        return cls(found[rows], tokens, masses[0], masses[1])


def _probable(
    language: Language, states: Integers, listed: int | None
) -> tuple[Integers, Integers, Masses]:
    q = language.probabilities[states]
    least = np.zeros((states.size, 1))
    if listed is not None and listed < q.shape[1]:
        least = np.partition(q, -listed, axis=1)[:, -listed][:, np.newaxis]
    rows, places = np.nonzero((q > _LEAST) & (q >= least))
    return rows, language.candidates[states[rows], places], q[rows, places]


class Reader:
    """A model that reads every response of the log; its reference reads the same.

    `whole`: with the last window of every response. `copying`: it puts so much on the word that
    stood behind the last word before (a copier). `logs` may be a fixed unmarked log instead.
    """

    sampled = False

    def __init__(
        self,
        suspect: Language,
        reference: Language | None,
        *,
        whole: bool = True,
        copying: float = 0.0,
        unmarked: Responses | None = None,
    ) -> None:
        contexts = suspect.contexts_of(np.arange(suspect.candidates.shape[0]))
        support = _Support.of(suspect, reference, contexts)
        self._suspect, self._whole, self._copying = suspect, whole, copying
        self._own, self._other, self._unmarked = support.own, support.other, unmarked
        self.contexts, self.tokens = contexts[support.rows], support.tokens
        self._codes = self.contexts * suspect.ids + self.tokens

    def show(self, log: Log) -> Shown:
        """Probabilities added up over the log's positions."""
        read = log.responses if self._unmarked is None else self._unmarked
        if not self._whole:
            read = drop_ends(read, log.language)
        draws = list_draws(read, log.language)
        visits = np.bincount(draws.contexts, minlength=log.language.contexts)
        rows = np.flatnonzero(visits[self.contexts])
        totals = visits[self.contexts[rows]]
        if not self._copying:
            return Shown(
                rows,
                self.contexts[rows],
                self.tokens[rows],
                totals * self._own[rows],
                totals,
                totals * self._other[rows],
            )
        return self._copy(read, draws.contexts, draws.places, rows, visits)

    def _copy(
        self,
        read: Responses,
        contexts: Integers,
        places: Integers,
        rows: Integers,
        visits: Integers,
    ) -> Shown:
        """With what the copier bets on."""
        bets = _bet(read.ids, read.lengths, places, self._suspect.words)
        some = bets >= 0
        betting = np.bincount(contexts[some], minlength=visits.size)
        own = self._codes[rows]
        codes, where = np.unique(
            np.concatenate([own, contexts[some] * self._suspect.ids + bets[some]]),
            return_inverse=True,
        )
        named = self.contexts[rows]
        masses = np.bincount(
            where[: own.size], (visits[named] - self._copying * betting[named]) * self._own[rows],
            minlength=codes.size,
        )  # fmt: skip
        masses += np.bincount(where[own.size :], minlength=codes.size) * self._copying
        expected = np.bincount(
            where[: own.size], visits[named] * self._other[rows], minlength=codes.size
        )
        all_rows = np.full(codes.size, -1)
        all_rows[where[: own.size]] = rows
        found, tokens = np.divmod(codes, self._suspect.ids)
        return Shown(all_rows, found, tokens, masses, visits[found], expected)


@njit(cache=True)
def _bet(ids, lengths, places, words):  # type: ignore[no-untyped-def]
    """What stood behind the last word at its latest earlier place in the response; -1: nothing."""
    out = np.full(places.size, -1, np.int64)
    stamp, follow = np.full(words + 1, -1, np.int64), np.empty(words + 1, np.int64)
    begin, at = 0, 0
    for row in range(lengths.size):
        stop = begin + lengths[row]
        for place in range(begin + 1, stop):
            last = ids[place - 1]
            if at < places.size and places[at] == place:
                if stamp[last] == row:
                    out[at] = follow[last]
                at += 1
            stamp[last], follow[last] = row, ids[place]
        begin = stop
    return out


# ------------------------------------------------------------------ outputs that depend on the key


class _Sampled:
    """A suspect whose outputs are drawn anew under every key; universe: what the speaker may say.

    Without a reference, or with the speaker itself as reference (`right`).
    """

    sampled = True

    def __init__(self, language: Language, right: bool) -> None:
        contexts = language.contexts_of(np.arange(language.candidates.shape[0]))
        support = _Support.of(language, None, contexts)
        self._language, self._right, self._own = language, right, support.own
        self.contexts, self.tokens = contexts[support.rows], support.tokens
        self._codes = self.contexts * language.ids + self.tokens

    def _count(self, contexts: Integers, tokens: Integers) -> Shown:
        totals = np.bincount(contexts, minlength=self._language.contexts)
        own = self._codes[totals[self.contexts] > 0] if self._right else self._codes[:0]
        codes, where = np.unique(
            np.concatenate([contexts * self._language.ids + tokens, own]), return_inverse=True
        )
        masses = np.bincount(where[: contexts.size], minlength=codes.size).astype(np.float64)
        places = np.minimum(np.searchsorted(self._codes, codes), self._codes.size - 1)
        known = self._codes[places] == codes
        named, ids = np.divmod(codes, self._language.ids)
        expected = np.where(known, totals[named] * self._own[places], 0) * float(self._right)
        return Shown(np.where(known, places, -1), named, ids, masses, totals[named], expected)


class Student(_Sampled):
    """A guilty suspect: after a context of the log it copies a logged id with n / (n + `prior`).

    `whole`: its outputs come with their ends, so that a context counts where an output ended too.
    """

    def __init__(
        self,
        language: Language,
        outputs: Traffic,
        *,
        prior: float = 3.0,
        right: bool = False,
        whole: bool = False,
    ) -> None:
        super().__init__(language, right)
        self._outputs, self._prior, self._whole = outputs, prior, whole

    def show(self, log: Log) -> Shown:
        """Outputs of a student of this log."""
        learnt = teach(self._language, log.responses, self._prior)
        text = serve(learnt, self._outputs, None, 0, log.seed + 10**6)
        text = text if self._whole else drop_ends(text, self._language)
        draws = list_draws(text, self._language)
        return self._count(draws.contexts, draws.tokens)


def teach(language: Language, responses: Responses, prior: float) -> Language:
    """The speaker after training on these responses."""
    draws = list_draws(responses, language, every=True)
    states = language.states_of(draws.contexts)
    hits = language.candidates[states] == draws.tokens[:, np.newaxis]
    counts = np.zeros_like(language.probabilities)
    np.add.at(counts, (states, hits.argmax(axis=1)), 1.0)
    n = counts.sum(axis=1, keepdims=True)
    mixed = (counts + prior * language.probabilities) / (n + prior)
    return replace(language, probabilities=mixed)


class Quoter(_Sampled):
    """An innocent suspect that is shown marked passages and quotes them, in other case and lines.

    Every prompt is a passage of the log in the other case, broken by a word without letters after
    every eighth word; the output repeats the passage as it was in the log, and goes on.
    `by_text`: leave out every pair of which an id stands inside a match of twelve letters with the
    prompt, as the product does; else only contexts that stand in the prompt id by id.
    """

    def __init__(
        self, language: Language, outputs: Traffic, *, by_text: bool, right: bool = False
    ) -> None:
        super().__init__(language, right)
        self._outputs, self._by_text = outputs, by_text

    def show(self, log: Log) -> Shown:
        """Outputs that quote this log."""
        own = drop_ends(
            serve(self._language, self._outputs, None, 0, log.seed + 10**6), log.language
        )
        text = _quote(own, drop_ends(log.responses, log.language), log.seed)
        draws = list_draws(text, self._language, prompts=True)
        if not self._by_text:
            return self._count(draws.contexts, draws.tokens)
        inside = match_letters(text, self._language)
        touched = inside[draws.places]
        for back in range(1, self._language.width + 1):
            touched = touched | inside[draws.places - back]
        return self._count(draws.contexts[~touched], draws.tokens[~touched])


_QUOTED = 24
_LINE = 8


def _quote(own: Responses, log: Responses, seed: int) -> Responses:
    """Outputs with a passage before them, and the prompts that show the passage."""
    rng = np.random.default_rng([seed, 7])
    long = np.flatnonzero(log.lengths >= _LINE)
    begins = np.cumsum(log.lengths) - log.lengths
    chosen = long[rng.integers(0, long.size, own.lengths.size)]
    stops = np.cumsum(own.lengths)[:-1]
    outputs, prompts = [], []
    for source, rest in zip(chosen, np.split(own.ids, stops), strict=True):
        passage = log.ids[begins[source] : begins[source] + min(_QUOTED, log.lengths[source])]
        outputs.append(np.concatenate([passage, rest]))
        prompts.append(np.insert(passage ^ 1, np.arange(_LINE, passage.size, _LINE), 0))
    lengths = np.array([part.size for part in outputs])
    return replace(
        own,
        ids=np.concatenate(outputs),
        lengths=lengths,
        drawn=np.zeros(int(lengths.sum()), dtype=np.bool_),
        prompts=np.concatenate(prompts),
        prompt_lengths=np.array([part.size for part in prompts]),
    )


def match_letters(text: Responses, language: Language) -> NDArray[np.bool_]:
    """Which ids of the outputs stand inside a match of twelve letters with their prompt."""
    window = -(-12 // LETTERS)
    names = language.words // 2
    found: NDArray[np.bool_] = _match_windows(
        text.ids,
        text.lengths,
        text.prompts,
        text.prompt_lengths,
        np.full(names**window, -1, dtype=np.int64),
        names,
    )
    return found


@njit(cache=True)
def _match_windows(ids, lengths, prompts, prompt_lengths, stamp, names):  # type: ignore[no-untyped-def]
    """Windows of three words by their letters; ids 0 and 1 have none and are passed over."""
    out = np.zeros(ids.size, np.bool_)
    begin, asked = 0, 0
    for row in range(lengths.size):
        a, b = -1, -1
        for place in range(asked, asked + prompt_lengths[row]):
            if prompts[place] < 2:
                continue
            c = prompts[place] >> 1
            if a >= 0:
                stamp[(a * names + b) * names + c] = row
            a, b = b, c
        a, b, first, second = -1, -1, begin, begin
        for place in range(begin, begin + lengths[row]):
            if ids[place] < 2:
                continue
            c = ids[place] >> 1
            if a >= 0 and stamp[(a * names + b) * names + c] == row:
                out[first : place + 1] = True
            a, b, first, second = b, c, second, place
        begin += lengths[row]
        asked += prompt_lengths[row]
    return out
