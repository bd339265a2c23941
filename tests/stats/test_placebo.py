"""Placebo tests: size under H0, power against the failures that matter, and the null CDF."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from scipy.special import ndtr

from provenance.check.controls import control_placebo
from provenance.check.score import WeightedPairs
from provenance.errors import DataError, UsageError
from provenance.stats import null_distribution
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.lattice import Lattice
from provenance.stats.laws import NullLaw
from provenance.stats.null_distribution import NullDistribution
from provenance.stats.placebo import coarsen, placebo_test
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable
from tests.world.closed_forms import log10_binomial_tail

Laws = dict[str, NullLaw]


def normal_keys(rng: np.random.Generator, keys: int, mean: float, sd: float) -> Any:
    z = mean + sd * rng.standard_normal(keys)
    return placebo_test(z, ndtr(-z), 2.0)


def rejections(runs: int, keys: int, mean: float = 0.0, sd: float = 1.0, seed: int = 1) -> float:
    rng = np.random.default_rng(seed)
    return sum(not normal_keys(rng, keys, mean, sd).passed for _ in range(runs)) / runs


# --- power and size ----------------------------------------------------------------------------


def test_power_table() -> None:
    """Spot checks of the design's table at level .001 (standard error .02)."""
    assert rejections(300, 400, sd=1.2) > 0.9
    assert rejections(300, 100, sd=1.5) > 0.95
    assert rejections(300, 400, mean=0.3) > 0.95
    assert 0.2 < rejections(300, 400, sd=1.1) < 0.6
    assert rejections(100, 100, sd=2.2) == 1.0


def test_size_for_normal_keys() -> None:
    """At most 1e-3: 4000 runs reject more than 14 times with probability 3e-5."""
    assert rejections(4000, 100) * 4000 <= 14


@pytest.mark.parametrize("kurtosis", [False, True])
def test_size_for_skewed_sums(kurtosis: bool, laws: Laws) -> None:
    """Few coins of the skewed law, one of them giant: exact scores keep the size.

    The raw z with matched kurtosis is approximate; level .01 is bounded at .02 for it.
    """
    law = laws["gumbel"]
    counts = {1: 30, 3: 10, 9: 1}
    table = ClassTable(tuple(ScoreClass(w, law, n, 0) for w, n in counts.items()))
    distribution = NullDistribution.from_table(table)
    weights = np.repeat(list(counts), list(counts.values()))
    rng = np.random.default_rng(2)
    level, runs, keys, failed = 1e-2, 1500, 100, 0
    cumulative = np.cumsum(law.probabilities)
    for _ in range(runs):
        scores = np.searchsorted(cumulative, rng.random((keys, weights.size)), side="right")
        sums = np.minimum(scores, len(law.masses) - 1) @ weights
        z = (sums - table.mean) / math.sqrt(table.variance)
        shares = distribution.randomised_p(sums, rng.random(keys))
        excess = table.excess_kurtosis if kurtosis else None
        failed += not placebo_test(z, shares, 0.0, level, excess).passed
    bound = 2 * level if kurtosis else level
    assert failed <= runs * bound + 4.8 * math.sqrt(runs * bound)


def test_repeated_coins_are_found(laws: Laws) -> None:
    """The failure of peers without de-duplication: the same coins counted five times."""
    rng = np.random.default_rng(4)
    table = ClassTable((ScoreClass(1, laws["green"], 1000, 0),))
    sums = 5 * rng.binomial(200, 0.25, 400)
    z = (sums - table.mean) / math.sqrt(table.variance)
    shares = NullDistribution.from_table(table).randomised_p(sums, rng.random(400))
    result = placebo_test(z, shares, 0.0)
    assert not result.passed
    assert result.standard_deviation > 1.8


