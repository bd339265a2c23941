"""What the command line prints: JSON and results on stdout, words and progress on stderr."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from provenance.check.power_statement import say_power
from provenance.check.verdict import Control, TwinsResult, Verdict
from provenance.storage.printable import clean

_NUMBERS = {
    "adjusted",
    "batch",
    "coins",
    "contexts",
    "correlation",
    "effective",
    "known",
    "level",
    "log10 e",
    "log10 p",
    "needed",
    "outputs",
    "share",
    "shared pairs",
    "tokens",
    "windows",
    "n",
    "S",
    "z",
}

words = Console(stderr=True)
results = Console()


def parse_labels(labels: Iterable[str]) -> dict[str, str]:
    """`week=2026-W17` options as a mapping. Raises UsageError."""
    from provenance.errors import UsageError

    found: dict[str, str] = {}
    for label in labels:
        name, separator, value = label.partition("=")
        if not (separator and name and value):
            raise UsageError(f"a label must be NAME=VALUE; got {label}. Example: week=2026-W17")
        found[name] = value
    return found


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    is_unicode = (results.encoding or "").lower().startswith("utf")
    text = json.dumps(value, indent=1, ensure_ascii=not is_unicode, allow_nan=False)
    results.file.write(text + "\n")


def print_reasons(reasons: Iterable[str]) -> None:
    """Why a check is inconclusive, one line each."""
    for reason in reasons:
        results.print(Text(f"- {clean(reason)}."), soft_wrap=True)


def print_controls(controls: Iterable[Control]) -> None:
    """The table of controls that ends every check."""
    rows = [[c.name, "passed" if c.passed else "FAILED", c.detail] for c in controls]
    print_table(["control", "result", "detail"], rows, "Controls")


def print_table(
    columns: list[str], rows: Iterable[Iterable[str]], title: str | None = None
) -> None:
    """A plain table on stdout; columns of numbers are aligned on the right."""
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, title_style="bold")
    for column in columns:
        justify: Literal["left", "right"] = "right" if column in _NUMBERS else "left"
        table.add_column(column, overflow="fold", justify=justify)
    for row in rows:
        table.add_row(*(Text(clean(cell)) for cell in row))
    results.print(table)


def print_verdict(verdict: Verdict) -> None:
    """The readable report of a check, for 80 columns."""
    from provenance.check.inputs import say_positions

    headline = verdict.headline
    results.print(Text(_say(verdict), style="bold"))
    print_reasons(verdict.reasons)
    for one in verdict.reservations:
        if one.reason not in verdict.reasons:
            results.print(Text(f"Known of the inputs: {clean(str(one))}."), soft_wrap=True)
    results.print(Text(_say_plan(verdict)))
    results.print(
        Text(f"p of the whole check <= 10^{verdict.log10_p:.2f} (family-wise, all keys); ")
        + Text(f"alpha {verdict.alpha:g}" + (f"; smallest: {headline.name}" if headline else ""))
    )
    results.print(Text(say_positions(verdict.inputs["outputs"])))
    results.print()
    print_table(
        ["key", "coins", "effective", "z", "log10 p", "adjusted", "rejected"],
        [
            [
                result.name,
                f"{result.tail.coins:,}",
                f"{result.tail.effective_coins:,.0f}",
                f"{result.tail.z:+.2f}",
                f"{result.tail.log10_p:.2f}",
                f"{result.log10_adjusted:.2f}",
                "yes" if result.rejected else "",
            ]
            for result in verdict.hypotheses
        ],
        "Keys",
    )
    results.print()
    print_controls(verdict.controls)
    if verdict.shares:
        results.print()
        print_table(
            ["slot", "value", "share", "95 % limits"],
            [
                [s.slot, s.value, f"{s.estimate:.2f}", f"{s.lower:.2f} .. {s.upper:.2f}"]
                for s in verdict.shares
            ],
            "Shares of the absorbed evidence (simultaneous over all slots)",
        )
    if verdict.twins is not None:
        results.print()
        results.print(Text(_say_twins(verdict.twins)))
    results.print()
    if verdict.caveat:
        results.print(Text(f"Caveat of this mark: {verdict.caveat}."))
    results.print(Text(_caveat(verdict), style="dim"))


def _say(verdict: Verdict) -> str:
    if verdict.conclusion == "evidence":
        if verdict.found_by == ("twins",):
            return "EVIDENCE, by the twins only, of training on the responses that were served."
        parts = [f"{slot} {', '.join(values)}" for slot, values in verdict.attributed.items()]
        where = f", at least: {'; '.join(parts)}" if parts else ""
        also = " The twins say so too." if "twins" in verdict.found_by else ""
        return f"EVIDENCE: consistent with training on marked responses{where}.{also}"
    if verdict.conclusion == "inconclusive":
        return "INCONCLUSIVE: this check speaks neither for nor against training on the responses."
    return "NO EVIDENCE of training on marked responses."


def _say_plan(verdict: Verdict) -> str:
    if verdict.plan is None:
        return "Exploratory: no plan fixed this check before it was made."
    seen = f", timestamped {verdict.plan.timestamp}" if verdict.plan.timestamp else ""
    return f"Planned: {verdict.plan.sha256}{seen}."


def _say_twins(twins: TwinsResult) -> str:
    outcome = "EVIDENCE of training on them" if twins.rejected else "no evidence"
    return (
        f"Twins (a second line): the served response is the likelier one in "
        f"{twins.favour_served:,} of {twins.pairs:,} pairs; log10 p <= {twins.tail.log10_p:.2f} "
        f"at alpha {twins.alpha:g}: {outcome}. Assumes that a fair coin decided which was served."
    )


def _caveat(verdict: Verdict) -> str:
    if not verdict.found_evidence and verdict.power:
        return f"Absence of evidence is not evidence of absence. {say_power(verdict.power)}"
    return (
        "What this does not show: intent, or the route. Quotation and echo of marked text in "
        "other training data leave the same trace."
    )
