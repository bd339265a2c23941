"""From e-processes to a verdict: the average over keys, each key adjusted, controls, conclusion."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.check.conclusion import LEFT_OUT, Ruling, explain_positions, say_failed_controls
from provenance.check.examine import say_caveat
from provenance.check.findings import Conclusion, Control
from provenance.check.inputs import describe_versions
from provenance.check.looks.look_controls import collect_controls
from provenance.check.looks.result import (
    SequentialHypothesis,
    SequentialLook,
    SequentialVerdict,
)
from provenance.check.looks.revealed import SequentialCheck
from provenance.check.looks.uncrossed import state_sequential_power
from provenance.check.power_statement import Power, Setting, find_shortfall
from provenance.check.reservations import reserve_index
from provenance.check.weigh import MAXIMAL_WEIGHTS
from provenance.keys.keyring import Keyring, UnlockedKeyring
from provenance.keys.schedule import GLOBAL_KEY
from provenance.marks import Mark, as_mark
from provenance.marks.alpha import family_weights
from provenance.stats.evalues import adjust_e, average_e

_NOTHING_SEEN: Final[dict[str, Any]] = {"source": {}, "reference": {}}


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
    ruling, power = _rule(check, keyring.public, weights, controls, found=log10_p <= limit)
    return SequentialVerdict(
        conclusion=ruling.conclusion,
        reasons=ruling.reasons,
        power=power,
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
        weight_rule=str(check.settings.rule),
        maximal_weight=MAXIMAL_WEIGHTS[str(check.settings.rule)],
        commitments={
            str(key): commitment.sha256 for key, commitment in keyring.public.commitments.items()
        },
        inputs={
            "index_sha256": check.index_sha256,
            "tokenizer_sha256": keyring.public.tokenizer_sha256,
            "placebo_keys": check.settings.placebo_keys,
        },
        versions=describe_versions(),
        caveat=say_caveat(as_mark(keyring)),
    )


def _rule(
    check: SequentialCheck,
    public: Keyring,
    weights: NDArray[np.float64],
    controls: Sequence[Control],
    *,
    found: bool,
) -> tuple[Ruling, Power | None]:
    """What follows from E, the controls and what is known of the log; and the power behind it."""
    obstacles, power = say_failed_controls(controls), None
    if not found and not obstacles:
        outputs = check.batches[-1].outputs if check.batches else _NOTHING_SEEN
        setting = Setting.of(public, str(check.settings.rule), outputs)
        power = _find_power(check, weights, setting)
        obstacles = _say_lack(check, power, setting)
    tentative: Conclusion = "evidence" if found else "no evidence"
    obstacles += [one.reason for one in reserve_index(check.log) if one.forbids(tentative)]
    return Ruling.of(tentative, obstacles), power


def _describe_look(check: SequentialCheck, number: int, log10_e: float) -> SequentialLook:
    batch = check.batches[number]
    own = range(len(check.tested))
    return SequentialLook(
        outputs=batch.outputs,
        coins=sum(batch.revealed[i].coins for i in own),
        known=sum(batch.known[i] for i in own),
        log10_e=log10_e,
    )


def _find_power(
    check: SequentialCheck, weights: NDArray[np.float64], setting: Setting
) -> Power | None:
    """Of the global key at this look; of the key with the most coins where it has none."""
    shares = {
        sheet.keys[0]: float(weight) for sheet, weight in zip(check.tested, weights, strict=True)
    }
    tables = {sheet.keys[0]: sheet.processes[0].table for sheet in check.tested}
    scored = {key: table for key, table in tables.items() if table.coins}
    if not scored:
        return None
    key = max(scored, key=lambda key: (key == GLOBAL_KEY, scored[key].effective_coins))
    rule = str(check.settings.rule)
    return state_sequential_power(
        scored[key],
        str(key),
        check.settings.alpha * shares[key],
        MAXIMAL_WEIGHTS[rule],
        setting,
    )


def _say_lack(check: SequentialCheck, power: Power | None, setting: Setting) -> list[str]:
    """Why nothing found means nothing, so far; empty if the check has power."""
    if not check.batches:
        return ["no outputs were added yet"]
    if power is None:
        observed = [batch.outputs for batch in check.batches]
        summed = {
            name: sum(int(one.get(name, 0)) for one in observed)
            for name in ("outputs", "positions", "short_outputs", *LEFT_OUT)
        }
        said = explain_positions({**summed, "source": observed[0]["source"]})
        return [f"nothing was scored under {len(check.tested)} keys: {said}"]
    table = next(s.processes[0].table for s in check.tested if str(s.keys[0]) == power.key)
    shortfall = find_shortfall(power, table, setting)
    return [shortfall] if shortfall else []
