"""observe -> weigh -> score -> tail -> control -> attribute.

The test of one suspect from what was observed of it, a pure function of its inputs: the same
inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from provenance.check.conclusion import make_verdict
from provenance.check.controls import (
    control_innocents,
    control_placebo,
    control_prompts,
    control_slot,
    control_unserved,
    list_unserved,
)
from provenance.check.findings import (
    Control,
    GroupKey,
    GroupResult,
    HypothesisResult,
    Reservation,
)
from provenance.check.groups import describe_groups, weigh_groups
from provenance.check.inputs import describe_inputs, describe_versions
from provenance.check.plan import Plan
from provenance.check.registered import Registered
from provenance.check.score import Coins, Weighing, open_coins, weigh_observations
from provenance.check.selection import control_selection, weigh_selection
from provenance.check.twin_test import MeasuredTwins
from provenance.check.verdict import Verdict
from provenance.check.weigh import DEFAULT_RULE, RETIRED, RULES, choose_rule, refuse_retired
from provenance.errors import UsageError
from provenance.keys.keyring import UnlockedKeyring
from provenance.keys.schedule import CONTROL, GLOBAL_KEY, KeyName, Schedule
from provenance.marks import Mark, Placebos, as_mark
from provenance.marks.alpha import family_weights, split_alpha
from provenance.served.group_index import GroupIndex
from provenance.served.index import Index
from provenance.stats.families import find_smallest, weighted_holm
from provenance.stats.tables import ClassTable
from provenance.stats.tails import upper_tail
from provenance.storage.files import canonical_json
from provenance.suspect.observations import Observations

_Key = TypeVar("_Key")
Announce = Callable[[Mapping[str, Any]], Registered | None]
"""Told the inputs of a check; says what the register counts, if there is one."""


@dataclass(frozen=True)
class CheckSettings:
    """What is fixed before the outputs are seen.

    Attributes
    ----------
    alpha : error rate over all lines of evidence and keys of the check (of this look, if there are
        several); `provenance.marks.alpha.split_alpha` shares it out
    rule : weight rule, a name of `weigh.RULES`; None: that of the plan, or the one that
        `provenance.check.weigh.choose_rule` takes for what was observed
    placebo_keys : number of random keys of the placebo control
    """

    alpha: float = 1e-4
    rule: str | None = None
    placebo_keys: int = 400

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 0.05:
            raise UsageError(f"alpha must be in (0, 0.05]; got {self.alpha}. Use 1e-4.")
        if self.rule is not None and self.rule not in {**RULES, **RETIRED}:
            raise UsageError(f"weight rule must be one of {', '.join(RULES)}; got {self.rule}.")
        if not 50 <= self.placebo_keys <= 100_000:
            raise UsageError(
                f"placebo keys must be 50 .. 100000; got {self.placebo_keys}. Use 400."
            )


@dataclass(frozen=True)
class Examination:
    """A verdict beside what it was computed from, for evidence that can be recomputed.

    Attributes
    ----------
    verdict : the result
    weighing : all weighted pairs
    coins, group_coins : weight and score of every coin per (slot, value), and per hypothesis on a
        group
    """

    verdict: Verdict
    weighing: Weighing
    coins: Mapping[KeyName, Coins]
    group_coins: Mapping[GroupKey, Coins] = field(default_factory=dict)

    @property
    def scores(self) -> Mapping[KeyName, NDArray[np.int64]]:
        """int64 [n] per (slot, value), in the order of `weighing.hypotheses[slot, value]`.

        Where several pairs share a coin, each of them has its score.
        """
        return {key: found.scores_of_pairs for key, found in self.coins.items()}

    @property
    def units(self) -> Mapping[KeyName, NDArray[np.int64]]:
        """Number of the coin of each pair, see `score.Coins`; only of marks that share coins."""
        return {
            key: found.numbers for key, found in self.coins.items() if found.numbers is not None
        }


def check_outputs(
    observations: Observations,
    index: Index,
    keyring: UnlockedKeyring | Mark,
    settings: CheckSettings = CheckSettings(),
    innocents: Mapping[str, Observations] | None = None,
    plan: Plan | None = None,
    twins: MeasuredTwins | None = None,
    reservations: Sequence[Reservation] = (),
) -> Verdict:
    """Was the model behind these outputs trained on the marked responses of this index?

    Parameters
    ----------
    observations : of the suspect's outputs (`access.outputs`), or of its weights or
        logprobs (`provenance.suspect.access.probabilities`)
    index : the marked responses, opened with the same keyring
    keyring : unlocked, or another mark (`provenance.marks.foreign.mark`)
    settings : alpha, weight rule, number of placebo keys; fixed before the outputs are seen
    innocents : outputs of models that cannot have been trained on the log, by name
    plan : the analysis plan; without one the verdict is exploratory
    twins : the second line of evidence, measured (`twin_test.measure_twins`); it takes half
        of alpha
    reservations : what is known of the inputs and forbids a conclusion

    Returns
    -------
    Verdict. H0 of each key: the suspect's choices are independent of the key's coins, given the
    weights. Exact with fixed weights; see docs/validity.md for the index's first-occurrence counts.

    Raises
    ------
    ConfigurationMismatchError (78), before any key is opened, if the check is not the planned one.

    Notes
    -----
    Cost: about 45 ns per pair and key, times the placebo keys twice; memory about 100 bytes a pair.
    """
    return examine_outputs(
        observations, index, keyring, settings, innocents, plan, twins, reservations
    ).verdict


def examine_outputs(
    observations: Observations,
    index: Index,
    keyring: UnlockedKeyring | Mark,
    settings: CheckSettings = CheckSettings(),
    innocents: Mapping[str, Observations] | None = None,
    plan: Plan | None = None,
    twins: MeasuredTwins | None = None,
    reservations: Sequence[Reservation] = (),
    announce: Announce | None = None,
    groups: Mapping[str, GroupIndex] | None = None,
) -> Examination:
    """`check_outputs`, with the weighted pairs and their scores beside the verdict.

    `announce` is told the inputs before a key is opened, and returns what a register says of them.
    `groups` are groups of responses by name, each tested with its complement.
    """
    groups = groups or {}
    innocents = innocents or {}
    mark = as_mark(keyring)
    if mark.shares_coins:
        index = index.with_equal_counts()
    settings = replace(settings, rule=_choose_rule(settings, observations, plan))
    alpha = split_alpha(settings.alpha, twins=twins is not None)
    weighing = _weigh(observations, index, groups, mark, str(settings.rule))
    inputs = describe_inputs(observations, index, innocents, asdict(settings))
    inputs |= {"contexts_met": weighing.contexts_met, **describe_groups(groups, weighing.groups)}
    if plan is not None:
        index.verify()  # the plan names the hash of all rows, not only of those that are used
        plan.require(mark.public, list(weighing.hypotheses), inputs, twins=twins is not None)
    selection = weigh_selection(observations, index, mark)
    beside = {name: weigh_selection(found, index, mark) for name, found in innocents.items()}
    register = announce(inputs) if announce is not None else None
    coins, group_coins = _open_all(weighing, mark), _open_groups(weighing, mark)
    hypotheses, grouped = try_family(
        _tabulate(coins, mark), _tabulate(group_coins, mark), alpha.keys
    )
    tested = {
        name: _try_other(found, index, groups, mark, settings) for name, found in innocents.items()
    }
    inputs["innocent_keys"] = {name: found.keys for name, found in tested.items()}
    controls = run_placebos(weighing, hypotheses, mark, inputs, mark.public.id)
    controls += _control_keys(weighing, mark)
    controls += control_selection(selection, mark, observations.reference, beside)
    if observations.asked is not None:
        plain = replace(settings, rule=DEFAULT_RULE)  # no reference said what was expected of them
        found = _try_other(observations.asked, index, groups, mark, plain)
        controls.append(control_prompts(inputs["outputs"]["asked"], found.log10_p))
    controls += control_innocents(list(innocents), lambda i: list(tested.values())[i].log10_p)
    verdict = make_verdict(
        mark.public,
        hypotheses,
        controls,
        alpha.keys,
        inputs,
        twins=twins.judge(alpha.twins) if twins is not None else None,
        plan=plan,
        reservations=reservations,
        caveat=say_caveat(mark),
        versions=describe_versions(),
        register=register,
        groups=grouped,
    )
    return Examination(verdict, weighing, coins, group_coins)


def _choose_rule(settings: CheckSettings, observations: Observations, plan: Plan | None) -> str:
    """The one that was asked for, or that of the plan, or what the observations call for."""
    if settings.rule is not None:
        return refuse_retired(settings.rule)
    if plan is not None:
        return refuse_retired(str(plan.document["weight_rule"]))
    return choose_rule(sampled=observations.sampled, has_reference=bool(observations.reference))


def _weigh(
    observations: Observations,
    index: Index,
    groups: Mapping[str, GroupIndex],
    mark: Mark,
    rule: str,
) -> Weighing:
    """All pairs of a check, those of its groups too; no key is opened."""
    weighing = weigh_observations(observations, index, mark, rule)
    return replace(weighing, groups=weigh_groups(observations, index, groups, mark, rule))


def _open_all(weighing: Weighing, mark: Mark) -> dict[KeyName, Coins]:
    """Only here and in `_open_groups` are the keys opened."""
    return {key: open_coins(pairs, mark.open(*key)) for key, pairs in weighing.hypotheses.items()}


def _open_groups(weighing: Weighing, mark: Mark) -> dict[GroupKey, Coins]:
    """Coins of the global key, for every hypothesis on a group."""
    return {
        key: open_coins(pairs, mark.open(*GLOBAL_KEY)) for key, pairs in weighing.groups.items()
    }


def _tabulate(coins: Mapping[_Key, Coins], mark: Mark) -> dict[_Key, ClassTable]:
    return {
        key: ClassTable.from_scores(found.weights, found.scores, mark.null_law)
        for key, found in coins.items()
    }


def try_keys(tables: Mapping[KeyName, ClassTable], alpha: float) -> tuple[HypothesisResult, ...]:
    """Tails of all keys and weighted Holm over them.

    Parameters: the class table per (slot, value); alpha of the family. Returns one result per
    table, in its order. Cost: one exact tail a key.
    """
    return try_family(tables, {}, alpha)[0]


def try_family(
    tables: Mapping[KeyName, ClassTable], groups: Mapping[GroupKey, ClassTable], alpha: float
) -> tuple[tuple[HypothesisResult, ...], tuple[GroupResult, ...]]:
    """The same with hypotheses on groups of responses in the family: every group counts."""
    if not tables:
        return (), ()
    weights = family_weights(list(tables), len(groups))
    tails = [upper_tail(table) for table in (*tables.values(), *groups.values())]
    adjusted = weighted_holm(np.array([tail.log10_p for tail in tails]), weights)
    rejected = adjusted <= np.log10(alpha)
    keys = tuple(
        HypothesisResult(
            slot=slot,
            value=value,
            family_weight=float(weights[i]),
            tail=tails[i],
            log10_adjusted=float(adjusted[i]),
            rejected=bool(rejected[i]),
            table=table,
        )
        for i, ((slot, value), table) in enumerate(tables.items())
    )
    return keys, tuple(
        GroupResult(
            group=key.group,
            side=key.side,
            family_weight=float(weights[i]),
            tail=tails[i],
            log10_adjusted=float(adjusted[i]),
            rejected=bool(rejected[i]),
            table=table,
        )
        for i, (key, table) in enumerate(groups.items(), start=len(tables))
    )


@dataclass(frozen=True)
class _Tried:
    """The family on other text: coins and z of each key by name, and the smallest adjusted p."""

    keys: Mapping[str, Mapping[str, Any]]
    log10_p: float


def _try_other(
    observations: Observations,
    index: Index,
    groups: Mapping[str, GroupIndex],
    mark: Mark,
    settings: CheckSettings,
) -> _Tried:
    """The family on text of an innocent model, or on what the suspect was shown."""
    weighing = _weigh(observations, index, groups, mark, str(settings.rule))
    keys = _tabulate(_open_all(weighing, mark), mark)
    grouped = _tabulate(_open_groups(weighing, mark), mark)
    tables = [*keys.values(), *grouped.values()]
    smallest = find_smallest(tables, family_weights(list(keys), len(grouped)))
    names = map(str, (*keys, *grouped))
    found = {name: {"coins": t.coins, "z": t.z} for name, t in zip(names, tables, strict=True)}
    return _Tried(found, smallest)


def run_placebos(
    weighing: Weighing,
    hypotheses: Sequence[HypothesisResult],
    mark: Placebos,
    inputs: Mapping[str, Any],
    keyring_id: str,
) -> list[Control]:
    """Placebo keys on the global key's pairs and on the headline's.

    The keys are a function of `inputs`, so whoever has the pairs repeats this control exactly.
    """
    seed = hashlib.sha256(canonical_json([dict(inputs), keyring_id])).digest()
    headline = min(hypotheses, key=lambda h: (h.log10_adjusted, h.tail.log10_p), default=None)
    found = {h.key: h for h in hypotheses}
    chosen = [key for key in [GLOBAL_KEY] if key in found]
    if headline and headline.key not in chosen:
        chosen.append(headline.key)
    return [
        control_placebo(
            weighing.hypotheses[key],
            found[key].name,
            found[key].table,
            mark,
            int(inputs["settings"]["placebo_keys"]),
            seed,
        )
        for key in chosen
    ]


def _control_keys(weighing: Weighing, mark: Mark) -> list[Control]:
    """The controls that need keys: the control slot, and keys that never marked a response.

    None for a mark without a control slot: others' schemes mark every context under one key.
    """
    if not has_control_slot(mark.schedule):
        return []
    served = list(weighing.hypotheses)
    unserved = list_unserved(mark.schedule, served)
    return [
        control_slot(weighing.control, [mark.open(*key) for key in served], mark.null_law),
        control_unserved(weighing.pooled, [mark.open(*key) for key in unserved], mark.null_law),
    ]


def say_caveat(mark: Mark) -> str:
    """What makes the check weaker: the mark's own caveat, and which controls there cannot be."""
    said = [mark.caveat] if mark.caveat else []
    if not has_control_slot(mark.schedule):
        said.append("the mark has no control slot and no unserved values to control the check with")
    return "; ".join(said)


def has_control_slot(schedule: Schedule) -> bool:
    """False for other people's schemes, which mark every context under one key."""
    return schedule.slot(CONTROL).share_words > 0
