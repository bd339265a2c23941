"""What stands at the top of the report and on every printed page: case, author, dates, hash.

CSS writes the running lines, since no element of a page repeats itself on paper. Strings of other
people get there as CSS strings in which every character but a few is escaped by its number (also a
blank, which after an escape would vanish): none can end the string, the rule or the style.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Final

from markupsafe import Markup

from provenance.check.filing import Filing
from provenance.check.plan import Plan
from provenance.check.verdict import Verdict
from provenance.storage.printable import clean, shorten

_PLAIN: Final = re.compile(r"[^A-Za-z0-9]")
_LONGEST: Final = 60


@dataclass(frozen=True)
class Heading:
    """What a page says of itself, beside the result.

    Attributes
    ----------
    filing : case number, suspect, author
    created : when the bundle was written (RFC 3339, UTC), by the clock of its maker; "" unknown
    sha256 : hex digest of the bundle's contents (`hash_contents`); "" without a bundle
    of : what that is the hash of
    """

    filing: Filing = field(default_factory=Filing)
    created: str = ""
    sha256: str = ""
    of: str = "Bundle"

    def list_facts(self, verdict: Verdict, plan: Plan | None) -> list[tuple[str, str]]:
        """(name, value) for the table at the top; what is not known is said to be unknown."""
        stated = None if plan is None else plan.created
        stamp = None if verdict.plan is None else verdict.plan.timestamp
        unseen = "date not attested" if verdict.plan else "no plan"
        return [
            ("Case number", self.filing.number or "not stated"),
            ("Suspect", self.name_suspect(plan) or "not stated"),
            ("Author", self.filing.author or "not stated"),
            ("Plan made", say_time(stated) if stated else "no plan"),
            ("Plan seen by an authority", say_time(stamp) if stamp else unseen),
            ("Check made", f"{say_time(self.created)}, by the maker’s clock"
             if self.created else "not stated"),
        ]  # fmt: skip

    def name_suspect(self, plan: Plan | None) -> str:
        """As the plan names it, or else the filing."""
        return plan.suspect if plan is not None else self.filing.suspect

    def style_pages(self, suspect: str, soft: str) -> Markup:
        """The @page rule with running lines, in a colour of CSS."""
        case, author = self.filing.number, self.filing.author
        lines = {
            "top-left": [f"Case {_cut(case)}" if case else "", _cut(suspect)],
            "top-right": [_cut(author), self.created[:10]],
            "bottom-left": [f"{self.of} {self.sha256}" if self.sha256 else ""],
        }
        boxes = [
            f"@{place} {{ content: {write_css_string(text)}; }}"
            for place, parts in lines.items()
            if (text := "  |  ".join(filter(None, parts)))
        ]
        boxes.append('@bottom-right { content: counter(page) " / " counter(pages); }')
        look = f"font: 7.5pt sans-serif; color: {soft}"
        return Markup(f"@page {{ size: A4; margin: 20mm 17mm 20mm; {look}; {' '.join(boxes)} }}")


def write_css_string(text: str) -> str:
    """A CSS string literal that means this text, whatever is in it.

    >>> write_css_string('a"</style>')
    '"a\\\\000022\\\\00003c\\\\00002fstyle\\\\00003e"'
    """
    return '"' + _PLAIN.sub(lambda one: f"\\{ord(one[0]):06x}", clean(text)) + '"'


def say_time(time: str) -> str:
    """2026-11-26T20:20:19Z as 2026-11-26 20:20:19 UTC; anything else stays.

    >>> say_time("2026-11-26T20:20:19Z")
    '2026-11-26 20:20:19 UTC'
    """
    found = re.fullmatch(r"(\d{4}-\d\d-\d\d)T(\d\d:\d\d:\d\d)Z", time)
    return f"{found[1]} {found[2]} UTC" if found else time


def _cut(text: str) -> str:
    return shorten(clean(text), _LONGEST)
