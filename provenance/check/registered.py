"""What the register of a case says of one check: which check of this suspect it is.

A p-value does not know how often somebody tried. The register does, for all that was tried in one
case folder; a verdict carries what it said when the check was entered, before a key was opened.
Computes nothing.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Final

from provenance.check.filing import Filing

_FIRST: Final = (
    *("first", "second", "third", "fourth", "fifth", "sixth"),
    *("seventh", "eighth", "ninth", "tenth"),
)
_NUMBERS: Final = (
    *("none", "one", "two", "three", "four", "five"),
    *("six", "seven", "eight", "nine", "ten"),
)


@dataclass(frozen=True)
class Registered:
    """The counts of a register at the line of one check, that check among them.

    Attributes
    ----------
    suspect, number, author : of the case, in words; "" where nobody gave one
    head : hex SHA-256 of the line in which the check was entered
    records : lines up to there
    checks, planned : checks of this suspect so far, and how many of them were the first of a plan
    looks : batches that were added to sequential checks so far
    plans : plans that were made so far
    uses : checks of this check's plan (of planned looks: of this look); 0 without a plan
    same : earlier checks of the very same inputs and settings; their results were the same
    signer : fingerprint of the key that signed every line; None if nobody signs
    """

    suspect: str
    number: str
    author: str
    head: str
    records: int
    checks: int
    planned: int
    looks: int
    plans: int
    uses: int
    same: int
    signer: str | None

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    @property
    def repeats(self) -> bool:
        """Whether its plan had been checked before."""
        return self.uses > 1

    @property
    def filing(self) -> Filing:
        """What the case says of itself, for the head of a report."""
        return Filing(self.number, self.suspect, self.author)

    def __str__(self) -> str:
        """One sentence without a full stop."""
        name = f"Case {self.number}: " if self.number else "In this case: "
        also = f", with {say_count(self.looks)} sequential looks" if self.looks else ""
        signed = f"signed by {self.signer}" if self.signer else "not signed"
        return (
            f"{name}{say_ordinal(self.checks)} check of this suspect, {say_count(self.planned)} "
            f"planned{also}; register {self.head}, {self.records:,} lines, {signed}"
        )


def say_ordinal(number: int) -> str:
    """`first` to `tenth`, then `11th`.

    >>> say_ordinal(3), say_ordinal(11), say_ordinal(22), say_ordinal(101)
    ('third', '11th', '22nd', '101st')
    """
    if 1 <= number <= len(_FIRST):
        return _FIRST[number - 1]
    endings = {1: "st", 2: "nd", 3: "rd"}
    teen = number % 100 in (11, 12, 13)
    return f"{number:,}{'th' if teen else endings.get(number % 10, 'th')}"


def say_count(number: int) -> str:
    """`none` to `ten`, then digits."""
    return _NUMBERS[number] if number < len(_NUMBERS) else f"{number:,}"
