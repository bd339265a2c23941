"""The e-process: mean exactly 1, false alarms, early stopping, and wrong uses."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from dataclasses import FrozenInstanceError
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from provenance.errors import ProvenanceError, UsageError
from provenance.stats.eprocess import EProcess, add_batch, start
from provenance.stats.laws import NullLaw
from provenance.stats.mixture import log10_mixture
from provenance.stats.power import critical_value
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable

Laws = dict[str, NullLaw]
QUARTER = NullLaw((3, 1))


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.uint32).reshape(-1, 1)


def scores_of(values: Any) -> Callable[[np.ndarray], np.ndarray]:
    array = np.asarray(values)
    return lambda positions: array[positions]


# --- E has mean 1 ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["green", "tournament", "holes"])
@pytest.mark.parametrize("weights", [(1,), (2, 2), (3, 1, -2), (-1, -1)])
def test_mean_is_one_by_enumeration(name: str, weights: tuple[int, ...], laws: Laws) -> None:
    law = laws[name]
    slopes = start(law, 3, 1).slopes
    mean = 0.0
    for scores in itertools.product(law.support, repeat=len(weights)):
        table = ClassTable.from_scores(weights, scores, law)
        probability = math.prod(law.masses[score] / law.total for score in scores)
        mean += probability * 10 ** log10_mixture(table, slopes)
    assert mean == pytest.approx(1.0, abs=1e-11)


def play(
    coins: tuple[int, ...], strategy: Callable[[EProcess, int], tuple[list[int], list[int]] | None]
) -> EProcess:
    """Batches chosen by the strategy, which sees the process so far; None stops."""
    process = start(QUARTER, 3, 1)
    for turn in itertools.count():
        batch = strategy(process, turn)
        if batch is None:
            return process
        units, weights = batch
        process = add_batch(process, rows(*units), weights, scores_of([coins[u] for u in units]))
    raise AssertionError


def hostile(process: EProcess, turn: int) -> tuple[list[int], list[int]] | None:
    """Stops at a gain; otherwise repeats old coins with large weights, and doubles new ones."""
    if turn == 4 or process.log10_e > 0.1:
        return None
    new = [2 * turn, 2 * turn + 1]
    weight = 3 if process.log10_e < 0 else -1
    return [*range(2 * turn), *new], [3] * (2 * turn) + [weight, 1]


def red_stops(process: EProcess, turn: int) -> tuple[list[int], list[int]] | None:
    """Statistics.md section 3: stop if red, else weigh the same coin again."""
    if turn == 2 or (turn == 1 and process.table.statistic == 0):
        return None
    return [0], [3]


@pytest.mark.parametrize("strategy", [hostile, red_stops])
def test_mean_at_a_stopping_time_is_one_by_enumeration(strategy: Any) -> None:
    """All 2^8 outcomes of eight coins; the strategy uses everything that it can see."""
    mean = 0.0
    for coins in itertools.product((0, 1), repeat=8):
        probability = math.prod(0.25 if coin else 0.75 for coin in coins)
        mean += probability * 10 ** play(coins, strategy).log10_e
    assert mean == pytest.approx(1.0, abs=1e-11)


def test_what_the_rule_prevents() -> None:
    """Weighing a revealed coin again is no martingale: mean 1 + (1 - p) / (1 - p + p e^s) > 1."""
    slope, mean = 1.0, 0.0
    mgf = 0.75 + 0.25 * math.exp(slope)
    for coin in (0, 1):
        looks = 1 if coin == 0 else 2
        mean += (0.25 if coin else 0.75) * math.exp(slope * coin * looks) / mgf
    assert mean == pytest.approx(0.75 / mgf + 0.25 * math.exp(2) / mgf)
    assert mean > 1.5


# --- false alarms and early stopping -----------------------------------------------------------


def limit(runs: int, level: float) -> int:
    """Crossings that a valid test exceeds with probability 1e-4."""
    return int(binom.isf(1e-4, runs, level))


def green_paths(z: float, runs: int, looks: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Totals (runs, looks) and log10 E of 100,000 green coins; vectorised, checked below."""
    rng = np.random.default_rng(seed)
    step = 100_000 // looks
    success = 0.25 + z * math.sqrt(3 / 16 / 100_000)
    totals = rng.binomial(step, success, (runs, looks)).cumsum(axis=1)
    slopes = np.array(start(QUARTER, 1, 1).slopes)
    cumulants = np.log1p(0.25 * np.expm1(slopes))
    evidence = np.empty(totals.shape)
    for look in range(looks):
        terms = np.exp(np.multiply.outer(totals[:, look], slopes) - step * (look + 1) * cumulants)
        evidence[:, look] = np.log10(terms.mean(axis=1))
    return totals, evidence


