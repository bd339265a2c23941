"""A sequential check in progress: which pairs were revealed under which keys, and the e-processes.

A coin may belong to several pairs (other people's schemes). Then it is the coin that is revealed
once: the weights of its pairs within a batch are added up before, and pairs of a coin that an
earlier batch revealed are known, also if they never occurred themselves.

Does not know outputs, an index or how to open a key: weighted pairs and callbacks in.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Final, Literal

import numpy as np
from numpy.typing import NDArray

from provenance.check.examine import CheckSettings
from provenance.check.findings import Control
from provenance.check.score import Weighing, WeightedPairs
from provenance.keys.schedule import KeyName
from provenance.marks.sharing import Groups, sum_weights
from provenance.stats.eprocess import EProcess, Reveal, add_batch

Role = Literal["tested", "control slot", "unserved values"]


@dataclass(frozen=True)
class TestedKeys:
    """Pairs that are scored under the same keys: one key if tested, else all keys of a control.

    `slot` is where the pairs' contexts are; one e-process per key, over the same units.
    """

    role: Role
    slot: str
    keys: tuple[KeyName, ...]
    processes: tuple[EProcess, ...]

    def pick(self, weighing: Weighing) -> WeightedPairs:
        """Its pairs in one batch."""
        return (
            weighing.hypotheses[self.keys[0]]
            if self.role == "tested"
            else (weighing.pooled[self.slot])
        )


@dataclass(frozen=True)
class Units:
    """The coins of the pairs of one batch on one sheet.

    Attributes
    ----------
    names : uint32 [m, width], what the e-process knows each coin by
    weights : int64 [m], fixed before any is revealed
    first : int64 [m], a pair of each coin
    numbers : int64 [n], the coin of each pair, -1 where it has none; None where coins are pairs
    """

    names: NDArray[np.uint32]
    weights: NDArray[np.int64]
    first: NDArray[np.int64]
    numbers: NDArray[np.int64] | None

    @classmethod
    def of_pairs(cls, pairs: WeightedPairs) -> Units:
        """Every pair has a coin of its own."""
        names = np.column_stack([pairs.contexts, pairs.tokens]).astype(np.uint32)
        return cls(names, pairs.weights, np.arange(len(pairs)), None)

    @classmethod
    def of_groups(cls, pairs: WeightedPairs, groups: Groups, bound: int) -> Units:
        """Pairs share coins: weights are added up and cut to the declared bound.

        Cut, not scaled: a scale would depend on which units are new, and change from batch to
        batch.
        """
        sums = sum_weights(pairs.weights, groups.coins, groups.first.shape[0])
        words = groups.names.view(np.uint64)[:, np.newaxis] >> np.array([32, 0], dtype=np.uint64)
        names = (words & np.uint64(0xFFFFFFFF)).astype(np.uint32)
        return cls(names, np.clip(sums, -bound, bound), groups.first, groups.coins)

    def pick(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64] | None]:
        """Positions of all pairs of these coins (ascending), and each one's place in `rows`."""
        if self.numbers is None:
            return rows, None
        place = np.full(self.weights.shape[0] + 1, -1, dtype=np.int64)  # the last: no coin
        place[rows] = np.arange(rows.shape[0])
        positions = np.flatnonzero(place[self.numbers] >= 0)
        return positions, place[self.numbers[positions]]


UNIT_NAME_WIDTH: Final = 2
"""Numbers that name a coin that pairs share: the halves of its 64-bit name."""


@dataclass(frozen=True)
class Revealed:
    """What one batch revealed on one sheet.

    Attributes
    ----------
    pairs : all pairs of the revealed coins, with weights of their own
    scores : int64 [pairs, keys of the sheet], of the coin of each pair
    units : int64 [pairs], number of the coin of each pair; None where coins are pairs
    """

    pairs: WeightedPairs
    scores: NDArray[np.int64]
    units: NDArray[np.int64] | None = None

    @property
    def coins(self) -> int:
        """Number of coins."""
        return len(self.pairs) if self.units is None else int(self.units.max(initial=-1)) + 1


@dataclass(frozen=True)
class Batch:
    """One batch.

    Attributes
    ----------
    outputs : what was read
    revealed, known : per sheet, what was revealed, and how many coins were known before
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
    shared : whether several pairs may have one coin
    sheets : tested keys first, then the controls
    batches : in the order in which they came
    log : what the index knows of the selection of its log (`provenance.check.inputs.describe_log`)
    """

    keyring_id: str
    index_sha256: str
    scheme: Mapping[str, Any]
    settings: CheckSettings
    width: int
    shared: bool
    sheets: tuple[TestedKeys, ...]
    batches: tuple[Batch, ...] = ()
    log: Mapping[str, int] = field(default_factory=dict)

    @property
    def tested(self) -> tuple[TestedKeys, ...]:
        """The sheets of the tested keys."""
        return tuple(sheet for sheet in self.sheets if sheet.role == "tested")


def extend_sheet(
    sheet: TestedKeys, pairs: WeightedPairs, reveals: Sequence[Reveal], units: Units | None = None
) -> tuple[TestedKeys, Revealed, int]:
    """Add one batch to the e-processes of a sheet.

    Parameters
    ----------
    sheet : TestedKeys
    pairs : distinct pairs of the batch with their weights
    reveals : one per key of the sheet; called with the positions of the new coins
    units : the coins of the pairs; None if every pair has its own

    Returns
    -------
    The longer sheet, what was revealed, and how many coins were known.
    """
    units = units or Units.of_pairs(pairs)
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
        add_batch(process, units.names, units.weights, record(reveal))
        for process, reveal in zip(sheet.processes, reveals, strict=True)
    ]
    # the units of all keys are the same: keep one copy of the set
    grown = [replace(process, revealed=grown[0].revealed) for process in grown]
    shape = (rows.size, len(sheet.keys))
    table = np.column_stack(scores).astype(np.int64) if scores else np.zeros(shape, dtype=np.int64)
    own, places = units.pick(rows)
    fresh = WeightedPairs(pairs.contexts[own], pairs.tokens[own], pairs.weights[own])
    return (
        replace(sheet, processes=tuple(grown)),
        Revealed(fresh, table if places is None else table[places], places),
        grown[0].looks[-1].ignored,
    )
