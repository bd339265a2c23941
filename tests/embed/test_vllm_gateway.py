"""The gateway before a double of vLLM's application: what reaches it, and what is refused how."""

import asyncio
import json
import logging
import os
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provenance.embed.policy import hash_api_key
from provenance.embed.vllm import admission as admission_module
from provenance.embed.vllm import gateway as gateway_module
from provenance.embed.vllm.admission import LABELLED, MESSAGES, UNLABELLED, Admission
from provenance.embed.vllm.gateway import REQUESTS, Gateway
from provenance.embed.vllm.requests import LABELS_FIELD, parse_wish
from provenance.keys.keyring import add_value
from tests.conftest import make_keyring

KEY = "sk-one"
PATHS = sorted(LABELLED)
TABLE = f"""api_key_sha256,account,cohort,payment,mark
{hash_api_key(KEY)},,a,card-7,
{hash_api_key("sk-if")},,a,,if-possible
{hash_api_key("sk-never")},,b,,never
{hash_api_key("sk-late")},,late,,
{hash_api_key("sk-late-if")},,late,,if-possible
,acme,b,,
"""
BODY = {"model": "m", "messages": [{"role": "user", "content": "hé \ud800"}], "max_tokens": 3}
HOSTILE = {
    "vllm_xargs": {
        "provenance_labels": ["cohort=b"],
        "provenance_mark": "never",
        "provenance_request_id": "x",
        "provenance": "x",
        "session_id": "s",
        "kept": 1,
    },
    "request_id": "constant",
}


class _Vllm:
    """An ASGI application that keeps what it gets and answers in two parts, one late."""

    def __init__(self):
        self.scopes, self.bodies, self.left = [], [], []

    async def __call__(self, scope, receive, send):
        self.scopes.append(scope)
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body += message.get("body", b"")
            more = message.get("more_body", False)
        self.bodies.append(body)
        await send({"type": "http.response.start", "status": 200, "headers": [(b"x-a", b"1")]})
        await send({"type": "http.response.body", "body": b"data: 1\n\n", "more_body": True})
        self.left.append((await receive())["type"])  # the client's own receive, after the body
        await send({"type": "http.response.body", "body": b"data: 2\n\n"})


