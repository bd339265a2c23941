"""Expected counts E(c, t) from a reference, joined with what the suspect did.

A reference predicts the suspect's innocent behaviour. It is a function of unmarked text and of the
suspect's own outputs, never of a key or of the log's (context, token) pairs, so whatever it says,
right or wrong, the weights that come of it are safe; a wrong one only costs power.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.suspect.outputs import Observations

__all__ = ["Expectations", "add_expectations"]


@dataclass(frozen=True)
class Expectations:
    """contexts int64 [m] (packed), tokens uint32 [m], masses float64 [m] >= 0; pairs may repeat.

    `reference` says what the reference was, for the verdict.
    """

    contexts: NDArray[np.int64]
    tokens: NDArray[np.uint32]
    masses: NDArray[np.float64]
    reference: Mapping[str, Any]


def add_expectations(observations: Observations, expectations: Expectations) -> Observations:
    """Observations over the pairs of both, with `expected` filled in; sorted like before.

    Cost: one sort of all pairs.
    """
    contexts = np.concatenate([observations.contexts, expectations.contexts])
    tokens = np.concatenate([observations.tokens, expectations.tokens])
    order = np.lexsort((tokens, contexts))
    contexts, tokens = contexts[order], tokens[order]
    starts = np.ones(contexts.shape[0], dtype=np.bool_)
    starts[1:] = (contexts[1:] != contexts[:-1]) | (tokens[1:] != tokens[:-1])
    group = np.cumsum(starts) - 1
    padding = np.zeros(expectations.contexts.shape[0])
    counts = np.concatenate([observations.counts, padding])[order]
    masses = np.concatenate([observations.expected, expectations.masses])[order]
    return replace(
        observations,
        contexts=contexts[starts],
        tokens=tokens[starts],
        counts=np.rint(np.bincount(group, counts)).astype(np.int64),
        expected=np.bincount(group, masses).astype(np.float64),
        reference=expectations.reference,
    )
