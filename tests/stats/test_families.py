"""Weighted Holm against closed testing; Fieller intervals by simulation and by grid."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import ndtr, ndtri

from provenance.errors import UsageError
from provenance.stats.families import correlate_z, fieller_shares, find_smallest, weighted_holm
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.tables import ClassTable


def closed_testing(p: list[float], weights: list[float]) -> list[float]:
    """Adjusted p of the closure of weighted Bonferroni tests, over all intersections."""
    adjusted = [0.0] * len(p)
    for size in range(1, len(p) + 1):
        for subset in itertools.combinations(range(len(p)), size):
            total = sum(weights[i] for i in subset)
            shares = [p[i] * total / weights[i] for i in subset if weights[i] > 0]
            local = min([1.0, *shares])
            for i in subset:
                adjusted[i] = max(adjusted[i], local)
    return adjusted


families = st.integers(1, 6).flatmap(
    lambda m: st.tuples(
        st.lists(st.floats(-8, 0), min_size=m, max_size=m),
        st.lists(st.integers(0, 9), min_size=m, max_size=m).filter(any),
    )
)


@given(families)
def test_holm_is_closed_testing(family: tuple[list[float], list[int]]) -> None:
    log10_p, parts = family
    weights = [part / sum(parts) for part in parts]
    found = weighted_holm(log10_p, weights)
    expected = np.log10(closed_testing([10**value for value in log10_p], weights))
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_holm_far_below_float_range() -> None:
    found = weighted_holm([-5000.0, -1000.0], [0.5, 0.5])
    np.testing.assert_allclose(found, [-5000 + math.log10(2), -1000.0])


def test_holm_keeps_the_family_wise_error() -> None:
    """H0 for all, strongly dependent z: false alarm rate of this test 1e-6."""
    rng = np.random.default_rng(11)
    weights = np.array([0.5, 0.2, 0.2, 0.1])
    runs, alpha, errors = 4000, 0.05, 0
    for correlation in rng.choice([0.0, 0.5, 0.95], runs):
        common = rng.standard_normal()
        own = rng.standard_normal(4)
        z = math.sqrt(correlation) * common + math.sqrt(1 - correlation) * own
        errors += bool((weighted_holm(np.log10(ndtr(-z)), weights) <= math.log10(alpha)).any())
    assert errors <= runs * alpha + 4.8 * math.sqrt(runs * alpha * (1 - alpha))


def test_empty_family() -> None:
    assert weighted_holm([], []).shape == (0,)
    assert fieller_shares([], 5.0, 0.1, 0.5).estimate.shape == (0,)


@pytest.mark.parametrize(
    ("log10_p", "weights"),
    [
        ([-1.0], [0.5]),
        ([0.1], [1.0]),
        ([math.nan], [1.0]),
        ([-math.inf], [1.0]),
        ([-1.0, -1.0], [1.0]),
        ([-1.0, -1.0], [1.5, -0.5]),
        ([-1.0], [math.nan]),
    ],
)
def test_holm_domain(log10_p: Any, weights: Any) -> None:
    with pytest.raises(UsageError):
        weighted_holm(log10_p, weights)


# --- shares ------------------------------------------------------------------------------------


@given(st.floats(-30, 30), st.floats(-30, 30), st.floats(0.01, 1), st.floats(0.01, 1))
def test_interval_is_the_hull_of_the_set(
    value: float, reference: float, value_share: float, reference_share: float
) -> None:
    found = fieller_shares([value], reference, value_share, reference_share)
    scale = math.sqrt(value_share / reference_share)
    grid = np.linspace(0, 1, 2001)
    distance = np.abs(value - grid * scale * reference) / np.sqrt(1 + (grid * scale) ** 2)
    inside = grid[distance <= found.critical_value]
    lower, upper, estimate = found.lower[0], found.upper[0], found.estimate[0]
    assert 0 <= lower <= estimate <= upper <= 1
    if inside.size:
        assert lower <= inside[0] + 1e-9
        assert upper >= inside[-1] - 1e-9
        assert lower >= inside[0] - 1 / 2000 - 1e-9
        assert upper <= inside[-1] + 1 / 2000 + 1e-9
    else:
        assert upper - lower <= 1 / 2000


def test_kinds_of_sets() -> None:
    def ends(value: float, reference: float) -> tuple[float, float]:
        shares = fieller_shares([value], reference, 0.5, 0.5)
        return float(shares.lower[0]), float(shares.upper[0])

    assert ends(0.1, 0.2) == (0.0, 1.0)  # the line: nothing known
    assert ends(3.0, 0.5)[1] == 1.0  # complement of an interval
    low, high = ends(20.0, 40.0)  # an interval around one half
    assert 0.4 < low < 0.5 < high < 0.6
    assert ends(-20.0, 40.0) == (0.0, 0.0)  # empty within [0, 1]
    assert ends(80.0, 40.0) == (1.0, 1.0)
    assert ends(0.0, 0.0) == (0.0, 1.0)


def test_single_value_uses_the_plain_quantile() -> None:
    assert fieller_shares([1.0], 5.0, 0.1, 0.5).critical_value == pytest.approx(-ndtri(0.025))
    many = fieller_shares([1.0] * 52, 5.0, 0.1, 0.5).critical_value
    assert many == pytest.approx(-ndtri((1 - 0.95 ** (1 / 52)) / 2))


@pytest.mark.parametrize("strength", [5.0, 20.0])
def test_simultaneous_coverage(strength: float) -> None:
    """B = 52, shares .4/.3/.2/.1: .949-.953 expected; two-sided false alarm rate 1e-6."""
    rng = np.random.default_rng(7)
    shares = np.zeros(52)
    shares[:4] = 0.4, 0.3, 0.2, 0.1
    runs, covered, factor = 2000, 0, math.sqrt(0.25 / 0.5)
    for _ in range(runs):
        reference = strength / factor + rng.standard_normal()
        values = shares * strength + rng.standard_normal(52)
        found = fieller_shares(values, reference, 0.25, 0.5)
        covered += bool(((found.lower <= shares) & (shares <= found.upper)).all())
    assert covered / runs >= 0.949 - 4.8 * math.sqrt(0.95 * 0.05 / runs)
    assert covered / runs <= 0.985


@pytest.mark.parametrize(
    "change",
    [
        {"z_values": [math.nan]},
        {"z_values": 3.0},
        {"z_reference": math.inf},
        {"value_share": 0.0},
        {"reference_share": 1.5},
        {"level": 1.0},
    ],
)
def test_shares_domain(change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "z_values": [1.0],
        "z_reference": 5.0,
        "value_share": 0.2,
        "reference_share": 0.5,
        "level": 0.95,
    }
    with pytest.raises(UsageError):
        fieller_shares(**{**arguments, **change})


def test_correlation_is_that_of_simulated_z() -> None:
    """Two suspects with shared units under 4,000 keys; 4.9 standard errors."""
    rng = np.random.default_rng(31)
    units = np.column_stack([np.arange(300), rng.permutation(300)]).astype(np.uint32)
    left, right = rng.permutation(300)[:200], rng.permutation(300)[:150]
    a, b = rng.integers(1, 60, 200), rng.integers(-30, 60, 150)
    expected, shared = correlate_z((units[left], a), (units[right], b))
    assert shared == np.intersect1d(left, right).size
    coins = (rng.random((4000, 300)) < 0.25).astype(np.int64)
    found = np.corrcoef(coins[:, left] @ a, coins[:, right] @ b)[0, 1]
    assert abs(np.arctanh(found) - np.arctanh(expected)) < 4.9 / math.sqrt(4000)


def test_correlation_at_its_ends() -> None:
    units = np.array([[1, 2], [3, 4]], dtype=np.uint32)
    assert correlate_z((units, [1, 2]), (units[::-1], [4, 2])) == (pytest.approx(1.0), 2)
    assert correlate_z((units, [1, 2]), (units, [-1, -2])) == (pytest.approx(-1.0), 2)
    assert correlate_z((units[:1], [1]), (units[1:], [1])) == (0.0, 0)
    assert correlate_z((units[:0], []), (units, [1, 1])) == (0.0, 0)


@pytest.mark.parametrize("seed", range(4))
def test_the_smallest_of_a_family_is_that_of_all_exact_tails(laws, seed):
    """Null tables of few and many coins, one of them strong in two of the families."""
    rng = np.random.default_rng(seed)
    tables = []
    for law in [laws["green"], laws["gumbel"], laws["rare"], laws["holes"]] * 8:
        count = int(rng.integers(1, 300))
        scores = rng.choice(len(law.masses), count, p=law.probabilities)
        tables.append(ClassTable.from_scores(rng.integers(1, 20, count), scores, law))
    if seed % 2:
        tables.append(ClassTable.from_scores([1] * 400, [1] * 170 + [0] * 230, laws["green"]))
    weights = rng.dirichlet(np.ones(len(tables)))
    exact = [log10_upper_tail(table) for table in tables]
    assert find_smallest(tables, weights) == weighted_holm(exact, weights).min()
    assert find_smallest([], []) == 0.0
