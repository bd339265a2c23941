"""The label policy as a middleware of vLLM's OpenAI-compatible server.

    PROVENANCE_KEYRING=keys/ PROVENANCE_POLICY=callers.parquet vllm serve MODEL \\
        --middleware provenance.embed.vllm.gateway.Gateway \\
        --logits-processors provenance.embed.vllm.v1:WatermarkLogitsProcessor

(`--middleware` wants a dot before the class, `--logits-processors` a colon.) vLLM puts it before
all else: before CORS and before `--api-key`. A request is read as a whole, rewritten by `admission`
and sent on; what cannot be served is refused with an HTTP status before vLLM sees it, so no stream
begins. Responses, and requests to other paths, are not touched.

Environment; what is wrong with it stops the server at its start:

- `PROVENANCE_KEYRING`: folder of the keyring or a worker's file; only the public half is read
- `PROVENANCE_POLICY`: the table of callers. Without it everybody gets the default
- `PROVENANCE_DEFAULT_LABELS`: `name=value,...` of callers that are not in the table, may be empty.
  Without it they are refused (403)
- `PROVENANCE_LABELS`: `name=value,...` of everybody
- `PROVENANCE_WEEK_LABEL`: the label that gets the ISO week of the clock, UTC
- `PROVENANCE_MARK`: `always` (the default), `if-possible` or `never`, for rows that do not say
- `PROVENANCE_HEADERS`: `account=x-account,organisation=x-org`: headers that a proxy of yours sets,
  whatever the client sent. Without it an API key alone says who calls
- `PROVENANCE_KEEP_XARGS`: fields of a client's own `vllm_xargs` that stay, by comma
- `PROVENANCE_PASS_PATHS`: of `admission.UNLABELLED`, those that are served all the same, by comma
- `PROVENANCE_MAX_BODY`: most bytes of a request, 100 MiB by default (413)
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

from provenance.embed.callers import CALLER_COLUMNS, KEY_COLUMN
from provenance.embed.metrics import counter
from provenance.embed.policy import LabelPolicy
from provenance.embed.vllm.admission import (
    LABELLED,
    UNLABELLED,
    Admission,
    Admitted,
    RefusedError,
    describe_refusal,
)
from provenance.embed.vllm.log_lines import join_log_lines
from provenance.embed.vllm.requests import MARK_VARIABLE, PublicKeyring, named_folder
from provenance.errors import ProvenanceError, UsageError

_log = logging.getLogger(__name__)

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Scope, Receive, Send], Awaitable[None]]

_MAXIMUM_BODY: Final = 100 << 20
_REPLACED_HEADERS: Final = (b"content-length", b"transfer-encoding", b"x-request-id")

REQUESTS: Final = counter(
    "provenance_gateway_requests",
    "Requests by what the gateway made of them: asked for a mark, unmarked, refused, and why.",
    "path",
    "outcome",
    "reason",
)


class _GoneError(Exception):
    """The client left before its request was whole."""


@dataclass(frozen=True)
class Settings:
    """The environment, read once: see the module."""

    admission: Admission
    passed: frozenset[str]
    maximum_body: int

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Raises UsageError, or what the keyring and the table raise."""
        keyring = PublicKeyring(named_folder())
        default = environment.get("PROVENANCE_DEFAULT_LABELS")
        policy = LabelPolicy.load(
            environment.get("PROVENANCE_POLICY") or None,
            keyring.keyring.schedule.attributes,
            default=None if default is None else _split_pairs(default, "PROVENANCE_DEFAULT_LABELS"),
            constants=_split_pairs(environment.get("PROVENANCE_LABELS", ""), "PROVENANCE_LABELS"),
            week=environment.get("PROVENANCE_WEEK_LABEL") or None,
            mark=environment.get(MARK_VARIABLE) or "always",  # type: ignore[arg-type]
        )
        headers = _split_pairs(environment.get("PROVENANCE_HEADERS", ""), "PROVENANCE_HEADERS")
        if not headers.keys() <= set(CALLER_COLUMNS) - {KEY_COLUMN}:
            raise UsageError("PROVENANCE_HEADERS must name headers of account and organisation.")
        passed = _split(environment.get("PROVENANCE_PASS_PATHS", ""))
        if not passed <= UNLABELLED:
            raise UsageError(f"PROVENANCE_PASS_PATHS must be of {', '.join(sorted(UNLABELLED))}.")
        maximum = environment.get("PROVENANCE_MAX_BODY") or str(_MAXIMUM_BODY)
        if not (maximum.isascii() and maximum.isdigit()):
            raise UsageError(f"PROVENANCE_MAX_BODY must be a number of bytes; got {maximum!a}.")
        trusted = {name: header.lower() for name, header in headers.items()}
        kept = _split(environment.get("PROVENANCE_KEEP_XARGS", ""))
        return cls(Admission(policy, keyring, trusted, kept), passed, int(maximum))


