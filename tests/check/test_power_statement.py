"""The power of a negative verdict: found as often as stated, and never stated for more."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import provenance.check.power_statement as statement
from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.power_statement import (
    POWER,
    Power,
    Setting,
    find_shortfall,
    say_power,
    state_power,
)
from provenance.marks.alpha import family_weights
from provenance.marks.own import Gumbel
from provenance.stats.families import weighted_holm
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable
from provenance.storage.documents import read_fields
from provenance.suspect.access.outputs import observe
from tests.world.power.response import CURVES, RESULTS, make_curves, make_strongest
from tests.world.synthetic import innocent, learn, write_outputs

FAST = CheckSettings(placebo_keys=60)
TEXT = Setting("gumbel", 2, "outputs", "log-sqrt", "none")
ALPHA = 5e-5


@pytest.fixture(scope="module")
def world(synthetic_world):
    return synthetic_world


@pytest.fixture(scope="module")
def negative(world):
    outputs, prompts = innocent("ordinary", world, np.random.default_rng(1), 600)
    path = write_outputs(world.folder / "power-innocent.jsonl", outputs, prompts)
    seen = observe([path], world.tokenizer, world.keyring.public)
    return check_outputs(seen, world.index, world.keyring, FAST)


def unscored(counts: dict[int, int]) -> ClassTable:
    """A table of so many coins per weight; the scores do not matter."""
    weights = np.repeat(list(counts), list(counts.values()))
    return ClassTable.from_scores(weights, np.zeros_like(weights), Gumbel().null_law)


def test_a_negative_verdict_states_its_power_and_a_positive_one_does_not(world, negative):
    assert negative.conclusion == "no evidence"
    power = negative.power
    assert power is not None
    assert power.key == "global"
    assert power.alpha == pytest.approx(FAST.alpha / 2)
    assert power.outcome == "share"
    assert power.curve is not None
    outputs = learn(world, np.random.default_rng(5), 200, 80)
    path = write_outputs(world.folder / "power-guilty.jsonl", outputs)
    seen = observe([path], world.tokenizer, world.keyring.public)
    found = check_outputs(seen, world.index, world.keyring, FAST)
    assert found.conclusion == "evidence"
    assert found.power is None
    assert found.to_json()["power"] is None


def test_at_the_stated_shift_the_whole_check_finds_the_suspect_as_often_as_stated(negative):
    """Scores drawn under the stated alternative, for the very coins of the check; Holm included."""
    power = negative.power
    own = negative.hypotheses[0]
    assert own.name == "global"
    law = Gumbel().null_law
    levels = np.arange(len(law.masses))
    weights = np.array([item.weight for item in own.table.classes])
    counts = np.array([item.count for item in own.table.classes])

    def tilted(theta: float) -> np.ndarray:
        """Law of a score per class, (classes, levels)."""
        raised = law.probabilities * np.exp(theta * weights[:, None] * levels)
        return raised / raised.sum(axis=1, keepdims=True)

    def mean_shift(theta: float) -> float:
        gain = (weights * counts) @ (tilted(theta) @ levels - law.mean)
        return float(gain / math.sqrt(law.variance) / (weights @ counts))

    low, high = 0.0, 0.05
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if mean_shift(middle) < power.shift else (low, middle)
    masses = tilted(high)
    rng = np.random.default_rng(0)
    families = family_weights([(h.slot, h.value) for h in negative.hypotheses])
    tails = np.array([h.tail.log10_p for h in negative.hypotheses])
    trials, found = 600, 0
    for _ in range(trials):
        totals = [int(rng.multinomial(n, p) @ levels) for n, p in zip(counts, masses, strict=True)]
        classes = [replace(c, total=t) for c, t in zip(own.table.classes, totals, strict=True)]
        tails[0] = log10_upper_tail(ClassTable(tuple(classes)))
        found += weighted_holm(tails, families)[0] <= math.log10(negative.alpha)
    # five standard errors: a false alarm once in a million
    assert abs(found / trials - power.power) < 5 * math.sqrt(0.09 / trials)


def test_a_stated_share_is_found_although_the_lab_saw_only_one_student_a_share():
    """Labs and suspects drawn with noise: at the stated share, found with .9 in 95 % of labs."""
    rng = np.random.default_rng(3)
    shares = np.array([0.02, 0.05, 0.1, 0.3, 1.0])
    lab_coins = 20_000.0
    table = unscored({20: 4_000, 40: 3_000, 90: 800})

    def truth(share: float | np.ndarray) -> float | np.ndarray:
        """Mean shift per coin: what students absorb bends down."""
        return 0.13 * share**0.8

    found = statement.detectable_shift(table, ALPHA, POWER)
    safe = total = 0
    for _ in range(400):
        z = math.sqrt(lab_coins) * truth(shares) + rng.normal(size=shares.size)
        curve = {"effective_coins": lab_coins, "points": list(zip(shares, z, strict=True))}
        stated = statement._share(curve, found, table.effective_coins)
        if stated is not None:
            total += 1
            safe += truth(stated) >= found.shift
    assert total > 380
    assert safe / total > 0.93


def test_no_share_is_stated_where_nothing_was_measured():
    table = unscored({20: 5_000, 60: 500})
    for other in (
        replace(TEXT, scheme="green"),
        replace(TEXT, context_width=3),
        replace(TEXT, access="weights", weight_rule="presence"),
        replace(TEXT, weight_rule="presence"),
        replace(TEXT, access="logprobs", weight_rule="residual"),
    ):
        found = state_power(table, "global", ALPHA, other)
        assert (found.outcome, found.share, found.curve) == ("no curve", None, None)
        assert found.shift > 0
        assert "was not measured" in say_power(found)


def test_few_coins_find_no_share_and_too_few_find_nothing():
    few = state_power(unscored({20: 150, 40: 60}), "global", ALPHA, TEXT)
    assert (few.outcome, few.share) == ("no share", None)
    assert "Even a suspect trained on marked responses alone" in say_power(few)
    three = ClassTable.from_scores([1] * 3, [0] * 3, NullLaw((1, 1)))
    none = state_power(three, "global", ALPHA, TEXT)
    assert (none.outcome, none.shift, none.z) == ("cannot reject", None, None)
    assert "too few coins" in say_power(none)


def test_what_could_not_find_a_fully_trained_suspect_is_a_shortfall_with_counts():
    """With a curve the curve decides; without one, what the lab saw at most, and 1,000 coins."""
    few = unscored({20: 150, 40: 60})
    said = find_shortfall(state_power(few, "global", ALPHA, TEXT), few, TEXT)
    assert "210 coins of the global key (187 effective)" in said
    enough = unscored({20: 6_000, 40: 6_000})
    assert find_shortfall(state_power(enough, "global", ALPHA, TEXT), enough, TEXT) is None
    other = replace(TEXT, weight_rule="presence")
    said = find_shortfall(state_power(few, "global", ALPHA, other), few, other)
    assert "at least 1,000 effective coins" in said
    assert find_shortfall(state_power(enough, "global", ALPHA, other), enough, other) is None
    three = ClassTable.from_scores([1] * 3, [0] * 3, NullLaw((1, 1)))
    assert "cannot reject" in find_shortfall(state_power(three, "g", ALPHA, TEXT), three, TEXT)


@pytest.mark.parametrize(
    ("law", "mark", "coins"),
    [(NullLaw((3, 1)), "green", 2_500), (NullLaw((1, 4, 6, 4, 1)), "tournament", 1_500)],
)
def test_without_a_curve_the_strongest_student_of_a_like_mark_is_the_bound(law, mark, coins):
    setting = replace(TEXT, scheme="foreign")
    few, more = (
        ClassTable.from_scores(np.ones(n, int), np.zeros(n, int), law) for n in (coins, 4 * coins)
    )
    said = find_shortfall(state_power(few, "global", ALPHA, setting), few, setting)
    assert f"under a mark like {mark}" in said
    assert find_shortfall(state_power(more, "global", ALPHA, setting), more, setting) is None


def test_more_coins_find_smaller_shares_until_the_lab_had_no_more():
    """Beyond the lab's coins the lab's z is not carried on: the share stops falling."""
    stated = [
        state_power(unscored({20: n, 40: n}), "global", ALPHA, TEXT) for n in (3_000, 6_000, 12_000)
    ]
    shares = [power.share for power in stated]
    assert all(share is not None for share in shares)
    assert shares == sorted(shares, reverse=True)
    huge = [
        state_power(unscored({20: n, 40: n}), "global", ALPHA, TEXT) for n in (100_000, 1_000_000)
    ]
    assert huge[0].share == pytest.approx(huge[1].share, rel=0.03)
    assert huge[1].share > 0.2


def test_the_curves_of_the_package_are_those_of_the_recorded_results():
    """`python -m benchmarks.power.response` writes them; nobody edits them by hand."""
    recorded = json.loads(Path(RESULTS).read_text())
    kept = json.loads(Path(CURVES).read_text())
    assert kept["curves"] == make_curves(recorded)
    assert kept["strongest"] == make_strongest(recorded)
    assert any(curve["setting"] == asdict(TEXT) for curve in kept["curves"])


def test_a_curve_with_recorded_coins_needs_no_bound():
    """What a later run of the benchmark gives: every way of access gets its curve."""
    record = {"world": "gumbel-k2-s20", "access": "weights", "method": "provenance-base"}
    records = [
        {**record, "share": share, "z": 50 * share, "tokens": 9, "effective_coins": 1000 * share}
        for share in (0.1, 1.0)
    ]
    (curve,) = make_curves({"records": records, "command": "c"})
    assert curve["setting"]["access"] == "weights"
    assert (curve["effective_coins"], curve["effective_coins_are"]) == (1000.0, "recorded")
    records[0]["effective_coins"] = None
    assert make_curves({"records": records, "command": "c"}) == []


def test_the_json_form_says_the_same_and_the_curve_travels_with_it(negative):
    data = json.loads(json.dumps(negative.to_json(), allow_nan=False))["power"]
    assert read_fields(Power, data) == negative.power
    assert data["curve"]["measured_by"]
    if data["share"] is not None:
        assert "another one may absorb less" in say_power(negative.power)


@given(st.floats(1e-4, 1.0))
def test_the_percentage_is_never_below_the_share(share):
    power = Power("global", ALPHA, POWER, 0.1, 5.0, True, "share", share, {"students": "s"})
    _, stated = say_power(power).split("suspect with at least ")
    assert float(stated.split(" %")[0]) >= 100 * share - 1e-6
