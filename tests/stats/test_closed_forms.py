"""Binomial and gamma tails against mpmath and exact fractions, down to 1e-100000."""

from __future__ import annotations

import math
from fractions import Fraction
from typing import Any

import mpmath
import numpy as np
import pytest

from provenance.errors import UsageError
from tests.world.closed_forms import log10_binomial_tail, log10_gamma_tail


def exact_binomial(hits: int, trials: int, numerator: int, denominator: int) -> float:
    p = Fraction(numerator, denominator)
    tail = sum(
        math.comb(trials, k) * p**k * (1 - p) ** (trials - k) for k in range(hits, trials + 1)
    )
    return float(mpmath.log10(mpmath.mpf(tail.numerator) / tail.denominator))


@pytest.mark.parametrize("trials", [1, 2, 7, 40, 300])
@pytest.mark.parametrize(("numerator", "denominator"), [(1, 4), (1, 2), (9, 10), (1, 2**32)])
def test_binomial_against_fractions(trials: int, numerator: int, denominator: int) -> None:
    hits = np.unique(np.linspace(0, trials, 9).astype(int))
    found = log10_binomial_tail(hits, trials, numerator / denominator)
    exact = [exact_binomial(int(h), trials, numerator, denominator) for h in hits]
    np.testing.assert_allclose(found, exact, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("p", [0.001, 0.25, 0.5, 0.9])
@pytest.mark.parametrize("trials", [1000, 30_000, 1_000_000])
def test_binomial_against_mpmath(trials: int, p: float) -> None:
    spread = math.sqrt(trials * p * (1 - p))
    for z in (-6, -1, 0, 1, 5, 36, 38, 60, 200, 1e9):
        hits = min(max(1, round(trials * p + z * spread)), trials)
        exact = mpmath_binomial(hits, trials, p)
        found = float(log10_binomial_tail(hits, trials, p))
        assert found == pytest.approx(exact, abs=1e-9, rel=1e-13)


def mpmath_binomial(hits: int, trials: int, p: float) -> float:
    """Sum from hits upward, or one minus the sum from hits - 1 downward."""
    with mpmath.workdps(40):
        q = 1 - mpmath.mpf(p)
        upward = hits > trials * p
        start = hits if upward else hits - 1
        log_mass = (
            mpmath.loggamma(trials + 1)
            - mpmath.loggamma(start + 1)
            - mpmath.loggamma(trials - start + 1)
            + start * mpmath.log(p)
            + (trials - start) * mpmath.log(q)
        )
        term = total = mpmath.mpf(1)
        for k in range(start, trials) if upward else range(start, 0, -1):
            ratio = (trials - k) * p / ((k + 1) * q) if upward else k * q / ((trials - k + 1) * p)
            term *= ratio
            total += term
            if term < total * mpmath.mpf(10) ** -25:
                break
        log_sum = log_mass + mpmath.log(total)
        log_p = log_sum if upward else mpmath.log1p(-mpmath.exp(log_sum))
        return float(log_p / mpmath.log(10))


@pytest.mark.parametrize("shape", [0.5, 1.0, 3.0, 25.0, 1000.0, 1_000_000.0])
def test_gamma_against_mpmath(shape: float) -> None:
    for z in (-3.0, 0.0, 1.0, 6.0, 30.0, 37.0, 45.0, 100.0, 3000.0):
        total = shape + z * math.sqrt(shape)
        if total <= 0:
            continue
        found = float(log10_gamma_tail(total, shape))
        assert found == pytest.approx(mpmath_gamma(total, shape), abs=1e-9, rel=1e-13)


def mpmath_gamma(total: float, shape: float) -> float:
    """Upper incomplete gamma: continued fraction above the mean, series below."""
    with mpmath.workdps(40):
        x, a = mpmath.mpf(total), mpmath.mpf(shape)
        log_front = a * mpmath.log(x) - x - mpmath.loggamma(a)
        if x < a + 1:
            term = value = 1 / a
            k = a
            while term > value * mpmath.mpf(10) ** -30:
                k += 1
                term *= x / k
                value += term
            return float(mpmath.log1p(-mpmath.exp(log_front + mpmath.log(value))) / mpmath.log(10))
        b, c, d = x + 1 - a, mpmath.mpf(10) ** 300, 1 / (x + 1 - a)
        value = d
        for step in range(1, 100_000):
            numerator = -step * (step - a)
            b += 2
            d = 1 / (b + numerator * d)
            c = b + numerator / c
            value *= c * d
            if abs(c * d - 1) < mpmath.mpf(10) ** -25:
                break
        return float((log_front + mpmath.log(value)) / mpmath.log(10))


def test_far_tails_are_finite() -> None:
    assert float(log10_binomial_tail(10**6, 10**6, 0.25)) == pytest.approx(-602059.9913279624)
    assert float(log10_gamma_tail(1e6, 10.0)) == pytest.approx(
        (9 * math.log(1e6) - 1e6 - math.log(math.factorial(9))) / math.log(10), rel=1e-10
    )


def test_arguments_broadcast() -> None:
    grid = log10_binomial_tail(np.arange(4)[:, None], 5, np.array([0.25, 0.5]))
    assert grid.shape == (4, 2)
    np.testing.assert_array_equal(grid[0], 0.0)
    assert (np.diff(grid, axis=0) < 0).all()
    assert log10_gamma_tail(np.zeros(3), 2.0).tolist() == [0.0, 0.0, 0.0]
    assert log10_binomial_tail([], [], 0.5).shape == (0,)


@pytest.mark.parametrize(
    ("hits", "trials", "p"),
    [
        (-1, 5, 0.5),
        (6, 5, 0.5),
        (1, 5, 0.0),
        (1, 5, 1.0),
        (1, 5, math.nan),
        (1.5, 5, 0.5),
        (math.nan, 5, 0.5),
        (1, 2**60, 0.5),
        ("x", 5, 0.5),
    ],
)
def test_binomial_domain(hits: Any, trials: Any, p: float) -> None:
    with pytest.raises(UsageError):
        log10_binomial_tail(hits, trials, p)


@pytest.mark.parametrize(
    ("total", "shape"), [(-1.0, 2.0), (1.0, 0.0), (math.inf, 1.0), (1.0, math.nan), (math.nan, 1.0)]
)
def test_gamma_domain(total: float, shape: float) -> None:
    with pytest.raises(UsageError):
        log10_gamma_tail(total, shape)
