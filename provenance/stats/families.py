"""Many keys at once: family-wise error, and shares of the evidence per label value.

Does not know what the keys stand for, and names no share without an interval.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import ndtri

from provenance.errors import UsageError
from provenance.stats.coin_sets import identifiers
from provenance.stats.inversion import estimate_upper_tail, log10_upper_tail
from provenance.stats.tables import ClassTable

_Array = NDArray[np.float64]


def weighted_holm(log10_p: ArrayLike, weights: ArrayLike) -> _Array:
    """Adjusted p-values of the weighted Holm procedure.

    Parameters
    ----------
    log10_p : float64 (m,)
        log10 p of each hypothesis, <= 0.
    weights : float64 (m,)
        Share of the error rate given to each hypothesis, >= 0, sum 1, fixed before looking at p.

    Returns
    -------
    float64 (m,)
        Adjusted log10 p in the order of the input, <= 0. Rejecting where it is <= log10(alpha)
        keeps the probability of any false rejection <= alpha, whatever the dependence. A hypothesis
        of weight 0 is never rejected (0.0).

    Raises
    ------
    UsageError
        If a p is above 1 or NaN, or the weights are negative or do not sum to 1.

    Notes
    -----
    With hypotheses ordered by p / w, adjusted p_(i) = max over j <= i of
    p_(j) * (w_(j) + ... + w_(m)) / w_(j). Equals closed testing with weighted Bonferroni tests of
    all intersections. O(m log m).

    References
    ----------
    Holm (1979), Scand. J. Stat. 6, section 3 (the procedure with weights).

    Examples
    --------
    >>> weighted_holm([-6.0, -2.0, -1.0], [0.5, 0.25, 0.25]).round(3).tolist()
    [-5.699, -1.699, -1.0]
    """
    values, shares = _family(log10_p, weights)
    adjusted = np.zeros(values.size)
    positive = np.flatnonzero(shares > 0)
    if not positive.size:
        return adjusted
    ratio = values[positive] - np.log10(shares[positive])
    order = positive[np.argsort(ratio, kind="stable")]
    remaining = np.cumsum(shares[order][::-1])[::-1]
    steps = values[order] + np.log10(remaining / shares[order])
    adjusted[order] = np.minimum(np.maximum.accumulate(steps), 0.0)
    return adjusted


def find_smallest(tables: Sequence[ClassTable], weights: ArrayLike) -> float:
    """Smallest adjusted log10 p of a family, where no other is asked for; 0.0 for none.

    Parameters
    ----------
    tables : class table of each hypothesis
    weights : float64 (m,), as of `weighted_holm`, > 0

    Notes
    -----
    That of `weighted_holm`, whose first step divides by the weight. Exact tails are for the tables
    that come within a factor of 10 of the smallest by `estimate_upper_tail`, which errs by less.
    """
    if not tables:
        return 0.0
    shares = np.log10(np.asarray(weights, dtype=np.float64))
    estimates = np.array([estimate_upper_tail(table) for table in tables]) - shares
    near = np.flatnonzero(estimates <= estimates.min() + 1.0)
    return min(0.0, *(log10_upper_tail(tables[int(i)]) - float(shares[i]) for i in near))


def correlate_z(
    first: tuple[NDArray[np.uint32], ArrayLike], second: tuple[NDArray[np.uint32], ArrayLike]
) -> tuple[float, int]:
    """Correlation of two suspects' z under H0 when both are scored under one key.

    Parameters
    ----------
    first, second : (uint32 (n, width), int64 (n,))
        Distinct units of each suspect, and their weights.

    Returns
    -------
    (float, int)
        Correlation in [-1, 1] (0.0 if one of them has no units), and the number of shared units.

    Notes
    -----
    Given the weights, z_A and z_B are sums over independent coins of one law; only a shared coin is
    in both: corr = sum over shared of W_A W_B / sqrt(sum W_A^2 sum W_B^2). Each p stays exact and
    Holm and e-BH hold under any dependence; but with correlation rho both suspects are wrong
    together more often than two independent tests would be. O(n log n).

    Examples
    --------
    >>> units = np.array([[1, 5], [1, 6], [2, 5], [3, 9]], dtype=np.uint32)
    >>> correlate_z((units[:3], [1, 1, 2]), (units[1:], [1, 2, 2]))   # (1 + 4) / sqrt(6 * 9)
    (0.6804138174397717, 2)
    """
    names = [identifiers(units, units.shape[1]) for units, _ in (first, second)]
    a, b = (np.asarray(weights, dtype=np.float64) for _, weights in (first, second))
    _, left, right = np.intersect1d(names[0], names[1], assume_unique=True, return_indices=True)
    scale = math.sqrt(float(a @ a) * float(b @ b))
    shared = float(a[left] @ b[right])
    return (shared / scale if scale else 0.0), int(left.size)


@dataclass(frozen=True)
class ShareIntervals:
    """Simultaneous intervals for the shares of the values of one attribute.

    Parameters
    ----------
    estimate : float64 (B,)
        Share in [0, 1] most compatible with the data.
    lower, upper : float64 (B,)
        Ends of the interval, within [0, 1]; [0, 1] where the data say nothing.
    level : float
        Probability that all B intervals cover.
    critical_value : float
        Two-sided Sidak quantile used.
    """

    estimate: _Array
    lower: _Array
    upper: _Array
    level: float
    critical_value: float


def fieller_shares(
    z_values: ArrayLike,
    z_reference: float,
    value_share: float,
    reference_share: float,
    level: float = 0.95,
) -> ShareIntervals:
    """Share of the evidence per value of one attribute, as verdicts of version 0.1.0 state it.

    Kept so that these verdicts can be verified; new ones use `provenance.stats.shares`. The limits
    are too narrow: they hold for one slot, without selection, under a model that real tables do not
    follow (coverage .2 to .7 in benchmarks/shares.py).

    Parameters
    ----------
    z_values : float64 (B,)
        z of the key of each value in the slot of the attribute.
    z_reference : float
        z of the key of the reference slot (which all marked responses share).
    value_share, reference_share : float
        Shares lambda_s, lambda_0 of the contexts in the two slots, in (0, 1].
    level : float
        Simultaneous coverage, in (0, 1).

    Returns
    -------
    ShareIntervals

    Raises
    ------
    UsageError
        If an argument is outside its domain.

    Notes
    -----
    Model: Z_v ~ N(pi_v zeta sqrt(lambda_s), 1) and Z_0 ~ N(zeta sqrt(lambda_0), 1), independent.
    The set {pi : |Z_v - pi k Z_0| <= c sqrt(1 + pi^2 k^2)}, k = sqrt(lambda_s / lambda_0), is an
    interval, a half-line, the complement of an interval, or the line; the hull of its part in
    [0, 1] is returned. An empty part becomes the nearer end of [0, 1]. Shares are of *absorbed*
    evidence: values served with other entropy, or trained on later, weigh differently.

    References
    ----------
    Fieller (1954), J. R. Stat. Soc. B 16; Sidak (1967), J. Am. Stat. Assoc. 62.

    Examples
    --------
    >>> shares = fieller_shares([20.0, 0.3], 20.0, 0.5, 0.5)
    >>> shares.estimate.round(3).tolist(), shares.lower.round(2).tolist()
    ([1.0, 0.015], [0.85, 0.0])
    """
    values = _checked(z_values, z_reference, value_share, reference_share, level)
    scale = math.sqrt(value_share / reference_share)
    tail = -math.expm1(math.log(level) / max(values.size, 1)) / 2.0  # Sidak, per side
    critical = float(-ndtri(tail))
    intervals = [fieller_interval(float(value), z_reference, scale, critical) for value in values]
    bounds = np.array(intervals, dtype=np.float64).reshape(-1, 2)
    estimate = np.array([nearest_share(float(value), z_reference, scale) for value in values])
    estimate = np.clip(estimate, bounds[:, 0], bounds[:, 1])
    return ShareIntervals(estimate, bounds[:, 0], bounds[:, 1], level, critical)


def _checked(
    z_values: ArrayLike,
    z_reference: float,
    value_share: float,
    reference_share: float,
    level: float,
) -> _Array:
    values = np.asarray(z_values, dtype=np.float64)
    if values.ndim != 1 or not (np.isfinite(values).all() and math.isfinite(z_reference)):
        raise UsageError(
            f"z_values must be a finite vector and z_reference finite; got shape {values.shape} "
            f"and {z_reference}. Pass one z per value."
        )
    if not (0 < value_share <= 1 and 0 < reference_share <= 1 and 0 < level < 1):
        raise UsageError(
            "value_share and reference_share must be in (0, 1] and level in (0, 1); got "
            f"{value_share}, {reference_share}, {level}. Take the shares from the schedule."
        )
    return values


def _family(log10_p: ArrayLike, weights: ArrayLike) -> tuple[_Array, _Array]:
    values, shares = np.asarray(log10_p, dtype=np.float64), np.asarray(weights, dtype=np.float64)
    if values.ndim != 1 or values.shape != shares.shape:
        raise UsageError(
            f"log10_p and weights must be vectors of one length; got {values.shape} and "
            f"{shares.shape}. Pass one weight per hypothesis."
        )
    if not np.all((values <= 0) & (values > -np.inf)):
        raise UsageError("log10_p must be finite and <= 0; got other values. Pass log10 of p.")
    if not np.all(shares >= 0) or (shares.size and abs(float(shares.sum()) - 1.0) > 1e-9):
        raise UsageError(
            f"weights must be >= 0 and sum to 1; got sum {float(shares.sum()):.9g}. "
            "Divide them by their sum."
        )
    return values, shares


def _distance(share: float, value: float, reference: float, scale: float) -> float:
    """|Z_v - pi k Z_0| / sqrt(1 + pi^2 k^2)."""
    slope = share * scale
    return abs(value - slope * reference) / math.sqrt(1.0 + slope**2)


def nearest_share(value: float, reference: float, scale: float) -> float:
    """Share in [0, 1] of least distance: the ratio Z_v / (k Z_0), or an end.

    Parameters: Z_v, Z_0 (finite, of variance 1) and k > 0, as in `fieller_interval`.
    """
    if reference != 0.0 and 0.0 <= value / reference / scale <= 1.0:
        return value / reference / scale
    at_zero, at_one = (_distance(end, value, reference, scale) for end in (0.0, 1.0))
    return 0.0 if at_zero <= at_one else 1.0


def fieller_interval(
    value: float, reference: float, scale: float, critical: float
) -> tuple[float, float]:
    """Hull within [0, 1] of the set of shares pi with |Z_v - pi k Z_0| <= c sqrt(1 + pi^2 k^2).

    Parameters: Z_v, Z_0 (finite, of variance 1), k > 0, c > 0. Returns lower and upper limit; an
    empty set becomes the end of [0, 1] that is nearer.

    The distance is 0 at the ratio, largest at one other point, monotone in between: the set within
    [0, 1] reaches an end of [0, 1] where the end belongs to it, and a root of the quadratic
    (Z_0^2 - c^2) (pi k)^2 - 2 Z_v Z_0 pi k + Z_v^2 - c^2 = 0 elsewhere.
    """
    roots = [root / scale for root in _roots(value, reference, critical)]
    points = [root for root in roots if 0.0 < root < 1.0]
    ends = (0.0, 1.0)
    points += [end for end in ends if _distance(end, value, reference, scale) <= critical]
    if not points:
        nearest = nearest_share(value, reference, scale)
        return nearest, nearest
    return min(points), max(points)


def _roots(value: float, reference: float, critical: float) -> list[float]:
    """Real roots of (Z_0^2 - c^2) r^2 - 2 Z_v Z_0 r + Z_v^2 - c^2, without cancellation."""
    square = reference**2 - critical**2
    middle = value * reference
    constant = value**2 - critical**2
    inner = reference**2 + value**2 - critical**2
    if inner < 0.0:
        return []
    large = middle + math.copysign(critical * math.sqrt(inner), middle)
    roots = [large / square] if square != 0.0 else []
    return roots + ([constant / large] if large != 0.0 else [])
