"""What a test could have found: the statement that belongs to every negative verdict.

`detectable_shift` gives the smallest effect that this very test (same weights, laws and counts)
finds with a stated probability; `invert_response` translates an effect into a share of marked
training data through a response curve measured in the lab.

Does not look at the observed scores: power computed from the observed effect would only repeat p.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri, ndtri_exp

from provenance.errors import UsageError
from provenance.stats.inversion import invert
from provenance.stats.lattice import Lattice
from provenance.stats.laws import NullLaw
from provenance.stats.null_distribution import NullDistribution
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable

Alternative = Literal["proportional", "equal"]
"""How coins move: in proportion to their weights, or equally, each in its weight's direction."""

_LOG10 = math.log(10.0)
_PRECISION = 1 << 200
_STEPS = 200
_TOLERANCE = 1e-4


@dataclass(frozen=True)
class DetectableShift:
    """The smallest effect that a test finds with a given probability.

    Parameters
    ----------
    shift : float
        Weighted mean shift of a score, in standard deviations of one score: E[z] / sqrt(effective
        coins), the measure of `HypothesisResult.mean_shift`.
    z : float
        E[z] under that effect.
    power : float
        Probability of p <= alpha under that effect, at least the wanted one.
    normal_shift : float
        The same from the normal approximation of S.
    exact : bool
        Whether shift and power are exact (to 1e-4 and 1e-9); if not, few coins have huge weights,
        and the normal approximation is all there is.
    critical_value : int
        Least statistic S with p <= alpha.
    alpha : float
    alternative : "proportional" or "equal"
    """

    shift: float
    z: float
    power: float
    normal_shift: float
    exact: bool
    critical_value: int
    alpha: float
    alternative: Alternative


def critical_value(table: ClassTable, alpha: float) -> int | None:
    """Least statistic S whose reported p-value is <= alpha.

    Parameters
    ----------
    table : ClassTable
        Only weights, laws and counts matter.
    alpha : float
        In (0, 1), else UsageError.

    Returns
    -------
    int or None
        None if even the largest possible S has p > alpha: the test can never reject.

    Notes
    -----
    Found on the lattice of S with the reported tail `log10_upper_tail` itself: about ten tails.

    Examples
    --------
    >>> coins = ClassTable.from_scores([1] * 10, [0] * 10, NullLaw((1, 1)))
    >>> critical_value(coins, 0.05)   # P(S >= 8) = .0547, P(S >= 9) = .0107
    9
    """
    _check_level(alpha, "alpha")
    lattice, level = Lattice.from_table(table), math.log10(alpha)
    if invert(replace(lattice, threshold=lattice.maximum)).log10_p > level:
        return None
    wanted = -float(ndtri(alpha))
    deviation = math.sqrt(lattice.cumulants(0.0)[2])
    low, high = 0, lattice.maximum  # p(low) > alpha >= p(high)
    guess = math.ceil(lattice.cumulants(0.0)[1] + wanted * deviation)
    for step in range(_STEPS):
        if high - low <= 1:
            break
        middle = (low + high) // 2 if step > 20 else min(max(guess, low + 1), high - 1)
        log10_p = invert(replace(lattice, threshold=middle)).log10_p
        low, high = (low, middle) if log10_p <= level else (middle, high)
        score = -float(ndtri_exp(min(log10_p * _LOG10, -1e-300)))
        guess = middle + math.ceil((wanted - score) * deviation)
    return lattice.offset + lattice.span * high


def detectable_shift(
    table: ClassTable,
    alpha: float,
    power: float = 0.9,
    alternative: Alternative = "proportional",
) -> DetectableShift | None:
    """Smallest effect for which this very test has p <= alpha with a wanted probability.

    Parameters
    ----------
    table : ClassTable
        Only weights, laws and counts matter.
    alpha : float
        Level of the test (of this key, after the family has been paid for), in (0, 1).
    power : float
        Wanted probability, in (0, 1) and above alpha.
    alternative : "proportional" or "equal"
        Every coin's law is tilted to p_j e^{theta j}: theta proportional to the weight (the weights
        are right), or to the sign of the weight over the deviation of the law (they carry no
        information on the size; with one law, all coins shift equally).

    Returns
    -------
    DetectableShift or None
        None if the test can never reject, however large the effect.

    Raises
    ------
    UsageError
        If an argument is outside its domain.

    Notes
    -----
    Assumes independent scores under the alternative, each tilted exponentially, the shape that
    sampling with coins gives to small shifts. Normal approximation: E S = c + z_power sd(S) with
    mean and variance under the tilt; then the exact tail of S at c under the tilted laws, on the
    lattice, until shift is good to 1e-4. Power is increasing in the tilt (monotone likelihood
    ratio). Cost: about ten tails, and three distributions with one law per class.

    Examples
    --------
    >>> coins = ClassTable.from_scores([1] * 400, [0] * 400, NullLaw.bernoulli(2**30))
    >>> found = detectable_shift(coins, 0.01)
    >>> round(found.shift, 3), round(found.normal_shift, 3), found.critical_value
    (0.188, 0.191, 121)
    """
    _check_level(alpha, "alpha")
    _check_level(power, "power")
    if alternative not in ("proportional", "equal") or power <= alpha:
        raise UsageError(
            "alternative must be 'proportional' or 'equal', and power above alpha; got "
            f"{alternative!r}, {power}, {alpha}. Choose one of them in the plan."
        )
    critical = critical_value(table, alpha)
    if critical is None:
        return None
    family = _Tilted(table, alternative, critical)
    normal = family.root(family.normal_power, power, family.first_guess)
    try:
        (theta, reached), exact = family.refine(power, normal), True
    except UsageError:  # too many frequencies for the exact distribution
        theta, reached, exact = normal, family.normal_power(normal), False
    z = family.mean_z(theta)
    scale = math.sqrt(table.effective_coins)
    return DetectableShift(
        z / scale, z, reached, family.mean_z(normal) / scale, exact, critical, alpha, alternative
    )


