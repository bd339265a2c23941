"""From e-processes to a verdict: the average over keys, each key adjusted, controls, conclusion."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from provenance.check import say_caveat
from provenance.families import family_weights
from provenance.inputs import describe_versions
from provenance.keys.keyring import UnlockedKeyring
from provenance.keys.schedule import key_name
from provenance.marks import Mark, as_mark
from provenance.sequential.controls import collect_controls
from provenance.sequential.sheets import SequentialCheck
from provenance.sequential.verdict import (
    SequentialHypothesis,
    SequentialLook,
    SequentialVerdict,
)
from provenance.stats.evalues import adjust_e, average_e
from provenance.verdict import Conclusion, Control
from provenance.weigh import MAXIMAL_WEIGHTS

__all__ = ["conclude"]


def conclude(check: SequentialCheck, keyring: UnlockedKeyring | Mark) -> SequentialVerdict:
    """What the check says now. Reveals nothing."""
    tested = check.tested
    keys = [sheet.keys[0] for sheet in tested]
    weights = family_weights(keys)
    paths = np.array(
        [[look.log10_e for look in sheet.processes[0].looks] for sheet in tested]
    ).reshape(len(tested), len(check.batches))
    family = [average_e(column, weights) for column in paths.T]
    adjusted = np.array([adjust_e(column, weights) for column in paths.T]).reshape(-1, len(keys))
    anytime = np.minimum(0.0, -adjusted.max(axis=0, initial=0.0))
    log10_p = min(0.0, *(-e for e in family)) if family else 0.0
    limit = math.log10(check.settings.alpha)
    hypotheses = tuple(
        SequentialHypothesis(
            slot=slot,
            value=value,
            family_weight=float(weights[i]),
            log10_e=tested[i].processes[0].log10_e,
            log10_p=float(anytime[i]),
            rejected=bool(anytime[i] <= limit),
            table=tested[i].processes[0].table,
        )
        for i, (slot, value) in enumerate(keys)
    )
    controls = collect_controls(check)
    return SequentialVerdict(
        conclusion=_conclude(check, log10_p <= limit, controls),
        alpha=check.settings.alpha,
        log10_e=family[-1] if family else 0.0,
        log10_p=log10_p,
        looks=tuple(
            _describe_look(check, number, evidence) for number, evidence in enumerate(family)
        ),
        hypotheses=hypotheses,
        controls=controls,
        keyring_id=check.keyring_id,
        scheme=check.scheme,
        weight_rule=check.settings.rule,
        maximal_weight=MAXIMAL_WEIGHTS[check.settings.rule],
        commitments={
            key_name(*pair): commitment.sha256
            for pair, commitment in keyring.public.commitments.items()
        },
        inputs={
            "index_sha256": check.index_sha256,
            "tokenizer_sha256": keyring.public.tokenizer_sha256,
            "placebo_keys": check.settings.placebo_keys,
        },
        versions=describe_versions(),
        caveat=say_caveat(as_mark(keyring)),
    )


def _describe_look(check: SequentialCheck, number: int, log10_e: float) -> SequentialLook:
    batch = check.batches[number]
    own = range(len(check.tested))
    return SequentialLook(
        outputs=batch.outputs,
        coins=sum(batch.revealed[i].coins for i in own),
        known=sum(batch.known[i] for i in own),
        log10_e=log10_e,
    )


def _conclude(check: SequentialCheck, crossed: bool, controls: Sequence[Control]) -> Conclusion:
    if not any(sheet.processes[0].table.coins for sheet in check.tested):
        return "nothing scored"
    if not all(control.passed for control in controls):
        return "invalid"
    return "evidence" if crossed else "no evidence"
