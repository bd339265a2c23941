"""A group of responses, open for look-ups: what it reached, and whether nobody else saw it.

Like the index it answers by context only. As confidential as the log.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from provenance.errors import DataError, UsageError
from provenance.keys.keyring import Keyring
from provenance.marks.own import SCHEMES
from provenance.served.group_build import REACHED, SEEN, SEEN_BY_OTHERS, VALUES
from provenance.served.group_manifest import GroupManifest
from provenance.served.lookup import Rows
from provenance.served.table import Audit

_GLOBAL_SLOT = 1


def refuse_foreign(public: Keyring) -> None:
    """Raise UsageError for another library's mark: its contexts may share coins, and have one key.

    Parameters: the public half of the mark.
    """
    if public.scheme.name not in SCHEMES:
        raise UsageError(
            "a group must be one of responses under a keyring of ours, where every context has "
            f"coins of its own; the mark is {public.scheme.name}. Do without groups."
        )


@dataclass(frozen=True)
class Sightings:
    """What is known of contexts that were asked for, each int64 [n].

    reached : responses (conversations) of the group that reached the context
    seen, seen_by_others : records of the group, and others, in which it stands anywhere; the latter
        is known only where the group saw it
    """

    reached: NDArray[np.int64]
    seen: NDArray[np.int64]
    seen_by_others: NDArray[np.int64]

    @property
    def exclusive(self) -> NDArray[np.bool_]:
        """Contexts that the group reached and nobody else saw; bool [n]."""
        return np.asarray((self.reached > 0) & (self.seen_by_others == 0))


class GroupIndex:
    """A verified group; `close` it or use it in a `with` statement. Has `folder` and `manifest`."""

    def __init__(self, folder: Path, manifest: GroupManifest, rows: Rows) -> None:
        self.folder = folder
        self.manifest = manifest
        self._rows = rows

    @classmethod
    def open(cls, folder: Path) -> GroupIndex:
        """Open a group and verify every row of it. Raises StorageError, DataError."""
        manifest = GroupManifest.load(folder)
        path = folder / manifest.table
        audit = Audit([0, VALUES], str(path))
        rows = Rows.open(path, manifest.table_sha256, audit)
        counted = (audit.rows, int(audit.contexts[_GLOBAL_SLOT][REACHED]), audit.content_sha256)
        if counted != (manifest.rows, manifest.reached, manifest.content_sha256):
            raise DataError(
                f"{path}: must hold the rows that its manifest counts; it does not. Build the "
                "group again."
            )
        return cls(folder, manifest, rows)

    def look_up(self, contexts: NDArray[np.int64]) -> Sightings:
        """Packed contexts of the slot `global`, int64 [n]. Cost: see `Index.lookup`."""
        matches = self._rows.lookup(_GLOBAL_SLOT, contexts)
        counts = np.zeros((VALUES, contexts.shape[0]), dtype=np.int64)
        counts[matches.value, matches.query] = matches.responses
        return Sightings(counts[REACHED], counts[SEEN], counts[SEEN_BY_OTHERS])

    def close(self) -> None:
        """Close the file; further look-ups fail."""
        self._rows.close()

    def __enter__(self) -> GroupIndex:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
