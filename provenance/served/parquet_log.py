"""Served logs in Parquet, read batch by batch.

A Parquet footer is not believed: batches are sized by the number of values, columns that unpack
without end are refused before they are unpacked, strings are read as dictionaries so that one long
string repeated a million times stays one string, and every value is checked. Does not know
tokenizers or keys.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from provenance.errors import DataError, StorageError, say_briefly
from provenance.served.records import (
    LABELS,
    MAXIMUM_NAME,
    MAXIMUM_TOKENS,
    MAXIMUM_VALUES,
    TOKENS,
    RawBatch,
    check_drawn,
    check_labels,
    refuse_drawn,
    sort_labels,
)
from provenance.storage.files import parse_json, sha256_of_file, unchanging
from provenance.storage.lines import MAXIMUM_LINE
from provenance.storage.parquet import refuse_bombs

_REQUIRED = ("response_id", "marked")
_OPTIONAL = (
    *("labels", "token_ids", "prompt_token_ids", "conversation_id", "time", "text"),
    *("drawn", "finish"),
)
_TOKEN_COLUMNS = ("token_ids", "prompt_token_ids")
_MAXIMUM_BATCH_TEXT = 1 << 28


class ParquetFile:
    """One Parquet file; iterate once, then `sha256` holds its digest.

    With `groups` only these row groups are read, and no digest is taken: the file was hashed by
    another reader.

    Raises DataError naming file and row (counted from 1), or StorageError. Cost: about 6 M
    token ids per second. Memory: one batch of at most `batch_rows` rows and, on average of its row
    group, 2**20 token ids.
    """

    def __init__(
        self, path: Path, vocabulary_size: int, batch_rows: int, groups: range | None = None
    ) -> None:
        self.path = path
        self.sha256 = ""
        self._vocabulary_size = vocabulary_size
        self._batch_rows = batch_rows
        self._groups = groups

    def __iter__(self) -> Iterator[RawBatch]:
        with unchanging([self.path]):
            if self._groups is None:
                self.sha256 = sha256_of_file(self.path)
            yield from self._check_all()

    def _check_all(self) -> Iterator[RawBatch]:
        first = 1
        for skipped, batch in self._read():
            first += skipped
            raw = RawBatch(batch, self.path, "row", first)
            try:
                checked = self._convert(raw)
            except (pa.ArrowException, OverflowError) as error:
                reason = say_briefly(error)
                raise DataError(
                    f"{raw.origin(0)}: must have columns of the documented types; got: {reason}. "
                    "Convert them."
                ) from error
            yield RawBatch(checked, self.path, "row", first)
            first += batch.num_rows

    def _read(self) -> Iterator[tuple[int, Any]]:
        """Batches as the file stores them; every failure of Arrow becomes one error.

        With each the rows that were passed over before it.
        """
        try:
            with pq.ParquetFile(
                self.path,
                buffer_size=1 << 16,
                page_checksum_verification=True,
                read_dictionary=self._string_columns(),
            ) as file:
                names = self._check_columns(file.schema_arrow)
                skipped = 0
                for group in range(file.num_row_groups):
                    stored = file.metadata.row_group(group)
                    if self._groups is not None and group not in self._groups:
                        skipped += stored.num_rows
                        continue
                    rows = self._check_group(stored)
                    for batch in file.iter_batches(rows, row_groups=[group], columns=names):
                        batch.validate(full=True)
                        yield skipped, batch
                        skipped = 0
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            if isinstance(error, DataError):
                raise
            reason = say_briefly(error)
            if isinstance(error, OSError) and error.errno:
                raise StorageError(
                    f"{self.path}: must be readable; got: {reason}. Check the disk."
                ) from error
            raise DataError(
                f"{self.path}: must be a valid Parquet file; got: {reason}. Write it again."
            ) from error

    def _string_columns(self) -> list[str]:
        """Leaves of the wanted columns that hold bytes."""
        with pq.ParquetFile(self.path) as file:
            schema = file.schema
            leaves = [schema.column(i) for i in range(len(schema))]
        return [
            leaf.path
            for leaf in leaves
            if leaf.physical_type == "BYTE_ARRAY"
            and leaf.path.partition(".")[0] in _REQUIRED + _OPTIONAL
        ]

    def _check_columns(self, schema: Any) -> list[str]:
        names = [name for name in _REQUIRED + _OPTIONAL if name in schema.names]
        missing = [name for name in _REQUIRED if name not in names]
        if "token_ids" not in names and "text" not in names:
            missing.append("token_ids (or text)")
        if missing or len(set(schema.names)) != len(schema.names):
            raise DataError(
                f"{self.path}: must have the columns response_id, marked and token_ids or text, "
                f"each once; missing: {', '.join(missing) or 'none'}. Rename the columns."
            )
        return names

    def _check_group(self, group: Any) -> int:
        """Rows per batch for one row group; refuses columns that unpack without end."""
        refuse_bombs(self.path, group, _REQUIRED + _OPTIONAL)
        rows, most = max(int(group.num_rows), 1), 1
        for i in range(group.num_columns):
            column = group.column(i)
            if column.path_in_schema.partition(".")[0] in _TOKEN_COLUMNS:
                most = max(most, int(column.num_values))
        return max(1, min(self._batch_rows, MAXIMUM_VALUES * rows // most))

    def _convert(self, raw: RawBatch) -> Any:
        """The columns of RawBatch, checked."""
        size = raw.batch.num_rows
        columns = {
            name: raw.batch.column(name)
            if name in raw.batch.schema.names
            else pa.nulls(size, pa.null())
            for name in _REQUIRED + _OPTIONAL
        }
        marked = columns["marked"]
        if not pa.types.is_boolean(marked.type) or marked.null_count:
            raise DataError(
                f"{raw.origin(_first_null(marked))}: marked must be true or false: was this "
                "response really served with the mark? Repair the column."
            )
        ids = self._tokens(columns["token_ids"], "token_ids", raw)
        text = _strings(columns["text"], "text", MAXIMUM_LINE, raw)
        neither = pc.and_(pc.is_null(ids), pc.is_null(text))
        if (row := _first_true(neither)) is not None:
            raise DataError(
                f"{raw.origin(row)}: must hold token_ids or text; both are missing. Add one."
            )
        response_id = _names(columns["response_id"], "response_id", raw)
        if response_id.null_count:
            raise DataError(
                f"{raw.origin(_first_null(response_id))}: response_id must be a string of 1 to "
                f"{MAXIMUM_NAME} characters; got null. Repair the record."
            )
        return pa.record_batch(
            {
                "response_id": response_id,
                "marked": marked,
                "labels": _labels(columns["labels"], raw),
                "token_ids": ids,
                "prompt_token_ids": self._tokens(
                    columns["prompt_token_ids"], "prompt_token_ids", raw
                ),
                "conversation_id": _names(columns["conversation_id"], "conversation_id", raw),
                "time": _names(columns["time"], "time", raw),
                "drawn": _bits(columns["drawn"], ids, marked, raw),
                "finish": _names(columns["finish"], "finish", raw),
                "text": text,
            }
        )

    def _tokens(self, column: Any, name: str, raw: RawBatch) -> Any:
        """A list column of any integer type -> list<uint32>."""
        if pa.types.is_null(column.type):
            return pa.nulls(len(column), TOKENS)
        kind = column.type
        if not (
            (pa.types.is_list(kind) or pa.types.is_large_list(kind))
            and pa.types.is_integer(kind.value_type)
        ):
            raise DataError(
                f"{raw.path}: {name} must be lists of integers; got {_kind(kind)}. "
                "Convert the column."
            )
        lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
        lengths = lengths.astype(np.int64)
        if lengths.size and int(lengths.max()) > MAXIMUM_TOKENS:
            raise DataError(
                f"{raw.origin(int(lengths.argmax()))}: {name} must be at most {MAXIMUM_TOKENS} "
                f"ids; got {int(lengths.max())}."
            )
        flat = column.flatten()
        wide = pa.uint64() if pa.types.is_uint64(kind.value_type) else pa.int64()
        size = pa.scalar(self._vocabulary_size, wide)
        checked = flat.cast(wide)
        wrong = pc.or_(pc.less(checked, pa.scalar(0, wide)), pc.greater_equal(checked, size))
        wrong = pc.fill_null(wrong, True)
        if (place := _first_true(wrong)) is not None:
            row = int(np.searchsorted(np.cumsum(lengths), place, side="right"))
            raise DataError(
                f"{raw.origin(row)}: {name}: token ids must be 0 .. {self._vocabulary_size - 1}; "
                f"got {flat[place].as_py()}. Use the tokenizer of the keyring."
            )
        offsets = np.zeros(len(column) + 1, dtype=np.int32)
        np.cumsum(lengths, out=offsets[1:])
        return pa.ListArray.from_arrays(
            pa.array(offsets), flat.cast(pa.uint32()), type=TOKENS, mask=column.is_null()
        )


def _strings(column: Any, name: str, limit: int, raw: RawBatch) -> Any:
    """A column of strings, times or dictionaries of strings -> string, with a length limit."""
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.string())
    if pa.types.is_temporal(column.type) and name == "time":
        return column.cast(pa.string())
    distinct = column.dictionary if pa.types.is_dictionary(column.type) else column
    if not (pa.types.is_string(distinct.type) or pa.types.is_large_string(distinct.type)):
        raise DataError(
            f"{raw.path}: {name} must be strings; got {_kind(column.type)}. Convert the column."
        )
    lengths = pc.fill_null(pc.binary_length(distinct), 1).to_numpy(zero_copy_only=False)
    if distinct is not column:
        lengths = lengths[pc.fill_null(column.indices, 0)] if len(distinct) else lengths[:0]
    if lengths.size and int(lengths.max()) > limit:
        raise DataError(
            f"{raw.origin(int(lengths.argmax()))}: {name} must be at most {limit} bytes; got "
            f"{int(lengths.max())}. Shorten it."
        )
    if int(lengths.astype(np.int64).sum()) > _MAXIMUM_BATCH_TEXT:
        raise DataError(
            f"{raw.origin(0)}: {name} must be at most {_MAXIMUM_BATCH_TEXT} bytes in "
            f"{len(column)} rows; got more. Check what it is."
        )
    return column.cast(pa.string())


def _bits(column: Any, ids: Any, marked: Any, raw: RawBatch) -> Any:
    """The column `drawn`: binary, or a dictionary of binaries, of a bit for each token id."""
    if pa.types.is_null(column.type):
        return pa.nulls(len(column), pa.binary())
    distinct = column.dictionary if pa.types.is_dictionary(column.type) else column
    if not (pa.types.is_binary(distinct.type) or pa.types.is_large_binary(distinct.type)):
        raise DataError(
            f"{raw.path}: drawn must be binary, a bit for each token id; got "
            f"{_kind(column.type)}. Convert the column."
        )
    sizes = pc.binary_length(distinct)
    sizes = sizes if distinct is column else sizes.take(column.indices)
    tokens = pc.fill_null(pc.list_value_length(ids), -1).to_numpy(zero_copy_only=False)
    # sizes first: a long value that a dictionary names a million times is never copied
    stated = pc.is_valid(sizes).to_numpy(zero_copy_only=False)
    given = pc.fill_null(sizes, 0).to_numpy(zero_copy_only=False)
    wrong = stated & ((tokens < 0) | (given != (tokens + 7) // 8))
    if wrong.any():
        row = int(wrong.argmax())
        refuse_drawn(int(given[row]), int(tokens[row]), raw.origin(row))
    packed = column.cast(pa.binary())
    check_drawn(packed, tokens, marked.to_numpy(zero_copy_only=False), raw.origin)
    return packed


def _names(column: Any, name: str, raw: RawBatch) -> Any:
    """Identifiers: strings of 1 .. MAXIMUM_NAME bytes, or null."""
    strings = _strings(column, name, MAXIMUM_NAME, raw)
    empty = pc.fill_null(pc.equal(pc.binary_length(strings), 0), False)
    if (row := _first_true(empty)) is not None:
        raise DataError(
            f"{raw.origin(row)}: {name} must be a string of 1 to {MAXIMUM_NAME} characters; got "
            "an empty one. Repair the record."
        )
    return strings


def _labels(column: Any, raw: RawBatch) -> Any:
    """Labels stored as a map, as a struct, or as a JSON object in a string."""
    kind = column.type
    if pa.types.is_null(kind):
        return pa.array([[]] * len(column), LABELS)
    if pa.types.is_map(kind) or pa.types.is_struct(kind):
        _check_label_sizes(column, raw)
        if pa.types.is_map(kind) and (found := sort_labels(column)) is not None:
            return found
        values = [_to_dict(column[i], raw.origin(i)) for i in range(len(column))]
        if pa.types.is_struct(kind):
            values = [
                row and {name: value for name, value in row.items() if value is not None}
                for row in values
            ]
    else:
        strings = _strings(column, "labels", MAXIMUM_LINE, raw).to_pylist()
        values = [
            None if text is None else parse_json(text, f"{raw.origin(i)}: labels")
            for i, text in enumerate(strings)
        ]
    return pa.array([check_labels(value, raw.origin(i)) for i, value in enumerate(values)], LABELS)


def _to_dict(scalar: Any, origin: str) -> Any:
    try:
        return scalar.as_py(maps_as_pydicts="strict")
    except (KeyError, ValueError) as error:
        raise DataError(
            f"{origin}: labels must name each label once; got: {say_briefly(error)}. Repair "
            "the record."
        ) from error


def _check_label_sizes(column: Any, raw: RawBatch) -> None:
    """Refuse a long label before it is copied to every row that names it."""
    if pa.types.is_map(column.type):
        parts = [column.keys, column.items]
    elif pa.types.is_struct(column.type):
        parts = column.flatten()
    else:
        return
    for part in parts:
        _strings(part, "labels", MAXIMUM_NAME, raw)


def _first_true(mask: Any) -> int | None:
    place = pc.index(mask, True).as_py()
    return None if place < 0 else int(place)


def _first_null(column: Any) -> int:
    return _first_true(column.is_null()) or 0


def _kind(kind: Any) -> str:
    return " ".join(str(kind).split())[:80]