def invert_response(
    curve: Sequence[tuple[float, float]], lab_coins: float, shift: float, margin: float = 0.0
) -> float:
    """Share of marked training data at which a suspect shows a given mean shift.

    Parameters
    ----------
    curve : sequence of (share, z)
        Measured in the lab: share of marked responses in the training data, in [0, 1], ascending,
        and the mean z found at that share with `lab_coins` effective coins.
    lab_coins : float
        Effective coins behind every z of the curve, > 0.
    shift : float
        Mean shift per coin, for example `DetectableShift.shift`, > 0.
    margin : float
        Standard errors (of about 1) that are subtracted from each z first, >= 0.

    Returns
    -------
    float
        The smallest share from which on the curve is at or above the shift.

    Raises
    ------
    UsageError
        If the curve has fewer than two points or is no curve, or if the shift lies outside what was
        measured: it is never extrapolated, neither below the smallest share nor above the largest.

    Notes
    -----
    shift(share) = (z - margin) / sqrt(lab_coins); noise that makes the curve fall is replaced by
    the largest increasing curve below it, and points are joined by straight lines. Both make the
    answer larger (for a curve that bends down, as measured ones do): the claim "a share of x would
    have been found" stays on the safe side. It holds for suspects like those of the lab: same mark
    and weight rule, same kind of model, training and access; it says nothing about others. A point
    (0, 0) may be added by hand; then the curve is assumed straight below the first measured share.

    Examples
    --------
    >>> curve = [(0.1, 4.0), (0.5, 12.0), (1.0, 16.0)]
    >>> round(invert_response(curve, lab_coins=10_000, shift=0.08), 9)
    0.3
    """
    shares, shifts = lower_response(curve, lab_coins, margin)
    if not (shift > 0 and shifts[0] <= shift <= shifts[-1]):
        where = "above" if shift > shifts[-1] else "below"
        raise UsageError(
            f"shift must be within the measured {shifts[0]:.4g}..{shifts[-1]:.4g}, at shares "
            f"{shares[0]:.4g}..{shares[-1]:.4g}; got {shift:.4g}, {where} it. Measure such shares, "
            "or say only on which side of the curve it lies."
        )
    above = int(np.searchsorted(shifts, shift, side="left"))
    if shifts[above] == shift:
        return float(shares[above])
    part = (shift - shifts[above - 1]) / (shifts[above] - shifts[above - 1])
    share = shares[above - 1] + part * (shares[above] - shares[above - 1])
    return float(max(share, np.nextafter(shares[above - 1], 1)))  # the lower one does not show it


