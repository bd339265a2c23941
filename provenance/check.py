"""observe -> weigh -> score -> tail -> control -> attribute.

The test of one suspect from what was observed of it, a pure function of its inputs: the same
inputs give the same bytes.
"""

from __future__ import annotations

import hashlib
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any, Final

import numpy as np

from provenance.controls import (
    control_innocents,
    control_placebo,
    control_slot,
    control_unserved,
)
from provenance.errors import UsageError
from provenance.families import family_weights
from provenance.files import canonical_json
from provenance.keys.keyring import UnlockedKeyring
from provenance.keys.schedule import CONTROL, GLOBAL, SINGLE_VALUE, key_name
from provenance.marks import Mark, as_mark
from provenance.scoring import Weighing, tabulate, weigh_observations
from provenance.served.index import Index
from provenance.stats.families import fieller_shares, weighted_holm
from provenance.stats.tables import ClassTable
from provenance.stats.tails import upper_tail
from provenance.suspect.observations import Observations
from provenance.verdict import Conclusion, Control, HypothesisResult, Share, Verdict
from provenance.weigh import DEFAULT_RULE, RULES

__all__ = ["CheckSettings", "check_outputs", "try_keys"]

_GLOBAL_KEY: Final = (GLOBAL, SINGLE_VALUE)


@dataclass(frozen=True)
class CheckSettings:
    """What is fixed before the outputs are seen.

    Attributes
    ----------
    alpha : family-wise error rate over all keys of the check
    rule : weight rule, a name of `provenance.weigh.RULES`
    placebo_keys : number of random keys of the placebo control
    """

    alpha: float = 1e-4
    rule: str = DEFAULT_RULE
    placebo_keys: int = 400

    def __post_init__(self) -> None:
        if not 0 < self.alpha <= 0.05:
            raise UsageError(f"alpha must be in (0, 0.05]; got {self.alpha}. Use 1e-4.")
        if self.rule not in RULES:
            raise UsageError(f"weight rule must be one of {', '.join(RULES)}; got {self.rule}.")
        if not 50 <= self.placebo_keys <= 100_000:
            raise UsageError(
                f"placebo keys must be 50 .. 100000; got {self.placebo_keys}. Use 400."
            )


def check_outputs(
    observations: Observations,
    index: Index,
    keyring: UnlockedKeyring | Mark,
    settings: CheckSettings = CheckSettings(),
    innocents: Mapping[str, Observations] | None = None,
) -> Verdict:
    """Was the model behind these outputs trained on the marked responses of this index?

    Parameters
    ----------
    observations : of the suspect's outputs (`provenance.suspect.outputs`), or of its weights or
        logprobs (`provenance.suspect.probabilities`)
    index : the marked responses, opened with the same keyring
    keyring : unlocked, or another mark (`provenance.marks.foreign`)
    settings : alpha, weight rule, number of placebo keys; fixed before the outputs are seen
    innocents : outputs of models that cannot have been trained on the log, by name

    Returns
    -------
    Verdict. H0 of each key: the suspect's choices are independent of the key's coins, given the
    weights. Exact with fixed weights; see docs/validity.md for the index's first-occurrence counts.

    Notes
    -----
    Cost: about 45 ns per pair and key, times the placebo keys twice; memory about 100 bytes a pair.
    """
    innocents = innocents or {}
    mark = as_mark(keyring)
    if mark.shares_coins:
        index = index.evened()
    weighing = weigh_observations(observations, index, mark, settings.rule)
    tables = _score_all(weighing, mark)
    hypotheses = try_keys(tables, settings.alpha)
    inputs = _describe_inputs(observations, index, innocents, settings)
    controls = _control_all(weighing, tables, hypotheses, mark, inputs, settings)
    controls += control_innocents(
        list(innocents),
        lambda i: _smallest_adjusted(list(innocents.values())[i], index, mark, settings),
    )
    conclusion = _conclude(hypotheses, controls)
    return Verdict(
        conclusion=conclusion,
        alpha=settings.alpha,
        hypotheses=hypotheses,
        controls=tuple(controls),
        shares=_attribute(hypotheses, mark) if conclusion == "evidence" else (),
        keyring_id=mark.public.id,
        scheme=mark.public.scheme.to_json(),
        weight_rule=settings.rule,
        commitments={
            key_name(*pair): commitment.sha256
            for pair, commitment in mark.public.commitments.items()
        },
        inputs=inputs,
        versions=_describe_versions(),
        caveat=_caveat(mark),
    )


def _score_all(weighing: Weighing, mark: Mark) -> dict[tuple[str, str], ClassTable]:
    """Only here are the keys opened."""
    return {
        (slot, value): tabulate(pairs, mark.open(slot, value), mark.null_law)
        for (slot, value), pairs in weighing.hypotheses.items()
    }


