"""Appending to the register of a case: what is tried, before a key is opened, and how it ended.

Every line is appended under the lock of the case's folder, after the whole register was read again:
what counts is decided there, so that two processes that check at once do not both come first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from provenance.errors import ConfigurationMismatchError, DataError, ProvenanceError, StorageError
from provenance.evidence.register import REGISTER_FILE, Register, read_register
from provenance.evidence.register_entries import (
    Committed,
    Facts,
    Opened,
    Planned,
    Result,
    Tried,
)
from provenance.evidence.signature import Signer
from provenance.storage.chain import Chain
from provenance.storage.files import as_path, lock_folder

if TYPE_CHECKING:
    from provenance.check.plan import Plan
    from provenance.check.registered import Registered
    from provenance.keys.keyring import Keyring

PATIENCE: Final = 60.0
"""Seconds that a line waits for another process's line."""


class Trial:
    """One check or look: entered before a key is opened, concluded afterwards.

    registered, lines : what the register says of it, and its lines to there; None and b"" before
    """

    def __init__(self, registrar: Registrar, plan: Plan | None) -> None:
        self._registrar, self._plan = registrar, plan
        self.registered: Registered | None = None
        self.lines = b""
        self._number = -1

    def enter(self, inputs: Mapping[str, Any], state: str | None = None) -> Registered:
        """Enter what is about to be tried; see `Registrar`. `state`: of a look, the state before.

        Raises ConfigurationMismatchError, DataError, StorageError, LockedError.
        """
        plan = self._plan
        facts = Tried.of(inputs, plan, state)
        kind = "check" if state is None else "look"
        self._number, self.registered, self.lines = self._registrar.enter(kind, facts, plan)
        return self.registered

    def conclude(
        self, conclusion: str | None, log10_p: float | None, state: str | None, error: str | None
    ) -> None:
        """Enter how it ended. Raises StorageError, LockedError, DataError."""
        if self._number >= 0:
            result = Result(self._number, conclusion, log10_p, state, error)
            self._registrar.append("result", result)


class Registrar:
    """Appends to the register of a case.

    Parameters: folder of the case; file of its signer's key, if it has a signer and no variable of
    the environment names the key. Raises StorageError, DataError; ConfigurationMismatchError for
    another key than that of the case's signer; what `Signer` raises.
    """

    def __init__(self, folder: Path, signing_key: Path | None = None) -> None:
        self.folder, self._path = folder, need_register(folder)
        self.case = _case_of(read_register(self._path))
        self._signer = None
        if self.case.signer is not None:
            self._signer = Signer(signing_key)
            if self._signer.public_key != self.case.signer:
                raise ConfigurationMismatchError(
                    "--signing-key must be that of the case's signer; it is another. Name the key "
                    "with which the case was made."
                )

    def refuse(self, public: Keyring, suspect: str | None = None) -> None:
        """Raise ConfigurationMismatchError unless keyring and suspect are those of the case."""
        self._refuse(public.id, suspect)

    def _refuse(self, keyring_id: str, suspect: str | None) -> None:
        for name, expected, found in (
            ("keyring_id", self.case.keyring_id, keyring_id),
            ("suspect", self.case.suspect, self.case.suspect if suspect is None else suspect),
        ):
            if expected != found:
                raise ConfigurationMismatchError(
                    f"{name}: expected {expected[:80]!a} by the case {self.folder}, found "
                    f"{found[:80]!a}. Make another case for it."
                )

    def refuse_plan(self, plan: Plan) -> None:
        """The same for a plan, which names both."""
        self._refuse(plan.keyring_id, plan.suspect)

    def add_plan(self, plan: Plan) -> None:
        """Enter a plan, unless it is there. Raises as `append`."""
        if plan.sha256 not in read_register(self._path).plans:
            self.append("plan", Planned.of(plan))

    def add_commitment(self, plan: Plan, timestamp: str | None) -> None:
        """Enter that a plan was committed, and the plan if it is not there."""
        self.add_plan(plan)
        self.append("commit", Committed(plan.sha256, timestamp))

    def enter(self, kind: str, facts: Tried, plan: Plan | None) -> tuple[int, Registered, bytes]:
        """Enter a check or look: number of its line, what it is counted as, and all lines."""
        with self._open() as (chain, register):
            if plan is not None:
                _refuse_late(register, facts, plan)
            link = chain.append(kind, **asdict(facts))
            register.take(link, str(self._path))
            return link.number, register.describe(), self._path.read_bytes()

    def append(self, kind: str, facts: Facts) -> None:
        """Append one line. Raises LockedError, StorageError, DataError."""
        with self._open() as (chain, register):
            register.take(chain.append(kind, **asdict(facts)), str(self._path))

    def describe_state(self, state: str) -> Registered | None:
        """What is known of the sequential check with this state; None if it was not entered."""
        register = read_register(self._path)
        process = register.ends.get(state)
        return None if process is None else register.describe(process)

    @contextmanager
    def trying(self, plan: Plan | None) -> Iterator[Trial]:
        """A trial; if it ends by an exception, that is its result."""
        trial = Trial(self, plan)
        try:
            yield trial
        except BaseException as error:
            with suppress(ProvenanceError, OSError):
                trial.conclude(None, None, None, type(error).__name__)
            raise

    @contextmanager
    def _open(self) -> Iterator[tuple[Chain, Register]]:
        sign = None if self._signer is None else self._signer.sign
        with lock_folder(self.folder, PATIENCE), Chain(self._path, sign) as chain:
            register = Register.read(chain.replay(), str(self._path))
            if _case_of(register) != self.case:
                raise DataError(f"{self._path}: must be of one case; it was replaced. Run again.")
            yield chain, register


