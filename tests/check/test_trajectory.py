"""Evidence against tokens: the last point is the check, and under chance neither curve misleads."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy.stats import binom

from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.trajectory import merge_observations, trace_evidence
from provenance.check.weigh import MAXIMAL_WEIGHTS, PairCounts, weigh
from provenance.keys.keyring import Key
from provenance.suspect.access.outputs import count_positions, observe, read_positions
from provenance.suspect.positions import split_positions
from tests.world.synthetic import innocent, learn, write_outputs


@pytest.fixture(scope="module")
def world(synthetic_world):
    return synthetic_world


@pytest.fixture(scope="module")
def guilty(world):
    outputs = learn(world, np.random.default_rng(5), 200, 80)
    return write_outputs(world.folder / "traced-guilty.jsonl", outputs)


def batches(world, path, count):
    positions = read_positions([path], world.tokenizer, world.keyring.public)
    size = -(-len(positions.outputs) // count)
    return [count_positions(part) for part in split_positions(positions, size)]


def test_merged_batches_are_the_observations_of_all_outputs(world, guilty):
    whole = observe([guilty], world.tokenizer, world.keyring.public)
    merged = merge_observations(batches(world, guilty, 7))
    for name in ("contexts", "tokens", "masses", "totals", "expected"):
        np.testing.assert_array_equal(getattr(merged, name), getattr(whole, name))
    for name in ("positions", "outputs", "tokens_read", "short_outputs", "repeated", "prompted"):
        assert getattr(merged, name) == getattr(whole, name)


def test_the_last_point_is_the_global_key_of_the_check(world, guilty):
    whole = observe([guilty], world.tokenizer, world.keyring.public)
    verdict = check_outputs(whole, world.index, world.keyring, CheckSettings(placebo_keys=60))
    traced = trace_evidence(batches(world, guilty, 6), world.index, world.keyring, "log-sqrt")
    assert traced.key == "global"
    assert len(traced.points) == 6
    assert traced.points[-1].log10_p == verdict.hypotheses[0].tail.log10_p
    assert traced.points[-1].tokens == whole.tokens_read
    assert [p.tokens for p in traced.points] == sorted(p.tokens for p in traced.points)
    assert traced.points[-1].log10_e > 5
    json.dumps(traced.to_json(), allow_nan=False)


def test_an_e_process_over_one_batch_costs_a_few_orders_against_p(world, guilty):
    (point,) = trace_evidence(
        batches(world, guilty, 1), world.index, world.keyring, "log-sqrt"
    ).points
    assert 0 < -point.log10_p - point.log10_e < 8


def test_under_chance_both_curves_keep_their_promise(world, monkeypatch):
    """Random coins, many times: each p by itself, the e-process at any time."""
    outputs, prompts = innocent("repeats", world, np.random.default_rng(2))
    path = write_outputs(world.folder / "traced-innocent.jsonl", outputs, prompts)
    parts = batches(world, path, 3)
    rng = np.random.default_rng(11)
    memory: dict[tuple[int, ...], int] = {}

    def words(self, contexts, tokens):
        del self
        units = np.concatenate([contexts, tokens[:, None]], axis=1).tolist()
        fresh = [tuple(unit) for unit in units if tuple(unit) not in memory]
        memory.update(zip(fresh, rng.integers(0, 1 << 32, len(fresh)).tolist(), strict=True))
        return np.array([memory[tuple(unit)] for unit in units], dtype=np.uint32)

    monkeypatch.setattr(Key, "words", words)
    runs, crossed, small = 80, 0, 0
    for _ in range(runs):
        memory.clear()
        points = trace_evidence(parts, world.index, world.keyring, "log-sqrt").points
        crossed += max(point.log10_e for point in points) >= 1.0
        small += points[-1].log10_p <= -1.0
    # false alarms once in 1e5 each
    assert crossed <= binom.ppf(1 - 1e-5, runs, 0.1)
    assert small <= binom.ppf(1 - 1e-5, runs, 0.1)
    assert small > 0


def test_a_key_that_marked_nothing_has_no_points(world, guilty):
    traced = trace_evidence(
        batches(world, guilty, 3), world.index, world.keyring, "log-sqrt", ("week", "unserved")
    )
    assert traced.points == ()
    assert trace_evidence([], world.index, world.keyring, "log-sqrt").points == ()


def test_no_weight_exceeds_what_the_e_process_declares():
    rng = np.random.default_rng(0)
    n = 2_000
    totals = rng.integers(1, 1 << 20, n)
    masses = np.minimum(totals, rng.geometric(1e-4, n)).astype(float)
    responses = rng.integers(0, 1 << 30, n)
    for sampled in (True, False):
        choices = PairCounts(masses, totals, responses, totals * rng.random(n) ** 6, sampled)
        for rule, bound in MAXIMAL_WEIGHTS.items():
            weights = np.abs(weigh(choices, rule))
            assert weights.max() <= bound
            assert weights.max() >= 0.95 * bound
