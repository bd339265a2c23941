"""What verdicts of earlier versions say in other words or by other rules, so that they verify.

Only what a verdict of that time states: nothing here is used to make a verdict.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from provenance.check.conclusion import find_reference
from provenance.check.verdict import Conclusion, Control, HypothesisResult, Share
from provenance.keys.schedule import GLOBAL, Schedule
from provenance.stats.families import fieller_shares

_NOTHING_TESTED: Final[Mapping[str, str]] = {
    "control slot": "no context of the control slot was scored",
    "unserved values": "the keyring has no unserved value",
}
"""Of 0.1.0, for any reason for which a control had nothing to test."""


def accept_older_wording(stated: Control, found: Control | None) -> Control | None:
    """The recomputed control in the words of the stated one, if it tests nothing and they are old.

    Only the words are taken over: whether it passed, and that there is no p, is as recomputed.
    """
    if found is None or found.log10_p is not None or not found.passed:
        return found
    old = _NOTHING_TESTED.get(found.name)
    return replace(found, detail=old) if old is not None and stated.detail == old else found


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
