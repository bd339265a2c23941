"""Corner tables through the whole chain of p: nothing is NaN, infinite, or above 1."""

from __future__ import annotations

import math

import pytest

from provenance.check.conclusion import attribute_shares
from provenance.check.examine import try_keys
from provenance.keys.schedule import Schedule
from provenance.marks.own import Gumbel
from provenance.stats.eprocess import start
from provenance.stats.laws import NullLaw
from provenance.stats.mixture import log10_mixture
from provenance.stats.null_distribution import NullDistribution
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable

LAWS = {
    "gumbel": Gumbel().null_law,
    "green": NullLaw.bernoulli(2**30),
    "rare": NullLaw.bernoulli(1),
    "constant": NullLaw((0, 5)),
}
SCHEDULE = Schedule.from_shares({"global": 0.1, "week": 0.1}, {"week": ["a", "b"]})


def corners(law: NullLaw) -> dict[str, ClassTable]:
    low, high = law.support[0], law.support[-1]
    rows = {
        "no coin": (),
        "one coin at its best": ((5, 1, high),),
        "all at their best": ((5, 10, 10 * high),),
        "all at their worst": ((5, 10, 10 * low),),
        "negative weights at their best": ((-5, 10, 10 * low),),
        "a million at their best": ((1, 10**6, 10**6 * high),),
        "both ends": ((-3, 4, 4 * high), (5, 4, 4 * high)),
    }
    return {
        name: ClassTable(
            tuple(ScoreClass(weight, law, count, total) for weight, count, total in row)
        )
        for name, row in rows.items()
    }


@pytest.mark.parametrize("law", LAWS)
def test_every_number_of_a_corner_is_finite(law: str) -> None:
    null = LAWS[law]
    for name, table in corners(null).items():
        for tables in ({("global", ""): table}, {("global", ""): table, ("week", "a"): table}):
            for result in try_keys(tables, 1e-4):
                numbers = (result.tail.log10_p, result.log10_adjusted, result.mean_shift)
                assert all(map(math.isfinite, numbers)), (name, numbers)
                assert result.tail.log10_p <= result.log10_adjusted <= 0.0
        shares = attribute_shares(try_keys(tables, 1e-4), SCHEDULE, "evidence", 1e-4)
        assert all(0.0 <= s.lower <= s.estimate <= s.upper <= 1.0 for s in shares)
        distribution = NullDistribution.from_table(table)
        assert 0.0 <= distribution.randomised_p([table.statistic], [0.5])[0] <= 1.0
        if null.variance:
            assert math.isfinite(log10_mixture(table, start(null, 5, 1).slopes))


def test_the_best_of_all_outcomes_has_its_exact_probability() -> None:
    results = try_keys({("global", ""): corners(LAWS["green"])["a million at their best"]}, 1e-4)
    assert results[0].tail.log10_p == pytest.approx(-(10**6) * math.log10(4), rel=1e-12)


def test_nothing_tested_is_no_family() -> None:
    assert try_keys({}, 1e-4) == ()
    assert attribute_shares((), SCHEDULE, "evidence", 1e-4) == ()
