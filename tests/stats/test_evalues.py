"""E-values: averages stay e-values, e-BH against its definition and its error rate."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provenance.errors import UsageError
from provenance.stats.eprocess import start
from provenance.stats.evalues import adjust_e, average_e, e_bh
from provenance.stats.families import weighted_holm
from provenance.stats.laws import NullLaw
from provenance.stats.mixture import log10_mixture
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable

families = st.integers(1, 7).flatmap(
    lambda m: st.tuples(
        st.lists(st.floats(-4, 6), min_size=m, max_size=m),
        st.lists(st.integers(0, 9), min_size=m, max_size=m).filter(any),
    )
)


def slow_e_bh(e: list[float], alpha: float) -> set[int]:
    """The largest set R such that every member has e >= m / (alpha |R|): all subsets tried."""
    best: set[int] = set()
    for size in range(1, len(e) + 1):
        for subset in itertools.combinations(range(len(e)), size):
            if all(e[i] >= len(e) / (alpha * size) for i in subset):
                best = best | set(subset)
    return best


@given(families, st.sampled_from([0.5, 0.1, 0.037, 0.001]))
def test_e_bh_is_its_definition(family: tuple[list[float], list[int]], alpha: float) -> None:
    log10_e, parts = family
    weights = [part / sum(parts) for part in parts]
    weighted = [len(parts) * w * 10**x for w, x in zip(weights, log10_e, strict=True)]
    found = e_bh(log10_e, weights)
    close = np.abs(found - math.log10(alpha)) < 1e-9
    rejected = set(np.flatnonzero(found <= math.log10(alpha)))
    assert rejected ^ slow_e_bh(weighted, alpha) <= set(np.flatnonzero(close))
    assert (found <= 0).all()


@given(families)
def test_equal_weights_are_the_default(family: tuple[list[float], list[int]]) -> None:
    log10_e, _ = family
    equal = np.full(len(log10_e), 1 / len(log10_e))
    np.testing.assert_array_equal(e_bh(log10_e), e_bh(log10_e, equal))
    assert average_e(log10_e) == average_e(log10_e, equal)


@given(st.lists(st.floats(-3, 9), min_size=1, max_size=8), st.data())
def test_more_evidence_never_hurts(log10_e: list[float], data: st.DataObject) -> None:
    """Raising one e-value lowers no other's chance: all adjusted levels fall or stay."""
    raised = list(log10_e)
    raised[data.draw(st.integers(0, len(log10_e) - 1))] += data.draw(st.floats(0, 3))
    assert (e_bh(raised) <= e_bh(log10_e) + 1e-12).all()


def test_far_beyond_float_range() -> None:
    np.testing.assert_allclose(e_bh([5000.0, -math.inf]), [-5000 + math.log10(2), 0.0])
    assert average_e([5000.0, -5000.0]) == pytest.approx(5000 - math.log10(2))
    assert average_e([-math.inf, 0.0]) == pytest.approx(-math.log10(2))
    assert average_e([-math.inf]) == -math.inf
    assert average_e([3.0, -math.inf], [0.0, 1.0]) == -math.inf
    assert average_e([-5000.0, -5001.0]) == pytest.approx(-5000 + math.log10(0.55))


@given(families)
def test_average_against_plain_numbers(family: tuple[list[float], list[int]]) -> None:
    log10_e, parts = family
    weights = [part / sum(parts) for part in parts]
    plain = math.fsum(w * 10**x for w, x in zip(weights, log10_e, strict=True))
    assert average_e(log10_e, weights) == pytest.approx(math.log10(plain), abs=1e-9)


def test_empty_family() -> None:
    assert e_bh([]).shape == (0,)
    with pytest.raises(UsageError, match="one e-value at least"):
        average_e([])


@pytest.mark.parametrize(
    ("log10_e", "weights"),
    [
        ([math.nan], None),
        ([math.inf], None),
        ([[1.0]], None),
        ([1.0], [0.5]),
        ([1.0, 1.0], [1.0]),
        ([1.0, 1.0], [1.5, -0.5]),
        ([1.0], [math.nan]),
    ],
)
def test_domain(log10_e: Any, weights: Any) -> None:
    with pytest.raises(UsageError):
        e_bh(log10_e, weights)
    with pytest.raises(UsageError):
        average_e(log10_e, weights)


# --- closed testing ----------------------------------------------------------------------------


def slow_adjusted(e: list[float], weights: list[float]) -> list[float]:
    """Smallest weighted average over all sets that hold the hypothesis."""
    adjusted = [math.inf] * len(e)
    for size in range(1, len(e) + 1):
        for subset in itertools.combinations(range(len(e)), size):
            total = sum(weights[i] for i in subset)
            if total > 0:
                average = sum(weights[i] * e[i] for i in subset) / total
                for i in subset:
                    adjusted[i] = min(adjusted[i], average)
    return [value if w > 0 else 0.0 for value, w in zip(adjusted, weights, strict=True)]


@given(families)
def test_adjusted_e_values_are_closed_testing(family: tuple[list[float], list[int]]) -> None:
    log10_e, parts = family
    weights = [part / sum(parts) for part in parts]
    found = adjust_e(log10_e, weights)
    for value, plain in zip(found, slow_adjusted([10**x for x in log10_e], weights), strict=True):
        assert value == pytest.approx(math.log10(plain), abs=1e-9) if plain else value == -math.inf


