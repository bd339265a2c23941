"""Offline batches: what is handed in, and what is taken in, by custom_id."""

import errno
import gzip
import hashlib
import json
import os
from pathlib import Path

import pytest

import provenance
from provenance.errors import ConfigurationMismatchError, DataError, StorageError, UsageError
from tests.suspect.collect.server import answer_of
from tests.suspect.collect.test_collect import ledger_of, outputs_of, write_prompts

OPENAI, ANTHROPIC = "openai-batch", "anthropic-batch"


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path / "prompts.jsonl", 4)


def settings(**changed):
    return provenance.CollectSettings(model="m", parameters={"max_tokens": 9}, **changed)


def openai_line(item, body=None, status=200, error=None):
    request = {"model": "m", "messages": [{"content": f"question {item}"}]}
    response = {
        "status_code": status,
        "request_id": f"r{item}",
        "body": answer_of("/v1/chat/completions", request) if body is None else body,
    }
    return {"id": "b", "custom_id": item, "response": response, "error": error}


def anthropic_line(item, kind="succeeded"):
    message = {
        "model": "claude-x-1",
        "content": [{"type": "text", "text": f"Claude says {item}"}],
        "stop_reason": "end_turn",
        "usage": {"input_tokens": 3, "output_tokens": 5},
    }
    result = {"type": kind}
    if kind == "succeeded":
        result["message"] = message
    if kind == "errored":
        result["error"] = {"type": "error", "error": {"type": "invalid_request_error"}}
    return {"custom_id": item, "result": result}


def write(path, lines):
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_an_openai_batch_there_and_back(tmp_path, prompts):
    folder = tmp_path / "out"
    made = provenance.prepare_batch(prompts, folder, settings(samples=2), OPENAI)
    content = (folder / "batch-input.jsonl").read_bytes()
    lines = [json.loads(line) for line in content.splitlines()]
    assert [line["custom_id"] for line in lines[:5]] == ["1-0", "2-0", "3-0", "4-0", "1-1"]
    assert lines[0] == {
        "custom_id": "1-0",
        "method": "POST",
        "url": "/v1/chat/completions",
        "body": {
            "model": "m",
            "max_tokens": 9,
            "messages": [{"role": "user", "content": "question 0"}],
        },
    }
    (prepared,) = [r for r in ledger_of(folder) if r["kind"] == "prepared"]
    assert prepared["sha256"] == hashlib.sha256(content).hexdigest()
    assert made.facts["unanswered"] == 8

    # in another order, one with an error, one that failed, one missing
    items = [line["custom_id"] for line in lines][::-1][1:]
    results = [openai_line(item) for item in items]
    results[0] = openai_line(items[0], {"error": {"code": "content_filter"}}, 400)
    results[1] = {"custom_id": items[1], "response": None, "error": {"code": "expired"}}
    results[2] = openai_line(items[2], {"object": "response", "output": []})
    found = provenance.import_batch(write(tmp_path / "r.jsonl", results), folder)
    assert (found.facts["answered"], found.facts["errors"]) == (4, 3)
    assert found.facts["unanswered"] == 1
    assert found.exit_code == 0
    outputs = outputs_of(folder)
    assert [one["custom_id"] for one in outputs] == ["1-0", "2-0", "3-0", "4-0"]
    assert outputs[0]["output"].startswith("An answer to question 1-0")
    assert outputs[0]["id"] == "q0"
    assert provenance.verify_collection(folder).exit_code == 0
    errors = {r["item"]: r["error"] for r in ledger_of(folder) if r.get("outcome") == "error"}
    assert errors.pop(items[2]).startswith("not understood")
    assert errors == {items[0]: "content_filter", items[1]: "expired"}

    before = (folder / "ledger.jsonl").read_bytes()
    provenance.import_batch(tmp_path / "r.jsonl", folder)
    assert (folder / "ledger.jsonl").read_bytes() == before
    # a second batch answers what the first did not
    rest = write(tmp_path / "s.jsonl", [openai_line(item) for item in items[:3]])
    assert provenance.import_batch(rest, folder).facts["answered"] == 7
    assert provenance.verify_collection(folder).exit_code == 0


def test_an_anthropic_batch_there_and_back(tmp_path):
    folder = tmp_path / "out"
    messages = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello"}]
    asked = [{"messages": messages}, {"prompt": "a"}, {"prompt": "b"}]
    prompts = write(tmp_path / "p.jsonl", asked)
    provenance.prepare_batch(prompts, folder, settings(), ANTHROPIC)
    lines = [json.loads(x) for x in (folder / "batch-input.jsonl").read_text().splitlines()]
    assert lines[0] == {
        "custom_id": "1-0",
        "params": {
            "model": "m",
            "max_tokens": 9,
            "system": "Be brief.",
            "messages": [{"role": "user", "content": "Hello"}],
        },
    }
    results = [
        anthropic_line("1-0"),
        anthropic_line("2-0", "errored"),
        anthropic_line("3-0", "expired"),
    ]
    packed = tmp_path / "r.jsonl.gz"
    packed.write_bytes(gzip.compress(write(tmp_path / "r.jsonl", results).read_bytes()))
    found = provenance.import_batch(packed, folder)
    assert (found.facts["answered"], found.facts["errors"]) == (1, 2)
    assert found.facts["models"] == {"claude-x-1": 1}
    assert found.facts["tokens"] == [3, 5]
    (output,) = outputs_of(folder)
    assert output["output"] == "Claude says 1-0"
    assert output["messages"] == messages


