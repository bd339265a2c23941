"""How far two suspects' findings under one key are one finding: the coins that both of them have.

Reads the scored pairs of their bundles. Where several pairs share a coin (another scheme's mark), a
coin that both have is recognised by a pair that both have; one that each has through other pairs
stays unseen, so the correlation found is too low rather than too high. No error rate rests on it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Final, Protocol

import numpy as np

from provenance.check.pairs import read_any_pairs
from provenance.check.score import merge_weights
from provenance.errors import DataError, StorageError, UsageError, say_briefly
from provenance.keys.schedule import KeyName
from provenance.stats.families import correlate_z
from provenance.stats.laws import NullLaw
from provenance.stats.shared import WeightedUnits, join_units
from provenance.stats.tables import ClassTable
from provenance.storage.files import is_of_disk

_PAIRS_FOLDER: Final = "pairs"


class Bundled(Protocol):
    """What is asked of a suspect: its folder, the law of a score, and its class tables."""

    @property
    def name(self) -> str:
        """The folder as given."""

    @property
    def law(self) -> NullLaw | None:
        """None if no coin was scored."""

    @property
    def tables(self) -> Mapping[KeyName, ClassTable]:
        """Of each key that was tried, in the order of the verdict."""


@dataclass(frozen=True)
class Correlation:
    """Correlation under H0 of two suspects' z under one key, from the coins that both have.

    `shared_pairs`: how many coins; with our own schemes every pair has one.
    """

    first: str
    second: str
    key: str
    shared_pairs: int
    correlation: float


def correlate_bundles(
    suspects: Sequence[Bundled], keys: Sequence[KeyName]
) -> tuple[tuple[Correlation, ...], tuple[str, ...]]:
    """Per key, every two suspects whose bundles hold the pairs; and the names of the others.

    Raises DataError for pairs that do not add up to their class table.
    """
    holders = [one for one in suspects if (Path(one.name) / _PAIRS_FOLDER).is_dir()]
    found: list[Correlation] = []
    for key in keys:
        pairs = [(one.name, _read_pairs(one, key)) for one in holders if key in one.tables]
        for (first, left), (second, right) in combinations(pairs, 2):
            value, shared = _correlate_two(first, left, second, right)
            found.append(Correlation(first, second, str(key), shared, value))
    return tuple(found), tuple(one.name for one in suspects if one not in holders)


def _correlate_two(
    first: str, left: WeightedUnits, second: str, right: WeightedUnits
) -> tuple[float, int]:
    try:
        return correlate_z(*join_units(left, right))
    except (DataError, UsageError) as error:
        raise DataError(
            f"{first} and {second}: {error}; these do not. Run `provenance verify` on each."
        ) from error


def _read_pairs(suspect: Bundled, key: KeyName) -> WeightedUnits:
    """Coins and weights of one key; refused unless they add up to the verdict's class table."""
    name = f"{_PAIRS_FOLDER}/{list(suspect.tables).index(key):03d}"
    path = Path(suspect.name) / name
    try:
        pairs, scores, numbers = read_any_pairs(Path(suspect.name), name)
        rows, weights = np.column_stack([pairs.contexts, pairs.tokens]), pairs.weights
        if numbers is not None:
            first = np.unique(numbers[numbers >= 0], return_index=True)[1]
            weights = merge_weights(weights, numbers, first.size)
            scores = scores[numbers >= 0][first]
        units = WeightedUnits(rows, numbers, weights)
        found = ClassTable.from_scores(weights, scores, suspect.law or NullLaw((1,)))
    except (StorageError, ValueError) as error:
        if is_of_disk(error):
            raise
        raise DataError(
            f"{path}: must hold the pairs of {key!s}; got: {say_briefly(error)}. "
            "Run `provenance verify`."
        ) from error
    if found != suspect.tables[key]:
        raise DataError(
            f"{path}: must add up to the class table of {key!s}; it does not. "
            "Run `provenance verify`."
        )
    return units
