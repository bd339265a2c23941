"""First positions by hashing, against numpy.unique."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provenance.coins.contexts import first_occurrences, first_pairs
from provenance.coins.distinct import first_positions


def slow(values):
    _, first, inverse = np.unique(values, return_index=True, return_inverse=True)
    return first[inverse]


@settings(deadline=None)
@given(st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-3, 3), max_size=60))
def test_first_positions_of_any_values(values):
    array = np.array(values, dtype=np.int64)
    expected = slow(array) if values else array
    assert first_positions(array).tolist() == expected.tolist()
    assert first_occurrences(array).tolist() == (expected == np.arange(len(values))).tolist()


@pytest.mark.parametrize("kind", ["distinct", "zipf", "equal", "multiples"])
@pytest.mark.parametrize("size", [8191, 8192, 300_000])
def test_first_positions_of_many_values(kind, size):
    rng = np.random.default_rng(size)
    values = {
        "distinct": rng.permutation(size),
        "zipf": np.minimum(rng.zipf(1.2, size), 1 << 40),
        "equal": np.full(size, 7),
        "multiples": (rng.integers(0, 1000, size) << 50),
    }[kind].astype(np.int64)
    assert (first_positions(values) == slow(values)).all()


@settings(deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 3))
def test_first_pairs_are_those_of_rows(seed, width):
    rng = np.random.default_rng(seed)
    alphabet = rng.choice([0, 1, 2, (1 << 21) - 1], 3)
    contexts = rng.choice(alphabet, (80, width)).astype(np.uint32)
    tokens = rng.choice(alphabet, 80).astype(np.uint32)
    rows = np.c_[contexts, tokens]
    expected = np.sort(np.unique(rows, axis=0, return_index=True)[1])
    assert first_pairs(contexts, tokens).tolist() == expected.tolist()
