"""Plans: one form, one hash, and a check that follows them or stops before it opens a key."""

import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provenance.check.plan import Plan, write_plan
from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.storage.files import interchange_json
from tests.commands.conftest import run
from tests.world.authority import Authority
from tests.world.synthetic import Teacher, innocent, learn, make_world, write_outputs

__all__ = ["run"]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("plan"), Teacher.draw(0), 1, 120, 60)
    rng = np.random.default_rng(5)
    write_outputs(made.folder / "guilty.jsonl", learn(made, rng, 40, 80))
    outputs, prompts = innocent("ordinary", made, rng)
    write_outputs(made.folder / "innocent.jsonl", outputs, prompts)
    return made


@pytest.fixture
def case(world, tmp_path):
    for name in ("keys", "index"):
        shutil.copytree(world.folder / name, tmp_path / name)
    for name in ("guilty.jsonl", "innocent.jsonl"):
        shutil.copy(world.folder / name, tmp_path / name)
    return tmp_path


def _new(run, case, *more, outputs=40):
    where = ("--keys", case / "keys", "--index", case / "index", "--suspect", "model x")
    count = ("--outputs", outputs) if outputs else ()
    options = ("--placebo-keys", 50, *count, *more)
    return run("plan", "new", case / "plan.json", *where, *options)


def _check(run, case, *more, outputs="guilty.jsonl"):
    where = ("--keys", case / "keys", "--index", case / "index", "--plan", case / "plan.json")
    return run("check", case / outputs, *where, *more)


def test_the_commitment_is_the_hash_of_the_file(run, case):
    assert _new(run, case)[0] == 0
    content = (case / "plan.json").read_bytes()
    code, out, _ = run("plan", "commit", case / "plan.json")
    assert (code, out.strip()) == (0, hashlib.sha256(content).hexdigest())
    assert hashlib.sha256(content).digest() in (case / "plan.tsq").read_bytes()
    code, out, _ = run("plan", "show", case / "plan.json", "--json")
    document = json.loads(out)
    assert interchange_json(document) == content
    assert len(document["commitments"]) == 12
    assert document["keys"] == sorted(document["keys"])
    assert "selector" in document["commitments"]
    assert run("plan", "show", case / "plan.json")[1].startswith("plan ")
    assert _new(run, case)[0] == 74  # never overwritten


def test_a_check_that_follows_its_plan_says_so_in_every_output(run, case):
    _new(run, case)
    code, out, _ = _check(run, case)
    assert code == 1
    digest = hashlib.sha256((case / "plan.json").read_bytes()).hexdigest()
    assert f"Planned, date not attested: {digest}." in out.replace("\n", " ")
    verdict = json.loads(_check(run, case, "--json", "-o", case / "bundle")[1])
    assert verdict["exploratory"] is False
    assert verdict["plan"] == {"sha256": digest, "timestamp": None}
    assert verdict["inputs"]["settings"]["placebo_keys"] == 50
    assert run("verify", case / "bundle", "--unsigned")[0] == 0


def test_a_check_without_a_plan_says_exploratory(run, case):
    where = ("--keys", case / "keys", "--index", case / "index", "--placebo-keys", 50)
    _, out, _ = run("check", case / "guilty.jsonl", *where)
    assert "Exploratory" in out
    verdict = json.loads(run("check", case / "guilty.jsonl", *where, "--json")[1])
    assert (verdict["exploratory"], verdict["plan"]) == (True, None)


DEVIATIONS = {
    "alpha": ("--alpha", 1e-3),
    "weight_rule": ("--rule", "presence"),
    "placebo_keys": ("--placebo-keys", 60),
    "innocents": ("--innocent", "innocent.jsonl"),
    "stopping.outputs": (),
    "reference": ("--reference", "ngram", "--reference-text", "innocent.jsonl"),
    "twins": (),
    "keyring_id": (),
}


