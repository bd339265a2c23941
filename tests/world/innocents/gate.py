"""z of innocent suspects under fresh keys, cell by cell, and the gate.

In full: `python -m benchmarks.innocents`.

Every key is a fresh draw of all coins. The suspect's text is the same under all keys of a world
(the null hypothesis is about the draw of the key), unless it quotes or reads what was served.

A cell passes if

- the mean of z is within 4 standard errors of 0. The control variate takes off what the same coins
  give under weights that no coin could touch (the means of the weights over other keys), whose mean
  is exactly 0: the error is a few times smaller;
- the standard deviation of z is within 4 standard errors of 1;
- the rejections at .05, .01, .001 and .0001, of exact tails, lie between the exact binomial limits
  (each one-sided limit is broken by chance with probability 1e-5).

With normal means and deviations a sound cell fails by chance with probability 2.1e-4 (two times
6.3e-5, and eight times 1e-5), so a gate of 100 cells with probability .021 at most, however the
cells depend on each other. Cells of kind "told" are not judged.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from provenance.marks.own import make_scheme
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.tables import ClassTable
from tests.world.innocents.coins import marks_of, words_of
from tests.world.innocents.experiments import EXPERIMENTS, Cell, Experiment
from tests.world.innocents.suspects import Log, Shown, Source
from tests.world.innocents.traffic import serve
from tests.world.innocents.weighing import FAULTS, SOUND

SCHEME: Final = make_scheme("gumbel")
LAW: Final = SCHEME.null_law
LEVELS: Final = (0.05, 0.01, 0.001, 0.0001)
ERRORS: Final = 4.0
FALSE_ALARM: Final = 1e-5
FALSE_ALARM_OF_A_CELL: Final = 2 * 2 * float(stats.norm.sf(ERRORS)) + 2 * 4 * FALSE_ALARM
PILOTS: Final = 24
DOUBLES: Final = 0.3
"""Share of the keys that faults and what is only told are tried on, of `MOST_DOUBLES` at most."""
MOST_DOUBLES: Final = 720
_CLEARLY_BELOW: Final = 1.3
"""No such z has a p near .05: the law is hardly skewed at these numbers of coins."""
_MASSES: Final = np.array(LAW.masses, dtype=np.float64) / 2**32
_CENTRED: Final = np.arange(_MASSES.size) - LAW.mean
_SKEWNESS: Final = float(_MASSES @ _CENTRED**3) / LAW.variance**1.5
_EXCESS: Final = float(_MASSES @ _CENTRED**4) / LAW.variance**2 - 3

Integers = NDArray[np.int64]


@dataclass
class Collected:
    """What a cell has gathered, key by key."""

    z: list[float] = field(default_factory=list)
    free: list[float] = field(default_factory=list)
    log10_p: list[float] = field(default_factory=list)
    coins: list[int] = field(default_factory=list)


def score(key: int, contexts: Integers, tokens: Integers) -> Integers:
    """Scores of pairs: int64 [n]."""
    return SCHEME.score(words_of(key, contexts, tokens))


@dataclass(frozen=True)
class Trial:
    """One key: its log and every n(c) that the cells ask for."""

    log: Log
    counts: dict[str, Integers]

    @classmethod
    def draw(cls, experiment: Experiment, cells: Sequence[Cell], number: int) -> Trial:
        """The log under a key that belongs to this number alone."""
        key = int(np.random.default_rng([number, 5]).integers(2**62))
        responses = serve(experiment.language, experiment.traffic, key, experiment.share, number)
        log = Log(key, experiment.share, number, experiment.language, responses)
        names = {cell.recipe for cell in cells}
        return cls(log, {name: (SOUND | FAULTS)[name](log) for name in sorted(names)})


@dataclass(frozen=True)
class Opened:
    """A source under a key: its pairs in the marked slot and their scores less the mean."""

    shown: Shown
    scores: Integers
    sampled: bool

    @classmethod
    def open(cls, source: Source, log: Log) -> Opened:
        shown = source.show(log)
        kept = np.flatnonzero(marks_of(log.key, shown.contexts, log.share))
        parts = (shown.rows, shown.contexts, shown.tokens, shown.masses, shown.totals)
        shown = Shown(*(part[kept] for part in parts), shown.expected[kept])
        return cls(shown, score(log.key, shown.contexts, shown.tokens), source.sampled)

    def weigh(self, cell: Cell, trial: Trial) -> Integers:
        """Weights of the cell."""
        n = trial.counts[cell.recipe][self.shown.contexts]
        return cell.weighting.weigh(self.shown, n, trial.log, self.sampled)


def z_of(weights: NDArray[Any], scores: Integers) -> float:
    """(S - mean) / standard deviation under the null law; 0 without weights."""
    deviation = math.sqrt(LAW.variance * float(weights @ weights))
    return float(weights @ (scores - LAW.mean)) / deviation if deviation else 0.0


def collect(found: Collected, cell: Cell, weights: Integers, scores: Integers, free: float) -> None:
    """One check: z, z of the coin-free weights, and the exact tail if it may be below .05."""
    found.z.append(z_of(weights, scores))
    found.free.append(free)
    found.coins.append(int(np.count_nonzero(weights)))
    signed = -weights if cell.weighting.low else weights
    approximate = approximate_tail(signed, scores)
    if any(is_close(approximate, level) for level in LEVELS):
        found.log10_p.append(log10_upper_tail(ClassTable.from_scores(signed, scores, LAW)))
    else:
        found.log10_p.append(approximate)


def approximate_tail(weights: Integers, scores: Integers) -> float:
    """log10 p by Edgeworth's expansion: says whether the exact tail has to be computed at all."""
    real = weights.astype(np.float64)
    squares = float(real @ real)
    if not squares:
        return 0.0
    z = z_of(weights, scores)
    if z < _CLEARLY_BELOW:
        return 0.0
    square = real * real
    g1 = _SKEWNESS * float(square @ real) / squares**1.5
    g2 = _EXCESS * float(square @ square) / squares**2
    terms = (
        g1 / 6 * (z**2 - 1) + g2 / 24 * (z**3 - 3 * z) + g1**2 / 72 * (z**5 - 10 * z**3 + 15 * z)
    )
    p = 0.5 * math.erfc(z / math.sqrt(2)) + math.exp(-(z**2) / 2) / math.sqrt(2 * math.pi) * terms
    return math.log10(min(max(p, 1e-300), 1.0))


