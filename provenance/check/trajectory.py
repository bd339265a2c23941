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
from numpy.typing import NDArray

from provenance.check.score import WeightedPairs, score, weigh_observations
from provenance.check.weigh import MAXIMAL_WEIGHTS
from provenance.keys.keyring import Key, UnlockedKeyring
from provenance.keys.schedule import GLOBAL_KEY, KeyName
from provenance.marks.own import Scheme, make_scheme
from provenance.served.index import Index
from provenance.stats.eprocess import EProcess, add_batch, start
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
    keyring: UnlockedKeyring,
    rule: str,
    key: KeyName = GLOBAL_KEY,
) -> Trajectory:
    """How the evidence of one key grew over batches of outputs.

    Parameters
    ----------
    batches : observations of disjoint outputs of one suspect, in the order of the outputs
    index, keyring : as in the check
    rule : weight rule of the check
    key : (slot, value), named without having seen the outputs

    Returns
    -------
    Trajectory with one point per batch; the last log10 p is that of the check's key. Without points
    if the key marked nothing.

    Notes
    -----
    The e-process weighs a coin from the counts of the first batch in which it occurs, the fixed-n
    test from all counts so far. Cost: per batch, the weighing and scoring of all pairs so far.
    """
    scheme = make_scheme(keyring.public.scheme.name, keyring.public.scheme.parameters)
    secret = keyring.key(*key)
    process = start(scheme.null_law, MAXIMAL_WEIGHTS[rule], keyring.context_width + 1)
    points: list[Point] = []
    so_far: Observations | None = None
    for batch in batches:
        own = _pairs(batch, index, keyring, rule, key)
        so_far = batch if so_far is None else merge_observations([so_far, batch])
        pairs = _pairs(so_far, index, keyring, rule, key)
        if own is None or pairs is None:
            break
        process = _add(process, own, secret, scheme)
        table = score(pairs, secret, scheme)
        points.append(
            Point(
                outputs=so_far.outputs,
                tokens=so_far.tokens_read,
                coins=table.coins,
                log10_p=log10_upper_tail(table),
                log10_e=process.log10_e,
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
    keyring: UnlockedKeyring,
    rule: str,
    key: KeyName,
) -> WeightedPairs | None:
    """Weighted pairs of one key; None if it marked nothing."""
    return weigh_observations(observations, index, keyring, rule).hypotheses.get(key)


def _add(process: EProcess, pairs: WeightedPairs, key: Key, scheme: Scheme) -> EProcess:
    """One batch of the e-process: it asks for the coins of its new pairs only."""

    def reveal(rows: NDArray[np.int64]) -> NDArray[np.int64]:
        return scheme.score(key.words(pairs.contexts[rows], pairs.tokens[rows]))

    units = np.concatenate([pairs.contexts, pairs.tokens[:, None]], axis=1)
    return add_batch(process, units, pairs.weights, reveal)
