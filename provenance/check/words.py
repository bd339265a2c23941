"""Words that verdicts of every kind share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

from provenance.check.findings import Conclusion, Control, GroupResult, PlanReference
from provenance.check.registered import Registered, say_ordinal
from provenance.storage.printable import Page

GROUPS_NEED: Final = (
    "This holds if the log is complete, also of the others, and if the group was chosen by what "
    "was known before its responses were drawn, never by their text or by the suspect's outputs."
)


def add_controls(page: Page, controls: Iterable[Control]) -> None:
    """The table of controls that ends every check."""
    rows = [[c.name, "passed" if c.passed else "FAILED", c.detail] for c in controls]
    page.table(["control", "result", "detail"], rows, "Controls")


def add_groups(
    page: Page,
    groups: Sequence[GroupResult],
    inputs: Mapping[str, Mapping[str, Any]],
    conclusion: Conclusion,
) -> None:
    """The table of groups chosen afterwards, and a sentence on each."""
    page.table(
        ["group", "contexts", "coins", "z", "log10 p", "adjusted", "rejected"],
        [
            [
                one.name,
                f"{inputs[one.group]['contexts_met'][one.side]:,}",
                f"{one.tail.coins:,}",
                f"{one.tail.z:+.2f}",
                f"{one.tail.log10_p:.2f}",
                f"{one.log10_adjusted:.2f}",
                "yes" if one.rejected else "",
            ]
            for one in groups
        ],
        "Groups of responses, on contexts that nobody else saw",
    )
    for sentence in say_groups(groups, inputs, conclusion):
        page.say(sentence)


def say_groups(
    groups: Sequence[GroupResult],
    inputs: Mapping[str, Mapping[str, Any]],
    conclusion: Conclusion,
) -> list[str]:
    """What was found of every group and of everybody else: one sentence a group, and a caution."""
    said = []
    for name in dict.fromkeys(one.group for one in groups):
        facts = inputs[name]
        sides = {one.side: one for one in groups if one.group == name}
        said.append(
            f"Group {name}: {int(facts['responses']):,} responses by {facts['field']} (list "
            f"{facts['list_sha256'][:16]}), {int(facts['exclusive']):,} exclusive contexts. "
            f"What these got and nobody else did: {_say_side(sides['group'], conclusion)}. What "
            f"everybody else got and these did not: {_say_side(sides['others'], conclusion)}."
        )
    return [*said, GROUPS_NEED]


def _say_side(one: GroupResult, conclusion: Conclusion) -> str:
    if not one.tail.coins:
        return "nothing was scored, so nothing is said"
    if not one.rejected:
        return "no evidence of training on it"
    if conclusion != "evidence":
        return "no conclusion, for the reasons above"
    return f"not to be named: {one.doubt}" if one.doubt else "EVIDENCE of training on it"


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
