"""What a step of a verification says: it held, it failed, or it could not be done, and why."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from provenance.storage.printable import clean

Status = Literal["held", "failed", "not possible"]


class StepFailedError(Exception):
    """What a step claims does not hold; `file` is where, relative to the bundle."""

    def __init__(self, file: str, reason: str) -> None:
        super().__init__(reason)
        self.file = file


class NotPossibleError(Exception):
    """A step cannot be done with what the bundle holds and the caller gave; it claims nothing."""


@dataclass(frozen=True)
class Step:
    """One line of the list.

    Attributes
    ----------
    number, title : from 1, and what is claimed if the step held
    status : held, failed or not possible
    file : of the bundle, relative; "" if the step is about several
    detail : what was found, in words
    """

    number: int
    title: str
    status: Status
    file: str
    detail: str


@dataclass(frozen=True)
class Verification:
    """All steps, in their order."""

    steps: tuple[Step, ...]

    @property
    def passed(self) -> bool:
        """True if no step failed. A step that was not possible claims nothing."""
        return all(step.status != "failed" for step in self.steps)

    @property
    def failures(self) -> Sequence[Step]:
        """The steps that failed."""
        return [step for step in self.steps if step.status == "failed"]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"passed": self.passed, "steps": [asdict(step) for step in self.steps]}

    def say_result(self) -> str:
        """One line: how many steps failed, or held."""
        if failed := len(self.failures):
            return f"NOT VERIFIED: {failed} of {len(self.steps)} steps failed."
        unsure = sum(step.status == "not possible" for step in self.steps)
        return (
            f"VERIFIED: {len(self.steps) - unsure} steps held, {unsure} were not possible and "
            "claim nothing."
        )

    def __str__(self) -> str:
        """One line a step, and the result."""
        names = {"held": "held", "failed": "FAILED"}
        lines = [
            f"{s.number:2d} {names.get(s.status, 'not possible'):12s}  {s.title} [{s.file}]: "
            f"{s.detail}"
            for s in self.steps
        ]
        return "\n".join([*map(clean, lines), self.say_result()])
