"""What the gateway makes of one request: labels in, what a client must not choose out.

Pure: headers, a body and a policy in, the new body or a refusal out. Needs no vLLM and no server.

Endpoints of vLLM 0.32 whose request models pass `vllm_xargs` on to `SamplingParams.extra_args`:
completions, chat (also as a batch), responses and messages, and `/invocations`, which is chat or
completions. What else generates there cannot be labelled: see `UNLABELLED`.

A client may not choose

- `vllm_xargs`: it could ask for another's labels, or for none;
- `request_id` and the header X-Request-Id, which vLLM takes for its own id: a constant one would
  make all responses one. It is logged beside the engine's;
- beams, which vLLM serves through requests of its own that carry no labels.

Messages to clients say nothing of labels or marks.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from types import SimpleNamespace
from typing import Any, Final

from provenance.embed.callers import CALLER_COLUMNS, KEY_COLUMN
from provenance.embed.policy import Decision, LabelPolicy, hash_api_key
from provenance.embed.vllm.requests import (
    CONVERSATION_FIELD,
    GROUPS_FIELD,
    LABELS_FIELD,
    MARK_FIELD,
    REQUEST_FIELD,
    PublicKeyring,
    why_unmarkable,
)
from provenance.errors import ProvenanceError, clean

_log = logging.getLogger(__name__)

BATCH: Final = "/v1/chat/completions/batch"
MESSAGES: Final = "/v1/messages"
LABELLED: Final = frozenset(
    ["/v1/completions", "/v1/chat/completions", BATCH, "/v1/responses", MESSAGES, "/invocations"]
)
"""Paths whose requests get labels."""
UNLABELLED: Final = frozenset(
    [
        "/inference/v1/generate",
        "/cohere/v2/chat",
        "/v1/audio/transcriptions",
        "/v1/audio/translations",
    ]
)
"""Paths that generate and take no labels, or a client's own in a form that is not rewritten."""

_MOST_CHARACTERS: Final = 256
_SCOPE_DIGITS: Final = 8
_FALSE: Final = ("", "0", "0.0", "f", "false", "n", "no", "none", "off")
_REQUEST_HEADER: Final = "x-request-id"


class RefusedError(Exception):
    """A request that is not served: HTTP status, a reason to count, a message for the client.

    `parameter` is the field of the request that the client would have to change, if there is one.
    """

    def __init__(
        self, status: int, reason: str, message: str, parameter: str | None = None
    ) -> None:
        super().__init__(message)
        self.status, self.reason, self.parameter = status, reason, parameter


@dataclass(frozen=True)
class Admitted:
    """A request that is served: the body to send, and the outcome and the reason to count."""

    body: dict[str, Any]
    outcome: str
    reason: str


@dataclass(frozen=True)
class Admission:
    """What a gateway knows: the policy, the public keyring, and whom it trusts.

    Attributes: `trusted` maps `account` and `organisation` to the header in which a proxy of ours
    says it, in small letters; `kept` are the fields of a client's `vllm_xargs` that stay.
    """

    policy: LabelPolicy
    keyring: PublicKeyring
    trusted: Mapping[str, str]
    kept: frozenset[str] = frozenset()

    def identify(self, headers: Mapping[str, str]) -> dict[str, str]:
        """Who calls, by the names of `CALLER_COLUMNS`: the API key as its hash, trusted headers.

        The key is the bearer's of Authorization or X-Api-Key; raises RefusedError for two keys.
        """
        scheme, _, token = headers.get("authorization", "").partition(" ")
        bearer = token.strip() if scheme.lower() == "bearer" else ""
        key = headers.get("x-api-key", "") or bearer
        if bearer and key != bearer:
            raise RefusedError(403, "caller", "a request must have one API key; it has two.")
        named = {name: clean(headers.get(header, "")) for name, header in self.trusted.items()}
        known = {name: value for name, value in named.items() if value}
        return {KEY_COLUMN: hash_api_key(key), **known} if key else known

    def decide(self, caller: Mapping[str, str]) -> Decision:
        """What the policy says of the caller. Raises RefusedError for one that it does not know."""
        decision = self.policy.decide(caller)
        if decision is None:
            raise RefusedError(403, "caller", "the caller must be known here; it is not.")
        return decision

    def rewrite(
        self,
        path: str,
        headers: Mapping[str, str],
        body: dict[str, Any],
        caller: Mapping[str, str],
        decision: Decision,
    ) -> Admitted:
        """The body for vLLM. Raises RefusedError if it must be marked and cannot be.

        Parameters: path, one of `LABELLED`; headers by small names; the client's body, which is not
        changed; caller and decision of `identify` and `decide`.
        """
        sent = {name: value for name, value in body.items() if name != "request_id"}
        beams = str(sent.pop("use_beam_search", None)).strip().lower() not in _FALSE
        given = sent.pop("vllm_xargs", None)
        extra = dict(given) if isinstance(given, dict) else {}
        extra = {
            name: value
            for name, value in extra.items()
            if name in self.kept and not name.startswith("provenance")
        }
        if beams and decision.mark == "always":
            raise RefusedError(
                400, "beams", "beam search must be off here. Leave it out.", "use_beam_search"
            )
        if beams:
            sent |= {"use_beam_search": True} | ({"vllm_xargs": extra} if extra else {})
            return Admitted(sent, "unmarked", "beams")
        greedy = _is_greedy(sent.get("temperature"))
        if greedy and decision.mark == "always":
            raise RefusedError(
                400, "greedy", "temperature must be above 0 here. Raise it.", "temperature"
            )
        labels, groups = self._sort_labels(decision)
        extra |= {LABELS_FIELD: labels, GROUPS_FIELD: groups, MARK_FIELD: decision.mark}
        ids = {
            REQUEST_FIELD: _read_request_id(body, headers),
            CONVERSATION_FIELD: _read_conversation(path, body, headers, caller),
        }
        sent["vllm_xargs"] = extra | {name: value for name, value in ids.items() if value}
        if decision.mark == "never":
            return Admitted(sent, "unmarked", "never")
        if greedy:
            return Admitted(sent, "unmarked", "greedy")
        has_keys = len(labels) == len(decision.labels)
        return Admitted(sent, "asked", decision.mark if has_keys else "no_key")

    def _sort_labels(self, decision: Decision) -> tuple[list[str], list[str]]:
        """Both fields of labels. One of a slot that has no key here goes to those for groups, so
        that the log keeps it; if it must be marked, nothing is served: the value is not out yet.
        """
        missing = {}
        for name, value in decision.labels.items():
            try:
                self.keyring.check_labels({name: value})
            except ProvenanceError as error:
                _warn_once(str(error))
                if decision.mark == "always":
                    raise RefusedError(
                        503, "no_key", "the service is not ready. Try later."
                    ) from error
                missing[name] = value
        labels = [f"{n}={value}" for n, value in decision.labels.items() if n not in missing]
        return labels, [f"{n}={value}" for n, value in {**decision.groups, **missing}.items()]


