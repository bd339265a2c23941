"""How a check is to be made: by what was asked for, or by its plan."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provenance.errors import ConfigurationMismatchError
from provenance.storage.chain import now

if TYPE_CHECKING:
    from provenance.check.examine import CheckSettings
    from provenance.check.plan import Plan
    from provenance.evidence.bundle import BundleParts


@dataclass(frozen=True)
class Request:
    """What a caller asks for, or the plan says; both may say it, but not different things.

    contents : the plan that is followed, if any, with what lies beside it; alpha, rule,
    placebo_keys : None where not given; twins : whether there are any; prompts : where those lie
    that the plan commits, if it commits any
    """

    contents: BundleParts
    alpha: float | None = None
    rule: str | None = None
    placebo_keys: int | None = None
    twins: bool = False
    prompts: Path | None = None

    @classmethod
    def make(cls, plan: Path | None, **asked: Any) -> Request:
        """A request that agrees with itself and with the plan, before the suspect is read.

        Raises UsageError; StorageError, DataError, MissingExtraError for the plan;
        ConfigurationMismatchError naming what differs from it, or if it was made later than now.
        """
        from provenance.evidence.bundle import BundleParts, gather_plan

        made = cls(gather_plan(plan) if plan else BundleParts(), **asked)
        if plan is not None:
            made = replace(made, prompts=place_prompts(plan))
        made.settings(None)
        if made.plan is not None:
            made.plan.require_before(now(), "which is now")
        return made

    @property
    def plan(self) -> Plan | None:
        """The plan that is followed."""
        return self.contents.plan

    def require_before(self, source: Mapping[str, Any]) -> None:
        """Refuse a plan that was made when its outputs were being collected, by their ledgers.

        Parameters: `Observations.source`. Raises ConfigurationMismatchError.
        """
        for name, facts in source.get("collected", {}).items():
            if self.plan is not None:
                what = f"when the collection of {name} began"
                self.plan.require_before(str(facts["created"]), what)

    def settings(self, outputs: int | None) -> CheckSettings:
        """The settings for so many outputs (None: not known yet); a rule that nobody chose is None.

        Raises UsageError; ConfigurationMismatchError naming what differs from the plan.
        """
        from provenance.check.examine import CheckSettings

        plan = self.plan
        if plan is None:
            return CheckSettings(
                alpha=1e-4 if self.alpha is None else self.alpha,
                rule=self.rule,
                placebo_keys=400 if self.placebo_keys is None else self.placebo_keys,
            )
        planned = plan.document
        given: dict[str, Any] = {
            "alpha": self.alpha,
            "weight_rule": self.rule,
            "placebo_keys": self.placebo_keys,
            "twins": self.twins,
        }
        for name, value in given.items():
            if value is not None and value != planned[name]:
                raise ConfigurationMismatchError(
                    f"{name}: expected {planned[name]} by the plan {plan.sha256[:16]}..., found "
                    f"{value}. Leave the option out, or check without the plan: exploratory."
                )
        return CheckSettings(
            alpha=float(planned["alpha"]) if outputs is None else plan.alpha_at(outputs),
            rule=planned["weight_rule"],
            placebo_keys=planned["placebo_keys"],
        )


def place_prompts(plan: Path) -> Path:
    """Where the prompts lie that a plan commits: beside it."""
    return plan.with_suffix(".prompts.jsonl")
