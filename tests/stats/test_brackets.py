"""The Berry-Esseen brackets hold on both sides, are no wider than stated, and are compared."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import mpmath as mp
import numpy as np
import pytest
from scipy import stats

from provenance.errors import NumericalContradictionError
from provenance.marks.own import Gumbel
from provenance.stats import tails
from provenance.stats.crosscheck import SHEVTSOVA_CONSTANT, TiltedMoments, berry_esseen
from provenance.stats.inversion import invert, log10_upper_tail
from provenance.stats.lattice import Lattice
from provenance.stats.laws import NullLaw
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable
from provenance.stats.tails import upper_tail
from tests.world.closed_forms import log10_binomial_tail


def moments_at(table: ClassTable) -> TiltedMoments:
    lattice = Lattice.from_table(table)
    found = TiltedMoments.of(table, lattice.saddle() / lattice.span)
    assert found is not None
    return found


@pytest.mark.parametrize("law", [NullLaw.bernoulli(2**30), Gumbel().null_law])
@pytest.mark.parametrize("coins", [30, 1000, 100_000])
@pytest.mark.parametrize("z", [1.5, 4.0, 9.0])
def test_both_sides_are_those_of_the_theorem(law: NullLaw, coins: int, z: float) -> None:
    """Recomputed from the tilted law by other formulas: normal part +- 2 * .56 * Lyapunov ratio."""
    mean, deviation = float(law.mean), math.sqrt(law.variance)
    total = math.ceil(coins * mean + z * deviation * math.sqrt(coins))
    table = ClassTable((ScoreClass(2, law, coins, total),))
    moments = moments_at(table)
    scores = np.arange(len(law.masses))
    tilted = law.probabilities * np.exp(2 * moments.slope * scores)
    mgf = tilted.sum()
    tilted = tilted / mgf
    centre = tilted @ scores
    variance = coins * 4 * (tilted @ (scores - centre) ** 2)
    third = coins * 8 * (tilted @ np.abs(scores - centre) ** 3) / variance**1.5
    assert moments.third == pytest.approx(third, rel=1e-6)
    u = moments.slope * math.sqrt(variance)
    normal = math.exp(u * u / 2) * stats.norm.sf(u) if u < 30 else 1 / (u * math.sqrt(2 * math.pi))
    slack = 2 * SHEVTSOVA_CONSTANT * third
    chernoff = coins * math.log(mgf) - moments.slope * 2 * total
    lower, upper = berry_esseen(moments)
    expected = min((chernoff + math.log(min(1.0, normal + slack))) / math.log(10), 0.0)
    assert upper == pytest.approx(expected, abs=1e-3)
    assert (lower is None) == (normal <= slack)
    if lower is not None:
        assert lower == pytest.approx(
            (chernoff + math.log(normal - slack)) / math.log(10), abs=1e-3
        )
    exact = log10_upper_tail(table)
    assert exact <= upper + 1e-9
    assert lower is None or exact >= lower - 1e-9


def test_the_constant_is_the_published_one() -> None:
    assert SHEVTSOVA_CONSTANT == 0.56


@pytest.mark.parametrize("wrong", [-0.5, 0.5])
def test_an_inversion_outside_the_bracket_stops_the_program(
    wrong: float, table_at: Callable[..., ClassTable], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half an order on either side, with Lugannani-Rice silent: only the brackets can see it."""
    table = table_at(NullLaw.bernoulli(2**30), {1: 4_000_000}, 2.0)

    def shifted(lattice: Lattice) -> object:
        found = invert(lattice)
        return replace(found, log10_p=found.log10_p + wrong)

    upper_tail(table)
    monkeypatch.setattr(tails, "lugannani_rice", lambda moments, span: None)
    monkeypatch.setattr(tails, "invert", shifted)
    side = "at most" if wrong > 0 else "at least"
    with pytest.raises(NumericalContradictionError, match=f"must be {side} the Berry-Esseen"):
        upper_tail(table)


def exact_rare(threshold: int, coins: int, hits: int) -> float:
    """log10 P(Bin(coins, threshold / 2^32) >= hits) by a sum of positive terms."""
    with mp.workdps(60):
        p = mp.mpf(threshold) / 2**32
        term = mp.binomial(coins, hits) * p**hits * (1 - p) ** (coins - hits)
        total, i = mp.mpf(0), hits
        while i < coins and not (term < total * mp.mpf(10) ** -30 and i > coins * p):
            total += term
            term *= mp.mpf(coins - i) / (i + 1) * p / (1 - p)
            i += 1
        return float(mp.log10(total))


@pytest.mark.parametrize("coins", [10**6, 56 * 10**9, 10**12])
@pytest.mark.parametrize("threshold", [1, 3, 2**32 - 1])
def test_rare_coins_by_the_thousand_million(threshold: int, coins: int) -> None:
    """Bernoulli(2^-32) was 4.3e-5 above exact at 5.6e10 coins and 7.7e-4 at 10^12."""
    often = threshold > 2**31
    rare = 2**32 - threshold if often else threshold
    mean = coins * rare / 2**32
    for hits in (int(mean) + 1, int(mean + 5 * math.sqrt(mean)) + 2):
        law = NullLaw.bernoulli(rare)
        weight = 3
        if often:  # the same coins seen from the other side: a negative weight on the usual score
            law, weight = NullLaw.bernoulli(threshold), -3
        total = coins - hits if often else hits
        table = ClassTable((ScoreClass(weight, law, coins, total),))
        excess = log10_upper_tail(table) - exact_rare(rare, coins, hits)
        assert -1e-12 * max(1.0, mean) <= excess <= 1e-6


@pytest.mark.parametrize("coins", [10**9, 10**10])
def test_how_far_common_coins_are_above(coins: int) -> None:
    """The stated bound of the rounding that is added: 1e-15 per coin, above 1e-6 from 1e9 coins on.

    The closed form is good to 1e-8 in log10 and a few 1e-16 per coin.
    """
    hits = coins // 4 + math.ceil(4 * math.sqrt(coins * 3 / 16))
    table = ClassTable((ScoreClass(1, NullLaw.bernoulli(2**30), coins, hits),))
    exact = float(log10_binomial_tail(hits, coins, 0.25))
    assert -1e-8 <= log10_upper_tail(table) - exact <= 1e-8 + 1e-15 * coins