def describe_refusal(path: str, refused: RefusedError) -> bytes:
    """The body of an error as the endpoint's dialect has it: Anthropic's or OpenAI's."""
    message = str(refused)
    if path.startswith(MESSAGES):
        kinds = {400: "invalid_request_error", 403: "permission_error", 413: "request_too_large"}
        error: dict[str, Any] = {"type": kinds.get(refused.status, "api_error"), "message": message}
        return json.dumps({"type": "error", "error": error}).encode()
    names = {
        400: "BadRequestError",
        403: "PermissionDeniedError",
        413: "RequestEntityTooLargeError",
        503: "ServiceUnavailableError",
    }
    kind = names.get(refused.status, "InternalServerError")
    error = {"message": message, "type": kind, "param": refused.parameter, "code": refused.status}
    return json.dumps({"error": error}).encode()


@lru_cache(maxsize=1024)
def _warn_once(sentence: str) -> None:
    _log.warning("the gateway has a label that cannot be marked: %s", sentence)


def _is_greedy(temperature: Any) -> bool:
    """True for a temperature at which vLLM decodes greedily. What is absent or no number is left to
    vLLM, which knows the model's default.
    """
    try:
        number = float(temperature)
    except (TypeError, ValueError, OverflowError):
        return False
    return why_unmarkable(SimpleNamespace(temperature=number, extra_args=None)) is not None


def _read_request_id(body: Mapping[str, Any], headers: Mapping[str, str]) -> str | None:
    given = body.get("request_id") or headers.get(_REQUEST_HEADER)
    return clean(given)[:_MOST_CHARACTERS] if isinstance(given, str) else None


def _read_conversation(
    path: str, body: Mapping[str, Any], headers: Mapping[str, str], caller: Mapping[str, str]
) -> str | None:
    """The first of: header X-Conversation-Id, `metadata.conversation_id`, `conversation` (an id, or
    an object with it), `session_id` and header X-Session-ID (vLLM's own).

    Not `previous_response_id`, which is another one at each turn; not `user` or `prompt_cache_key`,
    which many conversations share. A request of several conversations or prompts has none.

    A digest of the caller stands before it: two callers' conversation "1" are not one.
    """
    prompt, metadata = body.get("prompt"), body.get("metadata")
    several = isinstance(prompt, list) and len(prompt) > 1 and not isinstance(prompt[0], int)
    if path == BATCH or several:
        return None
    conversation = body.get("conversation")
    places = (
        headers.get("x-conversation-id"),
        metadata.get("conversation_id") if isinstance(metadata, dict) else None,
        conversation.get("id") if isinstance(conversation, dict) else conversation,
        body.get("session_id"),
        headers.get("x-session-id"),
    )
    given = next((value for value in places if isinstance(value, str) and value), None)
    if given is None:
        return None
    who = json.dumps([caller.get(name) for name in CALLER_COLUMNS])
    scope = hashlib.sha256(who.encode()).hexdigest()[:_SCOPE_DIGITS]
    if len(given) > _MOST_CHARACTERS - _SCOPE_DIGITS - 1:
        given = hashlib.sha256(given.encode("utf-8", "surrogatepass")).hexdigest()
    return f"{scope}/{clean(given)}"
