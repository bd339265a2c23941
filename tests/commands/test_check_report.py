"""`check -o`: the report beside the verdict, and the power of a negative one on the terminal."""

import json

import numpy as np
import pytest

from provenance.evidence.report.heading import say_time, write_css_string
from tests.world.synthetic import innocent, learn, write_outputs


@pytest.fixture(scope="module")
def suspects(synthetic_world, tmp_path_factory):
    """Folder with the outputs of a guilty and of an innocent suspect."""
    folder, rng = tmp_path_factory.mktemp("suspects"), np.random.default_rng(5)
    write_outputs(folder / "guilty.jsonl", learn(synthetic_world, rng, 200, 80))
    write_outputs(folder / "innocent.jsonl", *innocent("ordinary", synthetic_world, rng, 600))
    return folder


@pytest.fixture
def check(run, synthetic_world):
    """`provenance check` of a file against the world; returns (exit code, stdout, stderr)."""
    made = synthetic_world.folder
    keyed = ("--keys", made / "keys", "--index", made / "index", "--placebo-keys", "60")
    return lambda *words: run("check", *words, *keyed)


def test_the_report_lies_beside_the_verdict_and_repeats_to_the_byte(check, suspects, tmp_path):
    for folder in ("first", "second"):
        code, _, _ = check(suspects / "guilty.jsonl", "-o", tmp_path / folder)
        assert code == 1
    first, second = (_dateless(tmp_path / name) for name in ("first", "second"))
    assert first == second
    page = first
    assert "Evidence found" in page
    assert "How the evidence grew" in page
    verdict = json.loads((tmp_path / "first/verdict.json").read_text())
    assert verdict["power"] is None
    assert len(verdict["controls"][0]["placebo_z"]) == 60


def _dateless(folder):
    """The page without the moment at which it was made; that of its bundle, to the byte."""
    created = json.loads((folder / "manifest.json").read_text())["created"]
    page = (folder / "report.html").read_text()
    assert page.count(say_time(created)) == 1
    day = write_css_string(created[:10])[1:-1]
    return page.replace(say_time(created), "").replace(day, "")


def test_a_reference_of_ngrams_has_a_curve_too(check, suspects, tmp_path):
    text = suspects / "innocent.jsonl"
    more = ("--reference", "ngram", "--reference-text", text, "-o", tmp_path / "out")
    code, _, error = check(suspects / "guilty.jsonl", *more)
    assert code == 1, error
    assert "How the evidence grew" in (tmp_path / "out/report.html").read_text()


def test_no_evidence_says_on_the_terminal_what_would_have_been_found(check, suspects, tmp_path):
    code, printed, _ = check(suspects / "innocent.jsonl", "-o", tmp_path / "out")
    assert code == 0
    said = " ".join(printed.split())
    assert "Absence of evidence is not evidence of absence." in said
    assert "probability 0.9" in said
    assert "another one may absorb less" in said
    assert "What the check could have found" in (tmp_path / "out/report.html").read_text()
    power = json.loads((tmp_path / "out/verdict.json").read_text())["power"]
    assert power["power"] == 0.9
    assert power["outcome"] == "share"


def test_outputs_too_few_for_batches_still_have_a_report(check, suspects, tmp_path):
    line = (suspects / "guilty.jsonl").read_text().splitlines()[0]
    (tmp_path / "one.jsonl").write_text(line + "\n" + json.dumps({"output": "a"}) + "\n")
    code, _, error = check(tmp_path / "one.jsonl", "-o", tmp_path / "out")
    assert code in (1, 3), error
    assert (tmp_path / "out/report.html").exists()
