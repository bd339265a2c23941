"""Files of outputs in any shape, as records of our own form, with a tally of what was left out.

The shape of a file is that of its first record which holds one; every other record must have it
too. Knows files and shapes; no token, no key.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from provenance.errors import DataError, StorageError
from provenance.storage.files import name_files, real_path
from provenance.storage.formats import LEDGER_FILE, OUTPUTS_FILE
from provenance.storage.lines import COMPRESSIONS, RecordReader, check_distinct, read_json_lines
from provenance.storage.plugins import Plugin, find_plugin
from provenance.storage.shapes.containers import CUT, DATA_SUFFIXES, ValueFile, suffix_of
from provenance.storage.shapes.convert import (
    Silent,
    convert,
    is_prompted,
    key_of,
    make_shape,
    recognise,
    shape_named,
)
from provenance.storage.shapes.paths import first, holds
from provenance.storage.shapes.requests import ReadAs, Requests
from provenance.storage.shapes.table import OURS, PLUGIN, PROVENANCE, SHAPES, TEXT, Shape
from provenance.storage.shapes.tally import Tally
from provenance.storage.shapes.unfold import records_in

OUTPUT_READERS: Final = "provenance.output_readers"
"""Group of the entry points that read outputs in other forms: path -> records as in our JSONL."""


class RecordFile:
    """Records of one file in our own form; iterate once, then `sha256` and `tally` are complete.

    Yields (`file: line n`, record); `key` is the id of the record that was yielded last. Raises
    DataError naming file and line, StorageError.
    """

    def __init__(self, path: Path, reading: ReadAs, requests: Requests) -> None:
        self.path = path
        self.tally = Tally()
        self.key: str | None = None
        self._reading, self._requests = reading, requests
        plugin = _plugin_for(path, reading)
        as_text = reading.format == TEXT or (
            reading.any_text and plugin is None and suffix_of(path) not in DATA_SUFFIXES
        )
        self._values = ValueFile(path, as_text=as_text)
        self._plugged = None if plugin is None else RecordReader(path, plugin)
        self._shape: tuple[Shape, ...] = ()
        if reading.mapping:
            self._shape = (make_shape(reading.mapping),)
        elif reading.format not in (None, TEXT):
            self._shape = shape_named(reading.format or "")

    @property
    def sha256(self) -> str:
        """Hex digest of the file; empty until it was read to its end."""
        return (self._plugged or self._values).sha256

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for place, found in self._all():
            if isinstance(found, Silent):
                self.tally.leave_out(found.reason, place.removeprefix(f"{self.path}: "))
                if self._reading.strict:
                    raise DataError(
                        f"{place}: must hold a text; it holds none ({found.reason}). Leave "
                        "--strict away to count such records and go on."
                    )
                continue
            outputs = found.get("outputs")
            count = len(outputs) if isinstance(outputs, list) else 1
            self.tally.outputs += count
            self.tally.without_prompt += 0 if is_prompted(found) else count
            yield place, found
        self.tally.shape = self._name()

    def _all(self) -> Iterator[tuple[str, dict[str, Any] | Silent]]:
        """Every record and what is left of it."""
        if self._plugged is not None:
            self._shape = (PROVENANCE,)
            values: Iterator[tuple[str, Any]] = read_json_lines(self._plugged)
        else:
            values = iter(self._values)
        for origin, value in values:
            ones = records_in(value) if self._plugged is None else [value]
            for number, one in enumerate(ones, start=1):
                place = f"{origin}: record {number}" if len(ones) > 1 else origin
                self.tally.records += 1
                yield from ((place, found) for found in self._convert(one, place))

    def _convert(self, value: Any, place: str) -> Iterator[dict[str, Any] | Silent]:
        if value is CUT:
            yield Silent("cut character")
            return
        if not isinstance(value, dict):
            raise DataError(f"{place}: must be a JSON object; got {type(value).__name__}.")
        try:
            shape = self._shape_of(value, place)
            if shape is None:
                yield Silent("error" if holds(value, "error:some") else "no text")
                return
            self.key = key_of(value, shape)
            if self._requests and self.key not in self._requests.fields:
                self.tally.unasked += 1
            yield from convert(value, shape, self._requests.fields, place)
        except RecursionError as error:
            raise DataError(
                f"{place}: must be JSON of a moderate depth; it is nested too deeply. Repair it."
            ) from error

    def _shape_of(self, value: Mapping[str, Any], place: str) -> Shape | None:
        """The entry of the table that reads this record; None for one that holds no answer."""
        if self._reading.mapping or PROVENANCE in self._shape:
            self._refuse_other(value, place)
            return self._shape[0]
        if self._reading.format == TEXT or (self._reading.any_text and "text" in value):
            return _texts(value)
        for shape in self._shape:
            if shape.matches(value):
                return shape
        found = recognise(value)
        if not self._shape:
            if not found and holds(value, "error:some") and "prompt" not in value:
                return None
            self._shape = self._choose(found, value, place)
            if PROVENANCE in self._shape:
                return PROVENANCE
            return next(shape for shape in found if shape in self._shape)
        entry = self._shape[0]
        turns = entry.turns and first(value, entry.turns) is None and not found
        if self._reading.format is not None and not turns:
            return entry
        if turns or (holds(value, "error:some") and not found):
            return None
        raise _mixed(place, entry, found)

    def _refuse_other(self, value: Mapping[str, Any], place: str) -> None:
        """Raise if a record among ours can only be of another shape."""
        if self._reading.mapping or self._reading.format is not None or self._plugged is not None:
            return
        found = recognise(value)
        if found and PROVENANCE not in found:
            raise _mixed(place, PROVENANCE, found)

    def _choose(
        self, found: Sequence[Shape], value: Mapping[str, Any], place: str
    ) -> tuple[Shape, ...]:
        """The entries of the one shape that the first record has."""
        names = list(dict.fromkeys(shape.name for shape in found))
        if len(names) > 1:
            raise DataError(
                f"{place}: may be {' or '.join(names)}, which would be read differently. "
                "Choose with --format, or say where the output stands with --map."
            )
        if not names:
            if {"output", "outputs"} & set(value) or self._values.path.suffix == ".txt":
                return (PROVENANCE,)
            raise DataError(
                f"{place}: must have output (a string) or outputs (a list of strings), or a shape "
                f"of docs/formats.md; got {sorted(map(str, value))[:20]}. Say where they stand: "
                "--map output=PATH --map prompt=PATH."
            )
        return tuple(shape for shape in (PROVENANCE, *SHAPES) if shape.name == names[0])

    def _name(self) -> str:
        if self._plugged is not None:
            return PLUGIN
        if self._reading.format == TEXT or self._values.is_text:
            return TEXT
        return self._shape[0].name if self._shape else OURS


class RecordFiles:
    """Files and folders of outputs; iterate once, then everything is known of them.

    Parameters: paths, a folder stands for the data files in it (that of a collection, which has a
    ledger, for its outputs alone); how they are to be read.
    Raises UsageError for a file that is named twice, DataError, StorageError.
    """

    def __init__(self, paths: Sequence[Path | str], reading: ReadAs | None = None) -> None:
        reading = reading or ReadAs()
        self.not_read: list[str] = []
        self._any_text, self._asked = reading.any_text, reading.requests
        files = [file for path in map(Path, paths) for file in self._expand(path)]
        check_distinct(files)
        self.requests = Requests.read(reading.requests)
        self.files = [RecordFile(path, reading, self.requests) for path in files]

    def __iter__(self) -> Iterator[tuple[str, dict[str, Any]]]:
        for file in self.files:
            yield from file

    @property
    def sha256(self) -> dict[str, str]:
        """Hex SHA-256 of what was read, by the names of `name_files`."""
        names = name_files([file.path for file in self.files])
        return {name: file.sha256 for name, file in zip(names, self.files, strict=True)}

    def describe(self, *, always: bool = False) -> dict[str, Any]:
        """What stands in a verdict: shapes, counts, what was left out.

        Empty if all was plain and it is not wanted `always`.
        """
        usual = (OURS, PLUGIN, TEXT) if self._any_text else (OURS, PLUGIN)
        plain = all(file.tally.is_plain(usual) for file in self.files)
        if plain and not (always or self.not_read or self.requests):
            return {}
        names = name_files([file.path for file in self.files])
        return {
            "files": {n: f.tally.to_json() for n, f in zip(names, self.files, strict=True)},
            "not_read": list(self.not_read),
            "requests": dict(self.requests.sha256),
        }

    def say_empty(self) -> str:
        """Why nothing could be read, for an error: reasons with their counts."""
        reasons: Counter[str] = Counter()
        for file in self.files:
            reasons.update(file.tally.left_out)
        said = ", ".join(f"{count} {reason}" for reason, count in sorted(reasons.items()))
        return f" ({sum(reasons.values())} records without a text: {said})" if reasons else ""

    def _expand(self, path: Path) -> list[Path]:
        """The data files of a folder and its sub-folders; the rest is named."""
        if not path.is_dir():
            return [path]
        if (path / LEDGER_FILE).is_file():
            return [path / OUTPUTS_FILE]
        try:
            found = sorted(one for one in path.rglob("*") if not one.is_dir())
        except OSError as error:
            raise StorageError(f"{path}: must be a readable folder; got: {error}.") from error
        asked = {real_path(one) for one in self._asked}
        found = [one for one in found if real_path(one) not in asked]
        read = [one for one in found if suffix_of(one) in DATA_SUFFIXES and _is_seen(one, path)]
        self.not_read += [str(one.relative_to(path)) for one in found if one not in set(read)]
        if not read:
            raise DataError(
                f"{path}: must hold a file of outputs ({', '.join(DATA_SUFFIXES)}); got "
                f"{len(found)} others. Name the files."
            )
        return read


def _plugin_for(path: Path, reading: ReadAs) -> Plugin | None:
    """Who reads a file of a suffix that is none of ours."""
    if reading.format is not None or suffix_of(path) in ("", *DATA_SUFFIXES, ".txt", ".md"):
        return None
    if path.suffix in COMPRESSIONS:
        return None
    return find_plugin(OUTPUT_READERS, path.suffix.removeprefix("."))


def _texts(value: Mapping[str, Any]) -> Shape:
    """The answer of a record that is only to be looked at for a mark."""
    names = ("text", "output") if isinstance(value.get("text"), str) else ("output", "outputs")
    return Shape(TEXT, "texts", (), answers=names)


def _mixed(place: str, shape: Shape, found: Sequence[Shape]) -> DataError:
    other = " or ".join(dict.fromkeys(one.name for one in found)) or "no known shape"
    return DataError(
        f"{place}: must be {shape.name} like the records before it; it is {other}. Write one "
        "shape a file."
    )


def _is_seen(path: Path, folder: Path) -> bool:
    return not any(part.startswith(".") for part in path.relative_to(folder).parts)
