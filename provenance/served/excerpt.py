"""An excerpt of an index: the rows of some contexts, with everything else that the index says.

A check looks up contexts of its suspect only, so it needs no more than their rows: they are taken
where the index lies, and the check runs elsewhere. All totals of the manifest stay those of the
whole index, its hash too: a plan that names the index holds for the excerpt. The contexts that were
asked for go along, and whoever looks up another one is refused: a context that the index holds and
the excerpt does not must never look like one that was not served.

Knows tables; no suspect and no key.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.keys.keyring import Keyring
from provenance.served.covered import CONTEXTS_STEM, write_contexts
from provenance.served.index_manifest import MANIFEST_FILE, Excerpt, IndexManifest
from provenance.served.lookup import Rows
from provenance.served.seal import Seal, SealedFile
from provenance.served.table import TABLE, Audit, RowGroup, commit_table
from provenance.storage.files import lock_folder

Contexts = NDArray[np.int64]
Matching = Callable[[Path, Seal, Contexts], pa.Table]
"""Table file, its seal, contexts (ascending, each once) -> its rows of them, in their order."""

_GROUPS_AT_ONCE: Final = 16


def match_index(
    index: Path | str,
    contexts: Contexts,
    folder: Path | str,
    public: Keyring,
    find: Matching | None = None,
) -> IndexManifest:
    """Write the excerpt of an index that holds the rows of these contexts.

    Parameters
    ----------
    index : folder of a whole index
    contexts : int64 [n], names of contexts, in any order
    folder : where the excerpt goes; not the index itself
    public : the keyring or mark of the index
    find : finds the rows; None: `match_groups` in this process

    Returns the manifest, as written. Raises ConfigurationMismatchError for the index of another
    mark; UsageError for an excerpt, or an index that was written before version 3; DataError if the
    index is damaged, or holds none of the contexts; StorageError, LockedError.
    """
    index, folder = Path(index), Path(folder)
    whole, seal = load_whole(index, folder, public)
    wanted, path = np.unique(contexts), index / whole.table

    @contextmanager
    def group(_: Path) -> Iterator[Iterable[pa.RecordBatch]]:
        found = (find or _match_all)(path, seal, wanted)
        if not found.num_rows:
            raise DataError(
                f"{index}: must hold contexts of the outputs for an excerpt; it holds none. Check "
                "against the index itself."
            )
        yield found.to_batches()

    with lock_folder(folder):
        name, sha256 = write_contexts(folder, wanted)
        manifest = commit_table(
            folder,
            "windows",
            [len(slot.values) for slot in whole.slots],
            group,
            partial(_describe, whole, (name, sha256, wanted.shape[0])),
        )
        for old in folder.glob(f"{CONTEXTS_STEM}-*.parquet"):
            if old.name != name:
                old.unlink()
    return manifest


def load_whole(index: Path, folder: Path, public: Keyring) -> tuple[IndexManifest, Seal]:
    """The manifest of an index of which an excerpt can be made in the folder, and its seal.

    Raises as `match_index`.
    """
    whole = IndexManifest.load(index)
    whole.check_keyring(public, str(index))
    if whole.seal is None or whole.excerpt is not None or index.resolve() == folder.resolve():
        raise UsageError(
            f"{index}: must be a whole index of version 3, and the excerpt another folder; it is "
            f"{'older' if whole.seal is None else 'not'}. Build it again, or name another folder."
        )
    _refuse_index(folder)
    return whole, whole.seal


def _refuse_index(folder: Path) -> None:
    """An excerpt may replace an excerpt only: the rows of an index would be lost."""
    if (folder / MANIFEST_FILE).exists() and IndexManifest.load(folder).excerpt is None:
        raise ConfigurationMismatchError(
            f"{folder}: must not hold an index; it does. Choose another folder for the excerpt."
        )


def _describe(
    whole: IndexManifest, asked: tuple[str, str, int], audit: Audit, table: str, sha256: str
) -> IndexManifest:
    name, contexts_sha256, count = asked
    return replace(
        whole,
        table=table,
        table_sha256=sha256,
        seal=audit.seal,
        excerpt=Excerpt(count, name, contexts_sha256, audit.rows, audit.content_sha256),
    )


def match_groups(path: Path, seal: Seal, numbers: Sequence[int], contexts: Contexts) -> pa.Table:
    """Rows of these contexts (ascending, each once) in some row groups, columns TABLE, in order.

    Every byte that is read is verified. Raises DataError, StorageError. Memory: one row group, and
    the rows that are found.
    """
    stored = [(number, seal.groups[number]) for number in numbers]
    groups = [RowGroup(number, one.slot, one.first, one.last) for number, one in stored]
    rows, tables = Rows(path, groups, SealedFile(path, seal)), []
    try:
        for slot in sorted({group.slot for group in groups}):
            found = rows.lookup(slot, contexts)
            columns = [
                pa.array(np.full(found.query.shape[0], slot, dtype=np.uint8)),
                pa.array(found.value),
                pa.array(contexts[found.query]),
                pa.array(found.responses),
            ]
            tables.append(pa.Table.from_arrays(columns, schema=TABLE))
    finally:
        rows.close()
    return pa.concat_tables(tables)


def list_groups_of(seal: Seal, contexts: Contexts) -> list[list[int]]:
    """Row groups that can hold one of the contexts (ascending), some of them together, in order."""
    numbers = [
        number
        for number, group in enumerate(seal.groups)
        if np.searchsorted(contexts, group.first) < np.searchsorted(contexts, group.last, "right")
    ]
    return [numbers[i : i + _GROUPS_AT_ONCE] for i in range(0, len(numbers), _GROUPS_AT_ONCE)]


def _match_all(path: Path, seal: Seal, contexts: Contexts) -> pa.Table:
    parts = [match_groups(path, seal, part, contexts) for part in list_groups_of(seal, contexts)]
    return pa.concat_tables(parts) if parts else TABLE.empty_table()
