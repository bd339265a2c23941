"""What the lines of a register add up to: how often somebody tried, and with which plans.

Every rule of counting is here, so that whoever writes a line and whoever verifies a bundle count
alike:

- a `check` counts, whether or not it has a result;
- a `look` counts as a check unless it goes on from where a registered look stopped. A state that
  two looks go on from with other batches is two checks; so is a state that was begun elsewhere;
- a check is the first of its plan (of planned looks: of this look) if no line before tried it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from provenance.check.registered import Registered
from provenance.errors import DataError, say_briefly
from provenance.evidence.register_entries import Committed, Entry, Opened, Planned, Result, Tried
from provenance.evidence.signature import fingerprint, is_signed, parse_public_key
from provenance.storage.chain import GENESIS, Link, read_chain
from provenance.storage.documents import MALFORMED
from provenance.storage.files import canonical_json

REGISTER_FILE: Final = "register.jsonl"


@dataclass
class Process:
    """A sequential check, or a check as a process of one look.

    Attributes
    ----------
    plan_sha256, uses : its plan, and how often that was checked when it began, itself included
    before, pending : state and batch of a look that has no result yet
    """

    plan_sha256: str | None
    uses: int
    before: str = ""
    pending: tuple[str, ...] | None = None


@dataclass
class Register:
    """The lines so far.

    Attributes
    ----------
    case : line 0
    head, records : hash of the last line, and how many there are
    entries : all lines
    """

    case: Opened | None = None
    head: str = GENESIS
    records: int = 0
    entries: list[Entry] = field(default_factory=list)
    checks: int = 0
    planned: int = 0
    looks: int = 0
    plans: dict[str, Entry] = field(default_factory=dict)
    uses: Counter[tuple[str, int | None]] = field(default_factory=Counter)
    tried: dict[int, Process] = field(default_factory=dict)
    finished: set[int] = field(default_factory=set)
    ends: dict[str, Process] = field(default_factory=dict)
    key: Ed25519PublicKey | None = None

    @classmethod
    def read(cls, links: Iterable[Link], origin: str) -> Register:
        """All lines. Raises DataError for one that cannot follow, or lacks its signature."""
        found = cls()
        for link in links:
            found.take(link, origin)
        if found.case is None:
            raise DataError(f"{origin}: must hold a case; it is empty. Run: provenance case new")
        return found

    def take(self, link: Link, origin: str) -> Entry:
        """One more line. Raises DataError."""
        try:
            entry = Entry.from_json(link.record)
            if canonical_json(entry.to_json()) != canonical_json(link.record):
                raise ValueError("another form")
            self._take(entry)
        except MALFORMED as error:
            raise DataError(
                f"{origin}: line {link.line}: must be a line of a register that can follow; it is "
                f"not ({say_briefly(error)}). Somebody changed the file: find out who, or take "
                "your copy."
            ) from error
        self.entries.append(entry)
        self.head, self.records = link.digest, self.records + 1
        return entry

    def _take(self, entry: Entry) -> None:
        facts = entry.facts
        if isinstance(facts, Opened) != (self.case is None):
            raise ValueError("a case stands first, and nowhere else")
        if isinstance(facts, Opened):
            self.case = facts
            if facts.signer is not None:
                self.key = parse_public_key(facts.signer.encode("ascii"), "signer")
        self._require_signature(entry)
        if isinstance(facts, Planned):
            self.plans.setdefault(facts.plan_sha256, entry)
        elif isinstance(facts, Committed) and facts.plan_sha256 not in self.plans:
            raise ValueError("a plan that is not registered")
        elif isinstance(facts, Tried):
            self._try(entry, facts)
        elif isinstance(facts, Result):
            self._finish(facts)

    def _require_signature(self, entry: Entry) -> None:
        if self.key is None:
            if entry.signature is not None:
                raise ValueError("a signature where the case has no signer")
        elif not is_signed(self.key, entry.signed, entry.signature or ""):
            raise ValueError("it is not signed by the case's signer")

    def _try(self, entry: Entry, facts: Tried) -> None:
        if (entry.kind == "look") != (facts.state_sha256 is not None):
            raise ValueError("a look has a state, and a check has none")
        if facts.plan_sha256 is not None and facts.plan_sha256 not in self.plans:
            raise ValueError("a plan that is not registered")
        process = self.find_process(facts)
        if process is None:
            process = Process(facts.plan_sha256, 0)
            self.checks += 1
            if facts.plan_sha256 is not None:
                name = (facts.plan_sha256, facts.planned_look)
                self.uses[name] += 1
                process.uses = self.uses[name]
                self.planned += process.uses == 1
        if facts.state_sha256 is not None:
            self.looks += 1
            process.before, process.pending = facts.state_sha256, facts.outputs
        self.tried[entry.n] = process

    def _finish(self, facts: Result) -> None:
        process = self.tried.get(facts.of)
        if process is None or facts.of in self.finished:
            raise ValueError("a result of what is no check, or has one")
        self.finished.add(facts.of)
        process.pending = None
        if facts.state_sha256 is not None:
            self.ends.pop(process.before, None)
            self.ends[facts.state_sha256] = process

    def find_process(self, facts: Tried) -> Process | None:
        """The sequential check that a look goes on with; None if it begins one."""
        state = facts.state_sha256
        if state is None:
            return None
        for process in self.tried.values():  # one that was killed, with its state before or after
            if process.pending is not None and (
                (state == process.before and facts.outputs == process.pending)
                or (state not in ("", process.before) and state not in self.ends)
            ):
                return process
        known = self.ends.get(state)
        return known if known is not None and known.pending is None else None

    def list_tried(self, before: int | None = None) -> Iterator[tuple[Entry, Tried]]:
        """Checks and looks, of the first so many lines."""
        for entry in self.entries[:before]:
            if isinstance(entry.facts, Tried):
                yield entry, entry.facts

    def describe(self, process: Process | None = None) -> Registered:
        """What is said in a verdict of the check of the last line, or of a process as it stands."""
        if self.case is None:
            raise DataError("a register must hold a case; it is empty.")
        last = self.entries[-1]
        own = process or self.tried[last.n]
        same = 0
        if process is None and isinstance(last.facts, Tried):
            mine = (last.facts.inputs_sha256, last.facts.state_sha256)
            same = sum(
                (one.inputs_sha256, one.state_sha256) == mine
                for _, one in self.list_tried(len(self.entries) - 1)
            )
        return Registered(
            suspect=self.case.suspect,
            number=self.case.number,
            author=self.case.author,
            head=self.head,
            records=self.records,
            checks=self.checks,
            planned=self.planned,
            looks=self.looks,
            plans=len(self.plans),
            uses=own.uses,
            same=same,
            signer=None if self.key is None else fingerprint(self.key),
        )


def read_register(path: Path) -> Register:
    """The register in a file, its chain and signatures. Raises StorageError, DataError."""
    return Register.read(read_chain(path), str(path))
