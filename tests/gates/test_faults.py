"""Faults of the disk, a few of each command; all of them: `make gates`."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest

from tests.gates.faults import LOGS, MODES, READERS, SCENARIOS, collecting
from tests.suspect.collect.server import serve

_BY_NAME = {one.name: one for one in SCENARIOS}
_QUICK = (
    *("index build --force", "index merge", "check -o --force", "check --sequential, second"),
    *("keys new", "keys add-value", "evidence sign", "case new", "collect import"),
    *("verify", "check", "collect verify", "log audit"),
)
"""The others are as slow tests are: of their own mechanisms none is left out here."""


def _slow_but(scenarios):
    return [
        pytest.param(one, id=one.name, marks=[] if one.name in _QUICK else pytest.mark.slow)
        for one in scenarios
    ]


def _draw_mode(name):
    return random.Random(f"mode of {name}").sample(MODES, 1)


@pytest.mark.parametrize("scenario", _slow_but(SCENARIOS))
def test_a_fault_leaves_an_output_as_before_or_as_after(gate, scenario):
    tally = gate.try_all(scenario, _draw_mode(scenario.name), sample=1)
    assert tally.tried == 1
    assert not tally.failures


def test_a_collection_goes_on_after_a_fault(gate):
    pytest.importorskip("openai")
    with serve() as server:
        assert not gate.try_all(collecting(server.url), ["kill"], sample=1).failures


@pytest.mark.parametrize("scenario", _slow_but(READERS))
def test_a_disk_that_fails_is_no_answer(gate, scenario):
    assert not gate.try_reads(scenario, sample=1).failures


@pytest.mark.parametrize("form", LOGS)
def test_what_a_log_acknowledged_is_there(gate, form):
    tally = gate.try_log(form, ["half write", "torn write"], sample=1, seed=0)
    assert tally.tried == 2
    assert not tally.failures


def test_a_command_that_writes_in_place_is_found_out(gate):
    careless = replace(_BY_NAME["keys add-value"], action="tests.gates.faults:write_carelessly")
    tally = gate.try_all(careless, ["torn write"])
    assert any("neither as before nor as after" in one for one in tally.failures)


def test_a_whole_bundle_is_replaced_in_one_step_or_not_at_all(gate):
    """Where evidence was deleted before the new one was there, a full disk lost both."""
    tally = gate.try_all(_BY_NAME["check -o --force"], ["half write"], sample=1)
    assert tally.tried == 1
    assert not tally.failures
