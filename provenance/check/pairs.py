"""Weighted pairs and their scores on disk: compressed CSV, which anybody can read.

Rows are sorted by context and token, each pair stands once, and a table has exactly one form, so
that equal pairs have equal bytes. As confidential as the log: mode 0600. Knows no keys and computes
no score. Bundles of 0.1.0 hold the same rows as Parquet too, which must then be equal.

Where several pairs share a coin (other people's schemes), a column `unit` says which: 1, 2, ... in
the order of first rows, 0 for a pair whose coin is the same under every key and which therefore
counts for nothing. The score then is the unit's, repeated in each of its rows.
"""

from __future__ import annotations

import gzip
import io
import zlib
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.check.score import WeightedPairs
from provenance.coins.contexts import MAXIMUM_VOCABULARY
from provenance.errors import DataError, say_briefly
from provenance.marks.sharing import group_pairs
from provenance.storage.files import is_of_disk, read_bytes, unreadable, write_atomically
from provenance.storage.lines import MAXIMUM_EXPANSION

PARQUET: Final = ".parquet"
CSV: Final = ".csv.gz"
_MAXIMUM_BYTES: Final = 1 << 32
_FREE_EXPANSION: Final = 1 << 26
_LONGEST_HEAD: Final = 1 << 12
_SCORED: Final = ("score",)
_SHARED: Final = ("unit", "score")

Scores = NDArray[np.int64]


