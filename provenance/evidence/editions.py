"""The two forms that a verdict.json may have, and what a reader has to know of the older one.

Version 2 states `reasons`, `reservations` and `found_by`, concludes from both lines of evidence at
once, and has the whole alpha in its settings. Version 1 said `nothing scored` and `invalid` for
`inconclusive`, drew its conclusion from the keys alone, and had the keys' part of alpha in its
settings. A verdict of version 1 is verified by the rules of version 1: what was concluded then is
compared with what had to be concluded then. Knows the JSON of a verdict; no files.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from provenance.check.examine import CheckSettings
from provenance.check.verdict import OLD_SCHEMA_VERSION, SCHEMA_VERSION, Reservation, Verdict
from provenance.keys.schedule import GLOBAL_KEY
from provenance.marks.alpha import AlphaSplit, split_alpha

_ADDED = ("reasons", "reservations", "found_by")


def is_old(document: Mapping[str, Any]) -> bool:
    """True for version 1. Raises ValueError for a version that this release cannot read."""
    version = document["schema_version"]
    if version not in (OLD_SCHEMA_VERSION, SCHEMA_VERSION) or isinstance(version, bool):
        raise ValueError(f"a verdict of schema {OLD_SCHEMA_VERSION} or {SCHEMA_VERSION}")
    return bool(version == OLD_SCHEMA_VERSION)


def read_settings(document: Mapping[str, Any]) -> CheckSettings:
    """Settings of a verdict, in their domain. Raises UsageError, TypeError, KeyError, ValueError"""
    settings = CheckSettings(**document["inputs"]["settings"])
    if settings.rule is None:
        raise ValueError("settings without a weight rule")
    return settings


def split_stated_alpha(document: Mapping[str, Any]) -> AlphaSplit:
    """How this verdict shared alpha out among keys and twins. Raises what `read_settings` does."""
    settings, twins = read_settings(document), document["twins"]
    if not is_old(document):
        return split_alpha(settings.alpha, twins=twins is not None)
    own = 0.0 if twins is None else float(twins["alpha"])
    if twins is not None and not 0 < own <= settings.alpha:
        raise ValueError("a share of alpha of the twins that is none")
    return AlphaSplit(settings.alpha, own)


def read_planned_settings(document: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as a plan states them: with the alpha of all lines of evidence together."""
    settings = dict(document["inputs"]["settings"])
    if is_old(document) and document["twins"] is not None:
        settings["alpha"] = 2 * float(settings["alpha"])
    return settings


def read_reservations(document: Mapping[str, Any]) -> tuple[Reservation, ...]:
    """What the verdict says is held against a conclusion. Raises TypeError, ValueError, KeyError"""
    if is_old(document):
        return ()
    found = tuple(Reservation(**row) for row in document["reservations"])
    for one in found:
        if not isinstance(one.reason, str) or not one.reason:
            raise ValueError("a reservation without a reason")
        if one.against not in ("evidence", "no evidence", "both"):
            raise ValueError(f"a reservation against {one.against}")
    return found


def write_edition(verdict: Verdict, *, old: bool) -> dict[str, Any]:
    """The JSON form of a verdict in version 2, or in version 1 by the rules of version 1."""
    document = verdict.to_json()
    if not old:
        return document
    by_keys = any(result.rejected for result in verdict.hypotheses)
    by_twins = verdict.twins is not None and verdict.twins.rejected
    if not any(result.tail.coins for result in verdict.hypotheses):
        conclusion = "nothing scored"
    elif not verdict.controls_passed:
        conclusion = "invalid"
    else:
        conclusion = "evidence" if by_keys else "no evidence"
    has_power = verdict.power is not None and verdict.power.key == str(GLOBAL_KEY)
    return {
        **{name: value for name, value in document.items() if name not in _ADDED},
        "schema_version": OLD_SCHEMA_VERSION,
        "conclusion": conclusion,
        "found_evidence": conclusion == "evidence" or (by_twins and verdict.controls_passed),
        "power": document["power"] if has_power else None,
    }
