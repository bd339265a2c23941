"""A sequential check of a mark whose coins many pairs share: H0, and doubles that must be seen."""

import math
from dataclasses import replace

import numpy as np
import pytest

from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.looks.conclude import conclude
from provenance.check.looks.process import add_outputs, start
from provenance.check.score import weigh_observations
from provenance.errors import ConfigurationMismatchError
from provenance.marks.foreign.mark import ForeignKey, ForeignMark
from provenance.suspect.access.outputs import observe
from tests.world.foreign import make_foreign_world, random_scheme
from tests.world.shared_coins import simulate
from tests.world.synthetic import WORDS, Teacher, innocent, learn, write_outputs

SETTINGS = CheckSettings(rule="log-sqrt", placebo_keys=50)
RUNS, SEED = 150, b"h" * 32
SHARING = ("lm-watermarking", "markllm-exp", "hf-synthid")
"""A minimum over the window, a product of it, a hash to 12 bits."""


@pytest.fixture(scope="module", params=SHARING)
def world(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp(request.param)
    scheme = random_scheme(request.param, np.random.default_rng(3))
    if request.param == "hf-synthid":  # as many coins as this little text can share
        scheme = replace(scheme, sampling_table_size=1 << 12)
    made = make_foreign_world(folder, Teacher.draw(0), request.param, 3, 120, 60, scheme)
    yield made
    made.index.close()


def read(world, name, outputs, prompts=None):
    path = write_outputs(world.folder / f"{name}.jsonl", outputs, prompts)
    return observe([path], world.tokenizer, world.mark.public)


def batches_of(world, kind, count=3):
    outputs, prompts = innocent(kind, world, np.random.default_rng(11))
    return [
        read(world, f"{kind}-{rows[0]}", [outputs[i] for i in rows], [prompts[i] for i in rows])
        for rows in np.array_split(np.arange(len(outputs)), count)
    ]


def weigh(world, batches):
    index = world.index.with_equal_counts() if world.mark.shares_coins else world.index
    return [
        weigh_observations(batch, index, world.mark, "log-sqrt").hypotheses["global", ""]
        for batch in batches
    ]


def under_random_keys(world, kind, runs=RUNS):
    found = simulate(world.mark, weigh(world, batches_of(world, kind)), runs, SEED)
    return found.best, found.z, found.by_pairs, found.forgetful


@pytest.mark.parametrize("kind", ["ordinary", "repeats"])
def test_innocent_suspects_are_not_accused_at_any_look(world, kind):
    """False alarm rate of this test 1e-6 a line; the coins of one list vary less than its law."""
    best, z, by_pairs, forgetful = under_random_keys(world, kind)
    for alpha in (0.5, 0.1, 0.01):
        crossed = sum(value >= -math.log10(alpha) for value in best)
        assert crossed <= RUNS * alpha + 4.9 * math.sqrt(RUNS * alpha * (1 - alpha)) + 1
    assert np.std(z) < 1.35
    assert abs(np.mean(z)) < 4.9 / math.sqrt(RUNS)
    assert np.std(z) > 0.4
    # the doubles see too much: the same coin several times
    assert np.std(by_pairs) > np.std(z)
    if kind == "repeats":
        assert np.std(forgetful) > 1.3 * np.std(z)
    if kind == "ordinary" and world.mark.scheme.name == "lm-watermarking":
        assert np.std(by_pairs) > 1.3


def test_one_batch_is_the_plain_check_and_a_second_adds_new_units_only(world):
    outputs = learn(world, np.random.default_rng(5), 100, 60)
    first, second = read(world, "a", outputs[:60]), read(world, "b", outputs[40:])
    check = start(world.index, world.mark, SETTINGS)
    assert check.shared
    assert [sheet.role for sheet in check.sheets] == ["tested"]
    one = add_outputs(check, first, world.index, world.mark)
    plain = check_outputs(first, world.index, world.mark, SETTINGS)
    verdict = conclude(one, world.mark)
    largest = max(row.weight for row in plain.hypotheses[0].table.classes)
    if largest < 111:
        assert verdict.hypotheses[0].table == plain.hypotheses[0].table
    both = add_outputs(one, second, world.index, world.mark)
    key, opened = ForeignKey(world.mark.scheme), []
    for batch, part in zip(both.batches, weigh(world, [first, second]), strict=True):
        groups = key.group(part.contexts, part.tokens)
        own = batch.revealed[0]
        units = world.mark.scheme.units(
            np.ascontiguousarray(own.pairs.contexts[:, -world.mark.scheme.width :]),
            own.pairs.tokens,
        )
        new = set(groups.names.tolist()) - set(opened)
        assert set(units.tolist()) == new
        # every pair of a new unit is there, also one that came before in another batch's unit
        assert len(own.pairs) == sum(
            groups.names[n] in new for n in groups.coins.tolist() if n >= 0
        )
        assert batch.known[0] == groups.names.size - len(new)
        opened += sorted(new)
    assert both.batches[1].known[0] > 0


def test_the_counts_of_the_index_weigh_nothing_where_coins_are_shared(world):
    """An index of other responses under the same key: the same evidence."""
    found = read(world, "even", list(world.teacher.sample(np.random.default_rng(1), 40, 60)))
    index = world.index.with_equal_counts() if world.mark.shares_coins else world.index
    check = start(world.index, world.mark, SETTINGS)
    plain, even = (
        conclude(add_outputs(check, found, one, world.mark), world.mark).hypotheses[0].table
        for one in (world.index, index)
    )
    assert plain == even
    if world.mark.shares_coins:
        weights = weigh(world, [found])[0].weights
        assert len(weights) == len(found.tokens)


def test_another_key_is_another_check(world):
    found = read(world, "x", list(world.teacher.sample(np.random.default_rng(2), 10, 60)))
    check = start(world.index, world.mark, SETTINGS)
    scheme = world.mark.scheme
    key = scheme.random_key(np.random.default_rng(0))
    other = ForeignMark(scheme.with_key(key), WORDS, world.mark.public.tokenizer_sha256)
    with pytest.raises(ConfigurationMismatchError):
        add_outputs(check, found, world.index, other)
