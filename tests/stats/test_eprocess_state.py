"""States of the e-process: what is invariant, JSON and back, tampering."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provenance.errors import DataError
from provenance.stats.eprocess import EProcess, add_batch, start
from provenance.stats.laws import NullLaw
from provenance.storage.files import canonical_json, parse_json
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


# --- files -------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.too_slow])
@given(batches, st.integers(0, 2**31))
def test_json_round_trip_and_continuation(parts: list[dict[int, int]], seed: int) -> None:
    coins = np.random.default_rng(seed).integers(0, 3, 31)
    process = run(parts, coins)
    text = canonical_json(process.to_json())
    read = EProcess.from_json(parse_json(text, "test"))
    assert read == process
    assert canonical_json(read.to_json()) == text
    new = rows(5, 40), [1, 2], scores_of([2, 0])
    assert add_batch(read, *new) == add_batch(process, *new)


def test_json_of_wide_units() -> None:
    units = np.array([[2**32 - 1, 0, 7], [0, 1, 2]], dtype=np.uint32)
    process = add_batch(start(QUARTER, 2**40, 3), units, [2**40, -1], scores_of([1, 0]))
    assert EProcess.from_json(json.loads(json.dumps(process.to_json()))) == process


def packed(*numbers: int) -> str:
    return base64.b64encode(rows(*numbers).astype(">u4").tobytes()).decode()


MUTATIONS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "a unit forgotten": lambda d: d.update(revealed=packed(1)),
    "units not sorted": lambda d: d.update(revealed=packed(2, 1, 3)),
    "units repeated": lambda d: d.update(revealed=packed(1, 1, 2, 3)),
    "units cut": lambda d: d.update(revealed=packed(1, 2, 3)[:-4]),
    "units no base64": lambda d: d.update(revealed="?" + packed(1, 2, 3)),
    "units no text": lambda d: d.update(revealed=3),
    "another format": lambda d: d.update(format="provenance e-process 2"),
    "a claimed E": lambda d: d.update(log10_e=30.0),
    "a field missing": lambda d: d.pop("width"),
    "smaller bound": lambda d: d.update(maximal_weight=2),
    "bound no integer": lambda d: d.update(maximal_weight=3.0),
    "bound true": lambda d: d.update(maximal_weight=True),
    "another law": lambda d: d.update(law=[1, 1]),
    "constant law": lambda d: d.update(law=[0, 1]),
    "law no list": lambda d: d.update(law=3),
    "law of floats": lambda d: d.update(law=[3.0, 1.0]),
    "another width": lambda d: d.update(width=2),
    "looks no list": lambda d: d.update(looks=7),
    "look no object": lambda d: d.update(looks=[7]),
    "look of text": lambda d: d.update(looks="ab"),
    "looks an object": lambda d: d.update(looks={}),
    "look with another field": lambda d: d["looks"][0].update(log10_e=9.0),
    "ignored negative": lambda d: d["looks"][0].update(ignored=-1),
    "ignored true": lambda d: d["looks"][0].update(ignored=True),
    "ignored no integer": lambda d: d["looks"][0].update(ignored=0.0),
    "table no object": lambda d: d["looks"][0].update(table=None),
    "more coins": lambda d: d["looks"][0]["table"]["classes"][0].update(count=9, total=9),
    "a total too large": lambda d: d["looks"][0]["table"]["classes"][0].update(total=9),
    "a look twice": lambda d: d["looks"].append(copy.deepcopy(d["looks"][0])),
}


@pytest.mark.parametrize("name", list(MUTATIONS))
def test_tampered_states_are_refused(name: str) -> None:
    process = add_batch(start(QUARTER, 3, 1), rows(1, 2, 3), [1, 3, 3], scores_of([1, 0, 1]))
    data = json.loads(json.dumps(process.to_json()))
    assert EProcess.from_json(data) == process
    MUTATIONS[name](data)
    with pytest.raises(DataError):
        EProcess.from_json(data)


@pytest.mark.parametrize("data", [None, [], "x", 3, {}])
def test_not_a_state(data: Any) -> None:
    with pytest.raises(DataError):
        EProcess.from_json(data)
