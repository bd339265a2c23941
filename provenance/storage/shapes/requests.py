"""How files are to be read, and the requests that a batch answered.

Knows files and names of shapes; no answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from provenance.errors import DataError, UsageError
from provenance.storage.files import Paths, as_paths, name_files, sha256_of_file
from provenance.storage.shapes.containers import ValueFile
from provenance.storage.shapes.convert import make_shape, request_fields, shape_named
from provenance.storage.shapes.paths import first
from provenance.storage.shapes.table import REQUESTS
from provenance.storage.shapes.unfold import records_in

_GIVEN: Final = ("mapping", "strict", "any_text")


@dataclass(frozen=True)
class ReadAs:
    """How files of outputs are to be read.

    Attributes
    ----------
    format : name of a shape; None: it is found out
    requests : files of the requests that a batch answered, joined by their ids
    mapping : `output=field.path`, `prompt=field.path`, for shapes that are not known
    strict : a record that holds no text is an error
    any_text : a file of an unknown suffix is a text, and a field `text` an answer (`detect`)
    """

    format: str | None = None
    requests: tuple[Path, ...] = ()
    mapping: tuple[str, ...] = ()
    strict: bool = False
    any_text: bool = False

    @classmethod
    def of(cls, given: Any) -> ReadAs:
        """From what a caller gives: None, a mapping of the arguments of `make`, or itself."""
        if given is None or isinstance(given, ReadAs):
            return given or cls()
        if not isinstance(given, Mapping) or not set(given) <= {"format", "requests", *_GIVEN}:
            raise UsageError(
                "read_as must be a dict with format, requests, mapping and strict; it is not. "
                "Leave out what is to be found out."
            )
        return cls.make(**given)

    @classmethod
    def make(
        cls,
        format: str | None = None,  # noqa: A002 - the name of the option
        requests: Paths | None = None,
        mapping: Sequence[str] | None = None,
        *,
        strict: bool | None = False,
        any_text: bool = False,
    ) -> ReadAs:
        """From what a caller gives. Raises UsageError before anything is read."""
        if format is not None:
            shape_named(format)
        if mapping and format is not None:
            raise UsageError("--map must stand without --format; both are given. Keep one.")
        if mapping:
            make_shape(tuple(mapping))
        paths = as_paths(requests, "requests")
        return cls(format, paths, tuple(mapping or ()), bool(strict), any_text)


@dataclass
class Requests:
    """Requests of a batch by their ids; `sha256` of the files by name."""

    fields: dict[str, dict[str, Any]] = field(default_factory=dict)
    sha256: dict[str, str] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.sha256)

    @classmethod
    def read(cls, paths: Sequence[Path]) -> Requests:
        """Raises DataError naming file and line: no request, or an id that was used before."""
        found = cls()
        for path in paths:
            for origin, value in ValueFile(path):
                for one in records_in(value):
                    found._add(one, origin)
        names = name_files(list(paths))
        hashes = (sha256_of_file(path) for path in paths)
        found.sha256 = dict(zip(names, hashes, strict=True))
        return found

    def _add(self, value: Any, origin: str) -> None:
        for body, key in REQUESTS:
            inner, name = first(value, body), first(value, key)
            if isinstance(inner, dict) and isinstance(name, (str, int)):
                if str(name) in self.fields:
                    raise DataError(
                        f"{origin}: the id {name} must be used once; it was used before. A result "
                        "would be joined with another request. Repair the file."
                    )
                self.fields[str(name)] = request_fields(inner)
                return
        raise DataError(
            f"{origin}: must be a request of a batch: body (or params) and custom_id, or request "
            "and key; it is not. Name the file that was sent."
        )
