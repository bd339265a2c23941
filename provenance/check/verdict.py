"""The result of a check, in one frozen object: its JSON form and its words. Computes nothing.

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

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, Protocol

from provenance.check.filing import Filing
from provenance.check.findings import (
    Conclusion,
    Control,
    GroupResult,
    HypothesisResult,
    Judged,
    PlanReference,
    Reservation,
    Share,
    TwinsResult,
    join_family,
)
from provenance.check.inputs import say_positions, say_read
from provenance.check.power_statement import Power, say_power
from provenance.check.registered import Registered
from provenance.check.words import (
    add_controls,
    add_groups,
    is_exploratory,
    say_attributed,
    say_plan,
)
from provenance.errors import UsageError
from provenance.storage.documents import read_fields, take_stated
from provenance.storage.printable import Page, Said

SCHEMA_VERSION: Final = 2
OLD_SCHEMA_VERSION: Final = 1
"""Still read and verified; see the module docstring."""

_ADDED: Final = frozenset({"reasons", "reservations", "found_by"})
"""Fields that version 1 had not."""
_PLAIN: Final = (
    *("schema_version", "conclusion", "alpha", "keyring_id", "weight_rule", "caveat"),
    *("found_evidence", "log10_p", "controls_passed", "attributed", "exploratory"),
)
_OBJECTS: Final = ("scheme", "commitments", "inputs", "versions")
_FOLLOWS: Final = frozenset({"found_by", "headline", *_PLAIN[-5:]})
"""Fields of a document that follow from the others: properties of a `Verdict`."""


class Keep(Protocol):
    """Writes the evidence bundle of a verdict."""

    def __call__(
        self,
        folder: Path | str,
        disclose: Sequence[str] = (),
        *,
        pairs: bool = True,
        force: bool = False,
        filing: Filing | None = None,
    ) -> None:
        """See `Verdict.save`."""


@dataclass(frozen=True, repr=False)
class Verdict(Judged, Said):
    """What `check` returns; see the module docstring for `conclusion`.

    `alpha` is that of all keys together; the twins, if any, have their own. `plan` is the analysis
    plan that the check followed, if there was one. `caveat` says what makes the test of this mark
    weaker than its law says, and which controls it cannot have, or "". `power` is stated if every
    control passed, no key was rejected and something was scored under the global key. `reasons`
    says why the verdict is inconclusive and is empty for the other two; `reservations` are all
    that were raised, whether or not they changed the conclusion. `schema_version` is that of its
    document; one that was made today has the newest. `register` is what the register of the case
    says of this check; None, and no field of the document, if it was not made in a case. `groups`
    are two tests a group of responses, of the family of the keys; no field either without any.
    `keep` writes its evidence; only the check that made the verdict has what that needs.
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
    register: Registered | None = None
    groups: tuple[GroupResult, ...] = ()
    keep: Keep | None = field(default=None, compare=False)

    def save(
        self,
        folder: Path | str,
        disclose: Sequence[str] = (),
        *,
        pairs: bool = True,
        force: bool = False,
        filing: Filing | None = None,
    ) -> None:
        """Write the evidence bundle: the verdict with all that is needed to recompute it.

        Parameters
        ----------
        folder : new or empty
        disclose : keys to reveal: `all`, `selector`, `global` or SLOT=VALUE
        pairs : with the scored pairs, which are confidential
        force : replace an earlier bundle that lies in the folder, unless it is signed
        filing : case number, suspect and author, for the head of the report and its pages

        Raises
        ------
        UsageError for a verdict that was read from a file, and for keys that there are not;
        ConfigurationMismatchError for another suspect than the plan's; StorageError,
        LockedError. Cost: one sort per key.
        """
        if self.keep is None:
            raise UsageError(
                "a verdict must come from a check of a case to be saved; this one was read or made "
                "without one. Copy its bundle, or check again."
            )
        self.keep(folder, disclose, pairs=pairs, force=force, filing=filing)

    def say(self, width: int = 80) -> str:
        """In words: what `provenance check` prints, for a page of this width."""
        return _say(self, width)

    def __repr__(self) -> str:
        """One line."""
        keys = f"{len(self.hypotheses)} keys, log10 p {self.log10_p:.2f}"
        return f"<Verdict {self.conclusion}: {keys}, keyring {self.keyring_id}>"

    @property
    def exploratory(self) -> bool:
        """True if no plan fixed the check before it was made: its p-value is no evidence by itself.

        Whoever tries several outputs, rules or thresholds and keeps the best one finds something.
        The second check of a plan is exploratory too, where a register says that it is the second.
        """
        return is_exploratory(self.plan, self.register)

    @property
    def found_by(self) -> tuple[Literal["keys", "twins"], ...]:
        """Lines of evidence that reject; empty unless the conclusion is evidence."""
        if not self.found_evidence:
            return ()
        by_keys: tuple[Literal["keys"], ...] = ("keys",) if self.rejects else ()
        return (*by_keys, "twins") if self.twins is not None and self.twins.rejected else by_keys

    @property
    def rejects(self) -> bool:
        """Whether a key or a group is rejected, whatever stands against it."""
        return any(result.rejected for result in join_family(self.hypotheses, self.groups))

    @property
    def found_groups(self) -> tuple[str, ...]:
        """Groups whose responses are named: what only they got was learned; at least these.

        Empty unless there is evidence.
        """
        named = [one.group for one in self.groups if one.side == "group" and one.found]
        return tuple(named) if self.found_evidence else ()

    @property
    def headline(self) -> HypothesisResult | None:
        """The hypothesis with the smallest adjusted p (then the smallest raw p)."""
        return min(self.hypotheses, key=lambda h: (h.log10_adjusted, h.tail.log10_p), default=None)

    @property
    def log10_p(self) -> float:
        """log10 of the smallest adjusted p-value: the p-value of the whole check; 0 if none."""
        family = join_family(self.hypotheses, self.groups)
        return min((one.log10_adjusted for one in family), default=0.0)

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
        if self.register is not None:
            document["register"] = self.register.to_json()
        if self.groups:
            document["groups"] = [one.to_json() for one in self.groups]
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


def _say(verdict: Verdict, width: int) -> str:
    page, headline = Page(width), verdict.headline
    page.say(_conclude(verdict))
    page.reasons(verdict.reasons)
    for one in verdict.reservations:
        if one.reason not in verdict.reasons:
            page.say(f"Known of the inputs: {one}.", wrap=False)
    for sentence in say_plan(verdict.plan, verdict.register):
        page.say(sentence)
    page.say(
        f"p of the whole check <= 10^{verdict.log10_p:.2f} (family-wise, all keys); "
        f"alpha {verdict.alpha:g}" + (f"; smallest: {headline.name}" if headline else "")
    )
    page.say(say_positions(verdict.inputs["outputs"]))
    for sentence in say_read(verdict.inputs["outputs"]):
        page.say(sentence)
    page.say()
    _add_keys(page, verdict)
    if verdict.groups:
        page.say()
        add_groups(page, verdict.groups, verdict.inputs["groups"], verdict.conclusion)
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
        named = {"group": verdict.found_groups} if verdict.found_groups else {}
        where = say_attributed({**verdict.attributed, **named})
        also = " The twins say so too." if "twins" in verdict.found_by else ""
        return f"EVIDENCE: consistent with training on marked responses{where}.{also}"
    if verdict.conclusion == "inconclusive":
        return "INCONCLUSIVE: this check speaks neither for nor against training on the responses."
    return "NO EVIDENCE of training on marked responses."


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