@pytest.mark.parametrize("field", DEVIATIONS)
def test_a_check_that_deviates_stops_and_names_the_field(run, case, monkeypatch, field):
    monkeypatch.chdir(case)
    more = DEVIATIONS[field]
    _new(run, case, *(("--rule", "log-sqrt") if field == "reference" else ()),
         *(("--twins",) if field == "twins" else ()),
         outputs=41 if field == "stopping.outputs" else 40)  # fmt: skip
    if field == "keyring_id":
        document = json.loads((case / "plan.json").read_text()) | {"keyring_id": "another"}
        (case / "plan.json").write_bytes(interchange_json(document))
    code, out, err = _check(run, case, *more, "-o", case / "bundle")
    assert (code, out) == (78, "")
    assert err.startswith(f"provenance: {field}: expected ")
    assert "found" in err
    assert not (case / "bundle").exists()


def test_no_key_is_opened_before_the_plan_is_compared(run, case, monkeypatch):
    _new(run, case, outputs=41)
    opened = []
    monkeypatch.setattr("provenance.check.examine.open_coins", lambda *_: opened.append(1))
    assert _check(run, case)[0] == 78
    assert opened == []


def test_planned_looks_share_alpha_and_allow_nothing_in_between(run, case):
    assert _new(run, case, "--outputs", 20, outputs=40)[0] == 0
    verdict = json.loads(_check(run, case, "--json")[1])
    assert verdict["alpha"] == 5e-5
    lines = (case / "guilty.jsonl").read_text().splitlines(keepends=True)
    (case / "some.jsonl").write_text("".join(lines[:30]))
    code, _, err = _check(run, case, outputs="some.jsonl")
    assert code == 78
    assert "stopping.outputs" in err


def test_a_fixed_check_is_not_a_sequential_one(run, case):
    assert _new(run, case, "--sequential", outputs=None)[0] == 0
    code, _, err = _check(run, case)
    assert code == 78
    assert "stopping.rule: expected sequential" in err
    assert _new(run, case, "--sequential")[0] == 74
    (case / "plan.json").unlink()
    assert _new(run, case, "--sequential")[0] == 2


def test_the_reference_is_planned_by_its_files(run, case, monkeypatch):
    monkeypatch.chdir(case)
    text = ("--reference", "ngram", "--reference-text", "innocent.jsonl")
    assert _new(run, case, *text)[0] == 0
    assert _check(run, case, *text)[0] == 1
    with (case / "innocent.jsonl").open("a") as file:
        file.write('{"prompt": "", "output": "w1 w2 w3 w4"}\n')
    code, _, err = _check(run, case, *text)
    assert code == 78
    assert err.startswith("provenance: reference: expected")


def test_a_timestamp_is_carried_by_hand(run, case):
    _new(run, case)
    plan = case / "plan.json"
    run("plan", "commit", plan)
    authority = Authority(case / "authority")
    answer = authority.answer(case / "plan.tsq", case / "answer.tsr")
    other = Authority(case / "other", "somebody else")
    assert run("plan", "commit", plan, "--response", answer, "--trust", other.roots)[0] == 65
    assert not (case / "plan.tsr").exists()
    code, _, err = run("plan", "commit", plan, "--response", answer, "--trust", authority.roots)
    assert code == 0
    assert "seen 20" in err
    _, out, _ = _check(run, case, "-o", case / "bundle")
    assert "timestamped 20" in out
    code, out, _ = run("verify", case / "bundle", "--unsigned", "--trust", authority.roots)
    assert code == 0, out
    assert run("plan", "commit", plan, "--response", answer, "--url", "http://x")[0] == 2
    assert run("plan", "commit", plan, "--url", "ftp://x")[0] == 2
    assert run("plan", "commit", plan, "--url", "http://127.0.0.1:9/")[0] == 74


