"""A case folder: everything that is tried is entered before a key is opened, and counted."""

import json
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import provenance as pv
from provenance.evidence.register import read_register
from provenance.evidence.signature import create_signing_key
from tests.world.synthetic import Teacher, innocent, learn, make_world, write_outputs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("case"), Teacher.draw(0), 1, 120, 60)
    rng = np.random.default_rng(5)
    write_outputs(made.folder / "guilty.jsonl", learn(made, rng, 40, 80))
    outputs, prompts = innocent("ordinary", made, rng)
    write_outputs(made.folder / "innocent.jsonl", outputs, prompts)
    return made


@pytest.fixture
def place(run, world, tmp_path, monkeypatch):
    """A folder with keys, index and outputs; the case is its sub-folder `case`, not signed."""
    for name in ("keys", "index"):
        shutil.copytree(world.folder / name, tmp_path / name)
    for name in ("guilty.jsonl", "innocent.jsonl"):
        shutil.copy(world.folder / name, tmp_path / name)
    monkeypatch.chdir(tmp_path)
    for name in ("PROVENANCE_SIGNING_KEY_FILE", "PROVENANCE_SIGNING_KEY_CMD"):
        monkeypatch.delenv(name, raising=False)
    assert _begin(run)[0] == 0
    return tmp_path


def _begin(run, *more):
    about = ("--suspect", "model x", "--number", "7/2026", "--author", "A. Nalyst")
    return run("case", "new", "case", *about, "--keys", "keys", "--index", "index", *more)


def _plan(run, *more, name="plan.json", outputs=40):
    count = ("--outputs", outputs) if outputs else ("--sequential",)
    case = ("--case", "case", "--keys", "keys", "--index", "index")
    return run("plan", "new", name, *case, "--placebo-keys", 50, *count, *more)


def _check(run, *more, outputs="guilty.jsonl"):
    where = ("--case", "case", "--keys", "keys", "--index", "index", "--json")
    code, out, err = run("check", outputs, *where, *more)
    return code, json.loads(out) if out else None, err


def _entries(folder="case"):
    return [json.loads(line) for line in Path(folder, "register.jsonl").read_text().splitlines()]


def test_every_check_counts_and_only_the_first_of_a_plan_is_planned(run, place):
    assert _plan(run)[0] == 0
    _, first, _ = _check(run, "--plan", "plan.json", "-o", "one")
    assert (first["exploratory"], first["register"]["checks"]) == (False, 1)
    _, second, _ = _check(run, "--placebo-keys", 50)
    assert (second["exploratory"], second["register"]["checks"]) == (True, 2)
    _, third, _ = _check(run, "--plan", "plan.json", "-o", "three")
    counted = third["register"]
    assert third["exploratory"] is True
    assert third["plan"]["sha256"] == first["plan"]["sha256"]
    assert {name: counted[name] for name in ("checks", "planned", "plans", "uses", "same")} == {
        "checks": 3, "planned": 1, "plans": 1, "uses": 2, "same": 1,
    }  # fmt: skip
    assert (counted["suspect"], counted["number"], counted["author"]) == (
        "model x", "7/2026", "A. Nalyst",
    )  # fmt: skip
    assert third["hypotheses"] == first["hypotheses"]  # the register changes no number
    for folder in ("one", "three"):
        code, out, _ = run("verify", folder, "--unsigned")
        assert code == 0, out
    assert "Case 7/2026: third check of this suspect, one planned" in out
    assert "not signed" in out
    page = (place / "three/report.html").read_text()
    assert "Repeated check" in page
    assert "third check of this suspect, one planned" in page
    assert "date not attested" in (place / "one/report.html").read_text()


def test_what_is_said_on_the_console(run, place):
    _plan(run)
    where = ("--case", "case", "--keys", "keys", "--index", "index")
    out = run("check", "guilty.jsonl", *where, "--plan", "plan.json")[1].replace("\n", " ")
    assert "Planned, date not attested: " in out
    assert "first check of this suspect, one planned" in out
    out = run("check", "guilty.jsonl", *where, "--plan", "plan.json")[1].replace("\n", " ")
    assert "Repeated, so exploratory: second check of the plan" in out
    assert "an earlier check had the very same inputs" in out
    out = run("check", "guilty.jsonl", "--keys", "keys", "--index", "index", "--plan", "plan.json")
    said = out[1].replace("\n", " ")
    assert "Not registered in a case: how often its plan was checked" in said
    code, out, _ = run("case", "show", "case")
    assert code == 0
    assert "Checks: two, of which planned: one" in out


