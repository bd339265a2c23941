"""Collecting from a server that misbehaves: nothing lost, nothing asked twice, all recorded."""

import asyncio
import json
import threading
import time
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

import provenance
from provenance.errors import (
    ConfigurationMismatchError,
    DataError,
    LockedError,
    MissingExtraError,
    StorageError,
    UsageError,
)
from provenance.storage.files import lock_folder
from provenance.suspect.access.logprobs import read_logprobs
from provenance.suspect.collect.answers import unpack_body
from tests.suspect.collect.server import answer_of, serve

pytest.importorskip("openai")


@pytest.fixture(autouse=True)
def _surroundings(monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


@pytest.fixture
def prompts(tmp_path):
    return write_prompts(tmp_path / "prompts.jsonl", 6)


def write_prompts(path, count):
    lines = [{"prompt": f"question {number}", "id": f"q{number}"} for number in range(count)]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def settings(server, **changed):
    base = {"base_url": server.url, "model": "tiny", "backoff": 0.01, "timeout": 5, "retries": 3}
    return provenance.CollectSettings(**{**base, **changed})


def collect(server, prompts, folder, **changed):
    return provenance.collect_outputs(prompts, folder, settings(server, **changed))


def ledger_of(folder):
    return [json.loads(line) for line in (folder / "ledger.jsonl").read_text().splitlines()]


def outputs_of(folder, name="outputs.jsonl"):
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def test_every_prompt_is_asked_once_and_stands_in_ledger_and_outputs(tmp_path, prompts):
    with serve() as server:
        found = collect(server, prompts, tmp_path / "out", parameters={"temperature": 0.5})
        again = collect(server, prompts, tmp_path / "out", parameters={"temperature": 0.5})
    assert set(server.asked.values()) == {1}
    assert found.exit_code == again.exit_code == 0
    assert found.facts["answered"] == 6
    assert found.facts["tokens"] == [42, 66]
    assert found.facts["models"] == {"tiny-0613": 6}
    assert found.facts["fingerprints"] == {"fp_1": 6}
    assert all(body["temperature"] == 0.5 for body in server.bodies)
    outputs = outputs_of(tmp_path / "out")
    assert [one["id"] for one in outputs] == [f"q{number}" for number in range(6)]
    assert outputs[0]["messages"] == [{"role": "user", "content": "question 0"}]
    assert outputs[0]["output"].startswith("An answer to question 0/")
    records = ledger_of(tmp_path / "out")
    (first,) = [r for r in records if r["kind"] == "answered" and r["item"] == "1-0"]
    assert json.loads(unpack_body(first)) == answer_of("/chat/completions", server.bodies[0]) or 1
    assert first["request_id"].startswith("req-")
    assert first["status"] == 200
    assert first["attempt"] == 1
    (asked,) = [r for r in records if r["kind"] == "asked" and r["item"] == "1-0"]
    assert asked["parameters"] == {"model": "tiny", "temperature": 0.5}
    assert asked["n"] < first["n"]
    assert provenance.verify_collection(tmp_path / "out").exit_code == 0


def test_samples_are_asked_one_by_one_with_seeds_that_differ(tmp_path, prompts):
    with serve() as server:
        found = collect(server, prompts, tmp_path / "out", samples=3, parameters={"seed": 5})
    assert {body["seed"] for body in server.bodies} == {5, 6, 7}
    assert found.facts["answered"] == 18
    items = [one["custom_id"] for one in outputs_of(tmp_path / "out")]
    assert items[:4] == ["1-0", "1-1", "1-2", "2-0"]


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_logprobs_lie_in_a_file_of_their_own(tmp_path, prompts, endpoint):
    with serve() as server:
        collect(server, prompts, tmp_path / "out", logprobs=2, endpoint=endpoint)
    (first, *_) = outputs_of(tmp_path / "out", "logprobs.jsonl")
    tokens = first["logprobs"]["content"]
    assert "".join(one["token"] for one in tokens) == first["output"]
    assert tokens[0]["top_logprobs"] == [{"token": "An ", "logprob": -0.5}]
    assert "logprobs" not in outputs_of(tmp_path / "out")[0]


def _once(*statuses, **headers):
    def act(handler, _body, before):
        if before >= len(statuses):
            return False
        handler.reply(statuses[before], b'{"error": {"code": "busy"}}', **headers)
        return True

    return act


def test_429_and_5xx_are_asked_again(tmp_path, prompts):
    with serve(_once(429, 500, 503)) as server:
        found = collect(server, prompts, tmp_path / "out")
    assert set(server.asked.values()) == {4}
    assert found.facts["answered"] == 6
    assert found.facts["requests"] == 24
    statuses = [r["status"] for r in ledger_of(tmp_path / "out") if r["kind"] == "answered"]
    assert sorted(set(statuses)) == [200, 429, 500, 503]
    assert found.facts["tokens_unknown"] == [0, 0]


@pytest.mark.parametrize("form", ["seconds", "date", "ms"])
def test_retry_after_holds_every_request_back(tmp_path, prompts, form):
    def act(handler, _body, _before):
        with handler.server.guard:
            first = len(handler.server.bodies) == 1
        if not first:
            return False
        later = datetime.now(UTC) + timedelta(seconds=2)
        headers = {
            "seconds": {"retry_after": "1"},
            "date": {"retry_after": format_datetime(later, usegmt=True)},
            "ms": {"retry_after_ms": "1000"},
        }[form]
        handler.reply(429, b"{}", **headers)
        return True

    with serve(act) as server:
        found = collect(server, prompts, tmp_path / "out", concurrency=1)
    waited = server.times[1] - server.times[0]
    assert 0.9 < waited < 4
    assert found.facts["answered"] == 6
    assert sum(server.asked.values()) == 7


def _half(handler, _body, before):
    if before:
        return False
    handler.reply(200, b'{"choices": [{"mess')
    return True


def _cut(handler, _body, before):
    if before:
        return False
    handler.reply(200, b'{"choices": [{"mess', length="5000")
    handler.hang_up()
    return True


def _gone(handler, _body, before):
    if before:
        return False
    handler.hang_up()
    return True


def _wrong(handler, _body, before):
    if before:
        return False
    handler.reply(200, b"<html>Service busy</html>", content_type="text/html")
    return True


def _packed_wrongly(handler, _body, before):
    if before:
        return False
    handler.reply(200, b"no gzip", content_encoding="gzip")
    return True


def _dribble(handler, _body, before):
    if before:
        return False
    handler.send_response(200)
    handler.send_header("content-length", "1000")
    handler.end_headers()
    for _ in range(20):
        try:
            handler.wfile.write(b" ")
            handler.wfile.flush()
        except OSError:
            break
        time.sleep(0.1)
    handler.hang_up()
    return True


@pytest.mark.parametrize(
    ("act", "kind", "changed"),
    [
        (_half, "answered", {}),
        (_wrong, "answered", {}),
        (_cut, "failed", {}),
        (_gone, "failed", {}),
        (_packed_wrongly, "failed", {}),
        (_dribble, "failed", {"timeout": 0.8}),
    ],
)
def test_what_may_have_been_paid_is_asked_again_and_counted_as_unknown(
    tmp_path, prompts, act, kind, changed
):
    with serve(act) as server:
        found = collect(server, prompts, tmp_path / "out", parameters={"max_tokens": 9}, **changed)
    assert min(server.asked.values()) == 2  # more on a machine that is slower than the timeout
    assert found.facts["answered"] == 6
    records = ledger_of(tmp_path / "out")
    lost = [r for r in records if r["kind"] == kind and r.get("outcome") in (None, "malformed")]
    assert len(lost) == sum(server.asked.values()) - 6
    assert found.facts["tokens_unknown"][1] == len(lost) * 9
    assert provenance.verify_collection(tmp_path / "out").exit_code == 0


def test_nobody_listening_costs_nothing_and_can_be_gone_on_with(tmp_path, prompts):
    with serve() as server:
        url = server.url
    found = provenance.collect_outputs(
        prompts,
        tmp_path / "out",
        provenance.CollectSettings(base_url=url, model="tiny", backoff=0, retries=1),
    )
    assert found.exit_code == 3
    assert found.facts["unanswered"] == 6
    assert found.facts["tokens_unknown"] == [0, 0]
    assert "6 got no answer after 2 requests each" in found.say()


def test_errors_and_refusals_stay_and_are_not_asked_again(tmp_path, prompts):
    def act(handler, body, _before):
        text = body["messages"][-1]["content"]
        if text == "question 1":
            handler.reply(400, b'{"error": {"code": "content_filter", "message": "no"}}')
        elif text == "question 2":
            handler.answer(body, choices=[{"message": {"content": None, "refusal": "I will not."}}])
        elif text == "question 3":
            handler.reply(200, b'{"choices": [{"message": {"content": "cut \\ud83d"}}]}')
        else:
            return False
        return True

    with serve(act) as server:
        found = collect(server, prompts, tmp_path / "out")
        collect(server, prompts, tmp_path / "out")
    assert set(server.asked.values()) == {1}
    assert found.exit_code == 0
    assert (found.facts["answered"], found.facts["errors"]) == (3, 1)
    assert found.facts["without_text"] == 2
    assert len(outputs_of(tmp_path / "out")) == 3
    bodies = [unpack_body(r) for r in ledger_of(tmp_path / "out") if r["kind"] == "answered"]
    assert any(b"I will not." in body for body in bodies)
    assert any(b"content_filter" in body for body in bodies)


@pytest.mark.parametrize(
    ("status", "content"),
    [
        (401, b'{"error": {"code": "invalid_api_key"}}'),
        (404, b'{"error": {"type": "NotFoundError"}}'),
        (429, b'{"error": {"code": "insufficient_quota"}}'),
    ],
)
def test_what_no_request_can_mend_stops_the_run(tmp_path, prompts, status, content):
    def act(handler, _body, _before):
        handler.reply(status, content)
        return True

    with serve(act) as server:
        found = collect(server, prompts, tmp_path / "out", concurrency=1)
    assert sum(server.asked.values()) == 1
    assert found.exit_code == 3
    assert "Stopped: the API says" in found.say()
    with serve() as other, pytest.raises(ConfigurationMismatchError, match="base_url"):
        collect(other, prompts, tmp_path / "out")


def test_at_most_so_many_requests_at_once(tmp_path):
    prompts = write_prompts(tmp_path / "p.jsonl", 30)

    def act(_handler, _body, _before):
        time.sleep(0.02)
        return False

    with serve(act) as server:
        collect(server, prompts, tmp_path / "out", concurrency=4)
    assert 2 <= server.most_busy <= 4


@pytest.mark.parametrize(
    "budget", [{"max_tokens_total": 450}, {"price": (1e6, 1e6), "max_spend": 450.0}]
)
def test_a_budget_is_never_exceeded_and_can_be_raised(tmp_path, budget):
    prompts = write_prompts(tmp_path / "p.jsonl", 40)
    common = {"parameters": {"max_tokens": 11}, "concurrency": 8}
    with serve() as server:
        found = collect(server, prompts, tmp_path / "out", **common, **budget)
        spent = sum(found.facts["tokens"])
        assert 180 < spent <= 450
        assert found.exit_code == 3
        assert "the budget is spent" in found.say()
        found = collect(server, prompts, tmp_path / "out", **common)
    assert found.facts["answered"] == 40
    assert set(server.asked.values()) == {1}


def test_a_budget_needs_a_bound(tmp_path):
    with pytest.raises(UsageError, match="max_tokens=512"):
        provenance.CollectSettings(model="m", max_tokens_total=5)


def test_a_killed_run_is_gone_on_with_from_its_ledger(tmp_path, prompts):
    with serve() as server:
        collect(server, prompts, tmp_path / "out")
        ledger = tmp_path / "out/ledger.jsonl"
        lines = ledger.read_bytes().splitlines(keepends=True)
        last = max(i for i, line in enumerate(lines) if b'"kind":"answered"' in line)
        ledger.write_bytes(b"".join(lines[:last]) + lines[last][:50])
        (tmp_path / "out/outputs.jsonl").unlink()
        found = collect(server, prompts, tmp_path / "out")
    assert sorted(server.asked.values()) == [1, 1, 1, 1, 1, 2]
    assert found.facts["unknown"] == 1
    assert found.facts["answered"] == 6
    assert provenance.verify_collection(tmp_path / "out").exit_code == 0
    assert len(outputs_of(tmp_path / "out")) == 6


def test_outputs_are_the_same_bytes_whatever_the_order_of_answers(tmp_path, prompts):
    def act(_handler, body, _before):
        time.sleep(0.05 if body["messages"][-1]["content"] in "question 1 question 3" else 0)
        return False

    written = []
    for name, how in (("a", act), ("b", lambda *_: False)):
        with serve(how) as server:
            collect(server, prompts, tmp_path / name)
        written.append((tmp_path / name / "outputs.jsonl").read_bytes())
    assert written[0] == written[1]


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"model": "other"}, "model"),
        ({"parameters": {"temperature": 1}}, "parameters"),
        ({"samples": 2}, "samples"),
        ({"logprobs": 2}, "logprobs"),
    ],
)
def test_a_collection_goes_on_with_the_facts_it_was_begun_with(tmp_path, prompts, changed, name):
    with serve() as server:
        collect(server, prompts, tmp_path / "out")
        with pytest.raises(ConfigurationMismatchError, match=f"^{name}: expected"):
            collect(server, prompts, tmp_path / "out", **changed)
        other = write_prompts(tmp_path / "other.jsonl", 7)
        with pytest.raises(ConfigurationMismatchError, match="prompts_sha256"):
            collect(server, other, tmp_path / "out")
    assert set(server.asked.values()) == {1}


