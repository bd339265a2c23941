"""How a check shares alpha among its keys, before any coin is looked at."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from provenance.keys.schedule import GLOBAL, SINGLE_VALUE

__all__ = ["family_weights"]


def family_weights(keys: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """Half for the global key, the other half spread evenly over all slot values.

    Parameters: (slot, value) of each key. Returns float64 [n] that sums to 1. Without a global key,
    or with nothing else, the weights are equal.

    >>> family_weights([("global", ""), ("week", "a"), ("week", "b")]).tolist()
    [0.5, 0.25, 0.25]
    """
    is_global = np.array([key == (GLOBAL, SINGLE_VALUE) for key in keys], dtype=np.bool_)
    others = int((~is_global).sum())
    if others in (0, len(keys)):
        return np.full(len(keys), 1 / max(len(keys), 1))
    return np.where(is_global, 0.5, 0.5 / others)
