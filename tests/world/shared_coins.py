"""H0 of sequential checks where pairs share coins: innocents in three batches under random keys.

In full: `python -m benchmarks.foreign.sequential --keys 400`. Two doubles have a fault: one to
which every pair is a coin of its own, so that coins are opened again through other pairs, and one
that forgets between batches which coins are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.check.looks.revealed import UNIT_NAME_WIDTH, TestedKeys, Units, extend_sheet
from provenance.check.score import WeightedPairs
from provenance.check.weigh import MAXIMAL_WEIGHTS
from provenance.marks.foreign.mark import ForeignKey, ForeignMark
from provenance.stats.eprocess import start
from provenance.stats.tables import ClassTable

RULE: Final = "log-sqrt"


@dataclass(frozen=True)
class Simulated:
    """Per key: largest log10 E of all looks, z at the end, and z of the two doubles."""

    best: NDArray[np.float64]
    z: NDArray[np.float64]
    by_pairs: NDArray[np.float64]
    forgetful: NDArray[np.float64]


def simulate(
    mark: ForeignMark, batches: Sequence[WeightedPairs], keys: int, seed: bytes
) -> Simulated:
    """Weigh once, then reveal under `keys` random keys: coins independent of text and weights."""
    bound = MAXIMAL_WEIGHTS[RULE]
    process = start(mark.null_law, bound, UNIT_NAME_WIDTH)
    empty = TestedKeys("tested", "global", (("global", ""),), (process,))
    rows = [_one_key(mark.placebo(seed, number), empty, batches) for number in range(keys)]
    return Simulated(*np.array(rows).T)


def _one_key(
    key: ForeignKey, sheet: TestedKeys, batches: Sequence[WeightedPairs]
) -> tuple[float, float, float, float]:
    process = sheet.processes[0]
    seen: NDArray[Any] = np.zeros((0, batches[0].contexts.shape[1] + 1), dtype=np.uint32)
    by_pairs, forgetful = ClassTable(()), ClassTable(())
    for pairs in batches:
        groups = key.group(pairs.contexts, pairs.tokens)
        units = Units.of_groups(pairs, groups, process.maximal_weight)
        scores = key.score(pairs.contexts[groups.first], pairs.tokens[groups.first])
        sheet, _, _ = extend_sheet(sheet, pairs, [scores.__getitem__], units)
        forgetful = forgetful.merge(ClassTable.from_scores(units.weights, scores, process.law))
        rows = np.column_stack([pairs.contexts, pairs.tokens]).astype(np.uint32)
        together, first = np.unique(np.concatenate([seen, rows]), axis=0, return_index=True)
        fresh = np.sort(first[first >= len(seen)]) - len(seen)
        fresh = fresh[groups.coins[fresh] >= 0]
        by_pairs = by_pairs.merge(
            ClassTable.from_scores(pairs.weights[fresh], scores[groups.coins[fresh]], process.law)
        )
        seen = together
    last = sheet.processes[0]
    return -last.log10_p, last.table.z, by_pairs.z, forgetful.z
