"""The inverted tail against enumeration, positive recursion and mpmath; never below the truth."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import gammaln

from provenance.errors import DataError, NumericalContradictionError, ProvenanceError
from provenance.stats import tails
from provenance.stats.inversion import invert, log10_upper_tail
from provenance.stats.lattice import Lattice
from provenance.stats.laws import NullLaw
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable
from provenance.stats.tails import upper_tail
from tests.world.closed_forms import log10_binomial_tail

Laws = dict[str, NullLaw]
Builder = Callable[..., ClassTable]
Exact = Callable[[ClassTable], float]
LAWS = ["green", "rare", "tournament", "gumbel", "holes"]


def weight_counts(kind: str, coins: int, seed: int = 5) -> dict[int, int]:
    rng = np.random.default_rng(seed)
    if kind == "constant":
        weights = np.full(coins, 3)
    elif kind == "log count":
        weights = np.round(4 * np.log1p(rng.geometric(0.1, coins))).astype(int)
    elif kind == "zipf":
        weights = np.minimum(rng.zipf(1.6, coins), 63)
    elif kind == "giants":
        giants = min(3, coins)
        weights = np.concatenate(
            [rng.integers(1, 5, coins - giants), rng.integers(1000, 3000, giants)]
        )
    else:
        weights = rng.integers(1, 10, coins) * rng.choice([-1, 1], coins)
    values, counts = np.unique(weights, return_counts=True)
    return {int(value): int(count) for value, count in zip(values, counts, strict=True)}


def assert_upper_bound(found: float, exact: float, above: float = 1e-6) -> None:
    assert -1e-12 <= found - exact <= above


# --- against exact values --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["green", "rare", "tournament", "holes"])
@pytest.mark.parametrize("weights", [(1,), (2, 2), (5, 3, 1), (7, -2, 4), (-1, -1, -6, 1)])
def test_every_value_against_enumeration(name: str, weights: tuple[int, ...], laws: Laws) -> None:
    law = laws[name]
    outcomes: dict[int, int] = {}
    example: dict[int, tuple[int, ...]] = {}
    for scores in itertools.product(law.support, repeat=len(weights)):
        value = sum(w * s for w, s in zip(weights, scores, strict=True))
        outcomes[value] = outcomes.get(value, 0) + math.prod(law.masses[s] for s in scores)
        example[value] = scores
    for value, scores in example.items():
        words = sum(mass for other, mass in outcomes.items() if other >= value)
        exact = Fraction(words, law.total ** len(weights))
        table = ClassTable.from_scores(weights, scores, law)
        assert table.statistic == value
        with mpmath.workdps(40):
            log10 = float(mpmath.log10(mpmath.mpf(exact.numerator) / exact.denominator))
        assert_upper_bound(log10_upper_tail(table), log10)
        upper_tail(table)


@pytest.mark.parametrize("z", [0.0, 1.0, 3.0, 8.0, 20.0, 37.0])
@pytest.mark.parametrize("kind", ["constant", "log count", "zipf", "giants", "signed"])
@pytest.mark.parametrize("name", LAWS)
def test_sums_against_positive_recursion(
    name: str, kind: str, z: float, laws: Laws, table_at: Builder, exact_tail: Exact
) -> None:
    sizes = [1, 2, 5, 30] if "gumbel" in name or kind == "giants" else [3, 10, 100, 1000]
    if name == "gumbel" and kind == "giants":
        sizes = []  # levels times weights: see test_gumbel_giants_against_positive_recursion
    for coins in sizes:
        table = table_at(laws[name], weight_counts(kind, coins), z)
        assert_upper_bound(upper_tail(table).log10_p, exact_tail(table))


def test_gumbel_sum_of_hundreds_against_positive_recursion(
    laws: Laws, table_at: Builder, exact_tail: Exact
) -> None:
    for coins, z in [(300, 3.0), (300, 37.0), (120, 10.0)]:
        table = table_at(laws["gumbel"], {3: coins}, z)
        assert_upper_bound(upper_tail(table).log10_p, exact_tail(table))


def test_gumbel_giants_against_positive_recursion(
    laws: Laws, table_at: Builder, exact_tail: Exact
) -> None:
    table = table_at(laws["gumbel"], {1: 20, 2: 9, 97: 2, 150: 1}, 4.0)
    assert_upper_bound(upper_tail(table).log10_p, exact_tail(table))


@pytest.mark.parametrize("z", [0.0, 3.0, 10.0, 37.0, 80.0])
@pytest.mark.parametrize("coins", [100, 10_000, 1_000_000])
def test_equal_weights_against_mpmath(coins: int, z: float, laws: Laws) -> None:
    hits = math.ceil(coins / 4 + z * math.sqrt(coins * 3 / 16))
    hits = min(hits, coins)
    table = ClassTable((ScoreClass(5, laws["green"], coins, hits),))
    exact = mpmath_binomial(hits, coins)
    found = upper_tail(table).log10_p
    assert_upper_bound(found, exact, above=1e-8)
    assert found == pytest.approx(float(log10_binomial_tail(hits, coins, 0.25)), abs=1e-8)


def mpmath_binomial(hits: int, coins: int) -> float:
    """log10 P(X >= hits) for p = 1/4: first term by log-gamma, ratio series in 30 digits."""
    with mpmath.workdps(40):
        log_mass = (
            mpmath.loggamma(coins + 1)
            - mpmath.loggamma(hits + 1)
            - mpmath.loggamma(coins - hits + 1)
            + hits * mpmath.log(0.25)
            + (coins - hits) * mpmath.log(0.75)
        )
        total = term = mpmath.mpf(1)
        for k in range(hits, coins):
            term *= mpmath.mpf(coins - k) / (3 * (k + 1))
            total += term
            if term < total * mpmath.mpf(10) ** -30:
                break
        return float((log_mass + mpmath.log(total)) / mpmath.log(10))


@pytest.mark.parametrize("z", [0.5, 3.0, 10.0, 30.0])
def test_half_a_million_coins_of_two_weights(z: float, laws: Laws, table_at: Builder) -> None:
    table = table_at(laws["green"], {1: 300_000, 2: 200_000}, z)
    twos = np.arange(200_001)
    needed = np.maximum(table.statistic - 2 * twos, 0)
    possible = needed <= 300_000
    tail = log10_binomial_tail(needed[possible], 300_000, 0.25)
    pairs = twos[possible]
    log_choose = gammaln(200_001) - gammaln(pairs + 1) - gammaln(200_001 - pairs)
    masses = (log_choose + pairs * math.log(0.25) + (200_000 - pairs) * math.log(0.75)) / math.log(
        10
    )
    terms = masses + tail
    top = terms.max()
    exact = top + math.log10(np.sum(10.0 ** (terms - top)))
    assert abs(upper_tail(table).log10_p - exact) < 2e-8


# --- edges -------------------------------------------------------------------------------------


def test_empty_table_has_p_one() -> None:
    result = upper_tail(ClassTable(()))
    assert (result.log10_p, result.z, result.coins) == (0.0, 0.0, 0)
    assert (result.effective_coins, result.largest_share) == (0.0, 0.0)
    assert result.log10_berry_esseen is None


def test_largest_value_is_an_exact_product(laws: Laws) -> None:
    table = ClassTable(
        (ScoreClass(-2, laws["green"], 10**6, 0), ScoreClass(3, laws["green"], 10**6, 10**6))
    )
    exact = 1e6 * (math.log10(0.25) + math.log10(0.75))
    assert log10_upper_tail(table) == pytest.approx(exact, rel=1e-14)
    assert log10_upper_tail(table) >= exact * (1 + 1e-15)


def test_smallest_value_has_p_one(laws: Laws) -> None:
    assert log10_upper_tail(ClassTable.from_scores([4, -4], [0, 1], laws["green"])) == 0.0


def test_value_above_the_maximum_is_refused(laws: Laws) -> None:
    lattice = Lattice.from_table(ClassTable.from_scores([4], [1], laws["green"]))
    beyond = Lattice(lattice.groups, 2, 1, 0, 1, lattice.log_top, 1)
    with pytest.raises(DataError, match="at most its maximum"):
        invert(beyond)


def test_constant_scores_carry_no_evidence() -> None:
    table = ClassTable.from_scores([3, -1, 2], [2, 2, 2], NullLaw((0, 0, 7)))
    result = upper_tail(table)
    assert (result.log10_p, result.z, result.coins) == (0.0, 0.0, 3)


def test_constant_classes_do_not_move_p(laws: Laws) -> None:
    fair = ClassTable.from_scores([2] * 9, [1] * 7 + [0] * 2, laws["green"])
    padded = fair.merge(ClassTable.from_scores([5] * 4, [1] * 4, NullLaw((0, 3))))
    assert log10_upper_tail(padded) == log10_upper_tail(fair)


def test_far_below_the_mean_is_one_without_cost(laws: Laws, table_at: Builder) -> None:
    for z in (-3.0, -9.0, -40.0):
        table = table_at(laws["green"], {1: 40_000, 63: 900}, z)
        assert -0.01 < log10_upper_tail(table) <= 0.0


def test_rare_hits_are_a_poisson_tail() -> None:
    # 10^6 coins of probability 2^-32: P(at least one) = 2.3e-4; the tilt must not blow up
    table = ClassTable((ScoreClass(7, NullLaw.bernoulli(1), 10**6, 1),))
    exact = math.log10(-math.expm1(1e6 * math.log1p(-(2.0**-32))))
    assert_upper_bound(upper_tail(table).log10_p, exact, above=1e-8)


def test_weights_of_a_trillion_stay_valid(laws: Laws) -> None:
    table = ClassTable.from_scores(
        [2**40, 2**40 - 1, 2**39, 3], [1, 1, 0, 1], NullLaw.bernoulli(1, 2)
    )
    assert math.log10(2 / 16) <= log10_upper_tail(table) <= 0.0


def test_p_below_ten_to_the_minus_hundred_thousand(laws: Laws) -> None:
    table = ClassTable((ScoreClass(1, laws["green"], 10**6, 900_000),))
    exact = float(log10_binomial_tail(900_000, 10**6, 0.25))
    assert exact < -100_000
    assert log10_upper_tail(table) == pytest.approx(exact, abs=1e-6)


def test_billions_of_coins(laws: Laws, table_at: Builder) -> None:
    result = upper_tail(table_at(laws["gumbel"], {1: 10**9, 7: 10**8, 63: 10**6}, 6.0))
    assert result.log10_lugannani_rice is not None
    assert result.log10_p == pytest.approx(result.log10_lugannani_rice, abs=1e-4)


# --- properties --------------------------------------------------------------------------------

score_lists = st.lists(st.tuples(st.integers(-20, 20), st.integers(0, 4)), min_size=1, max_size=60)


@settings(max_examples=40, deadline=None)
@given(score_lists, st.integers(0, 60), st.randoms(use_true_random=False))
def test_shards_and_order_do_not_matter(
    coins: list[tuple[int, int]], cut: int, random: object
) -> None:
    law = NullLaw((1, 4, 6, 4, 1))

    def table(part: list[tuple[int, int]]) -> ClassTable:
        return ClassTable.from_scores([w for w, _ in part], [s for _, s in part], law)

    whole = table(coins)
    assert table(coins[:cut]).merge(table(coins[cut:])) == whole
    shuffled = list(coins)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    assert table(shuffled) == whole
    assert table(shuffled).sha256() == whole.sha256()


@settings(max_examples=40, deadline=None)
@given(score_lists, st.integers(2, 9))
def test_common_factor_and_sign_flip_do_not_matter(
    coins: list[tuple[int, int]], factor: int
) -> None:
    law = NullLaw((1, 4, 6, 4, 1))
    weights, scores = np.array(coins).T
    p = log10_upper_tail(ClassTable.from_scores(weights, scores, law))
    assert log10_upper_tail(ClassTable.from_scores(factor * weights, scores, law)) == p
    # the law is symmetric: -w scoring 4 - s is w scoring s
    flipped = ClassTable.from_scores(-weights, 4 - scores, law)
    assert log10_upper_tail(flipped) == pytest.approx(p, abs=1e-9)


@settings(max_examples=40, deadline=None)
@given(score_lists, st.integers(0, 59))
def test_more_evidence_never_raises_p(coins: list[tuple[int, int]], which: int) -> None:
    law = NullLaw((1, 4, 6, 4, 1))
    weights, scores = np.array(coins).T
    which %= len(coins)
    if weights[which] <= 0 or scores[which] == 4:
        return
    before = log10_upper_tail(ClassTable.from_scores(weights, scores, law))
    scores[which] += 1
    after = log10_upper_tail(ClassTable.from_scores(weights, scores, law))
    assert after <= before + 1e-9
    assert before <= 0.0


@settings(max_examples=60, deadline=None)
@given(score_lists, st.lists(st.integers(0, 1000), min_size=5, max_size=5).filter(all))
def test_cross_checks_accept_random_tables(coins: list[tuple[int, int]], masses: list[int]) -> None:
    weights, scores = np.array(coins).T
    result = upper_tail(ClassTable.from_scores(weights, scores, NullLaw(tuple(masses))))
    assert math.isfinite(result.log10_p)
    assert result.log10_p <= 0.0
    if result.log10_berry_esseen is not None:
        assert result.log10_p <= result.log10_berry_esseen + 1e-6


# --- cross-checks ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAWS)
@pytest.mark.parametrize("kind", ["constant", "log count", "zipf", "signed"])
def test_three_voices_agree_on_thousands_of_coins(
    name: str, kind: str, laws: Laws, table_at: Builder
) -> None:
    for coins, z in [(1000, 2.0), (3000, 10.0), (100_000, 5.0), (1_000_000, 30.0)]:
        result = upper_tail(table_at(laws[name], weight_counts(kind, coins), z))
        if result.log10_lugannani_rice is not None and name != "rare":
            assert abs(result.log10_p - result.log10_lugannani_rice) < 0.05
        if result.log10_berry_esseen is not None:
            assert result.log10_p <= result.log10_berry_esseen + 1e-6


def test_hidden_coarse_lattice_is_no_contradiction(laws: Laws) -> None:
    # 1,200 even weights and one odd one: Lugannani-Rice sees span 1, S lives on span 8
    for odd in (0, 1):
        table = ClassTable(
            (ScoreClass(1, laws["green"], 1, odd), ScoreClass(8, laws["green"], 1200, 700))
        )
        upper_tail(table)


@pytest.mark.parametrize("change", [0.5, -0.5, 0.2, -0.2])
def test_contradiction_is_loud(
    change: float, laws: Laws, table_at: Builder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(lattice: Lattice) -> object:
        right = invert(lattice)
        return type(right)(right.log10_p + change, right.slope, True)

    monkeypatch.setattr(tails, "invert", wrong)
    table = table_at(laws["green"], {1: 20_000, 5: 3000}, 6.0)
    with pytest.raises(NumericalContradictionError, match="do not use this p-value") as caught:
        upper_tail(table)
    assert isinstance(caught.value, ProvenanceError)
    assert caught.value.exit_code not in (0, 1)  # never to be read as a verdict


def test_result_describes_the_table(laws: Laws) -> None:
    table = ClassTable.from_scores([1, 1, -2], [1, 0, 1], laws["green"])
    result = upper_tail(table)
    assert result.coins == 3
    assert result.effective_coins == pytest.approx(16 / 6)
    assert result.largest_share == pytest.approx(4 / 6)
    assert result.z == pytest.approx((-1 - 0.0) / math.sqrt(6 * 3 / 16))
    assert result.table_sha256 == table.sha256()


# --- speed -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "target"), [("green", 0.05), ("gumbel", 0.15)])
def test_speed_of_a_million_coins(name: str, target: float, laws: Laws, table_at: Builder) -> None:
    counts = {w: 1 + int(1e6 * w**-1.5 / 2.4) for w in range(1, 64)}
    table = table_at(laws[name], counts, 10.0)
    assert table.coins > 900_000
    best = math.inf
    for _ in range(3):
        start = time.perf_counter()
        log10_upper_tail(table)
        best = min(best, time.perf_counter() - start)
    assert best < 4 * target
