"""Served logs in the shapes that APIs write, as the lines of JSON that our own log would hold.

Such a record holds text, and says beside it what a log must say: `marked`, and labels. Every turn
or choice of one record belongs to one conversation. Knows shapes and the log's fields; no key.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from provenance.errors import DataError
from provenance.storage.lines import LineReader, peek_record
from provenance.storage.shapes.convert import recognise
from provenance.storage.shapes.reading import RecordFile
from provenance.storage.shapes.requests import ReadAs, Requests
from provenance.storage.shapes.table import OURS

_OURS: Final = frozenset({"response_id", "token_ids", "drawn"})
_KEPT: Final = ("marked", "labels", "time", "finish", "keyring_id", "scheme")


class ShapedLines(LineReader):
    """Records of a file in a shape of docs/formats.md; iterate once, then `sha256` is the file's.

    Raises DataError as readers of outputs do, and for a record without a text that is no error of
    the API: a response that was served must not be lost.
    """

    def __iter__(self) -> Iterator[tuple[int, bytes]]:
        file = RecordFile(self.path, ReadAs(), Requests())
        number, before, turn = 0, "", 0
        for place, record in file:
            name = file.key or f"{self.path.name}: {place.removeprefix(f'{self.path}: ')}"
            turn, before = turn if place == before else 0, place
            for text in record.get("outputs", [record.get("output")]):
                number, turn = number + 1, turn + 1
                yield number, json.dumps(_as_response(record, text, name, turn)).encode() + b"\n"
        for reason, places in file.tally.places.items():
            if reason != "error":
                raise DataError(
                    f"{self.path}: {places[0]}: a served response must hold its text; this one "
                    f"holds none ({reason}). Give its token_ids in our own form."
                )
        self.sha256 = file.sha256


def is_shaped(path: Path) -> bool:
    """Whether the first record of a log has another shape than our own. Raises StorageError."""
    if not path.is_file():
        return False
    record = peek_record(path)
    if not record or _OURS & set(record):
        return False
    if "text" not in record and "response_id" not in record and {"output", "outputs"} & set(record):
        return True  # outputs of our own form, such as `generate --unmarked` writes
    return any(shape.name != OURS for shape in recognise(record))


def _as_response(record: Mapping[str, Any], text: str, name: str, turn: int) -> dict[str, Any]:
    """One text as a record of our log; `turn`: its number among those of this name before it."""
    kept = {field: record[field] for field in _KEPT if field in record}
    conversation = record.get("conversation_id", name)
    return {"response_id": f"{name}/{turn}", "conversation_id": conversation, "text": text, **kept}
