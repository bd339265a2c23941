"""A sequential check in progress: which pairs were revealed under which keys, and the e-processes.

Does not know outputs, an index or how to open a key: weighted pairs and callbacks in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from provenance.check import CheckSettings
from provenance.scoring import Weighing, WeightedPairs
from provenance.stats.sequential import EProcess, Reveal, add_batch
from provenance.verdict import Control

__all__ = ["Batch", "Revealed", "Role", "SequentialCheck", "Sheet", "extend_sheet"]

Role = Literal["tested", "control slot", "unserved values"]


@dataclass(frozen=True)
class Sheet:
    """Pairs that are scored under the same keys: one key if tested, else all keys of a control.

    `slot` is where the pairs' contexts are; one e-process per key, over the same units.
    """

    role: Role
    slot: str
    keys: tuple[tuple[str, str], ...]
    processes: tuple[EProcess, ...]

    def pick(self, weighing: Weighing) -> WeightedPairs:
        """Its pairs in one batch."""
        return (
            weighing.hypotheses[self.keys[0]]
            if self.role == "tested"
            else (weighing.pooled[self.slot])
        )


@dataclass(frozen=True)
class Revealed:
    """The pairs that one batch revealed on one sheet: scores int64 [pairs, keys of the sheet]."""

    pairs: WeightedPairs
    scores: NDArray[np.int64]


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes
    ----------
    outputs : what was read
    revealed, known : per sheet, the pairs revealed, and how many were known before
    placebo : the placebo controls after this batch
    pairs_sha256 : of the file that holds `revealed`, once there is one
    """

    outputs: Mapping[str, Any]
    revealed: tuple[Revealed, ...]
    known: tuple[int, ...]
    placebo: tuple[Control, ...]
    pairs_sha256: str = ""


@dataclass(frozen=True)
class SequentialCheck:
    """A check in progress. Make it with `start`, continue it with `add_outputs` only.

    Attributes
    ----------
    keyring_id, index_sha256, scheme, settings : what every batch is bound to
    width : context width
    sheets : tested keys first, then the controls
    batches : in the order in which they came
    """

    keyring_id: str
    index_sha256: str
    scheme: Mapping[str, Any]
    settings: CheckSettings
    width: int
    sheets: tuple[Sheet, ...]
    batches: tuple[Batch, ...] = ()

    @property
    def tested(self) -> tuple[Sheet, ...]:
        """The sheets of the tested keys."""
        return tuple(sheet for sheet in self.sheets if sheet.role == "tested")


def extend_sheet(
    sheet: Sheet, pairs: WeightedPairs, reveals: Sequence[Reveal]
) -> tuple[Sheet, Revealed, int]:
    """Add one batch to the e-processes of a sheet.

    Parameters
    ----------
    sheet : Sheet
    pairs : distinct pairs of the batch with their weights
    reveals : one per key of the sheet; called with the positions of the new pairs

    Returns
    -------
    The longer sheet, what was revealed, and how many pairs were known.
    """
    units = np.column_stack([pairs.contexts, pairs.tokens]).astype(np.uint32)
    rows: NDArray[np.int64] = np.zeros(0, dtype=np.int64)
    scores: list[NDArray[np.int64]] = []

    def record(reveal: Reveal) -> Reveal:
        def opened(positions: NDArray[np.int64]) -> NDArray[np.int64]:
            nonlocal rows
            rows = positions
            scores.append(np.asarray(reveal(positions)))
            return scores[-1]

        return opened

    grown = [
        add_batch(process, units, pairs.weights, record(reveal))
        for process, reveal in zip(sheet.processes, reveals, strict=True)
    ]
    # the units of all keys are the same: keep one copy of the set
    grown = [replace(process, revealed=grown[0].revealed) for process in grown]
    shape = (rows.size, len(sheet.keys))
    table = np.column_stack(scores).astype(np.int64) if scores else np.zeros(shape, dtype=np.int64)
    fresh = WeightedPairs(pairs.contexts[rows], pairs.tokens[rows], pairs.weights[rows])
    return (
        replace(sheet, processes=tuple(grown)),
        Revealed(fresh, table),
        grown[0].looks[-1].ignored,
    )
