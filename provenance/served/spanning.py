"""Conversations that stand in more than one chunk: what was counted too often, exactly.

Inside a chunk the windows of a conversation count once. So a window that a conversation reached in
n chunks was counted n times, and n - 1 must be taken back. Which conversations these are is known
once the log was read; then it is read again, the responses of these only are laid out by
conversation, and the excess is one more table, to be subtracted. Knows no keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from provenance.errors import DataError
from provenance.served.counting import PartCounter, Reached
from provenance.served.identifiers import name_hashes
from provenance.served.log import LogReader, LogStatistics
from provenance.served.merging import cut_run, read_run
from provenance.served.packing import Packing
from provenance.served.part_files import write_run
from provenance.served.sorted_counts import Run

Count = Callable[[pa.RecordBatch], pa.Table]
"""The windows of a batch."""

_BUCKET_TOKENS: Final = 1 << 22
_MOST_BUCKETS: Final = 256
_ROUND_BYTES: Final = 4e9
_BYTES_OF_TOKEN: Final = 3
_CHUNK: Final = "chunk"
_LATER: Final = 2


def find_spanning(chunks: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Lineages that are in more than one chunk, ascending: int64 [n].

    Parameters: for each chunk its distinct lineages. Memory: 8 bytes each, twice.
    """
    ordered = np.concatenate([np.empty(0, dtype=np.int64), *chunks])
    ordered.sort()
    return np.unique(ordered[1:][ordered[1:] == ordered[:-1]])


def find_excess(
    open_log: Callable[[], LogReader],
    count: Count,
    packing: Packing,
    place: Path,
    lineages: NDArray[np.int64],
    ends: NDArray[np.int64],
    known: LogStatistics,
    sizes: tuple[int, int],
) -> list[Iterator[Run]]:
    """How often each row was counted too often, as streams of negative counts.

    Parameters
    ----------
    open_log : opens the log from its beginning, in the same batches; it is read once, or as often
        as the responses of these conversations are twice 4 GB
    count : gives the windows of a batch, as they were counted
    packing : of the mark
    place : folder for the responses of these conversations, about 2 bytes a token, and for tables
    lineages : of the conversations, ascending
    ends : after how many batches each chunk ended
    known : of the first reading
    sizes : windows of a chunk and rows of a table that fit in memory

    Raises DataError if the log is not the one that was read before. Memory: the windows of a bucket
    of about 4 M tokens, or of the longest conversation if that is longer.
    """
    share = lineages.shape[0] / max(known.marked, 1)
    tokens = 2 * min(share, 1.0) * known.tokens
    rounds = int(tokens * _BYTES_OF_TOKEN / _ROUND_BYTES) + 1
    buckets = int(min(max(tokens / rounds / _BUCKET_TOKENS, 1), _MOST_BUCKETS))
    paths = [place / f"bucket-{number:03d}.arrow" for number in range(buckets)]
    counter, tables = PartCounter(sizes[0]), 0
    found: list[Iterator[Run]] = []
    for numbers in _list_all(open_log, count, packing, lineages, ends, known, paths, rounds):
        none = np.empty(0, dtype=np.int64)
        counter.add(Reached(numbers, none, none, none, none), 0)
        if counter.is_between_chunks and counter.rows >= sizes[1]:
            table = place / f"excess-{tables:06d}.parquet"
            write_run(table, cut_run(counter.finish()), packing)
            found.append(read_run(table, packing, -1))
            tables += 1
    counter.close_chunk(0)
    rest = counter.finish()
    return [*found, cut_run(Run(rest.numbers, -rest.counts))]


def _list_all(
    open_log: Callable[[], LogReader],
    count: Count,
    packing: Packing,
    lineages: NDArray[np.int64],
    ends: NDArray[np.int64],
    known: LogStatistics,
    paths: Sequence[Path],
    rounds: int,
) -> Iterator[NDArray[np.uint64]]:
    """The excess windows, bucket by bucket."""
    turns = (lineages.astype(np.uint64) >> np.uint64(32)) % np.uint64(rounds)
    for turn in range(rounds):
        reader = open_log()
        own = lineages[turns == turn]
        if not own.size:
            continue
        _sort_out(reader, own, ends, paths)
        if reader.statistics.files != known.files:
            names = ", ".join(log.name for log in known.files[:3])
            raise DataError(f"{names}: must not change while it is read; it did. Build again.")
        for path in paths:
            yield _list_excess(path, count, packing)
            path.unlink()


def _sort_out(
    reader: LogReader,
    lineages: NDArray[np.int64],
    ends: NDArray[np.int64],
    paths: Sequence[Path],
) -> None:
    """Write the responses of these lineages into files, all of one lineage into the same."""
    writers: list[Any] = []
    options = pa.ipc.IpcWriteOptions(compression="zstd")
    with ExitStack() as stack:
        for number, batch in enumerate(reader, 1):
            names = batch.column("conversation_id").dictionary_encode()
            hashes = pa.array(name_hashes(names.dictionary.to_pylist()), pa.int64())
            own = hashes.take(names.indices)
            values = own.fill_null(0).to_numpy(zero_copy_only=False)
            places = np.minimum(np.searchsorted(lineages, values), lineages.shape[0] - 1)
            chosen = (lineages[places] == values) & own.is_valid().to_numpy(zero_copy_only=False)
            chunk = int(np.searchsorted(ends, number))
            marks = pa.array(np.full(batch.num_rows, chunk, dtype=np.int64))
            whole = batch.append_column(_CHUNK, marks)
            if not writers:
                writers = [
                    stack.enter_context(pa.ipc.new_stream(str(path), whole.schema, options=options))
                    for path in paths
                ]
            bucket = values.astype(np.uint64) % np.uint64(len(paths))
            for place in np.unique(bucket[chosen]).tolist():
                writers[place].write_batch(whole.filter(pa.array(chosen & (bucket == place))))


def _list_excess(path: Path, count: Count, packing: Packing) -> NDArray[np.uint64]:
    """The packed windows of a bucket that a conversation had in an earlier chunk, once a chunk."""
    parts = []
    with pa.OSFile(str(path)) as file, pa.ipc.open_stream(file) as stream:
        for batch in stream:
            chunk = batch.column(_CHUNK)[0].as_py()
            parts.append(Reached.of(count(batch), packing, chunk))
    if not parts:
        return np.empty(0, dtype=np.uint64)
    reached = Reached.join(parts)
    found: NDArray[np.uint64] = reached.numbers[reached.find_repeats() == _LATER]
    return found
