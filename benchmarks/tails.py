"""Time of the exact tail for a million coins, beside the closed form where one exists.

python -m benchmarks.tails [--output benchmarks/results/tails.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np

from provenance.marks.own import Green, Gumbel, Scheme, Tournament
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.tables import ClassTable
from provenance.stats.tails import upper_tail


def make_table(scheme: Scheme, coins: int, levels: int, shift: float, seed: int) -> ClassTable:
    """Zipf-like log-count weights with `levels` levels and a mean shift of `shift` sd in total."""
    rng = np.random.default_rng(seed)
    raw = np.log1p(rng.zipf(1.5, coins).astype(np.float64))
    weights = np.maximum(1, np.rint(levels * raw / raw.max())).astype(np.int64)
    words = rng.integers(0, 2**32, coins, dtype=np.uint32)
    scores = scheme.score(words)
    law = scheme.null_law
    moved = round(shift * np.sqrt(coins * law.variance))
    room = np.flatnonzero(scores + 1 < len(law.masses))[:moved]
    scores[room] += 1
    return ClassTable.from_scores(weights, scores, law)


def milliseconds(table: ClassTable, rounds: int = 5) -> float:
    """Median of the reported tail."""
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        log10_upper_tail(table)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(__file__).parent / "results/tails.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    rows = []
    for scheme in (Green(), Tournament(4), Gumbel()):
        for coins in (100, 10_000, 1_000_000):
            for shift in (0.0, 3.0, 10.0):
                table = make_table(scheme, coins, 63, shift, 0)
                result = upper_tail(table)
                rows.append(
                    {
                        "scheme": scheme.name,
                        "coins": coins,
                        "classes": len(table.classes),
                        "z": round(result.z, 3),
                        "log10_p": result.log10_p,
                        "log10_berry_esseen": result.log10_berry_esseen,
                        "log10_lugannani_rice": result.log10_lugannani_rice,
                        "milliseconds": round(milliseconds(table), 2),
                    }
                )
                print(rows[-1], flush=True)
    result_file = {"command": "python -m benchmarks.tails", "rows": rows}
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result_file, indent=1) + "\n")


if __name__ == "__main__":
    main()