@pytest.fixture
def keys(tmp_path, keyring_folder, monkeypatch):
    table = tmp_path / "callers.csv"
    table.write_text(TABLE)
    for name in [name for name in os.environ if name.startswith("PROVENANCE_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PROVENANCE_KEYRING", str(keyring_folder))
    monkeypatch.setenv("PROVENANCE_POLICY", str(table))
    admission_module._warn_once.cache_clear()
    return table


def _send(app, path=PATHS[0], body=BODY, *, key=KEY, headers=(), parts=1, method="POST", **scope):
    """Status, body, and messages of one request; the client leaves when its request is sent."""
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    sent = [(b"content-length", str(len(content)).encode()), (b"content-type", b"application/json")]
    sent += [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    sent += [(name.encode(), value.encode("utf-8", "surrogateescape")) for name, value in headers]
    step = -(-len(content) // parts) or 1
    pieces = [content[start : start + step] for start in range(0, len(content), step)] or [b""]
    queue = [
        {"type": "http.request", "body": piece, "more_body": number < len(pieces) - 1}
        for number, piece in enumerate(pieces)
    ]
    messages = []

    async def receive():
        return queue.pop(0) if queue else {"type": "http.disconnect"}

    async def send(message):
        messages.append(message)

    whole = {"type": "http", "method": method, "path": path, "headers": sent, **scope}
    asyncio.run(app(whole, receive, send))
    status = messages[0]["status"] if messages else None
    return status, b"".join(m.get("body", b"") for m in messages), messages


def _served(path=PATHS[0], body=BODY, **more):
    """What vLLM gets of a request that is served."""
    vllm = _Vllm()
    status, answer, messages = _send(Gateway(vllm), path, body, **more)
    assert (status, answer) == (200, b"data: 1\n\ndata: 2\n\n")
    assert len(messages) == 3  # as they came, unbuffered
    assert vllm.left == ["http.disconnect"]
    headers = dict(vllm.scopes[0]["headers"])
    assert headers[b"content-length"] == str(len(vllm.bodies[0])).encode()
    return json.loads(vllm.bodies[0]), vllm


def _refused(path=PATHS[0], body=BODY, **more):
    """Status and error of a request that vLLM never sees, in the endpoint's dialect."""
    vllm = _Vllm()
    status, answer, messages = _send(Gateway(vllm), path, body, **more)
    assert vllm.scopes == []
    assert dict(messages[0]["headers"])[b"content-length"] == str(len(answer)).encode()
    document = json.loads(answer)
    error = document["error"]
    if path == MESSAGES:
        assert document == {"type": "error", "error": error}
        assert set(error) == {"type", "message"}
    else:
        assert set(document) == {"error"}
        assert set(error) == {"message", "type", "param", "code"}
        assert error["code"] == status
    for word in ("label", "mark", "provenance", "cohort", KEY, hash_api_key(KEY)):
        assert word not in answer.decode()
    return status, error


def _check_labels_are_the_policys(path, body=HOSTILE, headers=()):
    sent, vllm = _served(path, {**BODY, **body}, headers=[*headers, ("x-request-id", "header")])
    assert sent["vllm_xargs"] == {
        "provenance_labels": ["cohort=a"],
        "provenance_groups": ["payment=card-7"],
        "provenance_mark": "always",
        "provenance_request_id": "constant",
    }
    wish = parse_wish(sent["vllm_xargs"])  # the engine's reading
    assert (wish.labels, wish.groups) == ({"cohort": "a"}, {"payment": "card-7"})
    assert (wish.mark, wish.request_id) == ("always", "constant")
    assert "request_id" not in sent
    assert "use_beam_search" not in sent
    names = [name for name, _ in vllm.scopes[0]["headers"]]
    assert b"x-request-id" not in names
    assert b"authorization" in names
    assert {name: sent[name] for name in BODY} == BODY


@pytest.mark.parametrize("path", PATHS)
def test_labels_are_the_policys_whatever_the_client_sends(keys, path):
    _check_labels_are_the_policys(path)


class _ForgetsToStrip(Admission):
    """A double: merges the client's fields."""

    def rewrite(self, path, headers, body, caller, decision):
        admitted = super().rewrite(path, headers, body, caller, decision)
        xargs = {**admitted.body["vllm_xargs"], **(body.get("vllm_xargs") or {})}
        return admission_module.Admitted({**admitted.body, "vllm_xargs": xargs}, "asked", "always")


class _ForgetsTheId(Admission):
    """A double: leaves the client's id."""

    def rewrite(self, path, headers, body, caller, decision):
        admitted = super().rewrite(path, headers, body, caller, decision)
        kept = {**admitted.body, "request_id": body["request_id"]}
        return admission_module.Admitted(kept, "asked", "always")


@pytest.mark.parametrize("double", [_ForgetsToStrip, _ForgetsTheId])
def test_a_gateway_that_forgets_to_strip_is_found_out(keys, monkeypatch, double):
    monkeypatch.setattr(gateway_module, "Admission", double)
    with pytest.raises(AssertionError):
        _check_labels_are_the_policys(PATHS[0])


def test_a_gateway_that_leaves_the_header_is_found_out(keys, monkeypatch):
    monkeypatch.setattr(gateway_module, "_REPLACED_HEADERS", (b"content-length",))
    with pytest.raises(AssertionError):
        _check_labels_are_the_policys(PATHS[0])


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    ("asked", "kind"),
    [
        ({"temperature": 0}, "greedy"),
        ({"temperature": 9e-6}, "greedy"),
        ({"temperature": "0.0"}, "greedy"),
        ({"temperature": float("nan")}, "greedy"),
        ({"temperature": -1}, "greedy"),
        ({"use_beam_search": True}, "beams"),
        ({"use_beam_search": "yes"}, "beams"),
        ({"use_beam_search": 1, "temperature": 0}, "beams"),
    ],
)
def test_what_cannot_be_marked_is_refused_or_served_unmarked(keys, path, stream, asked, kind):
    body = {**BODY, "stream": stream, **asked}
    counted = [REQUESTS.value(path=path, outcome=o, reason=kind) for o in ("refused", "unmarked")]
    status, error = _refused(path, body)
    assert status == 400
    assert error["type"] == ("invalid_request_error" if path == MESSAGES else "BadRequestError")
    if path != MESSAGES:
        assert error["param"] == ("use_beam_search" if kind == "beams" else "temperature")
    sent, _ = _served(path, body, key="sk-if")
    if kind == "beams":
        assert "vllm_xargs" not in sent
        assert sent["use_beam_search"] is True
    else:
        assert sent["vllm_xargs"]["provenance_mark"] == "if-possible"
        assert sent["vllm_xargs"]["provenance_labels"] == ["cohort=a"]
        assert json.dumps(sent["temperature"]) == json.dumps(asked["temperature"])
    sent, _ = _served(path, body, key="sk-never")
    assert sent.get("vllm_xargs", {}).get("provenance_mark") == (
        None if kind == "beams" else "never"
    )
    now = [REQUESTS.value(path=path, outcome=o, reason=kind) for o in ("refused", "unmarked")]
    assert now[0] == counted[0] + 1
    assert now[1] == counted[1] + (2 if kind == "beams" else 1)


@pytest.mark.parametrize("asked", [{}, {"temperature": None}, {"temperature": 1e-5},
                                   {"temperature": "warm"}, {"temperature": [0]},
                                   {"use_beam_search": False}, {"use_beam_search": "false"},
                                   {"use_beam_search": 0}, {"use_beam_search": None}])  # fmt: skip
@pytest.mark.parametrize("key", [KEY, "sk-if", "sk-never"])
def test_what_can_be_marked_or_is_vllms_to_judge_goes_on(keys, asked, key):
    sent, _ = _served(body={**BODY, **asked}, key=key)
    marks = {KEY: "always", "sk-if": "if-possible", "sk-never": "never"}
    assert sent["vllm_xargs"]["provenance_mark"] == marks[key]
    assert "use_beam_search" not in sent
    assert sent.get("temperature") == asked.get("temperature")


@pytest.mark.parametrize("path", PATHS)
def test_a_stranger_is_refused_unread_or_gets_the_default(keys, path, monkeypatch):
    vllm = _Vllm()

    async def receive():
        raise AssertionError("the body was read")

    messages = []

    async def send(message):
        messages.append(message)

    scope = {"type": "http", "method": "POST", "path": path, "headers": []}
    asyncio.run(Gateway(vllm)(scope, receive, send))
    assert messages[0]["status"] == 403
    for key in (None, "sk-other", "", hash_api_key(KEY)):
        status, error = _refused(path, key=key)
        assert status == 403
        assert error["type"] == (
            "permission_error" if path == MESSAGES else "PermissionDeniedError"
        )
    monkeypatch.setenv("PROVENANCE_DEFAULT_LABELS", "cohort=b")
    sent, _ = _served(path, key=None)
    assert sent["vllm_xargs"]["provenance_labels"] == ["cohort=b"]
    monkeypatch.setenv("PROVENANCE_DEFAULT_LABELS", "")
    sent, _ = _served(path, key="sk-other")
    assert sent["vllm_xargs"]["provenance_labels"] == []


def test_the_key_may_stand_in_either_header_but_not_two_keys(keys):
    sent, _ = _served(key=None, headers=[("X-Api-Key", KEY)])
    assert sent["vllm_xargs"]["provenance_labels"] == ["cohort=a"]
    _served(headers=[("x-api-key", KEY)])
    assert _refused(headers=[("x-api-key", "sk-never")])[0] == 403


def test_accounts_come_from_trusted_headers_only(keys, monkeypatch):
    headers = [("X-Account", "acme")]
    assert _refused(key=None, headers=headers)[0] == 403
    monkeypatch.setenv("PROVENANCE_HEADERS", "account=X-Account")
    sent, _ = _served(key=None, headers=headers)
    assert sent["vllm_xargs"]["provenance_labels"] == ["cohort=b"]
    assert sent["vllm_xargs"]["provenance_groups"] == ["account=acme"]
    sent, _ = _served(headers=[("x-account", "unlisted")])
    assert sent["vllm_xargs"]["provenance_labels"] == ["cohort=a"]
    assert "account=unlisted" in sent["vllm_xargs"]["provenance_groups"]


def test_keys_and_accounts_are_the_bytes_of_the_header(keys, monkeypatch):
    keys.write_text(f"api_key_sha256,account,cohort\n{hash_api_key('clé')},,a\n,café,b\n")
    monkeypatch.setenv("PROVENANCE_HEADERS", "account=x-account")
    sent, _ = _served(key="clé")
    assert sent["vllm_xargs"]["provenance_labels"] == ["cohort=a"]
    sent, _ = _served(key=None, headers=[("x-account", "café")])
    assert sent["vllm_xargs"]["provenance_labels"] == ["cohort=b"]
    monkeypatch.setenv("PROVENANCE_DEFAULT_LABELS", "")
    sent, _ = _served(key=None, headers=[("x-account", "a\udcff")])
    "".join(sent["vllm_xargs"]["provenance_groups"]).encode("utf-8")


def test_a_label_without_a_key_is_never_silently_unmarked(tmp_path, keys, tokenizer_path,
                                                          monkeypatch, caplog):  # fmt: skip
    folder = tmp_path / "ring"
    make_keyring(
        folder, tokenizer_path, shares={"global": 0.2, "cohort": 0.5}, values={"cohort": ["a", "b"]}
    )
    monkeypatch.setenv("PROVENANCE_KEYRING", str(folder))
    for path in (PATHS[0], MESSAGES):
        for _ in range(2):
            status, error = _refused(path, key="sk-late")
            assert status == 503
            assert error["type"] == ("api_error" if path == MESSAGES else "ServiceUnavailableError")
    warned = [record.getMessage() for record in caplog.records if "late" in record.getMessage()]
    assert len(warned) == 1
    vllm = _Vllm()
    gateway = Gateway(vllm)
    before = REQUESTS.value(path=PATHS[0], outcome="asked", reason="no_key")
    _send(gateway, key="sk-late-if")
    assert json.loads(vllm.bodies[-1])["vllm_xargs"]["provenance_labels"] == []
    assert json.loads(vllm.bodies[-1])["vllm_xargs"]["provenance_groups"] == ["cohort=late"]
    assert REQUESTS.value(path=PATHS[0], outcome="asked", reason="no_key") == before + 1
    add_value(folder, "cohort", "late")
    for key in ("sk-late", "sk-late-if"):
        _send(gateway, key=key)
        assert json.loads(vllm.bodies[-1])["vllm_xargs"]["provenance_labels"] == ["cohort=late"]


def test_the_week_is_the_clocks_and_must_be_known(keys, tmp_path, tokenizer_path, monkeypatch):
    folder = tmp_path / "ring"
    weeks = {f"{datetime.now(UTC):%G-W%V}"}
    make_keyring(
        folder, tokenizer_path, shares={"global": 0.2, "week": 0.5}, values={"week": sorted(weeks)}
    )
    monkeypatch.setenv("PROVENANCE_KEYRING", str(folder))
    monkeypatch.setenv("PROVENANCE_WEEK_LABEL", "week")
    monkeypatch.setenv("PROVENANCE_LABELS", "replica=r1")
    sent, _ = _served()
    assert sent["vllm_xargs"]["provenance_labels"] == [f"week={week}" for week in weeks]
    assert set(sent["vllm_xargs"]["provenance_groups"]) == {
        "replica=r1", "cohort=a", "payment=card-7"
    }  # fmt: skip


CONVERSATIONS = [
    ({"metadata": {"conversation_id": "c"}}, (), "c"),
    ({"conversation": "c"}, (), "c"),
    ({"conversation": {"id": "c"}}, (), "c"),
    ({"session_id": "c"}, (), "c"),
    ({}, [("X-Session-ID", "c")], "c"),
    ({"session_id": "s", "metadata": {"conversation_id": "m"}}, [("X-Conversation-Id", "c")], "c"),
    ({"prompt": "one"}, [("x-conversation-id", "c")], "c"),
    ({"prompt": [1, 2]}, [("x-conversation-id", "c")], "c"),
    ({"prompt": [[1, 2]]}, [("x-conversation-id", "c")], "c"),
    ({"prompt": ["one", "two"]}, [("x-conversation-id", "c")], None),
    ({"prompt": [[1], [2]]}, [("x-conversation-id", "c")], None),
    ({"user": "c", "prompt_cache_key": "c", "previous_response_id": "c"}, (), None),
    ({"metadata": "c", "conversation": 7, "session_id": ["c"]}, (), None),
    ({"metadata": {"conversation_id": ""}, "conversation": {"id": None}}, (), None),
]


@pytest.mark.parametrize(("body", "headers", "expected"), CONVERSATIONS)
def test_the_conversation_is_found_where_there_is_one(keys, body, headers, expected):
    sent, _ = _served("/v1/responses", {**BODY, **body}, headers=headers)
    found = sent["vllm_xargs"].get("provenance_conversation")
    assert (found and found.partition("/")[2]) == expected


def test_conversations_of_two_callers_or_of_a_batch_are_not_one(keys):
    headers = [("x-conversation-id", "1")]
    found = [
        _served(key=key, headers=headers)[0]["vllm_xargs"]["provenance_conversation"]
        for key in (KEY, KEY, "sk-if")
    ]
    assert found[0] == found[1] != found[2]
    sent, _ = _served("/v1/chat/completions/batch", headers=headers)
    assert "provenance_conversation" not in sent["vllm_xargs"]


@pytest.mark.parametrize("text", ["a" * 5000, "a\n\x1b[31m\u202e", "\ud800", "日本"])
def test_ids_of_a_client_are_short_and_printable(keys, text):
    sent, _ = _served(body={**BODY, "request_id": text, "session_id": text})
    for name in ("provenance_request_id", "provenance_conversation"):
        value = sent["vllm_xargs"][name]
        assert len(value) <= 256
        assert value.isprintable()
        value.encode("utf-8")
    longer = _served(body={**BODY, "session_id": text + "b"})[0]["vllm_xargs"]
    assert longer["provenance_conversation"] != sent["vllm_xargs"]["provenance_conversation"]


def test_the_clients_request_id_may_be_a_header_or_absent(keys):
    sent, _ = _served(headers=[("X-Request-Id", "h")])
    assert sent["vllm_xargs"]["provenance_request_id"] == "h"
    for given_id in (None, "", 7, ["x"], {}):
        sent, _ = _served(body={**BODY, "request_id": given_id})
        assert "provenance_request_id" not in sent["vllm_xargs"]


def test_kept_fields_stay_and_none_of_ours(keys, monkeypatch):
    monkeypatch.setenv("PROVENANCE_KEEP_XARGS", "kept, provenance_mark,provenance")
    sent, _ = _served(body={**BODY, **HOSTILE})
    assert sent["vllm_xargs"]["kept"] == 1
    assert sent["vllm_xargs"]["provenance_mark"] == "always"
    assert not {"session_id", "provenance"} & set(sent["vllm_xargs"])
    sent, _ = _served(body={**BODY, **HOSTILE, "use_beam_search": True}, key="sk-if")
    assert sent["vllm_xargs"] == {"kept": 1}
    for wrong in ("kept", ["kept"], 7, None):
        sent, _ = _served(body={**BODY, "vllm_xargs": wrong})
        assert sent["vllm_xargs"]["provenance_labels"] == ["cohort=a"]


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize(
    "body",
    [b"", b"not json", b"[1]", b'"x"', b"null", b"\xff\xfe", b"{" * 200_000, b"[" * 200_000,
     b'{"a":' * 100_000 + b"1" + b"}" * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b"{}{}"],
)  # fmt: skip
def test_a_body_that_is_no_json_object_is_refused_in_the_dialect(keys, path, body):
    status, _ = _refused(path, body)
    assert status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
FIELDS = [
    "vllm_xargs", "request_id", "use_beam_search", "temperature", "metadata", "conversation",
    "session_id", "prompt", "messages", "stream",
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(FIELDS), JSON), st.sampled_from(PATHS))
def test_no_body_reaches_vllm_with_other_labels(shared_gateway, body, path):
    gateway, vllm = shared_gateway
    before = len(vllm.bodies)
    status, _, _ = _send(gateway, path, body)
    if status != 200:
        assert status == 400
        assert len(vllm.bodies) == before
        return
    sent = json.loads(vllm.bodies[-1])
    assert sent["vllm_xargs"][LABELS_FIELD] == ["cohort=a"]
    ours = {name for name in sent["vllm_xargs"] if not name.startswith("provenance_")}
    assert not ours
    assert not {"request_id", "use_beam_search"} & set(sent)
    untouched = set(body) - {"vllm_xargs", "request_id", "use_beam_search"}
    assert all(json.dumps(sent[name]) == json.dumps(body[name]) for name in untouched)


@pytest.fixture(scope="module")
def shared_gateway(tmp_path_factory, keyring_folder):
    table = tmp_path_factory.mktemp("gateway") / "callers.csv"
    table.write_text(TABLE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PROVENANCE_KEYRING", str(keyring_folder))
        patch.setenv("PROVENANCE_POLICY", str(table))
        vllm = _Vllm()
        yield Gateway(vllm), vllm


@pytest.mark.parametrize("path", [PATHS[0], MESSAGES])
def test_a_request_that_is_too_large_is_refused_as_soon_as_it_is(keys, path, monkeypatch):
    monkeypatch.setenv("PROVENANCE_MAX_BODY", "300")
    body = {**BODY, "more": "x" * 300}
    for parts in (1, 50):
        status, error = _refused(path, body, parts=parts)
        assert status == 413
    assert path != MESSAGES or error["type"] == "request_too_large"
    vllm, pulled, messages = _Vllm(), [], []

    async def receive():
        pulled.append(1)
        return {"type": "http.request", "body": b"x" * 100, "more_body": True}

    async def send(message):
        messages.append(message)

    headers = [(b"authorization", f"Bearer {KEY}".encode()), (b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
    asyncio.run(Gateway(vllm)(scope, receive, send))
    assert (messages[0]["status"], len(pulled)) == (413, 4)
    headers[1] = (b"content-length", b"9" * 100)
    asyncio.run(Gateway(vllm)(scope, receive, send))
    assert (messages[2]["status"], len(pulled)) == (413, 4)


def test_parts_are_put_together_and_a_wrong_length_is_mended(keys):
    sent, _ = _served(
        body=BODY, parts=17, headers=[("content-length", "7"), ("Content-Length", "x")]
    )
    assert sent["messages"] == BODY["messages"]
    sent, vllm = _served(headers=[("transfer-encoding", "chunked")])
    assert b"transfer-encoding" not in dict(vllm.scopes[0]["headers"])


def test_a_client_that_leaves_before_its_request_is_whole_costs_nothing(keys):
    vllm, messages = _Vllm(), []
    queue = [{"type": "http.request", "body": b"{", "more_body": True}, {"type": "http.disconnect"}]

    async def receive():
        return queue.pop(0)

    async def send(message):
        messages.append(message)

    headers = [(b"authorization", f"Bearer {KEY}".encode())]
    scope = {"type": "http", "method": "POST", "path": PATHS[0], "headers": headers}
    asyncio.run(Gateway(vllm)(scope, receive, send))
    assert (vllm.scopes, messages) == ([], [])


@pytest.mark.parametrize("path", sorted(UNLABELLED))
def test_paths_that_generate_without_labels_are_closed_unless_named(keys, path, monkeypatch):
    assert _refused(path)[0] == 403
    monkeypatch.setenv("PROVENANCE_PASS_PATHS", path)
    vllm = _Vllm()
    assert _send(Gateway(vllm), path, b"raw")[0] == 200
    assert vllm.bodies == [b"raw"]


@pytest.mark.parametrize(
    ("path", "method"),
    [("/health", "GET"), ("/metrics", "GET"), ("/v1/models", "GET"), ("/tokenize", "POST"),
     ("/v1/messages/count_tokens", "POST"), ("/v1/responses/resp_1/cancel", "POST"),
     ("/v1/completions", "OPTIONS"), ("/v1/completions", "HEAD"), ("/v1/completions", "GET"),
     ("/v1/completions/", "POST")],
)  # fmt: skip
def test_everything_else_is_not_touched(keys, path, method):
    vllm = _Vllm()
    headers = [("x-request-id", "mine")]
    status, _, _ = _send(Gateway(vllm), path, b"\xffraw", headers=headers, method=method, key=None)
    assert (status, vllm.bodies) == (200, [b"\xffraw"])
    assert (b"x-request-id", b"mine") in vllm.scopes[0]["headers"]


def test_websockets_and_lifespan_pass(keys):
    vllm = _Vllm()
    gateway = Gateway(vllm)
    for scope in ({"type": "lifespan"}, {"type": "websocket", "path": "/v1/completions"}):
        asyncio.run(gateway(scope, None, None))
    assert [scope["type"] for scope in vllm.scopes] == ["lifespan", "websocket"]


def test_the_root_path_is_that_of_the_router(keys):
    for path, root in (("/api/v1/completions", "/api"), ("/v1/completions", "/api")):
        sent, _ = _served(path, root_path=root)
        assert sent["vllm_xargs"]["provenance_labels"] == ["cohort=a"]


@pytest.mark.parametrize("path", [PATHS[0], MESSAGES])
def test_a_fault_of_ours_is_500_and_logged_and_never_served_unmarked(
    keys, monkeypatch, caplog, path
):
    def fail(*arguments):
        raise ZeroDivisionError("inside")

    monkeypatch.setattr(Admission, "rewrite", fail)
    status, error = _refused(path)
    assert status == 500
    assert error["type"] == ("api_error" if path == MESSAGES else "InternalServerError")
    assert "inside" not in error["message"]
    assert any(record.exc_info for record in caplog.records)
    assert KEY not in caplog.text


def test_a_fault_of_the_application_is_its_own(keys):
    async def broken(scope, receive, send):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        _send(Gateway(broken))


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("PROVENANCE_KEYRING", "", "PROVENANCE_KEYRING"),
        ("PROVENANCE_POLICY", "/nowhere/callers.csv", "readable"),
        ("PROVENANCE_MARK", "maybe", "always"),
        ("PROVENANCE_HEADERS", "api_key_sha256=x-key", "PROVENANCE_HEADERS"),
        ("PROVENANCE_LABELS", "week", "PROVENANCE_LABELS"),
        ("PROVENANCE_MAX_BODY", "1e9", "PROVENANCE_MAX_BODY"),
        ("PROVENANCE_PASS_PATHS", "/v1/completions", "PROVENANCE_PASS_PATHS"),
    ],
)
def test_a_wrong_environment_stops_the_server_and_serves_nothing(keys, monkeypatch, caplog,
                                                                 name, value, says):  # fmt: skip
    monkeypatch.setenv(name, value)
    assert _refused()[0] == 500
    assert says in caplog.text
    messages = []

    async def receive():
        return {"type": "lifespan.startup"}

    async def send(message):
        messages.append(message)

    vllm = _Vllm()
    asyncio.run(Gateway(vllm)({"type": "lifespan"}, receive, send))
    assert vllm.scopes == []
    assert [message["type"] for message in messages] == ["lifespan.startup.failed"]
    assert says in messages[0]["message"]


def test_a_new_table_is_in_use_without_a_restart(keys, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    vllm = _Vllm()
    gateway = Gateway(vllm)
    monkeypatch.setattr("provenance.embed.policy._SECONDS_BETWEEN_LOOKS", 0.0)

    def labels():
        _send(gateway)  # asyncio.run waits for the thread that reads
        return json.loads(vllm.bodies[-1])["vllm_xargs"]["provenance_labels"]

    assert labels() == ["cohort=a"]
    keys.with_suffix(".new").write_text(TABLE.replace(",a,card-7", ",b,card-7"))
    keys.with_suffix(".new").replace(keys)
    assert labels() == ["cohort=a"]  # of before, while it is read
    assert labels() == ["cohort=b"]
    keys.write_text("nonsense")
    assert labels() == labels() == ["cohort=b"]
    assert sum(record.levelno == logging.WARNING and "stay in use" in record.getMessage()
               for record in caplog.records) == 1  # fmt: skip


def test_our_lines_go_where_vllms_go_unless_somebody_said_where(keys, monkeypatch):
    ours, theirs = logging.getLogger("provenance"), logging.getLogger("vllm")
    handler, other = logging.StreamHandler(), logging.StreamHandler()
    for logger, handlers in ((theirs, [handler]), (ours, [logging.NullHandler()])):
        monkeypatch.setattr(logger, "handlers", handlers)
        monkeypatch.setattr(logger, "level", logging.NOTSET)
    monkeypatch.setattr(theirs, "level", logging.INFO)
    monkeypatch.setattr(logging.getLogger(), "handlers", [other])
    Gateway(None)
    assert handler not in ours.handlers
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    for _ in range(2):
        Gateway(None)
    assert [found for found in ours.handlers if found is handler] == [handler]
    assert ours.level == logging.INFO
    ours.setLevel(logging.NOTSET)  # forgets what loggers below have cached
