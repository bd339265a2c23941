"""Windows of token ids: which context stands before which token, and how to name it in 64 bits.

Knows token ids; knows no keys, files or models. A context is the k tokens before a token inside one
response, so the first k tokens of a response have none. Packing 21 bits per id is exact for up to
three ids: no hash, no collision. Longer contexts, which only other people's schemes have, are named
by a 63-bit hash, and whoever needs their ids keeps them beside the names (`ContextIds`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from provenance.coins.distinct import first_positions
from provenance.coins.words import MAXIMUM_CONTEXT_WIDTH
from provenance.errors import DataError, UsageError
from provenance.storage.kernels import kernel

_BITS = 21
MAXIMUM_VOCABULARY = 1 << _BITS
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def check_token_ids(ids: ArrayLike, vocabulary_size: int, origin: str) -> NDArray[np.uint32]:
    """Token ids as uint32 [n]; DataError unless all are integers in 0 .. vocabulary_size - 1."""
    # from JSON: numpy would read [5, true] as [5, 1] and fail on ragged lists
    plain = not isinstance(ids, list | tuple) or set(map(type, ids)) <= {int, np.int64, np.uint32}
    values = np.asarray(ids) if plain else np.empty(1)
    if values.ndim == 1 and values.size == 0:
        return np.empty(0, dtype=np.uint32)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise DataError(f"{origin}: token ids must be a flat list of integers. Repair the record.")
    low, high = int(values.min()), int(values.max())
    if low < 0 or high >= vocabulary_size:
        raise DataError(
            f"{origin}: token ids must be 0 .. {vocabulary_size - 1}; got {low} .. {high}. "
            "Use the tokenizer of the keyring."
        )
    return values.astype(np.uint32)


def response_contexts(
    token_ids: NDArray[np.uint32], width: int
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Every (context, token) of one response.

    Parameters
    ----------
    token_ids : uint32 [n], the response only (never the prompt)
    width : k, 1 .. 3

    Returns
    -------
    contexts uint32 [max(n - k, 0), k] and tokens uint32 [max(n - k, 0)], in order of position.

    Examples
    --------
    >>> contexts, tokens = response_contexts(np.array([7, 8, 9, 7], dtype=np.uint32), 2)
    >>> contexts.tolist(), tokens.tolist()
    ([[7, 8], [8, 9]], [9, 7])
    """
    if not 1 <= width <= MAXIMUM_CONTEXT_WIDTH:
        raise UsageError(f"width must be 1, 2 or 3; got {width}. Use the keyring's context width.")
    if token_ids.shape[0] <= width:
        return np.empty((0, width), dtype=np.uint32), np.empty(0, dtype=np.uint32)
    contexts = np.lib.stride_tricks.sliding_window_view(token_ids[:-1], width)
    return np.ascontiguousarray(contexts), token_ids[width:]


