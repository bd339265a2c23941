"""What controls say when they have nothing to test; wording of earlier verdicts still verifies."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest

from provenance.check.controls import control_slot, control_unserved
from provenance.check.findings import Control
from provenance.check.score import WeightedPairs, open_coins
from provenance.evidence.older import means_the_same
from provenance.marks.sharing import Groups
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable

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


@dataclass(frozen=True)
class Random:
    """A key of random coins; with `shared`, pairs of equal context share a coin."""

    slot: str
    value: str
    shared: bool = False

    def group(self, contexts, tokens):
        if not self.shared:
            return None
        _, first, coins = np.unique(contexts[:, 0], return_index=True, return_inverse=True)
        return Groups(coins, first, first)

    def score(self, contexts, tokens):
        return np.random.default_rng(int(self.value)).integers(0, 2, tokens.size)


def _all_tails(tests):
    """The definition: an exact tail of every key."""
    return min(
        log10_upper_tail(ClassTable.from_scores(coins.weights, coins.scores, LAW))
        for pairs, key in tests
        for coins in [open_coins(pairs, key)]
    )


@pytest.mark.parametrize("seed", range(6))
def test_one_tail_for_keys_on_the_same_coins_is_the_smallest_of_all(seed):
    rng = np.random.default_rng(seed)
    pooled = {
        slot: WeightedPairs(
            np.stack([np.sort(rng.integers(0, 9, 60)), np.arange(60)], axis=1).astype(np.uint32),
            np.arange(60, dtype=np.uint32),
            rng.integers(1, 30, 60),
        )
        for slot in ("week", "cohort")
    }
    keys = [
        Random(slot, str(100 * seed + i), shared=i % 5 == 4)
        for i, slot in enumerate(["week", "cohort"] * 20)
    ]
    found = control_unserved(pooled, keys, LAW)
    tests = [(pooled[key.slot], key) for key in keys]
    expected = min(0.0, _all_tails(tests) + np.log10(len(tests)))
    assert found.log10_p == pytest.approx(expected, abs=1e-9)


def test_keys_of_which_each_has_other_coins_need_a_tail_each():
    """The double: the largest sum over keys with other coins is not the smallest p."""
    pairs = WeightedPairs(
        np.stack([np.arange(60) // 30, np.arange(60)], axis=1).astype(np.uint32),
        np.arange(60, dtype=np.uint32),
        np.ones(60, dtype=np.int64),
    )
    tests = [(pairs, Random("week", str(i), shared=i % 2 == 1)) for i in range(40)]
    sums = [(one.weights @ one.scores, i) for i, one in enumerate(open_coins(*t) for t in tests)]
    largest = tests[max(sums)[1]]
    assert _all_tails([largest]) > _all_tails(tests) + 1e-6
    found = control_unserved({"week": pairs}, [key for _, key in tests], LAW)
    assert found.log10_p == pytest.approx(min(0.0, _all_tails(tests) + np.log10(40)), abs=1e-9)


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
