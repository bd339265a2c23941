"""Evidence against the number of tokens: how it grew with the outputs, for the report.

Two curves of one key over the same batches of outputs. The fixed-n p of everything up to a batch is
valid at each point by itself, not over all of them: nobody may stop where it is smallest. The
e-process may be stopped anywhere. The key is named before the outputs are seen (the global key by
default), never chosen for its curve.

A picture, not a test: the p-value of the check is that of all outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from provenance.check.looks.process import reveal_pairs
from provenance.check.looks.revealed import UNIT_NAME_WIDTH, TestedKeys
from provenance.check.score import WeightedPairs, tabulate, weigh_observations
from provenance.check.weigh import MAXIMAL_WEIGHTS
from provenance.keys.keyring import UnlockedKeyring
from provenance.keys.schedule import GLOBAL_KEY, KeyName
from provenance.marks import Mark, as_mark
from provenance.marks.foreign.mark import is_foreign
from provenance.served.index import Index
from provenance.stats.eprocess import start
from provenance.stats.inversion import log10_upper_tail
from provenance.storage.documents import read_fields, refuse_malformed
from provenance.storage.files import read_json
from provenance.suspect.observations import Observations, sum_pairs, totals_of_pairs

BATCHES: Final = 12
"""How many batches make a readable curve."""


@dataclass(frozen=True)
class Point:
    """After one more batch.

    Attributes
    ----------
    outputs, tokens : read so far
    coins : coins of nonzero weight of the fixed-n test
    log10_p : of everything up to here, by the fixed-n test
    log10_e : of the e-process over the batches
    """

    outputs: int
    tokens: int
    coins: int
    log10_p: float
    log10_e: float


@dataclass(frozen=True)
class Trajectory:
    """The curves of one key under one weight rule."""

    key: str
    rule: str
    points: tuple[Point, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {"key": self.key, "rule": self.rule, "points": [asdict(p) for p in self.points]}

    @classmethod
    def load(cls, path: Path) -> Trajectory:
        """Read what `to_json` gave. Raises StorageError, DataError."""
        document = read_json(path)
        with refuse_malformed(f"{path}: must be a trajectory", "Make it with `check -o`."):
            return read_fields(cls, document)


def trace_evidence(
    batches: Sequence[Observations],
    index: Index,
    keyring: UnlockedKeyring | Mark,
    rule: str,
    key: KeyName = GLOBAL_KEY,
) -> Trajectory:
    """How the evidence of one key grew over batches of outputs.

    Parameters
    ----------
    batches : observations of disjoint outputs of one suspect, in the order of the outputs
    index, keyring : as in the check; a keyring of our own, or another mark
    rule : weight rule of the check
    key : (slot, value), named without having seen the outputs

    Returns
    -------
    Trajectory with one point per batch; the last log10 p is that of the check's key. Without points
    if the key marked nothing.

    Notes
    -----
    The e-process weighs a coin from the counts of the first batch in which it occurs, the fixed-n
    test from all counts so far; where pairs share a coin, their weights are added up in either.
    Cost: per batch, the weighing and scoring of all pairs so far.
    """
    mark = as_mark(keyring)
    if mark.shares_coins:  # no count of the log may weigh anything
        index = index.with_equal_counts()
    width = UNIT_NAME_WIDTH if is_foreign(mark.public) else mark.context_width + 1
    process = start(mark.null_law, MAXIMAL_WEIGHTS[rule], width)
    sheet = TestedKeys("tested", key[0], (KeyName(*key),), (process,))
    points: list[Point] = []
    so_far: Observations | None = None
    for batch in batches:
        own = _pairs(batch, index, mark, rule, key)
        so_far = batch if so_far is None else merge_observations([so_far, batch])
        pairs = _pairs(so_far, index, mark, rule, key)
        if own is None or pairs is None:
            break
        sheet, _, _ = reveal_pairs(sheet, own, mark)
        table = tabulate(pairs, mark.open(*key), mark.null_law)
        points.append(
            Point(
                outputs=so_far.outputs,
                tokens=so_far.tokens_read,
                coins=table.coins,
                log10_p=log10_upper_tail(table),
                log10_e=sheet.processes[0].log10_e,
            )
        )
    return Trajectory(str(key), rule, tuple(points))


def merge_observations(parts: Sequence[Observations]) -> Observations:
    """Observations of several sets of outputs of one suspect, as if they had been read together.

    Parameters
    ----------
    parts : at least one, of different outputs, all with the same way of access and reference

    Notes
    -----
    Exact for counts: positions are chosen within each output. Files, source and reference are those
    of the first part. Cost: two sorts of all pairs.
    """
    contexts, tokens, (masses, expected) = sum_pairs(
        np.concatenate([part.contexts for part in parts]),
        np.concatenate([part.tokens for part in parts]),
        np.concatenate([part.masses for part in parts]),
        np.concatenate([part.expected for part in parts]),
    )
    visits = []
    for part in parts:
        distinct, first = np.unique(part.contexts, return_index=True)
        visits.append((distinct, part.totals[first]))
    visited, names = np.unique(np.concatenate([v[0] for v in visits]), return_inverse=True)
    counts = np.bincount(names, weights=np.concatenate([v[1] for v in visits]))
    read = ("positions", "outputs", "tokens_read", "short_outputs", "with_prompt")
    summed = (*read, "repeated", "prompted", "quoted")
    return replace(
        parts[0],
        contexts=contexts,
        tokens=tokens,
        masses=masses,
        totals=totals_of_pairs(contexts, visited, counts.astype(np.int64)),
        expected=expected,
        **{name: sum(getattr(part, name) for part in parts) for name in summed},
    )


def _pairs(
    observations: Observations,
    index: Index,
    mark: Mark,
    rule: str,
    key: KeyName,
) -> WeightedPairs | None:
    """Weighted pairs of one key; None if it marked nothing."""
    return weigh_observations(observations, index, mark, rule).hypotheses.get(key)
