"""Make a verdict again from its class tables, pairs and keys, and compare it with what is stated.

Whatever the bundle allows is computed anew, by the same functions that made the verdict; what it
does not allow is taken as stated and checked for consistency only. `ControlRecord` says which is
which. Knows verdicts; no files.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Final

from provenance.check.conclusion import conclude, make_verdict
from provenance.check.controls import LEVEL, control_slot, control_unserved, list_unserved
from provenance.check.examine import has_control_slot, run_placebos
from provenance.check.findings import Control, GroupResult, HypothesisResult, TwinsResult
from provenance.check.plan import Plan
from provenance.check.power_statement import Setting
from provenance.check.score import Weighing
from provenance.check.selection import name_selection
from provenance.check.sentence import Sentence
from provenance.check.verdict import Verdict
from provenance.evidence.older import (
    means_the_same,
    older_shares,
    restate,
    split_stated_alpha,
)
from provenance.keys.keyring import Keyring
from provenance.keys.schedule import GLOBAL_KEY, KeyName
from provenance.marks import OpenKey, Placebos
from provenance.marks.own import SCHEMES
from provenance.stats.tails import upper_tail
from provenance.storage.files import canonical_json

_RELATIVE: Final = 1e-8


@dataclass(frozen=True)
class ControlRecord:
    """A control as stated, and as recomputed (None: cannot be, from what the bundle holds)."""

    stated: Control
    recomputed: Control | None

    @property
    def best(self) -> Control:
        """What the conclusion is drawn from."""
        return self.recomputed or self.stated


def rebuild_controls(
    verdict: Verdict,
    hypotheses: Sequence[HypothesisResult],
    keyring: Keyring,
    weighing: Weighing | None,
    opened: Mapping[KeyName, OpenKey],
    placebos: Placebos | None,
) -> list[ControlRecord]:
    """Every control that the verdict must state, recomputed where pairs and keys allow it.

    Parameters
    ----------
    verdict : as stated
    hypotheses : of the verdict, recomputed
    keyring : public half
    weighing : pairs of the bundle, or None if they were left out
    opened : disclosed keys
    placebos : draws placebo keys; None if scores cannot be computed here

    Raises
    ------
    ValueError if a control is missing, misnamed, or contradicts itself.
    """
    for control in verdict.controls:
        _check_consistency(control)
    inputs, innocents = verdict.inputs, verdict.inputs["innocents"]
    served = [h.key for h in hypotheses]
    found: list[Control | None] = []
    names = _name_placebos(hypotheses)
    if weighing is not None and placebos is not None:
        found += run_placebos(weighing, hypotheses, placebos, inputs, keyring.id)
    else:
        found += [None] * len(names)
    if has_control_slot(keyring.schedule):
        names += ["control slot", "unserved values"]
        found += _rebuild_keyed(served, keyring, weighing, opened, placebos)
    if not verdict.is_old:
        # their pairs are not in the bundle, so these controls are taken as stated
        names += name_selection(inputs["outputs"]["reference"], list(innocents))
    if inputs["outputs"].get("asked"):  # the prompts are not in the bundle
        names.append("prompts")
    given = [control.name for control in verdict.controls]
    # innocents stand in the order of the command line, which sorted JSON does not keep
    rest = sorted(f"innocent {name}" for name in innocents)
    if given[: len(names)] != names or sorted(given[len(names) :]) != rest:
        raise ValueError(f"controls {given} where {names + rest} are due")
    found += [None] * (len(given) - len(found))
    return [
        ControlRecord(one, other and _take_words(one, other, is_old=verdict.is_old))
        for one, other in zip(verdict.controls, found, strict=True)
    ]


def _take_words(stated: Control, found: Control, *, is_old: bool) -> Control:
    """The recomputed control, in the stated words where they say what follows."""
    said = found.detail
    same = isinstance(said, Sentence) and said.allows(stated.detail)
    if same or means_the_same(stated, found, is_old=is_old):
        return replace(found, detail=stated.detail)
    return found


def _name_placebos(hypotheses: Sequence[HypothesisResult]) -> list[str]:
    headline = min(hypotheses, key=lambda h: (h.log10_adjusted, h.tail.log10_p), default=None)
    chosen = [h.name for h in hypotheses if h.key == GLOBAL_KEY]
    if headline is not None and headline.name not in chosen:
        chosen.append(headline.name)
    return [f"placebo keys ({name})" for name in chosen]


def _rebuild_keyed(
    served: Sequence[KeyName],
    keyring: Keyring,
    weighing: Weighing | None,
    opened: Mapping[KeyName, OpenKey],
    placebos: Placebos | None,
) -> list[Control | None]:
    """The control slot and the unserved values; each None unless all its keys are disclosed."""
    if weighing is None or placebos is None:
        return [None, None]
    unserved = list_unserved(keyring.schedule, served)
    has_served = len(weighing.control) == 0 or set(served) <= set(opened)
    has_unserved = set(unserved) <= set(opened)
    law = placebos.null_law
    return [
        control_slot(weighing.control, [opened[key] for key in served if key in opened], law)
        if has_served
        else None,
        control_unserved(weighing.pooled, [opened[key] for key in unserved], law)
        if has_unserved
        else None,
    ]


def _check_consistency(control: Control) -> None:
    """A control passes if and only if its p, corrected for its looks, is not below its level."""
    value = control.log10_p
    if value is None:
        holds = control.passed
    else:
        # placebo keys pass at the level itself, the others strictly above it: no p is that close
        holds = -math.inf < value <= 0 and control.passed == (value >= math.log10(LEVEL))
    if not holds:
        raise ValueError(
            f"the control {control.name} {'passed' if control.passed else 'failed'} at log10 p "
            f"{value}, level {LEVEL:g}"
        )


def rebuild_twins(stated: TwinsResult | None, alpha: float) -> TwinsResult | None:
    """The second line of evidence, recomputed from its class table, at its share of alpha."""
    if stated is None:
        return None
    tail = upper_tail(stated.table)
    return replace(
        stated,
        pairs=stated.table.coins,
        favour_served=sum(row.total for row in stated.table.classes),
        tail=tail,
        alpha=alpha,
        rejected=bool(tail.log10_p <= math.log10(alpha)),
    )


def rebuild_verdict(
    stated: Verdict,
    keyring: Keyring,
    hypotheses: Sequence[HypothesisResult],
    controls: Sequence[Control],
    plan: Plan | None,
    groups: Sequence[GroupResult] = (),
) -> Verdict:
    """The verdict that follows from recomputed parts, by the rules of the stated one.

    Inputs, versions, register, reservations and a foreign mark's caveat are as stated.
    """
    alpha = split_stated_alpha(stated)
    verdict = make_verdict(
        keyring,
        hypotheses,
        controls,
        alpha.keys,
        stated.inputs,
        twins=rebuild_twins(stated.twins, alpha.twins),
        plan=plan,
        reservations=stated.reservations,
        caveat="" if keyring.scheme.name in SCHEMES else stated.caveat,
        versions=stated.versions,
        register=stated.register,
        groups=groups,
    )
    if stated.shares and not any(share.method for share in stated.shares):  # of 0.1.0
        shares = older_shares(hypotheses, keyring.schedule, verdict.conclusion)
        verdict = replace(verdict, shares=shares)
    return restate(verdict) if stated.is_old else _take_power(stated, verdict, keyring)


def _take_power(stated: Verdict, verdict: Verdict, keyring: Keyring) -> Verdict:
    """With the stated power if it is the recomputed one, so that reasons print the same numbers."""
    power = stated.power
    if power is None or verdict.power is None or compare(asdict(power), asdict(verdict.power)):
        return verdict
    setting = Setting.of(keyring, verdict.weight_rule, verdict.inputs["outputs"])
    ruling = conclude(
        verdict.hypotheses,
        verdict.controls,
        verdict.inputs,
        power,
        setting,
        twins=verdict.twins,
        reservations=verdict.reservations,
        groups=verdict.groups,
    )
    return replace(verdict, power=power, reasons=ruling.reasons)


def compare(stated: Any, found: Any, path: str = "") -> str | None:
    """The first place where two JSON values differ, in words; None if they agree.

    Floats agree within 1e-8 (another machine may round differently); all else must be equal.
    """
    if path == "":  # tuples are lists in JSON
        stated, found = (json.loads(canonical_json(value)) for value in (stated, found))
    if isinstance(found, dict) and isinstance(stated, dict):
        if odd := sorted(set(stated) ^ set(found)):
            return f"{path or 'verdict'}: field {odd[0]} is missing or unknown"
        pairs = [(f"{path}.{name}".lstrip("."), stated[name], found[name]) for name in found]
    elif isinstance(found, list) and isinstance(stated, list):
        if len(stated) != len(found):
            return f"{path}: {len(stated)} entries stated, {len(found)} follow"
        pairs = [(f"{path}[{i}]", *both) for i, both in enumerate(zip(stated, found, strict=True))]
    else:
        same = _agree(stated, found)
        return None if same else f"{path}: stated {_short(stated)}, {_short(found)} follows"
    return next(filter(None, (compare(a, b, where) for where, a, b in pairs)), None)


def _agree(stated: Any, found: Any) -> bool:
    if isinstance(stated, float) and isinstance(found, float):
        return math.isclose(stated, found, rel_tol=_RELATIVE, abs_tol=_RELATIVE)
    return type(stated) is type(found) and bool(stated == found)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
