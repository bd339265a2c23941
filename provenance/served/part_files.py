"""Parts of an index on disk: finished ones of a run that was killed are found and used again.

A part is two files, named by what it was made from: the setup (keyring, batches, sizes) and all
responses that were read up to its end. The table is written last, so a part without it is none.
Knows tables and numbers; no keys, no logs.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from provenance.served.merging import cut_run, list_batches
from provenance.served.packing import Packing
from provenance.served.sorted_counts import Run
from provenance.served.table import write_table
from provenance.storage.files import sync_folder

_GROUP_ROWS: Final = 1 << 15
_NAME: Final = re.compile(r"part-([0-9a-f]{16})-([0-9]{6})-([0-9a-f]{64})\.parquet")


@dataclass(frozen=True)
class Part:
    """What a build must know of a part beside its rows.

    digest : of the setup and of all batches up to its end, hex
    windows : windows that it counted
    without_value : int64 [slots], marked responses without a value
    batches : int64 [chunks], after how many batches of the log each of its chunks ended
    lineages : for each chunk int64, sorted and distinct
    table : its file; None while it is in memory
    """

    digest: str
    windows: int
    without_value: NDArray[np.int64]
    batches: NDArray[np.int64]
    lineages: Sequence[NDArray[np.int64]]
    table: Path | None


class PartFiles:
    """The parts in one folder, of one setup."""

    def __init__(self, folder: Path, setup: str, packing: Packing) -> None:
        self._folder = folder
        self._setup = setup[:16]
        self._packing = packing

    def load(self) -> list[Part]:
        """Finished parts from the first on without a gap; everything else is removed."""
        named = {}
        for path in sorted(self._folder.iterdir()):
            found = _NAME.fullmatch(path.name)
            if found and found[1] == self._setup:
                named[int(found[2])] = path
        parts: list[Part] = []
        while len(parts) in named and (part := _load(named[len(parts)])) is not None:
            parts.append(part)
        self.keep(parts)
        return parts

    def keep(self, parts: Sequence[Part]) -> None:
        """Remove every file that is not of these parts."""
        tables = [part.table for part in parts if part.table is not None]
        kept = {*tables, *map(_notes_of, tables)}
        for path in self._folder.iterdir():
            if path not in kept and path.is_file():
                path.unlink()

    def save(self, number: int, part: Part, run: Run) -> Part:
        """Write a part: the notes, then the table under its own name. Raises StorageError."""
        table = self._folder / f"part-{self._setup}-{number:06d}-{part.digest}.parquet"
        notes = _notes_of(table)
        with notes.open("wb") as file:
            np.savez(
                file,
                windows=np.int64(part.windows),
                without_value=part.without_value,
                batches=part.batches,
                sizes=np.array([one.shape[0] for one in part.lineages], dtype=np.int64),
                lineages=np.concatenate([np.empty(0, np.int64), *part.lineages]),
            )
            file.flush()
            os.fsync(file.fileno())
        draft = table.with_suffix(".draft")
        write_run(draft, cut_run(run), self._packing)
        draft.replace(table)
        sync_folder(self._folder)
        return Part(
            part.digest, part.windows, part.without_value, part.batches, part.lineages, table
        )


def write_run(path: Path, runs: Iterator[Run], packing: Packing) -> None:
    """Write a sorted stream as a table that is only ours to read. Raises StorageError."""
    write_table(path, list_batches(runs, packing), None, _GROUP_ROWS)


def _notes_of(table: Path) -> Path:
    return table.with_suffix(".npz")


def _load(table: Path) -> Part | None:
    """The part of a table; None if its notes are missing or broken."""
    found = _NAME.fullmatch(table.name)
    assert found is not None
    try:
        with np.load(_notes_of(table), allow_pickle=False) as notes:
            cuts = np.cumsum(notes["sizes"])[:-1]
            return Part(
                digest=found[3],
                windows=int(notes["windows"]),
                without_value=notes["without_value"],
                batches=notes["batches"],
                lineages=np.split(notes["lineages"], cuts),
                table=table,
            )
    except (OSError, ValueError, KeyError, EOFError):
        return None
