"""What an audit of a served log found: groups with their p and state, and counts of the log.

Knows sums of scores and their null law; knows no key, no token and no file.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from statistics import NormalDist
from typing import Any, Final, Literal

from provenance.stats.laws import NullLaw
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable
from provenance.stats.tails import upper_tail
from provenance.storage.printable import Page

State = Literal["marking", "not marking", "too little to say", "no drawn bits"]
Conclusion = Literal["passed", "failed", "inconclusive"]

_EXIT_CODES: Final[Mapping[Conclusion, int]] = {"passed": 0, "failed": 1, "inconclusive": 3}
_KINDS: Final = ("replica", "key", "hour")
_FAINT: Final = 0.1
_NOTHING: Final = 0.02
"""Deviations a coin: 10,000 coins would give z = 2, so no suspect could be found by such a mark."""
_SHOWN: Final = 24


@dataclass(frozen=True)
class AuditedGroup:
    """A group of records and what its coins say.

    Attributes
    ----------
    kind, name : `replica`, `key` (records with that label; for `global` all) or `hour`, and which
    records, marked, tokens : distinct responses, those that claim a mark, and token ids of all
    misplaced : tokens that are said to be drawn where no key of the record decides
    drawn, coins, total : tokens drawn under a key, their distinct coins, and the sum of the scores
    shift_bound : upper confidence bound of the mean score above the null law's, in standard
        deviations of a coin (normal approximation); None without coins
    log10_p : of "the tokens do not depend on this keyring's coins"; exact upper bound, uncorrected
    squares : sum of the squares of the scores
    state : `marking` if p is at most alpha over the number of groups (Bonferroni). `not marking` if
        it is not, and `shift_bound` is below a tenth of a lower bound of what the other groups of
        its kind show together, or below .02, a mark by which no suspect could be found. How
        strong a mark is hangs on the traffic: between these there is `too little to say`
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
    shift_bound: float | None = None
    log10_p: float = 0.0
    state: State = "no drawn bits"
    squares: int = 0

    def signal(self, law: NullLaw) -> tuple[float, float] | None:
        """How far a drawn coin lies above its law on average, in its standard deviations.

        With its standard error, from the spread of the scores; None with fewer than two coins. What
        a suspect can absorb is in proportion to it: little where the text leaves no choice.
        """
        if self.coins < 2:
            return None
        mean, scale = self.total / self.coins, math.sqrt(law.variance)
        spread = math.sqrt(max(self.squares / self.coins - mean**2, 0.0))
        return (mean - law.mean) / scale, spread / math.sqrt(self.coins - 1) / scale

    @property
    def mean(self) -> float | None:
        """Score of a coin; None without coins."""
        return self.total / self.coins if self.coins else None


