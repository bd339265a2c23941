"""What could not be read of a suspect, in words: with gaps, nothing found is no clean bill.

A record that is misread, or whose tokens end elsewhere than the served ones, loses the positions at
which a guilty suspect would show. Knows the facts that observations carry; knows no key.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

LEAST_READ: Final = 0.9
"""Share of positions, of their probability and of records that must be read for a clean bill."""


def say_gaps(source: Mapping[str, Any]) -> tuple[str, ...]:
    """Why `no evidence` would say too much of what was read; one reason per gap.

    Parameters: `Observations.source`. Only logprobs of an API have such gaps: outputs are read as
    text, and of weights every position that can be read is named by its power.

    Examples
    --------
    >>> facts = {"records": 10.0, "records_silent": 0.0, "positions": 200.0, "positions_kept": 0.6,
    ...          "positions_cut": 80.0, "positions_unlisted": 0.0, "mass_kept": 0.8,
    ...          "mass_listed": 0.8}
    >>> [reason] = say_gaps({"access": "logprobs", **facts})
    >>> reason.partition(" (")[0]
    'only 60% of 200 positions could be read'
    """
    if source.get("access") != "logprobs" or "mass_listed" not in source:
        return ()
    reasons = []
    if source["positions_kept"] < LEAST_READ:
        reasons.append(
            f"only {source['positions_kept']:.0%} of {source['positions']:.0f} positions could be "
            f"read ({source['positions_cut']:.0f} where the API ends its tokens elsewhere, "
            f"{source['positions_unlisted']:.0f} unlisted)"
        )
    if source["mass_kept"] < LEAST_READ * source["mass_listed"]:
        reasons.append(
            f"only {source['mass_kept'] / source['mass_listed']:.0%} of the listed probability is "
            "on tokens that the served model has"
        )
    if source["records"] - source["records_silent"] < LEAST_READ * source["records"]:
        reasons.append(
            f"{source['records_silent']:.0f} of {source['records']:.0f} records hold no answer "
            "(refusals or calls of tools)"
        )
    return tuple(reasons)
