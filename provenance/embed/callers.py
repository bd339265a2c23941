"""The table of callers: a Parquet, CSV or SQLite file with one row a caller, looked up by a dict.

Columns that say who it is (at least one of them must be there):

- `api_key_sha256`: SHA-256 of the API key in hexadecimal, so that the table holds no secret
- `account`, `organisation`: as a trusted proxy names them

Every other column is a label of its name; null or empty is no label. A column `mark` says `always`,
`if-possible` or `never`, and null leaves it to the server.

A row is the caller's if it equals all that the row says of who it is. Of several the one that says
most decides, and of those the one that says what stands first above.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any, Final, get_args

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.embed.rules import MarkWish
from provenance.errors import DataError, StorageError, say_briefly
from provenance.storage.files import Stamp, read_stamp

MARKS: Final = get_args(MarkWish)

KEY_COLUMN: Final = "api_key_sha256"
MARK_COLUMN: Final = "mark"
CALLER_COLUMNS: Final = (KEY_COLUMN, "account", "organisation")
"""What says who calls, the most telling first."""

_CHUNK_ROWS: Final = 1 << 14
"""Rows that become Python objects at once: no more, since a server answers meanwhile."""
_SUFFIXES: Final = (".parquet", ".csv", ".sqlite", ".db")


class CallerTable:
    """The rows of one reading of a file. Made by `read`.

    Attributes: path; stamp of the file; labels, the names of the columns that are labels.
    """

    def __init__(self, path: Path, stamp: Stamp | None, columns: Mapping[str, pa.Array]) -> None:
        self.path, self.stamp = path, stamp
        self._columns = columns
        self._names = [name for name in CALLER_COLUMNS if name in columns]
        self.labels = frozenset(columns) - {*CALLER_COLUMNS, MARK_COLUMN}
        self._check_columns()
        self._rows = self._index()

    def __len__(self) -> int:
        return len(next(iter(self._columns.values())))

    @classmethod
    def read(cls, path: Path) -> CallerTable:
        """Read and index the file.

        Raises StorageError (unreadable) or DataError (not such a table, two rows for one caller, a
        hash that is none; with the row). Cost: see `LabelPolicy.load`.
        """
        if path.suffix not in _SUFFIXES:
            raise DataError(
                f"the table of callers must be one of {', '.join(_SUFFIXES)}; got {path.name!a}."
            )
        stamp = read_stamp(path)  # before: what is written while we read is read again
        try:
            with path.open("rb"):
                pass
            table = _read_sqlite(path) if path.suffix in (".sqlite", ".db") else _read_arrow(path)
            names = table.column_names
            if len(set(names)) != len(names):
                raise ValueError("two columns have the same name")
            columns = {name: _as_text(table.column(name), name) for name in names}
        except OSError as error:
            raise StorageError(f"{path} must be readable: {say_briefly(error)}.") from error
        except (ValueError, sqlite3.Error, pa.ArrowException) as error:
            raise DataError(
                f"{path} must be a table of callers: {say_briefly(error)}. Write it again."
            ) from error
        return cls(path, stamp, columns)

    def find(self, caller: Mapping[str, str]) -> tuple[dict[str, str], str] | None:
        """What the caller's row says, nulls left out, and the columns that matched, or None."""
        for names, rows in self._rows:
            row = rows.get(tuple(caller.get(name, "") for name in names))
            if row is not None:
                said = ((name, column[row].as_py()) for name, column in self._columns.items())
                return {name: value for name, value in said if value is not None}, "+".join(names)
        return None

    def _check_columns(self) -> None:
        if not self._names:
            raise DataError(
                f"{self.path} must have one of the columns {', '.join(CALLER_COLUMNS)}; it has "
                f"{', '.join(self._columns) or 'none'}. Add the one that says who calls."
            )
        for name in self.labels:
            if not name or "=" in name:
                raise DataError(f"{self.path}: a label's name must have no '='; got {name!a}.")
        allowed = {KEY_COLUMN: "^[0-9a-f]{64}$", MARK_COLUMN: f"^({'|'.join(MARKS)})$"}
        for name in allowed.keys() & self._columns.keys():
            fits = pc.match_substring_regex(self._columns[name], allowed[name])
            wrong = np.flatnonzero(~fits.fill_null(True).to_numpy(zero_copy_only=False))
            if wrong.size:  # the value itself may be a key
                must = "64 small hexadecimal digits" if name == KEY_COLUMN else " or ".join(MARKS)
                raise DataError(f"{self.path}, row {wrong[0] + 1}: {name} must be {must}.")

    def _index(self) -> list[tuple[tuple[str, ...], dict[tuple[str, ...], int]]]:
        """Number of the row by what it says of the caller, one dict for each set of columns."""
        given = np.stack(
            [self._columns[name].is_valid().to_numpy(zero_copy_only=False) for name in self._names],
            axis=1,
        )
        nobody = np.flatnonzero(~given.any(axis=1))
        if nobody.size:
            raise DataError(
                f"{self.path}, row {nobody[0] + 1}: {', '.join(self._names)} are empty."
            )
        patterns = {tuple(pattern) for pattern in np.unique(given, axis=0).tolist()}
        ranked = sorted(patterns, key=lambda pattern: (sum(pattern), pattern), reverse=True)
        return [
            (
                tuple(name for name, used in zip(self._names, pattern, strict=True) if used),
                self._index_rows(np.flatnonzero((given == pattern).all(axis=1)), pattern),
            )
            for pattern in ranked
        ]

    def _index_rows(
        self, rows: NDArray[np.int64], pattern: tuple[bool, ...]
    ) -> dict[tuple[str, ...], int]:
        columns = [self._columns[n] for n, used in zip(self._names, pattern, strict=True) if used]
        found: dict[tuple[str, ...], int] = {}
        for start in range(0, len(rows), _CHUNK_ROWS):
            chunk = rows[start : start + _CHUNK_ROWS]
            values = [column.take(pa.array(chunk)).to_pylist() for column in columns]
            keys = list(zip(*values, strict=True))
            for key, row in zip(keys, chunk.tolist(), strict=True):
                if found.setdefault(key, row) != row:
                    raise DataError(
                        f"{self.path}, rows {found[key] + 1} and {row + 1}: two rows for one "
                        "caller. Keep one of them."
                    )
        return found


