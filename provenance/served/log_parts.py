"""A log in parts that many machines read: row groups of a Parquet file, or a whole file of lines.

A reader of a part does not know what stands in the others, so somebody else says which of its
records are duplicates. The checks are those of `provenance.served.log`. Knows files; no cluster.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.errors import StorageError
from provenance.served.json_lines import JsonLinesFile
from provenance.served.log import LogReader, open_log_file
from provenance.served.parquet_log import ParquetFile
from provenance.served.records import RawBatch
from provenance.served.rotation import list_log_files
from provenance.storage.files import read_stamp

_FILE_BITS: Final = 40
"""A place in a log: the number of the file above, that of the record (from 0) in the low bits."""
_PART_VALUES: Final = 1 << 23
"""Row groups are put together until they hold so many values, over all columns of ids."""


@dataclass(frozen=True)
class LogPart:
    """Some records of one file of a log.

    path : of the file, the same on every machine
    file : its number in the log
    groups : row groups of a Parquet file, first and end; None for a whole file
    first : number of the first record, from 0
    stamp : when the file was written and how long it is
    """

    path: Path
    file: int
    groups: tuple[int, int] | None
    first: int
    stamp: tuple[int, int] | None

    @property
    def is_first(self) -> bool:
        """Whether it begins its file, and so takes the file's SHA-256."""
        return self.groups is None or self.groups[0] == 0

    def open(self, vocabulary_size: int, batch_rows: int) -> JsonLinesFile | ParquetFile:
        """The reader of its records. Raises StorageError if the file has changed."""
        self.check_stamp()
        if self.groups is None:
            return open_log_file(self.path, vocabulary_size, batch_rows)
        return ParquetFile(self.path, vocabulary_size, batch_rows, range(*self.groups))

    def check_stamp(self) -> None:
        """Raise StorageError unless the file is as it was when the parts were listed."""
        if self.stamp is not None and _stamp(self.path) != self.stamp:
            raise StorageError(
                f"{self.path}: must not change while it is read, and be the same file on every "
                "machine; it is missing or another one somewhere. Mount the log everywhere."
            )

    def place(self, row: int) -> int:
        """Where in the log the record of this number (from 0, in its file) stands."""
        return (self.file << _FILE_BITS) + row


def list_parts(paths: Sequence[Path]) -> list[LogPart]:
    """The parts of a log, in its order. Raises what `open_log_file` and `list_log_files` raise.

    A Parquet file that cannot be opened is one part: its reader says what is wrong.
    """
    parts: list[LogPart] = []
    for number, path in enumerate(list_log_files(paths)):
        file = open_log_file(path, vocabulary_size=1, batch_rows=1)
        stamp = _stamp(path)
        sizes = _list_groups(path) if isinstance(file, ParquetFile) else []
        if not sizes:
            parts.append(LogPart(path, number, None, 0, stamp))
        start = rows = values = first = 0
        for group, (group_rows, group_values) in enumerate(sizes):
            rows, values = rows + group_rows, values + group_values
            if values >= _PART_VALUES or group == len(sizes) - 1:
                parts.append(LogPart(path, number, (start, group + 1), first, stamp))
                start, first, values = group + 1, rows, 0
    return parts


def read_names(parts: Sequence[LogPart], places: Sequence[int], size: int) -> list[str]:
    """The response_id of the records at these places. Raises what their readers raise."""
    found: dict[int, str] = {}
    for number, part in enumerate(parts):
        later = [other for other in parts[number + 1 :] if other.file == part.file]
        end = part.place(later[0].first) if later else part.place(1 << _FILE_BITS)
        wanted = [place for place in places if part.place(part.first) <= place < end]
        if wanted:
            for raw in part.open(size, 4096):
                first = part.place(raw.first - 1)
                for place in wanted:
                    if first <= place < first + raw.batch.num_rows:
                        found[place] = raw.batch.column("response_id")[place - first].as_py()
    return [found[place] for place in places]


class PartReader(LogReader):
    """Reads one part; see `LogReader`. Counts no duplicates: it is told which records are.

    dropped : int64, ascending: places of all duplicates of the log
    """

    def __init__(
        self,
        part: LogPart,
        tokenizer: Tokenizer | None,
        vocabulary_size: int,
        batch_rows: int,
        dropped: NDArray[np.int64],
    ) -> None:
        self._part, self._dropped = part, dropped
        super().__init__([part.path], tokenizer, vocabulary_size, batch_rows)

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        yield from self._batches
        self._part.check_stamp()

    def _open_file(
        self,
        path: Path,  # noqa: ARG002  # the part knows it
        vocabulary_size: int,
        batch_rows: int,
    ) -> JsonLinesFile | ParquetFile:
        """The records of the part, which is of the file at `path`."""
        return self._part.open(vocabulary_size, batch_rows)

    def _select_new(self, raw: RawBatch) -> NDArray[np.int64]:
        first = self._part.place(raw.first - 1)
        start, end = np.searchsorted(self._dropped, [first, first + raw.batch.num_rows])
        return np.delete(np.arange(raw.batch.num_rows), self._dropped[start:end] - first)


def _stamp(path: Path) -> tuple[int, int] | None:
    """The part of a file's stamp that every machine sees alike."""
    stamp = read_stamp(path)
    return None if stamp is None else stamp[:2]


def _list_groups(path: Path) -> list[tuple[int, int]]:
    """Rows and values of each row group; none if the file is no Parquet file."""
    try:
        with pq.ParquetFile(path) as file:
            stored = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
    except (pa.ArrowException, OSError, ValueError):
        return []
    return [
        (
            group.num_rows,
            max((group.column(i).num_values for i in range(group.num_columns)), default=0),
        )
        for group in stored
    ]
