"""Words that verdicts of every kind share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from provenance.check.findings import Control, PlanReference
from provenance.check.registered import Registered, say_ordinal
from provenance.storage.printable import Page


def add_controls(page: Page, controls: Iterable[Control]) -> None:
    """The table of controls that ends every check."""
    rows = [[c.name, "passed" if c.passed else "FAILED", c.detail] for c in controls]
    page.table(["control", "result", "detail"], rows, "Controls")


def say_attributed(attributed: Mapping[str, Sequence[str]]) -> str:
    """Which values leaked, at least: `, at least: week 2026-W17`; nothing for none."""
    parts = [f"{slot} {', '.join(values)}" for slot, values in attributed.items()]
    return f", at least: {'; '.join(parts)}" if parts else ""


def is_exploratory(plan: PlanReference | None, register: Registered | None) -> bool:
    """Whether no plan fixed a check, or its plan had been checked before."""
    return plan is None or (register is not None and register.repeats)


def name_standing(plan: PlanReference | None, register: Registered | None) -> str:
    """What a check may be called: exploratory, repeated, planned, or planned without a date."""
    if plan is None:
        return "exploratory"
    if register is not None and register.repeats:
        return "repeated, so exploratory"
    return "planned" if plan.timestamp else "planned, date not attested"


def say_plan(plan: PlanReference | None, register: Registered | None) -> list[str]:
    """What fixed a check before it was made, and what else was tried: a sentence each."""
    said = [_say_plan(plan, register)]
    if register is not None:
        return [*said, f"{register}."]
    unknown = "how often its plan was checked and " if plan else ""
    return [*said, f"Not registered in a case: {unknown}what else was tried is not known."]


def _say_plan(plan: PlanReference | None, register: Registered | None) -> str:
    if plan is None:
        return "Exploratory: no plan fixed this check before it was made."
    if register is not None and register.repeats:
        same = register.same and "; an earlier check had the very same inputs, and so this result"
        return (
            f"Repeated, so exploratory: {say_ordinal(register.uses)} check of the plan "
            f"{plan.sha256}, and only the first is planned{same or ''}."
        )
    if plan.timestamp:
        return f"Planned: {plan.sha256}, timestamped {plan.timestamp}."
    return (
        f"Planned, date not attested: {plan.sha256}. No authority says when the plan was made, "
        "only its maker."
    )
