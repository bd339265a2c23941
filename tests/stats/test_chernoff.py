"""Cheap bounds: never below the exact tail, near it, and an estimate that is nearer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provenance.stats.chernoff import bound_tails
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable


def _exact(law, count, total):
    """The reported tail of `count` coins whose scores add up to `total`."""
    highest = law.support[-1]
    scores = np.zeros(count, dtype=np.int64)
    scores[: total // highest] = highest
    if total % highest:
        scores[total // highest] = total % highest
    return log10_upper_tail(ClassTable.from_scores(np.ones(count, dtype=np.int64), scores, law))


@pytest.mark.parametrize("name", ["green", "tournament", "gumbel"])
def test_a_bound_is_above_the_exact_tail_and_near_it(laws, name):
    law = laws[name]
    rng = np.random.default_rng(7)
    counts = rng.integers(20, 4000, 40)
    z = rng.uniform(0.5, 12.0, 40)
    totals = np.ceil(counts * law.mean + z * np.sqrt(counts * law.variance)).astype(np.int64)
    totals = np.minimum(totals, counts * law.support[-1])
    quick = bound_tails(law, counts, totals)
    exact = np.array([_exact(law, int(n), int(x)) for n, x in zip(counts, totals, strict=True)])
    assert np.all(quick.bound >= exact - 1e-9)
    assert np.all(quick.bound - exact <= 0.6 + 0.5 * np.log10(2 * np.pi * np.maximum(z, 1) ** 2))
    assert np.all(quick.estimate <= quick.bound)
    assert np.abs(quick.estimate - exact)[z > 2].max() < 0.35


@settings(max_examples=60, deadline=None)
@given(
    masses=st.lists(st.integers(1, 9), min_size=2, max_size=5),
    count=st.integers(0, 12),
    part=st.floats(0, 1),
)
def test_a_bound_is_above_the_tail_by_enumeration(masses, count, part):
    law = NullLaw(tuple(masses))
    total = round(part * count * (len(masses) - 1))
    pmf = np.ones(1)
    for _ in range(count):
        pmf = np.convolve(pmf, law.probabilities)
    quick = bound_tails(law, np.array([count]), np.array([total]))
    assert 10.0 ** quick.bound[0] >= pmf[total:].sum() * (1 - 1e-9)
    assert quick.bound[0] <= 0.0
    if total <= count * law.mean:
        assert quick.bound[0] == pytest.approx(0.0, abs=1e-3)


def test_an_estimate_is_no_bound(laws):
    """The double: a report of estimates would be below the truth somewhere."""
    law = laws["green"]
    counts = np.arange(10, 60)
    totals = counts - 2
    exact = np.array([_exact(law, int(n), int(x)) for n, x in zip(counts, totals, strict=True)])
    assert np.any(bound_tails(law, counts, totals).estimate < exact - 1e-6)
    assert np.all(bound_tails(law, counts, totals).bound >= exact - 1e-9)
