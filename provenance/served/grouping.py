"""Grouping windows with DuckDB: many windows in, sorted counts out, on disk where memory ends.

The database runs in this process with explicit threads and memory, and is cut off from the network,
from extensions and from every file but its spill folder. Knows Arrow streams and SQL; no keys.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pyarrow as pa

from provenance.errors import DataError, StorageError, say_briefly
from provenance.served.table import TABLE
from provenance.served.windows import WINDOWS
from provenance.storage.database import open_database

_COUNT_WINDOWS = """
SELECT slot, value, context, CAST(sum(n) AS INTEGER) AS responses
FROM (
    SELECT slot, value, context, CASE WHEN lineage IS NULL THEN count(*) ELSE 1 END AS n
    FROM stream
    GROUP BY slot, value, context, lineage
)
GROUP BY slot, value, context
ORDER BY slot, context, value
"""

_ADD_TABLES = """
SELECT slot, value, context, CAST(sum(responses) AS INTEGER) AS responses
FROM stream
GROUP BY slot, value, context
ORDER BY slot, context, value
"""

COINS = pa.schema(
    [
        pa.field("group", pa.uint32(), nullable=False),
        pa.field("coin", pa.int64(), nullable=False),
        pa.field("score", pa.int32(), nullable=False),
    ]
)
"""One row per drawn token and group that it is in: the coin's name under its key, and its score."""

_SUM_COINS = """
SELECT "group", CAST(sum(n) AS BIGINT) AS drawn, count(*) AS coins,
    CAST(sum(score) AS BIGINT) AS total,
    CAST(sum(CAST(score AS BIGINT) * score) AS BIGINT) AS squares
FROM (
    SELECT "group", coin, count(*) AS n, any_value(score) AS score
    FROM stream
    GROUP BY "group", coin
)
GROUP BY "group"
"""


SIGHTS = pa.schema(
    [
        pa.field("context", pa.int64(), nullable=False),
        pa.field("group", pa.uint32(), nullable=False),
        pa.field("reached", pa.int64(), nullable=False),
    ]
)
"""One row per context, group that saw it, and whether it reached it: 1 or 0."""

_LIST_GROUPS = """
SELECT "group", CAST(sum(reached) AS BIGINT) AS reached,
    CAST(sum(CASE WHEN groups = 1 THEN reached ELSE 0 END) AS BIGINT) AS exclusive
FROM (
    SELECT "group", reached, count(*) OVER (PARTITION BY context) AS groups
    FROM (
        SELECT context, "group", max(reached) AS reached FROM stream GROUP BY context, "group"
    )
)
GROUP BY "group"
"""


class _Stream:
    """An iterator of batches that remembers the exception DuckDB would turn into words."""

    def __init__(self, batches: Iterable[pa.RecordBatch]) -> None:
        self._batches = batches
        self.error: BaseException | None = None

    def __iter__(self) -> Iterator[pa.RecordBatch]:
        try:
            yield from self._batches
        except GeneratorExit:
            raise
        except BaseException as error:
            self.error = error
            raise


@contextmanager
def group_windows(
    batches: Iterable[pa.RecordBatch], spill: Path, memory_limit: str, threads: int | None
) -> Iterator[Iterable[pa.RecordBatch]]:
    """Count responses per (slot, value, context).

    Parameters
    ----------
    batches : columns WINDOWS; windows of equal lineage count once per (slot, value, context)
    spill : folder for what does not fit in memory; made with mode 0700, emptied before and after
    memory_limit : of the database, such as 512MiB
    threads : of the database; default: the cores of the process, at most 8

    Yields an iterable of batches with the columns TABLE, sorted by (slot, context, value). What
    `batches` raises passes through; StorageError if memory and disk do not suffice.
    """
    with _run(_COUNT_WINDOWS, batches, WINDOWS, spill, memory_limit, threads) as result:
        yield result


@contextmanager
def group_tables(
    batches: Iterable[pa.RecordBatch], spill: Path, memory_limit: str, threads: int | None
) -> Iterator[Iterable[pa.RecordBatch]]:
    """Add up rows of several tables (columns TABLE); otherwise as `group_windows`."""
    with _run(_ADD_TABLES, batches, TABLE, spill, memory_limit, threads) as result:
        yield result


@contextmanager
def group_coins(
    batches: Iterable[pa.RecordBatch], spill: Path, memory_limit: str
) -> Iterator[Iterable[pa.RecordBatch]]:
    """Per group: drawn tokens, distinct coins, sums of their scores and squares, each coin once.

    `batches` has the columns COINS, what is yielded group, drawn, coins, total and squares;
    otherwise as `group_windows`.
    """
    with _run(_SUM_COINS, batches, COINS, spill, memory_limit, None) as result:
        yield result


@contextmanager
def group_sights(
    batches: Iterable[pa.RecordBatch], spill: Path, memory_limit: str
) -> Iterator[Iterable[pa.RecordBatch]]:
    """Per group: contexts that it reached, and those of them that no other group saw.

    `batches` has the columns SIGHTS, what is yielded group, reached and exclusive; otherwise as
    `group_windows`.
    """
    with _run(_LIST_GROUPS, batches, SIGHTS, spill, memory_limit, None) as result:
        yield result


@contextmanager
def _run(
    query: str,
    batches: Iterable[pa.RecordBatch],
    schema: pa.Schema,
    spill: Path,
    memory_limit: str,
    threads: int | None,
) -> Iterator[Iterable[pa.RecordBatch]]:
    stream = _Stream(batches)
    try:
        shutil.rmtree(spill, ignore_errors=True)
        spill.mkdir(mode=0o700)
        with open_database(spill, memory_limit, threads) as connection:
            reader = pa.RecordBatchReader.from_batches(schema, iter(stream))
            connection.register("stream", reader)
            yield connection.sql(query).to_arrow_reader(1 << 17)
    except (duckdb.Error, pa.ArrowException, OSError) as error:
        if stream.error is not None:
            raise stream.error from None
        reason = say_briefly(error)
        if isinstance(error, duckdb.ConversionException | duckdb.OutOfRangeException):
            raise DataError(
                f"a context must be served in fewer than 2**31 responses; got: {reason}. "
                "Build one index per part of the log."
            ) from error
        raise StorageError(
            f"{spill}: what is counted must fit in memory ({memory_limit}) and on this disk; got: "
            f"{reason}. Free some space or raise the memory limit."
        ) from error
    finally:
        shutil.rmtree(spill, ignore_errors=True)
