"""Where evidence can be expected, from unmarked text alone: how often contexts come up, and how
uncertain what follows them is.

A suspect learns a mark where the marked responses went often and where the coins had a choice. Both
can be told from unmarked text of the served model, without the log:

    n~(c)  = in how many unmarked answers c was reached: what an index would count
    value  = ln(1 + n~(c)) (H(1 / q(t | c)) - 1) at the token t that stands there

H is the harmonic number (psi(1 + x) + Euler's constant): H(1/q) - 1 is how far a `gumbel` coin of a
drawn token of probability q lies above its null mean, 0 for a certain token, and its mean over t
drawn from q is what a marked draw after c is expected to show. q: a k-gram model of the same text.

Knows no key and no log. It must not: prompts that are chosen by what the coins drew make outputs of
an innocent suspect lean towards them (docs/method.md, section 3).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import digamma

from provenance.coins.contexts import list_windows, pack_windows
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.positions import Positions

Values = NDArray[np.float64]
Ids = Sequence[NDArray[np.uint32]]


@dataclass(frozen=True)
class Visits:
    """Contexts that each of many rows visits, one row after another.

    begins : int64 [rows + 1] into the others; contexts : int64 [n], their numbers; values : float64
    [n], 0 for a context that the unmarked text never reached
    """

    begins: NDArray[np.int64]
    contexts: NDArray[np.int64]
    values: Values

    @property
    def counts(self) -> NDArray[np.int64]:
        """Visits of each row."""
        return np.diff(self.begins)

    def mean(self) -> Values:
        """Mean value of each row; 0 for one without visits."""
        rows = np.repeat(np.arange(self.counts.shape[0]), self.counts)
        total = np.bincount(rows, self.values, minlength=self.counts.shape[0])
        return np.asarray(total / np.maximum(self.counts, 1))

    def of(self, row: int) -> tuple[NDArray[np.int64], Values]:
        """Contexts and values of one row."""
        part = slice(self.begins[row], self.begins[row + 1])
        return self.contexts[part], self.values[part]


class Expected:
    """What unmarked text says of contexts.

    Parameters
    ----------
    positions : where the unmarked text was read, see `read_positions`
    vocabulary_size, width : of the keyring

    Raises
    ------
    DataError if the text has no k-gram. Cost: that of `NgramReference`, and one sort.
    """

    def __init__(self, positions: Positions, vocabulary_size: int, width: int) -> None:
        self._positions = positions
        self._width = width
        self._ngrams = NgramReference(positions, vocabulary_size, width)
        contexts, which = np.unique(positions.contexts, return_inverse=True)
        self._contexts = contexts
        signal = signal_of(self._ngrams.probability(positions.contexts, positions.tokens))
        self._counts = np.bincount(which, minlength=contexts.shape[0])
        self._signal = np.bincount(which, signal, minlength=contexts.shape[0]) / self._counts

    def visit_outputs(self, owners: NDArray[np.int64], size: int) -> Visits:
        """What unmarked outputs visit; `owners` int64 [outputs]: whose they are, -1: nobody's."""
        rows = owners[self._positions.rows]
        kept = rows >= 0
        return self._visit(rows[kept], self._positions.contexts[kept], size)

    def visit_texts(self, texts: Ids) -> Visits:
        """The contexts inside each text: a prompt, of which no answer is known."""
        lengths = np.array([ids.shape[0] for ids in texts], dtype=np.int64)
        ids = np.concatenate([*texts, np.empty(0, dtype=np.uint32)])
        rows, starts = list_windows(ids, lengths, self._width, followed=False)
        return self._visit(rows, pack_windows(ids, starts, self._width), len(texts))

    def _visit(self, rows: NDArray[np.int64], contexts: NDArray[np.int64], size: int) -> Visits:
        last = max(self._contexts.shape[0] - 1, 0)
        places = np.minimum(np.searchsorted(self._contexts, contexts), last)
        known = self._contexts[places] == contexts
        values = np.log1p(self._counts[places]) * self._signal[places]
        order = np.argsort(rows, kind="stable")
        return Visits(
            np.searchsorted(rows[order], np.arange(size + 1)),
            np.where(known, places, 0)[order],
            np.where(known, values, 0.0)[order],
        )


def signal_of(q: Values) -> Values:
    """How far the coin of a token that was drawn with probability q lies above its null mean.

    float64 [n] in (0, 1] -> float64 [n], in null means of -ln(1 - u), for `gumbel`: the expectation
    of -ln(1 - u) of the winner is H(1/q).

    >>> signal_of(np.array([1.0, 0.5])).round(6).tolist()
    [0.0, 0.5]
    """
    return np.asarray(digamma(1 + 1 / q) + np.euler_gamma - 1)
