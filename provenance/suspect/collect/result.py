"""What a collection says of itself, in words and in JSON."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from provenance.storage.printable import Page, Said

Progress = Callable[[str, int, int, str], None]
"""Told what goes on, how many items are settled, how many are wanted, and what was spent."""


def say_spent(tokens: int, cost: float | None, seconds_left: float | None) -> str:
    """Tokens and money, at most, and the time left, for the end of a line.

    >>> say_spent(45_210, 0.321, 250.0)
    ', 45,210 tokens, spent 0.3210, 4 min 10 s left'
    """
    parts = [f"{tokens:,} tokens"]
    if cost is not None:
        parts.append(f"spent {cost:,.4f}")
    if seconds_left is not None:
        minutes, seconds = divmod(round(seconds_left), 60)
        parts.append(f"{minutes} min {seconds} s left" if minutes else f"{seconds} s left")
    return "".join(f", {part}" for part in parts)


@dataclass(frozen=True)
class Collection(Said):
    """A collection as its ledger has it.

    Attributes
    ----------
    folder : where it lies
    facts : head of the ledger and counts, see `Standing.facts`
    cost : money at most, if a price was given
    stopped : why the run ended before the end; empty if it did not
    written : files that were derived or prepared
    breaks : what was done to the ledger or the files beside it (`verify_collection`)
    """

    folder: Path
    facts: Mapping[str, Any]
    cost: float | None = None
    stopped: str = ""
    written: tuple[str, ...] = ()
    breaks: tuple[str, ...] = field(default=())

    @property
    def exit_code(self) -> int:
        """1: the ledger does not hold; 3: the run stopped before the end; 0: done."""
        if self.breaks:
            return 1
        return 3 if self.stopped else 0

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "folder": str(self.folder),
            **self.facts,
            "cost": self.cost,
            "stopped": self.stopped,
            "written": list(self.written),
            "breaks": list(self.breaks),
        }

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page, facts = Page(width), self.facts
        if self.breaks:
            page.say(f"{self.folder}: the collection does not hold.", wrap=False)
            page.reasons(self.breaks)
            return str(page)
        page.say(
            f"{facts['answered']:,} of {facts['wanted']:,} outputs of {facts['model']}: "
            f"{facts['requests']:,} requests, {facts['without_text']:,} answers without text, "
            f"{facts['errors']:,} errors, {facts['unanswered']:,} unanswered."
        )
        read, written = facts["tokens"]
        lost = sum(facts["tokens_unknown"])
        spent = "" if self.cost is None else f", at most {self.cost:,.4f}"
        unknown = f", and at most {lost:,} of requests whose end is unknown" if lost else ""
        page.say(f"Tokens: {read:,} read, {written:,} written{unknown}{spent}.")
        if self.stopped:
            page.say(f"Stopped: {self.stopped}. Run the same command again to go on.")
        page.say(f"Ledger: {facts['records']:,} records, head {facts['head']}", wrap=False)
        for name in self.written:
            page.say(f"Written: {self.folder / name}", wrap=False)
        return str(page)
