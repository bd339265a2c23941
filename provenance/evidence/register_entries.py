"""What one line of a register says: a case, a plan, a commitment, a check or look, or its result.

`register.jsonl` is a chain (`provenance.storage.chain`): each line has its number, its time and the
hash of the line before, and, if the case has a signer, the signature of all that. Knows forms; what
the lines add up to is the business of `register`.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Final

from provenance.check.plan import Plan
from provenance.storage.documents import read_fields
from provenance.storage.files import canonical_json

FORMAT: Final = "provenance-register"
VERSION: Final = 1
_HEX_256: Final = re.compile(r"[0-9a-f]{64}")
_LATER: Final = "innocent_keys"
"""Field of a verdict's inputs that is not known before the keys are opened."""


@dataclass(frozen=True)
class Opened:
    """Record 0, kind `case`: what the register is about.

    `number`, `author` may be ""; `signer` is the public key (PEM) that signs every line, or None.
    """

    format: str
    version: int
    provenance: str
    suspect: str
    number: str
    author: str
    keyring_id: str
    signer: str | None

    def __post_init__(self) -> None:
        if (self.format, self.version) != (FORMAT, VERSION):
            raise ValueError("another format or version")
        if not self.suspect:
            raise ValueError("no suspect")


@dataclass(frozen=True)
class Planned:
    """Kind `plan`: a plan was made, or brought here; `created` is by its own account."""

    plan_sha256: str
    created: str
    stopping: Mapping[str, Any]
    prompts_sha256: str | None

    def __post_init__(self) -> None:
        _check_hashes(self.plan_sha256, self.prompts_sha256)

    @classmethod
    def of(cls, plan: Plan) -> Planned:
        """What is entered of a plan."""
        return cls(plan.sha256, plan.created, dict(plan.stopping), plan.prompts_sha256)


@dataclass(frozen=True)
class Committed:
    """Kind `commit`: a plan's hash was handed out; `timestamp`: when an authority saw it."""

    plan_sha256: str
    timestamp: str | None

    def __post_init__(self) -> None:
        _check_hashes(self.plan_sha256)


@dataclass(frozen=True)
class Tried:
    """Kinds `check` and `look`: what is about to be tried. Written before a key is opened.

    Attributes
    ----------
    access, outputs, count : what is looked at: sorted hashes of the files, and how many outputs
    inputs_sha256 : of the canonical JSON of the verdict's inputs, which name everything
    alpha, rule : the settings
    plan_sha256, planned_look : the plan; of planned looks the number of outputs at which it is due
    state_sha256 : of a look, state.json before it ("": none yet); None for a check
    """

    access: str
    outputs: tuple[str, ...]
    count: int
    inputs_sha256: str
    alpha: float
    rule: str
    plan_sha256: str | None
    planned_look: int | None
    state_sha256: str | None

    def __post_init__(self) -> None:
        _check_hashes(self.inputs_sha256, self.plan_sha256, self.state_sha256 or None)

    @classmethod
    def of(cls, inputs: Mapping[str, Any], plan: Plan | None, state: str | None) -> Tried:
        """From the inputs of a verdict (`Verdict.inputs`), the plan and the state before a look."""
        observed, settings = inputs["outputs"], inputs["settings"]
        known = {name: value for name, value in inputs.items() if name != _LATER}
        looks = plan is not None and plan.stopping["rule"] == "looks"
        return cls(
            access=str(observed["source"]["access"]),
            outputs=tuple(sorted(observed["sha256"].values())),
            count=int(observed["outputs"]),
            inputs_sha256=hashlib.sha256(canonical_json(known)).hexdigest(),
            alpha=float(settings["alpha"]),
            rule=str(settings["rule"]),
            plan_sha256=None if plan is None else plan.sha256,
            planned_look=int(observed["outputs"]) if looks else None,
            state_sha256=state,
        )


@dataclass(frozen=True)
class Result:
    """Kind `result`: how the check or look of line number `of` ended.

    `error` is the kind of what stopped it; the rest is None then. `state_sha256` is that after a
    look. A check without a result was killed, and counts all the same.
    """

    of: int
    conclusion: str | None
    log10_p: float | None
    state_sha256: str | None
    error: str | None

    def __post_init__(self) -> None:
        _check_hashes(self.state_sha256)
        if (self.error is None) == (self.conclusion is None):
            raise ValueError("a result must have a conclusion or an error")


Facts = Opened | Planned | Committed | Tried | Result
KINDS: Final[Mapping[str, type[Facts]]] = {
    "case": Opened,
    "plan": Planned,
    "commit": Committed,
    "check": Tried,
    "look": Tried,
    "result": Result,
}


@dataclass(frozen=True)
class Entry:
    """One line: its kind, number (from 0), hash of the line before, time (UTC), and what it says.

    `signature` is base64 of the Ed25519 signature of the canonical JSON of the other fields.
    """

    kind: str
    n: int
    previous: str
    time: str
    facts: Facts
    signature: str | None = None

    def to_json(self) -> dict[str, Any]:
        """The record of its line."""
        signed = {} if self.signature is None else {"signature": self.signature}
        place = {"kind": self.kind, "n": self.n, "previous": self.previous, "time": self.time}
        return {**asdict(self.facts), **place, **signed}

    @classmethod
    def from_json(cls, document: object) -> Entry:
        """What `to_json` wrote. Raises TypeError, ValueError, KeyError."""
        if not isinstance(document, Mapping) or document.get("kind") not in KINDS:
            raise ValueError("no kind of a register's line")
        place = {name: document[name] for name in ("kind", "n", "previous", "time")}
        signature = document.get("signature")
        texts = [place["previous"], place["time"], *(["" if signature is None else signature])]
        if type(place["n"]) is not int or not all(isinstance(one, str) for one in texts):
            raise TypeError("a place or a signature of another type")
        if "signature" in document and signature is None:
            raise TypeError("a signature of another type")
        rest = {n: v for n, v in document.items() if n not in {*place, "signature"}}
        return cls(**place, facts=read_fields(KINDS[place["kind"]], rest), signature=signature)

    @property
    def signed(self) -> bytes:
        """What its signature is of."""
        return canonical_json({n: v for n, v in self.to_json().items() if n != "signature"})


def _check_hashes(*found: str | None) -> None:
    if any(one is not None and not _HEX_256.fullmatch(one) for one in found):
        raise ValueError("a SHA-256 that is none")
