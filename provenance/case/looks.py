"""One look of a sequential check: a batch is added, and what is known by now."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from provenance.check.inputs import describe_inputs
from provenance.check.looks.conclude import conclude
from provenance.check.looks.result import SequentialVerdict
from provenance.check.looks.state import continue_check
from provenance.check.looks.words import say_look
from provenance.check.plan import Plan
from provenance.check.reading import SEQUENTIAL_FILE
from provenance.check.weigh import choose_rule
from provenance.storage.files import lock_folder, write_json
from provenance.storage.printable import Said

if TYPE_CHECKING:
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
    """

    verdict: SequentialVerdict
    state_sha256: str
    plan: Plan | None

    @property
    def exit_code(self) -> int:
        """Of the command that made it."""
        return self.verdict.exit_code

    def to_json(self) -> dict[str, Any]:
        """JSON-able form; holds no key."""
        plan = self.plan
        return {
            **self.verdict.to_json(),
            "state_sha256": self.state_sha256,
            "exploratory": plan is None,
            "plan": {"sha256": plan.sha256, "timestamp": plan.timestamp} if plan else None,
        }

    def save(self, folder: Path | str) -> None:
        """Write `sequential.json` into a folder. Raises StorageError, LockedError."""
        with lock_folder(Path(folder)):
            write_json(Path(folder) / SEQUENTIAL_FILE, self.to_json())

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        plan = self.plan.sha256 if self.plan else None
        return say_look(self.verdict, self.state_sha256, plan, width)

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
) -> Look:
    """Add a batch to the state (None: only look), and conclude.

    With a plan the batch is compared with it before a coin is revealed; without one the check is
    exploratory. A rule that nobody chose is declared by what was asked for, before any output.
    """
    settings, plan = request.settings(None), request.plan
    rule = settings.rule or choose_rule(sampled=True, has_reference=has_reference)
    settings = replace(settings, rule=rule)
    if plan is not None and observations is not None:
        tested = index.keys_served(mark.schedule)
        inputs = describe_inputs(observations, index, {}, asdict(settings))
        plan.require(mark.public, tested, inputs, sequential=True)
    _LOG.info("Revealing new coins")
    check, sha256 = continue_check(state, observations, index, mark, settings)
    return Look(conclude(check, mark), sha256, plan)
