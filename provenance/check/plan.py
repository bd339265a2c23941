"""The analysis plan: what will be tested, how, and what would count, written down before the test.

A plan is one file of canonical JSON (RFC 8785). Its commitment is the SHA-256 of the file, so that
`sha256sum plan.json` shows it; a time-stamp authority can sign that hash (RFC 3161). A check that
follows a plan refuses to differ from it, before a key is opened; a check without one is
exploratory. Knows no coins and computes no p-value.
"""

from __future__ import annotations

import hashlib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any, Final

from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.keys.keyring import Keyring
from provenance.keys.schedule import KeyName
from provenance.storage.documents import MALFORMED, read_fields, refuse_malformed, take_stated
from provenance.storage.files import interchange_json, parse_json, read_bytes

ACCESSES: Final = ("outputs", "weights", "logprobs")
CONTROLS: Final = ("placebo keys", "control slot", "unserved values", "innocent models")
FOREIGN_CONTROLS: Final = ("placebo keys", "innocent models")
"""Of another scheme's mark, which has one key for every context."""
_FORMAT: Final = "provenance-plan"
_VERSION: Final = 1
_HEX_256: Final = re.compile(r"[0-9a-f]{64}")
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
_MAXIMUM_BYTES: Final = 1 << 24

_OPTIONAL: Final = ("tokenizer_sha256", "prompts_sha256", "groups")
"""Fields that are no part of the file if there is nothing to say."""

COMMITTED_OF_GROUP: Final = ("field", "list_sha256", "log_sha256", "content_sha256")
"""What a plan fixes of a group of responses: who is in it, of which log, and what was counted."""
_GROUP_NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")

_ADVICE: Final = "Make one with: provenance plan new"


