"""How the green-list families turn a window of token ids into the seed of a generator.

Every function returns the low 32 bits of the seed, uint32 [n]: `manual_seed` of torch's CPU
generator sees no more of it. Integers wrap or grow exactly as in the originals: Python integers
reduced modulo 2**64 - 1 where they multiply in Python, signed 64-bit where they multiply tensors.

Knows keys as integers; knows no green lists and no scores.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

import numpy as np
from numba import njit
from numpy.typing import NDArray

from provenance.errors import ConfigurationMismatchError
from provenance.marks.foreign.torch_cpu import permutation
from provenance.storage.kernels import kernel

TABLE_SIZE: Final = 1_000_003
"""Entries of the permutation that lm-watermarking and transformers hash token ids with."""

SAME_KEYS: Final = "keys k and k + 2**32 are one mark: a seed has 32 bits"
"""Caveat where a seed is a product or the key itself."""

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
def _window_products(windows, size, out):  # type: ignore[no-untyped-def]
    for i in range(windows.shape[0]):
        value = np.uint64(1)
        for j in range(windows.shape[1]):
            value = np.uint64(value * np.uint64(windows[i, j])) % np.uint64(size)
        out[i] = value


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


def window_product(windows: Windows, size: int) -> NDArray[np.uint64]:
    """Product of the tokens of each window modulo size (below 2**26, so nothing overflows)."""
    out = np.empty(windows.shape[0], dtype=np.uint64)
    _window_products(windows, size, out)
    return out


def rolling(key: int, salt: int, windows: Windows) -> Seeds:
    """s = key; s = (s * salt + t) mod 2**64 - 1 for every token, oldest first: seeding `hash`."""
    out = np.empty(windows.shape[0], dtype=np.uint32)
    _rolled(np.uint64(key % _MODULUS), np.uint64(salt), windows, out)
    return out


def canonical_key(key: int, salt: int, width: int, vocabulary_size: int) -> int:
    """The smallest key with the same seeds under `rolling`, where that is certain; else the key.

    s is linear in the key: s = key * salt**width + f(window). While that stays below 2**64 - 1
    nothing is reduced, and the low 32 bits of s see only the low 32 bits of the key.

    >>> canonical_key(7 + 2**32, 35317, 1, 32000), canonical_key(7 + 2**32, 35317, 3, 32000)
    (7, 4294967303)
    """
    largest = key * salt**width + vocabulary_size * sum(salt**i for i in range(width))
    return key & 0xFFFFFFFF if largest < _MODULUS else key


def canonical_factor(key: int, largest: int) -> int:
    """The smallest key whose products with factors up to `largest` have the same low 32 bits.

    Only where nothing is reduced modulo 2**64 - 1 on the way; else the key itself.
    """
    return key & 0xFFFFFFFF if key * largest < _MODULUS else key


def same_keys_of_hash(salt: int, width: int) -> str:
    """`SAME_KEYS` where keys up to 2**33 are so under `rolling`, else ""."""
    return SAME_KEYS if canonical_key((1 << 33) - 1, salt, width, 1 << 20) < 1 << 32 else ""


def refuse_global_table(config: Mapping[str, Any]) -> None:
    """ConfigurationMismatchError unless the seeding is `hash`: the others' table is lost."""
    if (found := config.get("seeding", "hash")) != "hash":
        raise ConfigurationMismatchError(
            f"seeding must be hash; got {found}. Its table is drawn from the global generator of "
            "the process that made the text, so its coins cannot be recomputed."
        )


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
