"""`check --sequential`, `plan enough` and `suspects`, as the shell calls them."""

from __future__ import annotations

import hashlib
import json
import shutil
from itertools import pairwise

import numpy as np
import pytest
from typer.testing import CliRunner

from provenance.check.score import score
from provenance.commands.app import app
from provenance.storage.files import lock_folder
from tests.world.synthetic import Teacher, innocent, learn, make_world, write_outputs

ALPHA = "1e-4"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Keys, an index, a guilty and an innocent suspect in batches."""
    made = make_world(tmp_path_factory.mktemp("looks"), Teacher.draw(0), 1)
    rng = np.random.default_rng(5)
    outputs = learn(made, rng, 80, 80)
    write_outputs(made.folder / "guilty.jsonl", outputs)
    for i in range(4):
        write_outputs(made.folder / f"guilty-{i}.jsonl", outputs[20 * i : 20 * i + 20])
    keys, index = made.folder / "keys", made.folder / "index"
    for name, rule in (("fixed", ("--outputs", "20")), ("sequential", ("--sequential",))):
        command = ["plan", "new", made.folder / f"{name}.json", "--keys", keys, "--index", index]
        command += ["--suspect", "x", "--placebo-keys", "60", *rule]
        assert CliRunner().invoke(app, list(map(str, command))).exit_code == 0
    text, prompts = innocent("ordinary", made, rng)
    write_outputs(made.folder / "innocent.jsonl", text, prompts)
    for i in range(2):
        write_outputs(made.folder / f"innocent-{i}.jsonl", text[50 * i : 50 * i + 50])
    return made.folder


def _check(folder, *more):
    keys, index = folder / "keys", folder / "index"
    return ("check", *more, "--keys", keys, "--index", index, "--placebo-keys", "60")


def _one_line(error: str) -> bool:
    lines = [line for line in error.splitlines() if line.strip()]
    return len(lines) == 1 and lines[0].startswith("provenance: ")


def test_outputs_are_collected_until_the_evidence_suffices(run, folder, tmp_path):
    state = tmp_path / "state"
    looks = []
    for i in range(4):
        command = _check(folder, folder / f"guilty-{i}.jsonl", "--sequential", state, "--json")
        code, out, _ = run(*command, "-o", tmp_path / "report")
        found = json.loads(out)
        assert json.loads((tmp_path / "report/sequential.json").read_text()) == found
        assert found["found_evidence"] == (found["log10_p"] <= -4) == (code == 1)
        assert code == {"evidence": 1, "no evidence": 0, "inconclusive": 3}[found["conclusion"]]
        assert bool(found["reasons"]) == (code == 3)
        assert (found["schema_version"], found["kind"]) == (2, "sequential")
        looks.append(found)
    assert looks[-1]["found_evidence"] is True
    assert looks[-1]["controls_passed"] is True
    assert [len(found["looks"]) for found in looks] == [1, 2, 3, 4]
    assert all(a["log10_p"] >= b["log10_p"] for a, b in pairwise(looks))
    code, out, _ = run(*_check(folder, "--sequential", state, "--json"))
    assert (code, json.loads(out)) == (1, looks[-1])
    code, out, _ = run(*_check(folder, "--sequential", state))
    assert code == 1
    assert "EVIDENCE" in out
    assert "at least" in out
    assert "Evidence at any time: p <= 10^-" in out


def test_innocent_outputs_that_are_too_few_exit_3_and_may_go_on(run, folder, tmp_path):
    for i in range(2):
        command = _check(folder, folder / f"innocent-{i}.jsonl", "--sequential", tmp_path)
        code, out, _ = run(*command)
        assert code == 3
        assert "INCONCLUSIVE so far" in out
        assert "- too little data: " in out


@pytest.mark.parametrize(
    ("code", "more"),
    [
        (65, ["{folder}/guilty-0.jsonl", "--sequential", "{state}"]),
        (78, ["--sequential", "{state}", "--alpha", "1e-3"]),
        (78, ["--sequential", "{state}", "--rule", "presence"]),
        (2, ["{folder}/guilty-1.jsonl", "--sequential", "{state}", "--innocent", "{folder}/x"]),
        (2, ["{folder}/guilty-1.jsonl", "--sequential", "{state}", "--disclose", "all"]),
        (2, ["{folder}/guilty-1.jsonl", "--sequential", "{state}", "--scheme", "hf-lefthash"]),
        (
            78,
            ["{folder}/guilty-1.jsonl", "--sequential", "{state}", "--plan", "{folder}/fixed.json"],
        ),
        (2, ["--sequential", "{state}", "--logprobs", "{folder}/x"]),
        (2, ["--sequential", "{state}", "--weights", "{folder}", "--read", "{folder}/x"]),
        (2, []),
    ],
    ids=str,
)
def test_wrong_uses_are_one_line_with_its_code(run, folder, tmp_path, code, more):
    run(*_check(folder, folder / "guilty-0.jsonl", "--sequential", tmp_path / "state"))
    before = (tmp_path / "state/state.json").read_bytes()
    options = [one.format(folder=folder, state=tmp_path / "state") for one in more]
    found, _, error = run(*_check(folder, *options))
    assert found == code
    assert _one_line(error)
    assert (tmp_path / "state/state.json").read_bytes() == before


def test_a_state_of_another_keyring_exits_78_and_a_locked_one_75(run, folder, tmp_path):
    other = make_world(tmp_path / "other", Teacher.draw(0), 2, responses=20, tokens=20).folder
    state = tmp_path / "state"
    run(*_check(folder, folder / "guilty-0.jsonl", "--sequential", state))
    code, _, error = run(*_check(other, folder / "guilty-1.jsonl", "--sequential", state))
    assert code == 78
    assert _one_line(error)
    with lock_folder(state):
        code, _, error = run(*_check(folder, folder / "guilty-1.jsonl", "--sequential", state))
    assert code == 75
    assert _one_line(error)


def test_a_sequential_plan_is_followed_and_named(run, folder, tmp_path):
    outputs, state = folder / "guilty-0.jsonl", ("--sequential", tmp_path / "state")
    plan = ("--plan", folder / "sequential.json")
    code, out, error = run(*_check(folder, outputs, *state, *plan, "--json"))
    assert code in (0, 1, 3), error
    assert json.loads(out)["exploratory"] is False
    assert json.loads(out)["plan"]["sha256"] == hashlib.sha256(plan[1].read_bytes()).hexdigest()
    code, _, error = run(*_check(folder, outputs, *plan))
    assert code == 78
    assert _one_line(error)
    assert "stopping.rule" in error


def test_enough_opens_no_key_and_says_what_is_missing(run, folder, monkeypatch):
    from provenance.keys.keyring import Key

    opened = set()
    original = Key.words
    monkeypatch.setattr(
        Key, "words", lambda self, *rows: opened.add(self.slot) or original(self, *rows)
    )
    command = ("plan", "enough", folder / "guilty.jsonl", "--keys", folder / "keys")
    command = (*command, "--index", folder / "index")
    code, out, _ = run(*command, "--shift", "0.5", "--json")
    found = json.loads(out)
    assert (code, found["suffices"], found["keys"][0]["key"]) == (0, True, "global")
    code, out, _ = run(*command, "--shift", "0.01", "--json")
    assert (code, json.loads(out)["suffices"]) == (0, False)
    assert "MORE OUTPUTS" in run(*command, "--shift", "0.01")[1]
    assert opened == {"selector"}
    code, _, error = run(*command, "--shift", "-1")
    assert code == 2
    assert _one_line(error)


# --- suspects ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def verdicts(folder, tmp_path_factory):
    """Folders of three plain verdicts (two with pairs) and a sequential one."""
    from provenance.check.examine import CheckSettings, check_outputs
    from provenance.check.looks.conclude import conclude
    from provenance.check.looks.state import continue_check
    from provenance.check.pairs import write_pairs
    from provenance.check.score import weigh_observations
    from provenance.keys.keyring import Keyring
    from provenance.keys.tokenizer import load_tokenizer
    from provenance.marks.own import make_scheme
    from provenance.served.index import Index
    from provenance.storage.files import write_json
    from provenance.suspect.access.outputs import observe

    place = tmp_path_factory.mktemp("verdicts")
    public = Keyring.load(folder / "keys")
    settings = CheckSettings(rule="log-sqrt", placebo_keys=60)
    keyring = public.unlock(folder / "keys")
    tokenizer = load_tokenizer(folder / "keys/tokenizer.json", public)
    scheme = make_scheme(public.scheme.name, public.scheme.parameters)
    with Index.open(folder / "index", public) as index:
        for name in ("guilty", "guilty-0", "innocent"):
            observations = observe([folder / f"{name}.jsonl"], tokenizer, public)
            verdict = check_outputs(observations, index, keyring, settings)
            write_json(place / name / "verdict.json", verdict.to_json())
            if name == "innocent":
                continue
            (place / name / "pairs").mkdir()
            weighing = weigh_observations(observations, index, keyring, settings.rule)
            for number, (key, pairs) in enumerate(weighing.hypotheses.items()):
                words = keyring.key(*key).words(pairs.contexts, pairs.tokens)
                scores = scheme.score(words).astype(np.int64)
                write_pairs(place / name, f"pairs/{number:03d}", pairs, scores)
                assert score(pairs, keyring.key(*key), scheme).coins == len(pairs)
        observations = observe([folder / "guilty-1.jsonl"], tokenizer, public)
        check, _ = continue_check(place / "state", observations, index, keyring, settings)
        write_json(place / "sequential/sequential.json", conclude(check, keyring).to_json())
    return place


@pytest.fixture
def copies(verdicts, tmp_path):
    shutil.copytree(verdicts, tmp_path / "v")
    return tmp_path / "v"


def test_several_suspects_are_judged_together(run, copies):
    names = ["guilty", "guilty-0", "innocent", "sequential"]
    code, out, _ = run("suspects", *(copies / name for name in names), "--json")
    family = json.loads(out)
    assert code == 1
    assert family["found_evidence"] is True
    assert family["committed_keys"] == 1 + 3 * 3  # three attributes of two values and an unserved
    found = dict(zip(names, family["suspects"], strict=True))
    assert [found[name]["accused"] for name in names] == [True, True, False, True]
    assert [found[name]["discovered"] for name in names] == [True, True, False, True]
    assert "global" in found["guilty"]["keys"]
    assert found["innocent"]["keys"] == []
    # twice as many suspects: half the share of alpha each, and committed keys count too
    plain = json.loads((copies / "guilty/verdict.json").read_text())
    assert found["guilty"]["log10_p"] == pytest.approx(
        plain["hypotheses"][0]["log10_p"] + np.log10(4 / 0.5), abs=1e-6
    )
    assert {one["key"] for one in family["correlations"]} >= {"global"}
    both = next(one for one in family["correlations"] if one["key"] == "global")
    assert 0 < both["correlation"] < 1
    assert both["shared_pairs"] > 100
    assert len(family["without_pairs"]) == 2
    code, out, _ = run("suspects", *(copies / name for name in names))
    assert code == 1
    assert "at least" in out
    assert "No correlation for" in out


def test_innocents_alone_exit_3_if_their_own_checks_had_no_power(run, copies):
    code, out, _ = run("suspects", copies / "innocent")
    assert code == 3
    assert "1 suspects" in out
    assert "its own check is inconclusive: too little data" in " ".join(out.split())
    _edit(copies, "innocent", lambda d: d.update(conclusion="no evidence", reasons=[]))
    code, out, _ = run("suspects", copies / "innocent", "--json")
    assert (code, json.loads(out)["conclusion"], json.loads(out)["reasons"]) == (
        0,
        "no evidence",
        [],
    )


def test_evidence_of_its_own_that_the_family_does_not_count_is_no_clean_bill(run, copies):
    """Twins, say: the family knows keys only."""
    _edit(copies, "innocent", lambda d: d.update(conclusion="evidence", found_by=["twins"]))
    code, out, _ = run("suspects", copies / "innocent", "--json")
    assert (code, json.loads(out)["conclusion"]) == (3, "inconclusive")
    assert "found evidence" in json.loads(out)["reasons"][0]


@pytest.mark.parametrize(
    ("against", "usable"), [("evidence", False), ("both", False), ("no evidence", True)]
)
def test_what_is_held_against_evidence_accuses_nobody_in_a_family_either(
    run, copies, against, usable
):
    held = [{"reason": "some reason", "against": against}]
    _edit(
        copies,
        "guilty",
        lambda d: d.update(conclusion="inconclusive", reasons=["some reason"], reservations=held),
    )
    code, out, _ = run("suspects", copies / "guilty", "--json")
    assert json.loads(out)["suspects"][0]["usable"] is usable
    assert code == (1 if usable else 3)


def _edit(folder, name, change):
    path = folder / name / "verdict.json"
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("code", "change"),
    [
        (74, lambda f: (f / "guilty/verdict.json").unlink()),
        (74, lambda f: shutil.copy(f / "sequential/sequential.json", f / "guilty")),
        (65, lambda f: (f / "guilty/verdict.json").write_text("{}")),
        (65, lambda f: (f / "guilty/verdict.json").write_text("[1]")),
        (65, lambda f: _edit(f, "guilty", lambda d: d.update(schema_version=3))),
        (65, lambda f: _edit(f, "guilty", lambda d: d.update(weight_rule="x"))),
        (65, lambda f: _edit(f, "guilty", lambda d: d["hypotheses"][0].update(log10_p=-99.0))),
        (65, lambda f: _edit(f, "guilty", lambda d: d["hypotheses"][0].update(log10_p="x"))),
        (65, lambda f: _edit(f, "guilty", lambda d: d.update(scheme={"name": "x"}))),
        (65, lambda f: _edit(f, "guilty", lambda d: d["commitments"].pop("global"))),
        (78, lambda f: _edit(f, "guilty", lambda d: d.update(keyring_id="x"))),
        (78, lambda f: _edit(f, "guilty", lambda d: d["commitments"].update({"week=W1": "0"}))),
        (2, lambda f: shutil.copy(f / "innocent/verdict.json", f / "guilty/verdict.json")),
        (65, lambda f: (f / "guilty/pairs/000.csv.gz").write_bytes(b"PAR1")),
        (65, lambda f: (f / "guilty/pairs/000.csv.gz").unlink()),
        (
            65,
            lambda f: shutil.copy(f / "guilty-0/pairs/000.csv.gz", f / "guilty/pairs/000.csv.gz"),
        ),
    ],
)
def test_verdicts_that_do_not_belong_together_are_refused(run, copies, code, change):
    change(copies)
    names = ("innocent", "guilty", "guilty-0")
    found, _, error = run("suspects", *(copies / name for name in names))
    assert (found, _one_line(error)) == (code, True), error


def test_a_suspect_whose_controls_failed_counts_but_is_not_named(run, copies):
    failed = {"conclusion": "inconclusive", "reasons": ["1 control failed"]}
    _edit(copies, "guilty", lambda d: d.update(failed) or d["controls"][0].update(passed=False))
    code, out, _ = run("suspects", copies / "guilty", copies / "innocent", "--json")
    first = json.loads(out)["suspects"][0]
    assert code == 3
    assert (first["usable"], first["accused"], first["discovered"]) == (False, False, False)
    assert (first["log10_e"], first["log10_p"], first["log10_level"]) == (None, 0.0, 0.0)
    assert run("suspects", copies / "innocent", "--alpha", "0.2")[0] == 2
