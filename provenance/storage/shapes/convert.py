"""A record of any shape in the table -> records of our own form, or why it holds no text.

Our form is that of docs/formats.md: `outputs`, and what was shown before them under names that the
reader of outputs knows. What the table does not name is handed on under its own name. Knows values
of JSON; no file, no token, no key.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from provenance.errors import DataError, UsageError
from provenance.storage.shapes.paths import find, first, holds, unwrap, without
from provenance.storage.shapes.table import (
    OURS,
    PARAMETERS,
    PROVENANCE,
    RENAMED,
    SHAPES,
    TEXT,
    Shape,
)
from provenance.storage.shapes.turns import Said, leaves_of, read_said, role_of, split_turns
from provenance.storage.shapes.unfold import unfold

_OWN: frozenset[str] = frozenset({"output", "outputs", "output_token_ids"})
_MAPPED = "map"


@dataclass(frozen=True)
class Silent:
    """A record that holds no text, and why."""

    reason: str


@dataclass
class _Building:
    """A record of our form; what a name is taken for goes to `shown`."""

    fields: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: Any) -> None:
        if value is None or value in ("", [], {}):
            return
        if name in self.fields or name in _OWN or name == "shown":
            self.fields.setdefault("shown", []).append(value)
        else:
            self.fields[name] = value


def recognise(record: Mapping[str, Any]) -> list[Shape]:
    """Shapes that a record may have; our own if it holds one of our fields, as ever.

    An answer under our name beside what only another shape has is that shape's.
    """
    ours = any(name in record for name in _OWN) and "choices" not in record
    marked = "traceId" in record or record.get("object") == "response"
    if ours and not marked and not _is_foreign_list(record):
        return [PROVENANCE]
    found = {shape.name: shape for shape in SHAPES if shape.matches(record)}
    beside = [shape for name, shape in found.items() if name in ("langfuse", "openai-response")]
    if ours and not beside and not _is_foreign_list(record):
        return [PROVENANCE]
    return beside or list(found.values())


def shape_named(name: str) -> tuple[Shape, ...]:
    """The entries of the table of this name. Raises UsageError."""
    found = tuple(shape for shape in (PROVENANCE, *SHAPES) if shape.name == name)
    if not found and name != TEXT:
        names = ", ".join(dict.fromkeys((OURS, *(shape.name for shape in SHAPES), TEXT)))
        raise UsageError(f"--format must be one of {names}; got {name}. Choose one of them.")
    return found


def make_shape(mapping: Sequence[str]) -> Shape:
    """The shape that `output=field.path` and `prompt=field.path` describe. Raises UsageError."""
    answers, shown, known, key = [], [], [], ""
    for one in mapping:
        name, _, path = one.partition("=")
        if not name or not path:
            raise UsageError(f"--map must be NAME=PATH; got {one}. Example: output=answer.text")
        if name in ("output", "outputs"):
            answers.append(path)
        elif name == "id":
            key = path
        else:
            shown += [(name, path)] if name != "not_shown" else []
            known.append(path)
    if not answers:
        raise UsageError("--map must name the output; it does not. Add output=PATH.")
    kept = (*known, *answers, *((key,) if key else ()))
    says = "by --map " + " ".join(mapping)
    return Shape(
        _MAPPED,
        says,
        (),
        answers=tuple(answers),
        shown=tuple(shown),
        known=kept,
        key=key,
        written_as=True,
    )


def convert(
    record: Mapping[str, Any],
    shape: Shape,
    requests: Mapping[str, Mapping[str, Any]],
    origin: str,
) -> Iterator[dict[str, Any] | Silent]:
    """Records of our form: one, or one for every turn of the model, or why there is no text.

    Raises DataError naming the place if the record cannot be read without losing a prompt.
    """
    if shape is PROVENANCE:
        yield _read_ours(record)
        return
    unfolded = unfold(record, shape.prepare)
    for test, reason in shape.failed:
        if holds(unfolded, test):
            yield Silent(reason)
            return
    body = first(unfolded, shape.base)
    if not isinstance(body, dict):
        yield Silent("error" if shape.base else "no text")
        return
    shown = _collect(unfolded, body, shape, requests, origin)
    if shape.turns:
        yield from _split(first(body, shape.turns), shown, origin)
        return
    said = _answer(body, shape)
    if not said.texts:
        silent = said.why_silent()
        yield Silent("error" if silent == "no text" and holds(body, "error:some") else silent)
        return
    _add_shown(shown, said.shown)
    yield {**shown.fields, "outputs": said.texts}


def key_of(record: Mapping[str, Any], shape: Shape) -> str | None:
    """The id by which a record is joined with its request."""
    found = first(record, shape.key) if shape.key else None
    return None if found is None or isinstance(found, (dict, list)) else str(found)


def request_fields(body: Mapping[str, Any]) -> dict[str, Any]:
    """What of a request a model reads, under our names."""
    built = _Building()
    for name, value in body.items():
        if name not in PARAMETERS:
            built.add(RENAMED.get(name, name), value)
    return built.fields


def shown_beside(record: Mapping[str, Any], shape: Shape, origin: str) -> dict[str, Any]:
    """What stands beside the answer of a record and may have been shown. Raises DataError."""
    body = first(record, shape.base)
    return _collect(record, body if isinstance(body, dict) else {}, shape, {}, origin).fields


def _read_ours(record: Mapping[str, Any]) -> dict[str, Any] | Silent:
    """A record of our own form: as it is, unless it holds no text."""
    if record.get("output_token_ids") is not None:
        return dict(record)
    given = record.get("output", record.get("outputs"))
    silent = Silent("refusal" if record.get("refusal") else "no text")
    if given is None:
        if record.get("error"):
            return Silent("error")
        return silent if {"output", "outputs"} & set(record) else dict(record)
    if isinstance(given, list) and None in given:
        texts = [text for text in given if text is not None]
        return {**record, "outputs": texts} if texts else silent
    return dict(record)


def _answer(body: Mapping[str, Any], shape: Shape) -> Said:
    """What the model wrote; of several paths the first that is there."""
    said = Said()
    for path in shape.answers:
        found = find(body, path, in_strings=shape.written_as)
        for one in found:
            said.add(read_said(_unwrap(one) if shape.written_as else one))
        if found:
            break
    return said


def _unwrap(value: Any) -> Any:
    """An answer that is the JSON of messages or blocks; any other JSON was written by the model."""
    parsed = unwrap(value) if isinstance(value, str) else value
    ones = parsed if isinstance(parsed, list) else [parsed]
    return parsed if any(role_of(one) or _is_block(one) for one in ones) else value


def _is_block(value: Any) -> bool:
    return isinstance(value, dict) and "type" in value and ("text" in value or "content" in value)


def _collect(
    record: Mapping[str, Any],
    body: Mapping[str, Any],
    shape: Shape,
    requests: Mapping[str, Mapping[str, Any]],
    origin: str,
) -> _Building:
    """What was shown, and what the table says nothing of."""
    built = _Building()
    paths = [path for _, path in shape.shown]
    for name, path in shape.shown:
        source = body if shape.base and not find(record, path) else record
        for value in find(source, path):
            if name == "*":
                for inner, one in request_fields(value if isinstance(value, dict) else {}).items():
                    built.add(inner, one)
            else:
                built.add(name, unwrap(value) if name == "messages" and _is_text(value) else value)
    if holds(body, "prompt:null") and holds(body, "prompt_token_ids:list"):
        raise DataError(
            f"{origin}: prompt is null and prompt_token_ids are ids of the suspect's tokenizer, "
            "perhaps not the served one. Write the prompts as text."
        )
    taken = [*paths, *shape.known, *([shape.turns] if shape.turns else ())]
    rest = without(body, [*taken, *shape.answers, *([shape.key] if not shape.base else ())])
    rest = {name: value for name, value in rest.items() if name != shape.key}
    if shape.base:
        outer = without(record, [shape.base.partition(".")[0], *paths, *shape.beside, shape.key])
        for name, value in outer.items():
            built.add(name, value)
    for name, value in rest.items():
        built.add(name, value)
    asked = requests.get(key_of(record, shape) or "")
    for name, value in (asked or {}).items():
        built.add(name, value)
    return built


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _split(turns: Any, shown: _Building, origin: str) -> Iterator[dict[str, Any] | Silent]:
    """A record for every turn of the model, with everything before it."""
    turns = unwrap(turns) if isinstance(turns, str) else turns
    if not isinstance(turns, list) or not all(isinstance(turn, dict) for turn in turns):
        raise DataError(f"{origin}: a conversation must be a list of turns; it is not. Repair it.")
    some = False
    for _, before, said in split_turns(turns):
        some = True
        if not said.texts:
            yield Silent(said.why_silent())
            continue
        built = _Building(dict(shown.fields))
        if "shown" in built.fields:
            built.fields["shown"] = list(built.fields["shown"])
        built.add("messages", before)
        _add_shown(built, said.shown)
        yield {**built.fields, "outputs": said.texts}
    if not some:
        yield Silent("no turn of the model")


def _add_shown(built: _Building, values: Sequence[Any]) -> None:
    for value in values:
        built.add("shown", value)


def _is_foreign_list(record: Mapping[str, Any]) -> bool:
    """`outputs` as objects: vLLM's, or a run of LangSmith."""
    outputs = record.get("outputs")
    if isinstance(outputs, dict):
        return True
    return isinstance(outputs, list) and any(isinstance(one, dict) for one in outputs)


def is_prompted(record: Mapping[str, Any]) -> bool:
    """Whether a record of our form says anything of a prompt, before it is read closely."""
    return any(name not in _OWN and any(leaves_of(value)) for name, value in record.items())
