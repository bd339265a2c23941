"""What controls say when they have nothing to test; wording of earlier verdicts still verifies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from provenance.check.controls import control_slot, control_unserved
from provenance.check.findings import Control
from provenance.check.score import WeightedPairs
from provenance.evidence.older import means_the_same
from provenance.stats.laws import NullLaw

LAW = NullLaw((1, 1))


@dataclass(frozen=True)
class Opened:
    slot: str
    value: str

    def group(self, contexts, tokens):
        return None

    def score(self, contexts, tokens):
        return np.zeros(tokens.size, dtype=np.int64)


def _pairs(count):
    contexts = np.arange(2 * count, dtype=np.uint32).reshape(count, 2)
    return WeightedPairs(contexts, contexts[:, 0], np.ones(count, dtype=np.int64))


def test_unserved_values_that_had_no_coins_are_not_called_missing():
    keys = [Opened("week", "a"), Opened("week", "b"), Opened("cohort", "c")]
    pooled = {"week": _pairs(0), "cohort": _pairs(0)}
    found = control_unserved(pooled, keys, LAW)
    assert found.passed
    assert found.log10_p is None
    assert found.detail == (
        "nothing tested: 3 keys of unserved values, but no pair in a context of week, cohort was "
        "scored"
    )
    assert "1 key of" in control_unserved(pooled, keys[:1], LAW).detail


def test_a_keyring_without_unserved_values_is_said_to_have_none():
    found = control_unserved({"week": _pairs(5)}, [], LAW)
    assert found.detail == "nothing tested: the keyring has no unserved value"
    assert found.log10_p is None


def test_a_control_slot_says_which_of_the_two_was_missing():
    assert "0 pairs" in control_slot(_pairs(0), [Opened("global", "")], LAW).detail
    assert "0 keys to try on 7 pairs" in control_slot(_pairs(7), [], LAW).detail
    assert control_slot(_pairs(7), [Opened("global", "")], LAW).log10_p is not None


@pytest.mark.parametrize(
    ("name", "old"),
    [
        ("unserved values", "the keyring has no unserved value"),
        ("control slot", "no context of the control slot was scored"),
    ],
)
def test_earlier_words_are_accepted_for_nothing_tested_and_for_that_alone(name, old):
    found = Control(name, True, None, "nothing tested: in the words of today")
    stated = Control(name, True, None, old)
    for is_old in (False, True):
        assert means_the_same(stated, found, is_old=is_old)
        other = replace(stated, detail="nothing worth mentioning")
        assert not means_the_same(other, found, is_old=is_old)
        tested = Control(name, False, -5.0, "2 keys, 9 coins: smallest log10 p -5.00 (global)")
        assert not means_the_same(stated, tested, is_old=is_old)
        swapped = Control("placebo keys (global)", True, None, "nothing scored")
        assert not means_the_same(replace(swapped, detail=old), swapped, is_old=is_old)
