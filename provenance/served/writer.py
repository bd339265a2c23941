"""Writing a served log: a file that is whole under its name, and loses nothing of a killed process.

While it is written, a log is the file `NAME.part`: JSON lines, each handed whole to the operating
system. So a killed process leaves every finished record, and at most one line that does not end.
The rule for such a file is one: *what follows the last line break is no record*. Readers leave it
out (`served.json_lines`), and the next writer of the same name cuts it off and renames the rest to
`STEM.recovered-1.jsonl` before it starts anew. A log that is closed gets its final name.

Knows the fields of a record; no keys and no tokenizer.
"""

from __future__ import annotations

import base64
import fcntl
import io
import json
import os
import time as clock
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Protocol, Self, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.coins.contexts import MAXIMUM_VOCABULARY, check_token_ids
from provenance.errors import DataError, LockedError, StorageError, UsageError, say_briefly
from provenance.served.records import (
    MAXIMUM_TOKENS,
    SCHEMA,
    Finish,
    Labels,
    ServedResponse,
    check_labels,
    check_name,
    pack_drawn,
)
from provenance.storage.files import parse_json, sync_folder
from provenance.storage.lines import MAXIMUM_LINE

PART: Final = ".part"
"""Ending of the name of a log that no writer has closed."""
_SUFFIXES: Final = (".jsonl", ".parquet")
_SYNC_SECONDS: Final = 1.0
_GROUP_ROWS: Final = 4096
_FOR_PEOPLE: Final = ("keyring_id", "scheme", "request_id", "reason")
"""Fields of a record that readers of a log pass over."""
_PARQUET: Final = pa.schema(
    [*SCHEMA, *(pa.field(name, pa.string()) for name in ("text", *_FOR_PEOPLE))]
)


class Log(Protocol):
    """What a sink writes to: a file, a folder of files, or either in the background."""

    def __enter__(self) -> Self:
        """Open it."""

    def __exit__(self, *raised: Any) -> None:
        """Close it; what was appended is there."""

    def append(self, record: ServedResponse) -> None:
        """Append one record. Raises what the log says that it raises."""


