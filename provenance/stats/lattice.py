"""A class table as a sum on the lattice 0, 1, 2, ..., and its exponential tilt.

The reduction is exact integer arithmetic: negative weights reverse their law, the lowest value of
every score moves to 0, common divisors go. What is left is S' = sum of weight * level with positive
weights, whose upper tail is that of S. The tilt (conjugate law, Esscher 1932) moves the mean of S'
to the observed value, where Fourier inversion and normal approximations are accurate.

Does not know about tails: it gives cumulants and tilted probabilities, with bounds on their
rounding errors.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from numpy.typing import NDArray

from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable
from provenance.storage.kernels import kernel

EPSILON = float(np.finfo(np.float64).eps)

_EXPONENT_LIMIT = 600.0
"""Beyond this exponent exp() may overflow, and plain log-sum-exp takes over."""


@dataclass(frozen=True)
class LawGroup:
    """Classes of the lattice that share one law.

    Parameters
    ----------
    levels : int64 (J,)
        Levels of positive probability, ascending from 0, without a common divisor.
    probabilities : float64 (J,)
        Their probabilities under H0.
    weights : int64 (D,)
        Positive weights.
    counts : float64 (D,)
        Number of coins of each weight, whole.
    """

    levels: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    weights: NDArray[np.int64]
    counts: NDArray[np.float64]

    @cached_property
    def steps(self) -> NDArray[np.float64]:
        """weight * level, float64 (D, J)."""
        return np.multiply.outer(self.weights.astype(np.float64), self.levels.astype(np.float64))

    @cached_property
    def log_probabilities(self) -> NDArray[np.float64]:
        """Natural logarithm of the probabilities, float64 (J,)."""
        return np.log(self.probabilities)


@dataclass(frozen=True)
class TiltedGroup:
    """A law group under the tilt: one row per class.

    Parameters
    ----------
    group : LawGroup
    probabilities : float64 (D, J)
        Tilted probabilities p_k exp(s w k) / sum of the same.
    centres : int64 (D,)
        Level of the support next to the tilted mean of each class.
    """

    group: LawGroup
    probabilities: NDArray[np.float64]
    centres: NDArray[np.int64]

    @cached_property
    def offsets(self) -> NDArray[np.int64]:
        """level - centre, int64 (D, J)."""
        return self.group.levels[None, :] - self.centres[:, None]

    @cached_property
    def variances(self) -> NDArray[np.float64]:
        """Tilted variance of one level, float64 (D,)."""
        first = (self.probabilities * self.offsets).sum(axis=1)
        spread = self.offsets - first[:, None]
        return np.asarray((self.probabilities * spread**2).sum(axis=1))


@dataclass(frozen=True)
class Tilt:
    """The lattice law tilted by exp(s S').

    Parameters
    ----------
    slope : float
        s > 0.
    centre : int
        Sum of count * weight * centre over all classes.
    log_mgf : float
        ln E exp(s (S' - centre)) under H0.
    variance : float
        Tilted variance of S'.
    groups : tuple of TiltedGroup
    rounding : float
        Bound on |error| of ln p through the rounding of log_mgf and of the tilted probabilities.
    """

    slope: float
    centre: int
    log_mgf: float
    variance: float
    groups: tuple[TiltedGroup, ...]
    rounding: float


@dataclass(frozen=True)
class Lattice:
    """S' = (S - offset) / span, a sum on 0, 1, ..., maximum.

    Parameters
    ----------
    groups : tuple of LawGroup
        Empty if S is constant under H0.
    threshold : int
        Least value of S' that corresponds to the observed statistic or more.
    maximum : int
        Largest value of S' with positive probability.
    offset, span : int
        S = offset + span * S'.
    log_top : float
        Natural logarithm of P(S' = maximum).
    rows : int
        Number of classes that log_top was summed over.
    """

    groups: tuple[LawGroup, ...]
    threshold: int
    maximum: int
    offset: int
    span: int
    log_top: float
    rows: int

    @classmethod
    def from_table(cls, table: ClassTable) -> Lattice:
        """Reduce a table; exact, O(number of classes * levels)."""
        classes: dict[tuple[tuple[int, ...], NullLaw], dict[int, int]] = {}
        offset, log_top = 0, 0.0
        for item in table.classes:
            support = item.law.support
            low, high = (support[0], support[-1]) if item.weight > 0 else (support[-1], support[0])
            offset += item.weight * low * item.count
            log_top += item.count * _log_ratio(item.law.masses[high], item.law.total)
            if low == high:
                continue
            levels, law, divisor = _reduced_law(item.law, item.weight < 0)
            counts = classes.setdefault((levels, law), {})
            weight = abs(item.weight) * divisor
            counts[weight] = counts.get(weight, 0) + item.count
        span = math.gcd(*(weight for counts in classes.values() for weight in counts)) or 1
        groups = tuple(_group(*key, counts, span) for key, counts in classes.items())
        maximum = sum(
            levels[-1] * sum(weight // span * count for weight, count in counts.items())
            for (levels, _), counts in classes.items()
        )
        threshold = -((offset - table.statistic) // span)
        return cls(groups, threshold, maximum, offset, span, log_top, len(table.classes))

    @property
    def largest_step(self) -> int:
        """Largest change of S' by one coin."""
        return max(int(group.weights[-1]) * int(group.levels[-1]) for group in self.groups)

    def cumulants(self, slope: float) -> tuple[float, float, float]:
        """Cumulant generating function of S' and two derivatives at any real slope.

        Returns
        -------
        tuple of three floats
            ln E exp(slope S'), tilted mean, tilted variance. Plain log-sum-exp: good to about
            1e-14 relative, enough to choose a slope; Tilt holds the careful version.
        """
        total = mean = variance = 0.0
        for group in self.groups:
            added = add_cumulants(
                slope, group.weights, group.counts, group.levels, group.log_probabilities
            )
            total, mean, variance = total + added[0], mean + added[1], variance + added[2]
        return total, mean, variance

    def saddle(self) -> float:
        """Slope s* with tilted mean = threshold, for mean < threshold < maximum.

        Newton steps inside a shrinking bracket, 200 at most. Any positive slope gives a valid
        bound, so the accuracy reached (1e-12 relative as a rule) is no matter of correctness.
        """
        target = float(self.threshold)
        low, high = 0.0, math.inf
        _, mean, variance = self.cumulants(0.0)
        slope = max((target - mean) / variance, 1e-300)
        for _ in range(200):
            _, mean, variance = self.cumulants(slope)
            if mean < target:
                low = slope
            else:
                high = slope
            proposal = slope + (target - mean) / variance if variance > 0 else math.nan
            proposal = min(proposal, 4 * slope) if high == math.inf else proposal
            if not low < proposal < high:
                proposal = 2 * slope if high == math.inf else (low + high) / 2
            done = abs(proposal - slope) <= 1e-12 * slope
            slope = proposal
            if done:
                break
        return slope

    def window(self, slope: float, wanted: float) -> tuple[int, int]:
        """Positions outside which the tilted S' falls with probability <= e^-wanted per side.

        Chernoff's bound (wanted + K(s +- tau) - K(s)) / tau holds for every tau > 0 and has one
        minimum, found by golden sections in ln tau: at sqrt(2 wanted) / deviation for a normal
        law, as small as a few over the largest step where rare big steps rule.
        """
        base, mean, variance = self.cumulants(slope)

        def reach(tau: float, sign: int) -> float:
            return (wanted + self.cumulants(slope + sign * tau)[0] - base) / tau - sign * mean

        normal = math.sqrt(2.0 * wanted / max(variance, 1e-12))
        bracket = math.log(min(normal, wanted / self.largest_step) / 8.0), math.log(8.0 * normal)
        below, above = (_golden_minimum(reach, sign, *bracket) for sign in (-1, 1))
        low, high = math.floor(mean - below) - 1, math.ceil(mean + above) + 1
        return max(0, low), min(self.maximum, high)

    def tilt(self, slope: float) -> Tilt:
        """Tilt with relative accuracy per coin, so that millions of coins keep their digits."""
        groups, centre, log_mgf, variance, rounding = [], 0, 0.0, 0.0, 0.0
        for group in self.groups:
            tilted, logs, error = _tilt_group(group, slope)
            groups.append(tilted)
            log_mgf += float(group.counts @ logs)
            weights = group.weights.astype(np.float64)
            variance += float((group.counts * weights**2) @ tilted.variances)
            rounding += error
            centre += sum(
                int(count) * int(weight) * int(level)
                for count, weight, level in zip(
                    group.counts, group.weights, tilted.centres, strict=True
                )
            )
        return Tilt(slope, centre, log_mgf, variance, tuple(groups), rounding)


@kernel(nogil=True)
def add_cumulants(slope, weights, counts, levels, log_probabilities):  # type: ignore[no-untyped-def]
    """K(slope) of a group and two derivatives, three floats; arrays as of `LawGroup`, unchecked."""
    total, mean, variance = 0.0, 0.0, 0.0
    tilted = np.empty(levels.shape[0])
    for row in range(weights.shape[0]):
        step, top = slope * weights[row], -np.inf
        for column in range(levels.shape[0]):
            tilted[column] = step * levels[column] + log_probabilities[column]
            top = max(top, tilted[column])
        mass, first, second = 0.0, 0.0, 0.0
        for column in range(levels.shape[0]):
            tilted[column] = math.exp(tilted[column] - top)
            mass += tilted[column]
            first += tilted[column] * levels[column]
        first /= mass
        for column in range(levels.shape[0]):
            second += tilted[column] * (levels[column] - first) ** 2
        total += counts[row] * (top + math.log(mass))
        mean += counts[row] * weights[row] * first
        variance += counts[row] * float(weights[row]) ** 2 * (second / mass)
    return total, mean, variance


def _golden_minimum(
    reach: Callable[[float, int], float], sign: int, low: float, high: float
) -> float:
    """Least value of reach(e^t, sign) met while shrinking low < t < high by golden sections."""
    ratio = (math.sqrt(5.0) - 1.0) / 2.0
    left, right = high - ratio * (high - low), low + ratio * (high - low)
    at_left, at_right = reach(math.exp(left), sign), reach(math.exp(right), sign)
    best = min(at_left, at_right)
    while high - low > 0.25:
        if at_left < at_right:
            high, right, at_right = right, left, at_left
            left = high - ratio * (high - low)
            at_left = reach(math.exp(left), sign)
        else:
            low, left, at_left = left, right, at_right
            right = low + ratio * (high - low)
            at_right = reach(math.exp(right), sign)
        best = min(best, at_left, at_right)
    return best


def _log_ratio(mass: int, total: int) -> float:
    """ln(mass / total) with full relative accuracy."""
    rest = (total - mass) / total
    return math.log1p(-rest) if rest < 0.5 else math.log(mass / total)


@lru_cache(maxsize=256)  # the classes of a table share their laws
def _reduced_law(law: NullLaw, reverse: bool) -> tuple[tuple[int, ...], NullLaw, int]:
    """Levels from 0 without common divisor, the law of their masses, and the divisor removed."""
    support = law.support
    masses = tuple(law.masses[score] for score in support)
    start = support[-1] if reverse else support[0]
    levels = [abs(score - start) for score in support]
    if reverse:
        levels, masses = levels[::-1], masses[::-1]
    divisor = math.gcd(*levels)
    return tuple(level // divisor for level in levels), NullLaw(masses), divisor


def _group(levels: tuple[int, ...], law: NullLaw, counts: dict[int, int], span: int) -> LawGroup:
    weights = sorted(counts)
    return LawGroup(
        np.array(levels, dtype=np.int64),
        law.probabilities,
        np.array([weight // span for weight in weights], dtype=np.int64),
        np.array([counts[weight] for weight in weights], dtype=np.float64),
    )


def _tilt_group(group: LawGroup, slope: float) -> tuple[TiltedGroup, NDArray[np.float64], float]:
    """Tilted group, ln E exp(s w (X - centre)) per class (D,), and a rounding bound.

    With E_k = exp(s w (k - centre)), the moment generating function is 1 + sum p_k (E_k - 1): its
    logarithm is small for a small tilt, and log1p / expm1 keep its relative accuracy.
    """
    logs = slope * group.steps + group.log_probabilities
    weights = np.exp(logs - logs.max(axis=1)[:, None])
    means = (weights @ group.levels) / weights.sum(axis=1)
    nearest = np.abs(group.levels[None, :] - means[:, None]).argmin(axis=1)
    centres = group.levels[nearest]
    offsets = group.levels[None, :] - centres[:, None]
    exponents = slope * (group.weights[:, None].astype(np.float64) * offsets)
    safe = np.minimum(exponents, _EXPONENT_LIMIT)
    growth = np.exp(safe) * group.probabilities
    excess = (np.expm1(safe) * group.probabilities).sum(axis=1)
    mass = growth.sum(axis=1)
    log_mgf = np.where(excess > -0.5, np.log1p(np.maximum(excess, -0.5)), np.log(mass))
    probabilities = growth / mass[:, None]
    steep = exponents.max(axis=1) > _EXPONENT_LIMIT
    if steep.any():
        shifted = exponents[steep] + group.log_probabilities
        top = shifted.max(axis=1)
        scaled = np.exp(shifted - top[:, None])
        log_mgf[steep] = top + np.log(scaled.sum(axis=1))
        probabilities[steep] = scaled / scaled.sum(axis=1)[:, None]
    tilted = TiltedGroup(group, probabilities, centres)
    # per coin: a few ulp of each tilted probability, of its exponent, and of ln mgf. Only levels
    # other than the centre enter phi - 1 and mgf - 1: a coin that hardly ever leaves the centre
    # errs by as little, and thousands of millions of such coins stay exact
    exponent_size = (probabilities * np.abs(exponents)).sum(axis=1)
    away = (offsets != 0) * (probabilities + group.probabilities * np.abs(np.expm1(safe)))
    rare = (excess > -0.5) & ~steep
    per_coin = np.where(rare, np.minimum(8.0, 16.0 * away.sum(axis=1)), 8.0)
    per_coin = per_coin + 4.0 * exponent_size + np.where(steep, np.abs(log_mgf), 0.0)
    error = EPSILON * float(group.counts @ (per_coin + 2.0 * np.abs(log_mgf)))
    return tilted, log_mgf, error
