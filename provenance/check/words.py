"""What a verdict says in words, for a terminal or a page of plain text."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from provenance.check.correlations import Correlation
from provenance.check.inputs import say_positions
from provenance.check.power_statement import say_power
from provenance.check.suspects import Family, SuspectResult
from provenance.check.verdict import Control, TwinsResult, Verdict
from provenance.storage.printable import Page


def say_verdict(verdict: Verdict, width: int = 80) -> str:
    """The readable report of a check; a page of at most `width` columns."""
    page, headline = Page(width), verdict.headline
    page.say(_conclude(verdict))
    page.reasons(verdict.reasons)
    for one in verdict.reservations:
        if one.reason not in verdict.reasons:
            page.say(f"Known of the inputs: {one}.", wrap=False)
    page.say(_say_plan(verdict))
    page.say(
        f"p of the whole check <= 10^{verdict.log10_p:.2f} (family-wise, all keys); "
        f"alpha {verdict.alpha:g}" + (f"; smallest: {headline.name}" if headline else "")
    )
    page.say(say_positions(verdict.inputs["outputs"]))
    page.say()
    _add_keys(page, verdict)
    page.say()
    add_controls(page, verdict.controls)
    if verdict.shares:
        page.say()
        page.table(
            ["slot", "value", "share", "95 % limits"],
            [
                [s.slot, s.value, f"{s.estimate:.2f}", f"{s.lower:.2f} .. {s.upper:.2f}"]
                for s in verdict.shares
            ],
            "Shares of the absorbed evidence (simultaneous over all slots)",
        )
    if verdict.twins is not None:
        page.say()
        page.say(_say_twins(verdict.twins))
    page.say()
    if verdict.caveat:
        page.say(f"Caveat of this mark: {verdict.caveat}.")
    page.say(_caveat(verdict))
    return str(page)


def say_family(family: Family, width: int = 80) -> str:
    """Several suspects together; a page of at most `width` columns."""
    page = Page(width)
    page.table(
        ["suspect", "log10 p", "accused", "keys, at least", "log10 e", "level", "by e-BH"],
        [_row(result) for result in family.suspects],
        f"{len(family.suspects)} suspects, {family.committed_keys} committed keys each",
    )
    page.say()
    page.reasons(family.reasons)
    page.say(
        f"log10 p: adjusted for all suspects and committed keys; accused at {family.alpha:g}: "
        "with that probability anybody is accused wrongly. level: log10 of the false discovery "
        f"rate at which e-BH names the suspect; named at {family.false_discovery_rate:g}: that "
        "share of the named is wrong on average. Do not accuse one suspect by e-BH alone."
    )
    if family.correlations:
        page.say()
        page.table(
            ["suspect", "suspect", "key", "shared pairs", "correlation"],
            [
                [one.first, one.second, one.key, f"{one.shared_pairs:,}", f"{one.correlation:+.3f}"]
                for one in _largest(family.correlations)
            ],
            "Correlation of z under H0 by shared pairs, largest key of every two suspects",
        )
    if family.without_pairs:
        page.say(f"No correlation for {', '.join(family.without_pairs)}: no pairs in the folder.")
    return str(page)


def add_controls(page: Page, controls: Iterable[Control]) -> None:
    """The table of controls that ends every check."""
    rows = [[c.name, "passed" if c.passed else "FAILED", c.detail] for c in controls]
    page.table(["control", "result", "detail"], rows, "Controls")


def say_attributed(attributed: Mapping[str, Sequence[str]]) -> str:
    """Which values leaked, at least: `, at least: week 2026-W17`; nothing for none."""
    parts = [f"{slot} {', '.join(values)}" for slot, values in attributed.items()]
    return f", at least: {'; '.join(parts)}" if parts else ""


def _row(result: SuspectResult) -> list[str]:
    return [
        result.name,
        f"{result.log10_p:.2f}",
        ("yes" if result.accused else "") if result.usable else "not usable",
        ", ".join(result.keys),
        "" if result.log10_e is None else f"{result.log10_e:.2f}",
        f"{result.log10_level:.2f}",
        "yes" if result.discovered else "",
    ]


def _largest(correlations: Sequence[Correlation]) -> list[Correlation]:
    """Per two suspects the key of the largest correlation, up to sign."""
    best: dict[tuple[str, str], Correlation] = {}
    for one in correlations:
        known = best.get((one.first, one.second))
        if known is None or abs(one.correlation) > abs(known.correlation):
            best[one.first, one.second] = one
    return list(best.values())


def _add_keys(page: Page, verdict: Verdict) -> None:
    page.table(
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


def _conclude(verdict: Verdict) -> str:
    if verdict.conclusion == "evidence":
        if verdict.found_by == ("twins",):
            return "EVIDENCE, by the twins only, of training on the responses that were served."
        where = say_attributed(verdict.attributed)
        also = " The twins say so too." if "twins" in verdict.found_by else ""
        return f"EVIDENCE: consistent with training on marked responses{where}.{also}"
    if verdict.conclusion == "inconclusive":
        return "INCONCLUSIVE: this check speaks neither for nor against training on the responses."
    return "NO EVIDENCE of training on marked responses."


def _say_plan(verdict: Verdict) -> str:
    if verdict.plan is None:
        return "Exploratory: no plan fixed this check before it was made."
    stamped = f", timestamped {verdict.plan.timestamp}" if verdict.plan.timestamp else ""
    return f"Planned: {verdict.plan.sha256}{stamped}."


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
