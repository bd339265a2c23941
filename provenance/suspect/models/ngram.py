"""A reference without a model: smoothed k-gram counts of unmarked text or of other suspects.

q(t | c) interpolates the counts after c, after its shorter endings, and of single tokens:

    q_j(t) = l_j f(t | last j tokens of c) + (1 - l_j) q_{j-1}(t),   l_j = total / (total + types)

(Witten & Bell 1991, in the form of Chen & Goodman 1999). Expected counts: E(c, t) = N(c) q(t | c).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import list_windows, pack, pack_windows
from provenance.coins.words import MAXIMUM_CONTEXT_WIDTH
from provenance.errors import DataError
from provenance.suspect.observations import Expectations, Observations
from provenance.suspect.positions import Positions

_BITS: Final = 21
_LEAST_MASS: Final = 0.1
"""Pairs that the suspect never put and that are expected less often than this weigh nothing."""


@dataclass(frozen=True)
class _Level:
    """Counts after contexts of one width.

    contexts int64 [m], sorted; totals and types int64 [m]; begins int64 [m + 1] into the entries;
    keys int64 [p] = row * V + token, sorted; counts int64 [p].
    """

    contexts: NDArray[np.int64]
    totals: NDArray[np.int64]
    types: NDArray[np.int64]
    begins: NDArray[np.int64]
    keys: NDArray[np.int64]
    counts: NDArray[np.int64]

    @classmethod
    def count(cls, contexts: NDArray[np.int64], tokens: NDArray[np.uint32], size: int) -> _Level:
        distinct, rows = np.unique(contexts, return_inverse=True)
        keys, counts = np.unique(rows * size + tokens.astype(np.int64), return_counts=True)
        begins = np.searchsorted(keys // size, np.arange(distinct.shape[0] + 1))
        totals = np.bincount(rows, minlength=distinct.shape[0])
        return cls(distinct, totals, np.diff(begins), begins, keys, counts)

    def find(self, contexts: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Row of each context, and whether it is known."""
        if not self.contexts.size:
            return np.zeros(contexts.shape, dtype=np.int64), np.zeros(contexts.shape, dtype=bool)
        rows = np.minimum(np.searchsorted(self.contexts, contexts), self.contexts.shape[0] - 1)
        return rows, self.contexts[rows] == contexts


class NgramReference:
    """Smoothed k-gram model of some text.

    Parameters
    ----------
    positions : where that text was read, see `read_positions`; every token counts, not only the
        first occurrence of a context
    vocabulary_size, width : of the keyring; of longer contexts the last three tokens count

    Raises
    ------
    DataError if the text has no k-gram.

    Notes
    -----
    Cost: k sorts of the text; memory about 60 bytes a token and level.
    """

    def __init__(self, positions: Positions, vocabulary_size: int, width: int) -> None:
        self._size = vocabulary_size
        self._width = width = min(width, MAXIMUM_CONTEXT_WIDTH)
        lengths = np.array([ids.shape[0] for ids in positions.outputs], dtype=np.int64)
        ids = np.concatenate([*positions.outputs, np.empty(0, dtype=np.uint32)])
        self._levels = []
        for j in range(1, width + 1):
            _, starts = list_windows(ids, lengths, j, followed=True)
            packed = pack_windows(ids, starts, j)
            self._levels.append(_Level.count(packed, ids[starts + j], vocabulary_size))
        if not self._levels[-1].totals.size:
            raise DataError(
                f"reference text must have more than {width} tokens in one output; it has not. "
                "Give more text."
            )
        counts = np.bincount(ids, minlength=vocabulary_size) + 0.5
        self._unigram = counts / counts.sum()
        self.reference = {
            "kind": "ngram",
            "sha256": dict(positions.sha256),
            "tokens": int(ids.shape[0]),
        }

    def probability(
        self, contexts: NDArray[np.int64], tokens: NDArray[np.uint32]
    ) -> NDArray[np.float64]:
        """q(t | c) of pairs: int64 [n], packed, and uint32 [n] -> float64 [n], in (0, 1)."""
        q: NDArray[np.float64] = self._unigram[tokens]
        for j, level in enumerate(self._levels, start=1):
            rows, known = level.find(contexts & ((1 << (_BITS * j)) - 1))
            if not level.keys.size:
                continue
            wanted = rows * self._size + tokens.astype(np.int64)
            places = np.minimum(np.searchsorted(level.keys, wanted), level.keys.shape[0] - 1)
            hits = np.where(level.keys[places] == wanted, level.counts[places], 0)
            total, types = level.totals[rows], level.types[rows]
            # l f + (1 - l) q with l = total / (total + types) and f = hits / total
            q = np.asarray(np.where(known, (hits + types * q) / (total + types), q))
        return q

    def expect(self, observations: Observations) -> Expectations:
        """E(c, t) for every observed pair, and for likely tokens that the suspect did not put.

        Cost: a few look-ups per pair; memory about 100 bytes a pair.
        """
        contexts, rows = np.unique(observations.contexts, return_inverse=True)
        totals = np.zeros(contexts.shape[0])
        totals[rows] = observations.totals
        endings = contexts
        if observations.wide is not None:
            endings = pack(observations.wide.find(contexts)[:, -self._width :])
        pairs = [np.stack([rows, observations.tokens.astype(np.int64)], axis=1)]
        pairs += list(self._likely(endings, totals))
        both = np.concatenate(pairs)
        row, token = np.divmod(np.unique(both[:, 0] * self._size + both[:, 1]), self._size)
        tokens = token.astype(np.uint32)
        masses = totals[row] * self.probability(endings[row], tokens)
        return Expectations(contexts[row], tokens, masses, self.reference)

    def _likely(
        self, contexts: NDArray[np.int64], totals: NDArray[np.float64]
    ) -> Iterator[NDArray[np.int64]]:
        """(row, token) that some level makes likely enough: N(c) f(t | ending of c) >= 0.1.

        Rows are handled in groups of similar N(c), so that each level is filtered a few times.
        """
        group = np.floor(np.log2(np.maximum(totals, 1))).astype(np.int64)
        for j, level in enumerate(self._levels, start=1):
            found, known = level.find(contexts & ((1 << (_BITS * j)) - 1))
            share = level.counts / np.repeat(level.totals, level.types)
            for power in np.unique(group):
                kept = np.flatnonzero(share * 2.0 ** (power + 1) >= _LEAST_MASS)
                begins = np.searchsorted(kept, level.begins)
                rows = np.flatnonzero(known & (group == power))
                first, last = begins[found[rows]], begins[found[rows] + 1]
                lengths = last - first
                ends = np.cumsum(lengths)
                count = int(ends[-1]) if ends.size else 0
                entries = np.arange(count) + np.repeat(first - (ends - lengths), lengths)
                tokens = level.keys[kept[entries]] % self._size
                yield np.stack([np.repeat(rows, lengths), tokens], axis=1)
