"""How the green-list families turn a window of token ids into the seed of a generator.

Every function returns the low 32 bits of the seed, uint32 [n]: `manual_seed` of torch's CPU
generator sees no more of it. Integers wrap or grow exactly as in the originals: Python integers
reduced modulo 2**64 - 1 where they multiply in Python, signed 64-bit where they multiply tensors.

Knows keys as integers; knows no green lists and no scores.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from provenance.kernels import kernel
from provenance.schemes.foreign.torch_cpu import permutation

__all__ = ["TABLE_SIZE", "anchored_minhash", "minhash", "product", "rolling", "skipgram"]

TABLE_SIZE: Final = 1_000_003
"""Entries of the permutation that lm-watermarking and transformers hash token ids with."""

_MODULUS: Final = (1 << 64) - 1

Windows = NDArray[np.uint32]
Seeds = NDArray[np.uint32]


@njit(inline="always")
def _multiply(a, b):  # type: ignore[no-untyped-def]
    """a * b mod 2**64 - 1 for uint64 a and b below 2**40."""
    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    top = np.uint64(0xFFFFFFFFFFFFFFFF)
    low_part = (a & mask) * (b & mask)
    cross = (a >> shift) * (b & mask) + (low_part >> shift)
    other = (a & mask) * (b >> shift)
    middle = (cross & mask) + (other & mask)
    low = (middle << shift) | (low_part & mask)
    high = (a >> shift) * (b >> shift) + (cross >> shift) + (other >> shift) + (middle >> shift)
    total = np.uint64(low + high)
    if total < low:
        total += np.uint64(1)
    return np.uint64(0) if total == top else total


@njit(inline="always")
def _add(a, b):  # type: ignore[no-untyped-def]
    """a + b mod 2**64 - 1 for uint64 a, b below the modulus."""
    total = np.uint64(a + b)
    if total < a:
        total += np.uint64(1)
    return np.uint64(0) if total == np.uint64(0xFFFFFFFFFFFFFFFF) else total


@kernel(nogil=True)
def _products(key, factors, out):  # type: ignore[no-untyped-def]
    for i in range(factors.shape[0]):
        out[i] = np.uint32(_multiply(key, factors[i]) & np.uint64(0xFFFFFFFF))


@kernel(nogil=True)
def _rolled(key, salt, windows, out):  # type: ignore[no-untyped-def]
    for i in range(windows.shape[0]):
        state = key
        for j in range(windows.shape[1]):
            state = _add(_multiply(state, salt), np.uint64(windows[i, j]))
        out[i] = np.uint32(state & np.uint64(0xFFFFFFFF))


@kernel(nogil=True)
def _anchored(key, table, windows, out):  # type: ignore[no-untyped-def]
    size = table.shape[0]
    width = windows.shape[1]
    for i in range(windows.shape[0]):
        anchor = table[windows[i, width - 1] % size] + 1
        smallest = np.int64(0x7FFFFFFFFFFFFFFF)
        for j in range(width):
            value = np.int64(np.int64(key * (table[windows[i, j] % size] + 1)) * anchor)
            smallest = min(smallest, value)
        # Python's s % (2**64 - 1) of a negative s is s + 2**64 - 1: one below its two's complement.
        bits = smallest - 1 if smallest < 0 else smallest
        out[i] = np.uint32(bits & np.int64(0xFFFFFFFF))


@kernel(nogil=True)
def _smallest(key, table, windows, out):  # type: ignore[no-untyped-def]
    size = table.shape[0]
    for i in range(windows.shape[0]):
        smallest = np.int64(size)
        for j in range(windows.shape[1]):
            # Signed 64-bit wrap, then a modulo that is never negative: torch's.
            product = np.int64(key * np.int64(windows[i, j]))
            smallest = min(smallest, table[product % size] + 1)
        out[i] = np.uint32(smallest)


def product(key: int, factors: NDArray[np.uint64]) -> Seeds:
    """key * factor mod 2**64 - 1: transformers' left-hash, lm-watermarking's additive one.

    factors uint64 [n], below 2**40. 3 ns a factor.
    """
    out = np.empty(factors.shape, dtype=np.uint32)
    _products(np.uint64(key % _MODULUS), factors, out)
    return out


def rolling(key: int, salt: int, windows: Windows) -> Seeds:
    """s = key; s = (s * salt + t) mod 2**64 - 1 for every token, oldest first: seeding `hash`."""
    out = np.empty(windows.shape[0], dtype=np.uint32)
    _rolled(np.uint64(key % _MODULUS), np.uint64(salt), windows, out)
    return out


def anchored_minhash(key: int, table_seed: int, windows: Windows) -> Seeds:
    """min over the window of key * table[w] * table[last]: self-hash. Key below 2**63."""
    out = np.empty(windows.shape[0], dtype=np.uint32)
    _anchored(np.int64(key), permutation(table_seed, TABLE_SIZE), windows, out)
    return out


def minhash(key: int, table_seed: int, windows: Windows) -> Seeds:
    """min over the window of table[key * w]: only 1,000,003 seeds. Key below 2**63."""
    out = np.empty(windows.shape[0], dtype=np.uint32)
    _smallest(np.int64(key), permutation(table_seed, TABLE_SIZE), windows, out)
    return out


def skipgram(key: int, table_seed: int, windows: Windows) -> Seeds:
    """table[key * oldest token of the window]. Key below 2**63."""
    return minhash(key, table_seed, np.ascontiguousarray(windows[:, :1]))
