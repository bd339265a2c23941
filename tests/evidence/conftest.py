"""One signed, timestamped, wholly disclosed bundle of a small world, for every test to break."""

from __future__ import annotations

import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from provenance.check.examine import CheckSettings, Examination, examine_outputs
from provenance.check.plan import (
    CONTROLS,
    Plan,
    describe_commitments,
    fingerprint_reference,
    write_plan,
)
from provenance.evidence.bundle import gather_plan, write_bundle
from provenance.evidence.signature import create_signing_key, sign_bundle
from provenance.evidence.timestamp import make_request
from provenance.suspect.access.outputs import observe
from tests.commands.conftest import run
from tests.evidence.report.cases import cases, family_page
from tests.world.authority import Authority
from tests.world.synthetic import Teacher, World, innocent, learn, make_world, write_outputs

__all__ = ["cases", "family_page", "run"]

OUTPUTS = 40
SETTINGS = CheckSettings(rule="log-sqrt", placebo_keys=50)


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


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch):
    """Hundreds of small bundles are written; what fsync is for is tested elsewhere."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)


@pytest.fixture(scope="session")
def lab(tmp_path_factory):
    folder = tmp_path_factory.mktemp("evidence")
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
