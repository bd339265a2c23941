"""A sample of the control contexts: exact where it looks at contexts only, and what it must not."""

from __future__ import annotations

import numpy as np
import pytest

from provenance.coins.contexts import pack
from provenance.errors import UsageError
from provenance.served import windows
from provenance.served.build import build_index, merge_indexes
from provenance.served.control_sample import control_words, is_sampled
from provenance.served.index import Index
from tests.served.test_index import read_rows
from tests.world.control_sample import draw_control_z
from tests.world.synthetic import Teacher, make_world

WORLDS = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("world"), Teacher.draw(0), 5, 200, 40)
    yield made
    made.index.close()


def _mean_z(tmp_path, patch=None):
    z, coins = [], []
    for seed in range(WORLDS):
        found, count = draw_control_z(tmp_path / str(seed), seed, 0.25, patch, responses=60)
        z += found
        coins.append(count)
    assert min(coins) > 50
    return np.mean(z), np.std(z), 1 / np.sqrt(len(z))


def test_the_control_slot_is_null_with_a_sample(tmp_path):
    mean, deviation, error = _mean_z(tmp_path)
    assert abs(mean) < 4 * error
    assert 0.5 < deviation < 1.5


def test_a_sample_that_looks_at_a_coin_is_seen(tmp_path, monkeypatch):
    """The double: contexts are kept because of what a key says of their likeliest token."""

    def patch(sample):
        monkeypatch.setattr(windows, "is_sampled", sample)

    mean, _, error = _mean_z(tmp_path, patch)
    assert mean > 4 * error


def test_samples_are_nested_and_of_the_right_size():
    rng = np.random.default_rng(0)
    contexts = np.unique(pack(rng.integers(0, 50_000, (200_000, 2)).astype(np.uint32)))
    small, large = (is_sampled(contexts, control_words(share)) for share in (1 / 16, 1 / 4))
    assert not (small & ~large).any()
    assert small.mean() == pytest.approx(1 / 16, abs=0.003)
    assert large.mean() == pytest.approx(1 / 4, abs=0.005)
    assert is_sampled(contexts, control_words(1)).all()
    # neither the first nor the last id says whether a context is kept
    for ids in (contexts >> 21, contexts & ((1 << 21) - 1)):
        assert abs(small[ids % 2 == 0].mean() - small[ids % 2 == 1].mean()) < 0.005


@pytest.mark.parametrize("share", [0, -1, 1.1, float("nan"), 1e-12])
def test_impossible_shares(share):
    with pytest.raises(UsageError, match="share of control contexts"):
        control_words(share)


def test_only_control_rows_are_left_out(world, tmp_path):
    log = world.folder / "served.jsonl"
    whole = read_rows(world.folder / "index")
    part = build_index([log], tmp_path / "part", world.keyring, control_share=0.25)
    kept = read_rows(tmp_path / "part")
    assert [row for row in kept if row[0]] == [row for row in whole if row[0]]
    control = np.array([row[2] for row in whole if row[0] == 0])
    own = control[is_sampled(control, control_words(0.25))].tolist()
    assert [row[2] for row in kept if row[0] == 0] == own
    assert part.control_words == 1 << 30
    with Index.open(tmp_path / "part", world.keyring.public) as index:
        assert index.info()["control_words"] == 1 << 30


def test_indexes_of_two_shares_are_merged_to_the_smaller(world, tmp_path):
    lines = (world.folder / "served.jsonl").read_text().splitlines(keepends=True)
    logs = []
    for number, part in enumerate((lines[:100], lines[100:])):
        logs.append(tmp_path / f"{number}.jsonl")
        logs[-1].write_text("".join(part))
    build_index([logs[0]], tmp_path / "a", world.keyring, control_share=1.0)
    build_index([logs[1]], tmp_path / "b", world.keyring, control_share=0.25)
    merged = merge_indexes([tmp_path / "a", tmp_path / "b"], tmp_path / "m", world.keyring.public)
    assert merged == build_index(logs, tmp_path / "w", world.keyring, control_share=0.25)
