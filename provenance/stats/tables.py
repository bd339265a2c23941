"""The class table: everything that a p-value depends on, in a few hundred rows.

Coins with the same weight and the same null law are exchangeable, so a check is fully described by
(weight, law, number of coins, sum of their scores) per class. Tables of disjoint shards add. The
table is the evidence: an outside expert recomputes p from it and needs no key.

Does not know where weights and scores come from; it cannot tell whether the weights were fixed
before the coins were opened.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from provenance.errors import DataError, UsageError
from provenance.stats.laws import NullLaw
from provenance.stats.score_class import MAX_WEIGHT, ScoreClass
from provenance.stats.table_json import read_classes, write_classes

_DENSE_RANGE = 1 << 20


@dataclass(frozen=True)
class ClassTable:
    """Sufficient statistic of a check: its classes in canonical order.

    Parameters
    ----------
    classes : tuple of ScoreClass
        Sorted by weight, then by the masses of the law; no two alike.

    Raises
    ------
    DataError
        If the classes are not in canonical order or repeat.

    Examples
    --------
    >>> law = NullLaw.bernoulli(2**30)
    >>> table = ClassTable.from_scores([1, 2, 2, 0], [1, 1, 0, 1], law)
    >>> [(c.weight, c.count, c.total) for c in table.classes]
    [(1, 1, 1), (2, 2, 1)]
    >>> table.statistic
    3
    """

    classes: tuple[ScoreClass, ...]

    def __post_init__(self) -> None:
        keys = [_order(item) for item in self.classes]
        if any(left >= right for left, right in pairwise(keys)):
            raise DataError(
                "The classes of a table must be sorted by weight, then law, without repeats; "
                "got another order. Build tables with from_scores and merge."
            )

    @classmethod
    def from_scores(cls, weights: ArrayLike, scores: ArrayLike, law: NullLaw) -> ClassTable:
        """Collect coins into classes.

        Parameters
        ----------
        weights : int64 (n,)
            Fixed before any coin was opened. Coins of weight 0 are left out.
        scores : int64 (n,)
            Score of each coin; every score must have positive probability under the law.
        law : NullLaw
            Common law of the scores under H0.

        Returns
        -------
        ClassTable

        Raises
        ------
        UsageError
            If the arrays are not integer vectors of one length.
        DataError
            If a score is impossible under the law, or a weight exceeds 2**40.

        Notes
        -----
        O(n) for weights within a range of 2**20, else O(n log n).
        """
        weight, score = _integer_vector(weights, "weights"), _integer_vector(scores, "scores")
        if weight.size != score.size:
            raise UsageError(
                f"weights and scores must have one length; got {weight.size} and {score.size}. "
                "Pass one score per weight."
            )
        _refuse_impossible(score, law)
        keep = weight != 0
        return cls(tuple(_collect(weight[keep], score[keep], law)))

    def merge(self, other: ClassTable) -> ClassTable:
        """Return the table of both sets of coins (which must be disjoint; this cannot check it)."""
        return ClassTable(tuple(_combine((*self.classes, *other.classes))))

    @cached_property
    def statistic(self) -> int:
        """The statistic S: sum of weight * score over all coins, exact."""
        return sum(item.weight * item.total for item in self.classes)

    @cached_property
    def coins(self) -> int:
        """Number of coins of nonzero weight."""
        return sum(item.count for item in self.classes)

    @property
    def mean(self) -> float:
        """Mean of S under H0, rounded once."""
        return float(self._moment(1, 0))

    @property
    def variance(self) -> float:
        """Variance of S under H0, rounded once."""
        return float(self._moment(2, 1))

    @property
    def z(self) -> float:
        """(S - mean) / standard deviation; 0.0 if S is constant under H0."""
        variance = self._moment(2, 1)
        if variance == 0:
            return 0.0
        return float(self.statistic - self._moment(1, 0)) / math.sqrt(variance)

    @property
    def excess_kurtosis(self) -> float:
        """Excess kurtosis of S under H0, exact up to one rounding; 0.0 if S is constant."""
        variance = self._moment(2, 1)
        if variance == 0:
            return 0.0
        fourth = Fraction(0)
        for law, size in self._power_sums(4).items():
            fourth += size * (law.moments[2] - 3 * law.moments[1] ** 2)
        return float(fourth) / float(variance) ** 2

    @property
    def effective_coins(self) -> float:
        """(sum |w|)^2 / sum w^2: number of equal weights with the same spread; 0.0 if empty."""
        squares = sum(item.weight**2 * item.count for item in self.classes)
        plain = sum(abs(item.weight) * item.count for item in self.classes)
        return float(Fraction(plain**2, squares)) if squares else 0.0

    @property
    def largest_share(self) -> float:
        """max w^2 / sum w^2: share of the squared weight held by one coin; 0.0 if empty."""
        squares = sum(item.weight**2 * item.count for item in self.classes)
        largest = max((item.weight**2 for item in self.classes), default=0)
        return float(Fraction(largest, squares)) if squares else 0.0

    def to_json(self) -> dict[str, object]:
        """Return the table as JSON-able data; laws are listed once and referred to by position."""
        return write_classes(self.classes)

    @classmethod
    def from_json(cls, data: Mapping[str, object]) -> ClassTable:
        """Read what to_json wrote, and nothing else.

        Parameters
        ----------
        data : mapping
            Parsed JSON.

        Raises
        ------
        DataError
            If a field is missing, unknown, of the wrong type or out of its domain, if a law is
            unused, repeated or misnumbered, or if the order is not canonical.
        """
        table = cls(tuple(read_classes(data)))
        if table.to_json() != dict(data):
            raise DataError(
                "The laws of a class table must be sorted, distinct, numbered from 0 and all used; "
                "got another list. Write tables with to_json."
            )
        return table

    def sha256(self) -> str:
        """Return the hex SHA-256 of the canonical JSON (sorted keys, no spaces, ASCII)."""
        text = json.dumps(self.to_json(), sort_keys=True, separators=(",", ":"))
        return hashlib.sha256(text.encode("ascii")).hexdigest()

    def _power_sums(self, power: int) -> dict[NullLaw, int]:
        """Sum of weight**power over the coins of each law."""
        sums: dict[NullLaw, int] = {}
        for item in self.classes:
            sums[item.law] = sums.get(item.law, 0) + item.weight**power * item.count
        return sums

    def _moment(self, power: int, index: int) -> Fraction:
        """Sum over laws of (sum of weight**power) * law.moments[index]."""
        sums = self._power_sums(power).items()
        return sum((size * law.moments[index] for law, size in sums), Fraction(0))


def _order(item: ScoreClass) -> tuple[int, tuple[int, ...]]:
    return item.weight, item.law.masses


def _combine(classes: Iterable[ScoreClass]) -> list[ScoreClass]:
    """Add up classes of equal weight and law, in canonical order."""
    sums: dict[tuple[int, NullLaw], tuple[int, int]] = {}
    for item in classes:
        count, total = sums.get((item.weight, item.law), (0, 0))
        sums[item.weight, item.law] = count + item.count, total + item.total
    return sorted((ScoreClass(*key, *value) for key, value in sums.items()), key=_order)


def _integer_vector(values: ArrayLike, name: str) -> NDArray[np.int64]:
    """Return a one-dimensional int64 array, or refuse."""
    array = np.asarray(values)
    if array.size == 0 and array.ndim == 1:
        return np.zeros(0, dtype=np.int64)
    if array.ndim != 1 or array.dtype.kind not in "iu":
        raise UsageError(
            f"{name} must be a one-dimensional integer array; got {array.dtype} of shape "
            f"{array.shape}. Quantise before building a table."
        )
    if array.dtype == np.uint64 and int(array.max()) > np.iinfo(np.int64).max:
        raise UsageError(f"{name} must fit int64; got {int(array.max())}. Rescale them.")
    return array.astype(np.int64, copy=False)


def _refuse_impossible(scores: NDArray[np.int64], law: NullLaw) -> None:
    """Raise if a score has probability 0 under the law."""
    if not scores.size:
        return
    low, high = int(scores.min()), int(scores.max())
    possible = np.array([mass > 0 for mass in law.masses])
    if low < 0 or high >= possible.size or not possible[scores].all():
        inside = scores[(scores >= 0) & (scores < possible.size)]
        bad = low if low < 0 else high if high >= possible.size else inside[~possible[inside]][0]
        raise DataError(
            f"Every score must have positive probability under its law; got score {int(bad)}. "
            "Score with the scheme that the law belongs to."
        )


def _collect(
    weights: NDArray[np.int64], scores: NDArray[np.int64], law: NullLaw
) -> list[ScoreClass]:
    """Group coins by weight; sums of scores are exact."""
    if not weights.size:
        return []
    low, high = int(weights.min()), int(weights.max())
    if max(-low, high) > MAX_WEIGHT:
        raise DataError(
            f"Weights must be at most 2**40 up to sign; got {low}..{high}. Rescale the weights."
        )
    if high - low < _DENSE_RANGE:
        values = np.arange(low, high + 1)
        position = weights - low
    else:
        values, position = np.unique(weights, return_inverse=True)
    counts = np.bincount(position, minlength=values.size)
    # float64 sums of integers are exact below 2**53: n < 2**37 coins of score < 2**16
    totals = np.bincount(position, weights=scores, minlength=values.size)
    return [
        ScoreClass(int(values[row]), law, int(counts[row]), int(totals[row]))
        for row in np.flatnonzero(counts)
    ]
