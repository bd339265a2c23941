"""What every scheme is: how coins steer a draw, how a word is scored, and the exact null law.

A scheme sees final probabilities and 32-bit words. It does not know keys, contexts, tokenizers,
serving stacks or what is done with a score.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.marks.own.draws import Code, draw_plain
from provenance.stats.laws import NullLaw

WORDS = 1 << 32
"""Number of equally likely values of a coin."""


@runtime_checkable
class Scheme(Protocol):
    """The protocol. Instances are immutable and hold no state between draws."""

    name: str

    @property
    def parameters(self) -> Mapping[str, Any]:
        """JSON-able parameters; with `name`, all that fixes the scheme."""
        ...

    @property
    def null_law(self) -> NullLaw:
        """Exact law of the score of a uniform word: how many of the 2**32 words score j."""
        ...

    @property
    def code(self) -> Code:
        """The scheme as numbers, for compiled code; see `provenance.marks.own.draws`."""
        ...

    def draw(
        self, probabilities: NDArray[np.float64], words: NDArray[np.uint32], uniform: float
    ) -> int:
        """Draw one candidate.

        Parameters
        ----------
        probabilities : float64 [m], the *final* probabilities (after temperature, top-k, top-p) of
            the candidates; positive sum, need not be normalised
        words : uint32 [m], coins of the candidates
        uniform : fresh randomness in [0, 1); a scheme whose coins decide the draw ignores it

        Returns
        -------
        Index of the drawn candidate, 0 .. m - 1.
        """
        ...

    def score(self, words: NDArray[np.uint32]) -> NDArray[np.int64]:
        """Score of each word, non-negative integers: uint32 [n] -> int64 [n]."""
        ...


def draw_unmarked(probabilities: NDArray[np.float64], uniform: float) -> int:
    """Ordinary sampling: the candidate whose cumulative share first exceeds `uniform`.

    Parameters: probabilities float64 [m] with positive sum; uniform in [0, 1). Returns an index.
    """
    return int(draw_plain(probabilities, uniform))


def check_draw(probabilities: NDArray[np.float64], words: NDArray[np.uint32]) -> None:
    """Raise UsageError unless the arguments of `Scheme.draw` are usable."""
    if probabilities.ndim != 1 or probabilities.shape != words.shape:
        raise UsageError(
            f"probabilities and words must be flat and of equal length; got {probabilities.shape} "
            f"and {words.shape}. Pass one word per candidate."
        )
    total = float(probabilities.sum())
    if not (0 < total < np.inf) or float(probabilities.min()) < 0:
        raise UsageError(
            "probabilities must be finite, non-negative and not all 0; they are not. "
            "Pass the model's final probabilities."
        )
