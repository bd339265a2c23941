"""What an audit of a served log found: groups with their p and state, and counts of the log.

Knows sums of scores and their null law; knows no key, no token and no file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from statistics import NormalDist
from typing import Any, Final, Literal

from provenance.served.log import LogFile
from provenance.stats.laws import NullLaw
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable
from provenance.stats.tails import upper_tail
from provenance.storage.printable import Page

State = Literal["marking", "not marking", "too little to say", "no drawn bits"]
Conclusion = Literal["passed", "failed", "inconclusive"]

_EXIT_CODES: Final[Mapping[Conclusion, int]] = {"passed": 0, "failed": 1, "inconclusive": 3}
_NOTHING: Final = "no drawn bits"
_FAINT: Final = 0.1
_SHOWN: Final = 24


@dataclass(frozen=True)
class GroupSums:
    """Sums over the records of one group.

    Attributes
    ----------
    kind, name : `replica`, `key` (records with that label; for `global` all) or `hour`, and which
    records, marked, tokens : distinct responses, those that claim a mark, and token ids of all
    misplaced : tokens that are said to be drawn where no key of the record decides
    drawn, coins, total : tokens drawn under a key, their distinct coins, and the sum of the scores
    """

    kind: str
    name: str
    records: int
    marked: int
    tokens: int
    misplaced: int
    drawn: int
    coins: int
    total: int


@dataclass(frozen=True)
class AuditedGroup(GroupSums):
    """A group and what its coins say.

    Attributes
    ----------
    mean : score of a coin; None without coins
    shift_bound : upper confidence bound of the mean above the null law's, in standard deviations of
        a coin (normal approximation); None without coins
    log10_p : of "the tokens do not depend on this keyring's coins"; exact upper bound, uncorrected
    state : `marking` if p is at most alpha over the number of groups (Bonferroni). `not marking` if
        it is not, and `shift_bound` is below a tenth of a lower bound of what the other groups of
        its kind show together. How strong a mark is hangs on the traffic: so where nothing else
        marks, and nothing is known of what should be there, there is `too little to say`
    """

    mean: float | None
    shift_bound: float | None
    log10_p: float
    state: State


@dataclass(frozen=True)
class LogCounts:
    """Counts of a log: responses without duplicates, or records of `marked` ones.

    Attributes
    ----------
    records, marked, tokens : distinct responses, those that claim a mark, and token ids
    duplicates, conflicts : records whose id stood before; those of them with another content
    retokenised : responses that are text only
    without_... : marked responses that lack the field
    misplaced, misplaced_records, first_misplaced : tokens said to be drawn where no key decides,
        their responses, and the id of one: `index build` refuses such a log
    unkeyed : label of a slot whose value has no key -> marked responses
    misspelt : label that is no slot but is called nearly as one, which is missing -> marked ones
    """

    records: int
    marked: int
    tokens: int
    duplicates: int
    conflicts: int
    retokenised: int
    without_drawn: int
    without_conversation: int
    without_prompt: int
    without_finish: int
    without_time: int
    misplaced: int
    misplaced_records: int
    first_misplaced: str | None
    unkeyed: Mapping[str, int]
    misspelt: Mapping[str, int]


@dataclass(frozen=True)
class LogAudit:
    """Whether each replica really marks; `print` it.

    Attributes
    ----------
    groups : replicas, keys and hours
    counts, files : of the log
    null_law : of one coin's score where nothing is marked
    alpha : of calling any group marking that is not
    """

    groups: tuple[AuditedGroup, ...]
    counts: LogCounts
    files: tuple[LogFile, ...]
    null_law: NullLaw
    alpha: float

    @property
    def not_marking(self) -> tuple[AuditedGroup, ...]:
        """Groups that are served without the mark, or under other keys."""
        return tuple(one for one in self.groups if one.state == "not marking")

    @property
    def conclusion(self) -> Conclusion:
        """`passed` if every replica marks; `failed` if any group does not, or draws are misplaced.

        Keys and hours with too little data are no reason to doubt replicas that mark.
        """
        if self.not_marking or self.counts.misplaced:
            return "failed"
        replicas = [one for one in self.groups if one.kind == "replica"]
        marking = bool(replicas) and all(one.state == "marking" for one in replicas)
        return "passed" if marking else "inconclusive"

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return _EXIT_CODES[self.conclusion]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "conclusion": self.conclusion,
            "alpha": self.alpha,
            "null_mean": self.null_law.mean,
            "null_deviation": math.sqrt(self.null_law.variance),
            "groups": [asdict(one) for one in self.groups],
            "counts": asdict(self.counts),
            "files": [asdict(file) for file in self.files],
        }

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page, counts = Page(width), self.counts
        page.say(f"LOG AUDIT {self.conclusion}: {self._say_reason()}")
        for kind in ("replica", "key", "hour"):
            own = [one for one in self.groups if one.kind == kind]
            shown = own if len(own) <= _SHOWN else [one for one in own if one.state != "marking"]
            page.table(
                [kind, "records", "tokens", "drawn", "coins", "mean", "log10 p", "result"],
                [_say_group(one) for one in shown[:_SHOWN]],
            )
            if len(own) > len(shown[:_SHOWN]):
                page.say(f"{len(own) - len(shown[:_SHOWN]):,} more in the JSON form.")
        page.say(
            f"mean: score of a coin, {self.null_law.mean:.3f} where nothing is marked; alpha "
            f"{self.alpha:g} over {sum(one.coins > 0 for one in self.groups)} groups."
        )
        page.say(
            f"{counts.records:,} responses, {counts.marked:,} marked; {counts.duplicates:,} "
            f"duplicates, {counts.conflicts:,} of them with another content; "
            f"{counts.retokenised:,} are text only."
        )
        lacks = {name: n for name, n in asdict(counts).items() if name.startswith("without_") and n}
        if lacks:
            said = ", ".join(f"{n:,} without {name[8:]}" for name, n in lacks.items())
            page.say(f"Marked responses: {said}.")
        for labels, fault in (
            (counts.unkeyed, "has no key"),
            (counts.misspelt, "is no slot, and the slot that it resembles is missing"),
        ):
            for label, n in list(labels.items())[:_SHOWN]:
                page.say(f"Label {label} {fault}: {n:,} marked responses.")
        return str(page)

    def __str__(self) -> str:
        """In words, for 80 columns."""
        return self.say()

    def _say_reason(self) -> str:
        counts = self.counts
        if self.not_marking:
            named = ", ".join(f"{one.kind} {one.name}" for one in self.not_marking[:_SHOWN])
            return f"served without the mark, or under other keys: {named}."
        if counts.misplaced:
            return (
                f"{counts.misplaced:,} tokens of {counts.misplaced_records:,} responses are said "
                f"to be drawn where no key decides, first in {counts.first_misplaced}: another "
                "keyring, or other labels."
            )
        if self.conclusion == "passed":
            return "every replica marks."
        open_ = [one for one in self.groups if one.kind == "replica" and one.state != "marking"]
        return f"{', '.join(f'{one.name}: {one.state}' for one in open_) or 'no records'}."


def judge_groups(sums: Iterable[GroupSums], law: NullLaw, alpha: float) -> tuple[AuditedGroup, ...]:
    """The p and the state of each group; see `AuditedGroup`.

    Cost: an exact tail a group, about 10 ms each.
    """
    found = list(sums)
    tested = max(sum(one.coins > 0 for one in found), 1)
    reach = -NormalDist().inv_cdf(alpha / tested)
    of_kind: Counter[tuple[str, str]] = Counter()
    for one in found:
        of_kind[one.kind, "coins"] += one.coins
        of_kind[one.kind, "total"] += one.total
    return tuple(
        _judge(
            one,
            (of_kind[one.kind, "coins"] - one.coins, of_kind[one.kind, "total"] - one.total),
            law,
            alpha / tested,
            reach,
        )
        for one in found
    )


def _judge(
    one: GroupSums, others: tuple[int, int], law: NullLaw, level: float, reach: float
) -> AuditedGroup:
    """One group at its own level, beside coins and total of the others of its kind.

    `reach` : standard errors of a bound at that level.
    """
    if not one.coins:
        return AuditedGroup(**vars(one), mean=None, shift_bound=None, log10_p=0.0, state=_NOTHING)
    log10_p = upper_tail(ClassTable((ScoreClass(1, law, one.coins, one.total),))).log10_p
    bound = _shift(one.coins, one.total, law, reach)
    state: State = "too little to say"
    if log10_p <= math.log10(level):
        state = "marking"
    elif others[0] and bound < _FAINT * _shift(*others, law, -reach):
        state = "not marking"
    return AuditedGroup(
        **vars(one), mean=one.total / one.coins, shift_bound=bound, log10_p=log10_p, state=state
    )


def _shift(coins: int, total: int, law: NullLaw, reach: float) -> float:
    """Mean score above the law's, in standard deviations, and `reach` standard errors more."""
    return (total / coins - law.mean) / math.sqrt(law.variance) + reach / math.sqrt(coins)


def _say_group(one: AuditedGroup) -> list[str]:
    numbers = [f"{number:,}" for number in (one.records, one.tokens, one.drawn, one.coins)]
    mean = "-" if one.mean is None else f"{one.mean:.3f}"
    return [one.name, *numbers, mean, f"{one.log10_p:.1f}", one.state]