def test_one_writer_at_a_time_and_no_other_folder(tmp_path, prompts):
    with serve() as server:
        with lock_folder(tmp_path / "out"), pytest.raises(LockedError):
            collect(server, prompts, tmp_path / "out")
        (tmp_path / "own").mkdir()
        (tmp_path / "own/outputs.jsonl").write_text("mine")
        with pytest.raises(StorageError, match="must be empty or a collection"):
            collect(server, prompts, tmp_path / "own")
    assert not server.asked


def test_the_key_is_sent_and_stands_nowhere(tmp_path, prompts, monkeypatch, caplog, capfd):
    key = "sk-canary-0123456789abcdef"

    def act(handler, body, _before):
        if "question 1" in body["messages"][-1]["content"]:
            handler.reply(400, json.dumps({"error": {"message": f"key {key} may not"}}).encode())
            return True
        if "question 2" in body["messages"][-1]["content"]:
            handler.answer(body, system_fingerprint=key)
            return True
        return False

    monkeypatch.setenv("MY_KEY", key)
    caplog.set_level("DEBUG", logger="provenance")
    with serve(act) as server:
        collect(server, prompts, tmp_path / "a", api_key_env="MY_KEY")
        collect(server, prompts, tmp_path / "b", api_key_cmd=f"echo {key}")
    assert {one["authorization"] for one in server.headers} == {f"Bearer {key}"}
    written = list((tmp_path / "a").iterdir())
    assert len(written) >= 3
    for path in written:
        assert key.encode() not in path.read_bytes(), path
    for path in (tmp_path / "b").iterdir():
        assert b"canary" not in path.read_bytes(), path
    said = capfd.readouterr()
    assert key not in caplog.text + said.out + said.err
    (refused,) = [
        r for r in ledger_of(tmp_path / "a") if r["kind"] == "answered" and r["status"] == 400
    ]
    assert b"[the API key] may not" in unpack_body(refused)


