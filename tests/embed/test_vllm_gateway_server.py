"""The gateway in vLLM's own server: what reaches the engine through each endpoint.

Starts three servers (a minute each); needs vLLM. A probe in the place of the watermark writes down
the `extra_args` that vLLM made of each request; the last server marks and logs.
"""

import http.client
import json
import threading
import time
import urllib.request
from importlib.util import find_spec

import pytest

pytest.importorskip("torch")
if find_spec("vllm") is None:
    pytest.skip("vLLM is not installed: docs/serving.md says how", allow_module_level=True)

from provenance.embed.policy import hash_api_key
from tests.conftest import make_keyring
from tests.world.vllm_lab import MODEL_NAME, PROBE_VARIABLE, make_model, run_server

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")

GATEWAY = ["--middleware", "provenance.embed.vllm.gateway.Gateway"]
PROBE = "tests.world.gateway_probe:Probe"
TABLE = f"""api_key_sha256,cohort,payment,mark
{hash_api_key("sk-one")},a,card-7,
{hash_api_key("sk-if")},b,,if-possible
{hash_api_key("sk-never")},b,,never
"""
TALK = {"messages": [{"role": "user", "content": "def make"}], "max_tokens": 4}
BODIES = {
    "/v1/completions": {"prompt": "def make", "max_tokens": 4},
    "/v1/chat/completions": TALK,
    "/v1/responses": {"input": "def make", "max_output_tokens": 4},
    "/v1/messages": TALK,
}
HOSTILE = {
    "request_id": "constant",
    "vllm_xargs": {"provenance_labels": ["cohort=b"], "provenance_mark": "never", "x": 1},
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, tokenizer_path):
    folder = tmp_path_factory.mktemp("gateway")
    shares, values = {"global": 0.2, "cohort": 0.6}, {"cohort": ["a", "b"]}
    keyring = make_keyring(folder / "keys", tokenizer_path, shares=shares, values=values)
    make_model(folder / "model", tokenizer_path, keyring.public.vocabulary_size)
    (folder / "callers.csv").write_text(TABLE)
    return folder


