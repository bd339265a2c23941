"""`check -o`: the report beside the verdict, and the power of a negative one on the terminal."""

import json

import numpy as np
import pytest

from benchmarks.calibration.world import Teacher, innocent, learn, make_world, write_outputs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("cli"), Teacher.draw(0), 1)
    rng = np.random.default_rng(5)
    write_outputs(made.folder / "guilty.jsonl", learn(made, rng, 200, 80))
    outputs, prompts = innocent("ordinary", made, rng)
    write_outputs(made.folder / "innocent.jsonl", outputs, prompts)
    return made


def _check(world, name, *more):
    keyed = ("--keys", world.folder / "keys", "--index", world.folder / "index")
    return ("check", world.folder / name, *keyed, "--placebo-keys", "60", *more)


def test_the_report_lies_beside_the_verdict_and_repeats_to_the_byte(run, world, tmp_path):
    for folder in ("first", "second"):
        code, _, _ = run(*_check(world, "guilty.jsonl", "-o", tmp_path / folder))
        assert code == 1
    first, second = (tmp_path / name / "report.html" for name in ("first", "second"))
    assert first.read_bytes() == second.read_bytes()
    page = first.read_text()
    assert "Evidence found" in page
    assert "How the evidence grew" in page
    verdict = json.loads((tmp_path / "first/verdict.json").read_text())
    assert verdict["power"] is None
    assert len(verdict["controls"][0]["placebo_z"]) == 60


def test_a_reference_of_ngrams_has_a_curve_too(run, world, tmp_path):
    text = world.folder / "innocent.jsonl"
    more = ("--reference", "ngram", "--reference-text", text, "-o", tmp_path / "out")
    code, _, error = run(*_check(world, "guilty.jsonl", *more))
    assert code == 1, error
    assert "How the evidence grew" in (tmp_path / "out/report.html").read_text()


def test_no_evidence_says_on_the_terminal_what_would_have_been_found(run, world, tmp_path):
    code, printed, _ = run(*_check(world, "innocent.jsonl", "-o", tmp_path / "out"))
    assert code == 0
    said = " ".join(printed.split())
    assert "Absence of evidence is not evidence of absence. With probability 0.9" in said
    assert "another one may absorb less" in said
    assert "What the check could have found" in (tmp_path / "out/report.html").read_text()
    code, printed, _ = run(*_check(world, "innocent.jsonl", "--json"))
    power = json.loads(printed)["power"]
    assert power["power"] == 0.9
    assert power["outcome"] in ("share", "no share")


def test_outputs_too_few_for_batches_still_have_a_report(run, world, tmp_path):
    line = (world.folder / "guilty.jsonl").read_text().splitlines()[0]
    (tmp_path / "one.jsonl").write_text(line + "\n" + json.dumps({"output": "a"}) + "\n")
    keyed = ("--keys", world.folder / "keys", "--index", world.folder / "index")
    code, _, error = run("check", tmp_path / "one.jsonl", *keyed, "-o", tmp_path / "out")
    assert code in (0, 1), error
    assert (tmp_path / "out/report.html").exists()
