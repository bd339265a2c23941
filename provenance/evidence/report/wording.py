"""The sentences of the report: what each conclusion means, and what it does not.

Every sentence is made here, so that all conclusions can be read side by side. A p-value is
said in natural frequencies, "fewer than 1 of 10^k such checks", and never as a probability that the
suspect is innocent. Knows verdicts; knows no HTML but the superscripts of powers of ten.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Final, Literal

from markupsafe import Markup

from provenance.check.family import Family
from provenance.check.verdict import Verdict
from provenance.storage.printable import clean, shorten

Standing = Literal["evidence", "twins", "none", "untested", "little", "reserved", "invalid"]
"""What the page as a whole says.

`twins`: only the second line of evidence rejects. The last four are inconclusive: nothing was
scored; too little to find even a fully trained suspect; something else is held against what the
numbers say; a control failed, or the verdict contradicts itself.
"""

TITLES: Final[Mapping[Standing, str]] = {
    "evidence": "Evidence found",
    "twins": "Evidence found, by the second line only",
    "none": "No evidence found",
    "untested": "No answer: nothing could be tested",
    "little": "No answer: too little data",
    "reserved": "Inconclusive",
    "invalid": "Inconclusive: a control failed",
}

ASSUMPTIONS: Final = (
    "The keys were drawn at random, and nobody who wrote or chose the suspect’s text, the prompts, "
    "the reference or the weights knew them. The commitments in the public keyring file show that "
    "the keys were fixed; a timestamped plan shows when.",
    "The index counts every response that was generated, before any selection. A log from which "
    "responses were removed afterwards by their content can accuse an innocent model.",
    "The prompt of each output was recorded with it. Marked text that stands in a prompt is left "
    "out of the test; a prompt that was not recorded cannot be.",
    "Weights are functions of what the suspect wrote, of a reference and of how many responses "
    "served a context, never of the key’s coins. The program has no way to do otherwise.",
    "The p-value is exact, or above the exact one, for fixed weights. The counts of served "
    "contexts are independent of each context’s own coins; the joint effect that remains was "
    "simulated and is within the noise (docs/validity.md).",
)

NOT_SHOWN: Final = (
    "Not intent, and not the route by which the text came into the training data. Text that other "
    "people published, quoted or resold leaves the same trace as text that the suspect’s maker "
    "collected (quotation, echo, shared data sets).",
    "Not who used the service. A value that is named (a week, a cohort) says under which key the "
    "learned text was served, not who passed it on.",
    "Not how much was used. Shares are shares of the evidence that was absorbed, not of the "
    "training data; values served at other times, or with more varied text, weigh differently.",
    "Not the probability that the model is innocent, or guilty. That depends on everything else "
    "that is known of the case; the p-value says only how rarely chance alone gives such a result.",
)

_INCONCLUSIVE: Final[Mapping[Standing, str]] = {
    "untested": "No choice of this model could be compared with a key, so nothing was tested.",
    "little": "There is too little data to answer the question: even a model that was trained on "
    "marked responses alone could have gone unnoticed.",
    "reserved": "What is known of the data forbids the conclusion that the numbers alone would "
    "suggest.",
}
_MOST_SLOTS: Final = 6
_MOST_VALUES: Final = 6
_NAMED: Final = {6: "million", 9: "billion"}
_RAREST: Final = 9


def find_standing(verdict: Verdict) -> Standing:
    """What the page says as a whole; a verdict that contradicts itself is `invalid`."""
    if not verdict.controls_passed:
        return "invalid"
    if verdict.found_evidence:
        lines = verdict.found_by
        return "evidence" if "keys" in lines else "twins" if lines else "invalid"
    if verdict.conclusion == "no evidence":
        return "none"
    if not verdict.is_scored:
        return "untested"
    return "reserved" if _is_reserved(verdict) else "little"


def shows_numbers(verdict: Verdict) -> bool:
    """Whether p-values may be shown: not where they could be taken for what may not be said."""
    standing = find_standing(verdict)
    rejected = verdict.rejects
    return standing != "invalid" and not (standing == "reserved" and rejected)


def _is_reserved(verdict: Verdict) -> bool:
    """Whether a reservation stands against what the numbers say."""
    by_twins = verdict.twins is not None and verdict.twins.rejected
    rejected = by_twins or verdict.rejects
    forbidden = ("both", "evidence" if rejected else "no evidence")
    return any(one.against in forbidden for one in verdict.reservations)


def say_finding(verdict: Verdict) -> list[Markup]:
    """The finding in two sentences of plain English."""
    standing = find_standing(verdict)
    if standing == "evidence":
        return [
            Markup(
                "What this model writes is statistically associated with secret keys that were "
                "drawn at random and used to mark the served responses{where}: it is consistent "
                "with the model having been trained on them."
            ).format(where=_where(_name_found(verdict))),
            Markup("If the model had not been trained on marked responses, {frequency}.").format(
                frequency=say_frequency(verdict.log10_p)
            ),
        ]
    if standing == "twins" and (twins := verdict.twins) is not None:
        return [
            Markup(
                "Of two responses that could equally well have been served, this model finds the "
                "one that was served likelier in {favour:,} of {pairs:,} pairs, while the keys of "
                "the mark show no evidence."
            ).format(favour=twins.favour_served, pairs=twins.pairs),
            Markup("If the model had not been trained on served responses, {frequency}.").format(
                frequency=say_frequency(twins.tail.log10_p)
            ),
        ]
    if standing == "none":
        return [
            Markup("This check found no evidence that the model was trained on marked responses."),
            Markup(
                "That is not proof that it was not: a weaker trace than the check can see, or text "
                "on other subjects than the served one, would look the same."
            ),
        ]
    if standing in _INCONCLUSIVE:
        neither = "This report speaks neither for nor against training on marked responses."
        if standing in ("little", "untested"):
            neither = f"{neither[:-1]}: it must not be read as “no evidence found”."
        return [Markup(_INCONCLUSIVE[standing]), Markup(neither)]
    failed = [control for control in verdict.controls if not control.passed]
    which = f" ({len(failed)} of {len(verdict.controls)})" if failed else ""
    return [
        Markup(f"A control of this check failed{which}, so its statistics cannot be trusted."),
        Markup("Nothing in this report is evidence, for or against the suspect."),
    ]


def say_family(family: Family) -> tuple[str, list[str]]:
    """Title and sentences on several suspects together."""
    accused = sum(one.accused for one in family.suspects)
    many = len(family.suspects)
    if accused:
        who = "one suspect" if accused == 1 else f"{accused:,} suspects"
        return f"Evidence against {who} of {many:,}", [
            "What the accused models write is statistically associated with secret keys that were "
            "drawn at random and used to mark the served responses: it is consistent with their "
            "having been trained on them.",
            f"If none of the {many:,} models had been trained on marked responses, anybody would "
            f"be accused in at most {family.alpha:g} of all such rounds of checks.",
        ]
    if family.conclusion == "no evidence":
        return f"No evidence against any of {many:,} suspects", [
            "Every check by itself found no evidence, with the power that its own report states, "
            "and nor do all of them together.",
            "That is not proof that none was trained on marked responses.",
        ]
    return f"No answer: nobody of {many:,} is accused, but not for want of a mark", [
        "Nobody is accused, and of at least one suspect it cannot be said that there is no "
        "evidence. This page must not be read as “no evidence found”.",
    ]


def say_frequency(log10_p: float) -> Markup:
    """The p-value in natural frequencies; an upper bound stays one.

    >>> str(say_frequency(-6.2))
    'a result this strong would occur in fewer than 1 of 1 million such checks'
    >>> str(say_frequency(-1.5))
    'a result this strong would occur in at most 4 of 100 such checks'
    >>> str(say_frequency(-113.1))
    'a result this strong would occur in fewer than 1 of 1 billion such checks'
    """
    zeros = math.floor(-log10_p)
    if log10_p < -_RAREST:  # beyond it nobody can picture the number, and it means no more
        zeros = _RAREST
    result = Markup("a result this strong would occur in ")
    if zeros < 2:
        return result + Markup("at most {count} of 100 such checks").format(
            count=min(100, math.ceil(100 * 10**log10_p - 1e-9))
        )
    bound = "at most" if log10_p == -zeros else "fewer than"
    return result + Markup("{bound} 1 of {number} such checks").format(
        bound=bound, number=_say_power_of_ten(zeros)
    )


def _say_power_of_ten(zeros: int) -> str:
    """100, 10,000, 1 million, 10 million, up to a billion."""
    if zeros < 6:
        return f"{10**zeros:,}"
    return f"{10 ** (zeros % 3)} {_NAMED[zeros - zeros % 3]}"


def say_p(log10_p: float) -> Markup:
    """A p-value rounded up to two digits; a power of ten below .001.

    >>> str(say_p(-85.4076)), str(say_p(-0.2))
    ('4.0 × 10<sup>−86</sup>', '0.64')
    """
    exponent = math.floor(log10_p)
    tenths = math.ceil(10 * 10 ** (log10_p - exponent) - 1e-9)
    if tenths == 100:
        tenths, exponent = 10, exponent + 1
    if exponent > -3:
        return Markup(f"{tenths / 10 * 10.0**exponent:#.2g}")
    return Markup("{digits} × 10<sup>−{exponent}</sup>").format(
        digits=f"{tenths / 10:.1f}", exponent=-exponent
    )


def describe_strength(log10_p: float) -> str:
    """A word of caution that grows with the exponent."""
    if log10_p > -9:
        return ""
    return (
        "Beyond one in a billion the number says only that chance is ruled out. Mistakes of "
        "people (a key that leaked, files that were mixed up, an index of selected responses) are "
        "far likelier than that, and have to be ruled out by other means: the controls below, the "
        "plan, and the recomputation."
    )


def show_name(name: object, length: int = 60) -> Markup:
    """A name that somebody else chose: printable, short, and unable to turn its surroundings.

    >>> str(show_name("<b>" + "a" * 100, 9))
    '<bdi>&lt;b&gt;a…aaaa</bdi>'
    """
    return Markup("<bdi>{}</bdi>").format(shorten(clean(str(name)), length))


def _name_found(verdict: Verdict) -> dict[str, list[str]]:
    """What is named: values of slots, and groups chosen afterwards."""
    groups = {"group": list(verdict.found_groups)} if verdict.found_groups else {}
    return {**verdict.attributed, **groups}


def _where(attributed: Mapping[str, Sequence[str]]) -> Markup:
    """`, at least those of week 2026-W17, 2026-W18; cohort a`."""
    parts = []
    for slot, values in sorted(attributed.items())[:_MOST_SLOTS]:
        shown = Markup(", ").join(show_name(value) for value in values[:_MOST_VALUES])
        rest = len(values) - _MOST_VALUES
        more = Markup(" and {} more").format(rest) if rest > 0 else Markup("")
        parts.append(Markup("{} {}{}").format(show_name(slot), shown, more))
    return Markup(", at least those of ") + Markup("; ").join(parts) if parts else Markup("")
