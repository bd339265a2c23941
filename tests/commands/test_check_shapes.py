"""`check`, `detect` and `outputs show` on files of the field: one reader, same words."""

import gzip
import json
from pathlib import Path

import jsonschema
import numpy as np
import pytest

from provenance.evidence import bundle
from tests.suspect.shapes import batch, chat
from tests.world.synthetic import decode, innocent, learn

SCHEMA = Path(bundle.__file__).parent / "schemas/verdict.schema.json"


@pytest.fixture(scope="module")
def guilty(synthetic_world):
    rng = np.random.default_rng(5)
    return [decode(ids) for ids in learn(synthetic_world, rng, 60, 60)]


@pytest.fixture
def keyed(synthetic_world):
    made = synthetic_world.folder
    return ("--keys", made / "keys", "--index", made / "index", "--placebo-keys", "60")


def _lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def _score(verdict):
    """What was measured, apart from the files' names and hashes."""
    outputs = {
        k: v for k, v in verdict["inputs"]["outputs"].items() if k not in ("sha256", "source")
    }
    return outputs, verdict["hypotheses"], verdict["conclusion"]


def test_the_same_outputs_in_any_shape_are_the_same_verdict(run, tmp_path, keyed, guilty):
    prompts = [f"tell me something about number {n}" for n in range(len(guilty))]
    pairs = list(zip(prompts, guilty, strict=True))
    own = _lines(tmp_path / "own.jsonl", [{"prompt": q, "output": a} for q, a in pairs])
    _, printed, _ = run("check", own, *keyed, "--json")
    expected = json.loads(printed)
    assert "reading" not in expected["inputs"]["outputs"]["source"]
    answers = [batch(str(n), chat(a)) for n, (_, a) in enumerate(pairs)]
    asked = [
        {"custom_id": str(n), "body": {"model": "m", "messages": [{"role": "user", "content": q}]}}
        for n, q in enumerate(prompts)
    ]
    files = {
        "batch": (
            _lines(tmp_path / "batch.jsonl", answers),
            ["--requests", _lines(tmp_path / "asked.jsonl", asked)],
        ),
        "columns": (
            _lines(tmp_path / "c.jsonl", [{"prompt": q, "completion": a} for q, a in pairs]),
            [],
        ),
        "mapped": (
            _lines(tmp_path / "m.jsonl", [{"x": {"q": q, "a": a}} for q, a in pairs]),
            ["--map", "output=x.a", "--map", "prompt=x.q"],
        ),
    }
    for path, options in files.values():
        _, printed, error = run("check", path, *options, *keyed, "--json")
        verdict = json.loads(printed)
        assert _score(verdict) == _score(expected), error
        reading = verdict["inputs"]["outputs"]["source"]["reading"]
        assert reading["files"][path.name]["outputs"] == len(guilty)
        jsonschema.validate(verdict, json.loads(SCHEMA.read_text()))


def test_what_was_left_out_stands_in_verdict_page_and_report(run, tmp_path, keyed, guilty):
    records = [{"output": text} for text in guilty]
    path = tmp_path / "o.jsonl"
    _lines(path, [*records, {"prompt": "x", "output": None}])
    with path.open("a") as file:
        file.write('{"output": "cut \\ud83d"}\n')
    bundled = tmp_path / "bundle"
    code, printed, _ = run("check", path, *keyed, "-o", bundled)
    words = " ".join(printed.split())
    said = "2 of 62 records without a text: 1 cut character (line 62), 1 no text (line 61)"
    assert said in words
    assert said in (bundled / "report.html").read_text()
    assert run("verify", bundled, "--unsigned")[0] == 0
    assert run("check", path, *keyed, "--strict")[0] == 65
    clean = _lines(tmp_path / "clean.jsonl", records)
    assert run("check", clean, *keyed, "--strict")[0] == code


def test_one_reader_for_check_detect_and_show(run, tmp_path, keyed, guilty):
    path = tmp_path / "b.jsonl.gz"
    lines = [json.dumps(batch(str(n), chat(text))) for n, text in enumerate(guilty[:3])]
    lines.append(json.dumps(batch("r", chat(None, refusal="No."))))
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    said = "b.jsonl.gz: read as openai-batch; 1 of 4 records without a text: 1 refusal (line 4)."
    for command in (
        ("check", path, *keyed),
        ("detect", path, *keyed[:2]),
        ("outputs", "show", path),
    ):
        _, printed, error = run(*command)
        assert said in " ".join(printed.split()), error
    _, printed, _ = run("outputs", "show", path, "--json")
    assert json.loads(printed)["files"]["b.jsonl.gz"]["left_out"]["refusal"]["records"] == 1
    zipped = tmp_path / "z.jsonl"
    zipped.write_bytes(b"PK\x03\x04rest")
    for command in (
        ("check", zipped, *keyed),
        ("detect", zipped, *keyed[:2]),
        ("outputs", "show", zipped),
    ):
        code, _, error = run(*command)
        assert (code, "zip archive" in error) == (65, True)


def test_an_innocent_that_quotes_its_prompts_is_not_accused_in_any_shape(
    run, tmp_path, keyed, synthetic_world
):
    """A batch whose requests are joined: what the suspect repeats from there is left out."""
    own, _ = innocent("ordinary", synthetic_world, np.random.default_rng(5))
    answers, asked, turns = [], [], []
    for n, (served, more) in enumerate(zip(synthetic_world.served[:100], own, strict=True)):
        question = {"role": "user", "content": decode(served).upper()}
        answer = f"{decode(served)} {decode(more)}"
        answers.append(batch(str(n), chat(answer)))
        asked.append({"custom_id": str(n), "body": {"messages": [question]}})
        turns.append({"messages": [question, {"role": "assistant", "content": answer}]})
    requests = _lines(tmp_path / "asked.jsonl", asked)
    paths = {
        _lines(tmp_path / "batch.jsonl", answers): ["--requests", requests],
        _lines(tmp_path / "turns.jsonl", turns): [],
    }
    for path, options in paths.items():
        code, printed, error = run("check", path, *options, *keyed, "--json")
        verdict = json.loads(printed)
        assert code in (0, 3), error
        assert verdict["log10_p"] > -4
        assert verdict["inputs"]["outputs"]["quoted"] > 0


def test_reading_options_go_with_outputs_only(run, tmp_path, keyed):
    path = _lines(tmp_path / "x.jsonl", [{"output": "a"}])
    assert run("check", "--logprobs", path, "--strict", *keyed)[0] == 2
    assert run("check", path, "--format", "nonsense", *keyed)[0] == 2
    assert run("outputs", "show", path, "--map", "nonsense")[0] == 2
