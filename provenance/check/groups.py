"""Groups of responses chosen afterwards: what only they got, and what only everybody else got.

Two hypotheses a group, both under the global key, on contexts that only one side *saw*: in no
response and no prompt of the other side do they stand. For a suspect that was trained on one side
alone, however strongly, the coins of the other side's exclusive contexts are as unknown as to an
innocent model. Three conditions carry that (docs/groups.md): whoever saw a context excludes it; the
group was chosen by what was known before its responses were drawn; the log is complete. Weighs, and
opens no key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from provenance.check.findings import GroupKey, GroupResult, Reservation
from provenance.check.plan import COMMITTED_OF_GROUP
from provenance.check.score import WeightedPairs, expand_pairs
from provenance.errors import ConfigurationMismatchError
from provenance.keys.schedule import GLOBAL
from provenance.marks import Served
from provenance.served.group_index import GroupIndex
from provenance.served.index import Index
from provenance.suspect.observations import Observations


def weigh_groups(
    observations: Observations,
    index: Index,
    groups: Mapping[str, GroupIndex],
    keyring: Served,
    rule: str,
) -> dict[GroupKey, WeightedPairs]:
    """Pairs of both hypotheses of every group, weighed by how often that side reached a context.

    Parameters: as of `weigh_observations`; the groups by name. Raises ConfigurationMismatchError if
    group and index count a context differently, which those of one log and release never do. Cost:
    that of the global key's look-up, twice a group.
    """
    if not groups:
        return {}
    contexts, starts = np.unique(observations.contexts, return_index=True)
    stops = np.append(starts[1:], observations.contexts.shape[0])
    number = keyring.schedule.names.index(GLOBAL)
    own = np.flatnonzero(keyring.slots_of_names(contexts) == number)
    matches = index.lookup(number, contexts[own])
    served = np.zeros(own.shape[0], dtype=np.int64)
    served[matches.query] = matches.responses
    found: dict[GroupKey, WeightedPairs] = {}
    for name, group in groups.items():
        seen = group.look_up(contexts[own])
        exclusive = seen.exclusive
        if not np.array_equal(seen.reached[exclusive], served[exclusive]):
            raise ConfigurationMismatchError(
                f"group {name}: must count what is exclusive to it as the index does; it does not. "
                "Build index and group with the same release, from the same files."
            )
        sides = {
            GroupKey(name, "group"): (exclusive, seen.reached),
            GroupKey(name, "others"): ((served > 0) & (seen.seen == 0), served),
        }
        for key, (some, counts) in sides.items():
            found[key] = expand_pairs(
                observations, keyring, starts, stops, own[some], counts[some], rule
            )
    return found


def describe_groups(
    groups: Mapping[str, GroupIndex], pairs: Mapping[GroupKey, WeightedPairs]
) -> dict[str, Any]:
    """What a verdict says of every group that was tried: hashes and counts; JSON-able.

    In a field `groups` of its own; without groups there is none.
    """
    found = {
        name: {
            **{one: getattr(group.manifest, one) for one in COMMITTED_OF_GROUP},
            **{
                one: getattr(group.manifest, one)
                for one in (
                    *("values", "values_met", "responses", "marked_responses", "others"),
                    *("without_prompt", "others_without_prompt", "reached", "exclusive"),
                )
            },
            "contexts_met": {
                key.side: int(np.unique(found.contexts, axis=0).shape[0])
                for key, found in pairs.items()
                if key.group == name
            },
            "coins": {key.side: len(found) for key, found in pairs.items() if key.group == name},
        }
        for name, group in groups.items()
    }
    return {"groups": found} if found else {}


def doubt_groups(
    results: Sequence[GroupResult],
    inputs: Mapping[str, Any],
    reservations: Sequence[Reservation],
) -> tuple[GroupResult, ...]:
    """The results, each with what forbids to name its responses, if anything does.

    Parameters: results; `Verdict.inputs`; reservations of the check. What is held against evidence
    as such is held against naming a group even where an innocent model lifts it: the innocent was
    not compared on the contexts of the group.
    """
    against = [one.reason for one in reservations if one.against in ("evidence", "both")]
    return tuple(replace(one, doubt=_find_doubt(one, inputs, against)) for one in results)


def _find_doubt(one: GroupResult, inputs: Mapping[str, Any], against: Sequence[str]) -> str:
    facts = inputs["groups"][one.group]
    who = "others" if one.side == "group" else "group"  # they must not have seen it
    unknown = int(facts["others_without_prompt" if who == "others" else "without_prompt"])
    if unknown:
        return (
            f"{unknown:,} responses of the {who} do not say what their prompt was, so that text "
            "may have been seen there"
        )
    return against[0] if against else ""
