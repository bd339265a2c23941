"""One look of a sequential check: a batch is added, and what is known by now."""

from __future__ import annotations

import logging
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from provenance.check.findings import PlanReference
from provenance.check.inputs import describe_inputs
from provenance.check.looks.conclude import conclude
from provenance.check.looks.result import SequentialVerdict
from provenance.check.looks.state import STATE_FILE, continue_check
from provenance.check.looks.words import say_look
from provenance.check.plan import Plan
from provenance.check.reading import SEQUENTIAL_FILE
from provenance.check.registered import Registered
from provenance.check.weigh import choose_rule
from provenance.check.words import is_exploratory, say_plan
from provenance.storage.files import lock_folder, sha256_of_file, write_json
from provenance.storage.printable import Said

if TYPE_CHECKING:
    from provenance.case.registrar import Registrar
    from provenance.case.settings import Request
    from provenance.marks import Mark
    from provenance.served.index import Index
    from provenance.suspect.observations import Observations

_LOG: Final = logging.getLogger(__name__)


@dataclass(frozen=True)
class Look(Said):
    """What a sequential check says now.

    Attributes
    ----------
    verdict : the result over all batches so far
    state_sha256 : of state.json; "" if nothing was added yet. Write it down after every batch
    plan : the plan that is followed; without one the check is exploratory
    register : what the register of the case counts; None: it was not made in a case
    """

    verdict: SequentialVerdict
    state_sha256: str
    plan: Plan | None
    register: Registered | None = None

    @property
    def plan_reference(self) -> PlanReference | None:
        """Hash and timestamp of the plan."""
        return PlanReference(self.plan.sha256, self.plan.timestamp) if self.plan else None

    @property
    def exit_code(self) -> int:
        """Of the command that made it."""
        return self.verdict.exit_code

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; holds no key."""
        plan, register = self.plan_reference, self.register
        return {
            **self.verdict.to_json(),
            "state_sha256": self.state_sha256,
            "exploratory": is_exploratory(plan, register),
            "plan": asdict(plan) if plan else None,
            **({"register": register.to_json()} if register else {}),
        }

    def save(self, folder: Path | str) -> None:
        """Write `sequential.json` into a folder. Raises StorageError, LockedError."""
        with lock_folder(Path(folder)):
            write_json(Path(folder) / SEQUENTIAL_FILE, self.to_json())

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        standing = say_plan(self.plan_reference, self.register)
        return say_look(self.verdict, self.state_sha256, standing, width)

    def __repr__(self) -> str:
        """One line."""
        return f"<Look {self.verdict.conclusion}, {len(self.verdict.looks)} batches>"


def look(
    state: Path,
    observations: Observations | None,
    index: Index,
    mark: Mark,
    request: Request,
    has_reference: bool,
    registrar: Registrar | None = None,
) -> Look:
    """Add a batch to the state (None: only look), and conclude.

    With a plan the batch is compared with it before a coin is revealed; without one the check is
    exploratory. Then it is entered in the register of the case; to look again enters nothing, since
    it reveals nothing. A rule that nobody chose is declared by what was asked for, before any
    output.
    """
    settings, plan = request.settings(None), request.plan
    rule = settings.rule or choose_rule(sampled=True, has_reference=has_reference)
    settings = replace(settings, rule=rule)
    if observations is None:
        check, sha256 = continue_check(state, None, index, mark, settings)
        known = None if registrar is None else registrar.describe_state(sha256)
        return Look(conclude(check, mark), sha256, plan, known)
    inputs = describe_inputs(observations, index, {}, asdict(settings))
    if plan is not None:
        index.verify()  # the plan names the hash of all rows, not only of those that are used
        plan.require(mark.public, index.keys_served(mark.schedule), inputs, sequential=True)
    with nullcontext() if registrar is None else registrar.trying(plan) as trial:
        if trial is not None:
            trial.enter(inputs, _hash_state(state))
        _LOG.info("Revealing new coins")
        check, sha256 = continue_check(state, observations, index, mark, settings)
        verdict = conclude(check, mark)
        if trial is not None:
            trial.conclude(verdict.conclusion, verdict.log10_p, sha256, None)
    return Look(verdict, sha256, plan, trial.registered if trial else None)


def _hash_state(folder: Path) -> str:
    """Of state.json; "" if there is none yet."""
    path = folder / STATE_FILE
    return sha256_of_file(path) if path.exists() else ""
