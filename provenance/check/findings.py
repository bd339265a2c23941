"""What a verdict is made of: keys, controls, shares and twins, and what forbids a conclusion.

Each has the JSON form that it has in verdict.json. Computes nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, Protocol, TypeVar

from provenance.errors import UsageError
from provenance.keys.schedule import KeyName, OfKey
from provenance.stats.tables import ClassTable
from provenance.stats.tails import TailResult
from provenance.storage.documents import read_fields, take_stated

SHARE_METHOD: Final = "excess-v1"
"""Construction of the limits of shares: `provenance.stats.shares.share_intervals`."""

Conclusion = Literal["evidence", "no evidence", "inconclusive"]
_Test = TypeVar("_Test", bound="HypothesisResult | GroupResult | TwinsResult")
EXIT_CODES: Final[Mapping[Conclusion, int]] = {"no evidence": 0, "evidence": 1, "inconclusive": 3}
"""Of every command that draws a conclusion; see docs/decisions/0003."""


class Concluded:
    """A result that draws a conclusion."""

    if TYPE_CHECKING:  # a field of each class, or a property

        @property
        def conclusion(self) -> Conclusion:
            """What follows from the numbers."""

    @property
    def found_evidence(self) -> bool:
        """True if the conclusion is evidence, by any line."""
        return self.conclusion == "evidence"

    @property
    def exit_code(self) -> int:
        """Of the command that made this result."""
        return EXIT_CODES[self.conclusion]


@dataclass(frozen=True)
class Reservation:
    """Something known of the inputs that forbids a conclusion, whatever the numbers say.

    Attributes
    ----------
    reason : one sentence with its counts and without a full stop, for people
    against : the conclusion that it turns into `inconclusive`; `both`: nothing can be concluded
    lifted_by : name of the innocent model beside which the result stands all the same; "" for none
    """

    reason: str
    against: Literal["evidence", "no evidence", "both"]
    lifted_by: str = ""

    def __post_init__(self) -> None:
        if not self.reason:
            raise UsageError("a reservation must have a reason; it has none. Say what is known.")

    def __str__(self) -> str:
        """The reason, and what stands against it, in one sentence without a full stop."""
        if not self.lifted_by:
            return self.reason
        return (
            f"{self.reason}; the innocent model {self.lifted_by} scored as many coins under the "
            "same keys, and the suspect exceeds it beyond alpha"
        )

    def forbids(self, conclusion: Conclusion) -> bool:
        """Whether it stands against this conclusion."""
        return not self.lifted_by and self.against in (conclusion, "both")


@dataclass(frozen=True)
class HypothesisResult(OfKey):
    """One key of the check: H0 "the suspect's choices are independent of this key's coins".

    Attributes
    ----------
    slot, value : which key; value is "" for the single key of `global`
    family_weight : share of alpha that this key was given, fixed before the coins
    tail : log10 p (exact upper bound) with its cross-checks
    log10_adjusted : log10 of the weighted-Holm adjusted p-value over all keys of the check
    rejected : adjusted p <= alpha
    table : the class table: all that is needed to recompute `tail`
    """

    slot: str
    value: str
    family_weight: float
    tail: TailResult
    log10_adjusted: float
    rejected: bool
    table: ClassTable

    @property
    def mean_shift(self) -> float:
        """Weighted mean shift of a score, in standard deviations of one score; 0 under H0."""
        return self.tail.z / math.sqrt(self.tail.effective_coins) if self.tail.coins else 0.0

    def to_json(self) -> dict[str, Any]:
        """JSON-able form with the class table."""
        names = ("slot", "value", "family_weight", "log10_adjusted", "rejected", "mean_shift")
        return {**{name: getattr(self, name) for name in names}, **_write_test(self)}

    @classmethod
    def from_json(cls, row: object) -> HypothesisResult:
        """What `to_json` wrote; `mean_shift`, which follows, is not read. Raises as below."""
        return _read_test(cls, row, frozenset({"log10_p", "mean_shift"}))


class GroupKey(NamedTuple):
    """One of the two hypotheses on a group of responses that was chosen afterwards.

    >>> str(GroupKey("campaign", "group")), str(GroupKey("campaign", "others"))
    ('group campaign', 'all but campaign')
    """

    group: str
    side: Literal["group", "others"]

    def __str__(self) -> str:
        """How it is called in words."""
        return f"group {self.group}" if self.side == "group" else f"all but {self.group}"


@dataclass(frozen=True)
class GroupResult:
    """The test of what one group of responses got and nobody else saw, or of the contrary.

    H0: the suspect was not trained on these responses, whatever it was trained on elsewhere.

    Attributes
    ----------
    group, side : its name; "group" for contexts exclusive to it, "others" for those exclusive to
        everybody else
    family_weight, tail, log10_adjusted, rejected, table : as of a key
    doubt : why nothing may be attributed to these responses although it is rejected; "" for nothing
    """

    group: str
    side: Literal["group", "others"]
    family_weight: float
    tail: TailResult
    log10_adjusted: float
    rejected: bool
    table: ClassTable
    doubt: str = ""

    @property
    def key(self) -> GroupKey:
        """Which hypothesis it is about."""
        return GroupKey(self.group, self.side)

    @property
    def name(self) -> str:
        """`group campaign` or `all but campaign`."""
        return str(self.key)

    @property
    def found(self) -> bool:
        """Whether these responses are named: rejected, and nothing speaks against it."""
        return self.rejected and not self.doubt

    def to_json(self) -> dict[str, Any]:
        """JSON-able form with the class table."""
        names = ("group", "side", "family_weight", "log10_adjusted", "rejected", "doubt", "found")
        return {**{name: getattr(self, name) for name in names}, **_write_test(self)}

    @classmethod
    def from_json(cls, row: object) -> GroupResult:
        """What `to_json` wrote. Raises TypeError, ValueError."""
        return _read_test(cls, row, frozenset({"log10_p", "found"}))


def join_family(
    hypotheses: Sequence[HypothesisResult], groups: Sequence[GroupResult]
) -> list[HypothesisResult | GroupResult]:
    """All tests that share alpha: of the keys, then of the groups."""
    return [*hypotheses, *groups]


@dataclass(frozen=True)
class Control:
    """A check of the check. `log10_p` is corrected for the looks inside this control.

    `placebo_z` holds z of every placebo key to three digits, for the picture; empty elsewhere.
    """

    name: str
    passed: bool
    log10_p: float | None
    detail: str
    placebo_z: tuple[float, ...] = ()


@dataclass(frozen=True)
class Share:
    """Share of the absorbed evidence that belongs to one value, with simultaneous limits.

    `method` names the construction of the limits; "" in verdicts of before there was a choice.
    """

    slot: str
    value: str
    estimate: float
    lower: float
    upper: float
    method: str = ""

    def to_json(self) -> dict[str, Any]:
        """Its fields; the method only if it is named."""
        row = asdict(self)
        return row if self.method else {name: row[name] for name in row if name != "method"}


@dataclass(frozen=True)
class TwinsResult:
    """The second line of evidence: does the suspect favour served responses over their twins?

    H0: which response of a pair was served was decided by a fair coin that the suspect cannot know.

    Attributes
    ----------
    pairs, favour_served : pairs that count, and in how many the served response is likelier
    reused, equal : pairs left out, see `provenance.suspect.access.twins.Twins`
    tail : log10 p (exact upper bound) of the signed ranks, with its cross-checks
    alpha, rejected : share of alpha of this line; p <= that share
    table, sha256 : the class table, and the hex digest of each file
    suspect, reference : which models were asked; the reference is empty if there was none
    """

    pairs: int
    favour_served: int
    reused: int
    equal: int
    tail: TailResult
    alpha: float
    rejected: bool
    table: ClassTable
    sha256: Mapping[str, str]
    suspect: Mapping[str, Any]
    reference: Mapping[str, Any]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form with the class table."""
        names = ("pairs", "favour_served", "reused", "equal", "alpha", "rejected")
        return {
            **{name: getattr(self, name) for name in names},
            **_write_test(self),
            "sha256": dict(self.sha256),
            "suspect": dict(self.suspect),
            "reference": dict(self.reference),
        }

    @classmethod
    def from_json(cls, row: object) -> TwinsResult:
        """What `to_json` wrote. Raises TypeError, ValueError."""
        return _read_test(cls, row, frozenset({"log10_p"}))


