"""A verified table, open for look-ups by context: what an index and a group of responses share.

Knows row groups and numbers; no keys, no manifest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.errors import DataError, StorageError, UsageError, say_briefly
from provenance.served.table import Audit, RowGroup, read_table
from provenance.storage.files import sha256_of_file


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

    def __init__(self, path: Path, groups: list[RowGroup]) -> None:
        self._path = path
        self._groups = groups
        self._file = pq.ParquetFile(path, page_checksum_verification=True)

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

    def close(self) -> None:
        """Close the file; further lookups fail."""
        self._file.close()

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
        order = np.argsort(contexts, kind="stable")
        queries = contexts[order]
        found = [
            match
            for group in self._groups
            if group.slot == slot and (match := self._match(group, queries, order)) is not None
        ]
        if not found:
            return Matches(
                np.empty(0, dtype=np.int64),
                np.empty(0, dtype=np.uint32),
                np.empty(0, dtype=np.int32),
            )
        query, value, responses = (np.concatenate(parts) for parts in zip(*found, strict=True))
        by_query = np.argsort(query, kind="stable")
        return Matches(query[by_query], value[by_query], responses[by_query])

    def _match(
        self, group: RowGroup, queries: NDArray[np.int64], order: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int32]] | None:
        """Matches of the sorted queries in one row group, None if there can be none."""
        start = int(np.searchsorted(queries, group.first, side="left"))
        end = int(np.searchsorted(queries, group.last, side="right"))
        if start == end:
            return None
        context, value, responses = self._read(group.number)
        first = np.searchsorted(context, queries[start:end], side="left")
        after = np.searchsorted(context, queries[start:end], side="right")
        counts = after - first
        # rows of query i: first[i] .. after[i] - 1, laid end to end
        within = np.arange(int(counts.sum())) - np.repeat(np.cumsum(counts) - counts, counts)
        rows = np.repeat(first, counts) + within
        return np.repeat(order[start:end], counts), value[rows], responses[rows]

    def _read(self, number: int) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int32]]:
        try:
            table = self._file.read_row_group(number, columns=["value", "context", "responses"])
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = say_briefly(error)
            kind = StorageError if isinstance(error, OSError) and error.errno else DataError
            raise kind(
                f"{self._path}: must stay readable; got: {reason}. Open it again."
            ) from error
        columns = (table.column(name).to_numpy() for name in ("context", "value", "responses"))
        return tuple(columns)
