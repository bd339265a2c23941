"""Documents are objects: what is written is read back equal, and published schemas say the form."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from provenance.check.looks.conclude import conclude
from provenance.check.looks.result import SequentialVerdict
from provenance.check.looks.state import STATE_FILE, StoredState, continue_check
from provenance.check.plan import Plan
from provenance.check.reading import read_verdict
from provenance.check.registered import Registered
from provenance.check.trajectory import Trajectory
from provenance.check.verdict import Verdict
from provenance.errors import DataError, StorageError
from provenance.evidence.manifest import Manifest
from provenance.evidence.older import restate
from provenance.evidence.register_entries import Entry
from provenance.keys.keyring import Keyring
from provenance.served.index_manifest import IndexManifest
from provenance.storage.documents import MALFORMED, read_fields
from provenance.storage.files import canonical_json, interchange_json, read_json
from provenance.suspect.access.outputs import observe
from tests.evidence.conftest import SETTINGS
from tests.evidence.documents import LENIENT, NAMES, damage, plain, schema, validator

KINDS = (
    "evidence", "none", "invalid", "untested", "little", "reserved", "twins", "planned"
)  # fmt: skip
FIRST = Path(__file__).parents[2] / "fixtures/evidence/first"
CLOSED = {
    "verdict": (
        *("hypotheses", "controls", "shares", "tail", "table", "classes", "laws", "plan", "power"),
        *("twins", "reservations", "register"),
    ),
    "sequential": ("hypotheses", "controls", "looks", "table", "power"),
    "sequential-state": ("settings", "batches", "placebo"),
    "plan": (),
    "bundle-manifest": ("files",),
    "index-manifest": ("index", "slots", "values", "logs"),
    "keyring": ("slots", "values", "selector", "scheme"),
    "register": (),
}
"""Fields that hold objects whose own fields are fixed."""

PLACE = {"n": 1, "previous": "a" * 64, "time": "2026-12-01T12:00:00.000Z"}
TRIED = {
    **{"access": "outputs", "outputs": ["b" * 64], "count": 9, "inputs_sha256": "c" * 64},
    **{"alpha": 1e-4, "rule": "log-sqrt", "plan_sha256": "d" * 64, "planned_look": 9},
}
LINES = [
    {
        **{"kind": "case", "format": "provenance-register", "version": 1, "provenance": "0.2"},
        **{"suspect": "x", "number": "7", "author": "", "keyring_id": "ab", "signer": None},
        **PLACE,
    },
    {
        **{"kind": "plan", "plan_sha256": "d" * 64, "created": "2026-12-01T12:00:00Z"},
        **{"stopping": {"rule": "fixed", "outputs": 9}, "prompts_sha256": None, **PLACE},
    },
    {"kind": "commit", "plan_sha256": "d" * 64, "timestamp": None, **PLACE},
    {"kind": "check", **TRIED, "state_sha256": None, **PLACE},
    {"kind": "look", **TRIED, "state_sha256": "", **PLACE},
    {
        **{"kind": "result", "of": 1, "conclusion": "evidence", "log10_p": -9.5},
        **{"state_sha256": "e" * 64, "error": None, **PLACE},
    },
]
"""A line of a register of each kind."""
COUNTED = Registered("x", "7", "me", "a" * 64, 9, 3, 1, 0, 1, 1, 0, None)


@pytest.fixture(scope="module")
def looked(lab, tmp_path_factory):
    """A sequential check of one batch: its folder, and what it says."""
    world, folder = lab.world, tmp_path_factory.mktemp("looked") / "state"
    seen = observe([lab.folder / "guilty.jsonl"], world.tokenizer, world.keyring.public)
    check, _ = continue_check(folder, seen, world.index, world.keyring, SETTINGS)
    return folder, conclude(check, world.keyring)


@pytest.fixture(scope="module")
def documents(lab, cases, looked):
    """(document, its class) by the name of its schema; several of some."""
    folder, verdict = looked
    verdicts = [case[0] for case in cases.values()]
    found = {
        "verdict": [(plain(one.to_json()), Verdict) for one in verdicts],
        "sequential": [(plain(verdict.to_json()), SequentialVerdict)],
        "sequential-state": [(read_json(folder / STATE_FILE), StoredState)],
        "plan": [(read_json(lab.bundle / "plan.json"), Plan)],
        "bundle-manifest": [(read_json(lab.bundle / "manifest.json"), Manifest)],
        "index-manifest": [(read_json(lab.world.folder / "index/manifest.json"), IndexManifest)],
        "keyring": [(read_json(lab.bundle / "keyring.json"), Keyring)],
    }
    found["register"] = [(one, Entry) for one in LINES]
    found["verdict"] += [(plain(replace(verdicts[0], register=COUNTED).to_json()), Verdict)]
    committed = plain(replace(lab.plan, prompts_sha256="c" * 64).to_json())
    found["plan"] += [(committed, Plan)]
    old = restate(lab.examination.verdict)
    found["verdict"] += [(plain(lab.examination.verdict.to_json()), Verdict)]
    found["verdict"] += [(plain(old.to_json()), Verdict)]
    for name, kind, file in (
        ("verdict", Verdict, "verdict.json"),
        ("plan", Plan, "plan.json"),
        ("bundle-manifest", Manifest, "manifest.json"),
        ("keyring", Keyring, "keyring.json"),
    ):
        found[name].append((read_json(FIRST / file), kind))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_a_verdict_is_what_its_document_says(cases, kind):
    verdict, trajectory, _ = cases[kind]
    assert Verdict.from_json(plain(verdict.to_json())) == verdict
    assert Verdict.from_json(verdict.to_json()) == verdict
    old = restate(verdict)
    assert Verdict.from_json(plain(old.to_json())) == old
    if trajectory is not None:
        assert read_fields(Trajectory, plain(trajectory.to_json())) == trajectory


def test_a_verdict_that_was_just_made_is_what_its_document_says(lab, looked):
    verdict = lab.examination.verdict
    assert Verdict.from_json(plain(verdict.to_json())) == verdict
    assert lab.plan.timestamp is not None
    assert Plan.from_json(plain(lab.plan.to_json())) == lab.plan
    assert SequentialVerdict.from_json(plain(looked[1].to_json())) == looked[1]
    manifest = lab.world.index.manifest
    assert IndexManifest.from_json(plain(manifest.to_json())) == manifest
    public = lab.world.keyring.public
    assert Keyring.from_json(plain(public.to_json())) == public


def test_what_a_document_says_is_written_again_to_the_byte(documents):
    for pairs in documents.values():
        for document, kind in pairs:
            read = kind.from_json(document)
            assert canonical_json(read.to_json()) == canonical_json(document)
            assert kind.from_json(plain(read.to_json())) == read
    for folder in ("plan.json", "manifest.json"):
        content = (FIRST / folder).read_bytes()
        assert interchange_json(json.loads(content)) == content


def test_one_reader_reads_files_and_bytes_of_both_versions(lab):
    old = read_verdict(FIRST / "verdict.json")
    assert old.is_old
    assert old.conclusion == "evidence"
    assert read_verdict((FIRST / "verdict.json").read_bytes()) == old
    assert read_verdict(lab.bundle / "verdict.json") == lab.examination.verdict
    with pytest.raises(StorageError):
        read_verdict(FIRST / "absent.json")
    for content in (b"[]", b"{}", b"7", b'{"schema_version": true}', b'{"schema_version": [2]}'):
        with pytest.raises(DataError, match=r"^mine: must be a verdict of this format; got: "):
            read_verdict(content, "mine")


def test_a_number_that_is_said_twice_must_be_the_same(cases):
    document = plain(cases["twins"][0].to_json())
    for place in (document["hypotheses"][0], document["twins"]):
        kept, place["log10_p"] = place["log10_p"], -99.0
        with pytest.raises(ValueError, match="log10_p"):
            Verdict.from_json(document)
        place["log10_p"] = kept
    assert Verdict.from_json(document) == cases["twins"][0]


def test_version_1_said_other_words_for_the_same_object(cases):
    for kind, word in (
        ("evidence", "evidence"),
        ("none", "no evidence"),
        ("invalid", "invalid"),
        ("untested", "nothing scored"),
        ("twins", "no evidence"),
    ):
        verdict = cases[kind][0]
        document = restate(verdict).to_json()
        assert (document["schema_version"], document["conclusion"]) == (1, word)
        assert document["found_evidence"] == verdict.found_evidence
        assert Verdict.from_json(document).conclusion == verdict.conclusion


@pytest.mark.parametrize("name", NAMES)
def test_every_document_is_as_its_schema_says(documents, name):
    Draft202012Validator.check_schema(schema(name))
    for document, _ in documents[name]:
        errors = [error.message for error in validator(name).iter_errors(document)]
        assert errors == []


@pytest.mark.parametrize("name", NAMES)
def test_no_damaged_document_is_as_its_schema_says(documents, name):
    """Nor does its reader take it; the keyring's, which coerces, refuses what is missing only."""
    checks, count = validator(name), 0
    for document, kind in documents[name]:
        for words, damaged in damage(document, CLOSED[name]):
            if words.endswith(("method missing", "/register missing", "/prompts_sha256 missing")):
                continue
            count += 1
            assert not checks.is_valid(damaged), words
            if name == "keyring" or any(f"/{field} missing" in words for field in LENIENT):
                continue
            follows = (*FOLLOWS, "/conclusion") if document.get("schema_version") == 1 else FOLLOWS
            if any(f"{field} of another type" in words for field in follows):
                continue
            with pytest.raises(MALFORMED):  # which no AssertionError is
                _read(kind, damaged, words)
    assert count > 20


def _read(kind, document, words):
    kind.from_json(document)
    raise AssertionError(words)


FOLLOWS = (
    *("found_by", "found_evidence", "headline", "controls_passed", "attributed", "exploratory"),
    *("mean_shift", "/log10_p"),
)
"""What follows from other fields: read by nobody, compared by `verify`."""


def test_a_schema_is_published_for_every_document():
    assert set(NAMES) == set(CLOSED)
    for name in NAMES:
        assert schema(name)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
        assert schema(name)["title"]


def test_fields_that_are_not_compared_are_no_part_of_a_document(lab):
    document = plain(lab.plan.to_json())
    with pytest.raises(ValueError, match="unknown fields timestamp"):
        Plan.from_json({**document, "timestamp": None})
    assert replace(lab.plan, timestamp=None) == lab.plan
