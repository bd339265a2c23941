"""Read the results of checks from their files: the one reader of verdict.json, in either version.

Whoever needs a number of a verdict takes it from the object that is read here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from provenance.check.looks.result import SequentialVerdict
from provenance.check.verdict import Verdict
from provenance.errors import StorageError
from provenance.storage.documents import refuse_malformed
from provenance.storage.files import parse_json, read_bytes

VERDICT_FILE: Final = "verdict.json"
SEQUENTIAL_FILE: Final = "sequential.json"


def read_verdict(source: Path | bytes, origin: str = VERDICT_FILE) -> Verdict:
    """The verdict of a file, or of its bytes under the name of their file.

    Raises StorageError; DataError unless it is a verdict of a schema version that this release
    knows, with every field and no other. See `Verdict.from_json` for what is not compared.
    """
    content = source if isinstance(source, bytes) else read_bytes(source)
    origin = origin if isinstance(source, bytes) else str(source)
    advice = "Make it with `provenance check -o`."
    document = parse_json(content, origin)
    with refuse_malformed(f"{origin}: must be a verdict of this format", advice):
        return Verdict.from_json(document)


def read_sequential(path: Path) -> SequentialVerdict:
    """The result of a sequential check from its file. Raises StorageError, DataError."""
    document = parse_json(read_bytes(path), str(path))
    advice = "Make it with `provenance check --sequential -o`."
    with refuse_malformed(f"{path}: must be the result of a sequential check", advice):
        return SequentialVerdict.from_json(document)


def read_result(folder: Path) -> Verdict | SequentialVerdict:
    """What a check wrote into a folder, of either kind.

    Raises StorageError if the folder holds none or both; DataError.
    """
    names = (VERDICT_FILE, SEQUENTIAL_FILE)
    found = [name for name in names if (folder / name).exists()]
    if len(found) != 1:
        raise StorageError(
            f"{folder}: must hold one of {' and '.join(names)}; it holds {len(found)}. "
            "Name the folder of `provenance check -o`."
        )
    path = folder / found[0]
    return read_verdict(path) if path.name == VERDICT_FILE else read_sequential(path)
