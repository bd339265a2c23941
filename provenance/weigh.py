"""Weights without a reference model: integers from counts alone.

A weight is fixed before any coin is looked at, and a function of how often the suspect put the
token there, N(c, t), and in how many marked responses the context was served, n(c). There is no
argument through which a coin, or a count of (context, token) pairs in the *log*, could come in:
both would make an innocent model look guilty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError

__all__ = ["DEFAULT_RULE", "RULES", "weigh"]

Counts = NDArray[np.int64]

_LEVELS: Final = 63
_COUNT_CAP: Final = 16
_RESPONSES_CAP: Final = 1 << 10


def weigh_presence(counts: Counts, responses: Counts) -> Counts:
    """round(63 n / (n + 5)) for every pair that occurs: each pair counts once."""
    del counts
    return np.asarray(np.rint(_LEVELS * responses / (responses + 5.0)), dtype=np.int64)


def weigh_log_sqrt(counts: Counts, responses: Counts) -> Counts:
    """round(4 ln(1 + n) sqrt(N)), n up to 1,024 and N up to 16: at most 111.

    The caps bound what one phrase that the suspect repeats, or one context that the log is full of,
    can weigh.
    """
    logarithm = np.log1p(np.minimum(responses, _RESPONSES_CAP))
    weights = np.rint(4 * logarithm * np.sqrt(np.minimum(counts, _COUNT_CAP)))
    return np.asarray(weights, dtype=np.int64)


RULES: Final[Mapping[str, Callable[[Counts, Counts], Counts]]] = {
    "presence": weigh_presence,
    "log-sqrt": weigh_log_sqrt,
}
DEFAULT_RULE: Final = "log-sqrt"


def weigh(counts: Counts, responses: Counts, rule: str = DEFAULT_RULE) -> Counts:
    """Integer weight of each pair.

    Parameters
    ----------
    counts : int64 [n], N(c, t) >= 1, from the suspect's outputs
    responses : int64 [n], n(c) >= 0, from the index; 0 gives weight 0
    rule : name in RULES; chosen before the outputs are seen

    Returns
    -------
    int64 [n], >= 0. Cost: a few operations a pair.
    """
    if rule not in RULES:
        raise UsageError(f"weight rule must be one of {', '.join(RULES)}; got {rule}.")
    return RULES[rule](counts, responses)
