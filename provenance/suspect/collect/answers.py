"""What an API's answer says: the text, how it ended, what it cost, who answered.

One small table of field paths a dialect; the raw bytes stay in the ledger whatever is read of them.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, Literal

from provenance.errors import DataError, clean
from provenance.storage.files import parse_json

Outcome = Literal["answer", "empty", "error", "malformed"]
"""A text; none, but an answer (a refusal); an error of the API; not what the API should say."""
_LONGEST: Final = 128
_OK: Final = 200
_MOST_TOKENS: Final = 10**9
"""Of one request; a count beyond it is none."""
_LONGEST_TEXT: Final = 1 << 23
"""Bytes of a body that is kept as text, where JSON may need six for one; a longer one in base64."""


@dataclass(frozen=True)
class Answer:
    """An answer, read.

    Attributes
    ----------
    outcome : see `Outcome`
    text : what the model wrote; empty without
    model, system_fingerprint, finish : as the API named them; empty where it did not
    tokens : input and output, as the API counted them; None if it did not
    logprobs : as chat gives them, {"content": [...]}; None without
    error : the API's own code or type of an error, for people
    """

    outcome: Outcome
    text: str = ""
    model: str = ""
    system_fingerprint: str = ""
    finish: str = ""
    tokens: tuple[int, int] | None = None
    logprobs: Mapping[str, Any] | None = None
    error: str = ""

    def facts(self) -> dict[str, Any]:
        """What the ledger says of it beside the raw bytes."""
        return {
            "outcome": self.outcome,
            "model": self.model,
            "system_fingerprint": self.system_fingerprint,
            "tokens": None if self.tokens is None else list(self.tokens),
            "error": self.error,
        }


def read_answer(status: int, body: bytes) -> Answer:
    """The answer to one request to an API in OpenAI's dialect."""
    try:
        document = parse_json(body, "answer")
    except DataError:
        if status == _OK and _is_lax_json(body):  # whole, so paid: asking again would not help
            return Answer("empty", error="not strict JSON")
        return Answer("malformed" if status == _OK else "error", error=f"status {status}")
    if status != _OK:
        return Answer("error", error=_name_error(document) or f"status {status}")
    return read_document(document)


def read_batch_line(document: Any) -> Answer:
    """The answer in one line of the results of a batch, OpenAI's or Anthropic's."""
    result, response = _get(document, "result"), _get(document, "response")
    if isinstance(result, dict):
        if result.get("type") == "succeeded":
            return _settle(read_document(result.get("message")))
        kind = str(_get(result, "type"))
        return Answer("error", error=_name_error(result.get("error")) or _short(kind))
    if isinstance(response, dict) and not _get(document, "error"):
        body, status = response.get("body"), response.get("status_code", _OK)
        if status == _OK:
            return _settle(read_document(body))
        return Answer("error", error=_name_error(body) or f"status {_short(status)}")
    return Answer("error", error=_name_error(document) or "no response")


def _settle(answer: Answer) -> Answer:
    """A line of a batch has its answer for good: what is not understood is an error."""
    if answer.outcome == "malformed":
        return Answer("error", error=f"not understood: {answer.error}")
    return answer


def read_document(document: Any) -> Answer:
    """A chat completion, a completion, or a message of Anthropic's."""
    choice = _get(document, "choices", 0)
    if isinstance(choice, dict):
        text, finish = _text_of_choice(choice), choice.get("finish_reason")
        known = text is not None
        tokens = _count(document, "prompt_tokens", "completion_tokens")
        logprobs = _read_logprobs(choice.get("logprobs"))
    else:
        parts = _get(document, "content")
        known = isinstance(parts, list)
        text, finish = _text_of(parts), _get(document, "stop_reason")
        tokens, logprobs = _count(document, "input_tokens", "output_tokens"), None
    if not known:
        return Answer("malformed", error=_name_error(document) or "no choices")
    return Answer(
        "answer" if text else "empty",
        text or "",
        _short(_get(document, "model")),
        _short(_get(document, "system_fingerprint")),
        _short(finish),
        tokens,
        logprobs,
    )


def pack_body(body: bytes) -> dict[str, str]:
    """Raw bytes as a field of a record: as text if they are UTF-8 and not long, else in base64."""
    if len(body) <= _LONGEST_TEXT:
        with suppress(UnicodeDecodeError):
            return {"body": body.decode("utf-8")}
    return {"body_base64": base64.b64encode(body).decode("ascii")}


def unpack_body(record: Mapping[str, Any]) -> bytes:
    """What `pack_body` packed. Raises DataError."""
    try:
        if "body_base64" in record:
            return base64.b64decode(record["body_base64"], validate=True)
        return str(record["body"]).encode("utf-8")
    except (KeyError, ValueError, TypeError) as error:
        raise DataError("a record of the ledger must hold a body; it does not.") from error


def _is_lax_json(body: bytes) -> bool:
    """Whether it ends where it should: JSON with lone surrogates, NaN or repeated names."""
    try:
        return isinstance(json.loads(body), dict)
    except (ValueError, RecursionError):
        return False


def _text_of_choice(choice: Mapping[str, Any]) -> str | None:
    """None if the choice is of no known shape; empty if it holds no text."""
    message = choice.get("message")
    if isinstance(message, dict):
        return _text_of(message.get("content"))
    return choice["text"] if isinstance(choice.get("text"), str) else None


def _text_of(content: Any) -> str:
    """A string, or the text of a list of parts."""
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = [one.get("text") for one in parts if isinstance(one, dict)]
    return "".join(one for one in texts if isinstance(one, str))


def _read_logprobs(given: Any) -> dict[str, Any] | None:
    """Logprobs of chat as they are; those of completions in the same shape."""
    if isinstance(_get(given, "content"), list):
        return {"content": given["content"]}
    tokens, listed = _get(given, "tokens"), _get(given, "top_logprobs")
    own = _get(given, "token_logprobs")
    if not all(isinstance(one, list) for one in (tokens, listed, own)):
        return None
    return {
        "content": [
            {
                "token": token,
                "logprob": logprob,
                "top_logprobs": [
                    {"token": name, "logprob": value} for name, value in (top or {}).items()
                ],
            }
            for token, logprob, top in zip(tokens, own, listed, strict=False)
        ]
    }


def _count(document: Any, first: str, second: str) -> tuple[int, int] | None:
    found = (_get(document, "usage", first), _get(document, "usage", second) or 0)
    if all(type(one) is int and 0 <= one <= _MOST_TOKENS for one in found):
        return found
    return None


def _name_error(document: Any) -> str:
    """The code or type that an API gives an error; its message may quote the request."""
    error = _get(document, "error")
    for where in (error, document):
        for name in ("code", "type"):
            if found := _short(_get(where, name)):
                return found
    return ""


def _get(value: Any, *path: str | int) -> Any:
    """What stands at a path; None if there is nothing."""
    for one in path:
        if isinstance(one, int) and isinstance(value, Sequence) and not isinstance(value, str):
            value = value[one] if len(value) > one else None
        elif isinstance(one, str) and isinstance(value, Mapping):
            value = value.get(one)
        else:
            return None
    return value


def _short(value: Any) -> str:
    return clean(str(value))[:_LONGEST] if isinstance(value, str | int) else ""