def test_commands_in_the_folder_find_it_and_a_case_is_never_begun_anew(run, place, monkeypatch):
    assert _begin(run)[0] == 74
    monkeypatch.chdir(place / "case")
    code, out, _ = run("check", "../guilty.jsonl", "--json", "--placebo-keys", 50)
    assert code == 1
    assert json.loads(out)["register"]["checks"] == 1
    monkeypatch.chdir(place)
    code, out, _ = run(
        "check",
        "guilty.jsonl",
        "--json",
        "--placebo-keys",
        50,
        "--keys",
        "keys",
        "--index",
        "index",
    )
    assert "register" not in json.loads(out)
    assert (
        run("check", "guilty.jsonl", "--keys", "keys", "--index", "index", "--case", "no")[0] == 74
    )


def test_a_check_is_entered_before_a_key_is_opened_and_its_end_afterwards(run, place, monkeypatch):
    seen = []

    def stop(*_):
        seen.extend(_entries())
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("provenance.check.examine.open_coins", stop)
        assert _check(run)[0] == 130
    assert [one["kind"] for one in seen] == ["case", "check"]
    last = _entries()[-1]
    assert (last["kind"], last["of"], last["error"]) == ("result", 1, "KeyboardInterrupt")
    _, verdict, _ = _check(run, "--placebo-keys", 50)
    assert verdict["register"]["checks"] == 2
    last = _entries()[-1]
    assert (last["conclusion"], last["log10_p"]) == ("evidence", verdict["log10_p"])


