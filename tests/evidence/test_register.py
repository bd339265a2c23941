"""What a register counts, and that no bundle says other counts than its register."""

import json
import shutil
from dataclasses import asdict, replace

import pytest

from provenance.case.folder import new_case, read_case
from provenance.case.registrar import Registrar
from provenance.case.settings import Request
from provenance.check.examine import examine_outputs
from provenance.errors import ConfigurationMismatchError, DataError
from provenance.evidence.bundle import BundleParts, gather_plan, make_report, write_bundle
from provenance.evidence.manifest import write_manifest
from provenance.evidence.register import Register, read_register
from provenance.evidence.register_entries import Opened, Planned, Result, Tried
from provenance.storage.chain import Chain, read_chain
from provenance.suspect.access.outputs import observe
from tests.evidence.conftest import SETTINGS

P, Q = "1" * 64, "2" * 64
CASE = Opened("provenance-register", 1, "0.2", "x", "7", "me", "ab", None)


def planned(sha256, **stopping):
    return Planned(sha256, "2026-12-01T12:00:00Z", stopping or {"rule": "sequential"}, None)


def tried(plan=None, state=None, look=None, outputs="a"):
    facts = (outputs * 64,)
    return Tried("outputs", facts, 9, outputs * 64, 1e-4, "log-sqrt", plan, look, state)


def result(of, state=None, error=None):
    return Result(of, None if error else "no evidence", None if error else -0.5, state, error)


def count(tmp_path, *lines):
    """The register of these (kind, facts) after a case."""
    path = tmp_path / "register.jsonl"
    path.unlink(missing_ok=True)
    with Chain(path) as chain:
        for kind, facts in (("case", CASE), *lines):
            chain.append(kind, **asdict(facts))
    return Register.read(read_chain(path), "register.jsonl")


def check(*arguments, **options):
    return ("check", tried(*arguments, **options))


def look(state, **options):
    return ("look", tried(state=state, **options))


def test_a_check_counts_with_and_without_a_result(tmp_path):
    found = count(tmp_path, check(), check(), ("result", result(1)), check()).describe()
    assert (found.checks, found.planned, found.uses, found.same) == (3, 0, 0, 2)
    assert str(found).startswith("Case 7: third check of this suspect, none planned; register ")


def test_a_plan_is_used_once_and_each_planned_look_once(tmp_path):
    plan, other = ("plan", planned(P)), ("plan", planned(Q))
    found = count(tmp_path, plan, check(P), other, check(Q), check(P)).describe()
    assert (found.checks, found.planned, found.plans, found.uses) == (3, 2, 2, 2)
    found = count(tmp_path, plan, check(P, look=10), check(P, look=20)).describe()
    assert (found.planned, found.uses) == (2, 1)
    found = count(tmp_path, plan, check(P, look=10), check(P, look=10)).describe()
    assert (found.planned, found.uses) == (1, 2)


def test_looks_that_go_on_are_one_check(tmp_path):
    plan = ("plan", planned(P))
    first = (plan, look("", plan=P), ("result", result(2, P)))
    found = count(tmp_path, *first, look(P, plan=P, outputs="b")).describe()
    assert (found.checks, found.looks, found.planned, found.uses) == (1, 2, 1, 1)
    second = (*first, look(P, plan=P, outputs="b"), ("result", result(4, Q)))
    found = count(tmp_path, *second, look(Q, plan=P, outputs="c")).describe()
    assert (found.checks, found.looks) == (1, 3)
    # the same state once more, with another batch: somebody kept a copy
    found = count(tmp_path, *second, look(P, plan=P, outputs="c")).describe()
    assert (found.checks, found.planned, found.uses) == (2, 1, 2)
    # a state that was begun elsewhere
    found = count(tmp_path, *second, look("f" * 64, outputs="c")).describe()
    assert (found.checks, found.uses) == (2, 0)


def test_a_look_that_was_killed_goes_on_with_its_own_batch_only(tmp_path):
    plan = ("plan", planned(P))
    killed = (plan, look("", plan=P))
    assert count(tmp_path, *killed, look("", plan=P)).describe().checks == 1
    assert count(tmp_path, *killed, look("", plan=P, outputs="b")).describe().checks == 2
    # it was killed when its state was written already
    assert count(tmp_path, *killed, look("f" * 64, plan=P, outputs="b")).describe().checks == 1
    failed = (*killed, ("result", result(2, error="DataError")))
    assert count(tmp_path, *failed, look("", plan=P, outputs="b")).describe().checks == 2


