"""Class tables as JSON: written canonically, read strictly.

A reader that repairs what it reads would let two files with one meaning have two hashes, so every
deviation is refused. Does not know files: parsed JSON in, rows out.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from provenance.errors import DataError, UsageError
from provenance.stats.laws import NullLaw
from provenance.stats.score_class import ScoreClass


def write_classes(classes: Sequence[ScoreClass]) -> dict[str, object]:
    """Return rows as JSON-able data; laws are listed once, sorted, and referred to by position."""
    laws = sorted({item.law.masses for item in classes})
    number = {masses: position for position, masses in enumerate(laws)}
    return {
        "classes": [
            {
                "weight": item.weight,
                "law": number[item.law.masses],
                "count": item.count,
                "total": item.total,
            }
            for item in classes
        ],
        "laws": [{"id": number[masses], "masses": list(masses)} for masses in laws],
    }


def read_classes(data: object) -> list[ScoreClass]:
    """Read the rows; raises DataError on a missing, unknown, mistyped or impossible field."""
    fields = _fields(data, {"classes", "laws"}, "A class table")
    laws = _read_laws(_rows(fields["laws"], "laws"))
    return [_read_class(row, laws) for row in _rows(fields["classes"], "classes")]


def _fields(data: object, fields: set[str], what: str) -> Mapping[str, object]:
    """Return data if it is an object with exactly these fields, else raise."""
    if not isinstance(data, Mapping) or set(data) != fields:
        found = sorted(map(str, data)) if isinstance(data, Mapping) else type(data).__name__
        raise DataError(
            f"{what} must be an object with the fields {sorted(fields)}; got {found}. "
            "Write tables with to_json."
        )
    return data


def _rows(data: object, name: str) -> list[object]:
    if not isinstance(data, list):
        raise DataError(
            f"The {name} of a class table must be a list; got {type(data).__name__}. "
            "Write tables with to_json."
        )
    return data


def _integer(value: object, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise DataError(
            f"The {name} of a class table must be an integer; got {type(value).__name__}. "
            "Write tables with to_json."
        )
    return value


def _read_laws(rows: list[object]) -> list[NullLaw]:
    laws = []
    for position, row in enumerate(rows):
        fields = _fields(row, {"id", "masses"}, "A law")
        if _integer(fields["id"], "law id") != position:
            raise DataError(
                f"The laws of a class table must be numbered from 0; got {fields['id']} at "
                f"position {position}. Write tables with to_json."
            )
        masses = [_integer(mass, "law mass") for mass in _rows(fields["masses"], "law masses")]
        try:
            laws.append(NullLaw(tuple(masses)))
        except UsageError as error:
            raise DataError(f"Law {position} of a class table is refused: {error}") from error
    return laws


def _read_class(row: object, laws: list[NullLaw]) -> ScoreClass:
    fields = _fields(row, {"weight", "law", "count", "total"}, "A score class")
    law = _integer(fields["law"], "law reference")
    if not 0 <= law < len(laws):
        raise DataError(
            f"The law of a score class must be in 0..{len(laws) - 1}; got {law}. "
            "List every law of the table."
        )
    return ScoreClass(
        _integer(fields["weight"], "weight"),
        laws[law],
        _integer(fields["count"], "count"),
        _integer(fields["total"], "total"),
    )
