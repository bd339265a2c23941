"""Green list (Kirchenbauer et al. 2023, arXiv 2301.10226): a share gamma of tokens is favoured.

A token is green if its word is below round(gamma 2**32); green tokens have their probability
multiplied by exp(delta) before an ordinary draw. The mark costs quality in every response (it is
not undistorted); it is here for comparison and for labs that already serve it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import exp, isfinite
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.marks.own.draws import GREEN, Code, choose
from provenance.marks.own.scheme import WORDS, check_draw
from provenance.stats.laws import NullLaw


@dataclass(frozen=True)
class Green:
    """gamma: share of green tokens, (0, 1); delta: bias of a green token's logit, nats, >= 0."""

    gamma: float = 0.25
    delta: float = 2.0
    name = "green"

    def __post_init__(self) -> None:
        if not 0 < self.gamma < 1 or not 0 < self.threshold < WORDS:
            raise UsageError(f"gamma must be in (0, 1); got {self.gamma}. Use 0.25.")
        if not isfinite(self.delta) or not 0 <= self.delta <= 50:
            raise UsageError(f"delta must be in [0, 50]; got {self.delta}. Use 2.")

    @property
    def threshold(self) -> int:
        """Words below this are green; gamma in every formula is threshold / 2**32."""
        return round(self.gamma * WORDS)

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"gamma": self.gamma, "delta": self.delta}

    @cached_property
    def null_law(self) -> NullLaw:
        """Bernoulli(threshold / 2**32)."""
        return NullLaw.bernoulli(self.threshold)

    @property
    def code(self) -> Code:
        return Code(GREEN, self.threshold, exp(self.delta))

    def draw(
        self, probabilities: NDArray[np.float64], words: NDArray[np.uint32], uniform: float
    ) -> int:
        """Ordinary draw from probabilities * exp(delta * green)."""
        check_draw(probabilities, words)
        return int(choose(*self.code, probabilities.copy(), words, uniform))

    def score(self, words: NDArray[np.uint32]) -> NDArray[np.int64]:
        """1 for a green word, else 0."""
        return (words < self.threshold).astype(np.int64)