def test_without_the_extra_the_hash_is_printed_and_openssl_makes_the_request(
    run, case, monkeypatch
):
    _new(run, case)
    plan = case / "plan.json"
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rfc3161_client", None)
        code, out, err = run("plan", "commit", plan)
        assert (code, out.strip()) == (0, hashlib.sha256(plan.read_bytes()).hexdigest())
        assert "provenance-watermark[evidence]" in err
        assert not (case / "plan.tsq").exists()
        command = ["openssl", "ts", "-query", "-sha256", "-cert", "-data", plan]
        subprocess.run([*command, "-out", case / "plan.tsq"], check=True, capture_output=True)
        authority = Authority(case / "authority")
        answer = authority.answer(case / "plan.tsq", case / "answer.tsr")
        assert run("plan", "commit", plan, "--response", answer)[0] == 2
    trusted = ("--trust", authority.roots)
    assert run("plan", "commit", plan, "--response", answer, *trusted)[0] == 0
    assert _check(run, case, "-o", case / "bundle")[0] == 1
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "rfc3161_client", None)
        assert _check(run, case)[0] == 2  # an answer lies there, and nobody can read it
        code, out, _ = run("verify", case / "bundle", "--unsigned", *trusted)
        assert code == 0
        assert " 5 not possible" in out
        assert "18 not possible" in out


def test_the_answer_of_another_plan_is_refused_before_anything_is_checked(run, case):
    _new(run, case)
    run("plan", "commit", case / "plan.json")
    authority = Authority(case / "authority")
    authority.answer(case / "plan.tsq", case / "plan.tsr")
    (case / "plan.json").unlink()
    _new(run, case)
    code, _, err = _check(run, case)
    assert code == 65
    assert "plan.tsr" in err


@pytest.fixture(scope="module")
def plan(world):
    from provenance.check.plan import CONTROLS, describe_commitments

    public = world.keyring.public
    return write_plan(
        {
            "suspect": "x",
            "access": "outputs",
            "keyring_id": public.id,
            "scheme": public.scheme.to_json(),
            "index_sha256": "0" * 64,
            "keys": ["global"],
            "weight_rule": "log-sqrt",
            "reference": {"kind": "none", "sha256": []},
            "stopping": {"rule": "fixed", "outputs": 10},
            "alpha": 1e-4,
            "twins": False,
            "placebo_keys": 400,
            "controls": list(CONTROLS),
            "innocents": 0,
            "commitments": describe_commitments(public),
            "created": "2026-05-01T00:00:00Z",
            "nonce": "0" * 64,
        }
    )


BAD = {
    "suspect": ["", "a\nb", 7, None],
    "access": ["all", ""],
    "index_sha256": ["0" * 63, "Z" * 64],
    "keys": [[], ["week=b", "global"], ["global", "global"], [7]],
    "alpha": [0, -1e-4, 0.06, True, "1e-4"],
    "placebo_keys": [49, 1e3 + 0.5, 10**6],
    "controls": [[], ["placebo keys"]],
    "innocents": [-1, 1.5],
    "created": ["2026-05-01", "2026-05-01T00:00:00+00:00"],
    "nonce": ["", "0" * 62],
    "reference": [{}, []],
    "stopping": [
        {},
        {"rule": "fixed"},
        {"rule": "fixed", "outputs": 0},
        {"rule": "fixed", "outputs": True},
        {"rule": "never"},
        {"rule": "looks", "outputs": [10], "shares": [0.6, 0.6]},
        {"rule": "looks", "outputs": [10, 20], "shares": [0.6, 0.6]},
        {"rule": "looks", "outputs": [20, 10], "shares": [0.5, 0.5]},
        {"rule": "looks", "outputs": [10, 20], "shares": [0.5, 0]},
        {"rule": "sequential", "outputs": 10},
    ],
}


@pytest.mark.parametrize(
    ("field", "value"), [(field, value) for field, values in BAD.items() for value in values]
)
def test_a_field_out_of_its_domain_is_refused(plan, field, value):
    document = {**plan.document, field: value}
    with pytest.raises(UsageError):
        write_plan({k: v for k, v in document.items() if k not in ("format", "version")})
    with pytest.raises(DataError, match=r"plan\.json: must be a plan"):
        Plan.parse(interchange_json(document), "plan.json")


