"""Groups of responses chosen afterwards: are the guilty of the others safe, and who is found?

    python -m benchmarks.groups [--scale 1.0] [--output benchmarks/results/groups.json]

Validity: students of everybody else, with strong absorption and shared prompts, k = 1 and 2, under
fresh keys; and three doubles that must fail. Power: students of the group, by its size, what the
others say, the marked share, with and without a reference, and three weights. See docs/groups.md.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Final

from tests.world.groups import GroupWorld, run_world
from tests.world.innocents.gate import judge

PLAIN: Final = GroupWorld()
NARROW: Final = GroupWorld(width=1, words=4000, group=1000)
RULES: Final = (("group", "log-sqrt"), ("group", "residual"))
VALIDITY: Final[tuple[tuple[str, GroupWorld, tuple[tuple[str, str], ...], int], ...]] = (
    ("k = 2, guilty of the others", PLAIN, RULES, 700),
    (
        "k = 2, others quote the group",
        replace(PLAIN, quoting=0.3),
        (*RULES, ("by counts", "log-sqrt")),
        500,
    ),
    ("k = 2, every prompt is shared", replace(PLAIN, shared=1.0), RULES, 500),
    ("k = 2, guilty of the others, half lacks", PLAIN, (("lacking", "log-sqrt"),), 100),
    (
        "k = 2, guilty of nobody",
        replace(PLAIN, guilty_of="nobody"),
        (*RULES, ("others", "log-sqrt"), ("overlapping", "log-sqrt")),
        300,
    ),
    (
        "k = 2, guilty of the group",
        replace(PLAIN, guilty_of="group"),
        (("others", "log-sqrt"), ("others", "residual")),
        400,
    ),
    ("k = 1, guilty of the others", NARROW, RULES, 700),
    (
        "k = 1, others quote the group",
        replace(NARROW, quoting=0.3),
        (*RULES, ("by counts", "log-sqrt")),
        400,
    ),
)
POWER: Final[tuple[tuple[str, GroupWorld], ...]] = (
    *((f"{n} responses", replace(PLAIN, group=n)) for n in (50, 200, 800, 3200)),
    *((f"{n} others", replace(PLAIN, others=n)) for n in (250, 4000, 16000)),
    ("no prompt shared", replace(PLAIN, shared=0.0)),
    ("every prompt shared", replace(PLAIN, shared=1.0)),
    ("a tenth marked", replace(PLAIN, share=0.1)),
    ("trained on others too", replace(PLAIN, guilty_of="both")),
)
WEIGHTS: Final = ("log-sqrt", "constant", "sqrt", "residual")
_KEYS: Final = 30


def measure(scale: float) -> dict[str, Any]:
    """Both tables."""
    started = time.process_time()
    validity, power = [], []
    for name, world, cells, keys in VALIDITY:
        for row in run_world(world, cells, max(20, round(keys * scale))):
            fault = row["exclusive"] not in ("group", "others")
            reasons = judge(row)
            validity.append({"world": name, **row, "fault": fault, "reasons": reasons})
            print(name, row["exclusive"], row["weight"], row["mean_z"], reasons, flush=True)
    for name, world in POWER:
        guilty = world.guilty_of if world.guilty_of == "both" else "group"
        world = replace(world, guilty_of=guilty, prior=3.0)
        cells = tuple(("group", weight) for weight in WEIGHTS)
        for row in run_world(world, cells, max(10, round(_KEYS * scale))):
            kept = ("weight", "coins", "contexts_met", "plain_mean_z", "sd_z", "checks")
            power.append({"world": name, **{one: row[one] for one in kept}})
            print(name, row["weight"], row["coins"], row["plain_mean_z"], flush=True)
    return {
        "plain": asdict(PLAIN),
        "narrow": asdict(NARROW),
        "passed": all(bool(row["reasons"]) == row["fault"] for row in validity),
        "validity": validity,
        "power": power,
        "cpu_seconds": round(time.process_time() - started),
    }


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scale", type=float, default=1.0)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/groups.json"))
    options = parser.parse_args()
    found = measure(options.scale)
    options.output.write_text(json.dumps(found, indent=1) + "\n")
    print("passed" if found["passed"] else "FAILED", f"{found['cpu_seconds']} CPU-s")


if __name__ == "__main__":
    main()
