"""The result of a sequential check after any number of batches, and its JSON form.

`log10_e` is the e-value now: the weighted average over all keys. `log10_p` is the anytime p: minus
the largest of it so far. Whoever stops when it is <= log10(alpha), at any moment and for any
reason, accuses an innocent suspect with probability <= alpha. Conclusions are those of
`provenance.check.verdict`. Computes nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final, Literal

from provenance.check.findings import Conclusion, Control, Judged
from provenance.check.power_statement import Power
from provenance.keys.schedule import OfKey
from provenance.stats.tables import ClassTable
from provenance.storage.documents import read_fields, take_stated

SCHEMA_VERSION: Final = 2
"""Version 1 had neither reasons nor power, and the conclusions of version 1 of a verdict."""

_OLD_WORDS: Final = ("nothing scored", "invalid")
_FOLLOWS: Final = frozenset({"found_evidence", "controls_passed", "attributed"})


@dataclass(frozen=True)
class SequentialLook:
    """One batch.

    Attributes
    ----------
    outputs : hashes and counts of the batch
    coins : coins that it revealed, over all keys of the check
    known : coins of it that were known from earlier batches, over all keys; ignored
    log10_e : e-value of the whole check after it
    """

    outputs: Mapping[str, Any]
    coins: int
    known: int
    log10_e: float


@dataclass(frozen=True)
class SequentialHypothesis(OfKey):
    """One key: H0 "the suspect's choices are independent of this key's coins".

    Attributes
    ----------
    slot, value : which key; value is "" for the single key of `global`
    family_weight : its share in the average over keys, fixed before the coins
    log10_e : e-value of this key alone, now
    log10_p : anytime p of this key, adjusted for all keys of the check, <= 0
    rejected : log10_p <= log10(alpha)
    table : class table of all batches; `log10_e` follows from it, the scheme and the rule
    """

    slot: str
    value: str
    family_weight: float
    log10_e: float
    log10_p: float
    rejected: bool
    table: ClassTable


@dataclass(frozen=True)
class SequentialVerdict(Judged):
    """What a sequential check says now; see the module docstring.

    `reasons` says why it is inconclusive. `power` is that of the global key's e-process at this
    look, if nothing was found, nothing failed and something was revealed under that key.
    """

    conclusion: Conclusion
    alpha: float
    log10_e: float
    log10_p: float
    looks: tuple[SequentialLook, ...]
    hypotheses: tuple[SequentialHypothesis, ...]
    controls: tuple[Control, ...]
    keyring_id: str
    scheme: Mapping[str, Any]
    weight_rule: str
    maximal_weight: int
    commitments: Mapping[str, str]
    inputs: Mapping[str, Any]
    versions: Mapping[str, str]
    reasons: tuple[str, ...] = ()
    power: Power | None = None
    caveat: str = ""
    schema_version: Literal[1, 2] = SCHEMA_VERSION

    def to_json(self) -> dict[str, Any]:
        """JSON-able form with the schema version and every class table; holds no key."""
        return {
            "schema_version": self.schema_version,
            "kind": "sequential",
            "conclusion": self.conclusion,
            "reasons": list(self.reasons),
            "found_evidence": self.found_evidence,
            "alpha": self.alpha,
            "log10_e": self.log10_e,
            "log10_p": self.log10_p,
            "controls_passed": self.controls_passed,
            "attributed": self.attributed,
            "looks": [asdict(look) for look in self.looks],
            "hypotheses": [
                {**vars(result), "table": result.table.to_json()} for result in self.hypotheses
            ],
            "controls": [asdict(control) for control in self.controls],
            "power": self.power.to_json() if self.power else None,
            "keyring_id": self.keyring_id,
            "scheme": dict(self.scheme),
            "weight_rule": self.weight_rule,
            "maximal_weight": self.maximal_weight,
            "commitments": dict(self.commitments),
            "inputs": dict(self.inputs),
            "versions": dict(self.versions),
            "caveat": self.caveat,
        }

    @classmethod
    def from_json(cls, document: object) -> SequentialVerdict:
        """What `to_json` wrote, alone or with what the command says beside it.

        What follows from other fields must be there but is not read. Where version 1 said `nothing
        scored` or `invalid`, it is `inconclusive`; such a verdict is not written again.
        Raises TypeError, ValueError and what a class table raises.
        """
        stated = take_stated(document, _FOLLOWS)
        if stated["kind"] != "sequential":
            raise ValueError("another kind of document")
        if stated.get("schema_version") == 1 and stated.get("conclusion") in _OLD_WORDS:
            stated["conclusion"] = "inconclusive"
        beside = {"kind", "state_sha256", "exploratory", "plan", "register"}
        verdict = read_fields(cls, {n: value for n, value in stated.items() if n not in beside})
        if verdict.schema_version > 1 and (
            missing := sorted(set(verdict.to_json()) - {*stated, *_FOLLOWS})
        ):
            raise ValueError(f"missing fields {', '.join(missing)}")
        return verdict
