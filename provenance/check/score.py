"""From observations to weighted pairs (no coin is looked at), and from pairs to a class table.

`weigh_observations` decides which (context, token) pairs are tested under which key and with which
weight; it knows the selector, the index and the counts, and cannot score. `score` opens one key.
The split is the validity of the test: a weight never sees the coins it multiplies.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from provenance.check.findings import GroupKey
from provenance.check.weigh import REFERENCE_RULE, PairCounts, weigh
from provenance.errors import UsageError
from provenance.keys.keyring import Key
from provenance.keys.schedule import CONTROL, KeyName
from provenance.marks import OpenKey, SchemeKey, Served
from provenance.marks.own import Scheme
from provenance.marks.sharing import quantise_weights, sum_weights
from provenance.served.index import Index
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable
from provenance.suspect.observations import Observations


@dataclass(frozen=True)
class WeightedPairs:
    """Distinct (context, token) pairs with their weights: uint32 [n, k], uint32 [n], int64 [n]."""

    contexts: NDArray[np.uint32]
    tokens: NDArray[np.uint32]
    weights: NDArray[np.int64]

    def __len__(self) -> int:
        return int(self.weights.shape[0])


@dataclass(frozen=True)
class Weighing:
    """All pairs of a check.

    Attributes
    ----------
    hypotheses : pairs per (slot, value) that was served
    pooled : pairs per slot, weighted by the responses of all its values together
    control : pairs in contexts that are never marked
    contexts_met : how many of the suspect's contexts were served marked, under any value of a slot
    groups : pairs per hypothesis on a group of responses; see `provenance.check.groups`
    """

    hypotheses: Mapping[KeyName, WeightedPairs]
    pooled: Mapping[str, WeightedPairs]
    control: WeightedPairs
    contexts_met: int = 0
    groups: Mapping[GroupKey, WeightedPairs] = field(default_factory=dict)


def weigh_observations(
    observations: Observations, index: Index, keyring: Served, rule: str
) -> Weighing:
    """Attach a weight to every pair whose context was served marked.

    Parameters
    ----------
    observations : the suspect's masses
    index : in how many marked responses each context was served, by slot and value
    keyring : for the selector key only
    rule : a name of `provenance.check.weigh.RULES`; UsageError if it lacks its reference

    Notes
    -----
    Cost: one coin (of the selector) and one look-up per distinct context.
    """
    if rule == REFERENCE_RULE and observations.sampled and not observations.reference:
        raise UsageError(
            f"weight rule {rule} must have a reference for sampled outputs; got none. Give one."
        )
    contexts, starts = np.unique(observations.contexts, return_index=True)
    stops = np.append(starts[1:], observations.contexts.shape[0])
    slots = keyring.slots_of_names(contexts)
    hypotheses: dict[KeyName, WeightedPairs] = {}
    pooled: dict[str, WeightedPairs] = {}
    met = 0
    for number, slot in enumerate(keyring.schedule.slots):
        own = np.flatnonzero(slots == number)
        matches = index.lookup(number, contexts[own])
        rows = own[matches.query]
        responses = matches.responses.astype(np.int64)
        total = np.bincount(rows, weights=responses, minlength=contexts.shape[0]).astype(np.int64)
        some = np.flatnonzero(total)
        pooled[slot.name] = expand_pairs(
            observations, keyring, starts, stops, some, total[some], rule
        )
        if slot.name == CONTROL:
            continue
        met += int(some.shape[0])
        by_value = np.argsort(matches.value, kind="stable")
        values = index.values_served(number)
        ends = np.searchsorted(matches.value[by_value], np.arange(len(values) + 1))
        for value, served in enumerate(values):
            part = by_value[ends[value] : ends[value + 1]]
            if served.contexts:
                hypotheses[KeyName(slot.name, served.name)] = expand_pairs(
                    observations, keyring, starts, stops, rows[part], responses[part], rule
                )
    return Weighing(hypotheses, pooled, pooled[CONTROL], met)


@dataclass(frozen=True)
class Coins:
    """The coins of weighted pairs under one key, each once.

    Attributes
    ----------
    weights, scores : int64 [m]
    numbers : int64 [n], the coin of each pair, -1 where it has none (`marks.units.Groups`); None
        where the coins are the pairs, in their order, as with our own schemes
    """

    weights: NDArray[np.int64]
    scores: NDArray[np.int64]
    numbers: NDArray[np.int64] | None = None

    @property
    def scores_of_pairs(self) -> NDArray[np.int64]:
        """Score of the coin of each pair, int64 [n]; 0 where it has none."""
        if self.numbers is None:
            return self.scores
        return np.append(self.scores, 0)[self.numbers]


def open_coins(pairs: WeightedPairs, key: OpenKey) -> Coins:
    """Open one key: weights of pairs that share a coin are added up first. Cost: one coin a pair.

    A coin whose pairs' weights cancel is among them, with weight 0: it counts for nothing.
    """
    groups = key.group(pairs.contexts, pairs.tokens)
    if groups is None:
        return Coins(pairs.weights, key.score(pairs.contexts, pairs.tokens))
    weights = merge_weights(pairs.weights, groups.coins, groups.first.shape[0])
    scores = key.score(pairs.contexts[groups.first], pairs.tokens[groups.first])
    return Coins(weights, scores, groups.coins)


def weigh_coins(pairs: WeightedPairs, key: OpenKey) -> NDArray[np.int64]:
    """Weights of the coins that `open_coins` would open, int64 [m]; opens none of them.

    Which pairs share a coin may depend on the key, but not on how its coins fall.
    """
    groups = key.group(pairs.contexts, pairs.tokens)
    if groups is None:
        return pairs.weights
    return merge_weights(pairs.weights, groups.coins, groups.first.shape[0])


def merge_weights(
    weights: NDArray[np.int64], numbers: NDArray[np.int64], coins: int
) -> NDArray[np.int64]:
    """Weight of each coin from those of its pairs: summed, and cut to 1,023 levels together."""
    return quantise_weights(sum_weights(weights, numbers, coins))


def tabulate(pairs: WeightedPairs, key: OpenKey, law: NullLaw) -> ClassTable:
    """Open one key: the class table of the coins of these pairs. Cost: one coin a pair."""
    coins = open_coins(pairs, key)
    return ClassTable.from_scores(coins.weights, coins.scores, law)


def score(pairs: WeightedPairs, key: Key, scheme: Scheme) -> ClassTable:
    """`tabulate` under a key of our own keyring."""
    return tabulate(pairs, SchemeKey(key, scheme), scheme.null_law)


def expand_pairs(
    observations: Observations,
    keyring: Served,
    starts: NDArray[np.int64],
    stops: NDArray[np.int64],
    rows: NDArray[np.int64],
    responses: NDArray[np.int64],
    rule: str,
) -> WeightedPairs:
    """Pairs of the distinct contexts `rows`, each weighted with its context's responses."""
    lengths = stops[rows] - starts[rows]
    ends = np.cumsum(lengths)
    total = int(ends[-1]) if ends.size else 0
    pairs = np.arange(total) + np.repeat(starts[rows] - (ends - lengths), lengths)
    choices = PairCounts(
        observations.masses[pairs],
        observations.totals[pairs],
        np.repeat(responses, lengths),
        observations.expected[pairs],
        observations.sampled,
    )
    weights = weigh(choices, rule)
    kept = weights != 0
    pairs = pairs[kept]
    return WeightedPairs(
        observations.context_ids(pairs, keyring.context_width),
        observations.tokens[pairs],
        weights[kept],
    )
