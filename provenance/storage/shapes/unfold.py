"""Shapes that are folded: telemetry and event streams, unfolded before the table reads them.

Knows how OpenTelemetry writes attributes and how OpenHands writes events; knows no answer.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from provenance.storage.shapes.paths import find, first, unwrap

_SPANS: Final = (
    "resourceSpans[].scopeSpans[].spans[]",
    "resource_spans[].scope_spans[].spans[]",
    "resourceLogs[].scopeLogs[].logRecords[]",
)
_INDEXED: Final = re.compile(r"(gen_ai\.(?:prompt|completion))\.(\d+)\.(.+)")
_CALL: Final = re.compile(r"tool_calls\.(\d+)\.(\w+)")
_TELEMETRY: Final = re.compile(
    r"(gen_ai\.(request|response|usage|operation|system$|provider|token|agent\.(id|name)|"
    r"conversation|data_source|evaluation)|(server|service|telemetry|http|net|network|process|host|os|"
    r"thread|code|error|enduser|user|session|k8s|otel|openai|aws|az|url|client|peer|container|"
    r"deployment|cloud|span|logfire\.(?:span|level|msg$))\b)"
)
"""Attributes that describe a call and hold nothing that a model reads."""
_SHOWN: Final = {
    "gen_ai.input.messages": "messages",
    "gen_ai.system_instructions": "system",
    "gen_ai.tool.definitions": "tools",
    "gen_ai.prompt": "prompt",
    "gen_ai.content.prompt": "shown",
}
_ANSWERS: Final = ("gen_ai.output.messages", "gen_ai.completion", "gen_ai.choice")
_WRITTEN: Final = (
    *("args.content", "args.thought", "args.code", "args.command", "args.file_text"),
    *(
        "args.new_str",
        "args.final_thought",
        "args.arguments",
        "args.browser_actions",
        "args.inputs",
    ),
)
_ACTIONS: Final = frozenset(
    {
        *("message", "run", "run_ipython", "write", "edit", "read", "browse", "think", "finish"),
        *("browse_interactive", "delegate", "reject", "call_tool_mcp", "condensation", "mcp"),
    }
)
_EXTENSIONS: Final = frozenset({"tool_call_metadata", "llm_metrics", "timeout", "timestamp"})


def records_in(value: Any) -> list[Any]:
    """The records of one value: the spans of an export of telemetry, or the value itself.

    A list of turns or of events is one conversation.
    """
    if isinstance(value, dict):
        for path in _SPANS:
            if found := find(value, path):
                return found
        if isinstance(value.get("observations"), list) and "output" in value:
            return [*(one for one in value["observations"] if isinstance(one, dict))]
        return [value]
    if isinstance(value, list) and value and all(isinstance(one, dict) for one in value):
        if all("source" in one and ("action" in one or "observation" in one) for one in value):
            return [{"history": value}]
        if all(_is_turn(one) for one in value):
            return [{"messages": value}]
        if all("from" in one and "value" in one for one in value):
            return [{"conversations": value}]
    if isinstance(value, list):
        return [one for entry in value for one in _spans_in(entry)]
    return [value]


def _is_turn(value: Mapping[str, Any]) -> bool:
    """A turn of a conversation, and no answer of Anthropic's API, which has a role too."""
    said = "content" in value or "tool_calls" in value
    return "role" in value and said and value.get("type") != "message"


def _spans_in(value: Any) -> list[Any]:
    """What `records_in` finds in an object; anything else as it is."""
    return records_in(value) if isinstance(value, dict) else [value]


def unfold(record: Mapping[str, Any], how: str) -> dict[str, Any]:
    """The record as the table reads it. `how`: the `prepare` of its shape."""
    return _otel(record) if how == "otel" else _openhands(record) if how else dict(record)


def is_telemetry(record: Mapping[str, Any]) -> bool:
    """Whether a record is a span or an event of telemetry, with a model's call or without."""
    attributes = _attributes(record.get("attributes"))
    if any(name.startswith("gen_ai.") for name in (*attributes, *record)):
        return True
    ids = {"spanId", "span_id", "traceId", "trace_id", "context"} & set(record)
    return bool(ids) and "attributes" in record and "output" not in record


