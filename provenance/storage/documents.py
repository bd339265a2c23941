"""Documents of JSON as frozen dataclasses: read strictly, by the types of their fields.

The annotations of a dataclass say what its document may hold, so nothing is said twice. A reader
that repairs what it reads would let two files with one meaning have two hashes: a missing field
without a default, an unknown field and a value of another type are refused. What a field means, and
its domain, is the business of its class. Knows no files and no document in particular.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import MISSING, fields, is_dataclass
from functools import cache
from types import NoneType, SimpleNamespace
from typing import Any, Final, Literal, TypeVar, get_args, get_origin, get_type_hints

from provenance.errors import DataError, say_briefly

T = TypeVar("T")

MALFORMED: Final = (
    KeyError,
    TypeError,
    ValueError,
    AttributeError,
    IndexError,
    ArithmeticError,
    RecursionError,
)
"""What taking a document apart raises where it is not of the expected shape."""


@contextmanager
def refuse_malformed(claim: str, advice: str) -> Iterator[None]:
    """Turn whatever a malformed document raises inside into one DataError line.

    Parameters: what must hold, naming the file; what to do next, a sentence.
    """
    try:
        yield
    except MALFORMED as error:
        reason = ("no field " if type(error) is KeyError else "") + say_briefly(error)
        raise DataError(f"{claim}; got: {reason}. {advice}") from error


def read_fields(kind: type[T], document: object, where: str = "") -> T:
    """A frozen dataclass from the JSON object of its fields.

    Parameters
    ----------
    kind : the dataclass. Fields with a default may be missing; fields that are not compared are no
        part of the document. A type with `from_json` reads its own part
    document : parsed JSON, or what `dataclasses.asdict` gives
    where : path of the object in the document, for messages

    Raises
    ------
    TypeError, ValueError, and what the class itself raises, naming the first field that is wrong.
    """
    if not isinstance(document, Mapping):
        raise TypeError(f"{where or kind.__name__} that is no object")
    hints, required = _describe(kind)  # type: ignore[arg-type]
    if odd := sorted((required - set(document)) | (set(document) - set(hints))):
        raise ValueError(f"missing or unknown fields {', '.join(odd)} {where}".rstrip())
    return kind(
        **{
            name: _read_value(hints[name], value, f"{where}.{name}".lstrip("."))
            for name, value in document.items()
        }
    )


def take_stated(document: object, follows: frozenset[str]) -> dict[str, Any]:
    """The document without what follows from its other fields, which must be there all the same.

    Raises TypeError, ValueError.
    """
    if not isinstance(document, Mapping):
        raise TypeError("a list or a value where an object is due")
    if missing := sorted(follows - set(document)):
        raise ValueError(f"missing fields {', '.join(missing)}")
    return {name: value for name, value in document.items() if name not in follows}


@cache
def _describe(kind: type) -> tuple[dict[str, Any], set[str]]:
    """Types of the fields of a document, and which of them must be there."""
    own = {one.name: one for one in fields(kind) if one.init and one.compare}
    # of these alone: the type of a field that is no part of a document may not be importable
    stated = SimpleNamespace(__annotations__={name: one.type for name, one in own.items()})
    hints = get_type_hints(stated, vars(sys.modules[kind.__module__]))
    required = {
        name
        for name, one in own.items()
        if one.default is MISSING and one.default_factory is MISSING
    }
    return hints, required


def _read_value(kind: Any, value: Any, where: str) -> Any:
    """The value, if it is of the type; lists become tuples."""
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if NoneType in arguments:
        (other,) = (one for one in arguments if one is not NoneType)
        return None if value is None else _read_value(other, value, where)
    if origin is Literal:
        if not any(type(value) is type(one) and value == one for one in arguments):
            raise ValueError(f"{where} {value!r:.80}, which is none of {arguments}")
        return value
    if origin is tuple and isinstance(value, list | tuple):
        return tuple(_read_value(arguments[0], one, f"{where}[{i}]") for i, one in enumerate(value))
    if origin is Mapping and isinstance(value, Mapping):
        return {
            name: _read_value(arguments[1], one, f"{where}.{name}") for name, one in value.items()
        }
    if hasattr(kind, "from_json"):
        return kind.from_json(value)
    if is_dataclass(kind):
        return read_fields(kind, value, where)  # type: ignore[arg-type]
    if not isinstance(value, origin or kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{where} of another type")
    return value
