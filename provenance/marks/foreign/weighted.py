"""Two coins a pair, added in a whole ratio: what the dual-key schemes share.

Knows laws and shares; knows no keys.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Final

from provenance.stats.laws import NullLaw

_PARTS: Final = 16
"""Weights of the two coins are at most this, so that the law stays short."""


def whole_weights(share: float) -> tuple[int, int]:
    """Whole weights of the coins of A and B, in the ratio nearest to (1 - share) : share.

    >>> whole_weights(0.1), whole_weights(0.5)
    ((9, 1), (1, 1))
    """
    part = Fraction(share).limit_denominator(_PARTS)
    return part.denominator - part.numerator, part.numerator


def add_laws(single: NullLaw, weights: tuple[int, int]) -> NullLaw:
    """Law of the weighted sum of two independent scores of one law."""
    masses = [0] * ((len(single.masses) - 1) * sum(weights) + 1)
    for i, first in enumerate(single.masses):
        for j, second in enumerate(single.masses):
            masses[i * weights[0] + j * weights[1]] += first * second
    return NullLaw(tuple(masses))
