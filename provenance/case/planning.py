"""Plans: written from what a check will be, before it is made; committed; compared by the check."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provenance.case.access import Reference
from provenance.case.groups import plan_groups
from provenance.case.registrar import open_registrar
from provenance.case.settings import place_prompts
from provenance.check.examine import CheckSettings, has_control_slot
from provenance.check.plan import (
    CONTROLS,
    FOREIGN_CONTROLS,
    Plan,
    describe_commitments,
    write_plan,
)
from provenance.check.weigh import choose_rule, refuse_retired
from provenance.errors import MissingExtraError, StorageError, UsageError
from provenance.evidence.timestamp import ask_authority, make_request, read_roots, read_timestamp
from provenance.served.index import Index
from provenance.storage.files import Paths, as_path, as_paths, read_bytes, write_atomically

if TYPE_CHECKING:
    from provenance.case.registrar import Registrar
    from provenance.keys.keyring import Keyring


def make_plan(
    file: Any,
    keyring: Any,
    index: Any,
    suspect: str | None = None,
    *,
    access: str = "outputs",
    outputs: Sequence[int] = (),
    sequential: bool = False,
    reference: str = "none",
    reference_text: Paths | None = None,
    alpha: float = 1e-4,
    rule: str | None = None,
    placebo_keys: int = 400,
    innocents: int = 0,
    twins: bool = False,
    prompts: Any = None,
    groups: Mapping[str, Any] | None = None,
    case: Any = None,
    signing_key: Any = None,
) -> Plan:
    """Write a plan. It names every key that may be opened; later values are not tested.

    Parameters
    ----------
    file : where the plan goes; never overwritten
    keyring : of the mark; the public half suffices
    index : folder of the index
    suspect : which model will be tested, in words; None: that of the case
    access : outputs, weights or logprobs
    outputs : how many outputs will be read; several for several looks
    sequential : an e-process that stops when the evidence suffices, instead of `outputs`
    reference, reference_text : as of `open_case`
    alpha, rule, placebo_keys : as of `CheckSettings`; rule None: the one that a check would take
    innocents : how many innocent models will be checked
    twins : whether twins take half of alpha
    prompts : the file of the prompts whose answers will be checked; a copy is kept beside the plan
    groups : folders of groups of responses by name, as of `Case.check`; their lists are fixed
    case, signing_key : folder of the case that the plan is entered in, and its signer's key

    Raises UsageError, StorageError, DataError; ConfigurationMismatchError if keyring or suspect are
    not those of the case. Cost: the index is verified.
    """
    registrar = open_registrar(case, signing_key)
    path = _need_new(as_path(file, "the plan"))
    expected = Reference(reference, as_paths(reference_text, "the reference's text"))
    rule = rule or choose_rule(sampled=access == "outputs", has_reference=expected.given)
    CheckSettings(alpha, refuse_retired(rule), placebo_keys)
    public: Keyring = getattr(keyring, "public", keyring)
    suspect = _name_suspect(suspect, registrar, public)
    committed = None if prompts is None else _take_prompts(as_path(prompts, "prompts"), access)
    counted = _read_index(as_path(index, "the index"), public, groups)
    made = write_plan(
        {
            "suspect": suspect,
            "access": access,
            "keyring_id": public.id,
            "scheme": public.scheme.to_json(),
            **counted,
            "weight_rule": rule,
            "reference": expected.fingerprint(),
            "stopping": _choose_stopping(list(outputs), sequential),
            "alpha": alpha,
            "twins": twins,
            "placebo_keys": placebo_keys,
            "controls": list(CONTROLS if has_control_slot(public.schedule) else FOREIGN_CONTROLS),
            "innocents": innocents,
            "commitments": describe_commitments(public),
            "tokenizer_sha256": public.tokenizer_sha256,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "nonce": secrets.token_hex(32),
            **({} if committed is None else {"prompts_sha256": sha256(committed).hexdigest()}),
        }
    )
    if registrar is not None:
        registrar.add_plan(made)
    if committed is not None:  # before the plan, which cannot be followed without it
        write_atomically(place_prompts(path), committed, 0o600)
    write_atomically(path, made.content)
    return made


def _read_index(folder: Path, public: Keyring, groups: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a plan says of the index, its keys and the groups beside it. The index is verified."""
    with Index.open(folder, public, "all") as opened:
        planned = plan_groups(groups, opened, public)
        return {
            "index_sha256": opened.manifest.content_sha256,
            "keys": sorted(str(key) for key in opened.keys_served(public.schedule)),
            **({} if planned is None else {"groups": planned}),
        }


