"""Steps on where a bundle comes from: its files, signature, form, plan and timestamp.

Each returns what it found in words, or raises StepFailedError or NotPossibleError.
"""

from __future__ import annotations

import hashlib

from provenance.check.plan import Plan
from provenance.check.reading import VERDICT_FILE, read_verdict
from provenance.errors import DataError, MissingExtraError
from provenance.evidence.bundle import PLAN_FILE, REQUEST_FILE, RESPONSE_FILE
from provenance.evidence.manifest import (
    MANIFEST_FILE,
    PUBLIC_KEY_FILE,
    SIGNATURE_FILE,
    check_files,
    describe_environment,
    read_manifest,
)
from provenance.evidence.older import read_planned_settings, read_settings
from provenance.evidence.signature import verify_bytes
from provenance.evidence.steps import NotPossibleError, StepFailedError
from provenance.evidence.timestamp import read_timestamp
from provenance.evidence.verify.state import State
from provenance.keys.keyring import KEYRING_FILE, Keyring
from provenance.storage.files import parse_json, read_bytes, read_json


def check_manifest(state: State) -> str:
    """Every file is listed, and every listed file is there, unchanged."""
    manifest, _ = read_manifest(state.folder)
    check_files(state.folder, manifest)
    state.manifest = manifest
    return f"{len(manifest.files)} files, written {manifest.created}"


def check_signature(state: State) -> str:
    """manifest.json is signed by manifest.pub.pem, and that is the expected key."""
    trust = state.trust
    is_there = [(state.folder / name).exists() for name in (SIGNATURE_FILE, PUBLIC_KEY_FILE)]
    if trust.unsigned and trust.public_key is None and not any(is_there):
        raise NotPossibleError("the bundle is not signed, which --unsigned allows")
    found = verify_bytes(state.folder, trust.public_key)
    if trust.public_key is None:
        return f"by {found}; ask the signer whether that is their key, or give --public-key"
    return f"by the expected key {found}"


def check_form(state: State) -> str:
    """verdict.json and keyring.json are what this version can read, wholly."""
    manifest = state.whole
    for name in (VERDICT_FILE, KEYRING_FILE):
        if name not in manifest.names:
            raise StepFailedError(name, "must be in a bundle; it is not")
    content = read_bytes(state.folder / VERDICT_FILE)
    verdict = read_verdict(content)
    read_settings(verdict)
    if len({result.key for result in verdict.hypotheses}) < len(verdict.hypotheses):
        raise StepFailedError(VERDICT_FILE, "every key must be tested once; one is there twice")
    keyring = Keyring.load(state.folder)
    if keyring.to_json() != read_json(state.folder / KEYRING_FILE):
        raise StepFailedError(KEYRING_FILE, "must have the fields of a keyring and no others")
    state.verdict, state.keyring = verdict, keyring
    state.document = parse_json(content, VERDICT_FILE)
    return f"schema {verdict.schema_version}, {len(verdict.hypotheses)} keys tested"


def check_plan(state: State) -> str:
    """plan.json is the plan whose hash the verdict states."""
    stated, names = state.stated.plan, state.whole.names
    if stated is None:
        for name in (PLAN_FILE, REQUEST_FILE, RESPONSE_FILE):
            if name in names:
                raise StepFailedError(name, "must be absent, since the verdict states no plan")
        raise NotPossibleError("the check followed no plan: it is exploratory")
    if PLAN_FILE not in names:
        raise StepFailedError(PLAN_FILE, "must be in the bundle, since the verdict states a plan")
    # whether the stated time is true is the next step's business
    plan = Plan.load(state.folder / PLAN_FILE, stated.timestamp)
    if plan.sha256 != stated.sha256:
        raise StepFailedError(PLAN_FILE, f"must have SHA-256 {stated.sha256}; it has {plan.sha256}")
    created = plan.created
    if created > state.whole.created:
        raise StepFailedError(PLAN_FILE, f"made {created}, after the check {state.whole.created}")
    state.plan = plan
    return f"{plan.sha256}, made {created} by its own account"


def check_timestamp(state: State) -> str:
    """An authority saw the plan's hash before the check."""
    stated = state.stated.plan
    names = state.whole.names
    if stated is None:
        raise NotPossibleError("there is no plan")
    plan = state.need(state.plan, "the plan")
    _check_request(state, plan)
    if RESPONSE_FILE not in names:
        if stated.timestamp is not None or state.trust.roots:
            raise StepFailedError(RESPONSE_FILE, "must be in the bundle; it is missing")
        raise NotPossibleError("the plan was not timestamped: only its maker says when it was made")
    try:
        response = read_bytes(state.folder / RESPONSE_FILE, 1 << 20)
        found = read_timestamp(response, plan.content, state.trust.roots, RESPONSE_FILE)
    except MissingExtraError as error:
        raise NotPossibleError(str(error)) from error
    except DataError as error:
        raise StepFailedError(RESPONSE_FILE, str(error)) from error
    if found.time != stated.timestamp:
        raise StepFailedError(
            RESPONSE_FILE, f"says {found.time}; the verdict says {stated.timestamp}"
        )
    if found.time > state.whole.created:
        raise StepFailedError(
            RESPONSE_FILE, f"says {found.time}, after the check {state.whole.created}"
        )
    if not found.authority_checked:
        raise NotPossibleError(
            f"names {found.time} and this plan; its signature was not looked at: give the "
            "authority's root with --trust"
        )
    return f"{found.time}, signed under the given roots"


def _check_request(state: State, plan: Plan) -> None:
    if REQUEST_FILE not in state.whole.names:
        return
    request = read_bytes(state.folder / REQUEST_FILE, 1 << 20)
    if hashlib.sha256(plan.content).digest() not in request:
        raise StepFailedError(REQUEST_FILE, "must ask for the hash of the plan; it does not")


def check_followed(state: State) -> str:
    """The check is the planned one, field by field."""
    if state.stated.plan is None:
        raise NotPossibleError("there is no plan")
    plan = state.need(state.plan, "the plan")
    verdict = state.stated
    inputs = {**verdict.inputs, "settings": read_planned_settings(verdict)}
    twins = verdict.twins is not None
    differences = plan.deviations(state.public, list(state.tables), inputs, twins=twins)
    if differences:
        name, expected, found = differences[0]
        raise StepFailedError(PLAN_FILE, f"{name}: planned {expected!r}, done {found!r}")
    return f"suspect: {plan.suspect}"


def check_versions(state: State) -> str:
    """Which software made the bundle, and which verifies it."""
    made, mine = state.whole.environment, describe_environment()
    stated = state.stated.versions
    for name, value in stated.items():
        if name in made and made[name] != value:
            raise StepFailedError(MANIFEST_FILE, f"{name} {made[name]}, in the verdict {value}")
    if "provenance" not in stated:
        raise StepFailedError(VERDICT_FILE, "versions: must name the version of provenance")
    return f"made with provenance {stated['provenance']}, verified with {mine['provenance']}"
