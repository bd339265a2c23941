"""All files of malicious authors, each through the command line in a process of its own.

python -m benchmarks.gates.hostile [--seed 0] [--kinds KIND...]

A quarter of an hour of one core. What holds is said in `tests.gates.hostile`. Exit 1: something
did not hold.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from benchmarks.gates.record import record
from tests.gates.faults import WARM
from tests.gates.forks import start_forks
from tests.gates.hostile import MEMORY, SECONDS, make_cases, try_case
from tests.gates.place import make_place


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--kinds", nargs="*", default=[])
    asked = parser.parse_args()
    tried: Counter[str] = Counter()
    failures: dict[str, list[str]] = {}
    begun, slowest = time.monotonic(), 0.0
    with tempfile.TemporaryDirectory() as folder:
        place = make_place(Path(folder) / "world")
        cases = make_cases(place, asked.seed)
        with start_forks(WARM, place) as forks:
            for case in cases:
                if asked.kinds and case.kind not in asked.kinds:
                    continue
                started = time.monotonic()
                tried[case.kind] += 1
                if found := try_case(case, forks, place, Path(folder) / "case"):
                    failures[case.name] = found
                    print(f"{case.name}: {found}", flush=True)
                slowest = max(slowest, time.monotonic() - started)
    total = sum(tried.values())
    print(f"{total} files, {len(failures)} failed, slowest {slowest:.0f} s")
    if not asked.kinds:
        figures = {
            "tried": total,
            "passed": total - len(failures),
            "by_kind": dict(tried),
            "limits": {"seconds": SECONDS, "bytes": MEMORY},
            "slowest_seconds": round(slowest, 1),
            "seed": asked.seed,
            "seconds": round(time.monotonic() - begun),
            "failures": failures,
        }
        record("hostile", "python -m benchmarks.gates.hostile", figures)
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