def try_keys(
    tables: Mapping[tuple[str, str], ClassTable], alpha: float
) -> tuple[HypothesisResult, ...]:
    """Tails of all keys and weighted Holm over them.

    Parameters: the class table per (slot, value); alpha of the family. Returns one result per
    table, in its order. Cost: one exact tail a key.
    """
    if not tables:
        return ()
    weights = family_weights(list(tables))
    tails = [upper_tail(table) for table in tables.values()]
    adjusted = weighted_holm(np.array([tail.log10_p for tail in tails]), weights)
    return tuple(
        HypothesisResult(
            slot=slot,
            value=value,
            family_weight=float(weights[i]),
            tail=tails[i],
            log10_adjusted=float(adjusted[i]),
            rejected=bool(adjusted[i] <= np.log10(alpha)),
            table=table,
        )
        for i, ((slot, value), table) in enumerate(tables.items())
    )


def _smallest_adjusted(
    observations: Observations,
    index: Index,
    mark: Mark,
    settings: CheckSettings,
) -> float:
    """log10 p of the whole check on other outputs, without controls."""
    weighing = weigh_observations(observations, index, mark, settings.rule)
    results = try_keys(_score_all(weighing, mark), settings.alpha)
    return min((result.log10_adjusted for result in results), default=0.0)


def _control_all(
    weighing: Weighing,
    tables: Mapping[tuple[str, str], ClassTable],
    hypotheses: Sequence[HypothesisResult],
    mark: Mark,
    inputs: Mapping[str, Any],
    settings: CheckSettings,
) -> list[Control]:
    """Placebo keys on the global key's pairs and on the headline's; then the keyed controls."""
    seed = hashlib.sha256(canonical_json([dict(inputs), mark.public.id])).digest()
    headline = min(hypotheses, key=lambda h: (h.log10_adjusted, h.tail.log10_p), default=None)
    chosen = [pair for pair in [_GLOBAL_KEY] if pair in tables]
    if headline and (headline.slot, headline.value) not in chosen:
        chosen.append((headline.slot, headline.value))
    names = {(h.slot, h.value): h.name for h in hypotheses}
    controls = [
        control_placebo(
            weighing.hypotheses[pair],
            names[pair],
            tables[pair],
            mark,
            settings.placebo_keys,
            seed,
        )
        for pair in chosen
    ]
    if not mark.schedule.slot(CONTROL).share_words:
        return controls
    served = [mark.open(*pair) for pair in tables]
    unserved = [
        mark.open(slot.name, value)
        for slot in mark.schedule.slots[2:]
        for value in slot.values
        if (slot.name, value) not in tables
    ]
    controls.append(control_slot(weighing.control, served, mark.null_law))
    controls.append(control_unserved(weighing.pooled, unserved, mark.null_law))
    return controls


def _caveat(mark: Mark) -> str:
    """The mark's own, and which controls there cannot be."""
    said = [mark.caveat] if mark.caveat else []
    if not mark.schedule.slot(CONTROL).share_words:
        said.append("the mark has no control slot and no unserved values to control the check with")
    return "; ".join(said)


def _conclude(hypotheses: Sequence[HypothesisResult], controls: Sequence[Control]) -> Conclusion:
    if not any(result.tail.coins for result in hypotheses):
        return "nothing scored"
    if not all(control.passed for control in controls):
        return "invalid"
    return "evidence" if any(result.rejected for result in hypotheses) else "no evidence"


def _attribute(hypotheses: Sequence[HypothesisResult], mark: Mark) -> tuple[Share, ...]:
    """Shares of each attribute's values in the absorbed evidence, against the global key."""
    reference = next((h for h in hypotheses if (h.slot, h.value) == _GLOBAL_KEY), None)
    if reference is None:
        return ()
    shares: list[Share] = []
    for slot in mark.schedule.slots[2:]:
        own = [h for h in hypotheses if h.slot == slot.name]
        if not own:
            continue
        found = fieller_shares(
            np.array([h.tail.z for h in own]),
            reference.tail.z,
            slot.share,
            mark.schedule.slot(GLOBAL).share,
        )
        shares += [
            Share(slot.name, h.value, *map(float, row))
            for h, *row in zip(own, found.estimate, found.lower, found.upper, strict=True)
        ]
    return tuple(shares)


def _describe_inputs(
    observations: Observations,
    index: Index,
    innocents: Mapping[str, Observations],
    settings: CheckSettings,
) -> dict[str, Any]:
    return {
        "outputs": _describe(observations),
        "index_sha256": index.manifest.content_sha256,
        "index_responses": index.manifest.marked_responses,
        "tokenizer_sha256": index.manifest.tokenizer_sha256,
        "innocents": {name: _describe(found) for name, found in innocents.items()},
        "settings": asdict(settings),
    }


def _describe(observations: Observations) -> dict[str, Any]:
    return {
        "sha256": dict(observations.sha256),
        "outputs": observations.outputs,
        "tokens": observations.tokens_read,
        "short_outputs": observations.short_outputs,
        "positions": observations.positions,
        "pairs": int(observations.masses.shape[0]),
        "repeated": observations.repeated,
        "prompted": observations.prompted,
        "source": dict(observations.source),
        "reference": dict(observations.reference),
    }


def _describe_versions() -> dict[str, str]:
    packages = ("provenance", "numpy", "scipy", "numba", "tokenizers", "cryptography")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