def test_vectorised_paths_are_the_product() -> None:
    totals, evidence = green_paths(5.0, 2, 4, seed=1)
    process = start(QUARTER, 1, 1)
    for look in range(4):
        coins = np.zeros(25_000, dtype=np.int64)
        coins[: np.diff(totals[1], prepend=0)[look]] = 1
        units = np.arange(look * 25_000, (look + 1) * 25_000, dtype=np.uint32)[:, None]
        process = add_batch(process, units, np.ones(25_000, dtype=int), scores_of(coins))
        assert process.log10_e == pytest.approx(evidence[1, look], abs=1e-8)
    assert process.log10_p == pytest.approx(-max(evidence[1].max(), 0))


def test_false_alarms_of_many_looks() -> None:
    """100 looks at each of 4,000 innocent suspects."""
    _, evidence = green_paths(0.0, 4000, 100, seed=2)
    best = evidence.max(axis=1)
    for alpha in (0.2, 0.05, 0.01, 0.001):
        assert (best >= -math.log10(alpha)).sum() <= limit(4000, alpha)


def test_false_alarms_through_the_api(laws: Laws) -> None:
    """H0 as hostile as the rules allow: repeats, signs and sizes that follow earlier coins."""
    runs, best = 150, []
    rng = np.random.default_rng(8)
    for _ in range(runs):
        process = start(laws["tournament"], 5, 1)
        coins = rng.binomial(4, 0.5, 60)
        for _ in range(4):
            units, counts = np.unique(rng.zipf(1.4, 40) % 60, return_counts=True)
            sign = 1 if process.log10_e >= 0 else -1
            weights = sign * np.minimum(counts * (1 + (process.log10_e > 0.3)), 5)
            process = add_batch(process, rows(*units), weights, scores_of(coins[units]))
        best.append(-process.log10_p)
    for alpha in (0.5, 0.2, 0.05):
        assert sum(value >= -math.log10(alpha) for value in best) <= limit(runs, alpha)


@pytest.mark.parametrize(
    ("z", "alpha", "fixed", "anytime", "share"),
    [
        (3, 1e-3, 0.46, 0.12, None),
        (5, 1e-3, 0.96, 0.78, 0.60),
        (6, 1e-3, 1.0, 0.96, 0.48),
        (7, 1e-6, 0.99, 0.89, 0.63),
        (10, 1e-6, 1.0, 1.0, 0.33),
    ],
)
def test_early_stopping(
    z: int, alpha: float, fixed: float, anytime: float, share: float | None
) -> None:
    """The table of statistics.md section 3, within .06 (2.5 % standard error); long: benchmarks."""
    totals, evidence = green_paths(z, 400, 100, seed=4)
    table = ClassTable((ScoreClass(1, QUARTER, 100_000, 0),))
    critical = critical_value(table, alpha)
    assert (totals[:, -1] >= critical).mean() == pytest.approx(fixed, abs=0.07)
    stopped = evidence >= -math.log10(alpha)
    ever = stopped.any(axis=1)
    assert ever.mean() == pytest.approx(anytime, abs=0.07)
    if share is not None:
        used = (stopped.argmax(axis=1)[ever] + 1) / 100
        assert np.median(used) == pytest.approx(share, abs=0.06)


# --- coins are weighed once, before they are seen ----------------------------------------------