@dataclass(frozen=True)
class _Tilted:
    """S under one-parameter alternatives: theta > 0 moves every coin towards its weight's sign."""

    table: ClassTable
    alternative: Alternative
    critical: int

    @cached_property
    def tilts(self) -> NDArray[np.float64]:
        """Slope of each class's law at theta = 1, float64 (D,)."""
        return np.array([self._tilt(item) for item in self.table.classes])

    @property
    def first_guess(self) -> float:
        """Any theta of the right order."""
        return 1.0 / (float(np.abs(self.tilts).max()) * math.sqrt(self.table.variance))

    def mean_z(self, theta: float) -> float:
        """E[z] under the tilt."""
        mean, _ = self._moments(theta)
        return (mean - self.table.mean) / math.sqrt(self.table.variance)

    def normal_power(self, theta: float) -> float:
        """P(S >= critical) if S were normal."""
        mean, variance = self._moments(theta)
        if variance == 0.0:
            return float(mean >= self.critical)
        return float(ndtr((mean - self.critical) / math.sqrt(variance)))

    def exact_power(self, theta: float) -> float:
        """P(S >= critical) by inversion on the lattice; UsageError if that is too large."""
        counts: dict[tuple[int, NullLaw], int] = {}
        for item, tilt in zip(self.table.classes, self.tilts, strict=True):
            key = item.weight, _tilted_law(item.law, theta * tilt)
            counts[key] = counts.get(key, 0) + item.count
        classes = [
            ScoreClass(weight, law, count, count * law.support[0])
            for (weight, law), count in counts.items()
        ]
        classes.sort(key=lambda item: (item.weight, item.law.masses))
        distribution = NullDistribution.from_table(ClassTable(tuple(classes)))
        return float(distribution.tail([self.critical])[0])

    def refine(self, wanted: float, guess: float) -> tuple[float, float]:
        """Theta and its exact power, wanted <= power, from the normal theta: three tails as a rule.

        Newton steps for the normal score of the exact power, with the slope of the normal one.
        """
        theta, target = guess, float(ndtri(wanted))
        for _ in range(12):
            reached = self.exact_power(theta)
            excess = _score(reached) - target
            if 0.0 <= excess <= _TOLERANCE:
                return theta, reached
            step = 1e-4
            ahead, here = (self.normal_power(theta * factor) for factor in (1.0 + step, 1.0))
            slope = max((_score(ahead) - _score(here)) / step, 0.1)
            theta *= math.exp(min(max((_TOLERANCE / 2 - excess) / slope, -1.0), 1.0))
        theta = self.root(self.exact_power, wanted, guess)
        return theta, self.exact_power(theta)

    def root(self, function: Callable[[float], float], wanted: float, guess: float) -> float:
        """Least theta, to 3e-5 and rounded up, with function(theta) >= wanted; increasing."""
        target = float(ndtri(wanted))

        def excess(log_theta: float) -> float:
            return _score(function(math.exp(log_theta))) - target

        low = high = math.log(guess)
        for step in range(_STEPS):
            if excess(high) >= 0.0:
                break
            low, high = high, high + 0.1 * (1 + step)
        for step in range(_STEPS):
            if excess(low) < 0.0:
                break
            low, high = low - 0.1 * (1 + step), low
        log_theta = brentq(excess, low, high, xtol=1e-5) if excess(high) > 0.0 else high
        return math.exp(log_theta + 2e-5)

    def _tilt(self, item: ScoreClass) -> float:
        if self.alternative == "proportional":
            return float(item.weight)
        return math.copysign(1.0, item.weight) / math.sqrt(item.law.variance or 1.0)

    def _moments(self, theta: float) -> tuple[float, float]:
        """Mean and variance of S under the tilt."""
        mean = variance = 0.0
        for item, tilt in zip(self.table.classes, self.tilts, strict=True):
            shares = _tilted_probabilities(item.law, theta * tilt)
            levels = np.arange(shares.size)
            first = float(shares @ levels)
            mean += item.weight * item.count * first
            variance += item.weight**2 * item.count * float(shares @ (levels - first) ** 2)
        return mean, variance


def _score(power: float) -> float:
    """Normal score of a power, within +-7."""
    return float(ndtri(min(max(power, 1e-12), 1.0 - 1e-12)))


def _tilted_probabilities(law: NullLaw, slope: float) -> NDArray[np.float64]:
    """p_j e^{slope j} / sum of the same, float64 (J,)."""
    with np.errstate(divide="ignore"):
        logs = np.log(law.probabilities) + slope * np.arange(len(law.masses))
    raised = np.exp(logs - logs.max())
    return np.asarray(raised / raised.sum())


def _tilted_law(law: NullLaw, slope: float) -> NullLaw:
    """The tilted law in integers; every possible score stays possible, so the lattice stays."""
    shares = _tilted_probabilities(law, slope).tolist()
    return NullLaw(
        tuple(
            max(1, int(share * _PRECISION)) if mass else 0
            for share, mass in zip(shares, law.masses, strict=True)
        )
    )


def _check_level(value: float, name: str) -> None:
    if not 0.0 < value < 1.0:
        raise UsageError(f"{name} must be in (0, 1); got {value}. Fix it in the plan.")


def lower_response(
    curve: Sequence[tuple[float, float]], lab_coins: float, margin: float
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Shares (r,) and mean shifts (r,), the latter made increasing from below."""
    points = np.asarray(curve, dtype=np.float64)
    if points.ndim != 2 or points.shape[0] < 2 or points.shape[1] != 2:
        raise UsageError(
            f"curve must be two or more pairs (share, z); got shape {points.shape}. "
            "Measure several shares."
        )
    shares, z = points[:, 0], points[:, 1]
    if not (np.all(np.diff(shares) > 0) and shares[0] >= 0 and shares[-1] <= 1):
        raise UsageError("The shares of a curve must ascend in [0, 1]; got others. Sort them.")
    if not (np.isfinite(z).all() and 0 < lab_coins < math.inf and 0 <= margin < math.inf):
        raise UsageError(
            "Every z of a curve must be finite, lab_coins > 0 and margin >= 0; got other values, "
            f"{lab_coins}, {margin}. Take them from the lab's verdicts."
        )
    lowered = np.where(shares > 0, z - margin, z)
    return shares, np.minimum.accumulate(lowered[::-1])[::-1] / math.sqrt(lab_coins)