def test_fields() -> None:
    z = np.array([-1.0, 0.0, 1.0, 2.0])
    result = placebo_test(z, ndtr(-z), 1.0, level=0.01)
    assert (result.keys, result.level, result.passed) == (4, 0.01, True)
    assert result.rank_p == 3 / 5
    assert result.mean == 0.5
    assert result.standard_deviation == pytest.approx(np.std(z, ddof=1))
    assert result.mean_p == pytest.approx(2 * ndtr(-1.0))
    assert 0 < min(result.chi_square_p, result.ks_p) <= 1
    assert placebo_test(z, ndtr(-z), 9.0).rank_p == 1 / 5


def test_p_values_are_two_sided() -> None:
    """Against scipy.stats, on both sides; Satterthwaite's scale for a given kurtosis."""
    rng = np.random.default_rng(6)
    for spread in (0.9, 1.1):
        z = spread * rng.standard_normal(50)
        total = float(z @ z)
        plain = placebo_test(z, ndtr(-z), 0.0)
        sides = stats.chi2.cdf(total, 50), stats.chi2.sf(total, 50)
        assert plain.chi_square_p == pytest.approx(2 * min(sides), rel=1e-9)
        assert plain.ks_p == pytest.approx(
            min(1, stats.kstest(ndtr(-z), "uniform").pvalue), rel=0.1
        )
        scaled = placebo_test(z, ndtr(-z), 0.0, excess_kurtosis=2.0)
        sides = stats.chi2.cdf(total / 2, 25), stats.chi2.sf(total / 2, 25)
        assert scaled.chi_square_p == pytest.approx(2 * min(sides), rel=1e-9)


def test_shares_of_zero_and_one_do_not_break_it() -> None:
    result = placebo_test([9.0, -9.0, 9.0], [0.0, 1.0, 0.0], 1.0)
    assert not result.passed
    assert math.isfinite(result.chi_square_p)


def test_constant_square_has_no_spread_to_test() -> None:
    z, shares = np.array([1.0, -1.0, 1.0, -1.0]), np.array([0.2, 0.7, 0.3, 0.9])
    assert placebo_test(z, shares, 1.0, excess_kurtosis=-2.0).chi_square_p == 1.0
    assert placebo_test(2 * z, shares, 1.0, excess_kurtosis=-2.0).chi_square_p == 0.0


