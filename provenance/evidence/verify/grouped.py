"""Steps on the groups of responses of a bundle: which pairs are theirs, scores and tables.

Part of the steps on pairs; each raises StepFailedError naming the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any, Final

import numpy as np

from provenance.check.findings import GroupKey
from provenance.check.pairs import CSV, read_pairs
from provenance.check.reading import VERDICT_FILE
from provenance.check.score import WeightedPairs, open_coins
from provenance.coins.contexts import name_contexts
from provenance.evidence.bundle import name_group_pairs
from provenance.evidence.steps import StepFailedError
from provenance.evidence.verify.state import State
from provenance.keys.schedule import GLOBAL_KEY
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable

_SIDES: Final = ("group", "others")


def check_stated_groups(state: State) -> None:
    """Every group of the inputs is tested with its complement, and no other."""
    due = [(name, side) for name in state.stated.inputs.get("groups", {}) for side in _SIDES]
    found = [tuple(key) for key in state.group_tables]
    if sorted(due) != sorted(found) or len(set(found)) != len(found):
        raise StepFailedError(
            VERDICT_FILE, f"groups must be the {len(due)} tests of the inputs; {len(found)} stand"
        )


def name_all_pairs(state: State) -> list[str]:
    """Names of the files of pairs of groups, without suffix."""
    return [name_group_pairs(number) for number in range(len(state.group_tables))]


def read_group_pairs(
    state: State, weighed: Mapping[Any, WeightedPairs], scores: Mapping[Any, Any]
) -> dict[GroupKey, WeightedPairs]:
    """Pairs per hypothesis on a group, which say what is in it.

    Raises StepFailedError if a context is exclusive to a group and to everybody else, or if a pair
    has another score here than under the global key, whose pair it is.
    """
    found: dict[GroupKey, WeightedPairs] = {}
    own: dict[GroupKey, Any] = {}
    whole = [(weighed[GLOBAL_KEY], scores[GLOBAL_KEY])] if GLOBAL_KEY in weighed else []
    for number, key in enumerate(state.group_tables):
        name = name_group_pairs(number)
        found[key], own[key] = read_pairs(
            state.folder, name, state.public.context_width, scored=True
        )
        if _contradict([*whole, (found[key], own[key])]):
            raise StepFailedError(name + CSV, "a pair must have its score of the global key")
    for first, second in pairwise(found):
        if first.group != second.group:
            continue
        names = [name_contexts(found[one].contexts) for one in (first, second)]
        both = np.intersect1d(names[0], names[1])
        if both.size:
            raise StepFailedError(
                VERDICT_FILE, f"{first}: contexts must be exclusive; {both.size} are on both sides"
            )
    state.group_scores = own
    return found


def check_group_scores(state: State, weighed: Mapping[GroupKey, WeightedPairs]) -> None:
    """The scores are those of the global key's coins, if it is disclosed."""
    opened = state.opened.get(GLOBAL_KEY)
    for number, (key, pairs) in enumerate(weighed.items() if opened is not None else ()):
        wrong = open_coins(pairs, opened).scores_of_pairs != state.group_scores[key]  # type: ignore[arg-type]
        if wrong.any():
            raise StepFailedError(
                name_group_pairs(number) + CSV,
                f"row {int(wrong.argmax()) + 1}: the score must be that of the key's coin",
            )


def check_group_tables(
    state: State, weighed: Mapping[GroupKey, WeightedPairs], law: NullLaw | None
) -> None:
    """Weights and scores add up to the class tables of the verdict."""
    for number, (key, pairs) in enumerate(weighed.items()):
        stated = state.group_tables[key]
        laws = {row.law for row in stated.classes} or {law or NullLaw((1,))}
        used = law or next(iter(laws))
        found = ClassTable.from_scores(pairs.weights, state.group_scores[key], used)
        if found != stated:
            raise StepFailedError(
                name_group_pairs(number) + CSV,
                f"must add up to the table of {key} (statistic {stated.statistic}); gives "
                f"{found.statistic}",
            )


def _contradict(parts: Sequence[tuple[WeightedPairs, Any]]) -> bool:
    """Whether a pair has two scores."""
    rows = [np.column_stack([pairs.contexts, pairs.tokens]) for pairs, _ in parts]
    _, which = np.unique(np.concatenate(rows), axis=0, return_inverse=True)
    scores = np.concatenate([scores for _, scores in parts])
    order = np.argsort(which.ravel(), kind="stable")
    same = np.diff(which.ravel()[order]) == 0
    return bool((np.diff(scores[order])[same] != 0).any())
