"""Words that verdicts of every kind share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from provenance.check.findings import Control
from provenance.storage.printable import Page


def add_controls(page: Page, controls: Iterable[Control]) -> None:
    """The table of controls that ends every check."""
    rows = [[c.name, "passed" if c.passed else "FAILED", c.detail] for c in controls]
    page.table(["control", "result", "detail"], rows, "Controls")


def say_attributed(attributed: Mapping[str, Sequence[str]]) -> str:
    """Which values leaked, at least: `, at least: week 2026-W17`; nothing for none."""
    parts = [f"{slot} {', '.join(values)}" for slot, values in attributed.items()]
    return f", at least: {'; '.join(parts)}" if parts else ""