@given(families)
def test_adjusted_e_values_are_no_less_than_holm_and_no_more_than_the_average(
    family: tuple[list[float], list[int]],
) -> None:
    log10_e, parts = family
    weights = [part / sum(parts) for part in parts]
    found = adjust_e(log10_e, weights)
    holm = weighted_holm(np.minimum(0.0, -np.array(log10_e)), weights)
    positive = np.array(weights) > 0
    assert (np.minimum(0, -found[positive]) <= holm[positive] + 1e-9).all()
    # the largest adjusted e-value is below the one of the intersection of all
    assert found.max() <= average_e(log10_e, weights) + 1e-9


def test_adjusted_e_values_beyond_float_range() -> None:
    found = adjust_e([5000.0, -math.inf, 1000.0], [0.5, 0.25, 0.25])
    np.testing.assert_allclose(found, [5000 - math.log10(2), -math.inf, 1000 - math.log10(2)])
    assert adjust_e([-math.inf, -math.inf], [0.5, 0.5]).tolist() == [-math.inf] * 2
    assert adjust_e([], []).shape == (0,)
    with pytest.raises(UsageError):
        adjust_e([0.0, 1.0], [0.5, 0.6])


def test_family_wise_error_at_any_look() -> None:
    """Five keys, one guilty; the innocent four are looked at 20 times. False alarm rate 1e-6."""
    rng = np.random.default_rng(29)
    runs, alpha, errors = 1000, 0.2, 0
    weights = np.array([0.5, 0.125, 0.125, 0.125, 0.125])
    for _ in range(runs):
        totals = rng.binomial(10, [0.6, 0.5, 0.5, 0.5, 0.5], (20, 5)).cumsum(axis=0)
        wrong = False
        for look, row in enumerate(totals.tolist(), start=1):
            evidence = [fair_coins(10 * look, total) for total in row]
            wrong |= bool((adjust_e(evidence, weights)[1:] >= -math.log10(alpha)).any())
        errors += wrong
    assert 0 < errors <= runs * alpha + 4.9 * math.sqrt(runs * alpha * (1 - alpha))


# --- error rates -------------------------------------------------------------------------------


@functools.cache
def fair_coins(coins: int, total: int) -> float:
    """log10 E of fair coins of weight 1, through the product."""
    law = NullLaw((1, 1))
    table = ClassTable((ScoreClass(1, law, coins, total),))
    return log10_mixture(table, start(law, 1, 1).slopes)


@pytest.mark.parametrize("dependence", ["independent", "same coins", "opposite coins"])
def test_false_discovery_rate(dependence: str) -> None:
    """20 suspects, 12 innocent: FDR <= alpha * 12/20, for every dependence of the innocent ones.

    Suspects under one key share coins; `opposite` makes innocent ones compete. False alarm 1e-6.
    """
    rng = np.random.default_rng(3)
    runs, coins, alpha = 2000, 100, 0.2
    innocent = rng.binomial(coins, 0.5, (runs, 12))
    if dependence != "independent":
        innocent = np.repeat(innocent[:, :1], 12, axis=1)
    if dependence == "opposite coins":
        innocent[:, 6:] = coins - innocent[:, 6:]
    guilty = rng.binomial(coins, 0.75, (runs, 8))
    totals = np.concatenate([innocent, guilty], axis=1)
    evidence = [[fair_coins(coins, total) for total in row] for row in totals.tolist()]
    shares = []
    for row in evidence:
        rejected = e_bh(row) <= math.log10(alpha)
        shares.append(rejected[:12].sum() / max(1, rejected.sum()))
    bound = alpha * 12 / 20
    assert np.mean(shares) <= bound + 4.8 * np.std(shares) / math.sqrt(runs)
    found = (np.array([e_bh(row)[12:] for row in evidence[:200]]) <= math.log10(alpha)).mean()
    assert found > 0.8


def test_average_of_weight_rules_is_an_e_value() -> None:
    """Two weightings of the same four coins: the mean of their average is exactly 1."""
    law = NullLaw((3, 1))
    slopes = start(law, 3, 1).slopes
    mean = 0.0
    for scores in itertools.product((0, 1), repeat=4):
        tables = [
            ClassTable.from_scores(weights, scores, law)
            for weights in ([1, 1, 1, 1], [3, -2, 1, 0])
        ]
        together = average_e([log10_mixture(table, slopes) for table in tables], [0.3, 0.7])
        mean += math.prod(0.25 if score else 0.75 for score in scores) * 10**together
    assert mean == pytest.approx(1.0, abs=1e-12)


def test_running_maximum_is_no_e_value() -> None:
    """Why `e_bh` must get E now and not its maximum: the mean of the maximum exceeds 1."""
    mean_now = mean_maximum = 0.0
    for scores in itertools.product((0, 1), repeat=6):
        path = [fair_coins(n, sum(scores[:n])) for n in range(1, 7)]
        mean_now += 10 ** path[-1] / 64
        mean_maximum += 10 ** max(path) / 64
    assert mean_now == pytest.approx(1.0, abs=1e-12)
    assert mean_maximum > 1.05
