"""Controls of a sequential check: none opens a coin of a tested pair before that pair is weighed.

1. *placebo keys*: random keys on the tested pairs, with the weights that were used; new keys at
   every look, and look r spends 1 / (r (r + 1)) of the level, so that all looks together keep it.
2. *control slot*: the tested keys on contexts that are never marked. No tested pair has such a
   context, so nothing is opened early. An e-process per key, their average against 1 / level.
3. *unserved values*: keys that are not tested, on the pairs of their slot; likewise.

Another scheme's mark has the first only: one key marks every context.

There are no innocent suspects here: their outputs share pairs with batches to come, and scoring
them opens those coins. Scoring only their pairs that are revealed already is no way out: a guilty
suspect revealed them, by preferring pairs with high coins, so an innocent would look guilty. Check
innocents with `provenance.check.examine` when collecting has ended.

A control that failed at one look stays failed.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from provenance.check.controls import LEVEL, control_placebo
from provenance.check.findings import Control
from provenance.check.looks.revealed import SequentialCheck
from provenance.check.score import WeightedPairs
from provenance.keys.schedule import GLOBAL_KEY
from provenance.marks import Placebos
from provenance.stats.eprocess import EProcess
from provenance.stats.evalues import average_e
from provenance.storage.files import canonical_json


def control_placebos(check: SequentialCheck, mark: Placebos) -> tuple[Control, ...]:
    """Random keys on the pairs of the global key and of the key with the most evidence."""
    look = len(check.batches)
    seed = hashlib.sha256(
        canonical_json(
            [check.keyring_id, check.index_sha256, [dict(b.outputs) for b in check.batches]]
        )
    ).digest()
    numbers = range(len(check.tested))
    chosen = {i for i in numbers if check.tested[i].keys[0] == GLOBAL_KEY}
    chosen |= set(sorted(numbers, key=lambda i: -check.tested[i].processes[0].log10_e)[:1])
    return tuple(
        control_placebo(
            _join([batch.revealed[i].pairs for batch in check.batches]),
            str(check.tested[i].keys[0]),
            check.tested[i].processes[0].table,
            mark,
            check.settings.placebo_keys,
            seed,
            share=1.0 / (look * (look + 1)),
        )
        for i in sorted(chosen)
    )


def collect_controls(check: SequentialCheck) -> tuple[Control, ...]:
    """Placebos of all looks, the worst of each name; then the e-processes of the other controls."""
    found: dict[str, Control] = {}
    for look, batch in enumerate(check.batches, start=1):
        for control in batch.placebo:
            worst = found.get(control.name)
            if worst is None or (control.log10_p or 0.0) <= (worst.log10_p or 0.0):
                found[control.name] = replace(control, detail=f"look {look}: {control.detail}")
    controls = list(found.values())
    for role in ("control slot", "unserved values"):
        processes = [p for sheet in check.sheets if sheet.role == role for p in sheet.processes]
        if processes and check.batches:
            controls.append(_control_evidence(role, processes))
    return tuple(controls)


def _join(parts: Sequence[WeightedPairs]) -> WeightedPairs:
    return WeightedPairs(
        np.concatenate([part.contexts for part in parts]),
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.weights for part in parts]),
    )


def _control_evidence(name: str, processes: Sequence[EProcess]) -> Control:
    """The average of e-processes that must all be null, against 1 / LEVEL at any look."""
    paths = np.array([[look.log10_e for look in process.looks] for process in processes])
    path = [average_e(column) for column in paths.T]
    log10_p = min(0.0, -max(path))
    coins = sum(process.table.coins for process in processes)
    return Control(
        name,
        log10_p > math.log10(LEVEL),
        log10_p,
        f"{len(processes)} keys, {coins} coins: log10 e {path[-1]:.2f} now, at most "
        f"{max(path):.2f} at any look",
    )
