"""Parquet files of strangers: what must be looked at before a column is unpacked.

Knows footers; knows nothing of what the columns mean.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any, Final

import pyarrow as pa
import pyarrow.compute as pc

from provenance.errors import DataError
from provenance.storage.lines import MAXIMUM_EXPANSION

_FREE_BYTES: Final = 1 << 26
_BYTES_PER_VALUE: Final = 4
_MAXIMUM_SLICE: Final = 1 << 26
"""Bytes of text that become Python objects at a time."""


def refuse_bombs(path: Path, group: Any, wanted: Collection[str] | None = None) -> None:
    """Raise DataError for a column of a row group that unpacks without end.

    Parameters: the file, for the message; metadata of the row group; names of the columns that will
    be read, None for all. A column may be 64 MiB, or 200 times as large as it lies in the file.
    """
    for i in range(group.num_columns):
        column = group.column(i)
        if wanted is not None and column.path_in_schema.partition(".")[0] not in wanted:
            continue
        size = max(column.num_values * _BYTES_PER_VALUE, column.total_uncompressed_size)
        if size > max(_FREE_BYTES, MAXIMUM_EXPANSION * column.total_compressed_size):
            raise DataError(
                f"{path}: must not expand more than {MAXIMUM_EXPANSION} times; column "
                f"{column.path_in_schema[:64]!a} holds {column.num_values} values, {size} bytes, "
                f"in {column.total_compressed_size}. Check what it is."
            )


def cut_batch(batch: Any) -> Iterator[Any]:
    """A batch in pieces of at most 64 MiB of text each, by its longest strings.

    One long string that a dictionary names in every row is a copy a row in Python.
    """
    longest = 1
    for column in batch.columns:
        distinct = column.dictionary if pa.types.is_dictionary(column.type) else column
        if pa.types.is_string(distinct.type) or pa.types.is_large_string(distinct.type):
            longest = max(longest, pc.max(pc.binary_length(distinct)).as_py() or 0)
    step = max(1, _MAXIMUM_SLICE // longest)
    for first in range(0, batch.num_rows, step):
        yield batch.slice(first, step)