class DamagedPairsError(DataError):
    """A file of pairs is none; `file` is its name below the folder."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(reason)
        self.file = file


def write_pairs(
    folder: Path,
    name: str,
    pairs: WeightedPairs,
    scores: Scores | None,
    units: Scores | None = None,
) -> None:
    """Write NAME.csv.gz, sorted. Raises StorageError.

    Parameters: the bundle; a name below it; the pairs; int64 [n] in their order, or None if their
    key was not opened; the number of each pair's coin from 0, int64 [n], -1 where it has none, or
    None if every pair has a coin of its own.
    """
    columns = pairs.contexts.T.astype(np.uint32)
    order = np.lexsort((pairs.tokens, *columns[::-1]))
    table = _tabulate(
        WeightedPairs(pairs.contexts[order], pairs.tokens[order], pairs.weights[order]),
        None if scores is None else scores[order],
        None if units is None else group_pairs(units[order], units[order] >= 0).coins,
    )
    text = gzip.compress(_write_csv(table), compresslevel=6, mtime=0)
    write_atomically(folder / f"{name}{CSV}", text, mode=0o600)


def read_pairs(
    folder: Path, name: str, width: int, *, scored: bool
) -> tuple[WeightedPairs, Scores | None]:
    """What `write_pairs` wrote, in its one form: sorted, distinct, nothing else.

    Raises DamagedPairsError naming the file, which may not expand without end; a Parquet file
    beside it must have as many rows before one of them is read, and the same.
    """
    pairs, rest = _read(folder, name, _schema(width, _SCORED if scored else ()))
    return pairs, rest[0] if scored else None


def read_shared_pairs(folder: Path, name: str, width: int) -> tuple[WeightedPairs, Scores, Scores]:
    """Pairs that share coins: pairs, scores, and numbers as in `write_pairs`.

    Raises DamagedPairsError as `read_pairs`; also unless units are numbered by their first rows and
    every row of a unit has one score, 0 without one.
    """
    pairs, (units, scores) = _read(folder, name, _schema(width, _SHARED))
    numbers = units.astype(np.int64) - 1
    if not np.array_equal(group_pairs(numbers, numbers >= 0).coins, numbers):
        raise DamagedPairsError(
            name + CSV, "units must be numbered 1, 2, ... by their first rows; they are not"
        )
    own = np.zeros(int(numbers.max(initial=-1)) + 2, dtype=np.int64)  # the last: of no unit
    own[numbers[numbers >= 0]] = scores[numbers >= 0]
    if not np.array_equal(own[numbers], scores):
        raise DamagedPairsError(name + CSV, "all rows of a unit must have its score; one has not")
    return pairs, scores, numbers


def read_any_pairs(folder: Path, name: str) -> tuple[WeightedPairs, Scores, Scores | None]:
    """Scored pairs of either kind; the numbers of their coins, or None if each has its own.

    Raises DamagedPairsError, StorageError.
    """
    try:
        with gzip.open(folder / f"{name}{CSV}") as file:
            head = file.readline(_LONGEST_HEAD).decode("ascii").strip().split(",")
        width = head.index("token")
    except (OSError, EOFError, ValueError, zlib.error) as error:
        if isinstance(error, OSError) and is_of_disk(error):
            raise unreadable(folder / f"{name}{CSV}", error) from error
        raise DamagedPairsError(
            name + CSV, f"must begin with the names of its columns; got: {say_briefly(error)}"
        ) from error
    if "unit" in head:
        return read_shared_pairs(folder, name, width)
    pairs, scores = read_pairs(folder, name, width, scored=True)
    return pairs, cast("Scores", scores), None


def _read(folder: Path, name: str, schema: Any) -> tuple[WeightedPairs, list[Any]]:
    """Pairs, and the columns behind the weight."""
    text = _expand(folder, name + CSV)
    table = _read_csv(text, name + CSV, schema)
    pairs, rest = _take(table, schema)
    _check_order(pairs, name + CSV)
    if table.num_rows and int(max(pairs.contexts.max(), pairs.tokens.max())) >= MAXIMUM_VOCABULARY:
        raise DamagedPairsError(name + CSV, f"ids must be below {MAXIMUM_VOCABULARY}; one is not")
    if _write_csv(table) != text:
        raise DamagedPairsError(name + CSV, "numbers must be in plain decimal form; they are not")
    if (folder / (name + PARQUET)).exists() and not _read_parquet(
        folder, name + PARQUET, table
    ).equals(table):
        raise DamagedPairsError(name + PARQUET, f"must hold the rows of {name}{CSV}; it does not")
    return pairs, rest


def _schema(width: int, rest: tuple[str, ...]) -> Any:
    """Context ids, token and weight, then the given columns."""
    wide = {"weight": pa.int64(), "score": pa.int64()}
    names = [*(f"c{i + 1}" for i in range(width)), "token", "weight", *rest]
    return pa.schema(
        [pa.field(name, wide.get(name, pa.uint32()), nullable=False) for name in names]
    )


def _tabulate(pairs: WeightedPairs, scores: Scores | None, numbers: Scores | None) -> Any:
    columns = [*pairs.contexts.T, pairs.tokens, pairs.weights]
    if numbers is not None:
        columns.append((numbers + 1).astype(np.uint32))
    if scores is not None:
        columns.append(scores)
    rest = () if scores is None else _SCORED if numbers is None else _SHARED
    schema = _schema(pairs.contexts.shape[1], rest)
    arrays = [
        pa.array(np.ascontiguousarray(column), field.type)
        for column, field in zip(columns, schema, strict=True)
    ]
    return pa.Table.from_arrays(arrays, schema=schema)


def _write_csv(table: Any) -> bytes:
    head = ",".join(table.column_names) + "\n"
    body = io.BytesIO()
    pa.csv.write_csv(table, body, pa.csv.WriteOptions(include_header=False))
    return head.encode("ascii") + body.getvalue()


def _expand(folder: Path, name: str) -> bytes:
    content = read_bytes(folder / name, _MAXIMUM_BYTES)
    limit = max(_FREE_EXPANSION, MAXIMUM_EXPANSION * len(content))
    unpacker = zlib.decompressobj(wbits=31)
    try:
        text = unpacker.decompress(content, limit)
    except zlib.error as error:
        raise DamagedPairsError(name, f"must be a whole gzip file; got: {error}") from error
    if not unpacker.eof or unpacker.unused_data:
        raise DamagedPairsError(
            name, "must be one whole gzip file that does not expand without end"
        )
    return text


def _read_csv(text: bytes, name: str, schema: Any) -> Any:
    head = ",".join(schema.names) + "\n"
    if not text.startswith(head.encode("ascii")):
        raise DamagedPairsError(name, f"must begin with the line {head.strip()}; it does not")
    if len(text) == len(head):
        return schema.empty_table()
    try:
        table = pa.csv.read_csv(
            io.BytesIO(text),
            convert_options=pa.csv.ConvertOptions(
                column_types={field.name: field.type for field in schema}, null_values=[]
            ),
        )
        return table.combine_chunks().cast(schema)
    except (pa.ArrowException, ValueError) as error:
        raise DamagedPairsError(
            name, f"must hold rows of integers; got: {say_briefly(error)}"
        ) from error


def _read_parquet(folder: Path, name: str, expected: Any) -> Any:
    content = read_bytes(folder / name, _MAXIMUM_BYTES)
    try:
        file = pq.ParquetFile(io.BytesIO(content))
        rows = file.metadata.num_rows
        if rows != expected.num_rows:
            raise DamagedPairsError(name, f"must have {expected.num_rows} rows; it has {rows}")
        if file.schema_arrow.remove_metadata() != expected.schema:
            raise DamagedPairsError(name, f"must have the columns {expected.schema.names}")
        return file.read().combine_chunks()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DamagedPairsError(
            name, f"must be a Parquet file; got: {say_briefly(error)}"
        ) from error


def _take(table: Any, schema: Any) -> tuple[WeightedPairs, list[Any]]:
    columns = [table.column(i).to_numpy() for i in range(table.num_columns)]
    width = schema.names.index("token")
    contexts = np.stack(columns[:width], axis=1).astype(np.uint32)
    pairs = WeightedPairs(contexts, columns[width].astype(np.uint32), columns[width + 1])
    return pairs, columns[width + 2 :]


def _check_order(pairs: WeightedPairs, name: str) -> None:
    """Raise unless (context, token) ascends strictly, which also makes every pair distinct."""
    rows = np.column_stack([pairs.contexts, pairs.tokens]).astype(np.int64)
    steps = np.diff(rows, axis=0)
    first = np.argmax(steps != 0, axis=1)
    if steps.size and not (np.take_along_axis(steps, first[:, None], axis=1) > 0).all():
        raise DamagedPairsError(
            name, "rows must ascend by context and token, each pair once; they do not"
        )
    if (pairs.weights == 0).any():
        raise DamagedPairsError(name, "a weight must not be 0; one is")
