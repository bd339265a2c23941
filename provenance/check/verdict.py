"""The result of a check, in one frozen object, and its JSON form. Computes nothing.

A verdict says one of three things:

- `evidence`: an adjusted p-value of the keys, or that of the twins, is at or below its share of
  alpha, every control passed, and nothing is held against it;
- `no evidence`: none is, and `power` says what the test of the global key would have found;
- `inconclusive`: neither may be said; `reasons` says why, with counts. Nothing was scored, or too
  little to find even a fully trained suspect; a control failed; or a `Reservation` stands against
  what the numbers would say.

The twins, if there are any, are a second line of evidence with a share of alpha of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from provenance.check.power_statement import Power
from provenance.errors import UsageError
from provenance.keys.schedule import KeyName
from provenance.stats.tables import ClassTable
from provenance.stats.tails import TailResult

SCHEMA_VERSION: Final = 2
OLD_SCHEMA_VERSION: Final = 1
"""Still read and verified. It said `nothing scored` and `invalid` for `inconclusive`."""

SHARE_METHOD: Final = "excess-v1"
"""Construction of the limits of shares: `provenance.stats.shares.share_intervals`."""

Conclusion = Literal["evidence", "no evidence", "inconclusive"]
EXIT_CODES: Final[Mapping[Conclusion, int]] = {"no evidence": 0, "evidence": 1, "inconclusive": 3}
"""Of every command that draws a conclusion; see docs/decisions/0003."""


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

    @classmethod
    def from_json(cls, row: Mapping[str, Any]) -> Control:
        """From its fields, all of them and no other. Raises TypeError, KeyError."""
        return cls(**{**row, "placebo_z": tuple(row["placebo_z"])})


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
            "log10_p": self.tail.log10_p,
            "tail": asdict(self.tail),
            "table": self.table.to_json(),
            "sha256": dict(self.sha256),
            "suspect": dict(self.suspect),
            "reference": dict(self.reference),
        }


class Tested(Protocol):
    """What a verdict of any kind says of one key."""

    @property
    def slot(self) -> str:
        """Of the key."""

    @property
    def value(self) -> str:
        """Of the slot; "" for the global key."""

    @property
    def rejected(self) -> bool:
        """Whether its hypothesis was rejected."""


def group_rejected(results: Iterable[Tested]) -> dict[str, list[str]]:
    """Values whose own key is rejected, per attribute slot: at least these leaked."""
    found: dict[str, list[str]] = {}
    for result in results:
        if result.rejected and result.value:
            found.setdefault(result.slot, []).append(result.value)
    return found


@dataclass(frozen=True)
class PlanReference:
    """The plan that a check followed: hex SHA-256 of its file, and when an authority saw that hash.

    `timestamp` is RFC 3339 in UTC, or None if the plan was not timestamped.
    """

    sha256: str
    timestamp: str | None


class Keep(Protocol):
    """Writes the evidence bundle of a verdict."""

    def __call__(
        self, folder: Path | str, disclose: Sequence[str] = (), *, pairs: bool = True
    ) -> None:
        """See `Verdict.save`."""


@dataclass(frozen=True, repr=False)
class Verdict:
    """What `check` returns; see the module docstring for `conclusion`.

    `alpha` is that of all keys together; the twins, if any, have their own. `plan` is the analysis
    plan that the check followed, if there was one. `caveat` says what makes the test of this mark
    weaker than its law says, and which controls it cannot have, or "". `power` is stated if every
    control passed, no key was rejected and something was scored under the global key. `reasons`
    says why the verdict is inconclusive and is empty for the other two; `reservations` are all
    that were raised, whether or not they changed the conclusion. `keep` writes its evidence; only
    the check that made the verdict has what that needs.
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
    keep: Keep | None = field(default=None, compare=False)

    def save(self, folder: Path | str, disclose: Sequence[str] = (), *, pairs: bool = True) -> None:
        """Write the evidence bundle: the verdict with all that is needed to recompute it.

        Parameters
        ----------
        folder : new, or with an earlier bundle, which is replaced
        disclose : keys to reveal: `all`, `selector`, `global` or SLOT=VALUE
        pairs : with the scored pairs, which are confidential

        Raises
        ------
        UsageError for a verdict that was read from a file, and for keys that there are not;
        StorageError, LockedError. Cost: one sort per key.
        """
        if self.keep is None:
            raise UsageError(
                "a verdict must come from a check of a case to be saved; this one was read or made "
                "without one. Copy its bundle, or check again."
            )
        self.keep(folder, disclose, pairs=pairs)

    def say(self, width: int = 80) -> str:
        """In words: what `provenance check` prints, for a page of this width."""
        from provenance.check.words import say_verdict

        return say_verdict(self, width)

    def __str__(self) -> str:
        """In words, for 80 columns."""
        return self.say()

    def __repr__(self) -> str:
        """One line."""
        keys = f"{len(self.hypotheses)} keys, log10 p {self.log10_p:.2f}"
        return f"<Verdict {self.conclusion}: {keys}, keyring {self.keyring_id}>"

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
        by_keys = any(result.rejected for result in self.hypotheses)
        by_twins = self.twins is not None and self.twins.rejected
        lines: tuple[tuple[Literal["keys", "twins"], bool], ...] = (
            ("keys", by_keys),
            ("twins", by_twins),
        )
        return tuple(name for name, rejects in lines if rejects)

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
        return group_rejected(self.hypotheses) if self.conclusion == "evidence" else {}

    def to_json(self) -> dict[str, Any]:
        """JSON-able form with the schema version and every class table; holds no key."""
        headline = self.headline
        return {
            "schema_version": SCHEMA_VERSION,
            "conclusion": self.conclusion,
            "reasons": list(self.reasons),
            "reservations": [asdict(reservation) for reservation in self.reservations],
            "found_by": list(self.found_by),
            "found_evidence": self.found_evidence,
            "alpha": self.alpha,
            "log10_p": self.log10_p,
            "headline": headline.name if headline else None,
            "controls_passed": self.controls_passed,
            "attributed": self.attributed,
            "hypotheses": [
                {
                    "slot": result.slot,
                    "value": result.value,
                    "family_weight": result.family_weight,
                    "log10_p": result.tail.log10_p,
                    "log10_adjusted": result.log10_adjusted,
                    "rejected": result.rejected,
                    "mean_shift": result.mean_shift,
                    "tail": asdict(result.tail),
                    "table": result.table.to_json(),
                }
                for result in self.hypotheses
            ],
            "controls": [asdict(control) for control in self.controls],
            "shares": [share.to_json() for share in self.shares],
            "keyring_id": self.keyring_id,
            "scheme": dict(self.scheme),
            "weight_rule": self.weight_rule,
            "commitments": dict(self.commitments),
            "inputs": dict(self.inputs),
            "versions": dict(self.versions),
            "exploratory": self.exploratory,
            "plan": asdict(self.plan) if self.plan else None,
            "caveat": self.caveat,
            "power": self.power.to_json() if self.power else None,
            "twins": self.twins.to_json() if self.twins else None,
        }
