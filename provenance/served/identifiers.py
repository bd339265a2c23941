"""Which identifiers were seen before, and with which content, in some 20 bytes each.

Knows strings and numbers only. Two different identifiers are taken for one with probability below
n**2 / 2**65: 2e-5 for *any* pair among 28.8 million. The price would be a log that is refused.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from provenance.storage.kernels import kernel


def name_hashes(names: Iterable[str]) -> NDArray[np.int64]:
    """64-bit BLAKE2b of each name, as int64 [n]. Cost: about 0.8 microseconds a name."""
    digests = b"".join(hashlib.blake2b(name.encode(), digest_size=8).digest() for name in names)
    return np.frombuffer(digests, dtype="<i8").astype(np.int64, copy=False)


def content_hashes(values: NDArray[np.uint32], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """64-bit hash of each of many lists that stand one after another, as int64 [rows].

    Parameters: uint32 [n], all numbers; int64 [rows], how many each list has. Not keyed. Cost:
    some nanoseconds a number.
    """
    found = np.empty(lengths.shape[0], dtype=np.uint64)
    _hash_lists(values, lengths, found)
    return found.view(np.int64)


@kernel(nogil=True)
def _hash_lists(values, lengths, out):  # type: ignore[no-untyped-def]
    """The length of each list and a sum of hashes of (number, place in the list)."""
    begin = 0
    for row in range(lengths.shape[0]):
        total = np.uint64(lengths[row])
        for place in range(lengths[row]):
            mixed = (np.uint64(values[begin + place]) << np.uint64(32)) | np.uint64(place)
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            total += mixed ^ (mixed >> np.uint64(31))
        out[row] = total
        begin += lengths[row]


_SHARDS = 64
_LEAST = 1 << 10


class SeenNames:
    """A growing set of names: hash tables of hashes, by their highest bits.

    Memory: 18 to 37 bytes a name, 18 when the tables are full (28.8 M names: 0.54 GB); they grow
    one after another, so no more is needed while they do. Cost: about 1 microsecond a name.
    """

    def __init__(self) -> None:
        self._tables = [_make_table(_LEAST) for _ in range(_SHARDS)]
        self._sizes = [0] * _SHARDS

    def add(
        self, names: list[str], contents: NDArray[np.int64]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Add names, each with the hash of its content.

        Returns bool [n] twice, in order: a name stands for the first time; it stood before, with
        another content.
        """
        hashes = name_hashes(names).view(np.uint64)
        hashes = np.where(hashes == 0, np.uint64(1), hashes)  # 0 is an empty place
        new = np.zeros(hashes.shape[0], dtype=np.bool_)
        known = np.empty(hashes.shape[0], dtype=np.int64)
        shards = (hashes % np.uint64(_SHARDS)).astype(np.int64)
        order = np.argsort(shards, kind="stable")
        bounds = np.searchsorted(shards[order], np.arange(_SHARDS + 1))
        for shard in range(_SHARDS):
            rows = order[bounds[shard] : bounds[shard + 1]]
            if rows.size:
                self._make_room(shard, rows.size)
                table = self._tables[shard]
                added = _insert(hashes, contents, rows, *table, new, known)
                self._sizes[shard] += int(added)
        return new, ~new & (known != contents)

    def _make_room(self, shard: int, more: int) -> None:
        """At most 7 of 8 places of a table are taken."""
        kept, contents = self._tables[shard]
        needed, size = self._sizes[shard] + more, kept.shape[0]
        if 8 * needed <= 7 * size:
            return
        while 8 * needed > 7 * size:
            size *= 2
        grown = _make_table(size)
        rows = np.flatnonzero(kept)
        spare = np.empty(kept.shape[0], dtype=np.bool_), np.empty(kept.shape[0], dtype=np.int64)
        _insert(kept, contents, rows, *grown, *spare)
        self._tables[shard] = grown


def _make_table(size: int) -> tuple[NDArray[np.uint64], NDArray[np.int64]]:
    return np.zeros(size, dtype=np.uint64), np.empty(size, dtype=np.int64)


@kernel(nogil=True)
def _insert(hashes, contents, rows, table, kept, new, known):  # type: ignore[no-untyped-def]
    """Insert the hashes of these rows; returns how many were new. The lowest bits are the shard."""
    mask = table.shape[0] - 1
    added = 0
    for row in rows:
        place = np.int64(hashes[row] >> np.uint64(6)) & mask
        while table[place] != 0 and table[place] != hashes[row]:
            place = (place + 1) & mask
        new[row] = table[place] == 0
        if new[row]:
            table[place] = hashes[row]
            kept[place] = contents[row]
            added += 1
        known[row] = kept[place]
    return added
