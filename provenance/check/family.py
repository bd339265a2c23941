"""What is said of several suspects together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from provenance.check.correlations import Correlation
from provenance.check.findings import Concluded, Conclusion
from provenance.storage.printable import Page, Said


@dataclass(frozen=True)
class SuspectResult:
    """What the family says of one suspect.

    Attributes
    ----------
    name : its folder
    usable : False if its p-values may accuse nobody, see `Suspect`; then nothing can be found
    log10_p : smallest adjusted p over its keys; all suspects and committed keys are counted
    accused : log10_p <= log10(alpha)
    keys : names of its keys that are rejected: at least these
    log10_e : e-value of the suspect, over all committed keys; None for an e-value of 0
    log10_level : smallest false discovery rate at which e-BH names it
    discovered : log10_level <= log10(rate)
    """

    name: str
    usable: bool
    log10_p: float
    accused: bool
    keys: tuple[str, ...]
    log10_e: float | None
    log10_level: float
    discovered: bool


@dataclass(frozen=True)
class Family(Concluded, Said):
    """All suspects together, see `provenance.check.suspects` for `conclusion`.

    `reasons` says why it is inconclusive; `without_pairs`: bundles without pairs: no correlation.
    """

    keyring_id: str
    committed_keys: int
    alpha: float
    false_discovery_rate: float
    suspects: tuple[SuspectResult, ...]
    correlations: tuple[Correlation, ...]
    without_pairs: tuple[str, ...]
    conclusion: Conclusion
    reasons: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"schema_version": 2, "found_evidence": self.found_evidence, **asdict(self)}

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page = Page(width)
        page.table(
            ["suspect", "log10 p", "accused", "keys, at least", "log10 e", "level", "by e-BH"],
            [_row(result) for result in self.suspects],
            f"{len(self.suspects)} suspects, {self.committed_keys} committed keys each",
        )
        page.say()
        page.reasons(self.reasons)
        page.say(
            f"log10 p: adjusted for all suspects and committed keys; accused at {self.alpha:g}: "
            "with that probability anybody is accused wrongly. level: log10 of the false discovery "
            f"rate at which e-BH names the suspect; named at {self.false_discovery_rate:g}: that "
            "share of the named is wrong on average. Do not accuse one suspect by e-BH alone."
        )
        if self.correlations:
            page.say()
            page.table(
                ["suspect", "suspect", "key", "shared pairs", "correlation"],
                [
                    [
                        one.first,
                        one.second,
                        one.key,
                        f"{one.shared_pairs:,}",
                        f"{one.correlation:+.3f}",
                    ]
                    for one in largest_correlations(self.correlations)
                ],
                "Correlation of z under H0 by shared pairs, largest key of every two suspects",
            )
        if self.without_pairs:
            page.say(f"No correlation for {', '.join(self.without_pairs)}: no pairs in the folder.")
        return str(page)


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


def largest_correlations(correlations: Sequence[Correlation]) -> list[Correlation]:
    """Per two suspects that of the key with the largest correlation, up to sign."""
    best: dict[tuple[str, str], Correlation] = {}
    for one in correlations:
        known = best.get((one.first, one.second))
        if known is None or abs(one.correlation) > abs(known.correlation):
            best[one.first, one.second] = one
    return list(best.values())
