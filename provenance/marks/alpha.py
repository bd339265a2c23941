"""How a check shares alpha among its lines of evidence and keys, before any coin is seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from provenance.keys.schedule import GLOBAL_KEY, KeyName


class AlphaSplit(NamedTuple):
    """Error rate of all keys together, and of the twins: 0 without twins."""

    keys: float
    twins: float


def split_alpha(alpha: float, *, twins: bool) -> AlphaSplit:
    """Half for the keys and half for the twins, if there are any; all of it for the keys if not.

    >>> split_alpha(1e-4, twins=True)
    AlphaSplit(keys=5e-05, twins=5e-05)
    """
    return AlphaSplit(alpha / 2, alpha / 2) if twins else AlphaSplit(alpha, 0.0)


def family_weights(keys: Sequence[KeyName], groups: int = 0) -> NDArray[np.float64]:
    """Half for the global key, the other half spread evenly over all slot values.

    Parameters: (slot, value) of each key; how many hypotheses on groups of responses there are
    beside them, which then come last and take half of the slot values' half, evenly (all of it
    where there are no slot values). Returns float64 [n + groups] that sums to 1. Without a global
    key, or with nothing else, the weights are equal; groups take half there.

    >>> family_weights([("global", ""), ("week", "a"), ("week", "b")]).tolist()
    [0.5, 0.25, 0.25]
    >>> family_weights([("global", ""), ("week", "a"), ("week", "b")], 2).tolist()
    [0.5, 0.125, 0.125, 0.125, 0.125]
    >>> family_weights([("global", "")], 2).tolist()
    [0.5, 0.25, 0.25]
    """
    is_global = np.array([key == GLOBAL_KEY for key in keys], dtype=np.bool_)
    others = int((~is_global).sum())
    is_mixed = others not in (0, len(keys))
    equal = np.full(len(keys), 1 / max(len(keys), 1))
    own = np.where(is_global, 0.5, 0.5 / others) if is_mixed else equal
    if not groups:
        return own
    own[~is_global if is_mixed else slice(None)] /= 2
    rest = 0.25 if is_mixed else 0.5 if keys else 1.0
    return np.append(own, np.full(groups, rest / groups))