class LogWriter:
    """Writes one new served log; use it as a context manager.

    Records go to `NAME.part` beside `path` (mode 0600). The file takes its final name when the
    block ends without an exception; a `.parquet` log is converted then. After an exception, or when
    the process is killed, every finished record stays in `NAME.part`, which readers accept; the
    next writer of the same path renames it to `STEM.recovered-1.jsonl` and starts anew.

    Records are handed to the operating system one by one, so they survive the process; they are
    forced to the disk once a second and at the end, so a machine that loses power may lose one
    second of them.

    Raises UsageError if `path` ends in neither .jsonl nor .parquet, StorageError if it exists or
    cannot be written, LockedError if another process is writing it.

    Attributes: records and bytes, finished so far; recovered, the log that a killed writer of this
    path had left, or None.

    Examples
    --------
    >>> import tempfile
    >>> path = Path(tempfile.mkdtemp()) / "served.jsonl"
    >>> with LogWriter(path) as log:
    ...     log.write("r1", labels={"week": "2026-W17"}, marked=True, token_ids=[5, 6, 7])
    >>> path.read_text()
    '{"response_id":"r1","marked":true,"labels":{"week":"2026-W17"},"token_ids":[5,6,7]}\\n'
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.suffix not in _SUFFIXES:
            raise UsageError(
                f"{path}: a served log must end in {' or '.join(_SUFFIXES)}. Choose another name."
            )
        self.records = 0
        self.bytes = 0
        self.recovered: Path | None = None
        self._part = self.path.with_name(self.path.name + PART)
        self._file: io.FileIO | None = None
        self._synced = 0.0

    def __enter__(self) -> LogWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
            if self.path.exists():
                self._drop()
                raise StorageError(
                    f"{self.path}: must not exist yet; it does. Choose another name."
                )
        except OSError as error:
            raise self._unwritable(error) from error
        self._synced = clock.monotonic()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._close(commit=kind is None)
        except (OSError, pa.ArrowException) as failure:
            raise self._unwritable(failure) from failure

    def write(self, response_id: str, *, labels: Labels, marked: bool, **fields: Any) -> None:
        """Append one response; `fields` are the others of `ServedResponse`. See `append`."""
        self.append(ServedResponse(response_id=response_id, labels=labels, marked=marked, **fields))

    def append(self, record: ServedResponse) -> None:
        """Append one record; when this returns, it survives the death of the process.

        Raises DataError if `read_log` would refuse the record, UsageError outside a `with` block,
        StorageError if the disk refuses, or if somebody took the file away: a record that is
        written to a file without a name is lost. Then nothing of the record is left.
        """
        if self._file is None:
            raise UsageError("a LogWriter must be open. Use it in a with statement.")
        self._refuse_vanished()
        line = memoryview(_to_line(record, self.path))
        try:
            written = 0
            while written < len(line):
                written += self._file.write(line[written:]) or 0
            if clock.monotonic() - self._synced > _SYNC_SECONDS:
                os.fsync(self._file.fileno())
                self._synced = clock.monotonic()
        except OSError as error:
            self._file.truncate(self.bytes)
            self._file.seek(self.bytes)
            raise self._unwritable(error) from error
        self.records += 1
        self.bytes += len(line)

    @property
    def is_there(self) -> bool:
        """Whether the file that is written still has its name: nobody removed or replaced it."""
        try:
            opened = None if self._file is None else os.fstat(self._file.fileno())
            return opened is not None and os.path.samestat(self._part.stat(), opened)
        except OSError:
            return False

    def abandon(self) -> None:
        """Close it without giving it a name."""
        file, self._file = self._file, None
        if file is not None:
            file.close()

    def _refuse_vanished(self) -> None:
        if not self.is_there:
            raise StorageError(
                f"{self._part}: a log must stay where it is until it is closed; it was taken away, "
                f"with {self.records} records. Put it back, or begin another."
            )

    def _open(self) -> io.FileIO:
        """The locked, empty part. The lock is on the file that still has the part's name."""
        while True:
            descriptor = os.open(self._part, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            file = os.fdopen(descriptor, "r+b", buffering=0)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise LockedError(
                    f"{self.path}: must have one writer at a time; another process writes it. "
                    "Wait until it ends."
                ) from error
            try:
                current = self._part.stat()
            except FileNotFoundError:
                current = None
            if current is not None and os.path.samestat(current, os.fstat(descriptor)):
                if not current.st_size:
                    return file
                self._recover(file)
            file.close()

    def _recover(self, file: io.FileIO) -> None:
        """Give what a killed writer finished a name of its own; drop the line that does not end."""
        end = _end_of_records(file)
        if not end:
            file.truncate(0)
            return
        file.truncate(end)
        os.fsync(file.fileno())
        number = 1
        while (kept := self.path.with_name(f"{self.path.stem}.recovered-{number}.jsonl")).exists():
            number += 1
        self._part.rename(kept)
        sync_folder(self.path.parent)
        self.recovered = kept

    def _close(self, commit: bool) -> None:
        """Give the log its name, or leave the part; the lock is held until then."""
        file = self._file
        if file is None:
            return
        if not (self.records or commit):
            self._drop()
            return
        self._file = None
        with file:
            os.fsync(file.fileno())
            if not commit:
                return
            if self.path.suffix == ".parquet":
                converted = self._part.with_name(f".{self.path.name}.converted")
                _convert(self._part, converted)
                converted.rename(self.path)
                self._part.unlink()
            else:
                self._part.rename(self.path)
            sync_folder(self.path.parent)

    def _drop(self) -> None:
        """Remove a part without a record."""
        file, self._file = self._file, None
        if file is not None:
            with file:
                self._part.unlink(missing_ok=True)

    def _unwritable(self, error: OSError | pa.ArrowException) -> StorageError:
        reason = getattr(error, "strerror", None) or say_briefly(error)
        return StorageError(
            f"{self.path}: must be writable; got: {reason}. "
            f"Choose another place or free some space. Finished records stay in {self._part.name}."
        )


def is_being_written(path: Path) -> bool:
    """True if a living process holds `path` (a part) open as its writer. Raises OSError."""
    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def _end_of_records(file: io.FileIO) -> int:
    """Bytes up to and with the last line break; 0 if there is none."""
    size = os.fstat(file.fileno()).st_size
    for start in range(max(size - 1, 0) // MAXIMUM_LINE * MAXIMUM_LINE, -1, -MAXIMUM_LINE):
        found = os.pread(file.fileno(), MAXIMUM_LINE, start).rfind(b"\n")
        if found >= 0:
            return start + found + 1
    return 0


def _convert(part: Path, target: Path) -> None:
    """Lines of a part -> Parquet (mode 0600), a row group of 4,096 records at a time."""
    target.touch(mode=0o600)
    with part.open("rb") as lines, pq.ParquetWriter(target, _PARQUET, compression="zstd") as out:
        rows: list[dict[str, Any]] = []
        for line in lines:
            row = parse_json(line, str(part))
            drawn = row.get("drawn")
            rows.append(
                {
                    **row,
                    "labels": sorted(row["labels"].items()),
                    "drawn": None if drawn is None else base64.b64decode(drawn),
                }
            )
            if len(rows) == _GROUP_ROWS:
                out.write_table(pa.Table.from_pylist(rows, schema=_PARQUET))
                rows = []
        out.write_table(pa.Table.from_pylist(rows, schema=_PARQUET))
    with target.open("rb") as written:
        os.fsync(written.fileno())


def _to_line(record: ServedResponse, path: Path) -> bytes:
    """A record as one line of JSON. Raises DataError if `read_log` would refuse it."""
    origin = f"{path}: response {record.response_id!r}"
    if record.token_ids is None and record.text is None:
        raise UsageError(f"{origin}: must have token_ids or text; both are missing. Pass one.")
    if record.marked is None:
        raise UsageError(
            f"{origin}: marked must be True or False in a log; it is None. Let a ResponseSink "
            "write the response: it finds out."
        )
    content = {
        "response_id": check_name(record.response_id, "response_id", origin),
        **{
            name: check_name(getattr(record, name), name, origin, optional=True)
            for name in ("time", "conversation_id", *_FOR_PEOPLE)
        },
        "marked": bool(record.marked),
        "labels": dict(check_labels(record.labels, origin)),
        "prompt_token_ids": _to_list(record.prompt_token_ids, "prompt_token_ids", origin),
        "token_ids": _to_list(record.token_ids, "token_ids", origin),
        "text": record.text,
        "drawn": _pack_drawn(record, origin),
        "finish": _check_finish(record, origin),
    }
    kept = {name: value for name, value in content.items() if value is not None}
    try:
        line = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    except UnicodeEncodeError as error:
        raise DataError(
            f"{origin}: must be Unicode text; got a lone surrogate. Repair the text."
        ) from error
    if len(line) >= MAXIMUM_LINE:
        raise DataError(f"{origin}: must be below {MAXIMUM_LINE} bytes; got {len(line)}.")
    return line + b"\n"


def _pack_drawn(record: ServedResponse, origin: str) -> str | None:
    if record.drawn is None:
        return None
    drawn = np.asarray(record.drawn)
    tokens = None if record.token_ids is None else np.asarray(record.token_ids).shape[0]
    if drawn.dtype != np.bool_ or drawn.shape != (tokens,):
        raise DataError(
            f"{origin}: drawn must be bool, one for each of token_ids; got {drawn.dtype} of "
            f"shape {drawn.shape} for {tokens} ids. Give the ids with the end token."
        )
    if bool(drawn.any()) != record.marked:
        raise DataError(
            f"{origin}: marked must say whether any token was drawn under a key; it says "
            f"{str(record.marked).lower()} of {int(drawn.sum())} drawn tokens."
        )
    return base64.b64encode(pack_drawn(drawn)).decode("ascii")


def _check_finish(record: ServedResponse, origin: str) -> str | None:
    if record.finish is not None and record.finish not in get_args(Finish):
        raise DataError(
            f"{origin}: finish must be one of {', '.join(get_args(Finish))}, or None; got "
            f"{record.finish!r}."
        )
    return record.finish


def _to_list(
    ids: Sequence[int] | NDArray[np.uint32] | None, field_name: str, origin: str
) -> list[int] | None:
    if ids is None:
        return None
    values = check_token_ids(np.asarray(ids), MAXIMUM_VOCABULARY, f"{origin}: {field_name}")
    if values.shape[0] > MAXIMUM_TOKENS:
        raise DataError(f"{origin}: {field_name} must be at most {MAXIMUM_TOKENS} ids; got more.")
    ids_as_list: list[int] = values.tolist()
    return ids_as_list
