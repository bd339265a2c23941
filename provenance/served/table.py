"""The table of an index: a Parquet file sorted by (slot, context, value), audited row by row.

The same audit runs when a table is written and when it is opened: strict order, ranges, and a hash
of the content that depends on nothing but the rows. Every row group holds one slot. Knows numbers
only: no keys, no logs, no manifest.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.errors import DataError, StorageError, say_briefly
from provenance.served.seal import Seal, SealedGroup, SealedPiece, find_starts, hash_pieces
from provenance.served.workplace import open_workplace
from provenance.storage.files import sha256_of_file, sync_folder
from provenance.storage.kernels import kernel

TABLE = pa.schema(
    [
        pa.field("slot", pa.uint8(), nullable=False),
        pa.field("value", pa.uint32(), nullable=False),
        pa.field("context", pa.int64(), nullable=False),
        pa.field("responses", pa.int32(), nullable=False),
    ]
)
_GROUP_ROWS = 1 << 20

Grouping = Callable[[Path], AbstractContextManager[Iterable[pa.RecordBatch]]]
"""Folder for what does not fit into memory -> the sorted rows of a table."""

Columns = tuple[NDArray[np.uint8], NDArray[np.uint32], NDArray[np.int64], NDArray[np.int32]]


@dataclass(frozen=True)
class RowGroup:
    """Where a row group of the file stands: its number, slot, first and last context."""

    number: int
    slot: int
    first: int
    last: int


class Audit:
    """Checks rows in order, and counts and hashes them.

    Parameters
    ----------
    values : number of values of each slot
    origin : names the file in the DataError

    Attributes
    ----------
    rows : rows so far
    groups : what was added, a row group each
    seal : the seal of the file, once it is written
    contexts, responses : per slot, int64 [values]: rows, and sum of responses
    """

    def __init__(self, values: Sequence[int], origin: str) -> None:
        self._origin = origin
        self._digests = [hashlib.sha256() for _ in TABLE.names]
        self._last = np.array([-1, -1, -1], dtype=np.int64)
        self.rows = 0
        self.groups: list[RowGroup] = []
        self.seal: Seal | None = None
        self.contexts = [np.zeros(n, dtype=np.int64) for n in values]
        self.responses = [np.zeros(n, dtype=np.int64) for n in values]

    def add(self, columns: Columns) -> None:
        """Take the next rows; DataError if they are out of order or out of range."""
        columns = _as_written(columns)
        slot, value, context, responses = columns
        if not slot.shape[0]:
            return
        limits = np.array([counts.shape[0] for counts in self.contexts], dtype=np.int64)
        fault = _find_fault(slot, value, context, responses, limits, self._last)
        if fault == _OUT_OF_RANGE:
            raise self._broken("slots, values, contexts and counts in range")
        if fault == _UNSORTED:
            raise self._broken("sorted by slot, context and value, each once")
        arrays: list[NDArray[Any]] = list(columns)
        for digest, column in zip(self._digests, arrays, strict=True):
            digest.update(column.data)
        cuts = [0, *(np.flatnonzero(slot[1:] != slot[:-1]) + 1).tolist(), slot.shape[0]]
        for start, end in pairwise(cuts):
            rows, number = slice(start, end), int(slot[start])
            _count(value[rows], responses[rows], self.contexts[number], self.responses[number])
        self.rows += slot.shape[0]
        group = RowGroup(len(self.groups), int(slot[0]), int(context[0]), int(context[-1]))
        self.groups.append(group)
        self._last = np.array([slot[-1], context[-1], value[-1]], dtype=np.int64)

    @property
    def content_sha256(self) -> str:
        """SHA-256 of the four SHA-256 of the columns (little-endian, in the order of the rows)."""
        return hashlib.sha256(b"".join(digest.digest() for digest in self._digests)).hexdigest()

    def _broken(self, what: str) -> DataError:
        return DataError(
            f"{self._origin}: must have {what}; it has not. "
            "Build it again with: provenance index build"
        )


_OUT_OF_RANGE, _UNSORTED = 1, 2


def _as_written(columns: Columns) -> Columns:
    """The columns one after another in memory, little-endian, as they are hashed."""
    slot, value, context, responses = (
        np.ascontiguousarray(column, dtype=kind)
        for column, kind in zip(columns, ("u1", "<u4", "<i8", "<i4"), strict=True)
    )
    return slot, value, context, responses


@kernel(nogil=True)
def _find_fault(slot, value, context, responses, limits, last):  # type: ignore[no-untyped-def]
    """0 if the rows are in range and follow each other, and the last ones, strictly."""
    for i in range(slot.shape[0]):
        if slot[i] >= limits.shape[0]:
            return _OUT_OF_RANGE
        if value[i] >= limits[slot[i]] or context[i] < 0 or responses[i] < 1:
            return _OUT_OF_RANGE
    old_slot, old_context, old_value = last[0], last[1], last[2]
    for i in range(slot.shape[0]):
        one, other = np.int64(slot[i]), np.int64(value[i])
        if one < old_slot or (
            one == old_slot
            and (context[i] < old_context or (context[i] == old_context and other <= old_value))
        ):
            return _UNSORTED
        old_slot, old_context, old_value = one, context[i], other
    return 0


@kernel(nogil=True)
def _count(value, responses, contexts, totals):  # type: ignore[no-untyped-def]
    for i in range(value.shape[0]):
        contexts[value[i]] += 1
        totals[value[i]] += responses[i]


def write_table(
    path: Path,
    batches: Iterable[pa.RecordBatch],
    audit: Audit | None,
    group_rows: int | None = None,
) -> None:
    """Write sorted batches with the columns TABLE; audits them, syncs the file, mode 0600.

    The same rows give the same bytes, however they are batched. Parameters: None for the audit of a
    table that only its writer reads; at most so many rows in a row group, None: as in an index.
    Raises DataError, StorageError.
    """
    try:
        descriptor = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            with pq.ParquetWriter(
                file,
                TABLE,
                compression="zstd",
                version="2.6",
                use_dictionary=["slot", "value", "responses"],
                column_encoding={"context": "DELTA_BINARY_PACKED"},
                write_page_checksum=True,
            ) as writer:
                for group in _groups(batches, group_rows or _GROUP_ROWS):
                    if audit is not None:
                        audit.add(columns_of(group))
                    writer.write_table(group, row_group_size=group.num_rows)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise StorageError(
            f"{path}: must be writable; got: {error.strerror or error}. "
            "Choose another place or free some space."
        ) from error


def read_table(path: Path, audit: Audit) -> list[RowGroup]:
    """Read and audit a whole table; returns its row groups. Raises DataError, StorageError.

    Cost: about 10 M rows per second; memory: one row group.
    """
    try:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            if not file.schema_arrow.equals(TABLE):
                raise DataError(f"{path}: must have the columns of an index. Build it again.")
            for number in range(file.num_row_groups):
                if file.metadata.row_group(number).num_rows > _GROUP_ROWS:
                    raise DataError(f"{path}: must have small row groups. Build it again.")
                columns = columns_of(file.read_row_group(number))
                audit.add(columns)
                slot = columns[0]
                if slot[0] != slot[-1]:
                    raise DataError(f"{path}: must have one slot a row group. Build it again.")
    except (pa.ArrowException, OSError, IndexError) as error:
        if isinstance(error, OSError) and error.errno:
            raise StorageError(
                f"{path}: must be a readable file; got: {error.strerror}. Check the disk."
            ) from error
        reason = say_briefly(error)
        raise DataError(
            f"{path}: must be a whole Parquet file; got: {reason}. Build it again."
        ) from error
    return audit.groups


def columns_of(table: pa.Table) -> Columns:
    """The four columns as numpy arrays, each [rows]."""
    columns = [_to_numpy(table.column(name), name) for name in TABLE.names]
    return (columns[0], columns[1], columns[2], columns[3])


def _to_numpy(column: Any, name: str) -> NDArray[Any]:
    if column.null_count:
        raise DataError(f"column {name} of an index must hold no nulls. Build it again.")
    values: NDArray[Any] = column.to_numpy()
    return values


def _groups(batches: Iterable[pa.RecordBatch], group_rows: int) -> Iterator[pa.Table]:
    """Regroup rows: a group holds one slot and, but for the last of a slot, so many rows."""
    pending: list[pa.RecordBatch] = []
    count = 0
    for piece in _pieces(batches):
        if pending and pending[0].column("slot")[0] != piece.column("slot")[0]:
            yield pa.Table.from_batches(pending, TABLE)
            pending, count = [], 0
        pending.append(piece)
        count += piece.num_rows
        while count >= group_rows:
            table = pa.Table.from_batches(pending, TABLE)
            yield table.slice(0, group_rows)
            pending = table.slice(group_rows).to_batches()
            count -= group_rows
    if pending:
        yield pa.Table.from_batches(pending, TABLE)


def _pieces(batches: Iterable[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    """The batches, cut where the slot changes."""
    for batch in batches:
        if not batch.num_rows:
            continue
        slots = batch.column("slot").to_numpy()
        cuts = [0, *(np.flatnonzero(np.diff(slots)) + 1).tolist(), batch.num_rows]
        for start, end in pairwise(cuts):
            piece = batch.slice(start, end - start)
            yield pa.RecordBatch.from_arrays(piece.columns, schema=TABLE)


def seal_table(path: Path, groups: Sequence[RowGroup]) -> Seal:
    """The seal of a table file with these row groups. Cost: reading the file."""
    starts = find_starts(path)
    hashes = hash_pieces(path, starts)
    sealed = tuple(
        SealedGroup(start, sha256, group.slot, group.first, group.last)
        for start, sha256, group in zip(starts[:-1], hashes[:-1], groups, strict=True)
    )
    return Seal(sealed, SealedPiece(starts[-1], hashes[-1]), path.stat().st_size)


class Manifest(Protocol):
    """What names a table, and is written after it."""

    def write(self, folder: Path) -> None:
        """Write it into the folder, in one step."""


_Manifest = TypeVar("_Manifest", bound=Manifest)


def commit_table(
    folder: Path,
    stem: str,
    values: Sequence[int],
    group: Grouping,
    describe: Callable[[Audit, str, str], _Manifest],
    *,
    spill: Path | None = None,
    need: int = 0,
) -> _Manifest:
    """Write a table, then the manifest that names it; tables of before go last.

    Parameters: the folder, whose lock the caller holds; begin of the table's name; how many values
    each slot has; the rows; what makes the manifest of (audit, name, SHA-256); where to spill and
    how many bytes, see `open_workplace`. Until the manifest is written the folder means what it
    meant before. Raises StorageError, and what these raise.
    """
    part = folder / f".{stem}.part"
    audit = Audit(values, str(part))
    try:
        with open_workplace(folder, spill, need) as place, group(place) as batches:
            write_table(part, batches, audit)
        name = f"{stem}-{audit.content_sha256[:16]}.parquet"
        audit.seal = seal_table(part, audit.groups)
        manifest = describe(audit, name, sha256_of_file(part))
        part.replace(folder / name)
        sync_folder(folder)
        manifest.write(folder)
        for old in folder.glob(f"{stem}-*.parquet"):
            if old.name != name:
                old.unlink()
    except OSError as error:
        raise StorageError(
            f"{folder}: must be writable; got: {error.strerror}. Free some space."
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return manifest
