"""Names of coins as sets: rows of 32-bit numbers, kept sorted in one string of bytes.

Exact (no hashing), 4 * width bytes a unit, equal sets have equal bytes. Does not know what a unit
names.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError

MAX_WIDTH = 64

_Identifiers = NDArray[np.void]


def identifiers(units: NDArray[np.uint32], width: int) -> _Identifiers:
    """Units as byte strings whose order is that of the numbers: uint32 (n, width) -> void (n,).

    Raises UsageError for another shape or type.

    >>> identifiers(np.array([[1, 258]], dtype=np.uint32), 2).tobytes().hex()
    '0000000100000102'
    """
    array = np.asarray(units)
    if array.dtype != np.uint32 or array.ndim != 2 or array.shape[1] != width:
        raise UsageError(
            f"units must be a uint32 array of shape (n, {width}); got {array.dtype} of shape "
            f"{array.shape}. Pass the numbers that name each coin, one row per unit."
        )
    return _rows(array.astype(">u4").tobytes(), width)


def is_member(units: _Identifiers, content: bytes, width: int) -> NDArray[np.bool_]:
    """Which units belong to the set, bool (n,); sorts both."""
    return np.isin(units, _rows(content, width))


def union(content: bytes, units: _Identifiers, width: int) -> bytes:
    """The set with more units; repeats are allowed. Sorts both."""
    return np.unique(np.concatenate([_rows(content, width), units])).tobytes()


def _rows(content: bytes, width: int) -> _Identifiers:
    return np.frombuffer(content, dtype=np.dtype((np.void, 4 * width)))