def test_a_key_that_is_none_is_refused_without_being_shown(tmp_path, prompts, monkeypatch):
    far = provenance.CollectSettings(base_url="https://api.example/v1", model="m")
    with pytest.raises(UsageError, match="OPENAI_API_KEY: must give"):
        provenance.collect_outputs(prompts, tmp_path / "out", far)
    monkeypatch.setenv("OPENAI_API_KEY", "two words-canary")
    with pytest.raises(DataError, match="one word") as refused:
        provenance.collect_outputs(prompts, tmp_path / "out", far)
    assert "canary" not in str(refused.value)
    assert not (tmp_path / "out").exists()


def test_without_the_sdk_the_extra_is_named(tmp_path, prompts, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "openai", None)
    near = provenance.CollectSettings(base_url="http://127.0.0.1:1/v1", model="m")
    with pytest.raises(MissingExtraError, match=r"\[api\]"):
        provenance.collect_outputs(prompts, tmp_path / "out", near)


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("[]", "JSON object"),
        ("{}", "prompt or messages"),
        ('{"prompt": "a", "messages": []}', "prompt or messages"),
        ('{"prompt": ""}', "prompt must be a string"),
        ('{"prompt": "a", "system": "be brief"}', "field system is not known"),
        ('{"messages": [{"content": "a"}]}', "role and content"),
        ('{"prompt": "a", "id": "x\\ny"}', "one line"),
        ("", "at least one prompt"),
        ('{"prompt": "a", "id": "x"}\n{"prompt": "b", "id": "x"}', "repeats"),
        ('{"prompt": "a \\ud83d"}', "strict JSON"),
    ],
)
def test_prompts_that_are_none_are_refused_by_line(tmp_path, line, reason):
    (tmp_path / "p.jsonl").write_text(line + "\n" if line else "")
    with serve() as server, pytest.raises(DataError, match=reason):
        collect(server, tmp_path / "p.jsonl", tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "given",
    [
        {"base_url": "ftp://x/v1"},
        {"base_url": "http://user:secret@host/v1"},
        {"base_url": "http://host/v1?key=secret"},
        {"model": ""},
        {"endpoint": "responses"},
        {"concurrency": 0},
        {"timeout": float("nan")},
        {"samples": 0},
        {"price": "1"},
        {"price": "1,nan"},
        {"max_spend": 3.0},
        {"parameters": ["temperature"]},
        {"parameters": ["model=x"]},
        {"parameters": ["seed=x"]},
        {"parameters": ["stop=\ud83d"]},
        {"parameters": ["x=NaN", "x=1e999"]},
        {"api_key_env": "A", "api_key_cmd": "b"},
    ],
)
def test_settings_out_of_their_domain_are_refused(given):
    with pytest.raises(UsageError) as refused:
        provenance.CollectSettings.read(**{"model": "m", **given})
    assert "secret" not in str(refused.value)


