"""Settings of a check, from its options or from its plan."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from provenance.errors import ConfigurationMismatchError

if TYPE_CHECKING:
    from provenance.check.examine import CheckSettings
    from provenance.check.plan import Plan


def choose_settings(
    plan: Plan | None,
    outputs: int | None,
    alpha: float | None,
    rule: str | None,
    placebo_keys: int | None,
    twins: bool,
) -> CheckSettings:
    """What the user says, or the plan; both may say it, but not different things.

    Parameters: the plan, if any; how many outputs there are (None: not known yet); the options,
    None where not given (a rule that nobody chose follows from what is observed); whether there are
    twins. Raises UsageError; ConfigurationMismatchError naming the option that differs.
    """
    from provenance.check.examine import CheckSettings

    if plan is None:
        return CheckSettings(
            alpha=1e-4 if alpha is None else alpha,
            rule=rule,
            placebo_keys=400 if placebo_keys is None else placebo_keys,
        )
    planned = plan.document
    given: dict[str, Any] = {
        "alpha": alpha,
        "weight_rule": rule,
        "placebo_keys": placebo_keys,
        "twins": twins,
    }
    for name, value in given.items():
        if value is not None and value != planned[name]:
            raise ConfigurationMismatchError(
                f"{name}: expected {planned[name]} by the plan {plan.sha256[:16]}..., found "
                f"{value}. Leave the option out, or check without the plan: exploratory."
            )
    whole = float(planned["alpha"])
    return CheckSettings(
        alpha=plan.alpha_at(outputs) if outputs is not None else whole,
        rule=planned["weight_rule"],
        placebo_keys=planned["placebo_keys"],
    )
