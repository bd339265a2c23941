"""Text made safe to show: one line, without control characters; and pages of plain text.

Knows nothing of terminals or HTML; whoever prints into a markup escapes as well.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Literal

from provenance.errors import clean as clean
from provenance.errors import shorten as shorten

NUMBERS = frozenset(
    {
        *("adjusted", "batch", "coins", "contexts", "correlation", "effective", "known", "level"),
        *("log10 e", "log10 p", "needed", "outputs", "share", "shared pairs", "tokens", "windows"),
        *("n", "S", "z", "drawn", "mean", "records"),
    }
)
"""Columns that are aligned on the right."""


class Page:
    """Plain text in lines of at most `width` cells, paragraph by paragraph.

    >>> page = Page(20)
    >>> page.say("A sentence that is longer than a line.")
    >>> page.table(["key", "coins"], [["global", "1,234"]], "Keys")
    >>> print(page)
    A sentence that is
    longer than a line.
    Keys
    key     coins
    global  1,234
    """

    def __init__(self, width: int = 80) -> None:
        from rich.console import Console

        self._text = io.StringIO()
        self._console = Console(file=self._text, width=width, color_system=None, emoji=False)

    def say(self, text: str = "", *, wrap: bool = True) -> None:
        """One paragraph; an empty one is an empty line."""
        from rich.text import Text

        self._console.print(Text(clean(text)), soft_wrap=not wrap)

    def reasons(self, reasons: Iterable[str]) -> None:
        """Sentences without full stops, one line each."""
        for reason in reasons:
            self.say(f"- {reason}.", wrap=False)

    def table(
        self, columns: Sequence[str], rows: Iterable[Iterable[str]], title: str | None = None
    ) -> None:
        """A table without lines; columns of numbers (`NUMBERS`) are aligned on the right."""
        from rich.table import Table
        from rich.text import Text

        table = Table(title=title, title_justify="left", box=None, pad_edge=False)
        for column in columns:
            justify: Literal["left", "right"] = "right" if column in NUMBERS else "left"
            table.add_column(column, overflow="fold", justify=justify)
        for row in rows:
            table.add_row(*(Text(clean(cell)) for cell in row))
        self._console.print(table)

    def __str__(self) -> str:
        """All of it, without the last line break and without spaces at the end of lines."""
        return "\n".join(line.rstrip() for line in self._text.getvalue().splitlines())


class Said:
    """A result that says itself in words."""

    def say(self, width: int = 80) -> str:
        """In words: what the command prints, for a page of this width."""
        raise NotImplementedError

    def __str__(self) -> str:
        """In words, for 80 columns."""
        return self.say()
