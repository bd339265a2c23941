"""Served logs in JSONL, plain or compressed with gzip or zstd, read as a stream.

Nothing of the file is trusted: lines come through `lines`, JSON is strict, and every
value is checked. Does not know tokenizers or keys.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from provenance.coins.contexts import check_token_ids
from provenance.errors import DataError
from provenance.served.records import (
    LABELS,
    MAXIMUM_TOKENS,
    MAXIMUM_VALUES,
    RawBatch,
    check_drawn,
    check_labels,
    check_name,
    list_array,
)
from provenance.served.shaped_log import ShapedLines, is_shaped
from provenance.served.writer import PART
from provenance.storage.files import parse_json
from provenance.storage.lines import open_lines

LOG_READERS: Final = "provenance.log_readers"
"""Group of the entry points that read logs in other forms: path -> records as in our JSONL."""


class JsonLinesFile:
    """One JSONL file; iterate once, then `sha256` holds the digest of the bytes that were read.

    In a part (the file of a writer that was killed) what follows the last line break is no record:
    it is left out, and `torn` is 1. In every other file each line must be a record.

    Raises DataError naming file and line, or StorageError. Cost: about 3 M token ids per second;
    memory: one batch.
    """

    def __init__(self, path: Path, vocabulary_size: int, batch_rows: int) -> None:
        self.path = path
        self._lines = ShapedLines(path) if is_shaped(path) else open_lines(path, LOG_READERS)
        self._vocabulary_size = vocabulary_size
        self._batch_rows = batch_rows
        self.torn = 0

    @property
    def sha256(self) -> str:
        """Hex digest of the file; empty until it was read to its end."""
        return self._lines.sha256

    def __iter__(self) -> Iterator[RawBatch]:
        records = _Records(self.path, 1)
        for _, line in self._lines:
            if self.path.suffix == PART and not line.endswith(b"\n"):
                self.torn = 1
                continue
            records.add(line, self._vocabulary_size)
            if len(records) >= self._batch_rows or records.values >= MAXIMUM_VALUES:
                yield records.close()
                records = _Records(self.path, records.next_line)
        if len(records):
            yield records.close()


class _Records:
    """Columns of the batch that is being filled."""

    def __init__(self, path: Path, first: int) -> None:
        self._path = path
        self._first = first
        self._columns: dict[str, list[Any]] = {
            name: []
            for name in (
                *("response_id", "marked", "labels", "text", "conversation_id", "time"),
                *("drawn", "finish"),
            )
        }
        self._ids: list[NDArray[np.uint32] | None] = []
        self._prompts: list[NDArray[np.uint32] | None] = []
        self.values = 0

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def next_line(self) -> int:
        return self._first + len(self)

    def add(self, line: bytes, vocabulary_size: int) -> None:
        origin = f"{self._path}: line {self.next_line}"
        if not line.strip():
            raise DataError(f"{origin}: must hold a record; it is empty. Remove the line.")
        record = parse_json(line, origin)
        if not isinstance(record, dict):
            raise DataError(f"{origin}: must be a JSON object. Write one record per line.")
        marked, text = record.get("marked"), record.get("text")
        if not isinstance(marked, bool):
            raise DataError(
                f"{origin}: marked must be true or false: was this response really served with "
                "the mark? Add it to the record."
            )
        if not (text is None or isinstance(text, str)):
            raise DataError(f"{origin}: text must be a string or null. Repair the record.")
        ids = _read_ids(record.get("token_ids"), "token_ids", vocabulary_size, origin)
        prompt = _read_ids(
            record.get("prompt_token_ids"), "prompt_token_ids", vocabulary_size, origin
        )
        if ids is None and text is None:
            raise DataError(f"{origin}: must hold token_ids or text; both are missing. Add one.")
        columns = self._columns
        columns["response_id"].append(check_name(record.get("response_id"), "response_id", origin))
        columns["marked"].append(marked)
        columns["labels"].append(check_labels(record.get("labels"), origin))
        columns["text"].append(text if ids is None else None)
        columns["drawn"].append(_read_bits(record.get("drawn"), origin))
        for name in ("conversation_id", "time", "finish"):
            columns[name].append(check_name(record.get(name), name, origin, optional=True))
        self._ids.append(ids)
        self._prompts.append(prompt)
        self.values += sum(part.shape[0] for part in (ids, prompt) if part is not None)
        self.values += len(text) // 4 if ids is None and text else 0

    def close(self) -> RawBatch:
        columns = self._columns
        lengths = [-1 if ids is None else ids.shape[0] for ids in self._ids]
        drawn = pa.array(columns["drawn"], pa.binary())
        check_drawn(
            drawn,
            np.array(lengths, dtype=np.int64),
            np.array(columns["marked"], dtype=np.bool_),
            lambda row: f"{self._path}: line {self._first + row}",
        )
        batch = pa.record_batch(
            {
                "response_id": pa.array(columns["response_id"], pa.string()),
                "marked": pa.array(columns["marked"], pa.bool_()),
                "labels": pa.array(columns["labels"], LABELS),
                "token_ids": list_array(self._ids),
                "prompt_token_ids": list_array(self._prompts),
                "conversation_id": pa.array(columns["conversation_id"], pa.string()),
                "time": pa.array(columns["time"], pa.string()),
                "drawn": drawn,
                "finish": pa.array(columns["finish"], pa.string()),
                "text": pa.array(columns["text"], pa.string()),
            }
        )
        return RawBatch(batch, self._path, "line", self._first)


def _read_bits(value: Any, origin: str) -> bytes | None:
    """The packed bits of `drawn`, written in base64."""
    if value is None:
        return None
    try:
        return base64.b64decode(value, validate=True)
    except (binascii.Error, ValueError, TypeError) as error:
        raise DataError(
            f"{origin}: drawn must be a string in base64, a bit for each of the token_ids; it is "
            "not. Repair the record."
        ) from error


def _read_ids(
    value: Any, field: str, vocabulary_size: int, origin: str
) -> NDArray[np.uint32] | None:
    """Token ids of one record; True, 1.0 and nested lists are no token ids."""
    if value is None:
        return None
    origin = f"{origin}: {field}"
    if not isinstance(value, list) or not set(map(type, value)) <= {int}:
        raise DataError(f"{origin}: token ids must be a flat list of integers. Repair the record.")
    if len(value) > MAXIMUM_TOKENS:
        raise DataError(f"{origin}: must be at most {MAXIMUM_TOKENS} ids; got {len(value)}.")
    return check_token_ids(value, vocabulary_size, origin)
