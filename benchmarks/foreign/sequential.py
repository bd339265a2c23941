"""H0 of sequential checks where pairs share coins: innocents in three batches under random keys.

`python -m benchmarks.foreign.sequential --keys 400`; prints one line a scheme and kind of text. The
small version runs in `tests/check/looks/test_foreign.py`. Two doubles have a fault and are shown
beside: one to which every pair is a coin of its own, so that coins are opened again through other
pairs, and one that forgets between batches which coins are known.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from benchmarks.calibration.world import Teacher, innocent, write_outputs
from benchmarks.foreign.world import make_foreign_world, random_scheme
from provenance.check.looks.revealed import UNIT_NAME_WIDTH, Sheet, Units, extend_sheet
from provenance.check.score import WeightedPairs, weigh_observations
from provenance.check.weigh import MAXIMAL_WEIGHTS
from provenance.marks.foreign.mark import ForeignKey, ForeignMark
from provenance.stats.eprocess import start
from provenance.stats.tables import ClassTable
from provenance.suspect.access.outputs import observe

__all__ = ["Simulated", "simulate"]

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
    empty = Sheet("tested", "global", (("global", ""),), (process,))
    rows = [_one_key(mark.placebo(seed, number), empty, batches) for number in range(keys)]
    return Simulated(*np.array(rows).T)


def _one_key(
    key: ForeignKey, sheet: Sheet, batches: Sequence[WeightedPairs]
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
        fresh = fresh[groups.numbers[fresh] >= 0]
        by_pairs = by_pairs.merge(
            ClassTable.from_scores(pairs.weights[fresh], scores[groups.numbers[fresh]], process.law)
        )
        seen = together
    last = sheet.processes[0]
    return -last.log10_p, last.table.z, by_pairs.z, forgetful.z


def main() -> None:
    """One world a scheme, two kinds of innocent text."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keys", type=int, default=400)
    keys = parser.parse_args().keys
    teacher = Teacher.draw(0)
    print("scheme, text: P(E ever >= 2, 10, 100); mean and sd of z; sd of the doubles")
    for name in ("lm-watermarking", "markllm-exp", "hf-synthid"):
        scheme = random_scheme(name, np.random.default_rng(3))
        if name == "hf-synthid":  # as many coins as this little text can share
            scheme = replace(scheme, sampling_table_size=1 << 12)
        folder = Path(tempfile.mkdtemp())
        world = make_foreign_world(folder, teacher, name, 3, 120, 60, scheme)
        index = world.index.evened() if world.mark.shares_coins else world.index
        for kind in ("ordinary", "repeats"):
            outputs, prompts = innocent(kind, world, np.random.default_rng(11))
            batches = []
            for number, part in enumerate(np.array_split(np.arange(len(outputs)), 3)):
                path = folder / f"{kind}-{number}.jsonl"
                write_outputs(path, [outputs[i] for i in part], [prompts[i] for i in part])
                found = observe([path], world.tokenizer, world.mark.public)
                weighing = weigh_observations(found, index, world.mark, RULE)
                batches.append(weighing.hypotheses["global", ""])
            made = simulate(world.mark, batches, keys, b"benchmark seed of sequential H0.")
            rates = [float((made.best >= np.log10(level)).mean()) for level in (2, 10, 100)]
            print(
                f"{name}, {kind}: {rates}; {made.z.mean():+.3f}, {made.z.std():.3f}; "
                f"{made.by_pairs.std():.3f}, {made.forgetful.std():.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
