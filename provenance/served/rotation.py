"""A served log as a folder of numbered files, for a service that never stops.

    with RotatingLog("served/") as log:
        log.append(ServedResponse("r1", marked=True, token_ids=[5, 6, 7]))

`STEM-00000.jsonl`, `STEM-00001.jsonl`, ...: a file is closed when it holds enough rows or bytes.
Each is a `LogWriter`, so a killed process leaves every finished record. Several processes may write
into one folder: each has files of its own. `list_log_files` names what a reader takes.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Literal

from provenance.errors import LockedError, StorageError, UsageError
from provenance.served.records import ServedResponse
from provenance.served.writer import PART, LogWriter, is_being_written
from provenance.storage.lines import COMPRESSIONS

LOG_ENDINGS: Final = (
    ".jsonl",
    *(f".jsonl{suffix}" for suffix in COMPRESSIONS),
    ".parquet",
    f".jsonl{PART}",
    f".parquet{PART}",
)
"""Endings of the names of a log's files."""
_MAXIMUM_ROWS: Final = 100_000
_MAXIMUM_BYTES: Final = 1 << 28


class RotatingLog:
    """Writes a folder of served logs; use it as a context manager. Safe to share among threads.

    Parameters
    ----------
    folder : made if it is missing
    form : what a closed file is
    maximum_rows, maximum_bytes : a file that holds as much (as JSON lines) is closed
    stem : how the names of the files begin

    Raises UsageError for the arguments, and what `LogWriter` raises.
    """

    def __init__(
        self,
        folder: Path | str,
        *,
        form: Literal["jsonl", "parquet"] = "jsonl",
        maximum_rows: int = _MAXIMUM_ROWS,
        maximum_bytes: int = _MAXIMUM_BYTES,
        stem: str = "served",
    ) -> None:
        if form not in ("jsonl", "parquet"):
            raise UsageError(f"form must be jsonl or parquet; got {form!r}.")
        if maximum_rows < 1 or maximum_bytes < 1:
            raise UsageError(
                f"maximum_rows and maximum_bytes must be at least 1; got {maximum_rows} and "
                f"{maximum_bytes}."
            )
        self.folder = Path(folder)
        self._form, self._stem = form, stem
        self._rows, self._bytes = maximum_rows, maximum_bytes
        self._writer: LogWriter | None = None
        self._open = False
        self._lock = threading.Lock()

    def __enter__(self) -> RotatingLog:
        place = next(
            path for path in (self.folder, *self.folder.absolute().parents) if path.exists()
        )
        if not (place.is_dir() and os.access(place, os.W_OK | os.X_OK)):
            # a service should learn it before its first response
            raise StorageError(
                f"{self.folder}: must be a folder that can be written; it is not. Name another one."
            )
        self._open = True
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._open = False
            self._finish()

    def append(self, record: ServedResponse) -> None:
        """Append one record; see `LogWriter.append`. A record that is refused changes nothing.

        After a file that was taken away, which is said once, the next record begins another.
        """
        with self._lock:
            if not self._open:
                raise UsageError("a RotatingLog must be open. Use it in a with statement.")
            if self._writer is None:
                self._writer = self._start()
            try:
                self._writer.append(record)
            except StorageError:
                if not self._writer.is_there:
                    self._writer.abandon()
                    self._writer = None
                raise
            if self._writer.records >= self._rows or self._writer.bytes >= self._bytes:
                self._finish()

    def _start(self) -> LogWriter:
        """The writer of the first number that nobody uses."""
        number = 1 + max((self._number(path) for path in self._files()), default=-1)
        while True:
            path = self.folder / f"{self._stem}-{number:05d}.{self._form}"
            try:
                return LogWriter(path).__enter__()
            except LockedError:
                number += 1
            except StorageError:
                if not path.exists():
                    raise
                number += 1

    def _finish(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None:
            # without a record, since the disk refused the first, it gets no name: readers refuse it
            writer.__exit__(None if writer.records else StorageError, None, None)

    def _files(self) -> list[Path]:
        return list(self.folder.glob(f"{self._stem}-*")) if self.folder.is_dir() else []

    def _number(self, path: Path) -> int:
        digits = path.name.removeprefix(f"{self._stem}-").partition(".")[0]
        return int(digits) if digits.isdecimal() else -1


def list_log_files(paths: Sequence[Path | str]) -> list[Path]:
    """Replace each folder by the files of the log in it, in the order of their names.

    A part that a living process writes, or that holds no finished record, is left out; a part of a
    killed process is taken. Raises StorageError for a folder without any file of a log.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            found.append(path)
            continue
        files = sorted(entry for entry in path.iterdir() if entry.name.endswith(LOG_ENDINGS))
        files = [file for file in files if not file.name.endswith(PART) or _is_readable(file)]
        if not files:
            raise StorageError(f"{path}: must hold files of a log; it holds none. Name the files.")
        found += files
    return found


def _is_readable(part: Path) -> bool:
    try:
        if not part.is_file() or is_being_written(part):
            return False
        with part.open("rb") as file:
            return any(b"\n" in block for block in iter(lambda: file.read(1 << 20), b""))
    except FileNotFoundError:  # its writer closed it meanwhile
        return False
