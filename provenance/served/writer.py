"""Writing a served log: a JSONL file that is either whole or absent.

Knows the fields of a record; no keys and no tokenizer.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray

from provenance.contexts import MAXIMUM_VOCABULARY, check_token_ids
from provenance.errors import DataError, LockedError, StorageError, UsageError
from provenance.files import sync_folder
from provenance.lines import MAXIMUM_LINE
from provenance.served.records import MAXIMUM_TOKENS, check_labels, check_name

__all__ = ["LogWriter"]


class LogWriter:
    """Writes one new served log; use it as a context manager.

    Records go to a hidden file beside `path` (mode 0600), which takes its final name when the block
    ends without an exception. After an exception nothing is left; a killed process leaves only the
    hidden file, and the next writer starts it anew.

    Raises UsageError if `path` does not end in .jsonl, StorageError if it exists or cannot be
    written, LockedError if another process is writing it.

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
        if self.path.suffix != ".jsonl":
            raise UsageError(f"{path}: a served log must end in .jsonl. Choose another name.")
        self._temporary = self.path.with_name(f".{self.path.name}.part")
        self._file: BinaryIO | None = None

    def __enter__(self) -> LogWriter:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._open()
            if self.path.exists():
                self._close(keep=False)
                raise StorageError(
                    f"{self.path}: must not exist yet; it does. Choose another name."
                )
        except OSError as error:
            raise self._unwritable(error) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._close(keep=kind is None)
        except OSError as failure:
            raise self._unwritable(failure) from failure

    def write(
        self,
        response_id: str,
        *,
        labels: Mapping[str, str],
        marked: bool,
        token_ids: Sequence[int] | NDArray[np.uint32] | None = None,
        text: str | None = None,
        time: str | None = None,
        prompt_token_ids: Sequence[int] | NDArray[np.uint32] | None = None,
        conversation_id: str | None = None,
    ) -> None:
        """Append one response.

        Parameters
        ----------
        response_id : unique in the whole log of the service
        labels : attribute values of the request
        marked : whether the response was really drawn under the keyring
        token_ids : ids of the response, without prompt; preferred to `text`
        text : the response as text; needed if `token_ids` is None
        time : when it was served, as the service writes times
        prompt_token_ids : ids of everything the model had seen before the response
        conversation_id : equal for all turns of one conversation, None for a single turn

        Raises DataError if `read_log` would refuse the record, UsageError outside a `with` block,
        StorageError if the disk refuses.
        """
        if self._file is None:
            raise UsageError("a LogWriter must be open. Use it in a with statement.")
        origin = f"{self.path}: response {response_id!r}"
        if token_ids is None and text is None:
            raise UsageError(f"{origin}: must have token_ids or text; both are missing. Pass one.")
        record = {
            "response_id": check_name(response_id, "response_id", origin),
            "time": check_name(time, "time", origin, optional=True),
            "conversation_id": check_name(
                conversation_id, "conversation_id", origin, optional=True
            ),
            "marked": bool(marked),
            "labels": dict(check_labels(labels, origin)),
            "prompt_token_ids": _to_list(prompt_token_ids, "prompt_token_ids", origin),
            "token_ids": _to_list(token_ids, "token_ids", origin),
            "text": text,
        }
        kept = {name: value for name, value in record.items() if value is not None}
        try:
            line = json.dumps(kept, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"{origin}: must be Unicode text; got a lone surrogate. Repair the text."
            ) from error
        if len(line) >= MAXIMUM_LINE:
            raise DataError(f"{origin}: must be below {MAXIMUM_LINE} bytes; got {len(line)}.")
        try:
            self._file.write(line + b"\n")
        except OSError as error:
            raise self._unwritable(error) from error

    def _open(self) -> BinaryIO:
        """The locked, empty hidden file. The lock is on the file that still has the hidden name."""
        while True:
            descriptor = os.open(self._temporary, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW, 0o600)
            file = os.fdopen(descriptor, "wb")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                file.close()
                raise LockedError(
                    f"{self.path}: must have one writer at a time; another process writes it. "
                    "Wait until it ends."
                ) from error
            try:
                current = self._temporary.stat()
            except FileNotFoundError:
                current = None
            if current is not None and os.path.samestat(current, os.fstat(descriptor)):
                file.truncate(0)
                return file
            file.close()

    def _close(self, keep: bool) -> None:
        """Commit or drop; the lock is held until the hidden name is gone."""
        file, self._file = self._file, None
        if file is None:
            return
        with file:
            if not keep:
                self._temporary.unlink(missing_ok=True)
                return
            try:
                file.flush()
                os.fsync(file.fileno())
                self._temporary.rename(self.path)
            except OSError:
                self._temporary.unlink(missing_ok=True)
                raise
            sync_folder(self.path.parent)

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.path}: must be writable; got: {error.strerror or error}. "
            "Choose another place or free some space."
        )


def _to_list(
    ids: Sequence[int] | NDArray[np.uint32] | None, field: str, origin: str
) -> list[int] | None:
    if ids is None:
        return None
    values = check_token_ids(np.asarray(ids), MAXIMUM_VOCABULARY, f"{origin}: {field}")
    if values.shape[0] > MAXIMUM_TOKENS:
        raise DataError(f"{origin}: {field} must be at most {MAXIMUM_TOKENS} ids; got more.")
    ids_as_list: list[int] = values.tolist()
    return ids_as_list
