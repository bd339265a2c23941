"""Dotted paths into JSON: `choices[].message.content`, and tests of what stands there.

`[]` stands for every entry of a list. A name that has dots of its own is found as it is written:
at each object the whole rest of the path is tried as one name first. Knows values; no shape.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, Final

from provenance.errors import DataError
from provenance.storage.files import parse_json

MISSING: Final = object()


def find(value: Any, path: str, *, in_strings: bool = False) -> list[Any]:
    """Everything that stands at the path; nothing is found where something else stands.

    `in_strings`: what is written as a JSON string is looked into.

    >>> find({"a": [{"b": 1}, {"b": None}, {}]}, "a[].b")
    [1, None]
    >>> find({"gen_ai.prompt": "x"}, "gen_ai.prompt")
    ['x']
    """
    if not path:
        return [value]
    if in_strings and isinstance(value, str):
        value = unwrap(value)
    if path.startswith("[]"):
        if not isinstance(value, list):
            return []
        rest = path[2:].removeprefix(".")
        return [one for entry in value for one in find(entry, rest, in_strings=in_strings)]
    if not isinstance(value, dict):
        return []
    if path in value:
        return [value[path]]
    for end in _ends(path):
        if path[:end] in value:
            rest = path[end:].removeprefix(".")
            return find(value[path[:end]], rest, in_strings=in_strings)
    return []


def first(value: Any, path: str) -> Any:
    """What is first found at the path, or None."""
    return next(iter(find(value, path)), None)


def unwrap(text: str) -> Any:
    """What a string says if it is the JSON of an object or a list, else the string itself."""
    if text.lstrip()[:1] not in ("{", "["):
        return text
    try:
        return parse_json(text, "")
    except DataError:
        return text


def without(value: Any, paths: Sequence[str]) -> Any:
    """The same without what stands at the paths. The value itself is left as it is.

    >>> without({"a": {"b": 1, "c": 2}, "d": 3}, ["a.b", "d"])
    {'a': {'c': 2}}
    """
    plain = set(paths)
    if isinstance(value, dict):
        value = {name: one for name, one in value.items() if name not in plain}
    for path in paths:
        if "." in path or "[]" in path:
            value = _drop(value, path)
    return value


def holds(value: Any, test: str) -> bool:
    """Whether something at a path is of a kind: `path:kind`, `path=text` or `path!text`.

    Kinds: text, texts (a list of strings), list, object, number, some (not null), null, any.

    >>> [holds({"a": "b"}, test) for test in ("a:text", "a=b", "a!b", "c:any")]
    [True, True, False, False]
    """
    for sign in ":=!":
        path, found, wanted = test.partition(sign)
        if found:
            break
    values = find(value, path)
    if sign == "=":
        return any(one == wanted for one in values)
    if sign == "!":
        return any(isinstance(one, str) and one != wanted for one in values)
    return any(_is_of_kind(one, wanted) for one in values)


def is_short(value: object) -> bool:
    """Nothing that could be a text: numbers, true, false, null."""
    return value is None or isinstance(value, (bool, int, float))


def as_text(value: Any) -> str:
    """A string as it is; anything else as JSON, which keeps what stands side by side together."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _is_of_kind(value: Any, kind: str) -> bool:
    if kind == "text":
        return isinstance(value, str)
    if kind == "texts":
        return isinstance(value, list) and all(isinstance(one, str) for one in value)
    if kind == "list":
        return isinstance(value, list)
    if kind == "object":
        return isinstance(value, dict)
    if kind == "number":
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if kind == "null":
        return value is None
    return kind == "any" or value is not None


@lru_cache(maxsize=4096)
def _ends(path: str) -> list[int]:
    """Where the first name of a path may end, the longest first."""
    return sorted({i for i in range(1, len(path)) if path[i] == "." or path[i : i + 2] == "[]"})[
        ::-1
    ]


def _drop(value: Any, path: str) -> Any:
    if path.startswith("[]") and isinstance(value, list):
        return [_drop(one, path[2:].removeprefix(".")) for one in value]
    if not isinstance(value, Mapping):
        return value
    if path in value:
        return {name: one for name, one in value.items() if name != path}
    for end in _ends(path):
        name, rest = path[:end], path[end:].removeprefix(".")
        if name in value:
            return {**value, name: _drop(value[name], rest)}
    return value
