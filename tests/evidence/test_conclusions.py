"""Bundles of every conclusion verify, in both schema versions; what was changed does not."""

from __future__ import annotations

import contextlib
import json
from dataclasses import replace

import numpy as np
import pytest

from provenance.check.examine import CheckSettings, examine_outputs
from provenance.check.findings import Reservation
from provenance.errors import DataError
from provenance.evidence.bundle import BundleParts, make_report, write_bundle
from provenance.evidence.manifest import write_manifest
from provenance.evidence.older import restate
from provenance.suspect.access.outputs import observe
from tests.evidence.report.cases import RESERVED, measured_twins
from tests.world.synthetic import decode, write_outputs

SETTINGS = CheckSettings(placebo_keys=50)
IN_VAIN = replace(RESERVED, against="no evidence")


@pytest.fixture(scope="module")
def examined(lab):
    """One examination of each kind."""
    world, public = lab.world, lab.world.keyring.public
    guilty = observe([lab.folder / "guilty.jsonl"], world.tokenizer, public)
    few = observe([lab.folder / "innocent.jsonl"], world.tokenizer, public)
    quoted = [world.served[0]]
    path = write_outputs(lab.folder / "quoting.jsonl", quoted, [decode(world.served[0])])
    quoting = observe([path], world.tokenizer, public)

    def examine(seen, **more):
        return examine_outputs(seen, world.index, world.keyring, SETTINGS, **more)

    return {
        "evidence": examine(guilty),
        "both lines": examine(guilty, twins=measured_twins(300, 260)),
        "twins": examine(few, twins=measured_twins(300, 260)),
        "too little": examine(few, twins=measured_twins(300, 60)),
        "nothing": examine(quoting),
        "a failed control": examine(guilty, innocents={"leak": guilty}),
        "reserved": examine(guilty, reservations=[RESERVED]),
        "reserved in vain": examine(
            guilty, reservations=[replace(RESERVED, against="no evidence")]
        ),
    }


CONCLUSIONS = {
    "evidence": ("evidence", ("keys",)),
    "both lines": ("evidence", ("keys", "twins")),
    "twins": ("evidence", ("twins",)),
    "too little": ("inconclusive", ()),
    "nothing": ("inconclusive", ()),
    "a failed control": ("inconclusive", ()),
    "reserved": ("inconclusive", ()),
    "reserved in vain": ("evidence", ("keys",)),
}


def _write(lab, folder, examination, change=None):
    write_bundle(folder, examination, lab.world.keyring, BundleParts(pairs=False))
    if change is not None:
        document = json.loads((folder / "verdict.json").read_text())
        change(document)
        _seal(folder, document)
    return folder


def _seal(folder, document):
    (folder / "verdict.json").write_text(json.dumps(document))
    with contextlib.suppress(DataError):  # what cannot be read keeps its report
        (folder / "report.html").write_bytes(make_report(folder, None, "2099-01-01T00:00:00Z"))
    write_manifest(folder, "2099-01-01T00:00:00Z", pairs=False)


def _failures(run, folder):
    code, out, _ = run("verify", folder, "--unsigned", "--json")
    failed = {s["number"]: s["detail"] for s in json.loads(out)["steps"] if s["status"] == "failed"}
    assert code == bool(failed)
    return failed


@pytest.mark.parametrize("kind", CONCLUSIONS)
def test_conclusion_and_evidence_agree_and_bundles_verify(run, lab, examined, tmp_path, kind):
    verdict = examined[kind].verdict
    assert (verdict.conclusion, verdict.found_by) == CONCLUSIONS[kind]
    assert verdict.found_evidence == (verdict.conclusion == "evidence") == bool(verdict.found_by)
    assert bool(verdict.reasons) == (verdict.conclusion == "inconclusive")
    assert verdict.exit_code == {"evidence": 1, "inconclusive": 3}[verdict.conclusion]
    assert _failures(run, _write(lab, tmp_path / "bundle", examined[kind])) == {}


def test_what_is_said_has_its_counts(examined):
    (little,) = examined["too little"].verdict.reasons
    assert little.startswith("too little data: ")
    assert f"{examined['too little'].verdict.hypotheses[0].tail.coins:,} coins" in little
    (nothing,) = examined["nothing"].verdict.reasons
    positions = examined["nothing"].verdict.inputs["outputs"]
    assert "of which 0 count" in nothing
    assert f"{positions['prompted']:,} left out because they stand in the prompt" in nothing
    assert examined["reserved"].verdict.reasons == (RESERVED.reason,)
    assert examined["reserved"].verdict.attributed == {}
    assert examined["reserved"].verdict.shares == ()
    assert examined["twins"].verdict.shares == ()


def _set(**fields):
    return lambda document: document.update(fields)


