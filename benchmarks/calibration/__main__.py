"""`python -m benchmarks.calibration`: the gate of `tests.world.calibration` on many keyrings."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

from tests.world.calibration import (
    ACCESS,
    FALSE_ALARM,
    LEVELS,
    REFERENCES,
    TESTS,
    double_fails,
    is_calibrated,
    run_keyring,
    sd_tolerance,
    summarise,
)


def main() -> None:
    """Run, print the table, write the results, exit 1 if the gate fails."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keyrings", type=int, default=500)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--reference", choices=REFERENCES, default="none")
    parser.add_argument("--access", choices=ACCESS, default="outputs")
    parser.add_argument("--output", type=Path)
    arguments = parser.parse_args()
    started = time.perf_counter()
    seeds = range(arguments.seed, arguments.seed + arguments.keyrings)
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(arguments.workers, mp_context=spawn) as pool:
        run = partial(run_keyring, reference=arguments.reference, access=arguments.access)
        outcomes = [one for part in pool.map(run, seeds, chunksize=5) for one in part]
    summaries = {"all": summarise(outcomes)}
    for kind in dict.fromkeys(one.kind for one in outcomes):
        summaries[kind] = summarise([one for one in outcomes if one.kind == kind])
    if arguments.access == "outputs":
        passed, caught = is_calibrated(summaries["all"]), double_fails(summaries["all"])
    else:
        apart = {kind: found for kind, found in summaries.items() if kind != "all"}
        passed = all(is_calibrated(one, sd_tolerance(one["z"]["n"])) for one in apart.values())
        caught = double_fails(summaries["copier"])
    result = {
        "command": f"python -m benchmarks.calibration --keyrings {arguments.keyrings} "
        f"--seed {arguments.seed} --reference {arguments.reference} --access {arguments.access}",
        "false_alarm_of_each_limit": FALSE_ALARM,
        "seconds": round(time.perf_counter() - started),
        "calibrated": passed,
        "double_without_deduplication_fails": caught,
        "summaries": summaries,
    }
    parts = [arguments.access] if arguments.access != "outputs" else []
    parts += [arguments.reference] if arguments.reference != "none" else []
    name = "-".join(["calibration", *parts])
    output = arguments.output or Path(__file__).parents[1] / f"results/{name}.json"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(result, indent=1) + "\n")
    for kind, summary in summaries.items():
        print_summary(kind, summary)
    print(f"gate {'passed' if passed else 'FAILED'}; double {'caught' if caught else 'NOT CAUGHT'}")
    raise SystemExit(0 if passed and caught else 1)


def print_summary(kind: str, summary: dict) -> None:  # type: ignore[type-arg]
    """One line per kind."""
    cells = [f"{summary[name][str(level)]['rate']:.4f}" for name in TESTS for level in LEVELS]
    print(
        f"{kind:10s} {summary['suspects']:6d} {' '.join(cells)} "
        f"sd {summary['z']['sd']:.3f} mean {summary['z']['mean']:+.3f}; without deduplication "
        f"sd {summary['without_deduplication']['sd']:.2f}, rate at .001 "
        f"{summary['without_deduplication']['rate_at_0.001']:.3f}"
    )


if __name__ == "__main__":
    main()
