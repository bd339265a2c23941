"""A case folder: all that was planned, tried and found of one suspect under one keyring.

::

    DIR/register.jsonl    every plan, check, look and result, appended and chained
    DIR/provenance.toml   so that commands in the folder find keys, index and the case itself
    DIR/...               plans, the collection with its ledger, bundles: where you put them

A check is entered before a key is opened, and its result afterwards: one that was killed, or whose
result nobody liked, counts all the same. What is tried outside the folder is not counted.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from provenance.case.defaults import FILE
from provenance.case.registrar import PATIENCE, need_register
from provenance.check.registered import say_count
from provenance.errors import DataError, StorageError, UsageError
from provenance.evidence.manifest import MANIFEST_FILE
from provenance.evidence.register import REGISTER_FILE, Register, read_register
from provenance.evidence.register_entries import (
    FORMAT,
    VERSION,
    Committed,
    Facts,
    Opened,
    Planned,
    Result,
    Tried,
)
from provenance.evidence.signature import Signer, fingerprint
from provenance.storage.chain import Chain, find_breaks, read_links
from provenance.storage.files import as_path, lock_folder, name_of_leftover, write_atomically
from provenance.storage.printable import Page, Said

if TYPE_CHECKING:
    from provenance.keys.keyring import Keyring

_LONGEST: Final = 200


@dataclass(frozen=True)
class CaseFolder(Said):
    """A case as its register has it.

    Attributes
    ----------
    folder : where it lies
    register : what its lines add up to; empty if they do not hold
    breaks : what was done to the register, or to bundles that it does not know
    """

    folder: Path
    register: Register
    breaks: tuple[str, ...] = ()

    @property
    def exit_code(self) -> int:
        """1: the register does not hold."""
        return 1 if self.breaks else 0

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        found = self.register
        return {
            "folder": str(self.folder),
            "case": None if found.case is None else asdict(found.case),
            "head": found.head,
            "records": found.records,
            **{name: getattr(found, name) for name in ("checks", "planned", "looks")},
            "plans": sorted(found.plans),
            "without_result": len(set(found.tried) - found.finished),
            "entries": [one.to_json() for one in found.entries],
            "breaks": list(self.breaks),
        }

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page, found = Page(width), self.register
        if self.breaks or found.case is None:
            page.say(f"{self.folder}: the register does not hold.", wrap=False)
            page.reasons(self.breaks)
            return str(page)
        number = f"Case {found.case.number}" if found.case.number else "A case"
        author = f", by {found.case.author}" if found.case.author else ""
        page.say(f"{number} on {found.case.suspect}{author}; keyring {found.case.keyring_id}")
        lost = len(set(found.tried) - found.finished)
        page.say(
            f"Checks: {say_count(found.checks)}, of which planned: {say_count(found.planned)}; "
            f"sequential looks: {say_count(found.looks)}; plans: {say_count(len(found.plans))}; "
            f"without a result: {say_count(lost)}."
        )
        signed = fingerprint(found.key) if found.key is not None else None
        signer = f"signed by {signed}" if signed else "not signed"
        lines = f"{found.records:,} line{'' if found.records == 1 else 's'}"
        page.say(f"Register: {lines}, {signer}, head {found.head}", wrap=False)
        rows = [[str(one.n), one.time, one.kind, _say_entry(one.facts)] for one in found.entries]
        page.table(["line", "time", "kind", "what"], rows)
        return str(page)


def new_case(
    folder: Any,
    keyring: Any,
    suspect: str,
    *,
    number: str = "",
    author: str = "",
    signing_key: Any = None,
    index: Any = None,
) -> CaseFolder:
    """Begin a case: a folder with an empty register, in which commands count what is tried.

    Parameters
    ----------
    folder : without a register; what else lies in it stays
    keyring : of the mark, or its folder, which is then written into the folder's provenance.toml
    suspect : which model the case is about, in words; plans of the case are about the same
    number, author : of the case, and whose it is, for people
    signing_key : file of the key that signs every line; None: lines are chained, not signed
    index : folder of the index, for provenance.toml

    Raises UsageError, StorageError, LockedError. A killed run is repeated.
    """
    from importlib.metadata import version

    from provenance.errors import DISTRIBUTION

    place = as_path(folder, "the case's folder")
    for name, text in (("suspect", suspect), ("number", number), ("author", author)):
        if not isinstance(text, str) or len(text) > _LONGEST or not text.isprintable():
            raise UsageError(f"--{name} must be a line of at most {_LONGEST} characters.")
    if not suspect:
        raise UsageError("--suspect must say which model the case is about; it is empty.")
    signer = None if signing_key is None else Signer(as_path(signing_key, "the signing key"))
    public, keys = _read_public(keyring)
    facts = Opened(
        format=FORMAT,
        version=VERSION,
        provenance=version(DISTRIBUTION),
        suspect=suspect,
        number=number,
        author=author,
        keyring_id=public.id,
        signer=None if signer is None else signer.public_key,
    )
    paths = {"keys": keys, "index": index, "signing_key": signing_key}
    with lock_folder(place, PATIENCE):
        _refuse_begun(place)
        # first, so that no case is there that commands do not find
        write_atomically(place / FILE, _write_defaults(paths))
        with Chain(place / REGISTER_FILE, None if signer is None else signer.sign) as chain:
            list(chain.replay())
            chain.append("case", **asdict(facts))
    return read_case(place)


def read_case(folder: Any) -> CaseFolder:
    """A case, with all that its register and the bundles in its folder show to be wrong.

    Raises StorageError if there is no register. Changes nothing.
    """
    place = as_path(folder, "the case's folder")
    path = need_register(place)
    breaks = find_breaks([link.bare() for link in read_links(path)])
    if not breaks:
        try:
            register = read_register(path)
            return CaseFolder(place, register, tuple(_find_strangers(place)))
        except DataError as error:
            breaks.append(str(error).rstrip("."))
    return CaseFolder(place, Register(), tuple(breaks))


def _read_public(keyring: Any) -> tuple[Keyring, Path | None]:
    """The public half, and the folder of the keyring if that is what was given."""
    from provenance.keys.keyring import Keyring

    if isinstance(keyring, (str, os.PathLike)):
        folder = as_path(keyring, "the keyring's folder")
        return Keyring.load(folder), folder
    return getattr(keyring, "public", keyring), None


def _refuse_begun(folder: Path) -> None:
    """StorageError for a folder that has a case, or another's provenance.toml; else clean it."""
    path = folder / REGISTER_FILE
    if path.exists() and any(True for _ in read_links(path)):
        raise StorageError(
            f"{folder}: must not hold a case yet; it does. A register is never begun anew: choose "
            "another folder, or go on in this one."
        )
    defaults = folder / FILE
    if defaults.exists() and b'\ncase = "."\n' not in b"\n" + defaults.read_bytes():
        raise StorageError(
            f"{folder}: must not hold {FILE}, which a case writes itself; it does. Choose another "
            "folder."
        )
    for one in folder.iterdir():
        if name_of_leftover(one.name) == FILE:
            one.unlink()