@pytest.mark.parametrize(
    ("lines", "reason"),
    [
        ([openai_line("9-0")], "line 1: custom_id '9-0' must be an item"),
        ([openai_line("1-0"), openai_line("1-1")], "line 2: custom_id 1-1"),
        ([openai_line("01-0")], "line 1"),
        ([openai_line("1-0"), openai_line("1-0")], "line 2: .* repeats"),
        ([{"response": {}}], "line 1"),
        ([[1]], "line 1"),
        ([openai_line("\u0661-0")], "line 1"),
    ],
)
def test_results_of_something_else_are_refused_whole(tmp_path, prompts, lines, reason):
    provenance.prepare_batch(prompts, tmp_path / "out", settings(), OPENAI)
    before = (tmp_path / "out/ledger.jsonl").read_bytes()
    with pytest.raises(DataError, match=reason):
        provenance.import_batch(write(tmp_path / "r.jsonl", lines), tmp_path / "out")
    assert (tmp_path / "out/ledger.jsonl").read_bytes() == before


def test_preparing_again_changes_nothing_and_other_facts_are_refused(tmp_path, prompts):
    folder = tmp_path / "out"
    provenance.prepare_batch(prompts, folder, settings(), OPENAI)
    before = (folder / "ledger.jsonl").read_bytes()
    provenance.prepare_batch(prompts, folder, settings(), OPENAI)
    assert (folder / "ledger.jsonl").read_bytes() == before
    with pytest.raises(ConfigurationMismatchError, match="via"):
        provenance.prepare_batch(prompts, folder, settings(), ANTHROPIC)
    with pytest.raises(UsageError, match="--format"):
        provenance.prepare_batch(prompts, tmp_path / "other", settings(), "csv")


@pytest.mark.parametrize(
    "changed",
    [{"logprobs": 2}, {"parameters": {}}, {"parameters": {"seed": 1, "max_tokens": 3}}],
)
def test_what_anthropic_does_not_offer_is_refused(tmp_path, prompts, changed):
    own = provenance.CollectSettings(**{"model": "m", "parameters": {"max_tokens": 9}, **changed})
    with pytest.raises(UsageError, match="anthropic-batch"):
        provenance.prepare_batch(prompts, tmp_path / "out", own, ANTHROPIC)
    assert not (tmp_path / "out").exists()


def _folder(tmp_path, prompts, name="out"):
    provenance.prepare_batch(prompts, tmp_path / name, settings(), OPENAI)
    lines = [openai_line(f"{number}-0") for number in range(1, 5)]
    return tmp_path / name, write(tmp_path / "r.jsonl", lines)


@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
def test_whatever_the_disk_refuses_the_next_run_ends_with_the_same_outputs(
    tmp_path, prompts, monkeypatch, call
):
    """Fails the first, second, ... call until nothing fails any more."""
    whole, results = _folder(tmp_path, prompts, "whole")
    provenance.import_batch(results, whole)
    target = Path if call == "replace" else os
    real = getattr(target, call)
    for number in range(100):
        folder, results = _folder(tmp_path, prompts, f"out{number}")
        left = [number]

        def refuse(*given, left=left, **named):
            left[0] -= 1
            if left[0] == -1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(*given, **named)

        with monkeypatch.context() as patched:
            patched.setattr(target, call, refuse)
            try:
                provenance.import_batch(results, folder)
            except StorageError:
                failed = True
            else:
                failed = False
        provenance.import_batch(results, folder)
        assert (folder / "outputs.jsonl").read_bytes() == (whole / "outputs.jsonl").read_bytes()
        assert provenance.verify_collection(folder).exit_code == 0
        names = [sorted(path.name for path in one.iterdir()) for one in (folder, whole)]
        assert names[0] == names[1]
        if not failed:
            break
    assert number >= 1


def test_one_bit_flipped_anywhere_is_found(tmp_path, prompts):
    folder, results = _folder(tmp_path, prompts)
    head = provenance.import_batch(results, folder).facts["head"]
    places = 0
    for name in ("ledger.jsonl", "prompts.jsonl", "outputs.jsonl"):
        content = (folder / name).read_bytes()
        for place in range(0, len(content), max(1, len(content) // 80)):
            changed = bytearray(content)
            changed[place] ^= 1 << place % 8
            (folder / name).write_bytes(bytes(changed))
            found = provenance.verify_collection(folder, head)
            assert found.exit_code == 1, (name, place)
            places += 1
        (folder / name).write_bytes(content)
    assert places >= 200
    assert provenance.verify_collection(folder, head).exit_code == 0
