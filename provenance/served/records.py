"""What one record of a served log may say, whatever file it stands in.

Checks names, labels and sizes, and defines the intermediate batch that the JSONL and the Parquet
reader hand to `provenance.served.log`. Does not know files, tokenizers or keys.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from provenance.errors import DataError

__all__ = [
    "LABELS",
    "MAXIMUM_NAME",
    "MAXIMUM_TOKENS",
    "MAXIMUM_VALUES",
    "SCHEMA",
    "TOKENS",
    "RawBatch",
    "check_labels",
    "check_name",
    "list_array",
]

LABELS = pa.map_(pa.string(), pa.string())
TOKENS = pa.list_(pa.field("item", pa.uint32(), nullable=False))

SCHEMA = pa.schema(
    [
        pa.field("response_id", pa.string(), nullable=False),
        pa.field("marked", pa.bool_(), nullable=False),
        pa.field("labels", LABELS, nullable=False),
        pa.field("token_ids", TOKENS, nullable=False),
        pa.field("prompt_token_ids", TOKENS),
        pa.field("conversation_id", pa.string()),
        pa.field("time", pa.string()),
    ]
)
"""Record batches of a served log; one row is one response."""

MAXIMUM_NAME = 1024
"""Characters of an identifier, a time, or the name or value of a label."""
MAXIMUM_TOKENS = 1 << 22
"""Token ids of one response or prompt."""
MAXIMUM_VALUES = 1 << 20
"""A batch is closed as soon as it holds this many token ids, so a batch fits in memory."""
_MAXIMUM_LABELS = 256


@dataclass(frozen=True)
class RawBatch:
    """Checked records of one file, before duplicates are dropped and text is tokenised.

    `batch` has the columns of SCHEMA (token_ids may be null) and `text`. Row i stands at
    `unit` number `first + i` of `path`, counted from 1.
    """

    batch: pa.RecordBatch
    path: Path
    unit: str
    first: int

    def origin(self, row: int) -> str:
        """Where a row came from, for messages."""
        return f"{self.path}: {self.unit} {self.first + row}"


def check_name(value: Any, field: str, origin: str, optional: bool = False) -> str | None:
    """An identifier: a string of 1 .. MAXIMUM_NAME characters, or None where that is allowed."""
    if value is None and optional:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= MAXIMUM_NAME:
        raise DataError(
            f"{origin}: {field} must be a string of 1 to {MAXIMUM_NAME} characters"
            f"{' or null' if optional else ''}; got {_show(value)}. Repair the record."
        )
    return value


def check_labels(value: Any, origin: str) -> list[tuple[str, str]]:
    """Labels as pairs sorted by name; `value` is a mapping of strings to strings, or None."""
    if value is None:
        return []
    if not isinstance(value, Mapping) or not all(
        isinstance(part, str) for pair in value.items() for part in pair
    ):
        raise DataError(
            f"{origin}: labels must map names to strings; got {_show(value)}. Repair the record."
        )
    if len(value) > _MAXIMUM_LABELS or any(
        len(part) > MAXIMUM_NAME for pair in value.items() for part in pair
    ):
        raise DataError(
            f"{origin}: labels must be at most {_MAXIMUM_LABELS} pairs of strings of at most "
            f"{MAXIMUM_NAME} characters; got more. Repair the record."
        )
    return sorted(value.items())


def list_array(parts: Iterable[NDArray[np.uint32] | None]) -> pa.Array:
    """Token ids of many responses as one Arrow list column; None becomes null."""
    kept = list(parts)
    missing = np.array([part is None for part in kept], dtype=np.bool_)
    filled = [part for part in kept if part is not None]
    lengths = [0 if part is None else part.shape[0] for part in kept]
    offsets = np.zeros(len(kept) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = np.concatenate(filled) if filled else np.empty(0, dtype=np.uint32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values), type=TOKENS, mask=pa.array(missing)
    )


def _show(value: Any) -> str:
    """A short, printable picture of a value from a file."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