def test_only_new_units_of_nonzero_weight_are_revealed() -> None:
    asked: list[list[int]] = []

    def reveal(positions: np.ndarray) -> np.ndarray:
        asked.append(positions.tolist())
        return np.ones(positions.size, dtype=np.int64)

    process = add_batch(start(QUARTER, 3, 1), rows(7, 5, 9), [1, 0, 2], reveal)
    process = add_batch(process, rows(5, 7, 9, 1), [3, 3, 3, -1], reveal)
    assert asked == [[0, 2], [0, 3]]
    assert [look.ignored for look in process.looks] == [0, 2]
    assert [(c.weight, c.count) for c in process.table.classes] == [(-1, 1), (1, 1), (2, 1), (3, 1)]
    before = process.log10_e
    process = add_batch(process, rows(1, 5), [3, 3], reveal)
    assert len(asked) == 2  # nothing new: no key is opened
    assert process.log10_e == before


def test_reveal_cannot_touch_weights() -> None:
    weights, units = np.array([1, 1]), rows(1, 2)

    def cheat(positions: np.ndarray) -> np.ndarray:
        scores = np.array([1, 0])[positions]
        weights[:] = 3 * scores  # would be the perfect weights
        units[:] = 8
        positions[:] = 0
        return scores

    process = add_batch(start(QUARTER, 3, 1), units, weights, cheat)
    assert [(c.weight, c.count, c.total) for c in process.table.classes] == [(1, 2, 1)]
    assert add_batch(process, rows(1, 2), [1, 1], cheat).looks[-1].ignored == 2


def test_a_failing_reveal_changes_nothing() -> None:
    process = start(QUARTER, 3, 1)

    def fail(positions: np.ndarray) -> np.ndarray:
        raise OSError("no key")

    with pytest.raises(OSError, match="no key"):
        add_batch(process, rows(1), [1], fail)
    assert process == start(QUARTER, 3, 1)


def test_states_are_frozen() -> None:
    process = start(QUARTER, 3, 1)
    with pytest.raises(FrozenInstanceError):
        process.maximal_weight = 4  # type: ignore[misc]
    assert isinstance(process.revealed, bytes)


WRONG: list[tuple[str, dict[str, Any]]] = [
    ("distinct", {"units": rows(1, 1), "weights": [1, 2], "reveal": scores_of([1, 1])}),
    ("at most the declared 3", {"weights": [4, 1]}),
    ("at most the declared 3", {"weights": [1, -4]}),
    ("integer vector", {"weights": [1.0, 1.0]}),
    ("integer vector", {"weights": [1]}),
    ("integer vector", {"weights": [True, True]}),
    ("uint32", {"units": np.array([[1], [2]])}),
    ("uint32", {"units": rows(1, 2).ravel()}),
    ("uint32", {"units": rows(1, 2).reshape(1, 2)}),
    ("one score per position", {"reveal": lambda positions: [1]}),
    ("one score per position", {"reveal": lambda positions: 1}),
    ("integer", {"reveal": lambda positions: [0.5, 1.0]}),
    ("positive probability", {"reveal": lambda positions: [0, 2]}),
    ("positive probability", {"reveal": lambda positions: [-1, 0]}),
]


@pytest.mark.parametrize(("message", "change"), WRONG)
def test_wrong_batches(message: str, change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {
        "units": rows(1, 2),
        "weights": [1, 2],
        "reveal": scores_of([0, 1]),
    }
    with pytest.raises(ProvenanceError, match=message):
        add_batch(start(QUARTER, 3, 1), **{**arguments, **change})


@pytest.mark.parametrize(
    "arguments",
    [
        (NullLaw((0, 5)), 1, 1),
        (QUARTER, 0, 1),
        (QUARTER, -3, 1),
        (QUARTER, 2**40 + 1, 1),
        (QUARTER, 1.0, 1),
        (QUARTER, True, 1),
        (QUARTER, 1, 0),
        (QUARTER, 1, 65),
    ],
)
def test_wrong_starts(arguments: Any) -> None:
    with pytest.raises(UsageError):
        start(*arguments)


def test_parts_that_do_not_belong_together() -> None:
    table = ClassTable((ScoreClass(1, QUARTER, 2, 2),))
    with pytest.raises(UsageError, match="belong together"):
        EProcess(QUARTER, 1, 1, b"", (), table)
