"""From a vLLM server's answers to what the served log needs; runs where the answers pass.

    request = {"model": ..., "messages": ..., **request_fields({"week": "2026-W17"})}
    chunks = ...                                  # what the server answered, one object or a stream
    for response in read_responses(request, chunks):
        sink.write(response)                      # provenance.embed.sink.ResponseSink

For whoever keeps a log where the answers pass. The engine's own (`embed.vllm.engine`) is better: it
holds what was drawn, of all endpoints, under ids that no client chose. Knows the OpenAI dialect;
imports no client and no vLLM, and holds no key.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import MAXIMUM_VOCABULARY, check_token_ids
from provenance.embed.vllm.requests import LABELS_FIELD, parse_labels
from provenance.errors import DataError, say_briefly
from provenance.served.records import Finish, Labels, ServedResponse

_FINISHES: Final[Mapping[str, Finish]] = {"length": "length", "abort": "abort"}
_OTHER_ENDPOINTS: Final = {
    "response": "/v1/responses",
    "message": "/v1/messages",
    "content_block": "/v1/messages",
}
_MILLISECONDS: Final = 1e11
"""Seconds since 1970 pass this in the year 5138."""


def request_fields(labels: Labels) -> dict[str, Any]:
    """What to add to the body of a request so that it is marked and can be logged.

    With the `openai` client: `extra_body=request_fields(labels)`.

    >>> request_fields({"week": "2026-W17"})["vllm_xargs"]
    {'provenance_labels': ['week=2026-W17']}
    """
    named = [f"{name}={value}" for name, value in labels.items()]
    return {"vllm_xargs": {LABELS_FIELD: named}, "return_token_ids": True}


def read_responses(
    request: Mapping[str, Any], chunks: Iterable[Mapping[str, Any]]
) -> list[ServedResponse]:
    """Every response of one answer, in the order of the choices.

    Parameters
    ----------
    request : body of the request, as sent. Its labels are taken from it, never from elsewhere
    chunks : the objects of the answer of /v1/completions or /v1/chat/completions: one, or those of
        a stream in order (without `[DONE]`); or one line of the output of `vllm run-batch`

    Returns
    -------
    One `ServedResponse` a choice that has tokens: all ids that the server sent, end token and stop
    string included, since they were drawn like the others; `marked` is False if the watermark did
    not draw it, else None, for the sink to find out. `request_id` is the server's id, which a
    client may choose, and the number of the choice; the record's own is the sink's. `finish` is
    "abort" if a stream broke off before it said how (what was sent before did not depend on what
    came next), and None for a reason that is not known here, such as a filter that looks at what
    was drawn. A refused request gives none.

    Raises
    ------
    DataError if an answer has choices without token ids (the request lacked `return_token_ids`), is
    of an endpoint whose answers name no token ids (/v1/responses, /v1/messages: marked all the
    same), or is malformed; UsageError if the labels are malformed.

    Notes
    -----
    vLLM serves `use_beam_search` through requests of its own, which carry no labels: such responses
    are not drawn by the watermark, whatever the request asked for, and are returned so.
    """
    labels = parse_labels(request.get("vllm_xargs"))
    drawn = labels is not None and not request.get("use_beam_search")
    found: dict[int, _Choice] = {}
    identity: Mapping[str, Any] = {}
    for sent in chunks:
        chunk = _find_choices(sent)
        if chunk is None:
            continue  # an error ends the stream
        identity = identity or chunk
        try:
            for choice in chunk["choices"]:
                found.setdefault(int(choice["index"]), _Choice()).add(choice, chunk)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DataError(
                f"{chunk.get('id')}: the answer's choices must be those of vLLM; got: "
                f"{type(error).__name__} {say_briefly(error)}. Log what the server sent."
            ) from error
    time = _read_time(identity.get("created"), str(identity.get("id")))
    responses = []
    for index, choice in sorted(found.items()):
        name = f"{identity.get('id')}/{index}"
        ids = choice.check_ids(name)
        if ids.shape[0]:
            prompt = choice.prompt
            responses.append(
                ServedResponse(
                    request_id=name,
                    labels=labels or {},
                    marked=None if drawn else False,
                    token_ids=ids,
                    finish=choice.finish,
                    prompt_token_ids=None if prompt is None else _check(prompt, name),
                    text="".join(choice.texts) or None,
                    time=time,
                )
            )
    return responses


def _find_choices(sent: object) -> Mapping[str, Any] | None:
    """The object with the choices; None for an error. DataError for what can be neither."""
    answer: Any = sent
    if isinstance(answer, Mapping) and "custom_id" in answer:  # a line of run-batch
        body = (answer.get("response") or {}).get("body")
        answer = body or ({"error": answer["error"]} if answer.get("error") else {})
    if not isinstance(answer, Mapping):
        raise DataError(
            f"an answer must be a JSON object; got a {type(answer).__name__}. "
            "Give the objects that the server sent, one by one."
        )
    if isinstance(answer.get("choices"), Sequence) and not isinstance(answer["choices"], str):
        return answer
    if "choices" not in answer and ("error" in answer or answer.get("object") == "error"):
        return None
    kind = str(answer.get("object") or answer.get("type") or "")
    endpoint = next(
        (place for start, place in _OTHER_ENDPOINTS.items() if kind.startswith(start)),
        f"an endpoint that is not known ({kind or 'no object, no type'})",
    )
    raise DataError(
        f"{answer.get('id')}: an answer must have choices with token ids; this is one of "
        f"{endpoint}, which names none, though vLLM marks it. Serve marked requests through "
        "/v1/completions or /v1/chat/completions."
    )


def _read_time(created: object, origin: str) -> str | None:
    """RFC 3339 from seconds, or from milliseconds, as some proxies write them."""
    if created is None:
        return None
    try:
        seconds = float(created)  # type: ignore[arg-type]
        if seconds > _MILLISECONDS:
            seconds /= 1000
        return datetime.fromtimestamp(seconds, UTC).isoformat()
    except (TypeError, ValueError, OverflowError, OSError) as error:
        raise DataError(
            f"{origin}: created must be a time in seconds; got {created!r:.40}. "
            "Log the answer as the server sent it."
        ) from error


def _read_text(content: object) -> str:
    """The text of a message: a string, parts of which some are text, or nothing."""
    if isinstance(content, str):
        return content
    if isinstance(content, Sequence):
        texts = [part.get("text") for part in content if isinstance(part, Mapping)]
        return "".join(text for text in texts if isinstance(text, str))
    return ""


@dataclass
class _Choice:
    """What the chunks so far say about one choice."""

    ids: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    prompt: list[int] | None = None
    has_ids: bool = False
    finish: Finish | None = "abort"

    def add(self, choice: Mapping[str, Any], chunk: Mapping[str, Any]) -> None:
        ids = choice.get("token_ids")
        self.has_ids |= ids is not None
        self.ids += ids or []
        message = choice.get("message") or choice.get("delta") or {}
        self.texts.append(choice.get("text") or _read_text(message.get("content")))
        prompt = choice.get("prompt_token_ids") or chunk.get("prompt_token_ids")
        self.prompt = self.prompt if prompt is None else prompt
        if choice.get("finish_reason") is not None:
            self.finish = _read_finish(choice)

    def check_ids(self, origin: str) -> NDArray[np.uint32]:
        if not self.has_ids:
            if not any(self.texts):
                return np.empty(0, dtype=np.uint32)
            raise DataError(
                f"{origin}: the answer must have token_ids; it has none. "
                "Send the request with return_token_ids: true."
            )
        return _check(self.ids, origin)


def _read_finish(choice: Mapping[str, Any]) -> Finish | None:
    """How vLLM says that a choice ended.

    `tool_calls` stands where `stop` would, if the text was parsed as a call. A `stop_reason` that
    is a number is a stop token, none is the end token; a string was found in the text.
    """
    reason = choice.get("finish_reason")
    if reason in ("stop", "tool_calls", "function_call"):
        return "stop" if isinstance(choice.get("stop_reason"), str) else "end"
    return _FINISHES.get(str(reason))


def _check(ids: list[int], origin: str) -> NDArray[np.uint32]:
    return check_token_ids(ids, MAXIMUM_VOCABULARY, origin)
