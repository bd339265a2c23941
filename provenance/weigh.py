"""Weights: integers from counts alone, with or without a reference model.

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

__all__ = ["DEFAULT_RULE", "REFERENCE_RULE", "RULES", "weigh"]

Counts = NDArray[np.int64]
Masses = NDArray[np.float64]

_LEVELS: Final = 63
_COUNT_CAP: Final = 16
_RESPONSES_CAP: Final = 1 << 10
_RESIDUAL_CAP: Final = 20.0


def weigh_presence(counts: Counts, expected: Masses, responses: Counts) -> Counts:
    """round(63 n / (n + 5)) for every pair that occurs: each pair counts once."""
    del expected
    weights = np.where(counts > 0, _LEVELS * responses / (responses + 5.0), 0)
    return np.asarray(np.rint(weights), dtype=np.int64)


def weigh_log_sqrt(counts: Counts, expected: Masses, responses: Counts) -> Counts:
    """round(4 ln(1 + n) sqrt(N)), n up to 1,024 and N up to 16: at most 111.

    The caps bound what one phrase that the suspect repeats, or one context that the log is full of,
    can weigh.
    """
    del expected
    logarithm = np.log1p(np.minimum(responses, _RESPONSES_CAP))
    weights = np.rint(4 * logarithm * np.sqrt(np.minimum(counts, _COUNT_CAP)))
    return np.asarray(weights, dtype=np.int64)


def weigh_residual(counts: Counts, expected: Masses, responses: Counts) -> Counts:
    """round(clip(N - E, -20, 20) ln(1 + n)), n up to 1,024: at most 139 up to sign.

    E is what a reference model expected: a pair that any model of the language would choose weighs
    nothing. The clip bounds what a wrong reference can do with a frequent context.
    """
    residual = np.clip(counts - expected, -_RESIDUAL_CAP, _RESIDUAL_CAP)
    weights = np.rint(residual * np.log1p(np.minimum(responses, _RESPONSES_CAP)))
    return np.asarray(weights, dtype=np.int64)


RULES: Final[Mapping[str, Callable[[Counts, Masses, Counts], Counts]]] = {
    "presence": weigh_presence,
    "log-sqrt": weigh_log_sqrt,
    "residual": weigh_residual,
}
DEFAULT_RULE: Final = "log-sqrt"
"""Without a reference."""
REFERENCE_RULE: Final = "residual"
"""With a reference."""


def weigh(
    counts: Counts, responses: Counts, rule: str = DEFAULT_RULE, expected: Masses | None = None
) -> Counts:
    """Integer weight of each pair.

    Parameters
    ----------
    counts : int64 [n], N(c, t) >= 0, from the suspect's outputs
    responses : int64 [n], n(c) >= 0, from the index; 0 gives weight 0
    rule : name in RULES; chosen before the outputs are seen
    expected : float64 [n], E(c, t) >= 0, from a reference model over the same contexts

    Returns
    -------
    int64 [n]; negative only under `residual`. Cost: a few operations a pair.
    """
    if rule not in RULES:
        raise UsageError(f"weight rule must be one of {', '.join(RULES)}; got {rule}.")
    if rule == REFERENCE_RULE and expected is None:
        raise UsageError(
            f"weight rule {rule} must have expected counts; got none. Give a reference."
        )
    masses = np.zeros(counts.shape[0]) if expected is None else expected
    return RULES[rule](counts, masses, responses)