class Gateway:
    """Pure ASGI middleware: `Gateway(app)` is what vLLM makes of `--middleware`."""

    def __init__(self, app: Application) -> None:
        self._app = app
        self._settings: Settings | None = None
        join_log_lines()
        try:
            self._settings = Settings.read(os.environ)
        except ProvenanceError as error:  # raised here it would be swallowed: see _fail_start
            self._fault = str(error)
            _log.error("the gateway does not start: %s", error)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection, as ASGI 3 has it."""
        if self._settings is None and scope["type"] == "lifespan":
            return await _fail_start(self._fault, receive, send)
        path = _route_path(scope) if scope["type"] == "http" else ""
        if path not in LABELLED | UNLABELLED or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        try:
            scope, receive = await self._admit(path, scope, receive)
        except _GoneError:
            return None
        except RefusedError as refused:
            return await _refuse(path, refused, send)
        except Exception:  # noqa: BLE001 - whatever it is, it is not served unmarked
            _log.exception("the gateway failed on a request to %s", path)
            fault = RefusedError(500, "fault", "the service failed. Try again.")
            return await _refuse(path, fault, send)
        return await self._app(scope, receive, send)

    async def _admit(self, path: str, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
        """The request as vLLM gets it. Raises RefusedError or _GoneError."""
        if self._settings is None:
            raise RefusedError(500, "fault", "the service is not configured.")
        if path in UNLABELLED:
            if path not in self._settings.passed:
                raise RefusedError(403, "path", f"{path} must not be used here.")
            REQUESTS.inc(path=path, outcome="unmarked", reason="path")
            return scope, receive
        admission = self._settings.admission
        if admission.policy.has_changed():
            asyncio.get_running_loop().run_in_executor(None, _reload, admission.policy)
        headers = {
            name.decode("latin-1").lower(): value.decode("utf-8", "surrogateescape")
            for name, value in reversed(scope["headers"])  # the first of a name stands
        }
        caller = admission.identify(headers)
        decision = admission.decide(caller)  # before the body: a stranger's is not even read
        body = _parse(await _read_body(receive, headers, self._settings.maximum_body))
        admitted = admission.rewrite(path, headers, body, caller, decision)
        REQUESTS.inc(path=path, outcome=admitted.outcome, reason=admitted.reason)
        return _replace(admitted, scope, receive)


def _reload(policy: LabelPolicy) -> None:
    try:
        policy.reload()
    except Exception:  # noqa: BLE001 - of a thread whose result nobody reads
        _log.exception("label policy: the callers of before stay in use")


async def _fail_start(fault: str, receive: Receive, send: Send) -> None:
    """Stop the server. Uvicorn takes an exception of a middleware for "knows no lifespan"."""
    await receive()
    await send({"type": "lifespan.startup.failed", "message": fault})


def _route_path(scope: Scope) -> str:
    """The path as Starlette's router sees it, without the root path."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    return path[len(root) :] if path.startswith(f"{root}/") else path


async def _read_body(receive: Receive, headers: Mapping[str, str], maximum: int) -> bytes:
    too_large = RefusedError(413, "size", f"the request must have at most {maximum} bytes.")
    said = headers.get("content-length", "")
    if said.isascii() and said.isdigit() and int(said[:20]) > maximum:
        raise too_large
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise _GoneError
        body += message.get("body", b"")
        if len(body) > maximum:
            raise too_large
        if not message.get("more_body", False):
            return bytes(body)


def _parse(body: bytes) -> dict[str, Any]:
    """The JSON object of a body. What is none is refused here: another parser could read it."""
    try:
        parsed = json.loads(body)
    except (ValueError, RecursionError):
        parsed = None
    if not isinstance(parsed, dict):
        raise RefusedError(400, "body", "the body must be a JSON object; it is not.")
    return parsed


def _replace(admitted: Admitted, scope: Scope, receive: Receive) -> tuple[Scope, Receive]:
    """The request with another body, and without the header that would name it."""
    content = json.dumps(admitted.body, separators=(",", ":")).encode("ascii")
    headers = [pair for pair in scope["headers"] if pair[0].lower() not in _REPLACED_HEADERS]
    headers.append((b"content-length", str(len(content)).encode()))
    whole = [{"type": "http.request", "body": content, "more_body": False}]

    async def receive_rewritten() -> Message:
        return whole.pop() if whole else await receive()

    return {**scope, "headers": headers}, receive_rewritten


async def _refuse(path: str, refused: RefusedError, send: Send) -> None:
    REQUESTS.inc(path=path, outcome="refused", reason=refused.reason)
    content = describe_refusal(path, refused)
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(content)).encode()),
    ]
    await send({"type": "http.response.start", "status": refused.status, "headers": headers})
    await send({"type": "http.response.body", "body": content})


def _split(text: str) -> frozenset[str]:
    return frozenset(part.strip() for part in text.split(",") if part.strip())


def _split_pairs(text: str, variable: str) -> dict[str, str]:
    pairs = [part.strip().partition("=") for part in text.split(",") if part.strip()]
    if not all(name and value for name, _, value in pairs):
        raise UsageError(f"{variable} must be name=value,...; got {text[:64]!a}.")
    return {name: value for name, _, value in pairs}
