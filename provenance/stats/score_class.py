"""One row of a class table.

Does not know the other rows, nor how scores are drawn.
"""

from __future__ import annotations

from dataclasses import dataclass

from provenance.errors import DataError
from provenance.stats.laws import NullLaw

MAX_WEIGHT = 1 << 40
MAX_COUNT = 1 << 52


@dataclass(frozen=True)
class ScoreClass:
    """All coins that share one weight and one null law.

    Parameters
    ----------
    weight : int
        Weight of each coin, not 0, |weight| <= 2**40.
    law : NullLaw
        Law of each score under H0.
    count : int
        Number of coins, 1 .. 2**52.
    total : int
        Sum of their scores; between count * lowest and count * highest score of the law.

    Raises
    ------
    DataError
        If an entry is outside its domain; the message names it.
    """

    weight: int
    law: NullLaw
    count: int
    total: int

    def __post_init__(self) -> None:
        for name in ("weight", "count", "total"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise DataError(
                    f"The {name} of a score class must be an int; got {type(value).__name__}. "
                    "Convert it before building the class."
                )
        if not 0 < abs(self.weight) <= MAX_WEIGHT:
            raise DataError(
                f"The weight of a score class must be in 1..2**40 up to sign; got {self.weight}. "
                "Rescale the weights, and leave out coins of weight 0."
            )
        if not 1 <= self.count <= MAX_COUNT:
            raise DataError(
                f"The count of a score class must be in 1..2**52; got {self.count}. "
                "Leave out empty classes."
            )
        low, high = (self.count * self.law.support[end] for end in (0, -1))
        if not low <= self.total <= high:
            raise DataError(
                f"The total of {self.count} scores under this law must be in {low}..{high}; "
                f"got {self.total}. The scores do not come from the stated law."
            )
