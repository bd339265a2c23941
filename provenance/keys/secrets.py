"""Where a secret comes from: a private file or a command, never argv or the environment.

The environment may *name* a file (`PROVENANCE_KEY_FILE`) or a command (`PROVENANCE_KEY_CMD`); the
secret itself travels through neither. The same for the signing key of evidence, under names of its
own. No message of this module contains any byte of a secret.
"""

from __future__ import annotations

import os
import shlex
import stat
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from provenance.coins.words import KEY_BYTES
from provenance.errors import DataError, KeyPermissionError, StorageError, UsageError

FILE_VARIABLE = "PROVENANCE_KEY_FILE"
COMMAND_VARIABLE = "PROVENANCE_KEY_CMD"
_COMMAND_SECONDS = 60


@dataclass(frozen=True)
class SecretSource:
    """Names of the variables of one secret, and what to do if its default file is missing."""

    file_variable: str
    command_variable: str
    advice: str


MASTER: Final = SecretSource(FILE_VARIABLE, COMMAND_VARIABLE, "Pass the keyring's folder")
SIGNING: Final = SecretSource(
    "PROVENANCE_SIGNING_KEY_FILE", "PROVENANCE_SIGNING_KEY_CMD", "Pass --signing-key"
)


def read_master_secret(default: Path) -> bytes:
    """The 32-byte master secret; see `read_secret`."""
    return read_secret(default, MASTER)


def read_secret(default: Path | None, source: SecretSource) -> bytes:
    """A secret of 32 bytes.

    Taken from the command in the source's command variable (its stdout: 32 raw bytes or 64 hex
    digits), else from the file named by its file variable, else from `default`.

    Raises
    ------
    UsageError if both variables are set; KeyPermissionError if the file is a link, belongs to
    somebody else or can be read by others; StorageError if it cannot be read; DataError if it does
    not hold a key.
    """
    command = os.environ.get(source.command_variable)
    file = os.environ.get(source.file_variable)
    if command and file:
        raise UsageError(
            f"only one of {source.command_variable} and {source.file_variable} may be set; both "
            "are. Unset one."
        )
    if command:
        return _parse_printed(
            run_key_command(command, source.command_variable), source.command_variable
        )
    path = Path(file) if file else default
    if path is None:
        raise UsageError(
            f"a key must be named; none is. {source.advice} or set {source.file_variable}."
        )
    if file and not os.path.lexists(path):  # what stands there may be the secret itself
        raise StorageError(
            f"{source.file_variable} must name a file that can be read; there is none of that "
            f"name. {source.advice} or correct {source.file_variable}."
        )
    secret = read_private_file(path, KEY_BYTES, f"{source.advice} or set {source.file_variable}.")
    if len(secret) != KEY_BYTES:
        raise DataError(
            f"{path}: key file must hold exactly {KEY_BYTES} bytes; it does not. "
            "Restore it from your backup."
        )
    return secret


def read_private_file(path: Path, limit: int, advice: str = "Name the file of the key.") -> bytes:
    """The bytes of a file that only its owner, the current user, can read; one more than `limit`
    if it is longer.

    `advice` is what to do if the file cannot be read. Raises KeyPermissionError (77) or
    StorageError.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        if path.is_symlink():
            raise KeyPermissionError(
                f"{path}: key file must be a regular file; it is a symbolic link. "
                "Name the file itself."
            ) from error
        raise StorageError(
            f"{path}: key file must be readable; got: {error.strerror}. {advice}"
        ) from error
    try:
        _check_private(path, os.fstat(descriptor))
        with os.fdopen(os.dup(descriptor), "rb") as file:
            return file.read(limit + 1)
    finally:
        os.close(descriptor)


def _check_private(path: Path, status: os.stat_result) -> None:
    if not stat.S_ISREG(status.st_mode):
        raise KeyPermissionError(
            f"{path}: key file must be a regular file; it is not. Name the file itself."
        )
    if status.st_uid != os.geteuid():
        raise KeyPermissionError(
            f"{path}: key file must belong to the current user; its owner is uid {status.st_uid}. "
            "Copy it to a file of your own with mode 0600."
        )
    if status.st_mode & 0o077:
        raise KeyPermissionError(
            f"{path}: key file must have mode 0600; got {stat.S_IMODE(status.st_mode):04o}. "
            f"Run: chmod 600 {path}"
        )


def run_key_command(command: str, name: str) -> bytes:
    """What the command prints; `name` says in errors where it came from. Raises StorageError."""
    try:
        finished = subprocess.run(
            shlex.split(command),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=_COMMAND_SECONDS,
            check=False,
        )
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        raise StorageError(
            f"{name}: the command must run and end within {_COMMAND_SECONDS} s; "
            f"got {type(error).__name__}. Run it by hand."
        ) from None
    if finished.returncode != 0:
        raise StorageError(
            f"{name}: the command must exit 0; it exited {finished.returncode}. Run it by hand."
        )
    return finished.stdout


def _parse_printed(printed: bytes, name: str) -> bytes:
    if len(printed) == KEY_BYTES:
        return printed
    try:
        secret = bytes.fromhex(printed.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != KEY_BYTES:
        raise DataError(
            f"{name}: the command must print {KEY_BYTES} raw bytes or "
            f"{2 * KEY_BYTES} hex digits; it did not. Check its output."
        )
    return secret
