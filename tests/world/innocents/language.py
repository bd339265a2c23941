"""What is spoken in the fast world: a Markov chain of order k whose words can end a response.

Ids 0 .. V - 1 are words, id V ends a response, id V + 1 + w is word w merged with the partner that
may follow it (a log or an output that is kept as text only comes back with merged words). For
quotations a word has a text: ids 2 w and 2 w + 1 are the same four letters in another case.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

LETTERS = 4
"""Letters of a word: three words are the twelve characters of the rule on quotations."""


@dataclass(frozen=True)
class Language:
    """A speaker.

    Attributes
    ----------
    words, width : V and k (1 or 2)
    candidates : int64 [V**k, C], ids that may follow each state, distinct within a row
    probabilities : float64 [V**k, C], 0 where a row has fewer candidates
    partners : int64 [V], the word that merges with it, or -1
    """

    words: int
    width: int
    candidates: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    partners: NDArray[np.int64]

    @property
    def end(self) -> int:
        """The id that ends a response."""
        return self.words

    @property
    def ids(self) -> int:
        """How many ids there are, merged words and the end among them."""
        return 2 * self.words + 1

    @property
    def stride(self) -> int:
        """How many ids may stand in a context: a context is named a * stride + b, or b."""
        return self.ids if (self.partners >= 0).any() else self.words

    @property
    def contexts(self) -> int:
        """How many names of contexts there are."""
        return int(self.stride**self.width)

    def states_of(self, contexts: NDArray[np.int64]) -> NDArray[np.int64]:
        """Row of each context: int64 [n]; -1 if a merged word stands in it (never drawn from)."""
        if self.width == 1:
            return np.where(contexts < self.words, contexts, -1)
        a, b = np.divmod(contexts, self.stride)
        return np.where((a < self.words) & (b < self.words), a * self.words + b, -1)

    def contexts_of(self, states: NDArray[np.int64]) -> NDArray[np.int64]:
        """Inverse of `states_of`."""
        if self.width == 1:
            return states
        a, b = np.divmod(states, self.words)
        return np.asarray(a * self.stride + b)


def draw_language(
    seed: int,
    words: int,
    width: int = 2,
    *,
    candidates: int = 5,
    ends: float = 0.1,
    p_end: tuple[float, float] = (0.2, 0.8),
    merging: float = 0.0,
) -> Language:
    """A language at random: words by Zipf's law, candidates with weights 1, 1/2, 1/3, ...

    Parameters
    ----------
    ends : share of the words after which a response may end
    p_end : least and largest probability of the end there; it differs from context to context
    merging : share of the words that have a partner, which follows them with probability .3
    """
    rng = np.random.default_rng(seed)
    states = words**width
    scores = -np.log(np.arange(words) + 3.0) + rng.gumbel(size=(states, words)).astype(np.float32)
    chosen = np.argpartition(-scores, candidates, axis=1)[:, :candidates].astype(np.int64)
    weights = rng.permuted(np.tile(1 / (1 + np.arange(float(candidates))), (states, 1)), axis=1)
    last = np.arange(states) % words
    partners = np.full(words, -1, dtype=np.int64)
    if merging:
        with_partner = rng.choice(words, round(merging * words), replace=False)
        partners[with_partner] = rng.permutation(words)[: with_partner.size]
        _give_partners(chosen, weights, partners[last])
    if ends:
        enders = 10 + np.arange(round(ends * words))
        at = np.isin(last, enders)
        # the place before the partner's, so that both may stand in a row
        chosen[:, -2] = words
        rest = weights.sum(axis=1) - weights[:, -2]
        p = rng.uniform(*p_end, states)
        weights[:, -2] = np.where(at, rest * p / (1 - p), 0)
    weights /= weights.sum(axis=1, keepdims=True)
    return Language(words, width, chosen, weights, partners)


def _give_partners(
    chosen: NDArray[np.int64], weights: NDArray[np.float64], partners: NDArray[np.int64]
) -> None:
    """Where the last word has a partner, it is the last candidate, with probability .3."""
    rows = np.flatnonzero(partners >= 0)
    twice = chosen[rows] == partners[rows, np.newaxis]
    weights[rows] = np.where(twice, 0, weights[rows])
    chosen[rows] = np.where(twice, -1, chosen[rows])
    rest = weights[rows, :-1].sum(axis=1)
    chosen[rows, -1] = partners[rows]
    weights[rows, -1] = rest * 0.3 / 0.7


def mix_languages(first: Language, second: Language, share: float) -> Language:
    """A speaker who draws from the second with this probability; both over the same words."""
    chosen = np.concatenate([first.candidates, second.candidates], axis=1)
    weights = np.concatenate(
        [(1 - share) * first.probabilities, share * second.probabilities], axis=1
    )
    order = np.argsort(chosen, axis=1, kind="stable")
    chosen = np.take_along_axis(chosen, order, axis=1)
    weights = np.take_along_axis(weights, order, axis=1)
    for column in range(chosen.shape[1] - 1, 0, -1):  # equal ids stand side by side: pour leftwards
        same = chosen[:, column] == chosen[:, column - 1]
        weights[:, column - 1] += np.where(same, weights[:, column], 0)
        weights[:, column] = np.where(same, 0, weights[:, column])
    return replace(first, candidates=chosen, probabilities=weights)


def scale_ends(language: Language, factor: float) -> Language:
    """The same speaker, who ends a response this many times as often (at most always)."""
    q = language.probabilities.copy()
    ends = language.candidates == language.end
    q[ends] *= factor
    rest = np.where(ends, 0, q).sum(axis=1, keepdims=True)
    left = 1 - np.where(ends, q, 0).sum(axis=1, keepdims=True)
    return replace(language, probabilities=np.where(ends, q, q * left / rest))