def pack(contexts: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Name each context by one non-negative integer: 21 bits an id, oldest token highest.

    Parameters: contexts uint32 [n, k], ids below 2**21. Returns int64 [n].
    Raises DataError for a larger id. Cost: 3 operations an id.

    Examples
    --------
    >>> pack(np.array([[1, 2]], dtype=np.uint32)).tolist()
    [2097154]
    """
    if contexts.size and int(contexts.max()) >= MAXIMUM_VOCABULARY:
        raise DataError(
            f"token ids must be below {MAXIMUM_VOCABULARY}; got {int(contexts.max())}. "
            "Larger vocabularies are not supported."
        )
    packed = np.zeros(contexts.shape[0], dtype=np.int64)
    for column in range(contexts.shape[1]):
        packed = (packed << _BITS) | contexts[:, column].astype(np.int64)
    return packed


def unpack(packed: NDArray[np.int64], width: int) -> NDArray[np.uint32]:
    """Inverse of `pack`: int64 [n] -> uint32 [n, width].

    >>> unpack(np.array([2097154]), 2).tolist()
    [[1, 2]]
    """
    contexts = np.empty((packed.shape[0], width), dtype=np.uint32)
    _unpack(packed, contexts)
    return contexts


@kernel(nogil=True)
def _unpack(packed, out):  # type: ignore[no-untyped-def]
    """The ids of each name into the columns of `out`, the last id lowest."""
    for i in range(packed.shape[0]):
        name = packed[i]
        for column in range(out.shape[1] - 1, -1, -1):
            out[i, column] = np.uint32(name & (MAXIMUM_VOCABULARY - 1))
            name >>= _BITS


def hash_columns(*columns: NDArray[np.uint32]) -> NDArray[np.uint64]:
    """64-bit hash of each row of these columns, each uint32 [n]; not keyed, no secret.

    Two different rows agree with probability 2**-64. Cost: a few nanoseconds a column.
    """
    state = np.full(columns[0].shape, _GOLDEN, dtype=np.uint64)
    for column in columns:
        state = (state ^ column.astype(np.uint64)) * np.uint64(0xBF58476D1CE4E5B9)
        state ^= state >> np.uint64(29)
        state = (state + _GOLDEN) * np.uint64(0x94D049BB133111EB)
        state ^= state >> np.uint64(32)
    return state


def name_contexts(contexts: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Non-negative name of each context: `pack` up to three ids, else a 63-bit hash.

    Among 10**8 distinct longer contexts any two share a name with probability below 6e-4; such an
    accident adds the counts of two contexts, and weights with wrong counts are still only weights.
    """
    if contexts.shape[1] <= MAXIMUM_CONTEXT_WIDTH:
        return pack(contexts)
    return (hash_columns(*contexts.T) >> np.uint64(1)).view(np.int64)


@dataclass(frozen=True)
class ContextIds:
    """The ids of contexts that are named by a hash: names int64 [m], ascending; ids uint32 [m, k].

    >>> contexts = np.arange(8, dtype=np.uint32).reshape(2, 4)
    >>> ContextIds.collect(contexts).find(name_contexts(contexts)).tolist()
    [[0, 1, 2, 3], [4, 5, 6, 7]]
    """

    names: NDArray[np.int64]
    ids: NDArray[np.uint32]

    @classmethod
    def collect(cls, contexts: NDArray[np.uint32]) -> ContextIds:
        """Of these contexts, uint32 [n, k], repeats allowed. Cost: one sort."""
        names, first = np.unique(name_contexts(contexts), return_index=True)
        return cls(names, contexts[first])

    def find(self, names: NDArray[np.int64]) -> NDArray[np.uint32]:
        """Ids of each name, uint32 [n, k]; every name must be known. Cost: one look-up a name."""
        return self.ids[np.searchsorted(self.names, names)]


def first_occurrences(values: NDArray[np.int64]) -> NDArray[np.bool_]:
    """True where a value stands for the first time; bool [n]. Cost: see `first_positions`.

    >>> first_occurrences(np.array([4, 5, 4])).tolist()
    [True, True, False]
    """
    return np.equal(first_positions(values), np.arange(values.shape[0]))


def first_pairs(contexts: NDArray[np.uint32], tokens: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Positions at which a (context, token) stands for the first time, ascending: int64 [m].

    Parameters: uint32 [n, k], k at most 3, and uint32 [n]; ids below 2**21. Exact. Cost: about
    60 ns a pair, twice that for k = 3.
    """
    names = pack(contexts)
    if contexts.shape[1] == MAXIMUM_CONTEXT_WIDTH:  # no room for the token beside three ids
        names = first_positions(names)
    return np.flatnonzero(first_occurrences((names << _BITS) | pack(tokens[:, np.newaxis])))


def list_windows(
    ids: NDArray[np.uint32], lengths: NDArray[np.int64], width: int, *, followed: bool
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every window of `width` ids that lies inside one of many lists.

    Parameters
    ----------
    ids : uint32 [n], the lists one after another
    lengths : int64 [rows], how many ids each list has
    width : k
    followed : only windows before another id of the same list (contexts of a token)

    Returns
    -------
    rows int64 [m] and starts int64 [m]: window j is ids[starts[j] : starts[j] + width] of list
    rows[j]; in order of position. Cost: a few passes over the ids.

    Examples
    --------
    >>> ids = np.array([7, 8, 9, 1, 2], dtype=np.uint32)
    >>> rows, starts = list_windows(ids, np.array([3, 2]), 2, followed=True)
    >>> rows.tolist(), starts.tolist()
    ([0], [0])
    """
    spare = width - 1 + int(followed)
    if ids.shape[0] <= spare:
        return np.empty(0, dtype=np.int64), np.empty(0, dtype=np.int64)
    row_of = np.repeat(np.arange(lengths.shape[0], dtype=np.int64), lengths)
    # a window lies inside one list if its first and its last needed id do
    starts = np.flatnonzero(row_of[: row_of.shape[0] - spare] == row_of[spare:])
    return row_of[starts], starts


def pack_windows(
    ids: NDArray[np.uint32], starts: NDArray[np.int64], width: int
) -> NDArray[np.int64]:
    """Names of the windows that `list_windows` found, see `name_contexts`: int64 [m]."""
    if not starts.size:
        return np.empty(0, dtype=np.int64)
    return name_contexts(np.lib.stride_tricks.sliding_window_view(ids, width)[starts])


def select_first_unprompted(
    rows: NDArray[np.int64],
    packed: NDArray[np.int64],
    groups: NDArray[np.int64],
    prompt_groups: NDArray[np.int64],
    prompt_packed: NDArray[np.int64],
    seen: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Which positions count: the first of each context in its response, and not in its prompt.

    Parameters
    ----------
    rows, packed : int64 [m], response number and context of each position, in order of position
    groups : int64 [m], number of the prompt of each position's response
    prompt_groups, prompt_packed : int64 [p], the windows of the prompts, by the prompt's number
    seen : int64 [m] and int64 [p], how many parts of its prompt a position's response has seen, and
        the part of each window, which grows within a prompt; None: all saw all

    Returns
    -------
    first, unprompted : bool [m] each. Cost: two sorts of m + p numbers.
    """
    both = np.concatenate([packed, prompt_packed])
    distinct, names = np.unique(both, return_inverse=True)
    own, prompted = names[: rows.shape[0]], names[rows.shape[0] :]
    size = max(distinct.shape[0], 1)
    asked = prompt_groups * size + prompted
    if seen is None or not asked.size:
        return first_occurrences(rows * size + own), ~np.isin(groups * size + own, asked)
    counts, parts = seen
    known, earliest = np.unique(asked, return_index=True)
    place = np.minimum(np.searchsorted(known, groups * size + own), known.shape[0] - 1)
    unprompted = (known[place] != groups * size + own) | (parts[earliest[place]] >= counts)
    return first_occurrences(rows * size + own), unprompted
