"""How a check is to be made: by what was asked for, or by its plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provenance.errors import ConfigurationMismatchError

if TYPE_CHECKING:
    from provenance.check.examine import CheckSettings
    from provenance.check.plan import Plan
    from provenance.evidence.bundle import BundleParts


@dataclass(frozen=True)
class Request:
    """What a caller asks for, or the plan says; both may say it, but not different things.

    contents : the plan that is followed, if any, with what lies beside it; alpha, rule,
    placebo_keys : None where not given; twins : whether there are any
    """

    contents: BundleParts
    alpha: float | None = None
    rule: str | None = None
    placebo_keys: int | None = None
    twins: bool = False

    @classmethod
    def make(cls, plan: Path | None, **asked: Any) -> Request:
        """A request that agrees with itself and with the plan, before the suspect is read.

        Raises UsageError; StorageError, DataError, MissingExtraError for the plan;
        ConfigurationMismatchError naming what differs from it.
        """
        from provenance.evidence.bundle import BundleParts, gather_plan

        made = cls(gather_plan(plan) if plan else BundleParts(), **asked)
        made.settings(None)
        return made

    @property
    def plan(self) -> Plan | None:
        """The plan that is followed."""
        return self.contents.plan

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
