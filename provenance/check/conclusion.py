"""What follows from the numbers of a check: evidence, no evidence, or neither, and then why.

Every reason is one sentence with its counts. What the sentences need of the inputs stands in
`Verdict.inputs`, so whoever has a verdict draws the same conclusion in the same words. Opens no
key and computes no p-value.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from provenance.check.findings import (
    SHARE_METHOD,
    Conclusion,
    Control,
    GroupResult,
    HypothesisResult,
    PlanReference,
    Reservation,
    Share,
    TwinsResult,
    join_family,
)
from provenance.check.groups import doubt_groups
from provenance.check.plan import Plan
from provenance.check.power_statement import Power, Setting, find_shortfall, state_power
from provenance.check.registered import Registered
from provenance.check.reservations import list_reservations
from provenance.check.verdict import Verdict
from provenance.keys.keyring import Keyring
from provenance.keys.schedule import GLOBAL, GLOBAL_KEY, Schedule
from provenance.stats.shares import Rejection, is_clear, share_intervals
from provenance.stats.tables import ClassTable

_MOST_NAMES: Final = 5

LEFT_OUT: Final[Mapping[str, str]] = {
    "repeated": "because their context stood in the same output before",
    "prompted": "because they stand in the prompt",
    "quoted": "because they quote the prompt in another form",
}
"""Why positions are left out: a field of `inputs.outputs` each, and what it means."""


@dataclass(frozen=True)
class Ruling:
    """A conclusion, and why it is inconclusive if it is."""

    conclusion: Conclusion
    reasons: tuple[str, ...] = ()

    @classmethod
    def of(cls, tentative: Conclusion, obstacles: Sequence[str]) -> Ruling:
        """What the numbers say, unless something stands against it."""
        return cls("inconclusive", tuple(obstacles)) if obstacles else cls(tentative)


def conclude(
    hypotheses: Sequence[HypothesisResult],
    controls: Sequence[Control],
    inputs: Mapping[str, Any],
    power: Power | None,
    setting: Setting,
    *,
    twins: TwinsResult | None = None,
    reservations: Sequence[Reservation] = (),
    groups: Sequence[GroupResult] = (),
) -> Ruling:
    """What follows from adjusted p-values, controls, twins and reservations.

    Parameters
    ----------
    hypotheses, controls : of the check
    inputs : `Verdict.inputs`, for the counts in the reasons
    power, setting : what the check could have found, and in which setting; see `find_power`
    twins : the second line of evidence, if there is one
    reservations : what is known of the inputs and forbids a conclusion
    groups : tests of groups of responses, of the family of the keys

    Returns
    -------
    Ruling. Evidence if either line rejects. No evidence only with power: nothing scored, or too few
    coins to find even a fully trained suspect, is inconclusive.
    """
    obstacles = say_failed_controls(controls)
    by_keys = any(result.rejected for result in join_family(hypotheses, groups))
    if by_keys or (twins is not None and twins.rejected):
        tentative: Conclusion = "evidence"
    else:
        tentative = "no evidence"
        obstacles += _say_lack(hypotheses, inputs, power, setting, checked=not obstacles)
    obstacles += [one.reason for one in reservations if one.forbids(tentative)]
    return Ruling.of(tentative, obstacles)


def say_failed_controls(controls: Sequence[Control]) -> list[str]:
    """One reason if a control failed, none if all passed."""
    failed = [control for control in controls if not control.passed]
    if not failed:
        return []
    named = ", ".join(control.name for control in failed[:_MOST_NAMES])
    more = f" and {len(failed) - _MOST_NAMES} more" if len(failed) > _MOST_NAMES else ""
    return [f"{len(failed)} of {len(controls)} controls failed: {named}{more}"]


def say_nothing_scored(inputs: Mapping[str, Any], keys: int) -> str:
    """Why there is nothing to test: where the positions went, and what was served."""
    observed = inputs["outputs"]
    said = f"nothing was scored under {keys} keys: {explain_positions(observed)}"
    if not observed["positions"]:
        return said
    if "contexts_met" not in inputs:  # verdicts of version 1
        return said
    served = f"of the {int(inputs['contexts_served']):,} contexts that were served marked"
    if not inputs["contexts_met"]:
        return f"{said}; they have none {served}"
    met = f"{int(inputs['contexts_met']):,}"
    return f"{said}; they have {met} {served}, and no choice after these carries weight"


def explain_positions(observed: Mapping[str, Any]) -> str:
    """How many positions there were, how many count, and why the others do not."""
    left = {name: int(observed.get(name, 0)) for name in LEFT_OUT}
    counted = int(observed["positions"])
    total = counted + sum(left.values())
    unit = "outputs" if observed["source"].get("access") == "outputs" else "documents"
    said = f"{unit}: {int(observed['outputs']):,}; positions: {total:,}, of which {counted:,} count"
    said += "".join(f"; {n:,} left out {LEFT_OUT[name]}" for name, n in left.items() if n)
    short = int(observed["short_outputs"])
    return said + (f"; {unit} too short to have any: {short:,}" if short else "")


def _say_lack(
    hypotheses: Sequence[HypothesisResult],
    inputs: Mapping[str, Any],
    power: Power | None,
    setting: Setting,
    *,
    checked: bool,
) -> list[str]:
    """Why nothing found means nothing; empty if the check had power."""
    if not any(result.tail.coins for result in hypotheses):
        return [say_nothing_scored(inputs, len(hypotheses))]
    if power is None:
        # without power only where a control failed, which is reason enough
        return ["no power can be stated"] if checked else []
    table: ClassTable = next(h.table for h in hypotheses if h.name == power.key)
    shortfall = find_shortfall(power, table, setting)
    return [shortfall] if shortfall else []


def make_verdict(
    public: Keyring,
    hypotheses: Sequence[HypothesisResult],
    controls: Sequence[Control],
    alpha: float,
    inputs: Mapping[str, Any],
    *,
    twins: TwinsResult | None,
    plan: Plan | None,
    reservations: Sequence[Reservation],
    caveat: str,
    versions: Mapping[str, str],
    register: Registered | None = None,
    groups: Sequence[GroupResult] = (),
) -> Verdict:
    """All that follows from tested keys, controls and twins; whoever verifies it calls this again.

    Parameters: the public half of the mark; alpha of the keys together; reservations beyond those
    that follow from the inputs; the others as `Verdict` has them. Cost: that of `find_power`.
    """
    rule = str(inputs["settings"]["rule"])
    setting = Setting.of(public, rule, inputs["outputs"])
    found = any(one.rejected for one in groups)
    power = None if found else find_power(hypotheses, controls, alpha, setting)
    own = list_reservations(inputs, hypotheses, alpha)
    reservations = [*own, *(one for one in reservations if one not in own)]
    ruling = conclude(
        hypotheses,
        controls,
        inputs,
        power,
        setting,
        twins=twins,
        reservations=reservations,
        groups=groups,
    )
    return Verdict(
        conclusion=ruling.conclusion,
        alpha=alpha,
        hypotheses=tuple(hypotheses),
        controls=tuple(controls),
        shares=attribute_shares(hypotheses, public.schedule, ruling.conclusion, alpha),
        keyring_id=public.id,
        scheme=public.scheme.to_json(),
        weight_rule=rule,
        commitments={str(pair): one.sha256 for pair, one in public.commitments.items()},
        inputs=inputs,
        versions=versions,
        plan=PlanReference(plan.sha256, plan.timestamp) if plan is not None else None,
        caveat=caveat,
        power=power,
        twins=twins,
        reasons=ruling.reasons,
        reservations=tuple(reservations),
        register=register,
        groups=doubt_groups(groups, inputs, reservations),
    )


def find_power(
    hypotheses: Sequence[HypothesisResult],
    controls: Sequence[Control],
    alpha: float,
    setting: Setting,
) -> Power | None:
    """What the global key's test would have found: the one that every suspect takes.

    Where nothing was scored under the global key, that of the key with the most effective coins.

    Parameters: hypotheses and controls of a check, alpha of its keys, and what chooses the response
    curve. None if a control failed, a key was rejected or nothing was scored. Cost: about .5 s.
    """
    scored = [h for h in hypotheses if h.tail.coins]
    failed = not all(control.passed for control in controls)
    if not scored or failed or any(h.rejected for h in hypotheses):
        return None
    found = max(scored, key=lambda h: (h.key == GLOBAL_KEY, h.tail.effective_coins))
    return state_power(found.table, found.name, alpha * found.family_weight, setting)


def attribute_shares(
    hypotheses: Sequence[HypothesisResult],
    schedule: Schedule,
    conclusion: Conclusion,
    alpha: float,
) -> tuple[Share, ...]:
    """Shares of each attribute's values in the absorbed evidence, against the global key.

    Parameters: hypotheses and conclusion of a check, the schedule of its keyring, alpha of the
    family. Empty unless there is evidence, by the keys, and the global key was tested. Limits hold
    for all rows together, given that there is evidence; near the threshold they are [0, 1].
    """
    reference = find_reference(hypotheses, conclusion)
    own = [h for slot in schedule.slots[2:] for h in hypotheses if h.slot == slot.name]
    if reference is None or not own:
        return ()
    base = schedule.slot(GLOBAL).share
    found = share_intervals(
        [h.table for h in own],
        reference.table,
        [schedule.slot(h.slot).share / base for h in own],
        clear=is_clear(
            [
                Rejection(h.tail.log10_p, math.log10(alpha * h.family_weight), h.table)
                for h in hypotheses
                if h.family_weight > 0
            ]
        ),
    )
    rows = zip(found.estimate, found.lower, found.upper, strict=True)
    return tuple(
        Share(h.slot, h.value, float(estimate), float(lower), float(upper), SHARE_METHOD)
        for h, (estimate, lower, upper) in zip(own, rows, strict=True)
    )


def find_reference(
    hypotheses: Sequence[HypothesisResult], conclusion: Conclusion
) -> HypothesisResult | None:
    """The global key's result if shares may be stated against it: after evidence by the keys."""
    found = next((h for h in hypotheses if h.key == GLOBAL_KEY), None)
    by_keys = conclusion == "evidence" and any(h.rejected for h in hypotheses)
    return found if by_keys else None
