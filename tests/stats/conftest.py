"""Laws of the schemes and a slow, independent tail for the statistics tests."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest

from provenance.stats.laws import NullLaw
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable


def _gumbel() -> NullLaw:
    """Geometric-like score of a 32-bit word with step 1/4: exact masses over all words."""
    thresholds, level = [0], 1
    while (edge := math.ceil(2**32 * -math.expm1(-level / 4))) <= 2**32 - 1:
        thresholds.append(edge)
        level += 1
    edges = [*thresholds, 2**32]
    return NullLaw(tuple(high - low for low, high in pairwise(edges)))


@pytest.fixture(scope="session")
def laws() -> dict[str, NullLaw]:
    return {
        "green": NullLaw.bernoulli(2**30),
        "rare": NullLaw.bernoulli(5, 2**32),
        "tournament": NullLaw((1, 4, 6, 4, 1)),
        "gumbel": _gumbel(),
        "holes": NullLaw((0, 3, 0, 0, 5, 1, 0)),
    }


@pytest.fixture(scope="session")
def table_at() -> Callable[..., ClassTable]:
    """Table whose statistic is about z standard deviations above the mean."""

    def build(law: NullLaw, counts: dict[int, int], z: float) -> ClassTable:
        weights = sorted(counts)
        low, high = law.support[0], law.support[-1]
        spread = math.sqrt(law.variance * sum(w * w * counts[w] for w in weights))
        # the shift of each class is proportional to its share of the variance
        totals = []
        for weight in weights:
            count = counts[weight]
            shift = z * weight * count * law.variance / spread
            total = round(count * law.mean + shift)
            totals.append(min(max(total, count * low), count * high))
        rows = zip(weights, totals, strict=True)
        return ClassTable(tuple(ScoreClass(w, law, counts[w], t) for w, t in rows))

    return build


def _trim(start: int, pmf: np.ndarray) -> tuple[int, np.ndarray]:
    """Drop ends below 1e-26 of the largest entry: under the tilt they cannot reach 13 digits."""
    alive = np.flatnonzero(pmf > 1e-26 * pmf.max())
    return start + int(alive[0]), pmf[alive[0] : alive[-1] + 1]


def _power(pmf: np.ndarray, exponent: int) -> tuple[int, np.ndarray]:
    """First value and pmf of a sum of equal terms; additions of non-negative numbers only."""
    (low, result), (base_low, base) = (0, np.ones(1)), _trim(0, pmf)
    while exponent:
        if exponent & 1:
            low, result = _trim(low + base_low, np.convolve(result, base))
        exponent >>= 1
        if exponent:
            base_low, base = _trim(2 * base_low, np.convolve(base, base))
    return low, result


def _add(law: np.ndarray, terms: np.ndarray, step: int) -> np.ndarray:
    """Convolution of law with terms placed `step` apart."""
    out = np.zeros(law.size + step * (terms.size - 1))
    for position, mass in enumerate(terms):
        out[step * position : step * position + law.size] += mass * law
    return out


@pytest.fixture(scope="session")
def exact_tail() -> Callable[[ClassTable], float]:
    """log10 P(S >= observed) by positive recursion on tilted pmfs (no Fourier, no cancellation)."""

    def tail(table: ClassTable) -> float:
        classes = [(c.weight, c.law.probabilities, c.count) for c in table.classes]

        def tilted(slope: float, weight: int, pmf: np.ndarray) -> tuple[np.ndarray, float]:
            raised = pmf * np.exp(slope * weight * np.arange(pmf.size))
            mass = math.fsum(raised)
            return raised / mass, math.log(mass)

        def mean(slope: float) -> float:
            return sum(
                n * w * float(tilted(slope, w, pmf)[0] @ np.arange(pmf.size))
                for w, pmf, n in classes
            )

        low, high = 0.0, 1e-9
        limit = 500.0 / max(abs(weight) * pmf.size for weight, pmf, _ in classes)
        while mean(high) < table.statistic and high < limit:
            low, high = high, min(2 * high, limit)
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (middle, high) if mean(middle) < table.statistic else (low, middle)
        slope, start, log_mass, law = high, 0, 0.0, np.ones(1)
        for weight, pmf, count in classes:
            shares, log_mgf = tilted(slope, weight, pmf)
            first, terms = _power(shares, count)
            if weight < 0:
                start += weight * (first + terms.size - 1)
                terms = terms[::-1]
            else:
                start += weight * first
            start, law = _trim(start, _add(law, terms, abs(weight)))
            log_mass += count * log_mgf
        distance = np.arange(law.size) + start - table.statistic
        keep = distance >= 0
        factor = math.fsum(law[keep] * np.exp(-slope * distance[keep]))
        return (log_mass - slope * table.statistic + math.log(factor)) / math.log(10)

    return tail
