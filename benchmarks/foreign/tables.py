"""The tables of docs/foreign-schemes.md, from the results.

python -m benchmarks.foreign.tables
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parents[1] / "results"
LEVELS = ("0.01", "0.001", "0.0001")


def cells(part: dict[str, Any]) -> str:
    """Three rates; a star where the count is above the binomial limit."""
    return " / ".join(
        f"{part[level]['rate']:.3f}{'' if part[level]['passed'] else '*'}" for level in LEVELS
    )


def print_false_positives() -> None:
    """One row a scheme: ours on texts, ours on suspects, the original on the same texts."""
    found = json.loads((RESULTS / "foreign-false-positives.json").read_text())
    print(
        "| scheme | texts | `detect` | original | suspects | `check` | sd of z, text / suspects |"
    )
    print("|---|---|---|---|---|---|---|")
    for name, row in found["schemes"].items():
        spread = f"{row['z_of_ordinary_text']['sd']:.2f} / {row['z_of_suspects']['sd']:.2f}"
        print(
            f"| {name} | {row['texts']} | {cells(row['detect'])} | {cells(row['original'])} "
            f"| {row['suspects']} | {cells(row['check'])} | {spread} |"
        )


def print_speed() -> None:
    """One row a scheme: tokens per second of both sides."""
    found = json.loads((RESULTS / "detect.json").read_text())
    print("| scheme | tokens | ours | original | ratio | goal |")
    print("|---|---|---|---|---|---|")
    for name, row in found["schemes"].items():
        original = f"{row['original']:,.0f}" if row["original"] else "not found"
        ratio = f"{row['ratio']:.1f}" if "ratio" in row else "-"
        print(
            f"| {name} | {row['tokens']:,} | {row['ours']:,.0f} | {original} | {ratio} "
            f"| {row.get('target') or '-'} |"
        )
    print(f"\nOwn scheme, text to verdict: {found['text_to_verdict_tokens_per_second']:,.0f}")


if __name__ == "__main__":
    print_false_positives()
    print()
    print_speed()