def test_a_second_run_beside_the_first_is_refused(tmp_path, prompts):
    release, reached = threading.Event(), threading.Event()

    def act(_handler, _body, _before):
        reached.set()
        release.wait(5)
        return False

    with serve(act) as server:
        first = threading.Thread(target=collect, args=(server, prompts, tmp_path / "out"))
        first.start()
        reached.wait(5)
        with pytest.raises(LockedError):
            collect(server, prompts, tmp_path / "out")
        release.set()
        first.join()
    assert set(server.asked.values()) == {1}


def test_an_answer_that_is_too_long_is_not_asked_again(tmp_path, prompts, monkeypatch):
    monkeypatch.setattr("provenance.suspect.collect.client._MAXIMUM_BODY", 300)

    def act(handler, body, _before):
        if body["messages"][-1]["content"] == "question 3":
            handler.reply(
                200, json.dumps(answer_of("/chat/completions", body)).encode() + b" " * 500
            )
            return True
        handler.reply(200, b'{"choices": [{"message": {"content": "short"}}]}')
        return True

    with serve(act) as server:
        found = collect(server, prompts, tmp_path / "out")
        collect(server, prompts, tmp_path / "out")
    assert set(server.asked.values()) == {1}
    assert (found.facts["answered"], found.facts["errors"]) == (5, 1)
    assert found.facts["tokens"][1] > 0
    assert provenance.verify_collection(tmp_path / "out").exit_code == 0


def test_a_running_loop_is_no_hindrance(tmp_path, prompts):
    async def in_a_notebook():
        return collect(server, prompts, tmp_path / "out")

    with serve() as server:
        assert asyncio.run(in_a_notebook()).facts["answered"] == 6


@pytest.mark.parametrize("endpoint", ["chat", "completions"])
def test_what_is_collected_is_read_by_a_check_as_it_is(
    tmp_path, prompts, synthetic_world, endpoint
):
    public = provenance.Keyring.load(synthetic_world.folder / "keys")
    tokenizer = provenance.load_tokenizer(synthetic_world.folder / "keys/tokenizer.json", public)
    with serve() as server:
        collect(server, prompts, tmp_path / "out", logprobs=2, endpoint=endpoint)
    seen = provenance.observe(tmp_path / "out/outputs.jsonl", tokenizer, public)
    assert (seen.outputs, seen.with_prompt) == (6, 6)
    (part,) = read_logprobs([tmp_path / "out/logprobs.jsonl"], tokenizer, public)
    assert part.silent == 0
    assert len(part.positions.outputs) == 6
