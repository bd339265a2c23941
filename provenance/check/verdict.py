"""The result of a check, in one frozen object, and its JSON form. Computes nothing.

A verdict says one of three things:

- `evidence`: an adjusted p-value of the keys, or that of the twins, is at or below its share of
  alpha, every control passed, and nothing is held against it;
- `no evidence`: none is, and `power` says what the test of the global key would have found;
- `inconclusive`: neither may be said; `reasons` says why, with counts. Nothing was scored, or too
  little to find even a fully trained suspect; a control failed; or a `Reservation` stands against
  what the numbers would say.

A verdict of schema version 1 is read into the same object. It said `nothing scored` and `invalid`
for `inconclusive`, had neither reasons nor reservations, and concluded from the keys alone.

The twins, if there are any, are a second line of evidence with a share of alpha of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, TypeVar

from provenance.check.power_statement import Power
from provenance.errors import UsageError
from provenance.keys.schedule import KeyName
from provenance.stats.tables import ClassTable
from provenance.stats.tails import TailResult
from provenance.storage.documents import read_fields, take_stated

SCHEMA_VERSION: Final = 2
OLD_SCHEMA_VERSION: Final = 1
"""Still read and verified; see the module docstring."""

SHARE_METHOD: Final = "excess-v1"
"""Construction of the limits of shares: `provenance.stats.shares.share_intervals`."""

Conclusion = Literal["evidence", "no evidence", "inconclusive"]
_Test = TypeVar("_Test", bound="HypothesisResult | TwinsResult")
EXIT_CODES: Final[Mapping[Conclusion, int]] = {"no evidence": 0, "evidence": 1, "inconclusive": 3}
"""Of every command that draws a conclusion; see docs/decisions/0003."""


_ADDED: Final = frozenset({"reasons", "reservations", "found_by"})
"""Fields that version 1 had not."""
_PLAIN: Final = (
    *("schema_version", "conclusion", "alpha", "keyring_id", "weight_rule", "caveat"),
    *("found_evidence", "log10_p", "controls_passed", "attributed", "exploratory"),
)
_OBJECTS: Final = ("scheme", "commitments", "inputs", "versions")
_FOLLOWS: Final = frozenset({"found_by", "headline", *_PLAIN[-5:]})
"""Fields of a document that follow from the others: properties of a `Verdict`."""


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
class HypothesisResult:
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
    def key(self) -> KeyName:
        """Which key it is about."""
        return KeyName(self.slot, self.value)

    @property
    def name(self) -> str:
        """`global` or `week=2026-W17`."""
        return str(self.key)

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


def _write_test(result: HypothesisResult | TwinsResult) -> dict[str, Any]:
    """The p-value of a line of evidence, its cross-checks and its class table."""
    tail, table = asdict(result.tail), result.table.to_json()
    return {"log10_p": result.tail.log10_p, "tail": tail, "table": table}


def _read_test(kind: type[_Test], row: object, follows: frozenset[str]) -> _Test:
    """Read a line of evidence; its p is said twice, and must be the same."""
    result = read_fields(kind, take_stated(row, follows))
    if row["log10_p"] != result.tail.log10_p:  # type: ignore[index]
        raise ValueError("log10_p that is not that of its tail")
    return result


def group_rejected(rejected: Iterable[KeyName]) -> dict[str, list[str]]:
    """Values whose own key is rejected, per attribute slot: at least these leaked."""
    found: dict[str, list[str]] = {}
    for slot, value in rejected:
        if value:
            found.setdefault(slot, []).append(value)
    return found


@dataclass(frozen=True)
class PlanReference:
    """The plan that a check followed: hex SHA-256 of its file, and when an authority saw that hash.

    `timestamp` is RFC 3339 in UTC, or None if the plan was not timestamped.
    """

    sha256: str
    timestamp: str | None


@dataclass(frozen=True)
class Verdict:
    """What `check` returns; see the module docstring for `conclusion`.

    `alpha` is that of all keys together; the twins, if any, have their own. `plan` is the analysis
    plan that the check followed, if there was one. `caveat` says what makes the test of this mark
    weaker than its law says, and which controls it cannot have, or "". `power` is stated if every
    control passed, no key was rejected and something was scored under the global key. `reasons`
    says why the verdict is inconclusive and is empty for the other two; `reservations` are all
    that were raised, whether or not they changed the conclusion. `schema_version` is that of its
    document; one that was made today has the newest.
    """

    conclusion: Conclusion
    alpha: float
    hypotheses: tuple[HypothesisResult, ...]
    controls: tuple[Control, ...]
    shares: tuple[Share, ...]
    keyring_id: str
    scheme: Mapping[str, Any]
    weight_rule: str
    commitments: Mapping[str, str]
    inputs: Mapping[str, Any]
    versions: Mapping[str, str]
    plan: PlanReference | None = None
    caveat: str = ""
    power: Power | None = None
    twins: TwinsResult | None = None
    reasons: tuple[str, ...] = ()
    reservations: tuple[Reservation, ...] = ()
    schema_version: Literal[1, 2] = SCHEMA_VERSION

    @property
    def exploratory(self) -> bool:
        """True if no plan fixed the check before it was made: its p-value is no evidence by itself.

        Whoever tries several outputs, rules or thresholds and keeps the best one finds something.
        """
        return self.plan is None

    @property
    def found_evidence(self) -> bool:
        """True if the conclusion is evidence, by either line."""
        return self.conclusion == "evidence"

    @property
    def exit_code(self) -> int:
        """Of the command that made this verdict."""
        return EXIT_CODES[self.conclusion]

    @property
    def found_by(self) -> tuple[Literal["keys", "twins"], ...]:
        """Lines of evidence that reject; empty unless the conclusion is evidence."""
        if not self.found_evidence:
            return ()
        by_keys: tuple[Literal["keys"], ...] = (
            ("keys",) if any(result.rejected for result in self.hypotheses) else ()
        )
        return (*by_keys, "twins") if self.twins is not None and self.twins.rejected else by_keys

    @property
    def headline(self) -> HypothesisResult | None:
        """The hypothesis with the smallest adjusted p (then the smallest raw p)."""
        return min(self.hypotheses, key=lambda h: (h.log10_adjusted, h.tail.log10_p), default=None)

    @property
    def log10_p(self) -> float:
        """log10 of the smallest adjusted p-value: the p-value of the whole check; 0 if none."""
        return self.headline.log10_adjusted if self.headline else 0.0

    @property
    def controls_passed(self) -> bool:
        """True if every control passed."""
        return all(control.passed for control in self.controls)

    @property
    def attributed(self) -> dict[str, list[str]]:
        """Values whose own key is rejected, per attribute slot; empty unless there is evidence."""
        return group_rejected(h.key for h in self.hypotheses if h.rejected and self.found_evidence)

    @property
    def is_old(self) -> bool:
        """True if it follows the rules of schema version 1."""
        return self.schema_version == OLD_SCHEMA_VERSION

    @property
    def is_scored(self) -> bool:
        """True if any coin was scored under any key."""
        return any(result.tail.coins for result in self.hypotheses)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form with the schema version and every class table; holds no key."""
        headline = self.headline
        document = {
            **{name: getattr(self, name) for name in _PLAIN},
            **{name: list(getattr(self, name)) for name in ("reasons", "found_by")},
            **{name: dict(getattr(self, name)) for name in _OBJECTS},
            "headline": headline.name if headline else None,
            "reservations": [asdict(reservation) for reservation in self.reservations],
            "hypotheses": [result.to_json() for result in self.hypotheses],
            "controls": [asdict(control) for control in self.controls],
            "shares": [share.to_json() for share in self.shares],
            "plan": asdict(self.plan) if self.plan else None,
            "power": self.power.to_json() if self.power else None,
            "twins": self.twins.to_json() if self.twins else None,
        }
        if self.is_old:
            document = {name: document[name] for name in document if name not in _ADDED}
            document["conclusion"] = _word_as_version_1(self)
        return document

    @classmethod
    def from_json(cls, document: object) -> Verdict:
        """What `to_json` wrote, in either schema version.

        What follows from other fields (`found_by`, `log10_p`, `headline` and so on; in version 1
        the conclusion too) must be there, but is not read: whoever doubts a document compares it
        with `to_json`. Raises TypeError, ValueError and what a class table raises.
        """
        if not isinstance(document, Mapping):
            raise TypeError("a list or a value where an object is due")
        version = document.get("schema_version")
        if type(version) is not int or version not in (OLD_SCHEMA_VERSION, SCHEMA_VERSION):
            raise ValueError(f"no schema version {OLD_SCHEMA_VERSION} or {SCHEMA_VERSION}")
        if version == SCHEMA_VERSION:
            verdict = read_fields(cls, take_stated(document, _FOLLOWS))
        else:
            stated = take_stated(document, (_FOLLOWS - _ADDED) | {"conclusion"})
            verdict = read_fields(cls, {**stated, "conclusion": "inconclusive"})
            verdict = replace(verdict, conclusion=conclude_as_version_1(verdict))
        if odd := sorted(set(verdict.to_json()) ^ set(document)):
            raise ValueError(f"missing or unknown fields {', '.join(odd)}")
        return verdict


def conclude_as_version_1(verdict: Verdict) -> Conclusion:
    """What version 1 concluded from keys, twins and controls, in the words of today."""
    if verdict.twins is not None and verdict.twins.rejected and verdict.controls_passed:
        return "evidence"
    said = _word_as_version_1(verdict)
    return said if said in ("evidence", "no evidence") else "inconclusive"


def _word_as_version_1(
    verdict: Verdict,
) -> Literal["nothing scored", "invalid", "evidence", "no evidence"]:
    if not verdict.is_scored:
        return "nothing scored"
    if not verdict.controls_passed:
        return "invalid"
    return "evidence" if any(result.rejected for result in verdict.hypotheses) else "no evidence"
