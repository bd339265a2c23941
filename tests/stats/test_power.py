"""Power: critical values against the reported tail, detectable shifts against simulation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, example, given
from hypothesis import strategies as st
from scipy.special import ndtri
from scipy.stats import binom

from provenance.errors import UsageError
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.power import (
    Alternative,
    DetectableShift,
    critical_value,
    detectable_shift,
    invert_response,
)
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable

Laws = dict[str, NullLaw]
COUNTS = {
    "ones": {1: 800},
    "graded": {1: 300, 2: 150, 5: 60, 9: 10},
    "signed": {-4: 40, -1: 200, 1: 200, 3: 80},
    "giants": {1: 150, 200: 4},
}


def unscored(law: NullLaw, counts: dict[int, int]) -> ClassTable:
    low = law.support[0]
    return ClassTable(tuple(ScoreClass(w, law, counts[w], counts[w] * low) for w in sorted(counts)))


def at(table: ClassTable, law: NullLaw, statistic: int) -> float:
    """Reported log10 p of a table of coins of weight 1 with a given statistic."""
    (item,) = table.classes
    return log10_upper_tail(ClassTable((ScoreClass(1, law, item.count, statistic),)))


# --- critical value ----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["green", "tournament", "gumbel"])
@pytest.mark.parametrize("alpha", [0.3, 1e-3, 1e-12])
def test_critical_value_is_the_least(name: str, alpha: float, laws: Laws) -> None:
    table = unscored(laws[name], COUNTS["ones"])
    critical = critical_value(table, alpha)
    assert critical is not None
    assert at(table, laws[name], critical) <= math.log10(alpha)
    assert at(table, laws[name], critical - 1) > math.log10(alpha)


@given(st.integers(1, 40), st.floats(0.001, 0.999))
def test_critical_value_of_few_fair_coins(coins: int, alpha: float) -> None:
    found = critical_value(unscored(NullLaw((1, 1)), {1: coins}), alpha)
    tails = binom.sf(np.arange(coins + 1) - 1, coins, 0.5)
    below = np.flatnonzero(tails <= alpha)
    if np.abs(tails - alpha).min() > 1e-6:
        assert found == (int(below[0]) if below.size else None)


def test_lattice_of_signed_weights(laws: Laws) -> None:
    """Weights -6, 4: S takes steps of 2 from its minimum, and the value found is one of them."""
    table = unscored(laws["green"], {-6: 30, 4: 50})
    critical = critical_value(table, 0.01)
    assert critical is not None
    assert (critical + 180) % 2 == 0


# --- detectable shift --------------------------------------------------------------------------


def simulated_power(
    table: ClassTable, found: DetectableShift, tilt: float, runs: int, seed: int
) -> float:
    """Share of simulated suspects with S at or above the critical value."""
    rng = np.random.default_rng(seed)
    sums = np.zeros(runs, dtype=np.int64)
    for item in table.classes:
        size = item.weight if found.alternative == "proportional" else math.copysign(1, item.weight)
        levels = np.arange(len(item.law.masses))
        shares = np.array(item.law.masses, dtype=float) * np.exp(tilt * size * levels)
        drawn = rng.multinomial(item.count, shares / shares.sum(), runs)
        sums += item.weight * (drawn @ levels)
    return float((sums >= found.critical_value).mean())


def tilt_of(table: ClassTable, found: DetectableShift) -> float:
    """The tilt whose mean is the reported one, found by bisection with plain formulas."""

    def z(tilt: float) -> float:
        total = 0.0
        for item in table.classes:
            size = item.weight
            if found.alternative == "equal":
                size = int(math.copysign(1, item.weight))
            levels = np.arange(len(item.law.masses))
            shares = np.array(item.law.masses, dtype=float) * np.exp(tilt * size * levels)
            shift = float(shares @ levels / shares.sum()) - item.law.mean
            total += item.weight * item.count * shift
        return total / math.sqrt(table.variance)

    low, high = 0.0, 1e-6
    while z(high) < found.z:
        high *= 2
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if z(middle) < found.z else (low, middle)
    return high


@pytest.mark.parametrize("alternative", ["proportional", "equal"])
@pytest.mark.parametrize("weights", list(COUNTS))
@pytest.mark.parametrize("name", ["green", "gumbel"])
def test_power_against_simulation(
    name: str, weights: str, alternative: Alternative, laws: Laws
) -> None:
    """9,000 +- 140 of 10,000 simulated suspects are found: false alarm rate 3e-6 a case."""
    table = unscored(laws[name], COUNTS[weights])
    found = detectable_shift(table, 1e-3, 0.9, alternative)
    assert found is not None
    assert found.exact
    assert 0.9 <= found.power <= 0.9001
    runs = 10_000
    share = simulated_power(table, found, tilt_of(table, found), runs, seed=5)
    assert abs(share - 0.9) <= 4.7 * math.sqrt(0.09 / runs)
    assert found.shift == pytest.approx(found.z / math.sqrt(table.effective_coins))


def test_normal_approximation_is_the_limit(laws: Laws) -> None:
    """Many coins: shift = (z_alpha + z_power) / sqrt(n), whatever the alternative."""
    for alternative in ("proportional", "equal"):
        table = unscored(laws["tournament"], {1: 200_000, 3: 20_000})
        found = detectable_shift(table, 1e-3, 0.9, alternative)
        assert found is not None
        wanted = float(ndtri(0.9) - ndtri(1e-3)) / math.sqrt(table.effective_coins)
        assert found.shift == pytest.approx(wanted, rel=3e-3)
        assert found.normal_shift == pytest.approx(found.shift, rel=1e-3)


def test_what_moves_it(laws: Laws) -> None:
    """Fewer coins, a smaller alpha or a higher power need a larger effect."""

    def shift(coins: int, alpha: float, power: float) -> float:
        found = detectable_shift(unscored(laws["green"], {1: coins}), alpha, power)
        assert found is not None
        return found.shift

    base = shift(1000, 1e-3, 0.9)
    assert shift(500, 1e-3, 0.9) > base
    assert shift(1000, 1e-6, 0.9) > base
    assert shift(1000, 1e-3, 0.99) > base
    assert shift(1000, 1e-3, 0.5) < base


def test_observed_scores_play_no_part(laws: Laws) -> None:
    quiet, loud = (ClassTable((ScoreClass(2, laws["green"], 300, t),)) for t in (0, 300))
    assert detectable_shift(quiet, 0.01) == detectable_shift(loud, 0.01)


def test_tests_that_can_never_reject() -> None:
    assert detectable_shift(ClassTable(()), 0.01) is None
    assert detectable_shift(unscored(NullLaw((1, 1)), {1: 6}), 0.01) is None  # 2^-6 = .016
    certain = detectable_shift(unscored(NullLaw((1, 1)), {1: 7}), 0.01)  # 2^-7 = .008
    assert certain is not None
    assert certain.power == pytest.approx(0.9, abs=1e-4)
    assert certain.shift == pytest.approx(2 * 0.9 ** (1 / 7) - 1, abs=1e-3)
    constant = ClassTable((ScoreClass(1, NullLaw((0, 3)), 5, 5),))
    assert critical_value(constant, 0.5) is None


def test_too_large_for_the_lattice_falls_back(laws: Laws, monkeypatch: pytest.MonkeyPatch) -> None:
    """As for a few coins of weight 2**30, without their 20 seconds."""
    monkeypatch.setattr("provenance.stats.null_distribution.MAX_MODULUS", 16)
    found = detectable_shift(unscored(laws["green"], COUNTS["graded"]), 0.01)
    assert found is not None
    assert not found.exact
    assert found.shift == found.normal_shift
    assert found.power >= 0.9


@pytest.mark.parametrize(
    "change",
    [
        {"alpha": 0.0},
        {"alpha": math.nan},
        {"power": 1.0},
        {"power": 0.005},
        {"alternative": "both"},
    ],
)
def test_domain(change: dict[str, Any], laws: Laws) -> None:
    arguments: dict[str, Any] = {"alpha": 0.01, "power": 0.9, "alternative": "equal"}
    with pytest.raises(UsageError):
        detectable_shift(unscored(laws["green"], {1: 100}), **{**arguments, **change})


# --- response curve ----------------------------------------------------------------------------

CURVE = [(0.05, 2.0), (0.1, 4.0), (0.5, 12.0), (1.0, 16.0)]


@pytest.mark.parametrize(
    ("shift", "share"),
    [(0.02, 0.05), (0.03, 0.075), (0.04, 0.1), (0.08, 0.3), (0.12, 0.5), (0.16, 1.0)],
)
def test_inversion(shift: float, share: float) -> None:
    assert invert_response(CURVE, 10_000, shift) == pytest.approx(share)


@pytest.mark.parametrize("shift", [0.0199, 0.1601, 0.0, -1.0, math.nan, math.inf])
def test_extrapolation_is_refused(shift: float) -> None:
    with pytest.raises(UsageError, match="within the measured"):
        invert_response(CURVE, 10_000, shift)


def test_a_point_at_zero_is_the_caller_s_statement() -> None:
    assert invert_response([(0.0, 0.0), *CURVE], 10_000, 0.01) == pytest.approx(0.025)
    shifted = invert_response([(0.0, 0.0), *CURVE], 10_000, 0.005, margin=1.0)
    assert shifted == pytest.approx(0.025)  # z = 0 at share 0 is not a measurement: no margin there


def test_noise_makes_the_claim_weaker() -> None:
    noisy = [(0.05, 5.0), (0.1, 4.0), (0.5, 12.0), (1.0, 11.0)]
    assert invert_response(noisy, 10_000, 0.04) == pytest.approx(0.05)
    assert invert_response(noisy, 10_000, 0.05) > 0.1
    with pytest.raises(UsageError, match="above it"):
        invert_response(noisy, 10_000, 0.115)
    assert invert_response(CURVE, 10_000, 0.05, margin=1.0) > invert_response(CURVE, 10_000, 0.05)


curves = st.lists(
    st.tuples(st.floats(0.01, 1.0), st.floats(0, 100)),
    min_size=2,
    max_size=8,
    unique_by=lambda point: point[0],
).map(sorted)


@given(curves, st.floats(0, 1), st.floats(0, 1))
@example([(math.nextafter(1, 0), 1.0), (1.0, 2.0)], 0.0, 0.5)
def test_inversion_is_monotone_and_safe(
    curve: list[tuple[float, float]], first: float, second: float
) -> None:
    """A larger shift needs a larger share; every measured share above the answer shows it."""
    z = [value for _, value in curve]
    floor = [min(z[i:]) for i in range(len(z))]
    low, high = floor[0], floor[-1]
    shifts = sorted((low + part * (high - low)) / 10 for part in (first, second))
    assume(low > 1e-6 and shifts[1] <= high / 10)
    shares = [invert_response(curve, 100, max(shift, low / 10)) for shift in shifts]
    assert shares[0] <= shares[1]
    for share, shift in zip(shares, shifts, strict=True):
        assert all(z >= 10 * shift - 1e-9 for x, z in curve if x >= share)


@pytest.mark.parametrize(
    "change",
    [
        {"curve": [(0.1, 2.0)]},
        {"curve": [(0.1, 2.0, 3.0), (0.2, 3.0, 4.0)]},
        {"curve": [(0.2, 2.0), (0.1, 3.0)]},
        {"curve": [(0.1, 2.0), (0.1, 3.0)]},
        {"curve": [(0.1, 2.0), (1.1, 3.0)]},
        {"curve": [(0.1, math.nan), (0.2, 3.0)]},
        {"curve": [(math.nan, 1.0), (0.2, 3.0)]},
        {"lab_coins": 0.0},
        {"lab_coins": math.inf},
        {"margin": -1.0},
        {"margin": math.nan},
    ],
)
def test_response_domain(change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"curve": CURVE, "lab_coins": 10_000.0, "shift": 0.05}
    with pytest.raises(UsageError):
        invert_response(**{**arguments, **change})


def test_from_a_negative_verdict_to_a_share(laws: Laws) -> None:
    """The whole path: a table that found nothing -> 'a share of .16 would have been found'."""
    found = detectable_shift(unscored(laws["gumbel"], {1: 4000, 3: 900}), 1e-3)
    assert found is not None
    share = invert_response(CURVE, lab_coins=10_000, shift=found.shift)
    assert share == pytest.approx(0.2, abs=0.1)
