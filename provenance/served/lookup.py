"""A verified table, open for look-ups by context: what an index and a group of responses share.

Knows row groups and numbers; no keys, no manifest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.errors import DataError, StorageError, UsageError, say_briefly
from provenance.served.seal import Seal, SealedFile
from provenance.served.table import Audit, RowGroup, read_table
from provenance.storage.files import sha256_of_file
from provenance.storage.kernels import kernel


@dataclass(frozen=True)
class Matches:
    """Answer to a lookup in coordinate form; entries are sorted by (query, value).

    query : int64 [m], position in the contexts that were asked for
    value : uint32 [m], number of the value in its slot
    responses : int32 [m], in how many responses (conversations) the context was served, >= 1
    """

    query: NDArray[np.int64]
    value: NDArray[np.uint32]
    responses: NDArray[np.int32]


class Rows:
    """The rows of one table; `close` it when done."""

    def __init__(
        self, path: Path, groups: Sequence[RowGroup], sealed: SealedFile | None = None
    ) -> None:
        self._path = path
        self._groups = groups
        self._sealed = sealed
        # Arrow would read 64 KiB for the footer, and so what nobody asked for
        known = None if sealed is None else pq.read_metadata(pa.BufferReader(sealed.footer))
        self._file = pq.ParquetFile(
            path if sealed is None else sealed, metadata=known, page_checksum_verification=True
        )

    @classmethod
    def open(cls, path: Path, sha256: str, audit: Audit) -> Rows:
        """Open a table and read every row of it into the audit, which the caller judges.

        Raises StorageError, or DataError if the file is a link or has another SHA-256.
        """
        if path.is_symlink():
            raise DataError(f"{path}: must be a regular file; it is a link. Build the index again.")
        if sha256_of_file(path) != sha256:
            raise DataError(
                f"{path}: must match the checksum of its manifest; it does not. "
                "Build the index again."
            )
        return cls(path, read_table(path, audit))

    @classmethod
    def open_sealed(cls, path: Path, seal: Seal) -> Rows:
        """Open a table of which each piece is verified when it is first read.

        Raises as `open`, and so do look-ups.
        """
        sealed = SealedFile(path, seal)
        groups = [
            RowGroup(number, group.slot, group.first, group.last)
            for number, group in enumerate(seal.groups)
        ]
        try:
            rows = cls(path, groups, sealed)
            whole = rows._file.num_row_groups == len(groups)
        except (pa.ArrowException, OSError, ValueError, DataError, StorageError) as error:
            sealed.close()
            if sealed.error is not None:
                raise sealed.error from None
            raise DataError(
                f"{path}: must be a whole Parquet file; got: {say_briefly(error)}. Build it again."
            ) from error
        if not whole:
            raise DataError(f"{path}: must have the row groups of its manifest. Build it again.")
        return rows

    def close(self) -> None:
        """Close the file; further lookups fail."""
        self._file.close()
        if self._sealed is not None:
            self._sealed.close()

    def lookup(self, slot: int, contexts: NDArray[np.int64]) -> Matches:
        """Rows of a slot with these contexts: int64 [n], in any order, repeats allowed.

        Raises UsageError for another dtype; DataError or StorageError if the file went bad. Cost:
        see `Index.lookup`.
        """
        contexts = np.ascontiguousarray(contexts)
        if contexts.dtype != np.int64 or contexts.ndim != 1:
            raise UsageError(
                f"contexts must be int64 [n]; got {contexts.dtype} of shape {contexts.shape}. "
                "Pack them with provenance.coins.contexts.pack."
            )
        order = None
        if bool((contexts[1:] < contexts[:-1]).any()):
            order = np.argsort(contexts, kind="stable")
            contexts = contexts[order]
        found = [
            match
            for group in self._groups
            if group.slot == slot and (match := self._match(group, contexts)) is not None
        ]
        if not found:
            return Matches(
                np.empty(0, dtype=np.int64),
                np.empty(0, dtype=np.uint32),
                np.empty(0, dtype=np.int32),
            )
        query, value, responses = (np.concatenate(parts) for parts in zip(*found, strict=True))
        # a context at the border of two groups, asked for twice, is answered by both in turn
        if order is not None or bool((query[1:] < query[:-1]).any()):
            query = query if order is None else order[query]
            by_query = np.argsort(query, kind="stable")
            query, value, responses = query[by_query], value[by_query], responses[by_query]
        return Matches(query, value, responses)

    def _match(
        self, group: RowGroup, queries: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int32]] | None:
        """Matches of the sorted queries in one row group, None if there is none."""
        start = int(np.searchsorted(queries, group.first, side="left"))
        end = int(np.searchsorted(queries, group.last, side="right"))
        if start == end:
            return None
        (context,) = self._read(group.number, ["context"])
        none = np.empty(0, dtype=np.int64)
        size = _join(context, queries[start:end], none, none)
        if not size:
            return None
        query, rows = np.empty(size, dtype=np.int64), np.empty(size, dtype=np.int64)
        _join(context, queries[start:end], query, rows)
        value, responses = self._read(group.number, ["value", "responses"])
        return query + start, value[rows], responses[rows]

    def _read(self, number: int, columns: list[str]) -> list[NDArray[Any]]:
        try:
            table = self._file.read_row_group(number, columns=columns, use_threads=False)
        except (pa.ArrowException, OSError, ValueError, DataError, StorageError) as error:
            if self._sealed is not None and self._sealed.error is not None:
                raise self._sealed.error from None
            reason = say_briefly(error)
            kind = StorageError if isinstance(error, OSError) and error.errno else DataError
            raise kind(
                f"{self._path}: must stay readable; got: {reason}. Open it again."
            ) from error
        return [table.column(name).to_numpy() for name in columns]


@kernel(nogil=True)
def _join(contexts, queries, query, rows):  # type: ignore[no-untyped-def]
    """Pairs of a query and a row of equal context, both ascending; how many.

    They are written if there is room for any.
    """
    size, row, total = 0, 0, contexts.shape[0]
    for i in range(queries.shape[0]):
        wanted = queries[i]
        while row < total and contexts[row] < wanted:
            row += 1
        place = row
        while place < total and contexts[place] == wanted:
            if query.shape[0] > 0:
                query[size] = i
                rows[size] = place
            size += 1
            place += 1
    return size