CHANGES = {
    "evidence made of nothing": ("too little", _set(conclusion="evidence")),
    "a clean bill without power": ("too little", _set(conclusion="no evidence", reasons=[])),
    "a clean bill of nothing": ("nothing", _set(conclusion="no evidence", reasons=[])),
    "other counts": ("nothing", lambda d: d["reasons"].append("and so on")),
    "another reason": ("too little", _set(reasons=["the dog ate the outputs"])),
    "a failed control forgotten": ("a failed control", _set(conclusion="evidence", reasons=[])),
    "a reservation left out": ("reserved", _set(reservations=[])),
    "a reservation turned round": (
        "reserved",
        lambda d: d["reservations"][0].update(against="no evidence"),
    ),
    "a reservation against nothing": (
        "reserved",
        lambda d: d["reservations"][0].update(against="nobody"),
    ),
    "a reservation without a reason": (
        "reserved",
        lambda d: d["reservations"][0].update(reason=""),
    ),
    "reservations that are none": ("evidence", _set(reservations=[7])),
    "twins unmentioned": ("both lines", _set(found_by=["keys"])),
    "twins alone as no evidence": ("twins", _set(conclusion="no evidence", found_evidence=False)),
    "a larger alpha of the twins": ("both lines", lambda d: d["twins"].update(alpha=9e-5)),
    "a smaller alpha of the twins": ("both lines", lambda d: d["twins"].update(alpha=1e-5)),
    "all of alpha for the twins": ("both lines", lambda d: d["twins"].update(alpha=1e-4)),
    "all of alpha for the keys": ("both lines", _set(alpha=1e-4)),
    "twins rejected at another level": ("too little", lambda d: d["twins"].update(rejected=True)),
    "called version 1": ("evidence", _set(schema_version=1)),
    "called version 3": ("evidence", _set(schema_version=3)),
    "a rule that nobody named": (
        "evidence",
        lambda d: d["inputs"]["settings"].update(rule=None),
    ),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_sealed_conclusion_that_does_not_follow_fails(run, lab, examined, tmp_path, name):
    kind, change = CHANGES[name]
    folder = _write(lab, tmp_path / "bundle", examined[kind])
    document = json.loads((folder / "verdict.json").read_text())
    change(document)
    (folder / "verdict.json").write_text(json.dumps(document))
    write_manifest(folder, "2099-01-01T00:00:00Z", pairs=False)
    failed = _failures(run, folder)
    assert set(failed) & {3, 13, 14, 15}, failed


def _old(examination, twins=None):
    """The same as version 1 had it: twins were added to a verdict that was made without them."""
    controls = [
        control
        for control in examination.verdict.controls
        if not control.name.startswith(("unserved contexts", "end tokens"))
    ]
    verdict = replace(examination.verdict, twins=twins, controls=tuple(controls))
    return json.loads(json.dumps(restate(verdict).to_json()))


OLD = {
    "evidence": ("evidence", None),
    "too little": ("no evidence", measured_twins(300, 260).judge(1e-4)),
    "nothing": ("nothing scored", None),
    "a failed control": ("invalid", None),
}


@pytest.mark.parametrize("kind", OLD)
def test_bundles_of_version_1_verify_by_the_rules_of_version_1(run, lab, examined, tmp_path, kind):
    conclusion, twins = OLD[kind]
    seen = examined[kind]
    if twins is not None:  # in version 1 the settings held the keys' part of alpha
        public = lab.world.keyring.public
        few = observe([lab.folder / "innocent.jsonl"], lab.world.tokenizer, public)
        seen = examine_outputs(few, lab.world.index, lab.world.keyring, SETTINGS)
    document = _old(seen, twins)
    assert document["conclusion"] == conclusion
    assert document["found_evidence"] == (conclusion == "evidence" or twins is not None)
    assert not {"reasons", "reservations", "found_by"} & set(document)
    folder = _write(lab, tmp_path / "bundle", seen)
    _seal(folder, document)
    assert _failures(run, folder) == {}
    for change, step in (
        ({"conclusion": "inconclusive"}, 15),
        ({"found_evidence": None}, 15),
        ({"reasons": []}, 3),
    ):
        _seal(folder, document | change)
        assert step in _failures(run, folder)
    if twins is not None:
        document["twins"]["alpha"] = 2e-4
        (folder / "verdict.json").write_text(json.dumps(document))
        write_manifest(folder, "2099-01-01T00:00:00Z", pairs=False)
        assert _failures(run, folder)


def test_a_reservation_forbids_what_it_is_against_and_no_more():
    for against, forbidden in (
        ("evidence", {"evidence"}),
        ("no evidence", {"no evidence"}),
        ("both", {"evidence", "no evidence"}),
    ):
        one = Reservation("r", against)
        assert {c for c in ("evidence", "no evidence") if one.forbids(c)} == forbidden


def test_the_level_of_an_e_process_is_where_it_crosses():
    """At the found level E reaches the wanted evidence; one step below it stays short."""
    from provenance.check.looks.uncrossed import find_level
    from provenance.marks.own import Gumbel
    from provenance.stats.inversion import log10_upper_tail
    from provenance.stats.mixture import log10_mixture, mixture_slopes
    from provenance.stats.tables import ClassTable

    law = Gumbel().null_law
    rng = np.random.default_rng(3)
    scores = rng.choice(len(law.masses), 4000, p=law.probabilities)
    table = ClassTable.from_scores(np.full(4000, 5), scores, law)
    level = find_level(table, 111, 4.3)
    slopes = mixture_slopes(law, 111)

    def at(total):
        (row,) = table.classes
        return ClassTable((replace(row, total=total),))

    low, high = table.classes[0].total, table.classes[0].total + 4000
    while high - low > 1:  # the least total whose E suffices, by trying
        middle = (low + high) // 2
        low, high = (low, middle) if log10_mixture(at(middle), slopes) >= 4.3 else (middle, high)
    assert level == pytest.approx(log10_upper_tail(at(high)), abs=1e-6)
    assert level < -4.3
    assert find_level(at(low), 111, 4.3) == pytest.approx(level, abs=1e-6)
    tiny = ClassTable.from_scores([1] * 3, [0] * 3, law)
    assert find_level(tiny, 111, 300.0) == -np.inf