def _write_test(result: HypothesisResult | GroupResult | TwinsResult) -> dict[str, Any]:
    """The p-value of a line of evidence, its cross-checks and its class table."""
    tail, table = asdict(result.tail), result.table.to_json()
    return {"log10_p": result.tail.log10_p, "tail": tail, "table": table}


def _read_test(kind: type[_Test], row: object, follows: frozenset[str]) -> _Test:
    """Read a line of evidence; its p is said twice, and must be the same."""
    result = read_fields(kind, take_stated(row, follows))
    if row["log10_p"] != result.tail.log10_p:  # type: ignore[index]
        raise ValueError("log10_p that is not that of its tail")
    return result


class Tested(Protocol):
    """What a verdict of any kind says of one key."""

    @property
    def key(self) -> KeyName:
        """Which key it is about."""

    @property
    def rejected(self) -> bool:
        """Whether its hypothesis was rejected."""


class Judged(Concluded):
    """A verdict of any kind: keys that were tested, and controls."""

    if TYPE_CHECKING:  # fields of each class

        @property
        def hypotheses(self) -> Sequence[Tested]:
            """One a key."""

        @property
        def controls(self) -> Sequence[Control]:
            """The check of the check."""

    @property
    def controls_passed(self) -> bool:
        """True if every control passed, at every look if there are several."""
        return all(control.passed for control in self.controls)

    @property
    def attributed(self) -> dict[str, list[str]]:
        """Values whose own key is rejected, per attribute slot: at least these leaked.

        Empty unless there is evidence.
        """
        found: dict[str, list[str]] = {}
        for one in self.hypotheses:
            if self.found_evidence and one.rejected and one.key.value:
                found.setdefault(one.key.slot, []).append(one.key.value)
        return found


@dataclass(frozen=True)
class PlanReference:
    """The plan that a check followed: hex SHA-256 of its file, and when an authority saw that hash.

    `timestamp` is RFC 3339 in UTC, or None if the plan was not timestamped.
    """

    sha256: str
    timestamp: str | None
