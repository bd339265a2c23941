"""The index: in how many responses was a context served under a key?

No byte of the table answers anything before its hash was checked. Lookups are by context only;
there is no way to ask for a (context, token) pair, on purpose. The index is as confidential as the
log.
Knows the public half of a keyring; no secret and no suspect.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.keys.keyring import Keyring
from provenance.keys.schedule import KeyName, Schedule
from provenance.served.covered import read_contexts, refuse_uncovered
from provenance.served.index_manifest import IndexManifest, ServedValue
from provenance.served.lookup import Matches, Rows
from provenance.served.table import Audit, seal_table

Verify = Literal["used", "all"]

_CONTROL_SLOT, _GLOBAL_SLOT = 0, 1


class Index:
    """A verified index, open for lookups; `close` it or use it in a `with` statement.

    Attributes: folder and manifest; counts_weigh, whether what the log holds weighs anything.
    """

    counts_weigh = True

    def __init__(
        self,
        folder: Path,
        manifest: IndexManifest,
        rows: Rows,
        covered: NDArray[np.int64] | None = None,
    ) -> None:
        self.folder = folder
        self.manifest = manifest
        self._rows = rows
        self._covered = covered

    @classmethod
    def open(cls, folder: Path | str, public: Keyring | None, verify: Verify = "used") -> Index:
        """Open an index; no byte of its table is used that was not verified.

        Parameters: folder, as given to `build_index`; public, the keyring it must belong to (None:
        any, for `info`); verify, `used`: each row group is hashed when a look-up first needs it;
        `all`: every row is read now, and order, counts and content hash are checked too. Indexes
        before version 3 have no hashes of row groups and are always read whole.

        Raises StorageError if it is missing, DataError if anything in it does not match its hash,
        its order or its manifest, ConfigurationMismatchError if it belongs to another keyring.
        Cost: milliseconds, or for `all` about 30 M rows per second.
        """
        folder = Path(folder)
        manifest = IndexManifest.load(folder)
        if public is not None:
            manifest.check_keyring(public, str(folder))
        path, covered = folder / manifest.table, _read_covered(folder, manifest)
        if manifest.seal is not None and verify == "used":
            return cls(folder, manifest, Rows.open_sealed(path, manifest.seal), covered)
        return cls(folder, manifest, _read_all(path, manifest), covered)

    def verify(self) -> None:
        """Read every row, and check hashes, order and counts; what a plan asks for.

        A plan names the hash of all rows, also of those that no look-up needs. Raises as `open`;
        ConfigurationMismatchError for an excerpt, which cannot show it. Cost: as `all`.
        """
        if self.manifest.excerpt is not None:
            raise ConfigurationMismatchError(
                f"{self.folder}: must be the whole index, whose hash the plan names; it is an "
                "excerpt, which cannot show that it has it. Check against the index itself, or "
                "without the plan: exploratory."
            )
        _read_all(self.folder / self.manifest.table, self.manifest).close()

    def __enter__(self) -> Index:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; further lookups fail."""
        self._rows.close()

    def lookup(self, slot: int, contexts: NDArray[np.int64]) -> Matches:
        """Who was served these contexts, and how often?

        Parameters
        ----------
        slot : number of the slot (`Schedule.names`)
        contexts : int64 [n], packed, in any order, repeats allowed

        Raises
        ------
        UsageError for an unknown slot or another dtype; DataError or StorageError if the file went
        bad after it was opened.

        Notes
        -----
        Contexts of other slots have no match. An excerpt of an index is asked for the contexts only
        that it was made for (DataError). Sorts the queries once, then walks the row groups of
        the slot that can hold one of them. Cost: about 20 ns a row of those groups; queries that
        are sorted cost next to nothing, others 0.1 microseconds each. Memory: 30 bytes a query and
        one row group.
        """
        self._check_slot(slot)
        if self._covered is not None:
            refuse_uncovered(self._covered, contexts, self.folder)
        return self._rows.lookup(slot, contexts)

    def keys_served(self, schedule: Schedule) -> list[KeyName]:
        """(slot, value) of every key that marked a context of this index, in the schedule's order.

        Those are the keys that a check tests.
        """
        return [
            KeyName(slot.name, served.name)
            for number, slot in enumerate(schedule.slots)
            if number != _CONTROL_SLOT
            for served in self.values_served(number)
            if served.contexts
        ]

    def with_equal_counts(self) -> Index:
        """The same index, as if every context had been served once under the global key.

        For marks whose coins are shared by many contexts: there the counts are not independent of
        the coins, and none may weigh anything.
        """
        return _EqualCounts(self.folder, self.manifest, self._rows)

    def values_served(self, slot: int) -> list[ServedValue]:
        """Values of a slot in the order of their numbers; `contexts` is 0 if never served."""
        self._check_slot(slot)
        return list(self.manifest.slots[slot].values)

    def info(self) -> dict[str, Any]:
        """All that the manifest says, as JSON, but for the hashes of row groups."""
        return {name: value for name, value in asdict(self.manifest).items() if name != "seal"}

    def _check_slot(self, slot: int) -> None:
        if not 0 <= slot < len(self.manifest.slots):
            raise UsageError(
                f"slot must be 0 .. {len(self.manifest.slots) - 1}; got {slot}. "
                "See: provenance index info"
            )


def _read_all(path: Path, manifest: IndexManifest) -> Rows:
    """The table of an index, every row of which was verified. Raises as `Index.open`."""
    audit = Audit([len(slot.values) for slot in manifest.slots], str(path))
    rows = Rows.open(path, manifest.table_sha256, audit)
    sealed = manifest.seal is None or seal_table(path, audit.groups) == manifest.seal
    if not _is_stated(audit, manifest) or not sealed:
        rows.close()
        raise DataError(
            f"{path}: must hold the rows that its manifest counts; it does not. "
            "Build the index again."
        )
    return rows


def _is_stated(audit: Audit, manifest: IndexManifest) -> bool:
    """Whether the rows that were read are those that the manifest speaks of."""
    if manifest.excerpt is not None:  # its counts are those of the whole index
        own = manifest.excerpt
        return (audit.rows, audit.content_sha256) == (own.rows, own.content_sha256)
    counted = [
        [(int(c), int(r)) for c, r in zip(*pair, strict=True)]
        for pair in zip(audit.contexts, audit.responses, strict=True)
    ]
    stated = [[(v.contexts, v.responses) for v in slot.values] for slot in manifest.slots]
    return audit.content_sha256 == manifest.content_sha256 and counted == stated


def _read_covered(folder: Path, manifest: IndexManifest) -> NDArray[np.int64] | None:
    """The contexts that an excerpt was made for; None of a whole index."""
    if manifest.excerpt is None:
        return None
    path = folder / manifest.excerpt.contexts_table
    return read_contexts(path, manifest.excerpt.contexts_sha256)


class _EqualCounts(Index):
    """See `Index.with_equal_counts`."""

    counts_weigh = False

    def lookup(self, slot: int, contexts: NDArray[np.int64]) -> Matches:
        """Every context once in the slot `global`, none elsewhere; looks nothing up."""
        self._check_slot(slot)
        count = contexts.shape[0] if slot == _GLOBAL_SLOT else 0
        return Matches(
            np.arange(count), np.zeros(count, dtype=np.uint32), np.ones(count, dtype=np.int32)
        )
