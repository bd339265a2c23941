"""One file -> the values in it: JSON lines, a JSON document, a table, or a text.

What a file is follows from its name, and its first bytes must not say otherwise: a Parquet file
named .jsonl is refused by its name, not by what a codec thinks of it. Knows bytes; no shape.
"""

from __future__ import annotations

import csv
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.parquet as pq

from provenance.errors import DataError, say_briefly
from provenance.storage.files import (
    has_cut_character,
    is_of_disk,
    open_file,
    parse_json,
    sha256_of_file,
    unchanging,
    unreadable,
)
from provenance.storage.formats import FORMAT_BYTES, advise, has_suffix, name_format
from provenance.storage.lines import COMPRESSIONS, MAXIMUM_LINE, LineReader, read_start
from provenance.storage.parquet import cut_batch, refuse_bombs

CUT: Final = object()
"""A value in which half of a character stands: a response that was cut, or was damaged."""
MAXIMUM_DOCUMENT: Final = 1 << 28
"""Bytes of one JSON document, and of one text."""
_BOM: Final = b"\xef\xbb\xbf"
_TABLES: Final = {".csv": ",", ".tsv": "\t"}
_TEXTS: Final = (".txt", ".md")
_JSON: Final = (".json", ".jsonl", ".ndjson", ".traj")
DATA_SUFFIXES: Final = (*_JSON, *_TABLES, ".parquet")
"""Files that are read out of a folder; a text there may be anything, and is named instead."""


def suffix_of(path: Path) -> str:
    """The suffix that says what a file is, below its compression."""
    name = path.stem if path.suffix in COMPRESSIONS else path.name
    return Path(name).suffix.casefold()


class ValueFile:
    """The values of one file; iterate once, then `sha256` is that of its bytes.

    Yields (`file: line n`, value), `CUT` in place of a value with half of a character in it.
    `as_text`: the whole file is one text. Raises DataError naming file and line, StorageError.
    """

    def __init__(self, path: Path | str, *, as_text: bool = False) -> None:
        self.path = Path(path)
        self.sha256 = ""
        self.is_text = as_text or suffix_of(self.path) in _TEXTS

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        start = check_format(self.path)
        suffix = suffix_of(self.path)
        if suffix == ".parquet":
            yield from self._read_parquet()
        elif self.is_text:
            yield str(self.path), {"output": self._read_whole().decode()}
        elif suffix in _TABLES:
            yield from self._read_table(_TABLES[suffix])
        elif _is_document(start, self.path):
            yield from self._read_document()
        else:
            yield from self._read_lines()

    def _read_lines(self) -> Iterator[tuple[str, Any]]:
        lines = LineReader(self.path)
        for number, line in lines:
            text = line.removeprefix(_BOM) if number == 1 else line
            if text.strip():
                origin = f"{self.path}: line {number}"
                yield origin, _parse(text, origin)
        self.sha256 = lines.sha256

    def _read_document(self) -> Iterator[tuple[str, Any]]:
        """A JSON array, or one object over many lines."""
        content, origin = self._read_whole(), str(self.path)
        value = parse_json(content, origin, cut_characters=True)
        if b"\\u" in content:
            value = [CUT if has_cut_character(one) else one for one in _as_list(value)]
            value = value if content.lstrip().startswith(b"[") else value[0]
        yield origin, value

    def _read_whole(self) -> bytes:
        """All of the file, without a mark of its encoding; UTF-8."""
        lines = LineReader(self.path, MAXIMUM_DOCUMENT)
        parts, size = [], 0
        for _, line in lines:
            parts.append(line)
            size += len(line)
            if size > MAXIMUM_DOCUMENT:
                raise DataError(
                    f"{self.path}: one document must be at most {MAXIMUM_DOCUMENT} bytes; it is "
                    "longer. Write one record per line."
                )
        self.sha256 = lines.sha256
        content = b"".join(parts).removeprefix(_BOM)
        try:
            content.decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{self.path}: must be text in UTF-8; it is not. Convert it."
            ) from error
        return content

    def _read_table(self, delimiter: str) -> Iterator[tuple[str, Any]]:
        lines = LineReader(self.path)
        csv.field_size_limit(MAXIMUM_LINE)
        rows = csv.reader(_decode(lines), delimiter=delimiter, strict=True)
        names: list[str] = []
        try:
            for number, row in enumerate(rows, start=0):
                origin = f"{self.path}: row {number}"
                if not number:
                    names = _check_header(row, origin)
                elif row:
                    _check_row(row, names, origin)
                    yield origin, dict(zip(names, row, strict=True))
        except csv.Error as error:
            raise DataError(
                f"{self.path}: must be a table with named columns; got: {say_briefly(error)}. "
                "Export it again."
            ) from error
        self.sha256 = lines.sha256

    def _read_parquet(self) -> Iterator[tuple[str, Any]]:
        with unchanging([self.path]):
            yield from self._read_rows()
            self.sha256 = sha256_of_file(self.path)

    def _read_rows(self) -> Iterator[tuple[str, Any]]:
        number = 0
        try:
            with pq.ParquetFile(self.path, read_dictionary=_text_columns(self.path)) as file:
                for group in range(file.num_row_groups):
                    refuse_bombs(self.path, file.metadata.row_group(group))
                batches = file.iter_batches(batch_size=1024)
                for row in (
                    row
                    for batch in batches
                    for part in cut_batch(batch)
                    for row in part.to_pylist()
                ):
                    number += 1
                    yield f"{self.path}: row {number}", _plain(row)
        except (OSError, pa.ArrowException, UnicodeDecodeError, ValueError) as error:
            if isinstance(error, DataError):
                raise
            if isinstance(error, OSError) and is_of_disk(error):
                raise unreadable(self.path, error) from error
            raise DataError(
                f"{self.path}: must be a whole Parquet file; got: {say_briefly(error)}. "
                "Copy it again."
            ) from error


