"""Weights: integers from masses and index counts alone, with or without a reference model.

A weight is fixed before any coin is looked at, and a function of how much mass the suspect put on
the token, N(c, t), of what a reference expected, E(c, t), and of how many marked responses served
the context, n(c). There is no argument through which a coin, or a count of (context, token) pairs
in the *log*, could come in: both would make an innocent model look guilty.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError

Integers = NDArray[np.int64]
Masses = NDArray[np.float64]

_LEVELS: Final = 63
_COUNT_CAP: Final = 16
_RESPONSES_CAP: Final = 1 << 10
_RESIDUAL_LEVELS: Final = 255
_POSITIONS_CAP: Final = 1 << 16
_LEAST_RESIDUAL: Final = 1e-6
"""Less is rounding: a suspect that is its own reference weighs nothing."""


class _Constants(NamedTuple):
    """Of `weigh_residual`: prior positions t, clip c, addend a of the probability."""

    prior: float
    clip: float
    addend: float


DRAWN: Final = _Constants(prior=10.0, clip=0.4, addend=0.3)
PROBABILITIES: Final = _Constants(prior=0.0, clip=0.2, addend=0.003)


@dataclass(frozen=True)
class PairCounts:
    """What a weight may know of each pair.

    Attributes
    ----------
    masses : float64 [n], N(c, t) >= 0
    totals : int64 [n], N(c) >= N(c, t) up to rounding: positions at which the context stood
    responses : int64 [n], n(c) >= 0, from the index; 0 gives weight 0
    expected : float64 [n], E(c, t) >= 0, from a reference over the same positions; 0 without one
    sampled : masses count drawn tokens (True) or are sums of probabilities (False)
    """

    masses: Masses
    totals: Integers
    responses: Integers
    expected: Masses
    sampled: bool = True


def weigh_presence(choices: PairCounts) -> Integers:
    """round(63 n / (n + 5)) for every pair that occurs: each pair counts once.

    Retired: of all rules it errs most where responses were selected after generation, and finds
    least. See docs/decisions/0010.
    """
    shares = choices.responses / (choices.responses + 5.0)
    return _round(np.where(choices.masses > 0, _LEVELS * shares, 0))


def weigh_log_sqrt(choices: PairCounts) -> Integers:
    """round(4 ln(1 + n) sqrt(N)), n up to 1,024 and N up to 16: at most 111.

    The caps bound what one phrase that the suspect repeats, or one context that the log is full of,
    can weigh.
    """
    return _round(4 * _logarithm(choices) * np.sqrt(np.minimum(choices.masses, _COUNT_CAP)))


def weigh_residual(choices: PairCounts) -> Integers:
    """How much more than expected, per position, in 255 levels of the largest.

    w = clip((N - E) / (N(c) + t), -c, c) / sqrt(q + a) * ln(1 + n) * sqrt(N(c))

    with q = E / N(c), and t = 10, c = .4, a = .3 for drawn tokens, t = 0, c = .2, a = .003 for
    probabilities: a token that was drawn once at one position says little of its probability. A
    pair that any model of the language would choose weighs nothing; the clip bounds what a wrong
    reference can do; a rare token that became likely says more than a likely one that became
    likelier, if it is known that it did. See docs/decisions/0009.
    """
    prior, clip, addend = DRAWN if choices.sampled else PROBABILITIES
    totals = np.minimum(np.maximum(choices.totals, 1), _POSITIONS_CAP).astype(np.float64)
    residual = (choices.masses - choices.expected) / (np.maximum(choices.totals, 1) + prior)
    residual[np.abs(residual) < _LEAST_RESIDUAL] = 0.0
    q = choices.expected / np.maximum(choices.totals, 1)
    real = np.clip(residual, -clip, clip) / np.sqrt(q + addend)
    real = real * _logarithm(choices) * np.sqrt(totals)
    largest = float(np.abs(real).max(initial=0.0))
    return _round(real * (_RESIDUAL_LEVELS / largest) if largest > 0 else real)


RULES: Final[Mapping[str, Callable[[PairCounts], Integers]]] = {
    "log-sqrt": weigh_log_sqrt,
    "residual": weigh_residual,
}
RETIRED: Final[Mapping[str, Callable[[PairCounts], Integers]]] = {"presence": weigh_presence}
"""Rules of earlier checks: they are verified and a sequential check goes on, no new one begins."""
MAXIMAL_WEIGHTS: Final[Mapping[str, int]] = {
    "presence": _LEVELS,
    "log-sqrt": 111,
    "residual": _RESIDUAL_LEVELS,
}
"""Bound on |weight| of each rule: the scale that an e-process declares before any coin is seen."""
DEFAULT_RULE: Final = "log-sqrt"
"""For text without a reference."""
REFERENCE_RULE: Final = "residual"
"""With a reference, and for probabilities."""


def choose_rule(*, sampled: bool, has_reference: bool) -> str:
    """The rule for what was seen of a suspect, wherever nobody chose another one before.

    Parameters: whether masses count drawn tokens; whether a reference expects some.

    >>> [choose_rule(sampled=True, has_reference=has) for has in (False, True)]
    ['log-sqrt', 'residual']
    """
    return DEFAULT_RULE if sampled and not has_reference else REFERENCE_RULE


def refuse_retired(rule: str) -> str:
    """The same rule, for a check that begins; UsageError if it is retired.

    >>> refuse_retired("log-sqrt")
    'log-sqrt'
    """
    if rule in RETIRED:
        raise UsageError(
            f"a new check must take weight rule {' or '.join(RULES)}; {rule} is retired, see "
            f"docs/decisions/0010. Leave --rule out, or make a new plan."
        )
    return rule


def weigh(choices: PairCounts, rule: str = DEFAULT_RULE) -> Integers:
    """Integer weight of each pair, int64 [n]; negative only under `residual`.

    Parameters: what is known of each pair; a name in RULES (or RETIRED), chosen before the outputs
    are seen.
    Raises UsageError. Cost: a few operations a pair.
    """
    rules = {**RULES, **RETIRED}
    if rule not in rules:
        raise UsageError(f"weight rule must be one of {', '.join(RULES)}; got {rule}.")
    return rules[rule](choices)


def _logarithm(choices: PairCounts) -> Masses:
    """ln(1 + n) with n up to 1,024."""
    return np.asarray(np.log1p(np.minimum(choices.responses, _RESPONSES_CAP)))


def _round(weights: Masses) -> Integers:
    return np.asarray(np.rint(weights), dtype=np.int64)
