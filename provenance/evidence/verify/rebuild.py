"""Make a verdict again from its class tables, pairs and keys, and compare it with what is stated.

Whatever the bundle allows is computed anew, by the same functions that made the verdict; what it
does not allow is taken as stated and checked for consistency only. `ControlRecord` says which is
which. Knows the JSON of a verdict; no files.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from provenance.check.conclusion import make_verdict
from provenance.check.controls import LEVEL, control_slot, control_unserved, list_unserved
from provenance.check.examine import has_control_slot, run_placebos
from provenance.check.plan import Plan
from provenance.check.score import Weighing
from provenance.check.selection import name_selection
from provenance.check.verdict import Control, HypothesisResult, TwinsResult
from provenance.evidence.editions import (
    is_old,
    read_reservations,
    split_stated_alpha,
    write_edition,
)
from provenance.evidence.older import accept_older_wording, older_shares
from provenance.keys.keyring import Keyring
from provenance.keys.schedule import GLOBAL_KEY, KeyName
from provenance.marks import OpenKey, Placebos
from provenance.marks.own import SCHEMES
from provenance.stats.tables import ClassTable
from provenance.stats.tails import upper_tail
from provenance.storage.files import canonical_json

_RELATIVE: Final = 1e-8
_TEXT: Final = re.compile(r"(?:^|\.)(?:detail|reasons\[\d+\])$")
_NUMBER: Final = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")


@dataclass(frozen=True)
class ControlRecord:
    """A control as stated, and as recomputed (None: cannot be, from what the bundle holds)."""

    stated: Control
    recomputed: Control | None

    @property
    def best(self) -> Control:
        """What the conclusion is drawn from."""
        return self.recomputed or self.stated


def read_tables(document: Mapping[str, Any]) -> dict[KeyName, ClassTable]:
    """Class table per (slot, value), in the verdict's order. Raises DataError, ValueError."""
    tables: dict[KeyName, ClassTable] = {}
    for row in document["hypotheses"]:
        key = KeyName(row["slot"], row["value"])
        if key in tables:
            raise ValueError(f"the key {key} twice")
        tables[key] = ClassTable.from_json(row["table"])
    return tables


def rebuild_controls(
    document: Mapping[str, Any],
    hypotheses: Sequence[HypothesisResult],
    keyring: Keyring,
    weighing: Weighing | None,
    opened: Mapping[KeyName, OpenKey],
    placebos: Placebos | None,
) -> list[ControlRecord]:
    """Every control that the verdict must state, recomputed where pairs and keys allow it.

    Parameters
    ----------
    document : the stated verdict
    hypotheses : of the verdict, recomputed
    keyring : public half
    weighing : pairs of the bundle, or None if they were left out
    opened : disclosed keys
    placebos : draws placebo keys; None if scores cannot be computed here

    Raises
    ------
    ValueError if a control is missing, misnamed, or contradicts itself.
    """
    stated = [Control.from_json(row) for row in document["controls"]]
    for control in stated:
        _check_consistency(control)
    served = [h.key for h in hypotheses]
    found: list[Control | None] = []
    names = _name_placebos(hypotheses)
    if weighing is not None and placebos is not None:
        found += run_placebos(weighing, hypotheses, placebos, document["inputs"], keyring.id)
    else:
        found += [None] * len(names)
    if has_control_slot(keyring.schedule):
        names += ["control slot", "unserved values"]
        found += _rebuild_keyed(served, keyring, weighing, opened, placebos)
    if not is_old(document):
        # their pairs are not in the bundle, so these controls are taken as stated
        inputs = document["inputs"]
        selection = name_selection(inputs["outputs"]["reference"], list(inputs["innocents"]))
        names += selection
        found += [None] * len(selection)
    if document["inputs"]["outputs"].get("asked"):  # the prompts are not in the bundle
        names.append("prompts")
        found.append(None)
    innocents = [f"innocent {name}" for name in document["inputs"]["innocents"]]
    given = [control.name for control in stated]
    # innocents stand in the order of the command line, which sorted JSON does not keep
    if given[: len(names)] != names or sorted(given[len(names) :]) != sorted(innocents):
        raise ValueError(f"controls {given} where {names + innocents} are due")
    found += [None] * len(innocents)
    return [
        ControlRecord(one, accept_older_wording(one, other))
        for one, other in zip(stated, found, strict=True)
    ]


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
        control_slot(weighing.control, [opened[pair] for pair in served if pair in opened], law)
        if has_served
        else None,
        control_unserved(weighing.pooled, [opened[pair] for pair in unserved], law)
        if has_unserved
        else None,
    ]