@dataclass(frozen=True)
class LogAudit:
    """Whether each replica really marks; `print` it.

    Attributes
    ----------
    groups : replicas, keys and hours
    null_law : of one coin's score where nothing is marked
    alpha : of calling any group marking that is not
    counts : `records` and `marked` responses; `duplicates`, `conflicts` among them (other content);
        `retokenised`: text only; `without_...`: marked responses that lack the field; `misplaced`
        tokens and `misplaced_records`: said to be drawn where no key decides, which `index build`
        refuses
    first_misplaced : id of the first such response
    unkeyed : label of a slot whose value has no key -> marked responses
    misspelt : label's name that is nearly a slot's -> marked responses without the slot's own
    """

    groups: tuple[AuditedGroup, ...]
    null_law: NullLaw
    alpha: float
    counts: Mapping[str, int]
    first_misplaced: str | None
    unkeyed: Mapping[str, int]
    misspelt: Mapping[str, int]

    @property
    def conclusion(self) -> Conclusion:
        """`passed` if every replica marks; `failed` if any group does not, or draws are misplaced.

        Keys and hours with too little data are no reason to doubt replicas that mark.
        """
        if self.counts["misplaced"] or any(one.state == "not marking" for one in self.groups):
            return "failed"
        states = {one.state for one in self.groups if one.kind == "replica"}
        return "passed" if states == {"marking"} else "inconclusive"

    @property
    def exit_code(self) -> int:
        """Of the command."""
        return _EXIT_CODES[self.conclusion]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "conclusion": self.conclusion,
            **{name: value for name, value in vars(self).items() if name != "null_law"},
            "null_mean": self.null_law.mean,
            "null_deviation": math.sqrt(self.null_law.variance),
            "groups": [self._write_group(one) for one in self.groups],
        }

    def _write_group(self, one: AuditedGroup) -> dict[str, Any]:
        signal, error = one.signal(self.null_law) or (None, None)
        return {**asdict(one), "mean": one.mean, "signal": signal, "signal_error": error}

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page, counts = Page(width), self.counts
        page.say(f"LOG AUDIT {self.conclusion}: {self._say_reason()}")
        for kind in _KINDS:
            own = [one for one in self.groups if one.kind == kind]
            telling = own if len(own) <= _SHOWN else [o for o in own if o.state != "marking"]
            columns = [kind, "records", "tokens", "drawn", "coins", "mean", "log10 p", "result"]
            if telling:
                page.table(columns, map(_say_group, telling[:_SHOWN]))
            if hidden := len(own) - len(telling[:_SHOWN]):
                page.say(f"{hidden:,} more groups ({kind}) with --json.")
        signals = [(one.name, one.signal(self.null_law)) for one in self._of_labels()]
        if told := [[name, f"{s[0]:.3f}", f"{s[1]:.3f}"] for name, s in signals if s]:
            page.table(["key", "signal", "error"], told[:_SHOWN])
            page.say("signal: score of a drawn coin above its law, in standard deviations.")
        tested = sum(one.coins > 0 for one in self.groups)
        page.say(
            f"mean: score of a coin, {self.null_law.mean:.3f} where nothing is marked; alpha "
            f"{self.alpha:g} over {tested} groups."
        )
        page.table(
            ["what", "records"],
            [[name.replace("_", " "), f"{count:,}"] for name, count in counts.items() if count],
        )
        for labels, fault in (
            (self.unkeyed, "has no key"),
            (self.misspelt, "is no slot, though its name is nearly a slot's"),
        ):
            for label, count in list(labels.items())[:_SHOWN]:
                page.say(f"Label {label} {fault}: {count:,} marked responses.")
        return str(page)

    def __str__(self) -> str:
        """In words, for 80 columns."""
        return self.say()

    def _of_labels(self) -> list[AuditedGroup]:
        """Keys of single values: what they show hangs on the texts that have the label."""
        return [one for one in self.groups if one.kind == "key" and "=" in one.name]

    def _say_reason(self) -> str:
        bare = [f"{one.kind} {one.name}" for one in self.groups if one.state == "not marking"]
        if bare:
            return f"served without the mark, or under other keys: {', '.join(bare[:_SHOWN])}."
        if self.counts["misplaced"]:
            return (
                f"{self.counts['misplaced']:,} tokens are said to be drawn where no key decides, "
                f"first in response {self.first_misplaced}: another keyring, or other labels."
            )
        replicas = [one for one in self.groups if one.kind == "replica"]
        doubted = [_say_doubt(one) for one in replicas if one.state != "marking"]
        return f"{', '.join(doubted[:_SHOWN]) or 'every replica marks'}."


def judge_groups(
    groups: Iterable[AuditedGroup], law: NullLaw, alpha: float
) -> tuple[AuditedGroup, ...]:
    """The same groups with their p and state. Cost: an exact tail a group, 2 to 5 ms each."""
    found = list(groups)
    level = alpha / max(sum(one.coins > 0 for one in found), 1)
    reach = -NormalDist().inv_cdf(level)
    coins: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for one in found:
        coins[one.kind] += one.coins
        total[one.kind] += one.total

    def judge(one: AuditedGroup) -> AuditedGroup:
        if not one.coins:
            return one
        others = coins[one.kind] - one.coins, total[one.kind] - one.total
        table = ClassTable((ScoreClass(1, law, one.coins, one.total),))
        log10_p, bound = upper_tail(table).log10_p, _bound(one.coins, one.total, law, reach)
        state: State = "too little to say"
        if log10_p <= math.log10(level):
            state = "marking"
        elif bound < _NOTHING or (others[0] and bound < _FAINT * _bound(*others, law, -reach)):
            state = "not marking"
        return replace(one, shift_bound=bound, log10_p=log10_p, state=state)

    return tuple(map(judge, found))


def _bound(coins: int, total: int, law: NullLaw, reach: float) -> float:
    """Mean score above the law's and `reach` standard errors, in standard deviations of a coin."""
    return (total / coins - law.mean) / math.sqrt(law.variance) + reach / math.sqrt(coins)


def _say_doubt(one: AuditedGroup) -> str:
    """With how strong a mark could be, for whoever knows how strong it should be."""
    bound = one.shift_bound
    most = "" if bound is None else f" (mean at most {bound:.2f} deviations above the law)"
    return f"{one.name}: {one.state}{most}"


def _say_group(one: AuditedGroup) -> list[str]:
    numbers = [f"{number:,}" for number in (one.records, one.tokens, one.drawn, one.coins)]
    mean = "-" if one.mean is None else f"{one.mean:.3f}"
    return [one.name, *numbers, mean, f"{one.log10_p:.2f}", one.state]
