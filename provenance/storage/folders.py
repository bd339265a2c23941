"""Folders that are either as before or as after.

Knows paths; knows nothing of what the folders hold.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from provenance.errors import StorageError
from provenance.storage.files import lock_folder, real_path, sync_folder

_HERE: Final = -100
"""AT_FDCWD: paths as they are."""
_EXCHANGE: Final = 2
"""RENAME_EXCHANGE of renameat2(2)."""
_NOT_HERE: Final = (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP)


@contextmanager
def replace_folder(folder: Path, check: Callable[[Path], object]) -> Iterator[Path]:
    """An empty folder to fill, which takes the place of `folder` in one step when the body ends.

    Parameters: a folder whose lock the caller holds; what raises if the leftover of a killed run
    must stay. If the body raises, `folder` stays as it is. A process that is killed leaves the old
    content or the new one, and `.NAME.replacement` beside it, which the next run removes.

    Raises StorageError. On file systems that cannot exchange two names it takes two steps.
    """
    place = real_path(folder)
    new = place.with_name(f".{place.name}.replacement")
    try:
        _clear(new, check)
        new.mkdir(mode=0o700)
        try:
            with lock_folder(new):
                yield new
                new.chmod(place.stat().st_mode & 0o7777)
                _exchange(place, new)
                sync_folder(place.parent)
                shutil.rmtree(new)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    except OSError as error:
        raise StorageError(
            f"{folder}: must be replaceable, in a folder that can be written; got: "
            f"{error.strerror or error}. Choose another folder."
        ) from error


def copy_file(source: Path, target: Path) -> None:
    """Give a file that is never written in place another name; a copy where that cannot be."""
    try:
        os.link(source, target, follow_symlinks=False)
    except OSError:
        shutil.copy2(source, target, follow_symlinks=False)
        with target.open("rb") as file:
            os.fsync(file.fileno())


def _clear(new: Path, check: Callable[[Path], object]) -> None:
    if new.is_symlink() or (new.exists() and not new.is_dir()):
        new.unlink()
    elif new.exists():
        check(new)
        shutil.rmtree(new)


def _exchange(one: Path, other: Path) -> None:
    """Let two folders of one file system change their names. Raises OSError."""
    try:
        call = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        code = errno.ENOSYS
    else:
        done = call(_HERE, os.fsencode(one), _HERE, os.fsencode(other), _EXCHANGE)
        code = ctypes.get_errno() if done else 0
    if code in _NOT_HERE:
        aside = other.with_name(f"{other.name}.aside")
        one.rename(aside)
        try:
            other.rename(one)
        except OSError:
            aside.rename(one)
            raise
        aside.rename(other)
    elif code:
        raise OSError(code, os.strerror(code), str(one))