def _write_defaults(paths: Mapping[str, Any]) -> bytes:
    """provenance.toml of the case, its paths absolute. Raises UsageError for a path of no text."""
    lines = ['case = "."']
    for name, path in paths.items():
        if path is None:
            continue
        text = str(as_path(path, name).absolute())
        if not text.isprintable():
            raise UsageError(f"{text!a} must be printable, to stand in {FILE}. Rename it.")
        lines.append(f"{name} = {json.dumps(text, ensure_ascii=False)}")
    return "\n".join([*lines, ""]).encode("utf-8")


def _find_strangers(folder: Path) -> Iterator[str]:
    """Registers of bundles below the folder that are not the beginning of its own."""
    whole = (folder / REGISTER_FILE).read_bytes()
    for path in sorted(folder.rglob(f"*/{REGISTER_FILE}")):
        is_bundle = (path.parent / MANIFEST_FILE).is_file()
        if is_bundle and not whole.startswith(path.read_bytes()):
            yield (
                f"{path.parent}: this bundle has lines that the register has not: an end was cut "
                "off, or it is another case's"
            )


def _say_entry(facts: Facts) -> str:
    if isinstance(facts, Tried):
        plan = f", plan {facts.plan_sha256[:16]}" if facts.plan_sha256 else ", no plan"
        return f"{facts.count:,} {facts.access} at alpha {facts.alpha:g}{plan}"
    if isinstance(facts, Result):
        if facts.error is not None:
            return f"of line {facts.of}: stopped, {facts.error}"
        return f"of line {facts.of}: {facts.conclusion}, log10 p {facts.log10_p:.2f}"
    if isinstance(facts, Committed):
        return f"plan {facts.plan_sha256[:16]}, {facts.timestamp or 'date not attested'}"
    if isinstance(facts, Planned):
        return f"plan {facts.plan_sha256[:16]}, made {facts.created}"
    return facts.suspect
