"""Pairs that share a coin: who belongs together, and what the coin of several pairs weighs.

In other people's schemes many (context, token) pairs have one coin, the *effective unit*. A unit is
numbered by its first pair, so that a numbering has one form and tells nothing of the key but which
pairs belong together. Knows no key and no score.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]

MAXIMUM_WEIGHT: Final = 1023
"""Levels to which the summed weights of a check are cut, so that a class table stays small."""


@dataclass(frozen=True)
class Groups:
    """Which of n pairs are one coin.

    Attributes
    ----------
    coins : int64 [n], the coin of each pair, from 0 in the order of first pairs; -1 for a pair
        without one (its coin is the same under every key, so it says nothing about this one)
    first : int64 [m], ascending: the first pair of each coin
    names : int64 [m]: the coin's name under this key, comparable under the same key only
    """

    coins: Integers
    first: Integers
    names: Integers


def group_pairs(units: Integers, usable: NDArray[np.bool_]) -> Groups:
    """Groups of pairs with equal units, int64 [n]; those that are not usable have no coin.

    Cost: one sort.

    >>> group_pairs(np.array([7, 5, 7, 9]), np.array([True, True, True, False])).coins.tolist()
    [0, 1, 0, -1]
    """
    kept = np.flatnonzero(usable)
    names, first, inverse = np.unique(units[kept], return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty(order.shape, dtype=np.int64)
    rank[order] = np.arange(order.shape[0])
    coins = np.full(units.shape, -1, dtype=np.int64)
    coins[kept] = rank[inverse]
    return Groups(coins, kept[first[order]], names[order])


def sum_weights(weights: Integers, coins: Integers, count: int) -> Integers:
    """Sum of the weights of the pairs of each of `count` coins: int64 [n] and [n] -> int64 [count].

    >>> sum_weights(np.array([1, 2, 3, 4]), np.array([0, 1, 0, -1]), 2).tolist()
    [4, 2]
    """
    kept = coins >= 0
    sums = np.bincount(coins[kept], weights=weights[kept], minlength=count)
    return np.rint(sums).astype(np.int64)


def quantise_weights(weights: Integers) -> Integers:
    """The same weights, scaled to at most 1,023 if any is larger, so that a table stays small.

    >>> quantise_weights(np.array([1, -2046, 1000])).tolist()
    [0, -1023, 500]
    """
    largest = int(np.abs(weights).max(initial=0))
    if largest <= MAXIMUM_WEIGHT:
        return weights
    scaled: Integers = np.rint(weights * (MAXIMUM_WEIGHT / largest)).astype(np.int64)
    return scaled
