"""Which responses of a log belong to a group: by a label, or by a field of the record.

A group is chosen by what was known before the responses were drawn: accounts, organisations, times.
So only such fields can be asked for: never a text, a length, or how a response ended. Knows record
batches and lists of values; no keys.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import pyarrow as pa
import pyarrow.compute as pc

from provenance.errors import DataError, UsageError
from provenance.served.records import MAXIMUM_NAME

RECORD_FIELDS: Final = ("response_id", "conversation_id", "time")
"""Fields of a record that may choose a group; any other name is that of a label."""
_NOT_BEFORE: Final = ("marked", "token_ids", "text", "finish", "drawn", "prompt_token_ids")


def check_field(field: object) -> str:
    """The name of a field or label. Raises UsageError for what was not known before the draw."""
    if not isinstance(field, str) or not 1 <= len(field) <= MAXIMUM_NAME:
        raise UsageError(f"field must be a label's name or one of {', '.join(RECORD_FIELDS)}.")
    if field in _NOT_BEFORE:
        raise UsageError(
            f"field must be one that was known before the response was drawn; got {field}. Choose "
            f"by a label, or by {', '.join(RECORD_FIELDS)}."
        )
    return field


def values_of(batch: pa.RecordBatch, field: str) -> pa.Array:
    """The field's value of each response: string [n], null where it has none."""
    if field in RECORD_FIELDS:
        return batch.column(field).cast(pa.string())
    return pc.map_lookup(batch.column("labels"), pa.scalar(field), "first")


def hash_values(values: Iterable[str]) -> str:
    """Hex SHA-256 of a list of values, however it was sorted: of its lines in the order of bytes.

    It is what `LC_ALL=C sort -u FILE | sha256sum` says.

    >>> hash_values(["b", "a", "b"]) == hash_values(["a", "b"])
    True
    """
    lines = sorted({value.encode() for value in values})
    return hashlib.sha256(b"".join(line + b"\n" for line in lines)).hexdigest()


def parse_values(content: bytes, origin: str) -> tuple[str, ...]:
    """The values of a file, one a line; empty lines and a byte order mark are left out.

    Raises DataError unless it is UTF-8 and holds at least one value of at most MAXIMUM_NAME
    characters a line.
    """
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{origin}: must be UTF-8, one value a line; byte {error.start} is not. Convert it."
        ) from error
    values = tuple(dict.fromkeys(line for line in text.replace("\r\n", "\n").split("\n") if line))
    longest = max(map(len, values), default=0)
    if not 1 <= longest <= MAXIMUM_NAME:
        raise DataError(
            f"{origin}: must hold values of 1 to {MAXIMUM_NAME} characters, one a line; the "
            f"longest has {longest}. Write one account, or one response id, a line."
        )
    return values
