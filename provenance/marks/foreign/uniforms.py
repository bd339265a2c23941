"""The score of a uniform that has finitely many values, in steps of 1/4 of -ln(1 - u).

The same lattice as our own gumbel scheme's, for pseudo-random functions with fewer than 2**32
values: of `total` equally likely values v = 0 .. total - 1, u = v / total, the score is

    score(v) = #{ j >= 1 : v >= T_j },     T_j = ceil(total (1 - exp(-j / 4)))

so that the law of a weighted sum is a lattice law and P(score >= j) <= exp(-j / 4).
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from math import ceil, expm1
from typing import Final

import numpy as np
from numpy.typing import NDArray

from provenance.stats.laws import NullLaw
from provenance.storage.kernels import kernel

_STEP: Final = 0.25
_CELL_BITS: Final = 13


@kernel(nogil=True)
def _count(values, shift, counts, thresholds, out):  # type: ignore[no-untyped-def]
    """counts: thresholds at or below the first value of each cell of 2**shift values."""
    for i in range(values.shape[0]):
        value = np.int64(values[i])
        count = counts[value >> shift]
        while count < thresholds.shape[0] and thresholds[count] <= value:
            count += 1
        out[i] = count


@cache
def exponential_thresholds(total: int) -> NDArray[np.int64]:
    """T_1, T_2, ... below total; float64 is enough for total <= 2**32 (tested)."""
    values: list[int] = []
    while (threshold := ceil(-total * expm1(-_STEP * (len(values) + 1)))) < total:
        values.append(threshold)
    thresholds = np.array(values, dtype=np.int64)
    thresholds.setflags(write=False)
    return thresholds


def exponential_score(values: NDArray[np.integer], total: int) -> NDArray[np.int64]:
    """Number of thresholds at or below each value.

    >>> exponential_score(np.array([0, 2**23, 2**24 - 1]), 2**24).tolist()
    [0, 2, 66]
    """
    thresholds = exponential_thresholds(total)
    shift = max(total.bit_length() - _CELL_BITS, 0)
    cells = np.arange(((total - 1) >> shift) + 1, dtype=np.int64) << shift
    out = np.empty(values.shape, dtype=np.int64)
    _count(values, shift, np.searchsorted(thresholds, cells, side="right"), thresholds, out)
    return out


def exponential_law(masses: NDArray[np.object_] | None, total: int) -> NullLaw:
    """Law of the score of a value of these masses (Python ints [total]); None = all equal."""
    edges = [0, *exponential_thresholds(total).tolist(), total]
    if masses is None:
        return NullLaw(tuple(b - a for a, b in pairwise(edges)))
    return NullLaw(tuple(int(masses[a:b].sum()) for a, b in pairwise(edges)))
