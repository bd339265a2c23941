"""Files that are either whole or absent, and JSON that means exactly one thing.

Knows paths and bytes; knows nothing of keys, logs or verdicts. Every artefact of the package is
written through `write_atomically` (temporary file, fsync, rename, fsync of the folder), so a killed
run leaves nothing half-written under a final name.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import io
import json
import os
import re
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import rfc8785

from provenance.errors import DataError, LockedError, StorageError, UsageError
from provenance.storage.formats import FORMAT_BYTES, advise, name_format

_MAXIMUM_JSON_BYTES = 1 << 28
_BLOCK = 1 << 20
_LOCK_FLAGS = os.O_CREAT | os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
"""A `.lock` that is a link would create what it points to."""
_DISK_ERRORS = (errno.EIO, errno.ESTALE, errno.EREMOTEIO)
_LEFTOVER = re.compile(r"\.(?P<name>.+)\.[a-z0-9_]{8}")
"""As `tempfile.mkstemp` names what `write_atomically` has not finished."""


Paths = str | os.PathLike[str] | Sequence[str | os.PathLike[str]]
"""One file or folder, or several."""


def canonical_json(value: object) -> bytes:
    """One byte string per value: sorted keys, no spaces, ASCII, no NaN (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def interchange_json(value: Any) -> bytes:
    """The byte string of RFC 8785 (JSON Canonicalization Scheme), for what others must reproduce.

    Raises ValueError for a NaN, an infinity or an integer beyond 2**53. `canonical_json` differs in
    how it writes some floats and everything beyond ASCII; keys were derived with it, so it stays.

    >>> interchange_json({"b": 1e-7, "a": "\u00e9"}).decode()
    '{"a":"é","b":1e-7}'
    """
    return rfc8785.dumps(value)


def parse_json(text: bytes | str, origin: str, *, cut_characters: bool = False) -> Any:
    """Parse JSON strictly: UTF-8, no NaN or Infinity, no duplicate keys, no lone surrogates.

    `origin` names the place (file, or file and line) in the one-line DataError. `cut_characters`:
    lone surrogates are let through, for a caller who asks `has_cut_character`.
    """
    try:
        if isinstance(text, bytes):
            text = text.decode("utf-8")
        value = json.loads(
            text, parse_constant=_refuse_constant, object_pairs_hook=_refuse_duplicates
        )
        if "\\u" in text and not cut_characters:
            json.dumps(value, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        start = text[:FORMAT_BYTES]
        name = name_format(start if isinstance(start, bytes) else start.encode(errors="replace"))
        if name is not None:
            raise DataError(f"{origin}: this is {name}. {advise(name)}.") from error
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise DataError(
            f"{origin}: must be strict JSON in UTF-8; got: {reason}. Repair the file and run again."
        ) from error
    return value


def has_cut_character(value: Any) -> bool:
    """Whether half of a character stands somewhere in a value: a lone surrogate."""
    try:
        json.dumps(value, ensure_ascii=False).encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def open_file(path: Path | str) -> io.FileIO:
    """A regular file to read from, unbuffered. Raises StorageError, also for a pipe or a device.

    Never waits: a pipe that nobody writes to would be read for ever.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        mode = os.fstat(descriptor).st_mode
        if stat.S_ISREG(mode):
            return io.FileIO(descriptor, "r")
        os.close(descriptor)
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
    except OSError as error:
        raise unreadable(path, error) from error
    raise StorageError(
        f"{path}: must be a regular file; it is a pipe or a device. Write what it gives to a file."
    )


def unreadable(path: Path | str, error: OSError) -> StorageError:
    """The error of a file that cannot be read."""
    found = error.strerror or error
    return StorageError(f"{path}: must be a readable file; got: {found}. Check the path.")


def is_of_disk(error: BaseException | None) -> bool:
    """Whether an error, or what it came from, is that of a failing disk.

    Then nothing is known of the content: it is neither malformed nor missing.
    """
    while error is not None:
        if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
            return True
        error = error.__cause__
    return False


def read_bytes(path: Path | str, limit: int = _MAXIMUM_JSON_BYTES) -> bytes:
    """Whole content of a file of at most `limit` bytes. Raises StorageError or DataError."""
    parts, size = [], 0
    with open_file(path) as file:
        try:
            # not read(limit + 1), which would take memory for all of the limit at once
            while size <= limit and (block := file.read(min(limit + 1 - size, _BLOCK))):
                parts.append(block)
                size += len(block)
        except OSError as error:
            raise unreadable(path, error) from error
    if size > limit:
        raise DataError(f"{path}: must be at most {limit} bytes; it is larger. Split the file.")
    return b"".join(parts)


def read_json(path: Path | str) -> Any:
    """Read and parse one strict JSON document. Raises StorageError or DataError."""
    return parse_json(read_bytes(path), str(path))


def name_files(paths: Sequence[Path]) -> list[str]:
    """Names that tell files apart and do not say where they lie: without the folder they share.

    A verdict on the same files is then the same wherever they were copied to.

    >>> name_files([Path("/tmp/a/answers.jsonl")])
    ['answers.jsonl']
    >>> name_files([Path("/tmp/a/answers.jsonl"), Path("/tmp/b/answers.jsonl")])
    ['a/answers.jsonl', 'b/answers.jsonl']
    """
    full = [path.absolute() for path in paths]
    shared = Path(os.path.commonpath([path.parent for path in full])) if full else Path()
    return [plain_name(path.relative_to(shared).as_posix()) for path in full]


def sha256_of_file(path: Path | str) -> str:
    """Hex SHA-256 of a file, streamed. Raises StorageError."""
    digest = hashlib.sha256()
    with open_file(path) as file:
        try:
            while block := file.read(_BLOCK):
                digest.update(block)
        except OSError as error:
            raise unreadable(path, error) from error
    return digest.hexdigest()


def sha256_of_files(paths: Sequence[Path]) -> dict[str, str]:
    """`sha256_of_file` of each, by the names of `name_files`."""
    return {name: sha256_of_file(path) for name, path in zip(name_files(paths), paths, strict=True)}


def write_json(path: Path | str, value: object, mode: int = 0o644) -> None:
    """Write one indented JSON document atomically. Raises StorageError."""
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False, sort_keys=True)
    write_atomically(path, text.encode("utf-8") + b"\n", mode)


def write_atomically(path: Path | str, content: bytes, mode: int = 0o644) -> None:
    """Write `content` so that `path` holds either the old or the new bytes, never a part.

    Raises StorageError; the temporary file is removed on failure.
    """
    with open_atomically(path, mode) as file:
        file.write(content)


@contextmanager
def open_atomically(path: Path | str, mode: int = 0o644) -> Iterator[BinaryIO]:
    """A file to write, which takes the name `path` when the body ends; see `write_atomically`.

    What killed writers of the same file left is removed: it may hold a secret. Raises StorageError,
    also for an OSError of the body.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(path)
        descriptor, temporary = _create_beside(path)
        with os.fdopen(descriptor, "wb") as file:
            os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())
            Path(temporary).replace(path)
        temporary = None
        sync_folder(path.parent)
    except OSError as error:
        raise StorageError(
            f"{path}: must be writable; got: {error.strerror}. "
            "Choose another place or free some space."
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)


def _create_beside(path: Path) -> tuple[int, str]:
    """Descriptor and name of a temporary file, locked as long as its writer lives."""
    while True:
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with suppress(OSError):  # a file system without locks: there, leftovers stay
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if os.fstat(descriptor).st_nlink:
            return descriptor, temporary
        os.close(descriptor)  # another writer took it for a leftover before it was locked


def _remove_leftovers(path: Path) -> None:
    """Remove temporary files of this file that no living process writes."""
    for entry in os.scandir(path.parent):
        if name_of_leftover(entry.name) != path.name or not entry.is_file(follow_symlinks=False):
            continue
        with suppress(OSError):
            descriptor = os.open(entry.path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                Path(entry.path).unlink()
            finally:
                os.close(descriptor)


Stamp = tuple[int, int, int]


def read_stamp(path: Path) -> Stamp | None:
    """What changes when a file is replaced or written; None if it cannot be looked at."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


@contextmanager
def unchanging(paths: Iterable[Path]) -> Iterator[None]:
    """Raise DataError if one of these files is another one when the body ends.

    For a file that is hashed and read, or read several times: what is said of its hash must hold of
    what was read. What the body raises passes through.
    """
    before = {path: read_stamp(path) for path in paths}
    yield
    for path, stamp in before.items():
        if read_stamp(path) != stamp:
            raise DataError(
                f"{path}: must stay as it is while it is read; it has changed. Wait until its "
                "writer has closed it, or read a copy."
            )


def name_of_leftover(name: str) -> str | None:
    """Name of the file that a killed `write_atomically` was writing; None for any other file.

    Such a file holds nothing that anybody was told of: whoever owns the folder may remove it.

    >>> name_of_leftover(".verdict.json.k3x_9a2b"), name_of_leftover("verdict.json")
    ('verdict.json', None)
    """
    found = _LEFTOVER.fullmatch(name)
    return found and found["name"]


@contextmanager
def lock_folder(folder: Path | str, wait: float = 0.0) -> Iterator[None]:
    """Hold the only writer's lock on a folder; the second writer gets a LockedError.

    `wait`: seconds that it waits first, for folders whose lock is held for moments.
    """
    folder = Path(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(folder / ".lock", _LOCK_FLAGS, 0o600)
    except OSError as error:
        raise StorageError(
            f"{folder}: must be a writable folder; got: {error.strerror}. Choose another place."
        ) from error
    try:
        _lock(descriptor, folder, time.monotonic() + wait)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, folder: Path, until: float) -> None:
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if time.monotonic() >= until:
                raise LockedError(
                    f"{folder}: must have one writer at a time; another process holds its lock. "
                    "Wait until it ends."
                ) from error
            time.sleep(0.02)
        else:
            return


def sync_folder(folder: Path) -> None:
    """fsync a folder, so that a rename inside it survives a crash. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"the constant {name}")


def _refuse_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("an object with a duplicate key")
    return value


def real_path(path: Path) -> Path:
    """Where a path leads; StorageError for links that lead in a circle."""
    try:
        return path.resolve()
    except (OSError, RuntimeError) as error:  # Python before 3.13: RuntimeError
        raise StorageError(
            f"{path}: must lead to a file; its links lead in a circle. Name the file itself."
        ) from error


def plain_name(text: str) -> str:
    r"""The name of a file as text that any document can hold: bytes beyond UTF-8 as escapes.

    >>> plain_name("week\udcff.jsonl")
    'week\\xff.jsonl'
    """
    return os.fsencode(text).decode("utf-8", "backslashreplace")


def as_path(given: object, what: str) -> Path:
    """A path from a str or a path. Raises UsageError for anything else, and for an empty one."""
    if isinstance(given, (str, os.PathLike)) and str(given):
        return Path(given)
    raise UsageError(f"{what} must be a path; got {name_of(given)}. Give a str or a Path.")


def as_paths(given: object, what: str) -> tuple[Path, ...]:
    """Paths from one path or from several; None is none. Raises UsageError.

    >>> as_paths("outputs.jsonl", "outputs")
    (PosixPath('outputs.jsonl'),)
    """
    if given is None:
        return ()
    if isinstance(given, (str, os.PathLike)):
        return (as_path(given, what),)
    if isinstance(given, (bytes, dict)) or not isinstance(given, Iterable):
        raise UsageError(
            f"{what} must be a path or several; got {name_of(given)}. Give a str, a Path or a list."
        )
    return tuple(as_path(one, what) for one in given)


def name_of(given: object) -> str:
    """What a caller handed over, for an error: `a list`, `an empty str`."""
    kind = type(given).__name__
    return f"an empty {kind}" if given == "" else f"a{'n' if kind[0] in 'aeiou' else ''} {kind}"
