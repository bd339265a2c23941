"""Lines of a file, plain or compressed with gzip or zstd, read as a stream and hashed on the way.

Nothing of the file is trusted: a line is at most 16 MiB, a compressed file may not expand without
end, JSON is strict. Knows bytes and JSON; no record formats.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, BinaryIO, Final

import pyarrow as pa

from provenance.errors import DataError, ProvenanceError, UsageError, say_briefly
from provenance.storage.files import (
    name_files,
    open_file,
    parse_json,
    real_path,
    sha256_of_file,
    unchanging,
    unreadable,
)
from provenance.storage.plugins import Plugin, find_plugin

COMPRESSIONS: Final = {".gz": "gzip", ".zst": "zstd"}
MAXIMUM_LINE: Final = 1 << 24
"""Bytes of one line of JSONL, and of one text."""
MAXIMUM_EXPANSION: Final = 200
"""Times that a file may grow when it is unpacked, beyond the first 64 MiB. Logs grow 3 to 20 times;
a gzip bomb grows 1,028 times."""
_FREE_EXPANSION: Final = 1 << 26


def check_distinct(paths: Sequence[Path | str]) -> None:
    """Raise UsageError if a file is named twice: what stands in it would count twice."""
    seen: set[Path] = set()
    for path in map(Path, paths):
        if real_path(path) in seen:
            raise UsageError(f"{path}: a file must be named once; it is named twice. Name it once.")
        seen.add(real_path(path))


class LineReader:
    """Lines of one file; iterate once, then `sha256` is that of the bytes that were read.

    Yields (number from 1, line with its line break). Raises DataError naming file and line for a
    line over 16 MiB, a damaged archive or one that expands without end; StorageError. The suffix
    decides about compression. Memory: one line.
    """

    def __init__(self, path: Path | str, maximum: int | None = None) -> None:
        self.path = Path(path)
        self.sha256 = ""
        self._maximum = MAXIMUM_LINE if maximum is None else maximum

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        with unchanging([self.path]), open_file(self.path) as file:
            source = _HashedFile(file, self.path)
            expanded = _Expanded(source, COMPRESSIONS.get(self.path.suffix))
            lines: BinaryIO = io.BufferedReader(expanded, 1 << 20)
            number = 0
            while line := lines.readline(self._maximum + 1):
                number += 1
                if len(line) > self._maximum:
                    raise DataError(
                        f"{self.path}: line {number}: must be at most {self._maximum} bytes; it is "
                        "longer. Write one record per line."
                    )
                yield number, line
            source.drain()
            self.sha256 = source.digest.hexdigest()


def read_start(path: Path | str, size: int = 1 << 16) -> bytes:
    """The first bytes of a file as they are unpacked. Raises DataError, StorageError."""
    path = Path(path)
    with open_file(path) as file:
        expanded = _Expanded(_HashedFile(file, path), COMPRESSIONS.get(path.suffix))
        return io.BufferedReader(expanded, size).read(size)


def peek_record(path: Path | str, size: int = 1 << 16) -> dict[str, Any]:
    """The first record of a file of JSON lines, if it ends within `size` bytes; else empty.

    Tells what a file may be. Raises StorageError.
    """
    try:
        found = parse_json(read_start(path, size).lstrip().partition(b"\n")[0], str(path))
    except DataError:
        return {}
    return found if isinstance(found, dict) else {}


class RecordReader(LineReader):
    """Records of a file in another form, as the lines of JSON that we would have read."""

    def __init__(self, path: Path, plugin: Plugin) -> None:
        super().__init__(path)
        self._plugin = plugin

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        self.sha256 = sha256_of_file(self.path)
        try:
            for number, record in enumerate(self._plugin.target(self.path), start=1):
                yield number, json.dumps(record, allow_nan=False).encode() + b"\n"
        except Exception as error:  # code that is not ours
            raise self._plugin.failure(error) from error


def open_lines(path: Path | str, group: str) -> LineReader:
    """Lines of a file; a file of another form is read by the plug-in that is named as its suffix.

    Such a plug-in of `group` is called with the path and yields records, which are checked like
    ours.
    """
    suffix = Path(path).suffix
    plugin = None
    if suffix not in ("", ".json", ".jsonl", *COMPRESSIONS):
        plugin = find_plugin(group, suffix.removeprefix("."))
    return LineReader(path) if plugin is None else RecordReader(Path(path), plugin)


def hashes_of(readers: Sequence[LineReader]) -> dict[str, str]:
    """Hex SHA-256 of what was read, by the names of `name_files`."""
    names = name_files([reader.path for reader in readers])
    return {name: reader.sha256 for name, reader in zip(names, readers, strict=True)}


def read_json_lines(lines: LineReader) -> Iterator[tuple[str, Any]]:
    """Origin (`file: line n`) and value of every line that is not blank. Raises DataError."""
    for number, line in lines:
        if line.strip():
            origin = f"{lines.path}: line {number}"
            yield origin, parse_json(line, origin)


class _HashedFile(io.RawIOBase):
    """The file as it lies on disk, hashed while it is read; reading errors become StorageError."""

    def __init__(self, file: BinaryIO | io.FileIO, path: Path) -> None:
        self._file = file
        self.path = path
        self.digest = hashlib.sha256()
        self.count = 0

    def readable(self) -> bool:
        return True

    def read(self, size: int = -1) -> bytes:
        try:
            block = self._file.read(size) or b""
        except OSError as error:
            raise unreadable(self.path, error) from error
        self.digest.update(block)
        self.count += len(block)
        return block

    def drain(self) -> None:
        """Read and hash what a decompressor left."""
        while self.read(1 << 20):
            pass


class _Expanded(io.RawIOBase):
    """The unpacked bytes of a file, with a cap on how far it may expand."""

    def __init__(self, source: _HashedFile, compression: str | None) -> None:
        self._source = source
        self._stream = (
            source
            if compression is None
            else pa.CompressedInputStream(pa.PythonFile(source, mode="r"), compression)
        )
        self._produced = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        path = self._source.path
        try:
            block = self._stream.read(len(buffer))
        except ProvenanceError:
            raise
        except (OSError, pa.ArrowException) as error:
            reason = say_briefly(error)
            raise DataError(
                f"{path}: must be a whole compressed file; got: {reason}. Copy it again."
            ) from error
        self._produced += len(block)
        limit = max(_FREE_EXPANSION, MAXIMUM_EXPANSION * self._source.count)
        if self._produced > limit:
            raise DataError(
                f"{path}: must not expand more than {MAXIMUM_EXPANSION} times; "
                f"{self._source.count} bytes gave more than {limit}. Check what it is."
            )
        buffer[: len(block)] = block
        return len(block)