def is_close(log10_p: float, level: float) -> bool:
    """Whether the exact p may lie on the other side of the level: a twentieth of log10."""
    wanted = math.log10(level)
    return abs(log10_p - wanted) <= 0.05 * max(1.0, -wanted)


def run_experiment(name: str, scale: float = 1.0, seed: int = 0) -> dict[str, Any]:
    """All cells of an experiment, keys numbered from `seed` on: its part of the results file."""
    experiment, started = EXPERIMENTS[name](), time.perf_counter()
    sources = experiment.sources()
    pilots = run_pilots(experiment, sources, 10**9 + seed)
    found = {cell: Collected() for cell in experiment.cells}
    keys = max(20, round(experiment.keys * scale))
    lengths = []
    for number in range(seed, seed + keys):
        all_cells = number - seed < min(max(20, DOUBLES * keys), MOST_DOUBLES)
        cells = [c for c in experiment.cells if all_cells or c.kind == "sound"]
        lengths.append(check_once(experiment, sources, cells, pilots, found, number))
    return {
        "experiment": name,
        "title": experiment.name,
        "k": experiment.language.width,
        "keys": keys,
        "seed": seed,
        "ids_per_response": round(float(np.mean(lengths)), 1),
        "seconds": round(time.perf_counter() - started),
        "cells": [
            {"cell": cell.name, "kind": cell.kind, **summarise(one)} for cell, one in found.items()
        ],
    }


