"""Every call to the disk of every command that writes fails once, in each way.

python -m benchmarks.gates.faults [--sample N] [--seed 0] [--only NAME...]

Without --sample all of them: three quarters of an hour of one core. What holds is said in
`tests.gates.faults`, of which this is the long run. Exit 1: something did not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.gates.record import record
from tests.gates.faults import LOGS, MODES, READERS, SCENARIOS, WARM, Gate, Tally, collecting
from tests.gates.forks import start_forks
from tests.gates.place import make_place
from tests.suspect.collect.server import serve


def run(sample: int | None, seed: int, only: list[str]) -> dict[str, Any]:
    """Figures by command, and what did not hold."""
    rows: dict[str, dict[str, int]] = {}
    failures: list[str] = []

    def note(name: str, tally: Tally) -> None:
        rows[name] = {"tried": tally.tried, "passed": tally.tried - count_failed(tally)}
        failures.extend(tally.failures)
        print(f"{name}: {rows[name]}", flush=True)
        for one in tally.failures:
            print(f"  {one}", flush=True)

    begun = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        world = make_place(Path(folder) / "world")
        with start_forks(WARM, world) as forks, serve() as server:
            if not forks.has_shim:
                sys.exit("this needs gcc")
            gate = Gate(forks, world, Path(folder))
            for scenario in (*SCENARIOS, collecting(server.url)):
                if not only or scenario.name in only:
                    note(scenario.name, gate.try_all(scenario, MODES, sample, seed))
            for scenario in READERS:
                name = f"{scenario.name}, reading"
                if not only or name in only:
                    note(name, gate.try_reads(scenario, sample, seed))
            for form in LOGS:
                name = f"a log: {form}"
                if not only or name in only:
                    note(name, gate.try_log(form, MODES, sample, seed))
    return {
        "modes": list(MODES),
        "seed": seed,
        "sample": sample,
        "tried": sum(row["tried"] for row in rows.values()),
        "passed": sum(row["passed"] for row in rows.values()),
        "seconds": round(time.monotonic() - begun),
        "commands": rows,
        "failures": failures,
    }


def count_failed(tally: Tally) -> int:
    """Faults after which something did not hold; one may have several sentences."""
    return len({": ".join(one.split(": ")[:2]) for one in tally.failures})


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", nargs="*", default=[])
    asked = parser.parse_args()
    found = run(asked.sample, asked.seed, asked.only)
    if not asked.only:
        record("faults", "python -m benchmarks.gates.faults", found)
    sys.exit(bool(found["failures"]))


if __name__ == "__main__":
    main()
