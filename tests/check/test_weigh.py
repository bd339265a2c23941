"""The weight rules by hand: what is weighed, what is not, and where they are bounded."""

from __future__ import annotations

import numpy as np
import pytest

from provenance.check.weigh import MAXIMAL_WEIGHTS, PairCounts, choose_rule, refuse_retired, weigh
from provenance.errors import UsageError


def _choices(masses, totals, responses, expected, *, sampled=True):
    return PairCounts(
        np.array(masses, dtype=np.float64),
        np.array(totals, dtype=np.int64),
        np.array(responses, dtype=np.int64),
        np.array(expected, dtype=np.float64),
        sampled,
    )


def test_log_sqrt_by_hand():
    found = weigh(_choices([1, 4, 16, 400, 3], [9] * 5, [1, 3, 1023, 10**6, 0], [0] * 5))
    # 4 ln 2, 8 ln 4, 16 ln 1024, capped at N = 16 and n = 1024, and no served response
    assert found.tolist() == [3, 11, 111, 111, 0]
    assert found.max() == MAXIMAL_WEIGHTS["log-sqrt"]


@pytest.mark.parametrize("sampled", [True, False])
def test_a_suspect_that_is_its_own_reference_weighs_nothing(sampled):
    """Up to rounding: the largest difference is scaled to 255 levels, however small it is."""
    expected = np.random.default_rng(1).random(50)
    masses = expected * (1 + 1e-9)
    found = weigh(_choices(masses, [1] * 50, [5] * 50, expected, sampled=sampled), "residual")
    assert not found.any()
    masses[7] += 0.5
    found = weigh(_choices(masses, [1] * 50, [5] * 50, expected, sampled=sampled), "residual")
    assert np.flatnonzero(found).tolist() == [7]
    assert found[7] == 255


def test_residual_is_signed_bounded_and_larger_for_rarer_tokens():
    found = weigh(
        _choices([30, 0, 60, 100, 30], [100] * 5, [9, 9, 9, 9, 0], [5, 30, 30, 0, 5]), "residual"
    )
    more, less, likely, new, unserved = found.tolist()
    assert less < 0 < more
    assert unserved == 0
    assert more > likely * 25 / 30  # per unit of excess the rarer token weighs more
    assert new == found.max() == MAXIMAL_WEIGHTS["residual"]
    twice = weigh(_choices([100, 60], [100] * 2, [9, 9], [0, 0]), "residual")
    assert twice[0] == twice[1]  # both beyond the clip of .4


def test_the_rule_follows_what_is_seen_and_retired_ones_begin_nothing():
    assert choose_rule(sampled=True, has_reference=False) == "log-sqrt"
    assert choose_rule(sampled=True, has_reference=True) == "residual"
    assert choose_rule(sampled=False, has_reference=False) == "residual"
    with pytest.raises(UsageError, match="presence"):
        refuse_retired("presence")
    with pytest.raises(UsageError):
        weigh(_choices([1], [1], [1], [0]), "no such rule")


def test_presence_by_hand():
    """Retired, and still what a verdict of before is verified by."""
    found = weigh(_choices([1, 3, 0, 2], [4] * 4, [1, 95, 5, 0], [0] * 4), "presence")
    assert found.tolist() == [10, 60, 0, 0]  # 63 / 6, 63 * 95 / 100


def test_positions_count_up_to_their_cap():
    """Beyond 65,536 positions of one context a pair weighs no more; below, it does."""
    totals = np.array([1 << 15, 1 << 16, 1 << 17, 1 << 20])
    found = weigh(_choices(0.9 * totals, totals, [9] * 4, 0.1 * totals), "residual")
    assert found.tolist() == [round(255 / np.sqrt(2)), 255, 255, 255]
