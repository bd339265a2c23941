"""What a message, a block of it or a whole conversation says: what the model wrote, what it saw.

One declared table of blocks serves OpenAI's chat and Responses, Anthropic, Gemini, OpenTelemetry,
LangChain and the conversations of data sets. What is in no entry was shown to the model: results of
tools that ran in the middle of an answer, pictures, anything new. Knows turns; no shape of a file.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from provenance.storage.shapes.paths import as_text, find, is_short

ROLES: Final = ("role", "from", "author", "speaker", "sender")
_ANSWERING: Final = frozenset(
    {"assistant", "model", "gpt", "bot", "ai", "chatgpt", "chatbot", "output", "response", "agent"}
)
"""Roles of the model, in small letters, as `provenance.suspect.shown` knows them."""

BLOCKS: Final[Mapping[str, tuple[str, ...]]] = {
    "text": ("text", "content"),
    "output_text": ("text",),
    "message": ("content",),
    "thinking": ("thinking",),
    "reasoning": ("content", "text", "reasoning"),
    "reasoning_text": ("text",),
    "summary_text": (),
    "redacted_thinking": (),
    "tool_use": ("input",),
    "server_tool_use": ("input",),
    "mcp_tool_use": ("input",),
    "tool_call": ("arguments", "args"),
    "function_call": ("arguments",),
    "custom_tool_call": ("input",),
    "function": ("function.arguments", "arguments"),
    "custom": ("custom.input",),
    "refusal": (),
}
"""By the `type` of a block: where in it stands what the model wrote. Of several the first there."""
_UNTYPED: Final = ("text", "functionCall.args", "function_call.args", "executableCode.code")
"""The same for blocks without a type (Gemini's parts)."""
_WRITTEN: Final = (
    *("reasoning_content", "reasoning", "thinking"),
    *("content", "value", "text", "parts", "message"),
    *("tool_calls[].function.arguments", "tool_calls[].custom.input", "tool_calls[].args"),
    *("tool_calls[].arguments", "tool_calls[].input"),
    "function_call.arguments",
)
"""Fields of a message with what the model wrote, in the order in which it writes them."""
_CONTENTS: Final = frozenset({"content", "value", "text", "parts", "message"})
_CALLS: Final = frozenset({"tool_calls", "function_call"})
_LABELS: Final = frozenset(
    {
        *ROLES,
        *("type", "id", "index", "object", "status", "name", "refusal", "finish_reason"),
        *("additional_kwargs", "response_metadata", "usage_metadata", "lc", "signature", "phase"),
        *("summary", "encrypted_content", "finishReason", "thoughtSignature", "caller"),
        *("reasoning_details", "thinking_blocks", "stop_reason", "invalid_tool_calls", "is_demo"),
    }
)
"""Fields of a message or block that say the same once more, or describe it."""


@dataclass
class Said:
    """What the model wrote, in the order of the record, and what it was shown in between.

    refused : it says that it refuses
    """

    texts: list[str] = field(default_factory=list)
    shown: list[Any] = field(default_factory=list)
    refused: bool = False
    some: bool = False

    def add(self, other: Said) -> None:
        """Take over what another part says."""
        self.texts += other.texts
        self.shown += other.shown
        self.refused |= other.refused
        self.some |= other.some

    def why_silent(self) -> str:
        """Why there is no text."""
        return "refusal" if self.refused else "empty" if self.some else "no text"


def read_said(value: Any) -> Said:
    """What an answer says: a string, a message, blocks or parts, or several turns of a model.

    >>> read_said([{"type": "text", "text": "a"}, {"type": "tool_use", "input": {"b": 1}}]).texts
    ['a', '{"b": 1}']
    """
    said = Said()
    if isinstance(value, str):
        said.some = True
        said.texts = [value] if value.strip() else []
    elif isinstance(value, list):
        turns = any(role_of(one) for one in value)
        for one in value:
            if turns and isinstance(one, dict) and role_of(one) and not is_answer(one):
                said.shown.append(one)
            else:
                said.add(read_said(one))
    elif isinstance(value, dict):
        said = _read_object(value)
    return said


def role_of(turn: Any) -> str:
    """Who speaks, in small letters; "" for no turn."""
    if not isinstance(turn, dict):
        return ""
    found = next((turn[name] for name in ROLES if isinstance(turn.get(name), str)), "")
    return str(found).casefold().strip()


def is_answer(turn: Any) -> bool:
    """Whether the model wrote this turn (a demonstration that it was given is none)."""
    return role_of(turn) in _ANSWERING and not turn.get("is_demo")


def split_turns(turns: Sequence[Any]) -> Iterator[tuple[int, list[Any], Said]]:
    """Every turn of the model: its number, everything before it, and what it says."""
    for number, turn in enumerate(turns):
        if is_answer(turn):
            before, said = list(turns[:number]), read_said(turn)
            if before and is_answer(before[-1]):
                # a turn of its own between them, or the record would read as one turn twice
                before.append({"role": "user", "content": ""})
            yield number, before, said


def _read_object(value: Mapping[str, Any]) -> Said:
    """One message or block."""
    if isinstance(value.get("kwargs"), dict) and "lc" in value:  # LangChain, serialised
        value = value["kwargs"]
    said = Said()
    kind = value.get("type")
    is_message = bool(role_of(value)) or any(name in value for name in (*_CALLS, "refusal"))
    said.refused = bool(value.get("refusal")) or kind == "refusal"
    if not is_message and isinstance(kind, str) and kind not in BLOCKS and kind not in _ANSWERING:
        said.shown.append(value)
        return said
    paths: Sequence[str] = _WRITTEN
    if not is_message and isinstance(kind, str) and kind in BLOCKS:
        paths = _one_of(value, BLOCKS[kind])
    elif not is_message and "content" not in value:
        paths = _one_of(value, _UNTYPED)
        if not paths:
            said.shown.append(value)
            return said
    for path in paths:
        for one in find(value, path):
            said.add(_read_part(one, path))
    _add_rest(said, value, {path.partition(".")[0].partition("[")[0] for path in paths})
    return said


def _one_of(value: Mapping[str, Any], paths: Sequence[str]) -> list[str]:
    return [path for path in paths if find(value, path)][:1]


def _read_part(value: Any, path: str) -> Said:
    """What stands in a field that the model wrote: text, blocks, or arguments of a call."""
    if value is None:
        return Said()
    name = path.rpartition(".")[2]
    if isinstance(value, str) or name in _CONTENTS or name == "reasoning":
        return read_said(value)
    return Said([as_text(value)] if value else [], some=True)


def _add_rest(said: Said, value: Mapping[str, Any], read: set[str]) -> None:
    """What else stands there was shown, but for the same text once more."""
    for name, one in value.items():
        if name in read or name in _LABELS or is_short(one):
            continue
        leaves = [leaf for leaf in leaves_of(one) if leaf.strip()]
        if not all(any(leaf in text for text in said.texts) for leaf in leaves):
            said.shown.append(one)


def leaves_of(value: Any) -> Iterator[str]:
    """Every string in a value, without the names of fields."""
    stack = [value]
    while stack:
        one = stack.pop()
        if isinstance(one, str):
            yield one
        elif isinstance(one, list):
            stack += one
        elif isinstance(one, dict):
            stack += one.values()
