"""Shares of the absorbed evidence per label value, from the class tables of their keys.

The reference key (`global`) marks a share lambda_0 of all contexts, the slot of an attribute a
share lambda_s, and within it every value has a key of its own. What a suspect absorbed of one
value, as a share of all that it absorbed, is the excess of that value's scores over the excess of
the reference's, times lambda_0 / lambda_s.

Does not know what the values stand for, and names no share without an interval. It cannot tell
where in the slots the absorbed contexts lie: two slots are taken to be alike.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri, ndtri_exp

from provenance.errors import UsageError
from provenance.stats.families import ShareIntervals, fieller_interval, nearest_share
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable

_LONGEST_SURPRISE: Final = 8.0
"""Bound on the mean excess of an absorbed score, in standard deviations of a null score."""

_MARGIN: Final = 2.1
"""How far beyond its threshold a key must be, in standard deviations, before shares are stated."""

_LN10: Final = math.log(10.0)
_Array = NDArray[np.float64]


@dataclass(frozen=True)
class Rejection:
    """A tested key: log10 of its p, log10 of the level it was tested at, and its class table."""

    log10_p: float
    log10_level: float
    table: ClassTable


def is_clear(rejections: Sequence[Rejection]) -> bool:
    """Whether some key lies so far beyond its threshold that being selected does not bias shares.

    Parameters
    ----------
    rejections : sequence of Rejection
        Every key of the family, each with its own level alpha * weight.

    Returns
    -------
    bool
        True if a signed root of p exceeds that of its level by 2.1 standard deviations.

    Notes
    -----
    Shares are looked at only after the family test rejects. Let r_i be the probability that key i
    rejects and f_i that it does so clearly; f_i <= .0357 r_i unless r_i > 1/2 (normal, mean below
    the threshold). If the family rejects with probability >= 1/2, intervals that miss with
    probability .025 miss with .05 given rejection; if with less, a clear rejection has conditional
    probability <= .0357 ln 2 / (1/2) < .05. Either way at most 5 % of the rejections end in a miss,
    whatever the strength.
    """
    return any(
        _root(item.log10_p) - _root(item.log10_level)
        >= _MARGIN * math.sqrt(_Excess.of(item.table).inflation)
        for item in rejections
    )


def share_intervals(
    values: Sequence[ClassTable],
    reference: ClassTable,
    ratios: ArrayLike,
    level: float = 0.95,
    clear: bool = True,
) -> ShareIntervals:
    """Simultaneous intervals for the shares of all values of all slots.

    Parameters
    ----------
    values : sequence of B ClassTable
        Of the key of each value, over *all* slots that are shown.
    reference : ClassTable
        Of the key that all marked responses share.
    ratios : float64 (B,)
        lambda_s / lambda_0 of the slot of each value, > 0.
    level : float
        Probability, given that the intervals are stated, that all B cover; in (0, 1).
    clear : bool
        `is_clear` of the family; if False every interval is [0, 1].

    Returns
    -------
    ShareIntervals

    Raises
    ------
    UsageError
        If an argument is outside its domain.

    Notes
    -----
    Statistic: D = sum of (score - mean), every distinct pair once, not its weight: weights contain
    how often the *value* served a context, so sums under two keys are on two scales (with one
    value in a tenth of the responses, z gives it up to four times its share). Pairs in contexts
    that the value never served have expectation 0 and may be missing, so E D_v = pi_v lambda_s /
    lambda_0 E D_0 however uneven the values are. Where a weight is negative (with a reference) D
    is the weighted sum; its scale is known only to lie between sqrt(lambda_s / lambda_0) and
    that by effective coins, and the interval is the hull over both.

    Variance: an absorbed coin is not a null coin. If absorbed scores have a mean excess of at most
    M deviations, E (x - mean)^2 <= var (1 + M shift), with the shift per coin, M = 8 or what the
    law allows: tokens that the served model gave e^-8 or more, on average. Two standard errors are
    added to the shift. Few coins of a skewed law: quantiles are stretched by the first term of
    Cornish and Fisher. Sets are those of Fieller with the Sidak quantile for B values at level
    1 - (1 - level) / 2: the other half pays for the selection, see `is_clear`.

    O(classes + B). Coverage, old and new: benchmarks/shares.py, docs/validity.md.

    References
    ----------
    Fieller (1954), J. R. Stat. Soc. B 16; Sidak (1967), J. Am. Stat. Assoc. 62.

    Examples
    --------
    >>> law = NullLaw((1, 1))
    >>> half, none = (ClassTable.from_scores([1] * 900, [1] * n + [0] * (900 - n), law)
    ...               for n in (700, 450))
    >>> found = share_intervals([half, none], half, [1.0, 1.0])
    >>> found.estimate.round(2).tolist(), found.lower.round(2).tolist()
    ([1.0, 0.0], [0.76, 0.0])
    """
    scales = np.asarray(ratios, dtype=np.float64)
    if scales.shape != (len(values),) or not (np.isfinite(scales) & (scales > 0)).all():
        raise UsageError(
            f"ratios must be one positive number per value; got shape {scales.shape} for "
            f"{len(values)} values. Divide the share of the value's slot by the reference's."
        )
    if not 0 < level < 1:
        raise UsageError(f"level must be in (0, 1); got {level}. Use .95.")
    tail = -math.expm1(math.log1p(-(1.0 - level) / 2.0) / max(len(values), 1)) / 2.0
    critical = float(-ndtri(tail))
    signed = any(row.weight < 0 for table in (*values, reference) for row in table.classes)
    base = _Excess.of(reference, weighted=signed)
    rows = np.empty((len(values), 3))
    for i, table in enumerate(values):
        own = _Excess.of(table, weighted=signed)
        slopes = _slopes(own, base, float(scales[i]), signed)
        rows[i] = _interval(own, base, slopes, critical)
    if not clear:
        rows[:, 1:] = 0.0, 1.0
    return ShareIntervals(rows[:, 0], rows[:, 1], rows[:, 2], level, critical)


@dataclass(frozen=True)
class _Excess:
    """Standardised excess y of the scores of a table, and what its error depends on.

    third : sum |g|^3 / (sum g^2)^(3/2) of the weights g used: 1 / sqrt(n) for n equal ones
    inflation : upper bound of the variance of y
    skewness : absolute, of y under H0
    """

    y: float
    coins: int
    effective: float
    third: float
    inflation: float
    skewness: float

    @classmethod
    def of(cls, table: ClassTable, weighted: bool = True) -> _Excess:
        total = squares = cubes = skewed = 0.0
        longest = 0.0
        for row in table.classes:
            deviation = math.sqrt(row.law.variance)
            weight = float(row.weight if weighted else 1) * deviation
            if deviation == 0.0:
                continue
            total += weight * (row.total - row.count * row.law.mean) / deviation
            squares += row.count * weight**2
            cubes += row.count * abs(weight) ** 3
            skewed += row.count * abs(weight) ** 3 * _skewness(row.law)
            longest = max(longest, _surprise(row.law, weight < 0))
        if not squares:
            return cls(0.0, 0, 0.0, 1.0, 1.0, 0.0)
        y, third = total / math.sqrt(squares), cubes / squares**1.5
        inflation = 1.0 + min(longest, _LONGEST_SURPRISE) * max(0.0, y + 2.0) * third
        return cls(y, table.coins, table.effective_coins, third, inflation, skewed / squares**1.5)

    def deviation(self, critical: float) -> float:
        """Standard deviation to use with a normal quantile."""
        stretch = self.skewness * max(critical**2 - 1.0, 0.0) / (6.0 * critical)
        return math.sqrt(self.inflation) * (1.0 + stretch)


def _slopes(own: _Excess, base: _Excess, ratio: float, signed: bool) -> tuple[float, ...]:
    """E y_v / (pi_v E y_0): one number, or the ends between which it lies."""
    if not own.coins or not base.coins:
        return ()
    if not signed:
        return (ratio * math.sqrt(base.coins / own.coins),)
    by_coins = math.sqrt(own.effective / base.effective) * base.coins * ratio / own.coins
    return math.sqrt(ratio), by_coins


def _interval(
    own: _Excess, base: _Excess, slopes: Sequence[float], critical: float
) -> tuple[float, float, float]:
    """Estimate, lower and upper limit; all of [0, 1] where nothing was scored."""
    if not slopes:
        return 0.0, 0.0, 1.0
    here, there = own.deviation(critical), base.deviation(critical)
    value, reference = own.y / here, base.y / there
    scaled = [slope * there / here for slope in slopes]
    limits = [fieller_interval(value, reference, scale, critical) for scale in scaled]
    lower, upper = min(low for low, _ in limits), max(high for _, high in limits)
    middle = math.exp(sum(map(math.log, scaled)) / len(scaled))
    estimate = nearest_share(value, reference, middle)
    return min(max(estimate, lower), upper), lower, upper


def _surprise(law: NullLaw, reverse: bool) -> float:
    """How far the best score lies from the mean, in standard deviations."""
    best = law.support[0] if reverse else law.support[-1]
    return abs(best - law.mean) / math.sqrt(law.variance)


def _skewness(law: NullLaw) -> float:
    """Absolute third standardised moment of one score."""
    scores = np.arange(len(law.masses)) - law.mean
    return float(np.abs(law.probabilities @ scores**3)) / float(law.variance**1.5)


def _root(log10_p: float) -> float:
    """The normal quantile that has this upper tail."""
    return float(-ndtri_exp(min(log10_p * _LN10, 0.0))) if log10_p < 0.0 else -math.inf
