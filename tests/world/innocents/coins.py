"""Coins of the fast world: 32-bit words from a 64-bit hash, in place of the product's cipher.

A key is any integer. Only the words are made here; scores, laws and tails are the library's.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

Integers = NDArray[np.int64]


@njit(inline="always")
def _mix(x):  # type: ignore[no-untyped-def]
    """The finisher of splitmix64."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@njit(inline="always")
def word(key, context, token):  # type: ignore[no-untyped-def]
    """The word of a pair under a key: uint32."""
    state = _mix(np.uint64(key) + np.uint64(context) * np.uint64(0x9E3779B97F4A7C15))
    state = _mix(state + np.uint64(token) * np.uint64(0xD1342543DE82EF95) + np.uint64(1))
    return np.uint32(state >> np.uint64(32))


@njit(inline="always")
def is_marked(key, context, share):  # type: ignore[no-untyped-def]
    """Whether the selector of this key gives the context to the marked slot."""
    state = np.uint64(key) * np.uint64(31) + np.uint64(context) * np.uint64(0xA0761D6478BD642F)
    return (_mix(state + np.uint64(7)) >> np.uint64(11)) * 2.0**-53 < share


@njit(cache=True)
def words_of(key: int, contexts: Integers, tokens: Integers) -> NDArray[np.uint32]:
    """Words of many pairs: int64 [n], int64 [n] -> uint32 [n]."""
    out = np.empty(contexts.size, np.uint32)
    for i in range(contexts.size):
        out[i] = word(key, contexts[i], tokens[i])
    return out


@njit(cache=True)
def marks_of(key: int, contexts: Integers, share: float) -> NDArray[np.bool_]:
    """`is_marked` of many contexts: int64 [n] -> bool [n]."""
    out = np.empty(contexts.size, np.bool_)
    for i in range(contexts.size):
        out[i] = is_marked(key, contexts[i], share)
    return out
