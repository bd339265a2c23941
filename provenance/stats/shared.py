"""Coins of two suspects, named alike, where a coin may belong to several pairs.

Each suspect numbers its coins in its own way; that two of them are one coin shows where a pair
occurs in both. A row of numbers names a pair; what it means is not known here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provenance.errors import DataError
from provenance.stats.coin_sets import identifiers

NamedUnits = tuple[NDArray[np.uint32], NDArray[np.int64]]
"""Distinct names of coins, uint32 (m, width), and their weights, int64 (m,)."""


@dataclass(frozen=True)
class WeightedUnits:
    """The coins of one suspect under one key.

    Attributes
    ----------
    pairs : uint32 (n, width), distinct
    coins : int64 (n,), the coin of each pair, from 0; -1 where it has none. None: the coins are
        the pairs, in their order
    weights : int64 (m,), of the coins
    """

    pairs: NDArray[np.uint32]
    coins: NDArray[np.int64] | None
    weights: NDArray[np.int64]


def join_units(first: WeightedUnits, second: WeightedUnits) -> tuple[NamedUnits, NamedUnits]:
    """The same name for a coin of both, for `families.correlate_z`.

    Raises DataError if one coin of one suspect is two coins of the other, which no key can do.

    Notes
    -----
    Coins that both have, but in no common pair, keep two names: the correlation found is that of
    the coins that can be seen to be shared. O(n log n).

    Examples
    --------
    >>> pairs = np.array([[1, 5], [1, 6], [2, 5]], dtype=np.uint32)
    >>> one = WeightedUnits(pairs, np.array([0, 0, 1]), np.array([3, 1]))
    >>> other = WeightedUnits(pairs[1:], np.array([0, 1]), np.array([2, 1]))
    >>> [names.tolist() for names, _ in join_units(one, other)]
    [[[0], [1]], [[0], [1]]]
    """
    if first.coins is None or second.coins is None:
        return (first.pairs, first.weights), (second.pairs, second.weights)
    width = first.pairs.shape[1]
    _, left, right = np.intersect1d(
        identifiers(first.pairs, width),
        identifiers(second.pairs, width),
        assume_unique=True,
        return_indices=True,
    )
    own, other = first.coins[left], second.coins[right]
    couples = np.unique(np.column_stack([own, other]), axis=0)
    if any(np.unique(column).size != column.size for column in couples.T):
        raise DataError("two suspects under one key must agree which pairs share a coin")
    couples = couples[(couples >= 0).all(axis=1)]
    names = np.arange(first.weights.size, dtype=np.int64)
    others = first.weights.size + np.arange(second.weights.size, dtype=np.int64)
    others[couples[:, 1]] = couples[:, 0]
    return (
        (names.astype(np.uint32)[:, np.newaxis], first.weights),
        (others.astype(np.uint32)[:, np.newaxis], second.weights),
    )