def _take_prompts(path: Path, access: str) -> bytes:
    """The bytes of a file of prompts that can be read. Raises UsageError, DataError."""
    from provenance.suspect.planned import read_prompts

    if access != "outputs" or path.suffix != ".jsonl":
        raise UsageError(
            "--prompts must be a .jsonl file, and come with --access outputs; it does not. Unpack "
            "the file, or leave the option out."
        )
    read_prompts(path)
    return read_bytes(path)


def _need_new(path: Path) -> Path:
    if path.exists():
        raise StorageError(f"{path}: must not exist yet; it does. A plan is never overwritten.")
    return path


def _name_suspect(suspect: str | None, registrar: Registrar | None, public: Keyring) -> str:
    """As given, or that of the case, which it must be. Raises UsageError, or as `refuse` does."""
    if registrar is not None:
        registrar.refuse(public, suspect)
        return registrar.case.suspect
    if suspect is None:
        raise UsageError("--suspect must say which model will be tested; or give --case.")
    return suspect


@dataclass(frozen=True)
class Commitment:
    """What committing to a plan left behind.

    Attributes
    ----------
    plan : the plan; its SHA-256 is the commitment
    request : file of the time-stamp request; None if none was written, and `hint` says why
    answer : file of the authority's answer, if there is one
    time : when the authority saw the hash, RFC 3339; None without an answer
    trusted : whether its certificates were checked
    """

    plan: Plan
    request: Path | None = None
    answer: Path | None = None
    time: str | None = None
    trusted: bool = False
    hint: str = ""

    def __str__(self) -> str:
        """One line on what was written and what to do next."""
        if self.answer is not None:
            seen = f"Wrote {self.answer}: seen {self.time}"
            return seen + (
                "." if self.trusted else "; its authority was not checked, for want of --trust."
            )
        if self.request is None:
            return self.hint
        return (
            f"Wrote {self.request}. Carry it to a time-stamp authority, and bring the answer back "
            "with --response."
        )


def commit_plan(
    file: Any,
    *,
    url: str | None = None,
    response: Any = None,
    trust: Any = None,
    case: Any = None,
    signing_key: Any = None,
) -> Commitment:
    """Write a time-stamp request for a plan, or take the answer of an authority in.

    Parameters: file of the plan; the authority to ask (over the network); or the file of its answer
    that was carried back; root certificates (PEM) that the answer must chain to; folder of the case
    that it is entered in, with the plan if that is not there, and its signer's key. Raises
    UsageError, StorageError, DataError, MissingExtraError, ConfigurationMismatchError.
    """
    registrar = open_registrar(case, signing_key)
    if url and response:
        raise UsageError("only one of --url and --response may be given; both are. Choose one.")
    path = as_path(file, "the plan")
    plan = Plan.load(path)
    if registrar is not None:
        registrar.refuse_plan(plan)
        registrar.add_commitment(plan, None)
    request, answer = path.with_suffix(".tsq"), path.with_suffix(".tsr")
    if response is None:
        try:
            write_atomically(request, make_request(plan.content))
        except MissingExtraError as error:
            if url is not None:
                raise
            command = f"openssl ts -query -sha256 -cert -data {path} -out {request}"
            return Commitment(plan, hint=f"No request was written: {error} For example: {command}")
        if url is None:
            return Commitment(plan, request)
    content = ask_authority(url, request.read_bytes()) if url else read_bytes(response or answer)
    roots = read_roots(as_path(trust, "the root certificates")) if trust else ()
    found = read_timestamp(content, plan.content, roots, url or str(response))
    if registrar is not None:
        registrar.add_commitment(plan, found.time)
    write_atomically(answer, content)
    return Commitment(plan, request if url else None, answer, found.time, bool(roots))


def _choose_stopping(outputs: list[int], sequential: bool) -> dict[str, Any]:
    """The stopping rule: exactly one of a fixed number, planned looks and an e-process."""
    if sequential == bool(outputs):
        raise UsageError(
            "a plan must have either --outputs or --sequential. Say how many outputs are read."
        )
    if sequential:
        return {"rule": "sequential"}
    if len(outputs) == 1:
        return {"rule": "fixed", "outputs": outputs[0]}
    looks = sorted(set(outputs))
    return {"rule": "looks", "outputs": looks, "shares": [1 / len(looks)] * len(looks)}
