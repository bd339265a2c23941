"""The folder for what does not fit into memory while an index is made: where, how much, how long.

It lies inside the index's folder, so on the same volume, unless another place is named. It is
removed when the work is done or refused; what a killed run left there is found by the next one.
Knows folders and bytes only.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from provenance.errors import StorageError
from provenance.storage.files import real_path

_NAME: Final = ".spill"


def place_of(folder: Path, spill: Path | None) -> Path:
    """Where the work on an index is: the same for the same folders, so that it can be resumed."""
    if spill is None:
        return folder / _NAME
    name = hashlib.sha256(os.fsencode(real_path(folder))).hexdigest()[:16]
    return spill / f".provenance-{name}{_NAME}"


@contextmanager
def open_workplace(folder: Path, spill: Path | None, need: int) -> Iterator[Path]:
    """Make the folder, mode 0700, and remove it with all that is in it.

    It stays only if the process is killed or interrupted. Parameters: folder of the index, whose
    lock the caller holds; folder that was named for spilling; bytes that will be needed there.

    Raises StorageError if it cannot be written, or if the volume has less room than is needed.
    """
    place = place_of(folder, spill)
    try:
        place.mkdir(mode=0o700, exist_ok=True)
        if place.is_symlink() or not place.is_dir():
            raise StorageError(f"{place}: must be a folder of our own; it is not. Remove it.")
        free = shutil.disk_usage(place).free + sum(
            path.stat().st_size for path in place.rglob("*") if path.is_file()
        )
    except OSError as error:
        raise StorageError(
            f"{place}: must be writable; got: {error.strerror}. Name another folder with --spill."
        ) from error
    try:
        if free < need:
            raise StorageError(
                f"{place}: must have room for about {_say(need)} while the index is made; there "
                f"is {_say(free)}. Free some space, or name a folder on another volume with "
                "--spill."
            )
        yield place
    except Exception:
        shutil.rmtree(place, ignore_errors=True)
        raise
    shutil.rmtree(place, ignore_errors=True)


def _say(size: int) -> str:
    """Bytes for people."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6)):
        if size >= scale:
            return f"{size / scale:.1f} {unit}"
    return f"{size} bytes"