@dataclass(frozen=True)
class Plan:
    """A plan; the fields are those of its file, which docs/formats.md explains.

    `tokenizer_sha256` is None in plans of 0.1; `prompts_sha256`, of the file of the prompts whose
    answers are checked, is None if none was committed. `groups` are the groups of responses that
    will be tested beside the keys, by name: field, list and hashes of each; None without any.
    `timestamp`, which is not in the file, is when an authority saw its hash (RFC 3339, UTC), or
    None.

    Raises ValueError, KeyError, TypeError or AttributeError if a field is out of its domain.
    """

    suspect: str
    access: str
    keyring_id: str
    scheme: Mapping[str, Any]
    index_sha256: str
    keys: tuple[str, ...]
    weight_rule: str
    reference: Mapping[str, Any]
    stopping: Mapping[str, Any]
    alpha: float
    twins: bool
    placebo_keys: int
    controls: tuple[str, ...]
    innocents: int
    commitments: Mapping[str, Mapping[str, Any]]
    created: str
    nonce: str
    tokenizer_sha256: str | None = None
    prompts_sha256: str | None = None
    groups: Mapping[str, Mapping[str, str]] | None = None
    timestamp: str | None = field(default=None, compare=False)

    def __post_init__(self) -> None:
        rules = {
            "suspect": 0 < len(self.suspect) <= 1000 and self.suspect.isprintable(),
            "access": self.access in ACCESSES,
            "index_sha256": bool(_HEX_256.fullmatch(self.index_sha256)),
            "keys": list(self.keys) == sorted(set(self.keys)) != [],
            "alpha": 0 < self.alpha <= 0.05,
            "placebo_keys": 50 <= self.placebo_keys <= 100_000,
            "controls": self.controls in (CONTROLS, FOREIGN_CONTROLS),
            "innocents": 0 <= self.innocents <= 1000,
            "created": bool(_TIME.fullmatch(self.created)),
            "nonce": bool(_HEX_256.fullmatch(self.nonce)),
            "stopping": _is_stopping_rule(self.stopping),
            "reference": set(self.reference) == {"kind", "sha256"},
            "commitments": set(self.keys) <= set(self.commitments),
            "tokenizer_sha256": self.tokenizer_sha256 is None
            or bool(_HEX_256.fullmatch(self.tokenizer_sha256)),
            "prompts_sha256": self.prompts_sha256 is None
            or (self.access == "outputs" and bool(_HEX_256.fullmatch(self.prompts_sha256))),
        }
        if self.groups is not None:
            # an e-process has no tests of groups
            rules["groups"] = self.stopping["rule"] != "sequential" and _are_groups(self.groups)
        for name, holds in rules.items():
            if not holds:
                raise ValueError(f"{name} out of its domain")

    @classmethod
    def load(cls, path: Path | str, timestamp: str | None = None) -> Plan:
        """Read a plan. Raises StorageError; DataError unless it is canonical and complete."""
        content = read_bytes(path, _MAXIMUM_BYTES)
        return cls.parse(content, str(path), timestamp)

    @classmethod
    def parse(cls, content: bytes, origin: str, timestamp: str | None = None) -> Plan:
        """The same from bytes; `origin` names the file in errors."""
        document = parse_json(content, origin)
        claim = f"{origin}: must be a plan of version {_VERSION} in canonical JSON (RFC 8785)"
        with refuse_malformed(claim, _ADVICE):
            plan = cls.from_json(document)
            if plan.content != content:
                raise ValueError("another order, spacing or form of numbers")
        return replace(plan, timestamp=timestamp)

    @classmethod
    def from_json(cls, document: object) -> Plan:
        """What `to_json` wrote. Raises TypeError, ValueError, KeyError, AttributeError."""
        stated = take_stated(document, frozenset({"format", "version"}))
        if document["format"] != _FORMAT or document["version"] != _VERSION:  # type: ignore[index]
            raise ValueError("another format or version")
        return read_fields(cls, stated)

    def to_json(self) -> dict[str, Any]:
        """The document of its file."""
        rest = {n: value for n, value in vars(self).items() if n != "timestamp"}
        for name in _OPTIONAL:
            if rest[name] is None:
                del rest[name]
        lists = {"keys": list(self.keys), "controls": list(self.controls)}
        return {"format": _FORMAT, "version": _VERSION, **rest, **lists}

    @property
    def document(self) -> Mapping[str, Any]:
        """`to_json`."""
        return self.to_json()

    @property
    def content(self) -> bytes:
        """The bytes of the file: RFC 8785."""
        return interchange_json(self.to_json())

    @property
    def sha256(self) -> str:
        """The commitment: hex SHA-256 of the file."""
        return hashlib.sha256(self.content).hexdigest()

    @property
    def most_outputs(self) -> int | None:
        """How many outputs are taken, in the order of the files; None if no number is planned."""
        planned = self.stopping.get("outputs")
        return max(planned) if isinstance(planned, list) else planned

    def require_before(self, moment: str, what: str) -> None:
        """Raise ConfigurationMismatchError if it was made, or seen by an authority, later.

        Parameters: a moment (RFC 3339), and what happened then, in words. To the second: a plan
        names no parts of one.
        """
        for name, own in (("created", self.created), ("timestamp", self.timestamp)):
            if own is not None and _read_time(own) > _read_time(moment):
                raise ConfigurationMismatchError(
                    f"{name}: expected {moment} or earlier, {what}; found {own} in the plan "
                    f"{self.sha256[:16]}... A plan that is made afterwards fixes nothing: check "
                    "without it: exploratory."
                )

    def alpha_at(self, outputs: int) -> float:
        """Alpha of all lines of evidence at so many outputs.

        That of the plan; of planned looks, the share of this look. Raises
        ConfigurationMismatchError if no look is planned there.
        """
        stopping = self.stopping
        if stopping["rule"] != "looks":
            return self.alpha
        if outputs not in stopping["outputs"]:
            raise ConfigurationMismatchError(
                f"stopping.outputs: expected one of {stopping['outputs']} by the plan "
                f"{self.sha256[:16]}..., found {outputs}. Look when it was planned."
            )
        return self.alpha * float(stopping["shares"][stopping["outputs"].index(outputs)])

    def require(
        self,
        keyring: Keyring,
        served: Sequence[KeyName],
        inputs: Mapping[str, Any],
        *,
        sequential: bool = False,
        twins: bool = False,
    ) -> None:
        """Raise ConfigurationMismatchError naming the first field in which a check differs.

        Parameters
        ----------
        keyring : public half
        served : (slot, value) of every key that the check tests
        inputs : `Verdict.inputs`: what was read, and the settings
        sequential : whether evidence is collected by an e-process, valid at any stop
        twins : whether twins are compared, which take half of alpha
        """
        for name, expected, found in self.deviations(
            keyring, served, inputs, sequential=sequential, twins=twins
        ):
            raise ConfigurationMismatchError(
                f"{name}: expected {_short(expected)} by the plan {self.sha256[:16]}..., found "
                f"{_short(found)}. Do what the plan says, or check without it: exploratory."
            )

    def deviations(
        self,
        keyring: Keyring,
        served: Sequence[KeyName],
        inputs: Mapping[str, Any],
        *,
        sequential: bool = False,
        twins: bool = False,
    ) -> list[tuple[str, Any, Any]]:
        """(field, expected, found) wherever a check differs from the plan; see `require`."""
        document, settings = self.to_json(), inputs["settings"]
        observed = inputs["outputs"]
        commitments = describe_commitments(keyring)
        found: dict[str, Any] = {
            "access": observed["source"]["access"],
            "keyring_id": keyring.id,
            "scheme": keyring.scheme.to_json(),
            "index_sha256": inputs["index_sha256"],
            "keys": sorted(str(pair) for pair in served),
            "weight_rule": settings["rule"],
            "reference": fingerprint_reference(observed["reference"]),
            "placebo_keys": settings["placebo_keys"],
            "innocents": len(inputs["innocents"]),
            "twins": twins,
            # values that were added to the keyring later were not promised and are not tested
            "commitments": {name: commitments.get(name) for name in document["commitments"]},
            "tokenizer_sha256": keyring.tokenizer_sha256,
            "prompts_sha256": observed["source"].get("planned", {}).get("prompts_sha256"),
        }
        differences = [
            (name, document[name], value)
            for name, value in found.items()
            if name in document and document[name] != value
        ]
        groups = commit_groups(inputs.get("groups", {}))
        if groups != document.get("groups"):  # one that was not planned is none of the family
            differences.append(("groups", document.get("groups"), groups))
        return differences + self._compare_stopping(
            int(observed["outputs"]), float(settings["alpha"]), sequential
        )

    def _compare_stopping(
        self, outputs: int, alpha: float, sequential: bool
    ) -> list[tuple[str, Any, Any]]:
        """Number of outputs and alpha, which planned looks share out."""
        stopping, rule = self.stopping, self.stopping["rule"]
        if (rule == "sequential") != sequential:
            return [("stopping.rule", rule, "sequential" if sequential else "fixed")]
        planned_outputs: dict[str, Any] = {
            "fixed": [stopping.get("outputs")],
            "looks": stopping.get("outputs"),
        }
        if outputs not in planned_outputs.get(rule, [outputs]):
            return [("stopping.outputs", stopping["outputs"], outputs)]
        planned = self.alpha_at(outputs)
        return [] if math.isclose(planned, alpha, rel_tol=1e-12) else [("alpha", planned, alpha)]


