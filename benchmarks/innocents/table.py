"""The results file as the tables of docs/validity.md.

python -m benchmarks.innocents.table [benchmarks/results/innocents.json]
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from tests.world.innocents.gate import LEVELS, judge

RESULTS: Final = Path(__file__).parents[1] / "results/innocents.json"
Cell = dict[str, Any]


def list_sound(document: dict[str, Any]) -> Iterator[str]:
    """One line per experiment: its sound cells together."""
    yield (
        "| world | cells | checks | coins | largest mean z, in standard errors | largest standard "
        "error | sd of z | rejected at .05 | .01 | .001 | .0001 | gate |"
    )
    yield "|---" * 12 + "|"
    total: list[Cell] = []
    for part in document["experiments"]:
        cells = [cell for cell in part["cells"] if cell["kind"] == "sound"]
        if cells:
            total += cells
            yield f"| {part['title']} {_describe(cells)}"
    yield f"| **all** {_describe(total)}"


def _describe(cells: Sequence[Cell]) -> str:
    checks = sum(cell["checks"] for cell in cells)
    coins = [cell["coins"] for cell in cells]
    largest = max(abs(cell["mean_z"]) / cell["standard_error"] for cell in cells)
    error = max(cell["standard_error"] for cell in cells)
    sds = [cell["sd_z"] for cell in cells]
    rates = [sum(c["rejected"][str(level)] for c in cells) / checks for level in LEVELS]
    failed = sum(bool(judge(cell)) for cell in cells)
    return (
        f"| {len(cells)} | {checks:,} | {min(coins):,} to {max(coins):,} | {largest:.1f} "
        f"| {error:.3f} | {min(sds):.2f} to {max(sds):.2f} | {rates[0]:.4f} | {rates[1]:.4f} "
        f"| {rates[2]:.5f} | {rates[3]:.5f} | {'passed' if not failed else f'{failed} FAILED'} |"
    )


COLUMNS: Final = (
    ("text, none", "presence"),
    ("text, none", "log-sqrt"),
    ("text, none", "sqrt, served at all"),
    ("text, right model", "residual"),
    ("text, right model", "residual, n to 1"),
    ("text, none", "unserved"),
    ("text, right model", "ends"),
)


def list_counts(document: dict[str, Any]) -> Iterator[str]:
    """One line per experiment and way of counting: mean z of every rule, and of the controls."""
    yield "| world | counted | coins | " + " | ".join(rule for _, rule in COLUMNS) + " |"
    yield "|---" * (3 + len(COLUMNS)) + "|"
    for part in document["experiments"]:
        cells = {tuple(cell["cell"].split(" | ")): cell for cell in part["cells"]}
        for recipe in dict.fromkeys(recipe for _, _, recipe in cells):
            row = [cells.get((*column, recipe)) for column in COLUMNS]
            if sum(cell is not None for cell in row) > 1:
                coins = next(cell["coins"] for cell in row if cell)
                shown = " | ".join(_show(cell) for cell in row)
                yield f"| {part['title']} | {recipe} | {coins:,} | {shown} |"


def _show(cell: Cell | None) -> str:
    if cell is None:
        return ""
    figure = f"{cell['mean_z']:+.3f} ({cell['standard_error']:.3f})"
    return f"**{figure}**" if abs(cell["mean_z"]) > 4 * cell["standard_error"] else figure


def list_others(document: dict[str, Any]) -> Iterator[str]:
    """Faults that stand in no line above: quotations, readings, counts of pairs."""
    yield "| world | suspect | rule | coins | mean z | rejected at .001 |"
    yield "|---" * 6 + "|"
    known = {*COLUMNS}
    for part in document["experiments"]:
        for cell in part["cells"]:
            source, rule, _ = cell["cell"].split(" | ")
            if cell["kind"] != "sound" and (source, rule) not in known and source != "text, none":
                rate = cell["rejected"]["0.001"] / cell["checks"]
                yield (
                    f"| {part['title']} | {source} | {rule} | {cell['coins']:,} "
                    f"| {_show(cell)} | {rate:.3f} |"
                )


def main() -> None:
    """Print all three."""
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else RESULTS
    document = json.loads(path.read_text())
    for lines in (list_sound, list_counts, list_others):
        print("\n".join(lines(document)), end="\n\n")


if __name__ == "__main__":
    main()
