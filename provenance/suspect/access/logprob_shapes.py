"""Answers of APIs and engines with logprobs, as the records of `logprobs.content` that we read.

In chat and Responses a list holds the most probable tokens and nothing else. Legacy completions and
vLLM add the token that was drawn to a list that lacks it, as the least probable one, and do not say
where they did: of their lists as many tokens are read as the shortest of the record has. Knows
shapes; no token.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final

from provenance.errors import DataError
from provenance.storage.shapes.convert import recognise, shown_beside
from provenance.storage.shapes.paths import find, first, holds

_SHAPES: Final = (
    *("openai-batch", "openai-chat", "openai-completion", "openai-response", "api-pair"),
    *("llm-log", "vllm-offline", "sglang"),
)
_OFFLINE: Final = "outputs[].logprobs:list"
"""Only of vLLM's own answers, which have `prompt_logprobs` beside."""
_OURS: Final = frozenset({"logprobs", "top_logprobs", "prompt_logprobs"})


def unfold_logprobs(record: Any, origin: str) -> Iterator[Any]:
    """The records that an answer holds, one a choice; ours, and what is not known, as they are.

    An answer that is an error is a record that says nothing. Raises DataError.
    """
    shape = None
    if isinstance(record, dict) and (holds(record, _OFFLINE) or not _OURS & set(record)):
        shape = next((one for one in recognise(record) if one.name in _SHAPES), None)
    if shape is None:
        yield record
        return
    body = first(record, shape.base)
    if any(holds(record, test) for test, _ in shape.failed) or not isinstance(body, dict):
        yield {"logprobs": {"content": None, "refusal": "error"}}
        return
    shown = shown_beside(record, shape, origin)
    choices = find(body, "choices[]") or find(body, "outputs[]") or find(body, "meta_info")
    for choice in choices:
        yield {**shown, **_read_choice(choice, body, origin)}
    if not choices:
        parts = find(body, "output[].content[]")
        yield from ({**shown, **_read_part(part)} for part in parts if isinstance(part, dict))


def _read_choice(choice: Any, body: Mapping[str, Any], origin: str) -> Mapping[str, Any]:
    """The tokens and the message of a choice, without the fields in which it says nothing."""
    found = first(choice, "logprobs")
    if holds(choice, "output_token_logprobs:list"):
        return {"logprobs": {"content": _read_sglang(choice, origin)}, "output": body.get("text")}
    if isinstance(found, list):
        content = _read_offline(found, first(choice, "token_ids"), origin)
        return {"logprobs": {"content": content}, "output": first(choice, "text")}
    if isinstance(found, dict) and "tokens" in found:
        content = _read_legacy(found, origin)
        return {"logprobs": {"content": content}, "output": first(choice, "text")}
    message = first(choice, "message")
    if isinstance(message, dict):
        message = {name: one for name, one in message.items() if one not in (None, [], "")}
    return {"logprobs": found, "message": message}


def _read_legacy(found: Mapping[str, Any], origin: str) -> list[dict[str, Any]]:
    """`logprobs` of a text_completion: four lists, one entry a token."""
    with _refuse_others(origin):
        lists = [entries.items() for entries in found["top_logprobs"]]
        return _make_content(found["tokens"], found["token_logprobs"], lists)


def _read_offline(found: list[Any], ids: Any, origin: str) -> list[dict[str, Any]]:
    """`logprobs` of a CompletionOutput: for each token {id: {"logprob": ..., "rank": ...}}."""
    with _refuse_others(origin):
        lists = [
            [(_number(key), one["logprob"]) for key, one in entries.items()] for entries in found
        ]
        own = [entries[str(token)]["logprob"] for token, entries in zip(ids, found, strict=True)]
        return _make_content(map(_number, ids), own, lists)


def _read_sglang(found: Mapping[str, Any], origin: str) -> list[dict[str, Any]]:
    """`meta_info` of SGLang: [logprob, id, text] of each token, and of its most probable ones."""
    with _refuse_others(origin):
        drawn = found["output_token_logprobs"]
        lists = [
            [(_number(token), logprob) for logprob, token, _ in entries]
            for entries in found["output_top_logprobs"]
        ]
        return _make_content([_number(one[1]) for one in drawn], [one[0] for one in drawn], lists)


def _make_content(
    tokens: Iterable[str], logprobs: Iterable[Any], lists: list[Any]
) -> list[dict[str, Any]]:
    shortest = min(map(len, lists), default=0)
    ranked = [sorted(entries, key=lambda one: -one[1])[:shortest] for entries in lists]
    return [
        {
            "token": token,
            "logprob": logprob,
            "top_logprobs": [{"token": one, "logprob": value} for one, value in entries],
        }
        for token, logprob, entries in zip(tokens, logprobs, ranked, strict=True)
    ]


def _number(token: Any) -> str:
    """As vLLM writes the id of a token where its text is expected."""
    return f"token_id:{int(token)}"


@contextmanager
def _refuse_others(origin: str) -> Iterator[None]:
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError, IndexError) as error:
        raise DataError(
            f"{origin}: logprobs must name the most probable tokens in place of each token of the "
            "answer; they do not. Ask for several (logprobs=5), without echo of the prompt."
        ) from error


def _read_part(part: Mapping[str, Any]) -> Mapping[str, Any]:
    """One text of a Responses object; a refusal says nothing."""
    if part.get("type") != "output_text":
        return {"logprobs": {"content": None, "refusal": "refusal"}}
    return {"logprobs": {"content": part.get("logprobs")}, "output": part.get("text")}
