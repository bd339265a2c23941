"""Counting windows in memory: chunks of a log, sorted, and added up to a part of an index.

Inside a chunk the windows of one conversation count once. A conversation that comes back in a later
chunk is counted there again, which `provenance.served.spanning` takes back. Knows packed numbers
and lineages; no keys, no files.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from provenance.served.packing import Packing
from provenance.served.sorted_counts import Numbers, Run, add_runs, count_numbers
from provenance.storage.kernels import kernel

_LEAST_TABLE = 16


@dataclass(frozen=True)
class Reached:
    """Windows of some responses, packed: uint64 [m]; those of one lineage stand in a segment.

    lineages : int64 [s], of segments with a lineage
    begins, ends : int64 [s], where they stand
    chunks : int64 [s], number of the chunk that a segment is in
    """

    numbers: Numbers
    lineages: NDArray[np.int64]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    chunks: NDArray[np.int64]

    @classmethod
    def of(cls, table: pa.Table, packing: Packing, chunk: int = 0) -> Reached:
        """Of rows with the columns `provenance.served.windows.WINDOWS`, in any order."""
        columns = [table.column(name).to_numpy() for name in ("slot", "value", "context")]
        numbers = packing.pack(*columns)
        lineage = table.column("lineage")
        none = np.empty(0, dtype=np.int64)
        if lineage.null_count == len(lineage):
            return cls(numbers, none, none, none, none)
        has = lineage.is_valid().to_numpy()
        values = pc.fill_null(lineage, 0).to_numpy()
        cuts = np.flatnonzero((values[1:] != values[:-1]) | (has[1:] != has[:-1])) + 1
        begins = np.concatenate([np.zeros(1, dtype=np.int64), cuts])
        ends = np.append(begins[1:], values.shape[0])
        own = has[begins]
        begins, ends = begins[own], ends[own]
        return cls(numbers, values[begins], begins, ends, np.full(begins.shape, chunk))

    @classmethod
    def join(cls, parts: Sequence[Reached]) -> Reached:
        """All of them, one after another."""
        shifts = np.cumsum([0, *(part.numbers.shape[0] for part in parts)])[: len(parts)]
        return cls(
            np.concatenate([part.numbers for part in parts]),
            np.concatenate([part.lineages for part in parts]),
            np.concatenate(
                [part.begins + shift for part, shift in zip(parts, shifts, strict=True)]
            ),
            np.concatenate([part.ends + shift for part, shift in zip(parts, shifts, strict=True)]),
            np.concatenate([part.chunks for part in parts]),
        )

    def find_repeats(self) -> NDArray[np.uint8]:
        """Of each window: 1 if its lineage had it before in this chunk, 2 if in an earlier one.

        0 for the first of a lineage, and where there is none. Chunks must not go down within a
        lineage. Cost: about 15 ns a window with a lineage; memory: 16 bytes a window of the longest
        conversation, and 1 byte a window.
        """
        found = np.zeros(self.numbers.shape[0], dtype=np.uint8)
        if self.lineages.size:
            order = np.argsort(self.lineages, kind="stable")
            _find_repeats(
                self.numbers,
                self.lineages[order],
                self.begins[order],
                self.ends[order],
                self.chunks[order],
                found,
            )
        return found


@kernel(nogil=True)
def _find_repeats(numbers, lineages, begins, ends, chunks, found):  # type: ignore[no-untyped-def]
    """Segments are in the order of their lineages; one hash table a lineage."""
    largest, size = 0, 0
    for i in range(lineages.shape[0]):
        size = (ends[i] - begins[i]) + (size if i > 0 and lineages[i] == lineages[i - 1] else 0)
        largest = max(largest, size)
    capacity = _LEAST_TABLE
    while capacity < 2 * largest:
        capacity *= 2
    known = np.empty(capacity, dtype=np.uint64)
    last = np.empty(capacity, dtype=np.int64)
    first = 0
    while first < lineages.shape[0]:
        after, size = first, 0
        while after < lineages.shape[0] and lineages[after] == lineages[first]:
            size += ends[after] - begins[after]
            after += 1
        capacity = _LEAST_TABLE
        while capacity < 2 * size:
            capacity *= 2
        mask = capacity - 1
        last[:capacity] = -1
        for segment in range(first, after):
            for i in range(begins[segment], ends[segment]):
                mixed = numbers[i] * np.uint64(0x9E3779B97F4A7C15)
                place = np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))
                while last[place] >= 0 and known[place] != numbers[i]:
                    place = (place + 1) & mask
                if last[place] >= 0:
                    found[i] = np.uint8(1 if last[place] == chunks[segment] else 2)
                known[place] = numbers[i]
                last[place] = chunks[segment]
        first = after


@dataclass
class PartCounter:
    """The part that is being filled.

    chunk_windows : how many windows make a chunk
    windows : how many were added
    batches : after how many batches each chunk ended
    lineages : int64, sorted and distinct, of each chunk
    """

    chunk_windows: int
    windows: int = 0
    batches: list[int] = field(default_factory=list)
    lineages: list[NDArray[np.int64]] = field(default_factory=list)
    _runs: list[Run] = field(default_factory=list)
    _open: list[Reached] = field(default_factory=list)
    _pending: int = 0

    @property
    def rows(self) -> int:
        """Rows of the runs so far; at least those of the part."""
        return sum(run.size for run in self._runs)

    @property
    def is_between_chunks(self) -> bool:
        """Whether the last batch closed a chunk."""
        return not self._open

    def add(self, reached: Reached, batch: int) -> None:
        """Take the windows of batch number `batch`; a chunk ends with the batch that fills it."""
        self._open.append(reached)
        self._pending += reached.numbers.shape[0]
        self.windows += reached.numbers.shape[0]
        if self._pending >= self.chunk_windows:
            self.close_chunk(batch)

    def close_chunk(self, batch: int) -> None:
        """End the chunk after this batch."""
        if not self._open:
            return
        chunk = Reached.join(self._open)
        self._open, self._pending = [], 0
        numbers = chunk.numbers
        if chunk.lineages.size:
            numbers = numbers[chunk.find_repeats() == 0]
        self.lineages.append(np.unique(chunk.lineages))
        self.batches.append(batch)
        self._runs.append(count_numbers(numbers))
        while len(self._runs) > 1 and self._runs[-2].size < 2 * self._runs[-1].size:
            self._runs.append(add_runs([self._runs.pop(), self._runs.pop()]))

    def finish(self) -> Run:
        """All rows of the part."""
        runs, self._runs = self._runs, []
        return add_runs(runs)
