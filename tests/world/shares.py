"""Do the intervals for shares cover? Suspects that absorbed known shares, through the real tables.

A world: contexts of unequal frequency fall at random into the slots of a schedule; the log serves
each value its share of the responses, the suspect trains on another mixture of them, absorbs of a
context in proportion to how often it saw it, and writes text. A pair that it absorbed under a key
carries a score as the mark draws it (the largest of so many uniforms as the served model had equal
choices), every other pair a null score. Weights are those of `log-sqrt`, or signed ones like those
of `residual`. From there on everything is the product's: class tables, exact tails, weighted Holm,
shares. True shares are those of the pairs of a slot that were absorbed under each value.

Counted is what a reader sees: runs in which the family rejects at 1e-4, and of those the ones in
which every interval of every slot covers, for today's construction and for that of 0.1.0.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy.special import erfcx
from scipy.stats import binom

from provenance.check.conclusion import attribute_shares
from provenance.check.findings import HypothesisResult
from provenance.evidence.older import older_shares
from provenance.keys.schedule import Schedule
from provenance.marks.alpha import family_weights
from provenance.marks.own import Gumbel
from provenance.stats.crosscheck import TiltedMoments
from provenance.stats.families import weighted_holm
from provenance.stats.lattice import Lattice
from provenance.stats.tables import ClassTable
from provenance.stats.tails import TailResult

ALPHA: Final = 1e-4
LAW: Final = Gumbel().null_law
SHARES: Final = {"global": 0.1, "week": 0.04, "capability": 0.03, "cohort": 0.03}
VALUES: Final = {"week": 6, "capability": 3, "cohort": 4}
SCHEDULE: Final = Schedule.from_shares(SHARES)

_Counts = NDArray[np.int64]
_Mixture = Mapping[str, Sequence[float]]
EVEN: Final[_Mixture] = {name: [1 / n] * n for name, n in VALUES.items()}
UNEVEN: Final[_Mixture] = {
    "week": [0.5, 0.3, 0.1, 0.05, 0.03, 0.02],
    "capability": [0.9, 0.09, 0.01],
    "cohort": [0.6, 0.3, 0.05, 0.05],
}
MOVED: Final[_Mixture] = {
    "week": [0.05, 0.05, 0.3, 0.5, 0.05, 0.05],
    "capability": [0.1, 0.8, 0.1],
    "cohort": [0.25] * 4,
}
ONE: Final[_Mixture] = {"week": [1, 0, 0, 0, 0, 0], "capability": [0, 1, 0], "cohort": [0, 0, 0, 1]}
RISING: Final[_Mixture] = {**EVEN, "week": [0.06, 0.06, 0.08, 0.1, 0.1, 0.6]}


@dataclass(frozen=True)
class World:
    """One cell.

    contexts, power : how many, of frequency rank^-power
    positions : of the suspect's text; a fraction lies in the marked slots
    responses, length : of the log
    served, trained : share of every value in the log and in the training data
    seen : share of the log that the suspect trained on, of the value of which it took most
    absorb, half : a context seen m times is absorbed with probability absorb * m / (m + half)
    choices : equally likely tokens where the mark was drawn
    signed : weights of both signs, with a reference, instead of `log-sqrt`
    """

    contexts: int = 20_000
    power: float = 1.0
    positions: int = 20_000
    responses: int = 400
    length: int = 100
    served: _Mixture = None  # type: ignore[assignment]
    trained: _Mixture = None  # type: ignore[assignment]
    seen: float = 0.5
    absorb: float = 0.3
    half: float = 2.0
    choices: int = 20
    signed: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "served", self.served or EVEN)
        object.__setattr__(self, "trained", self.trained or self.served)


CELLS: Final[Mapping[str, World]] = {
    "even": World(),
    "few outputs": World(positions=3_000, absorb=0.6),
    "strong": World(absorb=0.8, half=0.5),
    "strong, few coins": World(positions=1_500, absorb=0.9, half=0.2, seen=0.9),
    "near the threshold": World(absorb=0.08),
    "weak, many coins": World(absorb=0.035, positions=200_000, contexts=100_000),
    "many coins": World(positions=200_000, contexts=100_000),
    "low entropy": World(choices=4, absorb=0.8),
    "high entropy": World(choices=200),
    "uneven log": World(served=UNEVEN),
    "uneven log, flat contexts": World(served=UNEVEN, power=0.5, contexts=50_000),
    "uneven log, other mixture": World(served=UNEVEN, trained=MOVED, absorb=0.7),
    "flat, other mixture": World(
        served=UNEVEN, trained=MOVED, power=0.6, contexts=50_000, positions=60_000, absorb=0.9
    ),
    "one value each": World(served=RISING, trained=ONE, absorb=0.6),
    "signed weights": World(signed=True, absorb=0.4),
    "signed weights, uneven": World(signed=True, served=UNEVEN, absorb=0.4),
    "signed weights, many coins": World(
        signed=True, positions=200_000, contexts=100_000, served=UNEVEN
    ),
}


def _null(rng: np.random.Generator, size: int) -> _Counts:
    words = rng.integers(0, 1 << 32, size, dtype=np.uint32)
    return Gumbel().score(words)


def _marked(rng: np.random.Generator, size: int, choices: int) -> _Counts:
    """Scores of tokens drawn as the argmax of `choices` equally likely ones."""
    largest = rng.random(size) ** (1.0 / choices)
    return Gumbel().score((largest * (2**32 - 1)).astype(np.uint32))


def _weigh(rng: np.random.Generator, world: World, times: _Counts, served: _Counts) -> _Counts:
    """Integer weights of pairs chosen so many times in contexts served so often."""
    count = np.log1p(np.minimum(served, 1024))
    if not world.signed:
        return np.rint(4 * count * np.sqrt(np.minimum(times, 16))).astype(np.int64)
    real = count * np.clip(rng.normal(0.3, 0.3, times.size), -0.4, 0.9) * np.sqrt(times)
    return np.rint(real * (255 / max(float(np.abs(real).max(initial=0.0)), 1e-9))).astype(np.int64)


def _train(rng: np.random.Generator, world: World, slot: str, served: _Counts) -> _Counts:
    """How often the suspect saw each context under each value, int64 (contexts, values)."""

    def odds(name: str) -> NDArray[np.float64]:
        return np.array(world.trained[name]) / np.array(world.served[name])

    most = max(float(odds(name).max()) for name in VALUES)
    kept = world.seen / most * (odds(slot) if slot in VALUES else np.ones(1))
    return rng.binomial(served, kept)


def simulate(
    rng: np.random.Generator, world: World
) -> tuple[tuple[HypothesisResult, ...], dict[tuple[str, str], float]]:
    """One suspect: its tested keys, and the true share of each (slot, value)."""
    frequency = np.arange(1, world.contexts + 1) ** -world.power
    frequency /= frequency.sum()
    slots = np.searchsorted(np.cumsum(list(SHARES.values())), rng.random(world.contexts))
    stood = np.minimum(rng.poisson(world.positions * frequency), 400)
    tables: dict[tuple[str, str], ClassTable] = {}
    truth: dict[tuple[str, str], float] = {}
    for number, slot in enumerate(SHARES):
        own = np.flatnonzero(slots == number)
        mixture = np.array(world.served.get(slot, [1.0]))
        expected = world.responses * world.length * np.outer(frequency[own], mixture)
        most = np.maximum(1, world.responses * mixture).astype(np.int64)
        served = np.minimum(rng.poisson(expected), most)
        seen = _train(rng, world, slot, served)
        rate = world.absorb * seen / (seen.sum(axis=1, keepdims=True) + world.half)
        distinct = np.minimum(stood[own], 1 + rng.poisson(np.sqrt(stood[own])))
        rows = np.repeat(np.arange(own.size), distinct)
        times = np.minimum(rng.geometric(0.6, rows.size), 16)
        source = (rng.random(rows.size)[:, None] >= rate[rows].cumsum(axis=1)).sum(axis=1)
        absorbed = rate[rows].sum(axis=0)
        for value in range(mixture.size):
            weights = _weigh(rng, world, times, served[rows, value])
            if world.signed and value == 0:
                weights = np.where(source < mixture.size, np.abs(weights), weights)
            scores = _null(rng, rows.size)
            marked = source == value
            scores[marked] = _marked(rng, int(marked.sum()), world.choices)
            name = (slot, f"{value}" if slot in VALUES else "")
            tables[name] = ClassTable.from_scores(weights, scores, LAW)
            if slot in VALUES:
                truth[name] = float(absorbed[value] / max(absorbed.sum(), 1e-12))
    return approximate_keys(tables), truth


def approximate_keys(
    tables: Mapping[tuple[str, str], ClassTable],
) -> tuple[HypothesisResult, ...]:
    """`provenance.check.examine.try_keys` with approximate tails."""
    weights = family_weights(list(tables))
    values = [_approximate(table) for table in tables.values()]
    adjusted = weighted_holm(values, weights)
    return tuple(
        HypothesisResult(
            *name,
            family_weight=float(weights[i]),
            tail=TailResult(
                values[i], None, None, table.z, table.coins, table.effective_coins, 0.0, ""
            ),
            log10_adjusted=float(adjusted[i]),
            rejected=bool(adjusted[i] <= np.log10(ALPHA)),
            table=table,
        )
        for i, (name, table) in enumerate(tables.items())
    )


def _approximate(table: ClassTable) -> float:
    lattice = Lattice.from_table(table)
    if not lattice.groups or table.z <= 0 or lattice.threshold >= lattice.maximum:
        return 0.0
    moments = TiltedMoments.of(table, lattice.saddle() / lattice.span)
    if moments is None:
        return 0.0
    normal = float(erfcx(moments.slope * moments.deviation / math.sqrt(2.0))) / 2.0
    return min(0.0, (moments.exponent + math.log(normal)) / math.log(10.0))


def measure(world: World, runs: int, seed: int) -> dict[str, Any]:
    """Coverage given rejection, and mean widths, of both constructions."""
    rng = np.random.default_rng(seed)
    stated, z = 0, []
    covered, width = dict.fromkeys(("new", "old"), 0), {"new": 0.0, "old": 0.0}
    for _ in range(runs):
        results, truth = simulate(rng, world)
        z.append(results[0].tail.z)
        if not any(result.rejected for result in results):
            continue
        stated += 1
        made = {
            "new": attribute_shares(results, SCHEDULE, "evidence", ALPHA),
            "old": older_shares(results, SCHEDULE, "evidence"),
        }
        for name, shares in made.items():
            inside = [s.lower - 1e-9 <= truth[s.slot, s.value] <= s.upper + 1e-9 for s in shares]
            covered[name] += all(inside)
            width[name] += float(np.mean([s.upper - s.lower for s in shares]))
    return {
        "runs": runs,
        "stated": stated,
        "z": round(float(np.mean(z)), 2),
        "coins": results[0].tail.coins,
        "covered": covered,
        "least": least_covered(stated),
        "width": {name: round(total / max(stated, 1), 3) for name, total in width.items()},
    }


def least_covered(stated: int) -> int:
    """Fewer than this many covering runs of true coverage .95 happen with probability 1e-4."""
    return int(binom.ppf(1e-4, stated, 0.95)) if stated else 0
