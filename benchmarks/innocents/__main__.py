"""`python -m benchmarks.innocents`: see `tests.world.innocents.gate`.

python -m benchmarks.innocents [--only NAME ...] [--scale 1] [--output FILE]
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

from tests.world.innocents.experiments import EXPERIMENTS
from tests.world.innocents.gate import FALSE_ALARM_OF_A_CELL, as_it_must, judge, run_experiment


def main() -> None:
    """Run, print, write the results; exit 1 if a sound cell fails or a fault is not seen."""
    parser = argparse.ArgumentParser(description="Innocent suspects in a fast world.")
    parser.add_argument("--only", nargs="*", choices=list(EXPERIMENTS), default=list(EXPERIMENTS))
    parser.add_argument("--scale", type=float, default=1.0, help="of the number of keys")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/innocents.json"))
    arguments = parser.parse_args()
    parts = read_others(arguments.output, arguments.only)
    with ProcessPoolExecutor(arguments.workers, mp_context=get_context("spawn")) as pool:
        jobs = [
            pool.submit(run_experiment, name, arguments.scale, arguments.seed)
            for name in arguments.only
        ]
        for job in as_completed(jobs):
            parts.append(job.result())
            parts.sort(key=lambda part: list(EXPERIMENTS).index(part["experiment"]))
            print_part(job.result())
            arguments.output.write_text(json.dumps(document(parts, arguments), indent=1) + "\n")
    failed = [cell for part in parts for cell in part["cells"] if not as_it_must(cell)]
    print(f"gate {'FAILED' if failed else 'passed'}: {len(failed)} cells are not as they must be")
    raise SystemExit(1 if failed else 0)


def read_others(path: Path, run: Sequence[str]) -> list[dict[str, Any]]:
    """What the results file holds of experiments that are not run now."""
    if not path.exists():
        return []
    known = json.loads(path.read_text())["experiments"]
    return [part for part in known if part["experiment"] not in run]


def is_control(cell: dict[str, Any]) -> bool:
    """Whether a cell is one of the controls of selection, not a check."""
    return cell["cell"].split(" | ")[1] in ("unserved", "ends")


def document(parts: Sequence[dict[str, Any]], arguments: argparse.Namespace) -> dict[str, Any]:
    """The results file."""
    sound = [c for part in parts for c in part["cells"] if c["kind"] == "sound"]
    return {
        "command": f"python -m benchmarks.innocents --scale {arguments.scale:g} "
        f"--seed {arguments.seed}",
        "versions": {name: version(name) for name in ("numpy", "numba", "scipy")}
        | {"python": platform.python_version()},
        "machine": f"{platform.machine()}, one core a worker",
        "false_alarm_of_the_gate": round(len(sound) * FALSE_ALARM_OF_A_CELL, 4),
        "sound_cells": len(sound),
        "checks_of_sound_cells": sum(cell["checks"] for cell in sound),
        "innocent_checks": sum(c["checks"] for c in sound if not is_control(c)),
        "gate_passed": all(as_it_must(cell) for part in parts for cell in part["cells"]),
        "experiments": list(parts),
    }


def print_part(part: dict[str, Any]) -> None:
    """A line a cell."""
    print(
        f"# {part['title']}: k = {part['k']}, {part['keys']} keys, "
        f"{part['ids_per_response']} ids a response, {part['seconds']} s"
    )
    for cell in part["cells"]:
        rejected = " ".join(f"{count}" for count in cell["rejected"].values())
        reasons = ", ".join(judge(cell))
        verdict = {
            "sound": "FAILS" if reasons else "ok",
            "fault": "seen" if reasons else "NOT SEEN",
        }
        print(
            f"{cell['cell']:58s} {cell['coins']:7d} z {cell['mean_z']:+.4f} "
            f"+- {cell['standard_error']:.4f} sd {cell['sd_z']:.3f} rejected {rejected} "
            f"{verdict.get(cell['kind'], 'told')} {reasons}"
        )
    sys.stdout.flush()


if __name__ == "__main__":
    main()
