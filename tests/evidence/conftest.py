"""A signed, timestamped, wholly disclosed bundle to break; verdicts of every kind to report."""

from __future__ import annotations

import copy
import json
import random
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from benchmarks.authority import Authority
from benchmarks.calibration.world import Teacher, World, innocent, learn, make_world, write_outputs
from provenance.check import CheckSettings, Examination, check_outputs, examine_outputs
from provenance.evidence.bundle import gather_plan, write_bundle
from provenance.evidence.signature import create_signing_key, sign_bundle
from provenance.evidence.timestamp import make_request
from provenance.plan import CONTROLS, Plan, describe_commitments, fingerprint_reference, write_plan
from provenance.suspect.outputs import count_positions, observe, read_positions
from provenance.suspect.positions import split_positions
from provenance.trajectory import trace_evidence
from tests.commands.conftest import run

__all__ = ["run"]

Json = dict[str, Any]

OUTPUTS = 40
SETTINGS = CheckSettings(placebo_keys=50)


@dataclass(frozen=True)
class Lab:
    """folder/bundle is the bundle; folder/signing.key and .pub.pem; folder/plan.json and so on."""

    folder: Path
    world: World
    authority: Authority
    examination: Examination
    plan: Plan

    @property
    def bundle(self) -> Path:
        return self.folder / "bundle"

    @property
    def signing_key(self) -> Path:
        return self.folder / "signing.key"

    @property
    def public_key(self) -> Path:
        return self.folder / "signing.key.pub.pem"


@pytest.fixture(autouse=True)
def _no_signing_key_from_the_environment(monkeypatch):
    for name in ("PROVENANCE_SIGNING_KEY_FILE", "PROVENANCE_SIGNING_KEY_CMD"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
    with pytest.MonkeyPatch.context() as patch:
        # the same keyring in every run: controls fail once in a thousand honest checks
        drawn = random.Random(7)
        patch.setattr("secrets.token_bytes", drawn.randbytes)
        patch.setattr("secrets.token_hex", lambda size: drawn.randbytes(size).hex())
        world = make_world(folder / "world", Teacher.draw(0), 1, 120, 60)
    rng = np.random.default_rng(5)
    suspect = write_outputs(folder / "guilty.jsonl", learn(world, rng, OUTPUTS, 80))
    outputs, prompts = innocent("ordinary", world, rng)
    other = write_outputs(folder / "innocent.jsonl", outputs, prompts)
    observed, free = (observe([p], world.tokenizer, world.keyring.public) for p in (suspect, other))
    innocents = {"ordinary": free}
    plan = folder / "plan.json"
    first = examine_outputs(observed, world.index, world.keyring, SETTINGS, innocents)
    plan.write_bytes(_plan(first, world).content)
    authority = Authority(folder / "authority")
    plan.with_suffix(".tsq").write_bytes(make_request(plan.read_bytes()))
    authority.answer(plan.with_suffix(".tsq"), plan.with_suffix(".tsr"))
    contents = gather_plan(plan)
    examination = examine_outputs(
        observed, world.index, world.keyring, SETTINGS, innocents, contents.plan
    )
    made = Lab(folder, world, authority, examination, contents.plan)
    write_bundle(
        made.bundle,
        examination,
        world.keyring,
        type(contents)(**{**vars(contents), "disclosed": ["all"]}),
    )
    create_signing_key(made.signing_key)
    sign_bundle(made.bundle, made.signing_key)
    return made


@pytest.fixture
def bundle(lab, tmp_path):
    """A private copy that a test may break."""
    return shutil.copytree(lab.bundle, tmp_path / "bundle")


def _plan(examination: Examination, world: World) -> Plan:
    inputs = examination.verdict.inputs
    return write_plan(
        {
            "suspect": "a Markov chain",
            "access": "outputs",
            "keyring_id": world.keyring.public.id,
            "scheme": world.keyring.public.scheme.to_json(),
            "index_sha256": inputs["index_sha256"],
            "keys": sorted(h.name for h in examination.verdict.hypotheses),
            "weight_rule": SETTINGS.rule,
            "reference": fingerprint_reference({}),
            "stopping": {"rule": "fixed", "outputs": OUTPUTS},
            "alpha": SETTINGS.alpha,
            "twins": False,
            "placebo_keys": SETTINGS.placebo_keys,
            "controls": list(CONTROLS),
            "innocents": 1,
            "commitments": describe_commitments(world.keyring.public),
            "created": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "nonce": "ab" * 32,
        }
    )


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
