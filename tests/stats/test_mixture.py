"""The e-value of a table: against plain sums, its rounding, its grid, its price."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy.special import logsumexp

from provenance.stats.eprocess import start
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.mixture import GRID, log10_mixture
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable

Laws = dict[str, NullLaw]


def slow_mixture(table: ClassTable, slopes: tuple[float, ...]) -> float:
    """log10 E from the definition, in plain sums over the levels."""
    logs = []
    for slope in slopes:
        term = slope * table.statistic
        for item in table.classes:
            levels = [(j, m) for j, m in enumerate(item.law.masses) if m]
            exponents = [slope * item.weight * j + math.log(m / item.law.total) for j, m in levels]
            term -= item.count * float(logsumexp(exponents))
        logs.append(term)
    return float(logsumexp(logs) - math.log(len(logs))) / math.log(10)


# --- the formula -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["green", "rare", "tournament", "gumbel", "holes"])
@pytest.mark.parametrize("z", [-3.0, 0.0, 2.0, 8.0])
def test_mixture_against_plain_sums(
    name: str, z: float, laws: Laws, table_at: Callable[..., ClassTable]
) -> None:
    """Signed weights, every law; rounded down, by very little."""
    law = laws[name]
    table = table_at(law, {-5: 20, 1: 400, 2: 100, 7: 9}, z)
    slopes = start(law, 7, 1).slopes
    difference = log10_mixture(table, slopes) - slow_mixture(table, slopes)
    assert abs(difference) < 1e-8


def test_rounding_is_downwards_and_small(laws: Laws) -> None:
    """A million coins: the term of a single slope against exact rational moments is below it."""
    table = ClassTable((ScoreClass(1, laws["green"], 1_000_000, 252_500),))
    slope = 0.01
    exact = slope * 252_500 - 1_000_000 * math.log1p(0.25 * math.expm1(slope))
    found = log10_mixture(table, (slope,)) * math.log(10)
    assert exact - 1e-7 < found <= exact + 1e-9


def test_never_overflows(laws: Laws) -> None:
    giant = ClassTable((ScoreClass(2**40, laws["gumbel"], 2**30, 2**30 * 88),))
    assert log10_mixture(giant, start(laws["gumbel"], 2**40, 1).slopes) > 1e6
    for slopes in (start(laws["green"], 1, 1).slopes, GRID):
        loser = ClassTable((ScoreClass(2**40, laws["green"], 2**40, 0),))
        assert -1e300 < log10_mixture(loser, slopes) < -1e6
    assert log10_mixture(ClassTable(()), GRID) == 0.0


def test_grid_is_that_of_the_statistics() -> None:
    assert (len(GRID), GRID[0], GRID[-1]) == (48, 1e-3, 4.0)
    np.testing.assert_allclose(np.diff(np.log(GRID)), math.log(4000) / 47)
    np.testing.assert_allclose(start(NullLaw.bernoulli(2**30), 1, 1).slopes, GRID)
    assert start(NullLaw.bernoulli(2**30), 63, 1).slopes[0] == pytest.approx(1e-3 / 63)


def test_slopes_follow_the_spread_of_the_law(laws: Laws) -> None:
    """A score with four times the deviation gets a quarter of the slopes; ten million coins work.

    Without that, slopes of 1e-3 are too steep here: the loss would be 15 orders.
    """
    law = laws["gumbel"]
    coins = 10_000_000
    total = round(coins * law.mean + 5 * math.sqrt(coins * law.variance))
    table = ClassTable((ScoreClass(1, law, coins, total),))
    assert -log10_upper_tail(table) - log10_mixture(table, start(law, 1, 1).slopes) < 2.4
    assert -log10_upper_tail(table) - log10_mixture(table, GRID) > 10


@pytest.mark.parametrize("z", [3, 5, 7, 10])
def test_loss_against_the_fixed_test(z: int, laws: Laws) -> None:
    """About log10(z^2 ln 4000) orders (statistics.md section 3), within a tenth."""
    total = round(25_000 + z * math.sqrt(100_000 * 3 / 16))
    table = ClassTable((ScoreClass(1, laws["green"], 100_000, total),))
    loss = -log10_upper_tail(table) - log10_mixture(table, start(laws["green"], 1, 1).slopes)
    assert loss == pytest.approx(math.log10(z * z * math.log(4000)), abs=0.1)
