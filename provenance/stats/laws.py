"""The law of one score when the suspect is independent of the key (H0).

A law is a tuple of integers: how many of the equally likely words give score 0, 1, 2, ... Integers,
because the coins are 32-bit words: nothing is rounded before the tail is computed.

Does not know which scheme produced the law, nor what a word or a score means.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError

MAX_LEVELS = 1 << 14
"""Longest law accepted: a hostile evidence file must not exhaust memory."""

_MAX_WORDS = 1 << 256


@dataclass(frozen=True)
class NullLaw:
    """Law of one score under H0: score j has probability masses[j] / sum(masses).

    Parameters
    ----------
    masses : tuple of int, length J
        Number of equally likely words with score j, j = 0..J-1. Zeros are allowed anywhere; at
        least one entry is positive. Our schemes use a total of 2**32.

    Raises
    ------
    UsageError
        If masses is empty, longer than 16384, has a negative or non-integer entry, or sums to 0.

    Examples
    --------
    >>> NullLaw.bernoulli(2**30).mean
    0.25
    >>> NullLaw((1, 2, 1)).variance
    0.5
    """

    masses: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "masses", _whole_numbers(self.masses))
        if not 1 <= len(self.masses) <= MAX_LEVELS:
            raise UsageError(
                f"The masses of a null law must be 1 to {MAX_LEVELS} integers; "
                f"got {len(self.masses)}. Pass one mass per score."
            )
        if min(self.masses) < 0:
            raise UsageError(
                f"The masses of a null law must be >= 0; got {min(self.masses)}. "
                "Pass the number of words per score."
            )
        if not 0 < sum(self.masses) <= _MAX_WORDS:
            raise UsageError(
                "The masses of a null law must sum to 1 .. 2**256; "
                f"got {sum(self.masses):.6g}. Pass the number of words per score."
            )

    @classmethod
    def bernoulli(cls, threshold: int, total: int = 2**32) -> NullLaw:
        """Law of a coin that scores 1 with probability threshold / total, else 0.

        Parameters
        ----------
        threshold : int
            Number of words that score 1, 0 <= threshold <= total.
        total : int
            Number of words.

        Raises
        ------
        UsageError
            If threshold is outside 0..total.
        """
        if not 0 <= threshold <= total:
            raise UsageError(
                f"threshold must be in 0..{total}; got {threshold}. "
                "Pass round(gamma * total) for a share gamma in [0, 1]."
            )
        return cls((total - threshold, threshold))

    @cached_property
    def total(self) -> int:
        """Number of equally likely words: the sum of the masses."""
        return sum(self.masses)

    @cached_property
    def probabilities(self) -> NDArray[np.float64]:
        """Probability of each score, float64 (J,); each is the correctly rounded quotient."""
        values = np.array([mass / self.total for mass in self.masses], dtype=np.float64)
        values.setflags(write=False)
        return values

    @cached_property
    def support(self) -> tuple[int, ...]:
        """Scores of positive probability, ascending."""
        return tuple(score for score, mass in enumerate(self.masses) if mass)

    @cached_property
    def moments(self) -> tuple[Fraction, Fraction, Fraction]:
        """Mean, variance and fourth central moment, exact."""
        levels = [(score, mass) for score, mass in enumerate(self.masses) if mass]
        first, second, third, fourth = (
            Fraction(sum(mass * score**power for score, mass in levels), self.total)
            for power in (1, 2, 3, 4)
        )
        variance = second - first**2
        central = fourth - 4 * first * third + 6 * first**2 * second - 3 * first**4
        return first, variance, central

    @property
    def mean(self) -> float:
        """Mean of one score, rounded once from the exact fraction."""
        return float(self.moments[0])

    @property
    def variance(self) -> float:
        """Variance of one score, rounded once from the exact fraction."""
        return float(self.moments[1])


def _whole_numbers(values: Iterable[object]) -> tuple[int, ...]:
    """Return the values as Python ints; floats, bools and strings are refused."""
    try:
        items = tuple(values)
        if any(isinstance(item, (bool, np.bool_)) for item in items):
            raise TypeError("a bool is not a mass")
        return tuple(operator.index(item) for item in items)  # type: ignore[arg-type]
    except TypeError as error:
        raise UsageError(
            f"The masses of a null law must be integers; got {error}. "
            "Pass a tuple of int, one per score."
        ) from error