@pytest.mark.parametrize(
    "lines",
    [
        [check(P)],
        [("commit", {"plan_sha256": P, "timestamp": None})],
        [("result", result(0))],
        [check(), ("result", result(1)), ("result", result(1))],
        [("check", tried(state=""))],
        [("look", tried())],
        [("case", CASE)],
        [("note", {"text": "hello"})],
        [("check", asdict(tried()) | {"more": 1})],
        [("check", asdict(tried()) | {"signature": "AA=="})],
    ],
)
def test_a_line_that_cannot_follow_is_refused(tmp_path, lines):
    path = tmp_path / "register.jsonl"
    with Chain(path) as chain:
        for kind, facts in (("case", CASE), *lines):
            chain.append(kind, **(facts if isinstance(facts, dict) else asdict(facts)))
    with pytest.raises(DataError, match=f"line {len(lines) + 1}: must be a line of a register"):
        read_register(path)


def test_a_register_that_does_not_begin_with_a_case_is_refused(tmp_path):
    path = tmp_path / "register.jsonl"
    with Chain(path) as chain:
        chain.append("check", **asdict(tried()))
    with pytest.raises(DataError):
        read_register(path)
    path.write_bytes(b"")
    with pytest.raises(DataError, match="it is empty"):
        read_register(path)


@pytest.fixture(scope="module")
def registered(lab, tmp_path_factory):
    """A case that is signed, with one exploratory check; the bundle of it is `bundle`."""
    place = tmp_path_factory.mktemp("registered") / "case"
    public = lab.world.keyring.public
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("os.fsync", lambda descriptor: None)
        new_case(place, public, lab.plan.suspect, number="7", signing_key=lab.signing_key)
        registrar = Registrar(place, lab.signing_key)
        seen = observe([lab.folder / "guilty.jsonl"], lab.world.tokenizer, public)
        with registrar.trying(None) as trial:
            made = examine_outputs(
                seen, lab.world.index, lab.world.keyring, SETTINGS, announce=trial.enter
            )
            trial.conclude(made.verdict.conclusion, made.verdict.log10_p, None, None)
        contents = BundleParts(disclosed=["all"], register=trial.lines)
        write_bundle(place / "bundle", made, lab.world.keyring, contents)
    return place, made


def _verify(run, lab, bundle):
    """Statuses of the steps of a bundle that its signer sealed again."""
    written = "2099-01-01T00:00:00Z"
    (bundle / "report.html").write_bytes(make_report(bundle, None, written))
    write_manifest(bundle, written, pairs=True)
    code, out, _ = run("verify", bundle, "--unsigned", "--json")
    steps = {step["number"]: step for step in json.loads(out)["steps"]}
    return code, steps[18]


def test_a_registered_bundle_verifies_and_its_case_holds(run, lab, registered, tmp_path):
    place, made = registered
    bundle = shutil.copytree(place / "bundle", tmp_path / "bundle")
    code, step = _verify(run, lab, bundle)
    assert (code, step["status"]) == (0, "held")
    assert "first check of this suspect, none planned" in step["detail"]
    assert read_case(place).breaks == ()
    assert made.verdict.register.signer.startswith("sha256:")


def _edit_lines(change):
    def edit(bundle):
        path = bundle / "register.jsonl"
        lines = path.read_bytes().splitlines(keepends=True)
        path.write_bytes(b"".join(change(lines)))

    return edit


def _edit_count(**change):
    def edit(bundle):
        document = json.loads((bundle / "verdict.json").read_text())
        document["register"] |= change
        (bundle / "verdict.json").write_text(json.dumps(document))

    return edit


def _forget(bundle):
    document = json.loads((bundle / "verdict.json").read_text())
    del document["register"]
    (bundle / "verdict.json").write_text(json.dumps(document))