@pytest.mark.parametrize(
    ("z", "shares", "extra"),
    [
        ([0.0], [0.5], {}),
        ([0.0, 1.0], [0.5], {}),
        ([0.0, math.nan], [0.5, 0.5], {}),
        ([0.0, 1.0], [0.5, 1.5], {}),
        ([0.0, 1.0], [0.5, math.nan], {}),
        ([0.0, 1.0], [0.5, 0.5], {"level": 0.0}),
        ([0.0, 1.0], [0.5, 0.5], {"true_z": math.nan}),
    ],
)
def test_domain(z: Any, shares: Any, extra: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        placebo_test(**{"z": z, "randomised_p": shares, "true_z": 0.0, **extra})


# --- the null distribution ---------------------------------------------------------------------


def enumerate_law(table: ClassTable) -> dict[int, float]:
    outcomes = {0: 1.0}
    for item in table.classes:
        for _ in range(item.count):
            grown: dict[int, float] = {}
            for value, mass in outcomes.items():
                for score, p in enumerate(item.law.probabilities):
                    key = value + item.weight * score
                    grown[key] = grown.get(key, 0.0) + mass * p
            outcomes = grown
    return {value: mass for value, mass in outcomes.items() if mass}


@pytest.mark.parametrize("name", ["green", "rare", "tournament", "holes"])
@pytest.mark.parametrize("weights", [(1,), (6, 6), (5, 3, 1), (7, -2, 4, -2)])
def test_distribution_against_enumeration(name: str, weights: tuple[int, ...], laws: Laws) -> None:
    low = laws[name].support[0]
    table = ClassTable.from_scores(weights, [low] * len(weights), laws[name])
    outcomes = enumerate_law(table)
    values = sorted(outcomes)
    distribution = NullDistribution.from_table(table)
    masses = np.array([outcomes[value] for value in values])
    np.testing.assert_allclose(distribution.mass(values), masses, atol=1e-12)
    tails = np.cumsum(masses[::-1])[::-1]
    np.testing.assert_allclose(distribution.tail(values), tails, atol=1e-12)
    shares = NullDistribution.from_table(table).randomised_p(values, np.full(len(values), 0.3))
    np.testing.assert_allclose(shares, tails - 0.7 * masses, atol=1e-12)


@pytest.mark.parametrize("coins", [1000, 1_000_000])
def test_distribution_against_binomial(coins: int, laws: Laws) -> None:
    table = ClassTable((ScoreClass(4, laws["green"], coins, 0),))
    spread = math.sqrt(coins * 3 / 16)
    hits = np.unique(np.clip(coins / 4 + spread * np.linspace(-60, 60, 81), 0, coins)).astype(int)
    exact = 10 ** log10_binomial_tail(hits, coins, 0.25)
    found = NullDistribution.from_table(table).tail(4 * hits)
    np.testing.assert_allclose(found, exact, atol=1e-12)
    assert ((found >= 0) & (found <= 1)).all()


def test_distribution_agrees_with_the_tail(laws: Laws, table_at: Callable[..., ClassTable]) -> None:
    for z in (0.3, 1.5, 4.0):
        table = table_at(laws["gumbel"], {1: 300, 5: 40, 20: 7, 63: 2}, z)
        found = NullDistribution.from_table(table).tail([table.statistic])
        guard = 10 ** log10_upper_tail(table) - found[0]  # the tail is an upper bound
        assert -1e-12 <= guard <= 1e-10


def test_constant_statistic() -> None:
    table = ClassTable.from_scores([3], [1], NullLaw((0, 5)))
    distribution = NullDistribution.from_table(table)
    assert distribution.tail([3, 4]).tolist() == [1.0, 0.0]
    assert distribution.mass([3]).tolist() == [1.0]
    assert distribution.randomised_p([3], [0.25]).tolist() == [0.25]


def test_values_off_the_lattice_are_refused(laws: Laws) -> None:
    table = ClassTable.from_scores([4, 6], [0, 1], laws["green"])
    with pytest.raises(DataError, match="multiple of 2"):
        NullDistribution.from_table(table).randomised_p([3], [0.5])
    with pytest.raises(UsageError, match="integer array"):
        NullDistribution.from_table(table).randomised_p([4.0], [0.5])
    with pytest.raises(UsageError, match="one number in"):
        NullDistribution.from_table(table).randomised_p([4], [1.5])


def test_lattice_too_long_is_refused(laws: Laws) -> None:
    table = ClassTable.from_scores([2**39, 2**39 - 1], [1, 1], laws["green"])
    with pytest.raises(UsageError, match="fewer levels"):
        NullDistribution.from_table(table)


def test_four_hundred_keys_in_one_evaluation(
    laws: Laws, table_at: Callable[..., ClassTable]
) -> None:
    counts = {w: 1 + int(1e6 * w**-1.5 / 2.4) for w in range(1, 64)}
    table = table_at(laws["gumbel"], counts, 0.0)
    rng = np.random.default_rng(9)
    spread = math.sqrt(table.variance)
    sums = np.rint(table.mean + spread * rng.standard_normal(400)).astype(np.int64)
    shares = NullDistribution.from_table(table).randomised_p(sums, rng.random(400))
    normal = ndtr(-(sums - table.mean) / spread)
    np.testing.assert_allclose(shares, normal, atol=2e-3)


# --- cost on few coins -------------------------------------------------------------------------


def hostile(rng: np.random.Generator, law: NullLaw, coins: int, top: float) -> ClassTable:
    """As many weights as coins, log-uniform up to `top`, of both signs."""
    weights = np.rint(np.exp(rng.uniform(0, math.log(top), coins))).astype(np.int64)
    weights *= rng.choice([-1, 1], coins)
    return ClassTable.from_scores(weights, np.full(coins, law.support[0]), law)


def test_few_coins_of_many_weights_and_levels_are_cheap(laws: Laws) -> None:
    """One null distribution: 1.5 s of CPU time where .1 s will do, when the frequencies that matter
    (here: all) were searched for and every class took a logarithm of each."""
    rng = np.random.default_rng(12)
    table = hostile(rng, laws["gumbel"], 120, 255)
    sums = table.statistic + Lattice.from_table(table).span * np.arange(400)
    began = time.process_time()
    NullDistribution.from_table(table).randomised_p(sums, np.full(400, 0.5))
    assert time.process_time() - began < 0.7


def test_products_agree_with_the_surviving_frequencies(
    laws: Laws, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two routes to one law, to 1e-12: products for few coins, logarithms for many."""
    rng = np.random.default_rng(13)
    for name, top in (("green", 3000.0), ("gumbel", 40.0), ("tournament", 200.0)):
        table = hostile(rng, laws[name], 25, top)
        step = Lattice.from_table(table).span
        values = round(table.mean) + step * np.arange(-40, 40)
        values += (table.statistic - values[0]) % step
        quick = NullDistribution.from_table(table)
        monkeypatch.setattr(null_distribution, "_FEW_COINS", 0)
        slow = NullDistribution.from_table(table)
        monkeypatch.undo()
        np.testing.assert_allclose(quick.tail(values), slow.tail(values), atol=1e-12)
        np.testing.assert_allclose(quick.mass(values), slow.mass(values), atol=1e-12)
        many = np.repeat(values, 40)  # so many that one transform serves them all
        np.testing.assert_allclose(quick.tail(many), np.repeat(slow.tail(values), 40), atol=1e-12)


class _SharedCoins:
    """Placebo keys of a mark in which pairs share coins: every key has weights of its own."""

    null_law = NullLaw.bernoulli(2**30)

    def __init__(self, top: float) -> None:
        self.top = top

    def placebo(self, seed: bytes, number: int) -> Any:
        rng = np.random.default_rng(number)

        class Opened:
            def open(self, contexts: Any, tokens: Any, weights: Any) -> Any:
                return rng.permutation(weights) + rng.integers(0, 9, weights.size), (
                    rng.random(weights.size) < 0.25
                ).astype(np.int64)

        return Opened()


@pytest.mark.parametrize("top", [1e5, 2.0**39])
@pytest.mark.parametrize("coins", [40, 300])
def test_placebo_keys_with_tables_of_their_own_are_cheap(coins: int, top: float) -> None:
    """Huge ratios of weights on few coins: seconds a key, or refused, before they were coarse."""
    rng = np.random.default_rng(14)
    weights = np.rint(np.exp(rng.uniform(0, math.log(top), coins))).astype(np.int64)
    none = np.zeros((coins, 2), dtype=np.uint32)
    pairs = WeightedPairs(none, none[:, 0], weights)
    mark = _SharedCoins(top)
    true = ClassTable.from_scores(weights % 60, np.zeros(coins, dtype=np.int64), mark.null_law)
    began = time.process_time()
    found = control_placebo(pairs, "global", true, mark, 60, bytes(32))
    assert time.process_time() - began < 60 * 0.1
    assert found.passed


def test_coarse_weights_keep_the_size() -> None:
    """Randomised p of coarse sums are uniform: the control does not fail by being cheap."""
    rng = np.random.default_rng(15)
    law = NullLaw.bernoulli(2**30)
    weights = coarsen(np.rint(np.exp(rng.uniform(0, 18, 50))).astype(np.int64), 2)
    assert int(weights.max()) == 63
    scores = (rng.random((4000, 50)) < 0.25).astype(np.int64)
    table = ClassTable.from_scores(weights, scores[0], law)
    shares = NullDistribution.from_table(table).randomised_p(scores @ weights, rng.random(4000))
    assert stats.kstest(shares, "uniform").pvalue > 1e-4
    unchanged = np.array([63, -63, 1])
    assert coarsen(unchanged, 2) is unchanged
    assert coarsen(np.arange(5000), 2).max() == 4999
    assert np.abs(coarsen(np.array([-630, 63]), 89)).tolist() == [15, 2]
