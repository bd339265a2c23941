"""Gumbel-max sampling with keyed uniforms (Aaronson 2022), scored on a lattice.

The draw is argmax over tokens of u_t^(1 / p_t), u_t = (word_t + 1/2) / 2**32: over random keys the
drawn token has exactly the model's probabilities, so a single response is undistorted. The score of
the drawn token's word is the usual -ln(1 - u), Exp(1) under H0, cut into steps of 1/4 so that the
law of a weighted sum is a lattice law and its tail can be computed exactly:

    score(word) = #{ j >= 1 : word >= T_j },     T_j = ceil(2**32 (1 - exp(-j / 4)))

Correlation with the continuous score is .997.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from math import ceil, exp
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.marks.own.draws import GUMBEL, Code, draw_gumbel
from provenance.marks.own.scheme import WORDS, check_draw
from provenance.stats.laws import NullLaw

_STEP: Final = 0.25


def _thresholds() -> NDArray[np.uint32]:
    """T_1, T_2, ... below 2**32. float64 is enough: no T_j is within 1e-3 of rounding otherwise."""
    values = []
    step = 1
    while (threshold := ceil(WORDS * (1 - exp(-_STEP * step)))) < WORDS:
        values.append(threshold)
        step += 1
    return np.array(values, dtype=np.uint32)


_THRESHOLDS: Final = _thresholds()


@dataclass(frozen=True)
class Gumbel:
    """The default scheme; it has no parameters."""

    name = "gumbel"

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {}

    @cached_property
    def null_law(self) -> NullLaw:
        """Number of words per score: differences of the thresholds."""
        edges = [0, *(int(t) for t in _THRESHOLDS), WORDS]
        return NullLaw(tuple(b - a for a, b in pairwise(edges)))

    @property
    def code(self) -> Code:
        return Code(GUMBEL)

    def draw(
        self, probabilities: NDArray[np.float64], words: NDArray[np.uint32], uniform: float
    ) -> int:
        """argmin of -ln(u) / p; `uniform` is not used. Cost: few logarithms."""
        del uniform
        check_draw(probabilities, words)
        return int(draw_gumbel(probabilities, words))

    def score(self, words: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Number of thresholds at or below each word: 0 .. 88."""
        return np.searchsorted(_THRESHOLDS, words, side="right").astype(np.int64)