def _otel(record: Mapping[str, Any]) -> dict[str, Any]:
    """One span: attributes by name, those of its events among them, prompts under our names."""
    found = {name: one for name, one in record.items() if name.startswith("gen_ai.")}
    found |= _attributes(record.get("attributes"))
    shown: list[Any] = []
    choices: list[Any] = []
    for event in _events(record):
        name, inner = _name_of(event), _attributes(event.get("attributes"))
        body = _value(event.get("body"))
        content = [inner] if inner else []
        content += [body] if body else []
        if name == "gen_ai.choice":
            choices += [unwrap_message(one) for one in content]
        elif name in ("gen_ai.content.completion", "gen_ai.client.inference.operation.details"):
            found |= inner
        else:
            shown += content
    out: dict[str, Any] = {}
    for name, value in _gathered(found).items():
        if name in _SHOWN:
            parsed = unwrap(value) if isinstance(value, str) else value
            own = _SHOWN[name] if _is_chat(parsed) or _SHOWN[name] != "messages" else "shown"
            out[own if own not in out else "shown"] = parsed
        elif name in _ANSWERS or not _TELEMETRY.match(name):
            out[name] = value
    if shown:
        out["shown"] = [*shown, out.pop("shown", None)]
    if choices:
        out["gen_ai.choice"] = choices
    return out


def unwrap_message(value: Any) -> Any:
    """The message of a choice, which may be JSON in a string."""
    inner = first(value, "message")
    return unwrap(inner) if isinstance(inner, str) else inner if inner is not None else value


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, dict) for one in value)


def _events(record: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    """Events of a span; an event that is a record of its own is one."""
    if _name_of(record).startswith("gen_ai."):
        yield record
    events = record.get("events")
    for event in events if isinstance(events, list) else ():
        if isinstance(event, dict):
            yield event


def _name_of(event: Mapping[str, Any]) -> str:
    attributes = _attributes(event.get("attributes"))
    for name in (event.get("eventName"), event.get("event_name"), attributes.get("event.name")):
        if isinstance(name, str):
            return name
    return str(event.get("name", ""))


def _attributes(value: Any) -> dict[str, Any]:
    """Attributes as an object, or as the list of key and value of OTLP."""
    if isinstance(value, dict):
        return value
    if not isinstance(value, list):
        return {}
    pairs = [one for one in value if isinstance(one, dict) and isinstance(one.get("key"), str)]
    return {one["key"]: _value(one.get("value")) for one in pairs}


def _value(value: Any) -> Any:
    """A value as OTLP writes it."""
    if not isinstance(value, dict):
        return value
    for name in ("stringValue", "boolValue", "intValue", "doubleValue", "bytesValue"):
        if name in value:
            return value[name]
    if "arrayValue" in value:
        return [_value(one) for one in find(value, "arrayValue.values[]")]
    if "kvlistValue" in value:
        return _attributes(first(value, "kvlistValue.values"))
    return {name: _value(one) for name, one in value.items()}


def _gathered(found: Mapping[str, Any]) -> dict[str, Any]:
    """`gen_ai.prompt.0.content` and its sisters as lists of messages."""
    out: dict[str, Any] = {}
    lists: dict[str, dict[int, dict[str, Any]]] = {}
    for name, value in found.items():
        if match := _INDEXED.fullmatch(name):
            own = lists.setdefault(match[1], {}).setdefault(int(match[2]), {})
            call = _CALL.fullmatch(match[3])
            if call:
                calls = own.setdefault("tool_calls", {}).setdefault(int(call[1]), {})
                calls[call[2]] = value
            else:
                own[match[3]] = value
        else:
            out[name] = value
    for own in (one for turns in lists.values() for one in turns.values()):
        if isinstance(own.get("tool_calls"), dict):
            own["tool_calls"] = [own["tool_calls"][i] for i in sorted(own["tool_calls"])]
    return out | {name: [own[i] for i in sorted(own)] for name, own in lists.items()}


def _openhands(record: Mapping[str, Any]) -> dict[str, Any]:
    """Events as turns: what the agent did is its turn, everything else the environment's."""
    turns: list[Any] = []
    seen: set[str] = set()
    for event in _flat(record.get("history")):
        if event.get("source") != "agent" or str(event.get("action")) not in _ACTIONS:
            kept = {name: one for name, one in event.items() if name not in _EXTENSIONS}
            turns.append({"role": "environment", "content": [kept]})
            continue
        answer = first(event, "tool_call_metadata.model_response")
        name = first(answer, "id")
        if isinstance(name, str) and name in seen:
            continue
        if isinstance(name, str):
            seen.add(name)
        message = first(answer, "choices[].message")
        parts = [one for path in _WRITTEN for one in find(event, path) if one]
        turns.append(
            {**message, "role": "assistant"}
            if isinstance(message, dict)
            else {"role": "assistant", "content": [_block(one) for one in parts]}
        )
    return {**record, "turns": turns}


def _block(value: Any) -> Any:
    return value if isinstance(value, str) else {"type": "tool_use", "input": value}


def _flat(history: Any) -> Iterator[Mapping[str, Any]]:
    """Events one after the other; older files pair an action with its observation."""
    for one in history if isinstance(history, list) else ():
        if isinstance(one, dict):
            yield one
        elif isinstance(one, list):
            yield from (event for event in one if isinstance(event, dict))
