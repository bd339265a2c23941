"""States of the e-process: what is invariant, JSON and back, tampering."""

from __future__ import annotations

from typing import Any

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provenance.stats.eprocess import EProcess, add_batch, start
from provenance.stats.laws import NullLaw
from tests.stats.test_eprocess import QUARTER, rows, scores_of

# --- invariances -------------------------------------------------------------------------------

batches = st.lists(
    st.dictionaries(st.integers(0, 30), st.integers(-3, 3), max_size=8), min_size=1, max_size=5
)


def run(parts: list[dict[int, int]], coins: np.ndarray) -> EProcess:
    process = start(NullLaw((2, 1, 1)), 3, 1)
    for part in parts:
        units = list(part)
        weights = np.array(list(part.values()), dtype=np.int64)
        process = add_batch(process, rows(*units), weights, scores_of(coins[units]))
    return process


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.too_slow])
@given(batches, st.integers(0, 2**31), st.randoms())
def test_what_is_invariant(parts: list[dict[int, int]], seed: int, random: Any) -> None:
    """E depends on the merged class table alone.

    So neither the order of the units within a batch, nor a repetition of old batches, nor (for
    disjoint batches) their order or their merging changes it. The anytime p is its running
    minimum: it depends on the order, and a merged batch has fewer chances.
    """
    coins = np.random.default_rng(seed).integers(0, 3, 31)
    process = run(parts, coins)
    shuffled = [dict(random.sample(list(part.items()), len(part))) for part in parts]
    assert run(shuffled, coins) == process
    again = run([*parts, *parts], coins)
    opened = {unit for part in parts for unit, weight in part.items() if weight}
    left = {unit for part in parts for unit in part} - opened
    assert again.table == process.table or left  # units of weight 0 are still to be opened
    seen: set[int] = set()
    disjoint = []
    for part in parts:
        disjoint.append({unit: w for unit, w in part.items() if unit not in seen and w})
        seen |= set(disjoint[-1])
    first, last = run(disjoint, coins), run(disjoint[::-1], coins)
    whole = run([{unit: w for part in disjoint for unit, w in part.items()}], coins)
    assert first.log10_e == last.log10_e == whole.log10_e == process.log10_e
    assert first.revealed == last.revealed == whole.revealed == process.revealed
    assert first.log10_p <= whole.log10_p <= 0.0


def test_order_of_repeats_matters() -> None:
    """Of a repeated unit the first weight counts: that is the price of the rule."""
    coins = np.ones(31, dtype=np.int64)
    assert run([{1: 3}, {1: 1}], coins).log10_e != run([{1: 1}, {1: 3}], coins).log10_e


def test_anytime_p_is_the_running_minimum() -> None:
    process = add_batch(start(QUARTER, 3, 1), rows(1, 2, 3), [1, 1, 1], scores_of([1, 1, 1]))
    best = process.log10_e
    process = add_batch(process, rows(4, 5, 6, 7), [1] * 4, scores_of([0, 0, 0, 0]))
    assert process.log10_e < best
    assert process.log10_p == -best
    assert start(QUARTER, 3, 1).log10_p == 0.0
    loser = add_batch(start(QUARTER, 3, 1), rows(1, 2), [1, 1], scores_of([0, 0]))
    assert (loser.log10_p, loser.log10_e < 0) == (0.0, True)
