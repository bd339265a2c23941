"""Verdicts of every kind, from real checks of a small synthetic world."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.filing import Filing
from provenance.check.findings import PlanReference, Reservation
from provenance.check.plan import Plan
from provenance.check.suspects import judge_suspects, read_suspect
from provenance.check.trajectory import Trajectory, trace_evidence
from provenance.check.twin_test import MeasuredTwins
from provenance.check.verdict import Verdict
from provenance.check.weigh import DEFAULT_RULE
from provenance.evidence.report.several import render_suspects
from provenance.storage.files import write_json
from provenance.suspect.access.outputs import count_positions, observe, read_positions
from provenance.suspect.access.twins import Twins
from provenance.suspect.positions import split_positions
from tests.evidence.report.hostile import make_plan
from tests.world.synthetic import innocent, learn, write_outputs

RESERVED = Reservation(
    "12 of 200 responses were tokenised again, <b>which is biased</b>", "evidence"
)


def measured_twins(pairs: int, favoured: int) -> MeasuredTwins:
    """Twins of which so many served ones are the likelier."""
    differences = np.linspace(0.5, 1.5, pairs)
    differences[: pairs - favoured] *= -1
    twins = Twins((), (), (), 0, 0, {"twins.jsonl": "0" * 64})
    return MeasuredTwins(twins, differences, {"kind": "model"}, {})


@pytest.fixture(scope="session")
def cases(
    synthetic_world, tmp_path_factory
) -> dict[str, tuple[Verdict, Trajectory | None, Plan | None]]:
    """verdict, trajectory and plan of each kind, as JSON gives them back."""
    world, folder = synthetic_world, tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(5)
    guilty = write_outputs(folder / "guilty.jsonl", learn(world, rng, 200, 80))
    clean = write_outputs(folder / "innocent.jsonl", *innocent("ordinary", world, rng, 600))
    few = write_outputs(folder / "few.jsonl", *innocent("ordinary", world, rng))
    quoting = write_outputs(folder / "quoting.jsonl", [world.served[0]] * 3, [_text(world)] * 3)
    settings = CheckSettings(placebo_keys=80)

    def check(path, innocents=None, **more):
        seen = observe([path], world.tokenizer, world.keyring.public)
        verdict = check_outputs(seen, world.index, world.keyring, settings, innocents, **more)
        positions = read_positions([path], world.tokenizer, world.keyring.public)
        parts = [count_positions(p) for p in split_positions(positions, 50)]
        traced = trace_evidence(parts, world.index, world.keyring, DEFAULT_RULE)
        return Verdict.from_json(json.loads(json.dumps(verdict.to_json()))), traced

    fair = {"fair": observe([clean], world.tokenizer, world.keyring.public)}
    unfair = {"leak": observe([guilty], world.tokenizer, world.keyring.public)}
    found, grown = check(guilty, fair)
    none, flat = check(clean)
    invalid, _ = check(guilty, unfair)
    stamp = PlanReference("ab" * 32, "2026-11-20T10:00:00Z, Example TSA")
    planned = replace(found, plan=stamp)
    plan = make_plan("fast-7b of Example Corp.")
    return {
        "evidence": (found, grown, None),
        "none": (none, flat, None),
        "invalid": (invalid, grown, None),
        "untested": (check(quoting)[0], None, None),
        "little": (check(few)[0], None, None),
        "reserved": (check(guilty, reservations=[RESERVED])[0], grown, None),
        "twins": (check(clean, twins=measured_twins(300, 251))[0], flat, None),
        "planned": (planned, grown, plan),
    }


@pytest.fixture(scope="session")
def family_page(cases, tmp_path_factory) -> str:
    """The page of a guilty suspect, an innocent one and one with too little data."""
    folder = tmp_path_factory.mktemp("family")
    for kind in ("evidence", "none", "little"):
        (folder / kind).mkdir()
        write_json(folder / kind / "verdict.json", cases[kind][0].to_json())
    places = [folder / kind for kind in ("evidence", "none", "little")]
    family = judge_suspects([read_suspect(place) for place in places])
    return render_suspects(family, places, Filing("2026-17"), "2026-12-01T10:00:00Z")


def _text(world) -> str:
    from tests.world.synthetic import decode

    return decode(world.served[0])
