"""The index: in how many responses was a context served under a key?

`Index.open` verifies the whole table before it answers anything. Lookups are by context only; there
is no way to ask for a (context, token) pair, on purpose. The index is as confidential as the log.
Knows the public half of a keyring; no secret and no suspect.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.errors import DataError, StorageError, UsageError, say_briefly
from provenance.keys.keyring import Keyring
from provenance.keys.schedule import KeyName, Schedule
from provenance.served.index_manifest import IndexManifest, ServedValue
from provenance.served.table import Audit, RowGroup, read_table
from provenance.storage.files import sha256_of_file

_CONTROL_SLOT, _GLOBAL_SLOT = 0, 1


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


class Index:
    """A verified index, open for lookups; `close` it or use it in a `with` statement.

    Attributes: folder and manifest; counts_weigh, whether what the log holds weighs anything.
    """

    counts_weigh = True

    def __init__(self, folder: Path, manifest: IndexManifest, groups: list[RowGroup]) -> None:
        self.folder = folder
        self.manifest = manifest
        self._groups = groups
        self._file = pq.ParquetFile(folder / manifest.table, page_checksum_verification=True)

    @classmethod
    def open(cls, folder: Path | str, public: Keyring | None) -> Index:
        """Open an index and verify every row of it.

        Parameters: folder, as given to `build_index`; public, the keyring it must belong to (None:
        any, for `info`).

        Raises StorageError if it is missing, DataError if anything in it does not match its hash,
        its order or its manifest, ConfigurationMismatchError if it belongs to another keyring.
        Cost: about 10 M rows per second.
        """
        folder = Path(folder)
        manifest = IndexManifest.load(folder)
        if public is not None:
            manifest.check_keyring(public, str(folder))
        path = folder / manifest.table
        if path.is_symlink():
            raise DataError(f"{path}: must be a regular file; it is a link. Build the index again.")
        if sha256_of_file(path) != manifest.table_sha256:
            raise DataError(
                f"{path}: must match the checksum of its manifest; it does not. "
                "Build the index again."
            )
        audit = Audit([len(slot.values) for slot in manifest.slots], str(path))
        groups = read_table(path, audit)
        counted = [
            [(int(c), int(r)) for c, r in zip(*pair, strict=True)]
            for pair in zip(audit.contexts, audit.responses, strict=True)
        ]
        stated = [[(v.contexts, v.responses) for v in slot.values] for slot in manifest.slots]
        if audit.content_sha256 != manifest.content_sha256 or counted != stated:
            raise DataError(
                f"{path}: must hold the rows that its manifest counts; it does not. "
                "Build the index again."
            )
        return cls(folder, manifest, groups)

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; further lookups fail."""
        self._file.close()

    def lookup(self, slot: int, contexts: NDArray[np.int64]) -> Matches:
        """Who was served these contexts, and how often?

        Parameters
        ----------
        slot : number of the slot (`Schedule.names`)
        contexts : int64 [n], packed, in any order, repeats allowed

        Raises
        ------
        UsageError for an unknown slot or another dtype; DataError or StorageError if the file went
        bad after it was opened.

        Notes
        -----
        Contexts of other slots have no match. Sorts the queries once, then walks the row groups of
        the slot that can hold one of them. Cost: about 0.4 microseconds a query and 20 ns a row;
        memory: 70 bytes a query and one row group.
        """
        self._check_slot(slot)
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

    def keys_served(self, schedule: Schedule) -> list[KeyName]:
        """(slot, value) of every key that marked a context of this index, in the schedule's order.

        Those are the keys that a check tests.
        """
        return [
            KeyName(slot.name, served.name)
            for number, slot in enumerate(schedule.slots)
            if number != _CONTROL_SLOT
            for served in self.values_served(number)
            if served.contexts
        ]

    def with_equal_counts(self) -> Index:
        """The same index, as if every context had been served once under the global key.

        For marks whose coins are shared by many contexts: there the counts are not independent of
        the coins, and none may weigh anything.
        """
        return _EqualCounts(self.folder, self.manifest, self._groups)

    def values_served(self, slot: int) -> list[ServedValue]:
        """Values of a slot in the order of their numbers; `contexts` is 0 if never served."""
        self._check_slot(slot)
        return list(self.manifest.slots[slot].values)

    def info(self) -> dict[str, Any]:
        """All that the manifest says, as JSON."""
        return asdict(self.manifest)

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < len(self.manifest.slots):
            raise UsageError(
                f"slot must be 0 .. {len(self.manifest.slots) - 1}; got {slot}. "
                "See: provenance index info"
            )

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
        path = self.folder / self.manifest.table
        try:
            table = self._file.read_row_group(number, columns=["value", "context", "responses"])
        except (pa.ArrowException, OSError, ValueError) as error:
            reason = say_briefly(error)
            kind = StorageError if isinstance(error, OSError) and error.errno else DataError
            raise kind(f"{path}: must stay readable; got: {reason}. Open it again.") from error
        columns = (table.column(name).to_numpy() for name in ("context", "value", "responses"))
        return tuple(columns)


class _EqualCounts(Index):
    """See `Index.with_equal_counts`."""

    counts_weigh = False

    def lookup(self, slot: int, contexts: NDArray[np.int64]) -> Matches:
        """Every context once in the slot `global`, none elsewhere; looks nothing up."""
        self._check_slot(slot)
        count = contexts.shape[0] if slot == _GLOBAL_SLOT else 0
        return Matches(
            np.arange(count), np.zeros(count, dtype=np.uint32), np.ones(count, dtype=np.int32)
        )