def write_plan(document: Mapping[str, Any]) -> Plan:
    """A plan from its fields without `format` and `version`. Raises UsageError, naming the field.

    >>> plan = write_plan({
    ...     "suspect": "model x", "access": "outputs", "keyring_id": "ab", "scheme":
    ...     {"name": "gumbel", "parameters": {}}, "index_sha256": "0" * 64, "keys": ["global"],
    ...     "weight_rule": "log-sqrt", "reference": {"kind": "none", "sha256": []},
    ...     "stopping": {"rule": "fixed", "outputs": 1000}, "alpha": 1e-4, "twins": False,
    ...     "placebo_keys": 400, "controls": list(CONTROLS), "innocents": 1,
    ...     "commitments": {"global": {}}, "created": "2026-05-01T00:00:00Z", "nonce": "0" * 64})
    >>> plan.content[:30]
    b'{"access":"outputs","alpha":0.'
    """
    try:
        plan = Plan.from_json({"format": _FORMAT, "version": _VERSION, **document})
        interchange_json(plan.to_json())
    except MALFORMED as error:
        raise UsageError(f"a plan must be complete: {error}. See docs/formats.md.") from error
    return plan


def describe_commitments(keyring: Keyring) -> dict[str, dict[str, str]]:
    """Salt and SHA-256 of every key of a keyring, by its name; the selector among them."""
    return {
        str(pair): {"salt": commitment.salt, "sha256": commitment.sha256}
        for pair, commitment in keyring.commitments.items()
    }