def test_a_check_that_was_killed_counts(run, place):
    code = (
        "import os, signal\nfrom unittest import mock\nimport provenance as pv\n"
        "def kill(*_):\n    os.kill(os.getpid(), signal.SIGKILL)\n"
        "with mock.patch('provenance.check.examine.open_coins', kill):\n"
        "    pv.open_case('keys', 'index', case='case').check('guilty.jsonl', placebo_keys=50)\n"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -signal.SIGKILL
    assert [one["kind"] for one in _entries()] == ["case", "check"]
    _, verdict, _ = _check(run, "--placebo-keys", 50)
    assert verdict["register"]["checks"] == 2
    assert "without a result: one" in run("case", "show", "case")[1].replace("\n", " ")


def test_what_is_refused_costs_nothing(run, place):
    """A check that may not be made opens no key, and uses no plan up."""
    _plan(run, outputs=41)  # more than there are
    assert _check(run, "--plan", "plan.json")[0] == 78
    _plan(run, name="other.json", outputs=40)
    shutil.copytree("case", "elsewhere")
    (place / "elsewhere/register.jsonl").unlink()
    (place / "elsewhere/provenance.toml").unlink()
    about = ("--suspect", "model y", "--keys", "keys")
    assert run("case", "new", "elsewhere", *about)[0] == 0
    where = ("--keys", "keys", "--index", "index", "--plan", "other.json")
    code, _, err = run("check", "guilty.jsonl", *where, "--case", "elsewhere")
    assert (code, err.startswith("provenance: suspect: expected 'model y'")) == (78, True)
    assert [one["kind"] for one in _entries()] == ["case", "plan", "plan"]
    code, _, err = run("plan", "new", "p.json", "--case", "elsewhere", "--suspect", "model x",
                       "--keys", "keys", "--index", "index", "--outputs", 40)  # fmt: skip
    assert code == 78
    assert not (place / "p.json").exists()


def test_a_plan_that_is_made_afterwards_is_refused_before_a_key_is_opened(run, place, monkeypatch):
    opened = []
    _check(run, "--placebo-keys", 50)
    time.sleep(1.1)  # a plan names whole seconds
    _plan(run)
    monkeypatch.setattr("provenance.check.examine.open_coins", lambda *_: opened.append(1))
    code, _, err = _check(run, "--plan", "plan.json")
    assert (code, opened) == (78, [])
    assert "when these outputs were tried (line 1 of the case's register)" in err
    document = json.loads((place / "plan.json").read_text()) | {"created": "2999-01-01T00:00:00Z"}
    from provenance.storage.files import interchange_json

    (place / "late.json").write_bytes(interchange_json(document))
    code, _, err = _check(run, "--plan", "late.json")
    assert (code, opened) == (78, [])
    assert "which is now" in err


def test_a_plan_of_elsewhere_must_be_entered_first(run, place):
    case = ("--keys", "keys", "--index", "index", "--suspect", "model x", "--outputs", 40)
    assert run("plan", "new", "plan.json", *case, "--placebo-keys", 50)[0] == 0
    code, _, err = _check(run, "--plan", "plan.json")
    assert code == 78
    assert "provenance plan commit PLAN.json --case DIR" in err
    assert run("plan", "commit", "plan.json", "--case", "case")[0] == 0
    assert [one["kind"] for one in _entries()] == ["case", "plan", "commit"]
    assert _check(run, "--plan", "plan.json")[1]["exploratory"] is False


def test_the_first_outputs_are_taken_and_the_rest_is_counted(run, place):
    whole = (place / "guilty.jsonl").read_text().splitlines(keepends=True)
    (place / "first.jsonl").write_text("".join(whole[:30]))
    _plan(run, outputs=30)
    _, verdict, _ = _check(run, "--plan", "plan.json", "-o", "bundle")
    outputs = verdict["inputs"]["outputs"]
    assert outputs["outputs"] == 30
    assert outputs["source"]["planned"] == {"taken": 30, "left_out": 10}
    assert run("verify", "bundle", "--unsigned")[0] == 0
    assert "left out: the 10 after them" in (place / "bundle/report.html").read_text()
    _plan(run, name="again.json", outputs=30)
    _, same, _ = _check(run, "--plan", "again.json", outputs="first.jsonl")
    assert [one["table"] for one in same["hypotheses"]] == [
        one["table"] for one in verdict["hypotheses"]
    ]


def test_outputs_of_other_prompts_than_the_committed_are_refused(run, place):
    rows = [json.loads(line) for line in (place / "guilty.jsonl").read_text().splitlines()]
    asked = [{"prompt": f"question {i}", "output": one["output"]} for i, one in enumerate(rows)]
    (place / "asked.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    prompts = "".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(45))
    (place / "prompts.jsonl").write_text(prompts)
    assert _plan(run, "--prompts", "prompts.jsonl")[0] == 0
    _, verdict, _ = _check(run, "--plan", "plan.json", "-o", "bundle", outputs="asked.jsonl")
    planned = verdict["inputs"]["outputs"]["source"]["planned"]
    assert (planned["prompts"], planned["prompts_answered"]) == (45, 40)
    assert run("verify", "bundle", "--unsigned")[0] == 0
    asked[7]["prompt"] = "another question"
    (place / "other.jsonl").write_text("".join(json.dumps(one) + "\n" for one in asked))
    code, _, err = _check(run, "--plan", "plan.json", outputs="other.jsonl")
    assert code == 78
    assert err.startswith("provenance: other.jsonl: line 8: expected an output of one of the 45")
    assert "another question" not in err
    assert _check(run, "--plan", "plan.json")[0] == 78  # without prompts
    (place / "plan.prompts.jsonl").write_text(prompts.replace("44", "45"))
    assert _check(run, "--plan", "plan.json", outputs="asked.jsonl")[0] == 78
    (place / "plan.prompts.jsonl").unlink()
    assert _check(run, "--plan", "plan.json", outputs="asked.jsonl")[0] == 74
    assert [one["kind"] for one in _entries()].count("check") == 1


def test_sequential_looks_are_one_check_and_a_fork_is_another(run, place):
    lines = (place / "guilty.jsonl").read_text().splitlines(keepends=True)
    for number in range(3):
        (place / f"{number}.jsonl").write_text("".join(lines[10 * number : 10 * number + 10]))
    _plan(run, outputs=None)

    def look(batch, state="state", plan=("--plan", "plan.json")):
        return _check(run, "--sequential", state, *plan, outputs=f"{batch}.jsonl")

    _, first, _ = look(0)
    shutil.copytree("state", "copy")
    _, second, _ = look(1)
    counted = second["register"]
    assert (counted["checks"], counted["looks"], counted["planned"]) == (1, 2, 1)
    assert (first["exploratory"], second["exploratory"]) == (False, False)
    code, _, err = look(2, "copy")  # another second batch from the same first one
    assert code == 78
    assert "began in this case with the plan" in err
    _, forked, _ = look(2, "copy", ("--placebo-keys", 50))
    assert (forked["register"]["checks"], forked["register"]["looks"]) == (2, 3)
    _, again, _ = look(1, "fresh")
    assert (again["exploratory"], again["register"]["uses"]) == (True, 2)


def test_a_signer_signs_every_line_and_nobody_else_can_add_one(run, place, monkeypatch):
    shutil.rmtree("case")
    create_signing_key(place / "signing.key")
    create_signing_key(place / "other.key")
    assert _begin(run, "--signing-key", "signing.key")[0] == 0
    code, _, err = _check(run, "--placebo-keys", 50)
    assert (code, "a key must be named" in err) == (2, True)
    assert _check(run, "--placebo-keys", 50, "--signing-key", "other.key")[0] == 78
    monkeypatch.chdir(place / "case")  # its provenance.toml names the key
    code, out, _ = run("check", "../guilty.jsonl", "--json", "--placebo-keys", 50, "-o", "../b")
    monkeypatch.chdir(place)
    assert json.loads(out)["register"]["signer"].startswith("sha256:")
    assert all("signature" in one for one in _entries())
    assert run("evidence", "sign", "b", "--signing-key", "signing.key")[0] == 0
    code, out, _ = run("verify", "b", "--public-key", "signing.key.pub.pem")
    assert code == 0
    assert "the expected key" in out


def test_a_killed_beginning_is_repeated(run, place):
    """kill -9 between each temporary file and its rename, and before the first line."""
    shutil.rmtree("case")
    for place_of in ("pathlib.Path.replace", "provenance.storage.chain.Chain.append"):
        code = (
            "import os, signal, sys\nfrom unittest import mock\n"
            "import provenance as pv, provenance.case.folder\n"
            f"with mock.patch({place_of!r}, lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)):"
            "\n    pv.new_case('case', 'keys', 'model x')\n"
        )
        done = subprocess.run([sys.executable, "-c", code], check=False)
        assert done.returncode == -signal.SIGKILL
        assert _check(run)[0] == 74 or read_case_is_empty()
    assert _begin(run)[0] == 0
    assert sorted(one.name for one in (place / "case").iterdir()) == [
        ".lock", "provenance.toml", "register.jsonl",
    ]  # fmt: skip


def read_case_is_empty():
    return Path("case/register.jsonl").stat().st_size == 0


def test_two_processes_at_once_count_one_after_the_other(place, run):
    """Lines of many writers are all there, in one chain."""
    from provenance.case.registrar import Registrar
    from provenance.evidence.register_entries import Tried

    def enter(number):
        facts = Tried(
            "outputs", (f"{number:064x}",), 1, "0" * 64, 1e-4, "log-sqrt", None, None, None
        )
        return Registrar(place / "case").enter("check", facts, None)[1].checks

    code = (
        "import sys\nfrom pathlib import Path\nfrom provenance.case.registrar import Registrar\n"
        "from provenance.evidence.register_entries import Tried\n"
        "for n in range(10):\n"
        "    Registrar(Path('case')).enter('check', Tried('outputs', (), 1, '0' * 64, 1e-4, 'r',"
        " None, None, None), None)\n"
    )
    others = [subprocess.Popen([sys.executable, "-c", code]) for _ in range(2)]
    with ThreadPoolExecutor(2) as pool:
        counts = list(pool.map(enter, range(10)))
    assert [one.wait() for one in others] == [0, 0]
    assert len(set(counts)) == 10
    found = read_register(place / "case/register.jsonl")
    assert (found.checks, found.records) == (30, 31)


def test_a_line_that_was_cut_off_is_no_line_and_one_that_was_changed_stops_everything(run, place):
    _check(run, "--placebo-keys", 50)
    path = place / "case/register.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"kind":"check","n":3')
    assert pv.read_case("case").register.records == 3
    _, verdict, _ = _check(run, "--placebo-keys", 50)
    assert verdict["register"]["checks"] == 2
    assert path.read_bytes().startswith(whole + b'{"access"')
    good = path.read_bytes()
    lines = good.splitlines(keepends=True)
    changed = lines[1].replace(b'"count":40', b'"count":41')
    for damaged in (
        [lines[0], *lines[2:]],
        [lines[0], lines[2], lines[1], *lines[3:]],
        [lines[0], changed, *lines[2:]],
        lines[1:],
        [*lines[:2], b"{}\n", *lines[2:]],
    ):
        path.write_bytes(b"".join(damaged))
        before = path.read_bytes()
        assert _check(run, "--placebo-keys", 50)[0] == 65
        assert path.read_bytes() == before
        code, out, _ = run("case", "show", "case")
        assert (code, "does not hold" in out) == (1, True)


def test_an_end_that_was_cut_off_is_seen_by_the_bundles(run, place):
    _check(run, "--placebo-keys", 50, "-o", "case/bundle")
    assert run("case", "show", "case")[0] == 0
    path = place / "case/register.jsonl"
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-2]))
    code, out, _ = run("case", "show", "case")
    assert code == 1
    assert "case/bundle: this bundle has lines that the register has not" in out
