"""Answers of OpenAI's APIs with logprobs, as the records of `logprobs.content` that we read.

Chat and Responses only: there a list holds the most probable tokens and nothing else. The legacy
completions, SGLang and vLLM add the token that was drawn to a list that lacks it, and do not say
where they did. Knows shapes; no token.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from provenance.storage.shapes.convert import recognise, shown_beside
from provenance.storage.shapes.paths import find, first, holds

_SHAPES: Final = ("openai-batch", "openai-chat", "openai-response", "api-pair", "llm-log")
_OURS: Final = frozenset({"logprobs", "top_logprobs", "prompt_logprobs"})


def unfold_logprobs(record: Any, origin: str) -> Iterator[Any]:
    """The records that an answer holds, one a choice; ours, and what is not known, as they are.

    An answer that is an error is a record that says nothing. Raises DataError.
    """
    if not isinstance(record, dict) or _OURS & set(record):
        yield record
        return
    shape = next((one for one in recognise(record) if one.name in _SHAPES), None)
    if shape is None:
        yield record
        return
    body = first(record, shape.base)
    if any(holds(record, test) for test, _ in shape.failed) or not isinstance(body, dict):
        yield {"logprobs": {"content": None, "refusal": "error"}}
        return
    shown = shown_beside(record, shape, origin)
    choices = find(body, "choices[]")
    for choice in choices:
        yield {**shown, **_read_choice(choice)}
    if not choices:
        parts = find(body, "output[].content[]")
        yield from ({**shown, **_read_part(part)} for part in parts if isinstance(part, dict))


def _read_choice(choice: Any) -> Mapping[str, Any]:
    """The tokens and the message of a choice, without the fields in which it says nothing."""
    message = first(choice, "message")
    if isinstance(message, dict):
        message = {name: one for name, one in message.items() if one not in (None, [], "")}
    return {"logprobs": first(choice, "logprobs"), "message": message}


def _read_part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """One text of a Responses object; a refusal says nothing."""
    if part.get("type") != "output_text":
        return {"logprobs": {"content": None, "refusal": "refusal"}}
    return {"logprobs": {"content": part.get("logprobs")}, "output": part.get("text")}