def fingerprint_reference(reference: Mapping[str, Any]) -> dict[str, Any]:
    """Kind and sorted file hashes of a reference, from the description that a verdict carries.

    >>> fingerprint_reference({})
    {'kind': 'none', 'sha256': []}
    """
    if not reference:
        return {"kind": "none", "sha256": []}
    if reference["kind"] == "model":
        hashes = [*reference["weights"].values(), *reference["template"].values()]
        hashes += [reference["config"], reference["tokenizer"]]
    else:
        hashes = list(reference["sha256"].values())
    return {"kind": str(reference["kind"]), "sha256": sorted(hashes)}


def is_group_name(name: object) -> bool:
    """Whether a group may be called so: 1 to 64 letters, digits, dots, hyphens and underscores."""
    return isinstance(name, str) and bool(_GROUP_NAME.fullmatch(name))


def commit_groups(described: Mapping[str, Any]) -> dict[str, dict[str, str]] | None:
    """What a plan fixes of the groups of `Verdict.inputs`; None without any."""
    found = {
        name: {one: str(group[one]) for one in COMMITTED_OF_GROUP}
        for name, group in sorted(described.items())
    }
    return found or None


def _are_groups(groups: Mapping[str, Mapping[str, str]]) -> bool:
    return bool(groups) and all(
        is_group_name(name)
        and set(group) == set(COMMITTED_OF_GROUP)
        and all(isinstance(value, str) and value for value in group.values())
        and all(_HEX_256.fullmatch(group[one]) for one in COMMITTED_OF_GROUP[1:])
        for name, group in groups.items()
    )


def _is_stopping_rule(rule: Mapping[str, Any]) -> bool:
    if rule == {"rule": "sequential"}:
        return True
    if rule.get("rule") == "fixed" and set(rule) == {"rule", "outputs"}:
        return _is_count(rule["outputs"])
    if rule.get("rule") != "looks" or set(rule) != {"rule", "outputs", "shares"}:
        return False
    outputs, shares = rule["outputs"], rule["shares"]
    return (
        len(outputs) == len(shares) > 0
        and all(map(_is_count, outputs))
        and outputs == sorted(set(outputs))
        and all(0 < share <= 1 for share in shares)
        and sum(shares) <= 1 + 1e-9
    )


def _is_count(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= 1 << 40


def _read_time(stated: str) -> datetime:
    """Raises ConfigurationMismatchError for what is no time with a zone."""
    try:
        found = datetime.fromisoformat(stated)
        if found.tzinfo is None:
            raise ValueError("no zone")
    except ValueError as error:
        raise ConfigurationMismatchError(
            f"a time must be one of RFC 3339; got {stated[:40]!a}. Take the plan's own files."
        ) from error
    return found


def _short(value: object) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 120 else text[:117] + "..."