def _text_columns(path: Path) -> list[str]:
    """Columns of text: of a string that stands in many rows one copy is enough."""
    return [field.name for field in pq.read_schema(path) if pa.types.is_string(field.type)]


def check_format(path: Path) -> bytes:
    """The first bytes of what is in a file; DataError if its name says another format."""
    with open_file(path) as file:
        raw = file.read(FORMAT_BYTES)
    suffix, outer = suffix_of(path), path.suffix in COMPRESSIONS
    expected = {".gz": "a gzip file", ".zst": "a zstd file"}.get(path.suffix)
    _refuse_format(raw, path, [expected or ("a Parquet file" if suffix == ".parquet" else "")])
    start = read_start(path)
    if outer:
        _refuse_format(start, path, [])
        if suffix == ".parquet":
            raise DataError(f"{path}: Parquet must not be packed once more; it is. Unpack it.")
    return start


def _refuse_format(start: bytes, path: Path, expected: Sequence[str]) -> None:
    name = name_format(start)
    if name is not None and name not in expected:
        named = f" named {path.suffix or 'without a suffix'}" if has_suffix(name) else ""
        raise DataError(f"{path}: this is {name}{named}. {advise(name)}.")


def _is_document(start: bytes, path: Path) -> bool:
    """Whether a file is one JSON document: an array, or an object over many lines."""
    text = start.removeprefix(_BOM).lstrip()
    if text[:1] == b"[":
        return True
    line, broken, _ = text.partition(b"\n")
    if not broken or text[:1] != b"{":
        return suffix_of(path) == ".traj"
    try:
        parse_json(line, "", cut_characters=True)
    except DataError:
        return line.strip() == b"{" or suffix_of(path) in (".json", ".traj")
    return False


def _parse(text: bytes, origin: str) -> Any:
    value = parse_json(text, origin, cut_characters=True)
    return CUT if b"\\u" in text and has_cut_character(value) else value


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _decode(lines: LineReader) -> Iterator[str]:
    for number, line in lines:
        try:
            yield (line.removeprefix(_BOM) if number == 1 else line).decode()
        except UnicodeDecodeError as error:
            raise DataError(
                f"{lines.path}: line {number}: must be UTF-8; it is not. Export it in UTF-8."
            ) from error


def _check_header(row: Sequence[str], origin: str) -> list[str]:
    names = [name.strip() for name in row]
    if len(set(names)) < len(names) or not all(names):
        raise DataError(
            f"{origin}: the first row must name every column once; it does not. Name the columns."
        )
    return names


def _check_row(row: Sequence[str], names: Sequence[str], origin: str) -> None:
    if len(row) != len(names):
        raise DataError(
            f"{origin}: must have {len(names)} cells, one a column; it has {len(row)}. "
            "Export the table again."
        )


def _plain(value: Any) -> Any:
    """A value of Parquet as JSON has it."""
    if isinstance(value, dict):
        return {str(name): _plain(one) for name, one in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(one) for one in value]
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.decode("utf-8", "replace")
    return value if isinstance(value, (str, bool, int, float, type(None))) else str(value)
