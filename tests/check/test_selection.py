"""The innocent stay innocent where responses end: logs that lose ends are seen or not believed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.selection import ENDS, UNSERVED, weigh_selection
from provenance.coins.contexts import pack
from provenance.marks import as_mark
from provenance.suspect.observations import Expectations
from tests.world import ends

FAST = CheckSettings(placebo_keys=50)
RESPONSES, SEED = 8_000, 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return ends.make_world(tmp_path_factory.mktemp("ends"), SEED, RESPONSES)


@pytest.fixture(scope="module")
def indexes(world):
    kinds = {"right": ends.keep_all, "old": ends.drop_end, "liar": ends.drop_end_and_claim}
    return {name: world.index(name, keep) for name, keep in kinds.items()}


@pytest.fixture(scope="module")
def innocent(world, indexes):
    outputs = ends.sample(world.teacher, np.random.default_rng(1), RESPONSES)
    return world.observe("innocent", outputs, indexes["right"])


def _controls(verdict):
    return {control.name: control for control in verdict.controls}


def test_a_right_log_names_its_end_token_and_loses_no_window(world, indexes):
    right, old = indexes["right"].manifest, indexes["old"].manifest
    assert (right.unended, right.end_tokens) == (0, [ends.END])
    assert old.unended == old.marked_responses
    served = [sum(v.responses for s in m.slots for v in s.values) for m in (right, old)]
    ended = sum(ids[-1] == ends.END for ids in world.served)
    assert served[0] - served[1] > 0.9 * ended  # nearly every window before an end is a new one


def test_an_innocent_passes_under_a_right_log_with_every_control(world, indexes, innocent):
    verdict = check_outputs(innocent, indexes["right"], world.keyring, FAST)
    assert verdict.conclusion == "no evidence"
    assert not verdict.reservations
    controls = _controls(verdict)
    assert {UNSERVED, ENDS} <= set(controls)
    assert all(control.passed for control in controls.values()), verdict.controls
    assert controls[ENDS].log10_p is not None


def test_the_double_that_lost_its_ends_and_says_it_did_not_is_seen(world, indexes, innocent):
    """The fault is real: the same innocent scores higher; and the control of ends cannot pass."""
    right = check_outputs(innocent, indexes["right"], world.keyring, FAST)
    wrong = check_outputs(innocent, indexes["liar"], world.keyring, FAST)
    assert wrong.headline.tail.z > right.headline.tail.z + 1
    # an index of this log names no end token: the statement of the right one is used to see it
    ends_named = replace(indexes["liar"].manifest, ends={str(ends.END): 1})
    object.__setattr__(indexes["liar"], "manifest", ends_named)
    seen = _controls(check_outputs(innocent, indexes["liar"], world.keyring, FAST))
    assert not seen[ENDS].passed
    assert seen[ENDS].log10_p < -6


def test_a_student_that_learnt_where_to_end_passes_under_a_right_log(world, indexes):
    """Where the coins chose the end it is never followed: its last windows make up for that."""
    outputs = world.learn(np.random.default_rng(6), RESPONSES, 0.95)
    strong = world.observe("strong", outputs, indexes["right"])
    verdict = check_outputs(strong, indexes["right"], world.keyring, FAST)
    assert verdict.conclusion == "evidence", verdict.reasons
    control = _controls(verdict)[ENDS]
    assert control.passed, control
    # the double: what was expected before kept tokens alone
    own = (strong.tokens == ends.END) & (strong.expected > 0)
    followed = Expectations(strong.contexts[own], strong.tokens[own], strong.expected[own], {})
    wrong = check_outputs(replace(strong, ends=followed), indexes["right"], world.keyring, FAST)
    # few coins in so small a world: the full one (benchmarks.innocents) fails in 86 of 90 keys
    assert _controls(wrong)[ENDS].log10_p < -2.5 < -1 < control.log10_p


def test_weights_of_the_controls_see_no_coin(world, indexes, innocent):
    pairs = weigh_selection(innocent, indexes["right"], as_mark(world.keyring))
    key = ("global", "")
    served = indexes["right"].lookup(1, pack(pairs.unserved[key].contexts))
    assert not served.query.size
    assert (pairs.ends[key].tokens == ends.END).all()
    assert len(pairs.ends[key]) > 100


def test_evidence_against_a_log_without_ends_needs_an_innocent_of_the_size(
    world, indexes, innocent
):
    outputs = world.learn(np.random.default_rng(2), 3000)
    guilty = world.observe("guilty", outputs, indexes["old"], reference=False)
    plain = world.observe("plain", outputs[:300], indexes["old"], reference=False)
    large = world.observe(
        "large",
        ends.sample(world.teacher, np.random.default_rng(3), 6000),
        indexes["old"],
        reference=False,
    )
    small = world.observe(
        "small",
        ends.sample(world.teacher, np.random.default_rng(4), 300),
        indexes["old"],
        reference=False,
    )

    def conclude(index, innocents=None, suspect=guilty):
        return check_outputs(suspect, indexes[index], world.keyring, FAST, innocents)

    assert conclude("right").conclusion == "evidence"
    alone = conclude("old")
    assert alone.conclusion == "inconclusive"
    assert "cut by their length" in alone.reasons[0]
    assert f"{indexes['old'].manifest.unended:,}" in alone.reasons[0]
    assert conclude("old", {"small": small}).conclusion == "inconclusive"
    beside = conclude("old", {"large": large})
    assert beside.conclusion == "evidence"
    assert [one.lifted_by for one in beside.reservations] == ["large"]
    # an innocent that is as guilty as the suspect lifts nothing, and a control says why
    assert conclude("old", {"twin": guilty}).conclusion == "inconclusive"
    # no evidence is no accusation: nothing stands against it
    quiet = conclude("old", suspect=small)
    assert quiet.conclusion in ("no evidence", "inconclusive")
    assert not any("cut by" in reason for reason in quiet.reasons)
    assert plain.positions < guilty.positions
