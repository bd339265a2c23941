"""torch's CPU generator without torch: equal to torch itself, and to MT19937's published output."""

import numpy as np
import pytest

from provenance.errors import UsageError
from provenance.marks.foreign import seeding, torch_cpu
from provenance.marks.foreign.uniforms import (
    exponential_law,
    exponential_score,
    exponential_thresholds,
)

SEEDS = [0, 1, 7, 2**31, 2**32 - 1, 2**32 + 5, 2**63 + 987654321, 2**64 - 2]
SIZES = [1, 2, 3, 255, 256, 623, 624, 625, 1000, 32001, 50257]


def generator(seed):
    torch = pytest.importorskip("torch")
    return torch, torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_permutations_lists_rows_and_bits_equal_torch(seed):
    rng = np.random.default_rng(1)
    for size in SIZES:
        torch, state = generator(seed)
        expected = torch.randperm(size, generator=state).numpy()
        assert (torch_cpu.permutation(seed, size) == expected).all()
        count = int(size * 0.3)
        row = torch.rand(size, generator=state.manual_seed(seed)).numpy()
        bits = torch.randint(0, 2, (size,), generator=state.manual_seed(seed)).numpy()
        assert (torch_cpu.random_bits(seed, size) == bits).all()
        for n in (5, 100):  # followed one by one, and shuffled
            tokens = rng.integers(0, size, n, dtype=np.uint32)
            seeds = np.full(n, seed & 0xFFFFFFFF, dtype=np.uint32)
            flags = torch_cpu.first_slots(seeds, tokens, size, count)
            assert (flags == np.isin(tokens, expected[:count])).all()
            mantissas = torch_cpu.random_mantissas(seeds, tokens)
            assert (mantissas / np.float32(2**24) == row[tokens]).all()


@pytest.mark.parametrize("size", [128256, 151936, 1_000_003])
def test_large_permutations_equal_torch(size):
    torch, state = generator(12345)
    expected = torch.randperm(size, generator=state).numpy()
    assert (torch_cpu.permutation(12345, size) == expected).all()


def test_the_published_ten_thousandth_output_of_mt19937():
    """init_genrand(5489): output 10,000 is 4123659995 (the value of C++11, [rand.predef])."""
    mantissa = torch_cpu.random_mantissas(np.array([5489], np.uint32), np.array([9999], np.uint32))
    assert int(mantissa[0]) == 4123659995 & 0xFFFFFF


def test_mixed_seeds_in_any_order():
    rng = np.random.default_rng(2)
    seeds = rng.choice(rng.integers(0, 2**32, 30, dtype=np.uint32), 600)
    tokens = rng.integers(0, 400, 600, dtype=np.uint32)
    flags = torch_cpu.first_slots(seeds, tokens, 400, 100)
    rows = torch_cpu.random_mantissas(seeds, tokens)
    for i in range(0, 600, 7):
        one = slice(i, i + 1)
        assert flags[i] == torch_cpu.first_slots(seeds[one], tokens[one], 400, 100)[0]
        assert rows[i] == torch_cpu.random_mantissas(seeds[one], tokens[one])[0]


def test_exactly_the_list_is_green():
    tokens = np.arange(1000, dtype=np.uint32)
    for count in (0, 1, 250, 999, 1000):
        flags = torch_cpu.first_slots(np.full(1000, 3, np.uint32), tokens, 1000, count)
        assert flags.sum() == count


@pytest.mark.parametrize(("length", "count"), [(0, 0), (10, 11), (10, -1), ((1 << 26) + 1, 5)])
def test_impossible_lists_are_refused(length, count):
    with pytest.raises(UsageError):
        torch_cpu.first_slots(np.zeros(1, np.uint32), np.zeros(1, np.uint32), length, count)


def test_seeds_equal_python_integers():
    """Keys and products far beyond 64 bits, negative minima: against Python's own arithmetic."""
    rng = np.random.default_rng(3)
    windows = np.concatenate(
        (rng.integers(0, 2**18, (300, 4)), rng.integers(0, 2**32, (100, 4)), np.zeros((1, 4)))
    ).astype(np.uint32)
    modulus = 2**64 - 1
    table = torch_cpu.permutation(2971215073, seeding.TABLE_SIZE).tolist()

    def wrap(value):
        return (value + 2**63) % 2**64 - 2**63

    def hashed(value):
        return table[value % seeding.TABLE_SIZE] + 1

    for key in (1, 15485863, 2**40 + 12345, 2**62 + 3, 2**63 - 1):
        sums = windows.sum(axis=1, dtype=np.uint64)
        product = [key * int(s) % modulus % 2**32 for s in sums]
        assert seeding.product(key, sums).tolist() == product
        rolled = []
        for window in windows.tolist():
            state = key
            for token in window:
                state = (state * 35317 + token) % modulus
            rolled.append(state % 2**32)
        assert seeding.rolling(key, 35317, windows).tolist() == rolled
        anchored, smallest = [], []
        for window in windows.tolist():
            values = [wrap(wrap(key * hashed(t)) * hashed(window[-1])) for t in window]
            anchored.append(min(values) % modulus % 2**32)
            smallest.append(min(hashed(wrap(key * t)) for t in window))
        assert seeding.anchored_minhash(key, 2971215073, windows).tolist() == anchored
        assert seeding.minhash(key, 2971215073, windows).tolist() == smallest
    for key in (2**64 - 2, 2**64 - 1, 2**70):
        product = [key * int(s) % modulus % 2**32 for s in sums]
        assert seeding.product(key, sums).tolist() == product


@pytest.mark.parametrize("total", [8191, 1 << 24, 1 << 32])
def test_lattice_thresholds_equal_exact_arithmetic(total):
    from mpmath import mp

    mp.dps = 50
    thresholds = exponential_thresholds(total).tolist()
    for j, threshold in enumerate(thresholds, start=1):
        assert threshold == int(mp.ceil(total * (1 - mp.exp(mp.mpf(-j) / 4))))
    assert int(mp.ceil(total * (1 - mp.exp(mp.mpf(-len(thresholds) - 1) / 4)))) == total


def test_lattice_law_counts_every_value_and_is_ours_at_32_bits():
    from provenance.marks.own.gumbel import Gumbel

    counted = np.bincount(exponential_score(np.arange(8191), 8191))
    assert tuple(counted.tolist()) == exponential_law(None, 8191).masses
    every = np.bincount(exponential_score(np.arange(1 << 20), 1 << 20))
    assert tuple(every.tolist()) == exponential_law(None, 1 << 20).masses
    assert exponential_law(None, 1 << 32) == Gumbel().null_law
