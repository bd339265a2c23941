"""Tournament sampling with a few layers (SynthID-Text, Dathathri et al. 2024, Nature 634).

Layer l of a token is bit 31 - l of its word. Each layer replaces p by p (1 + g - sum g p), the law
of the winner of a two-token tournament decided by g; over random keys the drawn token has exactly
the model's probabilities. The score is the number of layer bits that are 1: Binomial(layers, 1/2).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from math import comb
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.marks.own.draws import TOURNAMENT, Code, choose
from provenance.marks.own.scheme import WORDS, check_draw
from provenance.stats.laws import NullLaw


@dataclass(frozen=True)
class Tournament:
    """layers: 1 .. 32; 2 to 4 keep most of the evidence per unit of lost diversity."""

    layers: int = 4
    name = "tournament"

    def __post_init__(self) -> None:
        if not isinstance(self.layers, int) or not 1 <= self.layers <= 32:
            raise UsageError(f"layers must be a whole number 1 .. 32; got {self.layers}. Use 4.")

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"layers": self.layers}

    @cached_property
    def null_law(self) -> NullLaw:
        """Binomial(layers, 1/2) over all words."""
        each = WORDS >> self.layers
        return NullLaw(tuple(comb(self.layers, j) * each for j in range(self.layers + 1)))

    @property
    def code(self) -> Code:
        return Code(TOURNAMENT, self.layers)

    def draw(
        self, probabilities: NDArray[np.float64], words: NDArray[np.uint32], uniform: float
    ) -> int:
        """Ordinary draw after `layers` tournament updates. Cost: 2 passes a layer."""
        check_draw(probabilities, words)
        return int(choose(*self.code, probabilities.copy(), words, uniform))

    def score(self, words: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Number of ones among the first `layers` bits."""
        ones = np.bitwise_count(words >> np.uint32(32 - self.layers))
        return np.asarray(ones, dtype=np.int64)
