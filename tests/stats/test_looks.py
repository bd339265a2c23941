"""Planned looks and stopping on outputs: the level by simulation, the formulas, the domains."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy.stats import binom

from provenance.errors import UsageError
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.looks import coins_needed, outputs_suffice
from provenance.stats.tables import ClassTable

QUARTER = NullLaw((3, 1))


def limit(runs: int, level: float) -> int:
    """Crossings that a valid test exceeds with probability 1e-4."""
    return int(binom.isf(1e-4, runs, level))


def test_stopping_on_outputs_keeps_the_level() -> None:
    """Weights re-aggregated until they suffice, then one test: the p-value stays exact."""
    rng = np.random.default_rng(13)
    runs, alpha, errors, lengths = 400, 0.1, 0, []
    for _ in range(runs):
        draws: list[int] = []
        weights = np.zeros(0, dtype=np.int64)
        while not outputs_suffice(weights, shift=0.25, alpha=alpha):
            draws += (rng.zipf(1.3, 100) % 5000).tolist()
            weights = np.minimum(np.unique(draws, return_counts=True)[1], 3)
        lengths.append(len(draws))
        table = ClassTable.from_scores(weights, rng.binomial(1, 0.25, weights.size), QUARTER)
        errors += log10_upper_tail(table) <= math.log10(alpha)
    assert errors <= limit(runs, alpha)
    assert len(set(lengths)) > 1


def test_outputs_suffice_signs_and_zeros() -> None:
    assert not outputs_suffice([], 0.1, 0.01)
    assert not outputs_suffice([0, 0], 0.1, 0.01)
    assert outputs_suffice([-1, 1] * 700, 0.1, 0.01) == outputs_suffice([1] * 1400, 0.1, 0.01)
    assert outputs_suffice([1] * 542, 0.1, 0.01, power=0.5)  # (2.326 / .1)^2 = 541.2
    assert not outputs_suffice([1] * 541, 0.1, 0.01, power=0.5)


@pytest.mark.parametrize(
    "change",
    [
        {"weights": [0.5]},
        {"weights": [[1]]},
        {"shift": 0.0},
        {"shift": math.nan},
        {"alpha": 0.5},
        {"alpha": 0.0},
        {"power": 1.0},
        {"power": 0.4},
    ],
)
def test_outputs_suffice_domain(change: dict[str, Any]) -> None:
    arguments: dict[str, Any] = {"weights": [1, 2], "shift": 0.1, "alpha": 0.01, "power": 0.9}
    with pytest.raises(UsageError):
        outputs_suffice(**{**arguments, **change})


def test_the_coins_needed_are_where_outputs_begin_to_suffice() -> None:
    needed = math.ceil(coins_needed(0.1, 0.01, 0.8))
    assert outputs_suffice([7] * needed, 0.1, 0.01, 0.8)
    assert not outputs_suffice([7] * (needed - 1), 0.1, 0.01, 0.8)
