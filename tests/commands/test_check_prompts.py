"""`check` on an innocent suspect that repeats its prompts, in other people's formats."""

import html
import json

import numpy as np
import pytest

from tests.world.synthetic import decode, innocent


def _as_messages(passage):
    return {"messages": [{"role": "system", "content": passage}, {"role": "user", "content": "?"}]}


def _as_tool_result(passage):
    call = {"function": {"name": "read", "arguments": "{}"}}
    said = [{"role": "assistant", "content": None, "tool_calls": [call]}]
    return {"messages": [*said, {"role": "tool", "content": json.dumps({"text": passage})}]}


FORMATS = {
    "alpaca": lambda passage: {"instruction": "Correct this.", "input": passage},
    "prompt": lambda passage: {"prompt": html.escape(passage)},
    "question": lambda passage: {"question": passage, "id": "q-0001"},
    "prompt and messages": lambda passage: {"prompt": "?", **_as_messages(passage)},
    "tool result": _as_tool_result,
    "sharegpt": lambda passage: {"conversations": [{"from": "human", "value": passage}]},
}


@pytest.fixture
def check(run, synthetic_world):
    made = synthetic_world.folder
    keyed = ("--keys", made / "keys", "--index", made / "index", "--placebo-keys", "60")
    return lambda *words: run("check", *words, *keyed)


def _write(path, world, shape):
    """100 outputs that repeat a marked response, shown in capitals, and go on by themselves."""
    own, _ = innocent("ordinary", world, np.random.default_rng(5))
    with path.open("w") as file:
        for served, more in zip(world.served[:100], own, strict=True):
            passage = decode(served)
            record = {**shape(passage.upper()), "output": f"{passage} {decode(more)}"}
            file.write(json.dumps(record) + "\n")
    return path


def _assert_innocent(code, verdict, error):
    """Nothing found, every control passed; a hundred outputs are too few for a clean bill."""
    assert code in (0, 3), error
    assert verdict["conclusion"] == {0: "no evidence", 3: "inconclusive"}[code]
    assert verdict["controls_passed"]
    assert verdict["log10_p"] > -4
    assert all(reason.startswith("too little data") for reason in verdict["reasons"])


@pytest.mark.parametrize("name", FORMATS)
def test_what_was_shown_accuses_nobody(check, synthetic_world, tmp_path, name):
    path = _write(tmp_path / "o.jsonl", synthetic_world, FORMATS[name])
    code, printed, error = check(path, "--json")
    verdict = json.loads(printed)
    _assert_innocent(code, verdict, error)
    outputs = verdict["inputs"]["outputs"]
    assert outputs["with_prompt"] == 100
    assert outputs["quoted"] > 5_000
    assert outputs["positions"] > 4_000
    assert outputs["source"]["left_out"].startswith("normalised-12")


def test_the_rule_of_equal_tokens_alone_accuses(check, synthetic_world, tmp_path, monkeypatch):
    """The double: what every one of these would be without the comparison of texts."""
    monkeypatch.setattr(
        "provenance.suspect.access.outputs.find_quotations",
        lambda outputs, *_, **__: [np.zeros(len(one.begins), dtype=np.bool_) for one in outputs],
    )
    path = _write(tmp_path / "o.jsonl", synthetic_world, FORMATS["alpaca"])
    code, printed, _ = check(path, "--json")
    assert code == 1
    assert json.loads(printed)["log10_p"] < -20


def test_a_field_that_may_be_a_prompt_is_refused(check, synthetic_world, tmp_path):
    path = _write(tmp_path / "o.jsonl", synthetic_world, lambda passage: {"source_text": passage})
    code, printed, error = check(path)
    assert code == 65
    assert "source_text" in error
    assert "not_shown" in error
    assert not printed


def test_marked_prompts_are_reported_and_change_no_conclusion(
    run, check, synthetic_world, tmp_path
):
    path = tmp_path / "o.jsonl"
    own, _ = innocent("ordinary", synthetic_world, np.random.default_rng(5))
    records = [
        {"prompt": decode(served), "output": decode(more)}
        for served, more in zip(synthetic_world.served[:100], own, strict=True)
    ]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    code, printed, error = check(path, "-o", tmp_path / "bundle")
    verdict = json.loads((tmp_path / "bundle/verdict.json").read_text())
    _assert_innocent(code, verdict, error)
    said = " ".join(printed.split())
    assert "the prompts carry your mark: log10 p -" in said
    assert "100 outputs, 100 of them with a prompt" in said
    [control] = [one for one in verdict["controls"] if one["name"] == "prompts"]
    assert control["passed"] is True
    assert control["log10_p"] is None
    assert verdict["inputs"]["outputs"]["asked"]["texts"] == 100
    page = (tmp_path / "bundle/report.html").read_text()
    assert "do carry the mark; what repeats them is left out" in page
    assert "100 of them with a prompt" in page
    assert run("verify", tmp_path / "bundle", "--unsigned")[0] == 0


def test_unmarked_prompts_are_reported_too(check, synthetic_world, tmp_path):
    path = tmp_path / "o.jsonl"
    own, _ = innocent("ordinary", synthetic_world, np.random.default_rng(6))
    records = [{"prompt": decode(own[0]), "output": decode(more)} for more in own[1:]]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    code, printed, error = check(path, "--json")
    _assert_innocent(code, json.loads(printed), error)
    [control] = [one for one in json.loads(printed)["controls"] if one["name"] == "prompts"]
    assert "no mark found" in control["detail"]


def test_a_sequential_check_leaves_out_the_same(check, synthetic_world, tmp_path):
    path = _write(tmp_path / "o.jsonl", synthetic_world, FORMATS["alpaca"])
    code, printed, error = check(path, "--sequential", tmp_path / "state")
    assert code == 3, error
    assert "too little" in printed
    assert "100 of them with a prompt" in " ".join(printed.split())
