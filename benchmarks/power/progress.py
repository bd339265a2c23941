"""What the production has made so far: one line per world.

python -m benchmarks.power.progress [--work DIR]
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.world.power import settings
from tests.world.power.settings import suspect_name

LOGS = ("served.parquet", "fresh.parquet", "quality.json")
UNMARKED = ("responses.parquet", "fresh.parquet", "quality.json")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=settings.WORK)
    work: Path = parser.parse_args().work
    wanted = {"unmarked": [*UNMARKED, *(innocent.name for innocent in settings.INNOCENTS)]}
    for world in (*settings.POWER_WORLDS, *settings.frontier_worlds()):
        wanted[world.name] = [*LOGS, *(suspect_name(rho) for rho in world.rhos)]
    whole = 0
    for folder, names in wanted.items():
        missing = [name for name in names if not (work / folder / name).exists()]
        whole += not missing
        state = "complete" if not missing else f"missing {', '.join(missing)}"
        print(f"{folder}: {'nothing' if len(missing) == len(names) else state}")
    print(f"{whole} of {len(wanted)} complete")


if __name__ == "__main__":
    main()
