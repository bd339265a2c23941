"""Observations: how much mass a suspect put on which token after which context.

The one shape that every way of access ends in: sampled text (masses are counts), logprobs and
weights (masses are sums of probabilities). A reference fills in what was expected. Knows no key, no
index, no scheme and no file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import ContextIds, unpack


@dataclass(frozen=True)
class Observations:
    """Masses of a suspect's choices, each (context, token) once; sorted by context and token.

    Attributes
    ----------
    contexts : int64 [n], packed (`provenance.coins.contexts.pack`)
    tokens : uint32 [n]
    masses : float64 [n], N(c, t): how often the suspect put t at a position of c, or the sum of its
        probabilities of t there; 0 where only a reference expected the pair
    totals : int64 [n], N(c): positions at which the pair's context stood
    expected : float64 [n], mass that a reference model put there; 0 without a reference
    sampled : True if masses are counts of drawn tokens, False if they are probabilities
    positions : positions counted, over all contexts
    outputs, tokens_read : how many outputs (or documents) and tokens were read
    short_outputs : outputs of at most k tokens, which have no context
    repeated, prompted, quoted : positions left out because the context repeats, because it stands
        in the prompt token for token, or because they quote the prompt in another form; each is
        counted under the first reason that holds
    with_prompt : outputs that came with a prompt
    sha256 : hex digest of each file read, by the file's name (`files.name_files`)
    reference, source : what the reference was and how the suspect was read, for the verdict
    wide : ids of the contexts, where these are longer than a packed name can hold
    asked : the distinct texts of the prompts, counted as if they were outputs, or None
    ends : what a reference model expected of the tokens that end responses, see `Expectations`
    """

    contexts: NDArray[np.int64]
    tokens: NDArray[np.uint32]
    masses: NDArray[np.float64]
    totals: NDArray[np.int64]
    expected: NDArray[np.float64]
    sampled: bool
    positions: int
    outputs: int
    tokens_read: int
    short_outputs: int
    repeated: int
    prompted: int
    sha256: Mapping[str, str]
    reference: Mapping[str, Any] = field(default_factory=dict)
    source: Mapping[str, Any] = field(default_factory=lambda: {"access": "outputs"})
    wide: ContextIds | None = None
    quoted: int = 0
    with_prompt: int = 0
    asked: Observations | None = None
    ends: Expectations | None = None

    def context_ids(self, pairs: NDArray[np.int64], width: int) -> NDArray[np.uint32]:
        """Ids of the contexts of these pairs (positions in the columns): uint32 [n, width]."""
        names = self.contexts[pairs]
        return unpack(names, width) if self.wide is None else self.wide.find(names)


@dataclass(frozen=True)
class Expectations:
    """contexts int64 [m] (packed), tokens uint32 [m], masses float64 [m] >= 0; pairs may repeat.

    A reference is a function of unmarked text and of the suspect's own outputs, never of a key or
    of the log's (context, token) pairs, so whatever it says, right or wrong, the weights that come
    of it are safe; a wrong one only costs power. `reference` says what it was, for the verdict.
    `ends` is what it expected of the tokens that end responses, wherever the text could have ended.
    """

    contexts: NDArray[np.int64]
    tokens: NDArray[np.uint32]
    masses: NDArray[np.float64]
    reference: Mapping[str, Any]
    ends: Expectations | None = None


def sum_pairs(
    contexts: NDArray[np.int64], tokens: NDArray[np.uint32], *masses: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.uint32], list[NDArray[np.float64]]]:
    """Distinct (context, token) in ascending order, and the sum of each of the masses over them.

    Parameters: int64 [n], uint32 [n] and any number of float64 [n]. Cost: one sort.

    >>> contexts, tokens, [sums] = sum_pairs(
    ...     np.array([5, 4, 5]), np.array([1, 1, 1], dtype=np.uint32), np.array([0.5, 1, 2])
    ... )
    >>> contexts.tolist(), sums.tolist()
    ([4, 5], [1.0, 2.5])
    """
    order = np.lexsort((tokens, contexts))
    contexts, tokens = contexts[order], tokens[order]
    starts = np.ones(contexts.shape[0], dtype=np.bool_)
    starts[1:] = (contexts[1:] != contexts[:-1]) | (tokens[1:] != tokens[:-1])
    group = np.cumsum(starts) - 1
    sums = [np.bincount(group, weights=mass[order]).astype(np.float64) for mass in masses]
    return contexts[starts], tokens[starts], sums


def totals_of_pairs(
    contexts: NDArray[np.int64], visited: NDArray[np.int64], visits: NDArray[np.int64]
) -> NDArray[np.int64]:
    """N(c) of each pair's context: int64 [n] from distinct, ascending `visited` and its `visits`.

    0 for a context that was not visited.
    """
    if not visited.size:
        return np.zeros(contexts.shape[0], dtype=np.int64)
    places = np.minimum(np.searchsorted(visited, contexts), visited.shape[0] - 1)
    return np.where(visited[places] == contexts, visits[places], 0).astype(np.int64)


def add_expectations(observations: Observations, expectations: Expectations) -> Observations:
    """Observations over the pairs of both, with `expected` filled in; sorted like before.

    Cost: one sort of all pairs.
    """
    none = np.zeros(expectations.contexts.shape[0])
    contexts, tokens, (masses, expected) = sum_pairs(
        np.concatenate([observations.contexts, expectations.contexts]),
        np.concatenate([observations.tokens, expectations.tokens]),
        np.concatenate([observations.masses, none]),
        np.concatenate([observations.expected, expectations.masses]),
    )
    visited, first = np.unique(observations.contexts, return_index=True)
    return replace(
        observations,
        contexts=contexts,
        tokens=tokens,
        masses=masses,
        totals=totals_of_pairs(contexts, visited, observations.totals[first]),
        expected=expected,
        reference=expectations.reference,
        ends=expectations.ends,
    )
