"""What older verdicts say by other rules or in other words, so that they still verify.

Version 2 of the form concludes from both lines of evidence at once and has the whole alpha in its
settings. Version 1 concluded from the keys alone and had the keys' part of alpha there; its verdict
is verified by the rules of version 1. Both are read by `provenance.check.reading`; nothing here is
used to make a verdict.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np

from provenance.check.conclusion import find_reference
from provenance.check.examine import CheckSettings
from provenance.check.findings import Conclusion, Control, HypothesisResult, Share
from provenance.check.verdict import OLD_SCHEMA_VERSION, Verdict, conclude_as_version_1
from provenance.keys.schedule import GLOBAL, GLOBAL_KEY, Schedule
from provenance.marks.alpha import AlphaSplit, split_alpha
from provenance.stats.families import fieller_shares

_NUMBER: Final = re.compile(r"[-+]?\d+(?:\.\d+)?(?:e[-+]?\d+)?")
_NOTHING_TESTED: Final[Mapping[str, str]] = {
    "control slot": "no context of the control slot was scored",
    "unserved values": "the keyring has no unserved value",
}
"""Of 0.1.0, for any reason for which a control had nothing to test."""


def restate(verdict: Verdict) -> Verdict:
    """The same numbers as version 1 stated them."""
    has_power = verdict.power is not None and verdict.power.key == str(GLOBAL_KEY)
    return replace(
        verdict,
        schema_version=OLD_SCHEMA_VERSION,
        conclusion=conclude_as_version_1(verdict),
        reasons=(),
        reservations=(),
        power=verdict.power if has_power else None,
    )


def read_settings(verdict: Verdict) -> CheckSettings:
    """Settings of a verdict, in their domain. Raises UsageError, TypeError, KeyError, ValueError"""
    settings = CheckSettings(**verdict.inputs["settings"])
    if settings.rule is None:
        raise ValueError("settings without a weight rule")
    return settings


def split_stated_alpha(verdict: Verdict) -> AlphaSplit:
    """How this verdict shared alpha out among keys and twins. Raises what `read_settings` does."""
    settings, twins = read_settings(verdict), verdict.twins
    if not verdict.is_old:
        return split_alpha(settings.alpha, twins=twins is not None)
    own = 0.0 if twins is None else twins.alpha
    if twins is not None and not 0 < own <= settings.alpha:
        raise ValueError("a share of alpha of the twins that is none")
    return AlphaSplit(settings.alpha, own)


def read_planned_settings(verdict: Verdict) -> dict[str, Any]:
    """Settings as a plan states them: with the alpha of all lines of evidence together."""
    settings = dict(verdict.inputs["settings"])
    if verdict.is_old and verdict.twins is not None:
        settings["alpha"] = 2 * float(settings["alpha"])
    return settings


def means_the_same(stated: Control, found: Control, *, is_old: bool) -> bool:
    """Whether a control states in older words what follows.

    A control that tests nothing said so in one way. In version 1 alone, numbers inside the sentence
    may differ in their last printed digit: it was recomputed on other machines than it was made on.
    """
    if found.log10_p is None and found.passed:
        return stated.detail == _NOTHING_TESTED.get(found.name)
    one, other = _NUMBER.split(stated.detail), _NUMBER.split(found.detail)
    numbers = zip(_NUMBER.findall(stated.detail), _NUMBER.findall(found.detail), strict=False)
    return is_old and one == other and all(_is_close(a, b) for a, b in numbers)


def _is_close(one: str, other: str) -> bool:
    return abs(float(one) - float(other)) <= max(map(_last_digit, (one, other))) * 1.001


def _last_digit(number: str) -> float:
    """Worth of the last printed digit; 0 for an integer, which has to be equal."""
    mantissa, _, exponent = number.partition("e")
    _, point, decimals = mantissa.partition(".")
    return 10.0 ** (int(exponent or 0) - len(decimals)) if point or exponent else 0.0


def older_shares(
    hypotheses: Sequence[HypothesisResult], schedule: Schedule, conclusion: Conclusion
) -> tuple[Share, ...]:
    """Shares of version 0.1.0, whose rows name no method: limits for each slot by itself."""
    reference = find_reference(hypotheses, conclusion)
    if reference is None:
        return ()
    shares: list[Share] = []
    for slot in schedule.slots[2:]:
        own = [h for h in hypotheses if h.slot == slot.name]
        if not own:
            continue
        found = fieller_shares(
            np.array([h.tail.z for h in own]),
            reference.tail.z,
            slot.share,
            schedule.slot(GLOBAL).share,
        )
        shares += [
            Share(slot.name, h.value, float(estimate), float(lower), float(upper))
            for h, estimate, lower, upper in zip(
                own, found.estimate, found.lower, found.upper, strict=True
            )
        ]
    return tuple(shares)
