"""What the command line prints: JSON and results on stdout, words and progress on stderr."""

from __future__ import annotations

import json
import logging
import os
import re
import time as clock
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol

from rich.console import Console
from rich.text import Text

import provenance as pv
from provenance.errors import UsageError, clean

words = Console(stderr=True)
errors = Console(stderr=True)
results = Console()
_UNBROKEN = 10_000
"""Cells: no paragraph is as long. A file or a pipe gets whole lines, for grep and for editors."""
_UNPRINTABLE = re.compile(r"[^\n -~]")
"""Characters that are looked at one by one."""
_SECONDS = 10.0
"""Between two lines of progress where there is no terminal."""


class Sayable(Protocol):
    """A result of the library."""

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""

    def to_json(self) -> Any:
        """JSON-able form."""


def parse_labels(labels: Iterable[str]) -> dict[str, str]:
    """`week=2026-W17` options as a mapping. Raises UsageError."""
    found: dict[str, str] = {}
    for label in labels:
        name, separator, value = label.partition("=")
        if not (separator and name and value):
            raise UsageError(f"a label must be NAME=VALUE; got {label}. Example: week=2026-W17")
        found[name] = value
    return found


def parse_parts(parts: Iterable[str]) -> dict[str, float]:
    """`code=0.5` options as a mapping to numbers. Raises UsageError."""
    try:
        return {name: float(part) for name, part in parse_labels(parts).items()}
    except ValueError as error:
        raise UsageError("a part must be NAME=NUMBER; it is not. Example: code=0.5") from error


def print_json(value: Any) -> None:
    """One JSON document on stdout."""
    is_unicode = (results.encoding or "").lower().startswith("utf")
    text = json.dumps(value, indent=1, ensure_ascii=not is_unicode, allow_nan=False)
    results.file.write(_UNPRINTABLE.sub(_escape, text) + "\n")


def _escape(found: re.Match[str]) -> str:
    """A character that would steer a terminal, as JSON may write it as well."""
    return found[0] if found[0].isprintable() else json.dumps(found[0])[1:-1]


def print_result(result: Sayable, *, as_json: bool) -> None:
    """A result of the library on stdout, in JSON or in its own words as wide as the terminal."""
    if as_json:
        print_json(result.to_json())
    else:
        print_page(result.say(page_width()))


def page_width() -> int:
    """Cells of a line: as wide as the terminal, or as COLUMNS says; else lines are not broken."""
    broken = results.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return results.width if broken else _UNBROKEN


def print_page(page: str) -> None:
    """A page of plain text on stdout; its first line stands out."""
    first, _, rest = page.partition("\n")
    results.print(Text(first, style="bold"), soft_wrap=True)
    if rest:
        results.print(Text(rest), soft_wrap=True)


def print_version() -> None:
    """The version of the package on stdout."""
    results.print(f"provenance {pv.__version__}", highlight=False)


def tell(sentence: str) -> None:
    """A sentence for people, on stderr."""
    words.print(Text("\n".join(map(clean, sentence.split("\n")))), soft_wrap=True)


@contextmanager
def progress() -> Iterator[Callable[..., None]]:
    """Bars on stderr: what the library logs as its steps, and how far models have read.

    Where there is no terminal a line in their place, now and then.
    """
    from rich.progress import Progress, TaskID

    with Progress(console=words, transient=True, disable=not words.is_terminal) as bars:
        step = bars.add_task("", total=None)
        tasks: dict[str, TaskID] = {}

        class Steps(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if getattr(record, "told", False):
                    tell(record.getMessage())
                else:
                    bars.update(step, description=record.getMessage())

        said = clock.monotonic()

        def show(name: str, done: int, total: int | None, note: str = "") -> None:
            nonlocal said
            if not words.is_terminal and clock.monotonic() - said > _SECONDS:
                said = clock.monotonic()
                of = "" if total is None else f" of {total:,}"
                tell(f"{name}: {done:,}{of}{note}")
            if name not in tasks:
                tasks[name] = bars.add_task(name, total=total)
            bars.update(tasks[name], completed=done, description=f"{name}{note}")

        logger, handler = logging.getLogger("provenance.case"), Steps(logging.INFO)
        level = logger.level
        logger.addHandler(handler)
        logger.setLevel(logging.INFO)
        try:
            yield show
        finally:
            logger.setLevel(level)
            logger.removeHandler(handler)