DAMAGE = {
    "a line taken out": _edit_lines(lambda lines: lines[1:]),
    "the last taken out": _edit_lines(lambda lines: lines[:-1]),
    "lines in another order": _edit_lines(lambda lines: lines[::-1]),
    "a line edited": _edit_lines(lambda lines: [*lines[:-1], lines[-1].replace(b"40", b"41")]),
    "a line twice": _edit_lines(lambda lines: [*lines, lines[-1]]),
    "half a line more": _edit_lines(lambda lines: [*lines, b'{"kind"']),
    "no file": lambda bundle: (bundle / "register.jsonl").unlink(),
    "no field": _forget,
    "fewer checks": _edit_count(checks=0),
    "more planned": _edit_count(planned=1),
    "another head": _edit_count(head="0" * 64),
    "another case": _edit_count(number="8"),
    "another signer": _edit_count(signer=None),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_bundle_that_says_other_counts_fails(run, lab, registered, tmp_path, name):
    """Even if the insider who did it seals it again."""
    bundle = shutil.copytree(registered[0] / "bundle", tmp_path / "bundle")
    DAMAGE[name](bundle)
    code, step = _verify(run, lab, bundle)
    assert (code, step["status"]) == (1, "failed"), step


def test_a_chain_that_is_written_anew_lacks_its_signatures(run, lab, registered, tmp_path):
    """Whoever leaves the signatures out is found; so is the line of another check."""
    bundle = shutil.copytree(registered[0] / "bundle", tmp_path / "bundle")
    path = bundle / "register.jsonl"
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    other = replace(tried(), count=1)
    for records, signer in (
        ([lines[0], lines[1] | {"alpha": 0.05}], None),
        ([lines[0], lines[1] | asdict(other)], None),
        ([lines[0] | {"signer": None}, lines[1] | asdict(other)], "none"),
    ):
        path.unlink()
        with Chain(path) as chain:
            for record in records:
                kind = record["kind"]
                drop = {"kind", "n", "previous", "time", *(["signature"] if signer else [])}
                chain.append(kind, **{n: v for n, v in record.items() if n not in drop})
            _edit_count(head=chain.head, **({"signer": None} if signer else {}))(bundle)
        code, step = _verify(run, lab, bundle)
        assert (code, step["status"]) == (1, "failed")
    assert "its last line must be this check" in step["detail"]


def test_a_planned_check_verifies_with_its_register(run, lab, tmp_path):
    """And a plan of another suspect, keyring or time is refused by the register."""
    public, place = lab.world.keyring.public, tmp_path / "case"
    new_case(place, public, lab.plan.suspect)
    registrar = Registrar(place)
    registrar.refuse_plan(lab.plan)
    with pytest.raises(ConfigurationMismatchError, match="suspect: expected"):
        registrar.refuse_plan(replace(lab.plan, suspect="another"))
    with pytest.raises(ConfigurationMismatchError, match="keyring_id: expected"):
        registrar.refuse_plan(replace(lab.plan, keyring_id="another"))
    registrar.add_commitment(lab.plan, lab.plan.timestamp)
    inputs, parts = lab.examination.verdict.inputs, gather_plan(lab.folder / "plan.json")
    with registrar.trying(lab.plan) as trial:
        trial.enter(inputs)
        trial.conclude("evidence", -9.0, None, None)
    verdict = replace(lab.examination.verdict, register=trial.registered)
    made = replace(lab.examination, verdict=verdict)
    contents = replace(parts, disclosed=["all"], register=trial.lines)
    write_bundle(tmp_path / "bundle", made, lab.world.keyring, contents)
    code, out, _ = run("verify", tmp_path / "bundle", "--unsigned")
    assert code == 0, out
    assert "first check of this suspect, one planned" in out
    with registrar.trying(lab.plan) as trial:
        assert trial.enter(inputs).repeats


def test_clocks(lab):
    early = replace(lab.plan, created="2026-05-01T00:00:00Z", timestamp="2026-05-01T08:00:00Z")
    early.require_before("2026-05-01T08:00:00.999Z", "which is now")
    for moment in ("2026-04-30T23:59:59.999Z", "2026-05-01T07:59:59Z", "2026-05-01T09:59:59+02:00"):
        with pytest.raises(ConfigurationMismatchError, match="or earlier, then; found 2026"):
            early.require_before(moment, "then")
    with pytest.raises(ConfigurationMismatchError, match="must be one of RFC 3339"):
        early.require_before("yesterday", "then")
    request = Request(BundleParts(plan=early))
    request.require_before({"collected": {"own": {"created": "2026-05-01T09:00:00.1Z"}}})
    with pytest.raises(ConfigurationMismatchError, match="collection of own began"):
        request.require_before({"collected": {"own": {"created": "2026-05-01T07:00:00Z"}}})


def test_without_the_lock_a_line_of_two_writers_is_lost(tmp_path):
    """The fault that the lock is for: a register that was read before another's line."""
    path = tmp_path / "register.jsonl"
    with Chain(path) as chain:
        chain.append("case", **asdict(CASE))
    with Chain(path) as one, Chain(path) as other:
        for writer in (one, other):
            list(writer.replay())
        for writer in (one, other):
            writer.append("check", **asdict(tried()))
    assert read_register(path).checks == 1
