"""Shares: coverage through real tables, silence near the threshold, and the old construction."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.special import ndtr
from scipy.stats import binom

from provenance.errors import UsageError
from provenance.marks.own import Gumbel
from provenance.stats.laws import NullLaw
from provenance.stats.score_class import ScoreClass
from provenance.stats.shares import Rejection, is_clear, share_intervals
from provenance.stats.tables import ClassTable
from tests.world.shares import CELLS, World, least_covered, measure

LAW = Gumbel().null_law
COIN = NullLaw((1, 1))


def table(law: NullLaw, counts: dict[int, tuple[int, int]]) -> ClassTable:
    return ClassTable(tuple(ScoreClass(w, law, n, t) for w, (n, t) in sorted(counts.items())))


@pytest.mark.parametrize("cell", ["strong", "high entropy", "flat, other mixture"])
def test_coverage_of_today_and_of_before(cell: str) -> None:
    """Today's limits cover; those of 0.1.0, the double, must fail the same gate."""
    row = measure(CELLS[cell], 30, 5)
    assert row["stated"] >= 20
    assert row["covered"]["new"] >= least_covered(row["stated"])
    assert row["covered"]["old"] < least_covered(row["stated"])


def test_shares_of_ten_times_the_responses_have_one_scale() -> None:
    """A value that was served in few contexts only: its z is not its share, its excess is."""
    everything = table(COIN, {3: (10_000, 6_000)})  # excess 1,000 of 10,000 coins
    wide = table(COIN, {3: (10_000, 5_500)})  # half of it, everywhere
    narrow = table(COIN, {1: (500, 350)})  # a tenth of it, in a twentieth of the contexts
    found = share_intervals([wide, narrow], everything, [1.0, 1.0])
    np.testing.assert_allclose(found.estimate, [0.5, 0.1], atol=0.02)
    assert narrow.z / everything.z > 0.4


def test_limits_hold_for_all_slots_together() -> None:
    """Thirteen values are one family wherever they stand; half of 5 % pays for the selection."""
    own = table(COIN, {1: (100, 60)})
    found = share_intervals([own] * 13, own, [1.0] * 13)
    assert ndtr(-found.critical_value) * 2 == pytest.approx(1 - 0.975 ** (1 / 13))


def test_near_the_threshold_nothing_is_said() -> None:
    own = table(COIN, {1: (400, 240)})
    assert not is_clear([Rejection(-5.0, -4.3, own)])
    assert is_clear([Rejection(-5.0, -4.3, own), Rejection(-40.0, -4.3, own)])
    assert is_clear([Rejection(-5000.0, -4.3, own)])
    assert not is_clear([Rejection(0.0, -4.3, own), Rejection(-4.3, -4.3, own)])
    found = share_intervals([own], own, [1.0], clear=False)
    assert (found.lower.tolist(), found.upper.tolist()) == ([0.0], [1.0])


@pytest.mark.parametrize("strength", [0.0, 2.0, 4.0, 5.0, 7.0])
def test_selection_alone(strength: float) -> None:
    """The argument of `is_clear` in its own world: one normal key, tested at z = 4.

    Of the runs that reject, those that reject clearly and miss at level .025 are at most 5 %; with
    intervals at every rejection they are up to all of them, which is what the rule is for.
    """
    rng = np.random.default_rng(3)
    z = strength + rng.standard_normal(4_000_000)
    rejected, missed = z > 4.0, np.abs(z - strength) > 2.2414
    clear = rejected & (z > 4.0 + 2.1)
    limit = binom.ppf(1 - 1e-6, int(rejected.sum()), 0.05)
    assert (clear & missed).sum() <= limit
    if strength == 2.0:
        assert (rejected & missed).sum() / rejected.sum() > 0.3


def test_nothing_scored_is_the_whole_range() -> None:
    empty, own = table(COIN, {}), table(COIN, {2: (50, 40)})
    for values, reference in (([empty, own], own), ([own], empty), ([empty], empty)):
        found = share_intervals(values, reference, [0.3] * len(values))
        assert np.isfinite([found.estimate, found.lower, found.upper]).all()
        assert (found.lower[0], found.upper[0]) == (0.0, 1.0)
    assert share_intervals([], own, []).estimate.shape == (0,)


def test_signed_weights_and_extremes_stay_finite() -> None:
    """Limits in order and within [0, 1] for tables of one class, of extreme sums, of both signs."""
    top = len(LAW.masses) - 1
    tables = [
        table(LAW, {255: (1, 0)}),
        table(LAW, {255: (1, top)}),
        table(LAW, {-7: (30, 0), 255: (10, 10 * top)}),
        table(LAW, {-7: (30, 30 * top), 255: (10, 0)}),
    ]
    for reference in tables:
        found = share_intervals(tables, reference, [0.1, 0.4, 1.0, 3.0])
        assert (found.lower >= 0).all()
        assert (found.lower <= found.estimate).all()
        assert (found.estimate <= found.upper).all()
        assert (found.upper <= 1).all()


@pytest.mark.parametrize(
    ("ratios", "level"), [([1.0, 1.0], 0.95), ([0.0], 0.95), ([math.nan], 0.95), ([1.0], 1.0)]
)
def test_domain(ratios: list[float], level: float) -> None:
    own = table(COIN, {1: (10, 5)})
    with pytest.raises(UsageError):
        share_intervals([own], own, ratios, level)


def test_worlds_default_to_an_even_log() -> None:
    assert World().trained is World().served