def _as_text(column: pa.ChunkedArray, name: str) -> pa.Array:
    """A column as text, empty as null. Raises ValueError for what is neither text nor integer."""
    kind = column.type.value_type if pa.types.is_dictionary(column.type) else column.type
    is_text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (is_text or pa.types.is_integer(kind) or pa.types.is_null(kind)):
        raise ValueError(f"column {name} must be text or integers; it is {kind}")
    text = column.cast(kind).cast(pa.large_string()).combine_chunks()
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, pa.large_string()), text)


def _read_arrow(path: Path) -> pa.Table:
    if path.suffix == ".parquet":
        return pq.read_table(path)
    with pa_csv.open_csv(path) as reader:
        names = reader.schema.names
    options = pa_csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()))
    return pa_csv.read_csv(path, convert_options=options)


def _read_sqlite(path: Path) -> pa.Table:
    """The only table of the file, or the one that is called `callers`."""
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as database:
        wanted = "SELECT name FROM sqlite_master WHERE type IN ('table', 'view')"
        tables = [name for (name,) in database.execute(wanted) if not name.startswith("sqlite_")]
        if len(tables) != 1 and "callers" not in tables:
            raise ValueError("one table, or one called callers, must be in it")
        table = tables[0] if len(tables) == 1 else "callers"
        quoted = table.replace('"', '""')
        cursor = database.execute(f'SELECT * FROM "{quoted}"')
        names = [description[0] for description in cursor.description]
        rows = cursor.fetchall()
    columns: list[list[Any]] = [list(column) for column in zip(*rows, strict=True)]
    for name, column in zip(names, columns, strict=False):
        if not all(value is None or isinstance(value, str | int) for value in column):
            raise ValueError(f"column {name} must be text or integers")
    arrays = [
        pa.array([value if value is None else str(value) for value in column], pa.string())
        for column in columns or [[] for _ in names]
    ]
    return pa.Table.from_arrays(arrays, names=names)
