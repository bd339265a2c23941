"""Do the intervals for shares cover? Every cell of `tests.world.shares`.

python -m benchmarks.shares [--runs 400] [--seed 0] [--output benchmarks/results/shares.json]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from tests.world.shares import CELLS, measure


def main() -> None:
    """Every cell; exit 1 if one covers too rarely."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=400)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/shares.json"))
    arguments = parser.parse_args()
    rows = {}
    for number, (name, world) in enumerate(CELLS.items()):
        rows[name] = row = measure(world, arguments.runs, arguments.seed + number)
        share = {which: count / max(row["stated"], 1) for which, count in row["covered"].items()}
        print(
            f"{name:28} z {row['z']:5.1f} coins {row['coins']:5d} stated {row['stated']:4d} "
            f"covered {share['new']:.3f} (old {share['old']:.3f}) "
            f"width {row['width']['new']:.2f} (old {row['width']['old']:.2f})",
            flush=True,
        )
    arguments.output.write_text(json.dumps(rows, indent=1, sort_keys=True) + "\n")
    bad = [name for name, row in rows.items() if row["covered"]["new"] < row["least"]]
    raise SystemExit(f"covers too rarely: {bad}" if bad else 0)


if __name__ == "__main__":
    main()