def _check_consistency(control: Control) -> None:
    """A control passes if and only if its p, corrected for its looks, is not below its level."""
    value = control.log10_p
    if type(control.passed) is not bool or not isinstance(control.detail, str):
        raise ValueError(f"the control {control.name} with a field of another type")
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


def rebuild_twins(stated: Mapping[str, Any] | None, alpha: float) -> TwinsResult | None:
    """The second line of evidence, recomputed from its class table, at its share of alpha."""
    if stated is None:
        return None
    table = ClassTable.from_json(stated["table"])
    tail = upper_tail(table)
    return TwinsResult(
        pairs=table.coins,
        favour_served=sum(row.total for row in table.classes),
        reused=stated["reused"],
        equal=stated["equal"],
        tail=tail,
        alpha=alpha,
        rejected=bool(tail.log10_p <= math.log10(alpha)),
        table=table,
        sha256=stated["sha256"],
        suspect=stated["suspect"],
        reference=stated["reference"],
    )


def rebuild_verdict(
    document: Mapping[str, Any],
    keyring: Keyring,
    hypotheses: Sequence[HypothesisResult],
    controls: Sequence[Control],
    plan: Plan | None,
) -> dict[str, Any]:
    """JSON of the verdict that follows from recomputed parts, in the form of the stated one.

    Inputs, versions, reservations and a foreign mark's caveat are as stated.
    """
    alpha = split_stated_alpha(document)
    verdict = make_verdict(
        keyring,
        hypotheses,
        controls,
        alpha.keys,
        document["inputs"],
        twins=rebuild_twins(document["twins"], alpha.twins),
        plan=plan,
        reservations=read_reservations(document),
        caveat="" if keyring.scheme.name in SCHEMES else str(document["caveat"]),
        versions=document["versions"],
    )
    stated = document["shares"]
    if stated and not any("method" in row for row in stated):  # of 0.1.0, by its construction
        shares = older_shares(hypotheses, keyring.schedule, verdict.conclusion)
        verdict = replace(verdict, shares=shares)
    return write_edition(verdict, old=is_old(document))


def compare(stated: Any, found: Any, path: str = "") -> str | None:
    """The first place where two JSON values differ, in words; None if they agree.

    Floats agree within 1e-8 (another machine may round differently), and so do numbers inside the
    text of a control's detail or of a reason, within their last printed digit; everything else must
    be equal.
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
        same = _agree(stated, found, is_text=_TEXT.search(path) is not None)
        return None if same else f"{path}: stated {_short(stated)}, {_short(found)} follows"
    return next(filter(None, (compare(a, b, where) for where, a, b in pairs)), None)


def _agree(stated: Any, found: Any, *, is_text: bool) -> bool:
    if type(stated) is not type(found):
        return False
    if isinstance(found, float):
        return math.isclose(stated, found, rel_tol=_RELATIVE, abs_tol=_RELATIVE)
    if is_text and stated != found and _NUMBER.split(stated) == _NUMBER.split(found):
        numbers = zip(_NUMBER.findall(stated), _NUMBER.findall(found), strict=True)
        return all(
            abs(float(a) - float(b)) <= max(_last_digit(a), _last_digit(b)) * 1.001
            for a, b in numbers
        )
    return bool(stated == found)


def _last_digit(number: str) -> float:
    """Worth of the last printed digit; 0 for an integer, which has to be equal."""
    mantissa, _, exponent = number.partition("e")
    _, point, decimals = mantissa.partition(".")
    return 10.0 ** (int(exponent or 0) - len(decimals)) if point or exponent else 0.0


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
