"""Counting the windows of a log part by part: the same rows whatever the sizes, in bounded memory.

    log -> windows (on every core) -> chunks -> parts on disk -> one merge

A part that a killed run had finished is used again: the log is read once more up to its end, since
later responses must be compared with those before, but nothing of it is counted. Where a
conversation stands in more than one chunk the log is read a second time, see
`provenance.served.spanning`. Knows keys only through `windows`.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from provenance.marks import Served
from provenance.served.control_sample import control_words
from provenance.served.counting import PartCounter, Reached
from provenance.served.log import LogReader, LogStatistics
from provenance.served.merging import cut_run, list_batches, merge_runs, read_run
from provenance.served.packing import Packing
from provenance.served.part_files import Part, PartFiles, write_run
from provenance.served.sorted_counts import Run
from provenance.served.spanning import find_excess, find_spanning
from provenance.served.windows import label_numbers, windows
from provenance.storage.files import canonical_json

_FORMAT: Final = 1
_MOST_SOURCES: Final = 400
_BYTES_OF_ROW: Final = 64


@dataclass(frozen=True)
class Sizes:
    """When a chunk and a part are full, and how many threads count.

    Chunks and parts change nothing in the result.
    """

    chunk_windows: int
    part_rows: int
    threads: int

    @classmethod
    def of(cls, memory: int, threads: int | None) -> Sizes:
        """For so many bytes of memory; as many threads as the process has cores."""
        rows = max(memory // _BYTES_OF_ROW, 1)
        return cls(rows, rows, threads or len(os.sched_getaffinity(0)))


class _Prepared(NamedTuple):
    digest: bytes
    without_value: NDArray[np.int64]
    reached: Reached | None


class _ChangedError(Exception):
    """Part number `number` is not of this log."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class CountedLog:
    """A log and what was counted in it.

    Parameters: opens the log from its beginning; the mark; its packing; the sizes; the share of the
    control contexts that is kept; what else decides which parts there are, as JSON.

    Attributes: statistics of the log, windows, and `without_value` (int64 [slots], marked responses
    without a value), all complete once the rows were read to their end.
    """

    def __init__(
        self,
        open_log: Callable[[], LogReader],
        keyring: Served,
        packing: Packing,
        sizes: Sizes,
        control_share: float,
        setup: object,
    ) -> None:
        self._open_log = open_log
        self._keyring = keyring
        self._packing = packing
        self._sizes = sizes
        self._control_share = control_share
        self._setup = self._describe(setup)
        self.statistics = LogStatistics()
        self.windows = 0
        self.without_value = np.zeros(len(keyring.schedule.slots), dtype=np.int64)

    @contextmanager
    def count(
        self, place: Path, check: Callable[[LogStatistics, int], None]
    ) -> Iterator[Iterable[pa.RecordBatch]]:
        """Rows of the index, sorted: batches with the columns TABLE.

        Parameters: folder for parts; called with the log's statistics and windows once it was read,
        may raise. What reading the log raises passes through.
        """
        files = PartFiles(place, self._setup.hex(), self._packing)
        parts = files.load()
        while True:
            try:
                parts, rest = self._read(parts, files)
                break
            except _ChangedError as changed:
                parts = parts[: changed.number]
                files.keep(parts)
        check(self.statistics, self.windows)
        excess = self._list_excess(place, parts)
        tables = self._reduce([p.table for p in parts if p.table is not None], place)
        sources = [
            *(read_run(table, self._packing) for table in tables),
            cut_run(rest),
            *excess,
        ]
        yield list_batches(merge_runs(sources), self._packing)

    def _describe(self, setup: object) -> bytes:
        """Hash of all that decides what a part is, but for the log."""
        schedule = self._keyring.schedule
        document = [
            _FORMAT,
            self._keyring.public.id,
            [[slot.name, slot.share_words, list(slot.values)] for slot in schedule.slots],
            [self._sizes.chunk_windows, self._sizes.part_rows],
            control_words(self._control_share),
            setup,
        ]
        return hashlib.sha256(canonical_json(document)).digest()

    def _read(self, known: Sequence[Part], files: PartFiles) -> tuple[list[Part], Run]:
        """Read the log to its end: its parts, the last of them in memory with these rows."""
        parts, reader = list(known), self._open_log()
        counter, without = PartCounter(self._sizes.chunk_windows), self._no_values()
        skipped = int(parts[-1].batches[-1]) if parts else 0
        state, number, met = self._setup, 0, 0
        for number, one in enumerate(self._prepare_all(reader, skipped), 1):
            state = hashlib.sha256(state + one.digest).digest()
            if one.reached is None:
                if number == parts[met].batches[-1]:
                    if parts[met].digest != state.hex():
                        raise _ChangedError(met)
                    met += 1
                continue
            counter.add(one.reached, number)
            without += one.without_value
            if counter.is_between_chunks and counter.rows >= self._sizes.part_rows:
                part = _describe_part(counter, without, state)
                parts.append(files.save(len(parts), part, counter.finish()))
                counter, without = PartCounter(self._sizes.chunk_windows), self._no_values()
        if met < len(known):
            raise _ChangedError(met)
        counter.close_chunk(number)
        parts.append(_describe_part(counter, without, state))
        self.statistics = reader.statistics
        self.windows = sum(part.windows for part in parts)
        self.without_value[:] = sum(part.without_value for part in parts)
        return parts, counter.finish()

    def _no_values(self) -> NDArray[np.int64]:
        return np.zeros(len(self._keyring.schedule.slots), dtype=np.int64)

    def _prepare_all(self, reader: LogReader, skipped: int) -> Iterator[_Prepared]:
        """Every batch prepared, in order; the first `skipped` are only hashed.

        Batches are prepared on all threads. An error of a batch comes before one of reading on.
        """
        pending: deque[Future[_Prepared]] = deque()
        error: Exception | None = None
        with ThreadPoolExecutor(self._sizes.threads) as pool:
            number = 0
            while error is None:
                try:
                    batch = next(reader)
                except StopIteration:
                    break
                except Exception as found:  # noqa: BLE001 (raised below, after what stands before it)
                    error = found
                    break
                number += 1
                pending.append(pool.submit(self._prepare, batch, number > skipped))
                if len(pending) > self._sizes.threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        if error is not None:
            raise error

    def _prepare(self, batch: pa.RecordBatch, counted: bool) -> _Prepared:
        digest = hashlib.sha256(batch.serialize()).digest()
        if not counted:
            return _Prepared(digest, self._no_values(), None)
        labels = batch.column("labels").filter(batch.column("marked"))
        numbers = label_numbers(labels, self._keyring.schedule)
        rows = windows(batch, self._keyring, self._control_share)
        reached = Reached.of(rows, self._packing)
        return _Prepared(digest, (numbers < 0).sum(axis=1), reached)

    def _list_excess(self, place: Path, parts: Sequence[Part]) -> list[Iterator[Run]]:
        """What was counted too often: conversations that stand in more than one chunk."""
        lineages = find_spanning([one for part in parts for one in part.lineages])
        if not lineages.size:
            return []
        return find_excess(
            self._open_log,
            lambda batch: windows(batch, self._keyring, self._control_share),
            self._packing,
            place,
            lineages,
            np.concatenate([part.batches for part in parts]),
            self.statistics,
            (self._sizes.chunk_windows, self._sizes.part_rows),
        )

    def _reduce(self, tables: Sequence[Path], place: Path) -> list[Path]:
        """At most so many tables as can be read at once: the first ones are added up."""
        rest = list(tables)
        while len(rest) > _MOST_SOURCES:
            first, rest = rest[:_MOST_SOURCES], rest[_MOST_SOURCES:]
            added = place / f"added-{len(rest):06d}.parquet"
            runs = merge_runs([read_run(table, self._packing) for table in first])
            write_run(added, runs, self._packing)
            rest.append(added)
        return rest


def _describe_part(counter: PartCounter, without: NDArray[np.int64], state: bytes) -> Part:
    return Part(
        state.hex(),
        counter.windows,
        without,
        np.array(counter.batches, dtype=np.int64),
        tuple(counter.lineages),
        None,
    )