def check_once(
    experiment: Experiment,
    sources: Mapping[str, Source],
    cells: Sequence[Cell],
    pilots: Mapping[Cell, NDArray[np.float64]],
    found: Mapping[Cell, Collected],
    number: int,
) -> float:
    """Every cell under one key; returns the mean length of a response."""
    trial = Trial.draw(experiment, cells, number)
    for name, source in sources.items():
        own = [cell for cell in cells if cell.source == name]
        if not own:
            continue
        opened = Opened.open(source, trial.log)
        marked = np.flatnonzero(marks_of(trial.log.key, source.contexts, experiment.share))
        scores = score(trial.log.key, source.contexts[marked], source.tokens[marked])
        for cell in own:
            free = z_of(pilots[cell][marked], scores)
            collect(found[cell], cell, opened.weigh(cell, trial), opened.scores, free)
    return float(trial.log.responses.lengths.mean())


def run_pilots(
    experiment: Experiment, sources: Mapping[str, Source], seed: int
) -> dict[Cell, NDArray[np.float64]]:
    """Coin-free weights of every cell, per pair of the universe of its source.

    The mean weight over other keys under which the pair was in the marked slot.
    """
    sums = {cell: np.zeros(sources[cell.source].contexts.size) for cell in experiment.cells}
    hits = {name: np.zeros(source.contexts.size) for name, source in sources.items()}
    for number in range(seed, seed + PILOTS):
        trial = Trial.draw(experiment, experiment.cells, number)
        for name, source in sources.items():
            opened = Opened.open(source, trial.log)
            known = opened.shown.rows >= 0
            hits[name] += marks_of(trial.log.key, source.contexts, experiment.share)
            for cell in (one for one in experiment.cells if one.source == name):
                sums[cell][opened.shown.rows[known]] += opened.weigh(cell, trial)[known]
    return {cell: total / np.maximum(hits[cell.source], 1) for cell, total in sums.items()}


def summarise(found: Collected) -> dict[str, Any]:
    """The figures of one cell."""
    z, free = np.array(found.z), np.array(found.free)
    slope = float(np.cov(z, free)[0, 1] / free.var()) if free.any() else 0.0
    rest = z - slope * free
    n = z.size
    rejected = {str(a): int((np.array(found.log10_p) <= math.log10(a)).sum()) for a in LEVELS}
    return {
        "checks": n,
        "coins": round(float(np.mean(found.coins))),
        "mean_z": round(float(rest.mean()), 5),
        "standard_error": round(float(rest.std(ddof=1)) / math.sqrt(n), 5),
        "plain_mean_z": round(float(z.mean()), 5),
        "sd_z": round(float(z.std(ddof=1)), 5),
        "sd_error": round(sd_error(z), 5),
        "rejected": rejected,
    }


def sd_error(z: NDArray[np.float64]) -> float:
    """Standard error of the standard deviation of z, which need not be normal."""
    fourth = float(stats.kurtosis(z)) if z.std() > 0 else 0.0
    return math.sqrt(max(fourth + 2, 0.5) / (4 * z.size))


def limits(n: int, level: float) -> tuple[int, int]:
    """Fewest and most rejections that n exact tests show, but with probability 2 FALSE_ALARM."""
    low = int(stats.binom.ppf(FALSE_ALARM, n, level))
    return low, int(stats.binom.isf(FALSE_ALARM, n, level))


def judge(cell: dict[str, Any]) -> list[str]:
    """Why a cell fails; empty if it passes."""
    reasons = []
    if abs(cell["mean_z"]) > ERRORS * cell["standard_error"]:
        reasons.append("mean")
    if abs(cell["sd_z"] - 1) > ERRORS * cell["sd_error"]:
        reasons.append("sd")
    for level, rejected in cell["rejected"].items():
        low, high = limits(cell["checks"], float(level))
        if not low <= rejected <= high:
            reasons.append(f"rejections at {level}")
    return reasons


def as_it_must(cell: dict[str, Any]) -> bool:
    """Sound cells pass, faults fail; what is only told is not judged."""
    return cell["kind"] == "told" or bool(judge(cell)) == (cell["kind"] == "fault")
