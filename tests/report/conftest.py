"""Verdicts of every kind, from real checks of a small synthetic world."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np
import pytest

from benchmarks.calibration.world import innocent, learn, write_outputs
from provenance.check import CheckSettings, check_outputs
from provenance.suspect.outputs import count_positions, observe, read_positions
from provenance.suspect.positions import split_positions
from provenance.trajectory import trace_evidence

Json = dict[str, Any]


@pytest.fixture(scope="session")
def cases(synthetic_world, tmp_path_factory) -> dict[str, tuple[Json, Json | None, Json | None]]:
    """verdict, trajectory and plan of each kind, as JSON gives them back."""
    world, folder = synthetic_world, tmp_path_factory.mktemp("report")
    rng = np.random.default_rng(5)
    guilty = write_outputs(folder / "guilty.jsonl", learn(world, rng, 200, 80))
    outputs, prompts = innocent("ordinary", world, rng)
    clean = write_outputs(folder / "innocent.jsonl", outputs, prompts)
    settings = CheckSettings(placebo_keys=80)

    def check(path, innocents=None):
        seen = observe([path], world.tokenizer, world.keyring.public)
        verdict = check_outputs(seen, world.index, world.keyring, settings, innocents)
        positions = read_positions([path], world.tokenizer, world.keyring.public)
        parts = [count_positions(p) for p in split_positions(positions, 50)]
        traced = trace_evidence(parts, world.index, world.keyring, settings.rule)
        return json.loads(json.dumps(verdict.to_json())), json.loads(json.dumps(traced.to_json()))

    fair = {"fair": observe([clean], world.tokenizer, world.keyring.public)}
    unfair = {"leak": observe([guilty], world.tokenizer, world.keyring.public)}
    found, grown = check(guilty, fair)
    none, flat = check(clean)
    invalid, _ = check(guilty, unfair)
    untested = {**copy.deepcopy(none), "conclusion": "nothing scored", "log10_p": 0.0}
    untested |= {"hypotheses": [], "headline": None, "power": None}
    untested["controls"] = [
        {**c, "placebo_z": [], "log10_p": None, "detail": "nothing scored"}
        for c in none["controls"]
    ]
    twins = copy.deepcopy(none) | {"found_evidence": True}
    twins["twins"] = {
        **{"pairs": 300, "favour_served": 251, "reused": 0, "equal": 0, "alpha": 5e-5},
        **{"rejected": True, "log10_p": -31.25},
    }
    planned = copy.deepcopy(found) | {"exploratory": False}
    planned["plan"] = {"sha256": "ab" * 32, "timestamp": "2026-11-20T10:00:00Z, Example TSA"}
    plan = {"suspect": "fast-7b of Example Corp.", "created": "2026-11-19"}
    return {
        "evidence": (found, grown, None),
        "none": (none, flat, None),
        "invalid": (invalid, grown, None),
        "untested": (untested, None, None),
        "twins": (twins, flat, None),
        "planned": (planned, grown, plan),
    }