def open_registrar(case: Any, signing_key: Any) -> Registrar | None:
    """The register of a case's folder; None if no case is named. Raises as `Registrar`."""
    if case is None:
        return None
    key = None if signing_key is None else as_path(signing_key, "the signing key")
    return Registrar(as_path(case, "the case's folder"), key)


def _refuse_late(register: Register, facts: Tried, plan: Plan) -> None:
    """Refuse a plan that is not registered, or that was made when its outputs had been tried."""
    made = register.plans.get(plan.sha256)
    if made is None:
        raise ConfigurationMismatchError(
            f"plan: expected one of the {len(register.plans)} plans of the case, found "
            f"{plan.sha256[:16]}... Enter it first: provenance plan commit PLAN.json --case DIR"
        )
    if facts.state_sha256:
        process = register.find_process(facts)
        if process is None or process.plan_sha256 != plan.sha256:
            raise ConfigurationMismatchError(
                f"plan: expected a sequential check that began in this case with the plan "
                f"{plan.sha256[:16]}..., found one that did not. Begin a new folder with fresh "
                "outputs, or look without the plan: exploratory."
            )
        return
    for entry, earlier in register.list_tried():
        if not set(earlier.outputs) & set(facts.outputs):
            continue
        what = f"when these outputs were tried (line {entry.n} of the case's register)"
        plan.require_before(entry.time, what)
        if entry.n < made.n:
            raise ConfigurationMismatchError(
                f"plan: expected in the register before line {entry.n}, {what}, found in line "
                f"{made.n}. A plan that is made afterwards fixes nothing: check fresh outputs, or "
                "without it: exploratory."
            )


def _case_of(register: Register) -> Opened:
    if register.case is None:
        raise DataError("a register must hold a case; it is empty. Run: provenance case new")
    return register.case


def need_register(folder: Path) -> Path:
    """The register of a case's folder; StorageError if there is none."""
    path = folder / REGISTER_FILE
    if not path.is_file():
        raise StorageError(
            f"{folder}: must be the folder of a case; it has no {REGISTER_FILE}. Run: provenance "
            "case new"
        )
    return path
