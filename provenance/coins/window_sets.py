"""Distinct windows of each of many lists, by hashing: no sort, and no loop in Python.

A list's table fits in the cache, so a window costs a few nanoseconds. Exact: names are compared,
not hashes. Knows names of windows; no keys, no records.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numba import njit
from numpy.typing import NDArray

from provenance.coins.contexts import MAXIMUM_VOCABULARY, name_contexts
from provenance.coins.words import MAXIMUM_CONTEXT_WIDTH
from provenance.errors import DataError
from provenance.storage.kernels import kernel

_BITS = MAXIMUM_VOCABULARY.bit_length() - 1


@dataclass(frozen=True)
class WindowSets:
    """The distinct windows of each list, list by list, in the order of first occurrence.

    rows : int64 [m], ascending, which list
    names : int64 [m], the windows, see `provenance.coins.contexts.name_contexts`
    draws : int32 [m], at how many of its positions in this list the flag was set
    excluded : bool [m], whether it stands in the other list of the same row
    """

    rows: NDArray[np.int64]
    names: NDArray[np.int64]
    draws: NDArray[np.int32]
    excluded: NDArray[np.bool_]


def find_window_sets(
    ids: NDArray[np.uint32],
    lengths: NDArray[np.int64],
    width: int,
    *,
    followed: bool,
    flags: NDArray[np.bool_] | None = None,
    others: tuple[NDArray[np.uint32], NDArray[np.int64]] | None = None,
) -> WindowSets:
    """Distinct windows of `width` ids of each list.

    Parameters
    ----------
    ids, lengths : uint32 [n], the lists one after another; int64 [rows], how many ids each has
    width : k
    followed : only windows before another id of the same list
    flags : bool [n]; of a window the flag of the id after it is meant. Only with `followed`
    others : ids and lengths of one other list a row, whose windows are marked as excluded

    Raises DataError for an id that is too large. Cost: about 10 ns an id; releases the GIL. Memory:
    30 bytes an id.
    """
    spare = width - 1 + int(followed)
    lengths = lengths.astype(np.int64, copy=False)
    most = int(np.maximum(lengths - spare, 0).sum())
    rows, found = np.empty(most, dtype=np.int64), np.empty(most, dtype=np.int64)
    draws, excluded = np.zeros(most, dtype=np.int32), np.zeros(most, dtype=np.bool_)
    table = np.empty(_table_size(int(lengths.max(initial=0))), dtype=np.int64)
    other_ids, other_lengths = others or (np.empty(0, np.uint32), np.zeros_like(lengths))
    size = _collect(
        _name_windows(ids, width),
        lengths,
        spare,
        np.empty(0, dtype=np.bool_) if flags is None else flags,
        _name_windows(other_ids, width),
        other_lengths.astype(np.int64, copy=False),
        width,
        table,
        (rows, found, draws, excluded),
    )
    return WindowSets(rows[:size], found[:size], draws[:size], excluded[:size])


def _name_windows(ids: NDArray[np.uint32], width: int) -> NDArray[np.int64]:
    """Name of the window that begins at each id, int64 [n - width + 1], across borders of lists."""
    if ids.shape[0] < width:
        return np.empty(0, dtype=np.int64)
    if width > MAXIMUM_CONTEXT_WIDTH:
        return name_contexts(np.lib.stride_tricks.sliding_window_view(ids, width))
    if int(ids.max()) >= MAXIMUM_VOCABULARY:
        raise DataError(
            f"token ids must be below {MAXIMUM_VOCABULARY}; got {int(ids.max())}. "
            "Larger vocabularies are not supported."
        )
    names = np.empty(ids.shape[0] - width + 1, dtype=np.int64)
    _pack_windows(np.ascontiguousarray(ids), width, names)
    return names


def _table_size(length: int) -> int:
    size = 16
    while size < 2 * length:
        size *= 2
    return size


@kernel(nogil=True)
def _pack_windows(ids, width, out):  # type: ignore[no-untyped-def]
    """`provenance.coins.contexts.pack` of every window."""
    for i in range(out.shape[0]):
        name = np.int64(0)
        for j in range(width):
            name = (name << _BITS) | np.int64(ids[i + j])
        out[i] = name


@njit(inline="always")
def _place(name, mask):  # type: ignore[no-untyped-def]
    """Where the search for a name begins: the high half of a product with the golden ratio."""
    mixed = np.uint64(name) * np.uint64(0x9E3779B97F4A7C15)
    return np.int64((mixed ^ (mixed >> np.uint64(32))) & np.uint64(mask))


@kernel(nogil=True)
def _collect(  # type: ignore[no-untyped-def]
    names, lengths, spare, flags, other_names, other_lengths, width, table, out
):
    """Fill `out`, return how many. Linear probing; a table is at most half full."""
    rows, found, draws, excluded = out
    size, begin, other = 0, 0, 0
    for row in range(lengths.shape[0]):
        count = max(lengths[row] - spare, 0)
        capacity = 16
        while capacity < 2 * count:
            capacity *= 2
        mask = capacity - 1
        if count > 0:
            table[:capacity] = -1
        for i in range(begin, begin + count):
            place = _place(names[i], mask)
            while table[place] >= 0 and found[table[place]] != names[i]:
                place = (place + 1) & mask
            if table[place] < 0:
                table[place] = size
                rows[size] = row
                found[size] = names[i]
                size += 1
            if flags.shape[0] > 0 and flags[i + width]:
                draws[table[place]] += 1
        others = max(other_lengths[row] - width + 1, 0)
        if count > 0:
            for i in range(other, other + others):
                place = _place(other_names[i], mask)
                while table[place] >= 0 and found[table[place]] != other_names[i]:
                    place = (place + 1) & mask
                if table[place] >= 0:
                    excluded[table[place]] = True
        begin += lengths[row]
        other += other_lengths[row]
    return size