@pytest.fixture(scope="module")
def server(folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROVENANCE_POLICY", str(folder / "callers.csv"))
        patch.setenv(PROBE_VARIABLE, str(folder / "probe.jsonl"))
        with run_server(
            folder / "model", folder / "keys", folder / "log", processor=PROBE, options=GATEWAY
        ) as running:
            running.folder = folder
            yield running


def _post(server, path, body, *, key="sk-one", headers=()):
    """Status and text of the answer, and what the engine was asked since."""
    seen = server.folder / "probe.jsonl"
    before = len(seen.read_text().splitlines()) if seen.exists() else 0
    status, text = _request(server, path, body, key=key, headers=headers)
    lines = seen.read_text().splitlines()[before:] if seen.exists() else []
    return status, text, [json.loads(line)["extra_args"] for line in lines]


def _request(server, path, body, *, key="sk-one", headers=()):
    sent = {"Content-Type": "application/json", "Authorization": f"Bearer {key}", **dict(headers)}
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
    try:
        connection.request("POST", path, json.dumps({"model": MODEL_NAME, **body}), sent)
        response = connection.getresponse()
        return response.status, response.read().decode()
    finally:
        connection.close()


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_the_labels_that_reach_the_engine_are_the_policys(server, path, stream):
    body = {**BODIES[path], **HOSTILE, "stream": stream, "metadata": {"conversation_id": "c-1"}}
    status, text, asked = _post(server, path, body, headers={"X-Request-Id": "constant"})
    assert status == 200, text
    assert "constant" not in text
    (extra,) = asked
    conversation = extra.pop("provenance_conversation")
    assert conversation.endswith("/c-1")
    assert extra == {
        "provenance_labels": ["cohort=a"],
        "provenance_groups": ["payment=card-7"],
        "provenance_mark": "always",
        "provenance_request_id": "constant",
    }


@pytest.mark.parametrize("path", BODIES)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refusal_is_a_400_of_the_dialect_also_for_a_stream(server, path, stream):
    for more in ({"temperature": 0}, {"use_beam_search": True}):
        body = {**BODIES[path], "stream": stream, **more}
        status, text, asked = _post(server, path, body)
        assert (status, asked) == (400, [])
        error = json.loads(text)["error"]
        if path == "/v1/messages":
            assert json.loads(text)["type"] == "error"
            assert error["type"] == "invalid_request_error"
        else:
            assert (error["type"], error["code"]) == ("BadRequestError", 400)
    assert _post(server, path, BODIES[path], key="sk-other")[0] == 403
    status, text, (extra,) = _post(server, path, {**BODIES[path], "temperature": 0}, key="sk-if")
    assert status == 200, text
    assert extra["provenance_mark"] == "if-possible"
    status, text, (extra,) = _post(server, path, BODIES[path], key="sk-never")
    assert status == 200, text
    assert extra["provenance_mark"] == "never"


def test_beams_are_served_without_labels_where_the_policy_allows(server):
    body = {**BODIES["/v1/completions"], "use_beam_search": True, "n": 2, **HOSTILE}
    status, text, asked = _post(server, "/v1/completions", body, key="sk-if")
    assert status == 200, text
    assert not any(asked)


def test_batches_and_invocations_are_labelled_too(server):
    batch = {"messages": [TALK["messages"], TALK["messages"]], "max_tokens": 4, **HOSTILE}
    status, text, asked = _post(server, "/v1/chat/completions/batch", batch)
    assert status == 200, text
    assert [extra["provenance_labels"] for extra in asked] == [["cohort=a"]] * 2
    for path in ("/v1/completions", "/v1/chat/completions"):
        status, text, (extra,) = _post(server, "/invocations", {**BODIES[path], **HOSTILE})
        assert status == 200, text
        assert extra["provenance_labels"] == ["cohort=a"]
    assert _post(server, "/inference/v1/generate", {"token_ids": [5]})[0] == 403


def test_bodies_that_are_no_requests_are_answered(server):
    for path, body in BODIES.items():
        status, _, asked = _post(server, path, {**body, "temperature": "warm"})
        assert (status, asked) == (400, [])
    assert urllib.request.urlopen(f"http://127.0.0.1:{server.port}/v1/models").status == 200


def test_numbers_stand_on_vllms_own_page(server):
    _post(server, "/v1/completions", BODIES["/v1/completions"])
    page = urllib.request.urlopen(f"http://127.0.0.1:{server.port}/metrics").read().decode()
    lines = [line for line in page.splitlines() if line.startswith("provenance_gateway_requests_")]
    assert any('outcome="asked",path="/v1/completions",reason="always"' in line for line in lines)


def test_a_new_table_is_followed(server):
    path = "/v1/completions"
    table = server.folder / "callers.csv"
    table.with_suffix(".new").write_text(TABLE.replace(",a,card-7", ",b,card-8"))
    table.with_suffix(".new").replace(table)
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        _, _, (extra,) = _post(server, path, BODIES[path])
        if extra["provenance_groups"] == ["payment=card-8"]:
            break
        time.sleep(0.2)
    assert extra["provenance_labels"] == ["cohort=b"]
    lines = server.log.read_text(errors="replace").splitlines()
    assert sum("label policy: 3 callers" in line for line in lines) == 2


def test_the_engines_log_says_what_the_gateway_wrote(folder, tmp_path, monkeypatch):
    """With the watermark in the place of the probe, through all endpoints, streams and not."""
    (tmp_path / "callers.csv").write_text(TABLE)
    monkeypatch.setenv("PROVENANCE_POLICY", str(tmp_path / "callers.csv"))
    monkeypatch.setenv("PROVENANCE_LOG", str(tmp_path / "served"))
    more_tokens = {"max_tokens": 60, "max_output_tokens": 60, "ignore_eos": True}
    long = {**more_tokens, "metadata": {"conversation_id": "c"}, **HOSTILE}
    sent = {}
    options = [*GATEWAY, "--max-num-batched-tokens", "64", "--shutdown-timeout", "30"]
    with run_server(folder / "model", folder / "keys", tmp_path / "log", options=options) as server:
        for key, more in (("sk-one", {}), ("sk-if", {"temperature": 0}), ("sk-never", {})):
            for path, body in BODIES.items():
                for stream in (False, True):
                    name = f"{key}{path}{stream}"
                    asked = {**body, **long, **more, "request_id": name, "stream": stream}
                    status, text = _request(server, path, asked, key=key)
                    assert status == 200, text
                    sent[name] = key
        last = {**BODIES["/v1/completions"], **long, "request_id": "last", "max_tokens": 900}
        running = threading.Thread(target=_request, args=(server, "/v1/completions", last))
        running.start()
        time.sleep(1)  # told to stop, vLLM lets it end
    running.join()
    assert not list((tmp_path / "served").glob("*.part"))
    parts = [part.read_text().splitlines() for part in (tmp_path / "served").iterdir()]
    records = [json.loads(line) for lines in parts for line in lines]
    assert sorted(record["request_id"] for record in records) == sorted([*sent, "last"])
    records = {record["request_id"]: record for record in records}
    assert (len(records["last"]["token_ids"]), records["last"]["finish"]) == (900, "length")
    for name, key in sent.items():
        record = records[name]
        labels = {"cohort": "a", "payment": "card-7"} if key == "sk-one" else {"cohort": "b"}
        assert record["labels"].items() >= labels.items()
        assert record["conversation_id"].endswith("/c")
        assert name not in record["response_id"]
        assert record["marked"] == (key == "sk-one") or len(record["token_ids"]) < 20


def test_a_server_with_a_damaged_table_does_not_start(folder, tmp_path, monkeypatch):
    (tmp_path / "callers.csv").write_text("who\na\n")
    monkeypatch.setenv("PROVENANCE_POLICY", str(tmp_path / "callers.csv"))
    monkeypatch.setenv(PROBE_VARIABLE, str(tmp_path / "probe.jsonl"))
    log = tmp_path / "log"
    with (
        pytest.raises(RuntimeError, match="did not start"),
        run_server(folder / "model", folder / "keys", log, processor=PROBE, options=GATEWAY),
    ):
        pass
    assert "callers.csv must have one of the columns" in log.read_text(errors="replace")
