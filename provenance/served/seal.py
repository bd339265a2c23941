"""Hashes of the pieces of a table file, so that only what is read has to be hashed.

Every byte of the file belongs to one piece: a row group each, and the footer last. Whoever reads
the file through `SealedFile` gets no byte whose piece does not match its hash. Knows Parquet's
layout; no rows, no keys.
"""

from __future__ import annotations

import bisect
import hashlib
import io
import os
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from provenance.errors import DataError, StorageError
from provenance.storage.files import open_file


@dataclass(frozen=True)
class SealedPiece:
    """Where a piece begins in the file, and the hex SHA-256 of its bytes."""

    start: int
    sha256: str


@dataclass(frozen=True)
class SealedGroup(SealedPiece):
    """A row group: its slot, and its first and last context."""

    slot: int
    first: int
    last: int


@dataclass(frozen=True)
class Seal:
    """The pieces of a file of `size` bytes, in order: groups, then the footer."""

    groups: tuple[SealedGroup, ...]
    footer: SealedPiece
    size: int

    def __post_init__(self) -> None:
        starts = [piece.start for piece in (*self.groups, self.footer)]
        if starts[0] != 0 or any(a >= b for a, b in pairwise([*starts, self.size])):
            raise ValueError("a seal whose pieces are not one after another")


def find_starts(path: Path) -> list[int]:
    """Where each row group begins (the first at 0, with the file's first bytes), and the footer."""
    metadata = pq.read_metadata(path)
    starts, end = [], 0
    for number in range(metadata.num_row_groups):
        group = metadata.row_group(number)
        columns = [group.column(i) for i in range(group.num_columns)]
        starts.append(end)
        end = max(
            (c.dictionary_page_offset or c.data_page_offset) + c.total_compressed_size
            for c in columns
        )
    return [*starts, end]


def hash_pieces(path: Path, starts: list[int]) -> list[str]:
    """Hex SHA-256 of each piece. Cost: reading the file. Memory: one piece."""
    ends = [*starts[1:], path.stat().st_size]
    with path.open("rb") as file:
        return [
            hashlib.sha256(file.read(end - start)).hexdigest()
            for start, end in zip(starts, ends, strict=True)
        ]


class SealedFile(io.RawIOBase):
    """A file for Arrow whose pieces are hashed when they are first read.

    Raises DataError naming the file for a piece that does not match, or a file of another size;
    StorageError if it cannot be read. Memory: the footer and one piece.
    """

    def __init__(self, path: Path, seal: Seal) -> None:
        self._path = path
        self._pieces: list[SealedPiece] = [*seal.groups, seal.footer]
        self._starts = [piece.start for piece in self._pieces]
        self._ends = [*self._starts[1:], seal.size]
        self._size, self._place = seal.size, 0
        self._kept: dict[int, bytes] = {}
        self.error: DataError | StorageError | None = None
        if path.is_symlink():
            raise DataError(f"{path}: must be a regular file; it is a link. Build the index again.")
        self._file = open_file(path)
        if os.fstat(self._file.fileno()).st_size != seal.size:
            self._file.close()
            raise self._mismatch()

    @property
    def footer(self) -> bytes:
        """The footer, verified."""
        return self._piece(len(self._pieces) - 1)

    def readable(self) -> bool:
        """Always."""
        return True

    def seekable(self) -> bool:
        """Always."""
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """As of any file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._place, os.SEEK_END: self._size}[whence]
        self._place = base + offset
        return self._place

    def tell(self) -> int:
        """As of any file."""
        return self._place

    def size(self) -> int:
        """Bytes of the file."""
        return self._size

    def read(self, size: int | None = -1) -> bytes:
        """The next bytes, verified."""
        end = self._size if size is None or size < 0 else min(self._place + size, self._size)
        parts = []
        while self._place < end:
            number = bisect.bisect_right(self._starts, self._place) - 1
            start, stop = self._starts[number], min(self._ends[number], end)
            parts.append(self._piece(number)[self._place - start : stop - start])
            self._place = stop
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def readinto(self, buffer: Any) -> int:
        """As of any file."""
        content = self.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def close(self) -> None:
        """Close the file; twice is no harm."""
        self._file.close()
        super().close()

    def _piece(self, number: int) -> bytes:
        """The bytes of a piece, whose hash was checked."""
        if number not in self._kept:
            start, size = self._starts[number], self._ends[number] - self._starts[number]
            try:
                content = os.pread(self._file.fileno(), size, start)
            except OSError as error:
                self.error = StorageError(
                    f"{self._path}: must stay readable; got: {error.strerror}. Open it again."
                )
                raise self.error from error
            if hashlib.sha256(content).hexdigest() != self._pieces[number].sha256:
                raise self._mismatch()
            last = len(self._pieces) - 1
            self._kept = {n: kept for n, kept in self._kept.items() if n == last}
            self._kept[number] = content
        return self._kept[number]

    def _mismatch(self) -> DataError:
        self.error = DataError(
            f"{self._path}: must match the checksums of its manifest; it does not. "
            "Build the index again."
        )
        return self.error