@given(st.text(min_size=1, max_size=50).filter(str.isprintable), st.floats(1e-9, 0.05))
@settings(max_examples=40, deadline=None)
def test_a_plan_survives_its_file(plan, suspect, alpha):
    document = {**plan.document, "suspect": suspect, "alpha": alpha}
    content = interchange_json(document)
    again = Plan.parse(content, "plan.json")
    assert again == Plan.from_json(document)
    assert (again.document, again.content) == (document, content)
    assert again.sha256 == hashlib.sha256(content).hexdigest()
    spaced = json.dumps(document).encode()
    with pytest.raises(DataError):
        Plan.parse(spaced, "plan.json")


def test_a_deviation_from_a_look_names_it(plan):
    looks = {"rule": "looks", "outputs": [10, 20], "shares": [0.25, 0.75]}
    planned = replace(plan, stopping=looks, twins=True)
    assert planned.alpha_at(20) == pytest.approx(0.75e-4)  # of keys and twins together
    with pytest.raises(ConfigurationMismatchError, match="found 15"):
        planned.alpha_at(15)


def test_rfc_8785_vectors():
    """Appendix B of RFC 8785: how numbers are written; section 3.2.3: the order of names."""
    numbers = {
        1e21: "1e+21",
        1e-7: "1e-7",
        1e-6: "0.000001",
        333333333.33333329: "333333333.3333333",
        9007199254740992.0: "9007199254740992",
        -5e-324: "-5e-324",
        -0.0: "0",
    }
    for number, text in numbers.items():
        assert interchange_json(number).decode() == text
    names = {"\u20ac": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\u0080": 6, "\u00f6": 7}
    assert list(json.loads(interchange_json(names)).values()) == [2, 4, 6, 7, 1, 5, 3]
    for bad in (float("nan"), float("inf"), 2**53 + 1):
        with pytest.raises(ValueError, match=r"."):
            interchange_json(bad)


def test_a_bundle_that_cannot_be_written_is_refused_before_the_check(run, case, monkeypatch):
    _new(run, case)
    monkeypatch.setattr("provenance.check.examine.open_coins", lambda *_: pytest.fail("checked"))
    assert _check(run, case, "--disclose", "all")[0] == 2
    assert _check(run, case, "--without-pairs")[0] == 2
    assert _check(run, case, "-o", case / "bundle", "--disclose", "week=W9")[0] == 2
    code, _, err = _check(run, case, "-o", case)
    assert code == 74
    assert "must be empty or hold an earlier bundle" in err


def test_a_reference_model_is_planned_by_its_files(run, case):
    folder = case / "model"
    folder.mkdir()
    names = ["model.safetensors", "config.json", "tokenizer.json", "chat_template.jinja"]
    for name in names:
        (folder / name).write_text(name)
    assert _new(run, case, "--reference", folder)[0] == 0
    document = json.loads((case / "plan.json").read_text())
    hashes = sorted(hashlib.sha256(name.encode()).hexdigest() for name in names)
    assert document["reference"] == {"kind": "model", "sha256": hashes}
    assert document["weight_rule"] == "residual"
    (case / "plan.json").unlink()
    # another file would not be loaded, so a plan must not seem to name it
    (folder / "model.safetensors").rename(folder / "other.safetensors")
    assert _new(run, case, "--reference", folder)[0] == 74
    (folder / "other.safetensors").rename(folder / "model.safetensors")
    (folder / "config.json").unlink()
    assert _new(run, case, "--reference", folder)[0] == 74


def test_a_number_that_canonical_json_cannot_hold_is_one_line(plan):
    """A parameter of another scheme may be a 64-bit seed."""
    fields = {n: v for n, v in plan.document.items() if n not in ("format", "version")}
    fields["scheme"] = {"name": "hf-synthid", "parameters": {"sampling_table_seed": 1 << 60}}
    with pytest.raises(UsageError, match="a plan must be complete"):
        write_plan(fields)
