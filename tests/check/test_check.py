"""The whole line on a synthetic world: the guilty are found, the innocent are not, bytes repeat."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pytest

from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.score import weigh_observations
from provenance.check.weigh import MAXIMAL_WEIGHTS, RETIRED, RULES, PairCounts, weigh
from provenance.errors import UsageError
from provenance.keys.keyring import SchemeSpecification
from provenance.keys.schedule import SELECTOR_KEY
from provenance.suspect.access.outputs import observe
from tests.world.synthetic import (
    LABELS,
    Teacher,
    innocent,
    learn,
    make_world,
    write_outputs,
)

FAST = CheckSettings(placebo_keys=100)


@pytest.fixture(scope="module")
def teacher():
    return Teacher.draw(0)


@pytest.fixture(scope="module")
def world(tmp_path_factory, teacher):
    return make_world(tmp_path_factory.mktemp("world"), teacher, 1)


@pytest.fixture(scope="module")
def guilty(world):
    outputs = learn(world, np.random.default_rng(5), 200, 80)
    path = write_outputs(world.folder / "guilty.jsonl", outputs)
    return observe([path], world.tokenizer, world.keyring.public)


def _observe(world, kind, seed, documents=100):
    outputs, prompts = innocent(kind, world, np.random.default_rng(seed), documents)
    path = write_outputs(world.folder / f"{kind}-{seed}-{documents}.jsonl", outputs, prompts)
    return observe([path], world.tokenizer, world.keyring.public)


@pytest.fixture(scope="module")
def verdict(world, guilty):
    innocents = {"ordinary": _observe(world, "ordinary", 1)}
    return check_outputs(guilty, world.index, world.keyring, FAST, innocents)


def test_the_guilty_suspect_is_found_under_every_key_and_every_control_passes(verdict):
    assert verdict.conclusion == "evidence"
    assert verdict.log10_p < -30
    assert verdict.headline.name == "global"
    assert verdict.controls_passed
    assert {slot: sorted(found) for slot, found in verdict.attributed.items()} == {
        slot: sorted(values) for slot, values in LABELS.items()
    }
    names = [control.name for control in verdict.controls]
    assert names == [
        "placebo keys (global)",
        "control slot",
        "unserved values",
        "unserved contexts",
        "unserved contexts (ordinary)",
        "innocent ordinary",
    ]


def test_the_same_inputs_give_the_same_bytes(world, guilty, verdict):
    innocents = {"ordinary": _observe(world, "ordinary", 1)}
    again = check_outputs(guilty, world.index, world.keyring, FAST, innocents)
    assert json.dumps(again.to_json()) == json.dumps(verdict.to_json())


def test_where_the_files_lie_makes_no_difference(world, tmp_path):
    """An expert gets copies: neither the verdict nor the placebo keys may depend on the folder."""
    found = [_observe(world, "ordinary", seed).sha256 for seed in (0, 1)]
    paths = [world.folder / name for one in found for name in one]
    copies = [shutil.copy(path, tmp_path / path.name) for path in paths]
    verdicts = []
    for chosen in (paths, copies):
        observed = observe(chosen, world.tokenizer, world.keyring.public)
        verdicts.append(check_outputs(observed, world.index, world.keyring, FAST).to_json())
    assert json.dumps(verdicts[0]) == json.dumps(verdicts[1])
    assert str(world.folder) not in json.dumps(verdicts[0])


def test_the_verdict_is_strict_json_and_holds_no_key(world, verdict):
    text = json.dumps(verdict.to_json(), allow_nan=False)
    for pair in world.keyring.public.commitments:
        secret = world.keyring.key(*pair).reveal()
        assert secret.hex() not in text
        assert world.keyring.public.commitments[pair].sha256 in text


@pytest.mark.parametrize("kind", ["ordinary", "templates", "repeats", "prompts"])
def test_innocent_suspects_are_not_accused(world, kind):
    for seed in range(3):
        found = check_outputs(_observe(world, kind, seed), world.index, world.keyring, FAST)
        # a hundred outputs would not show a guilty suspect either
        assert (found.conclusion, found.exit_code) == ("inconclusive", 3)
        assert found.log10_p > -3
        assert found.attributed == {}


def test_an_innocent_suspect_with_enough_outputs_gets_a_clean_bill_with_its_power(world):
    found = check_outputs(_observe(world, "ordinary", 0, 600), world.index, world.keyring, FAST)
    assert (found.conclusion, found.exit_code, found.reasons) == ("no evidence", 0, ())
    assert found.power.outcome == "share"


def test_a_suspect_of_one_capability_is_attributed_to_it(world, teacher):
    """Trained on code only: the code key is found, the prose key is not."""
    only = [i for i, labels in enumerate(world.labels) if labels["capability"] == "code"]
    part = type(world)(
        world.folder,
        world.keyring,
        world.tokenizer,
        teacher,
        world.served[only],
        [world.labels[i] for i in only],
        world.index,
    )
    outputs = learn(part, np.random.default_rng(6), 200, 80)
    path = write_outputs(world.folder / "code.jsonl", outputs)
    found = check_outputs(
        observe([path], world.tokenizer, world.keyring.public), world.index, world.keyring, FAST
    )
    assert found.conclusion == "evidence"
    assert found.attributed["capability"] == ["code"]
    share = {s.value: s for s in found.shares if s.slot == "capability"}
    assert share["code"].lower > share["prose"].estimate
    assert share["prose"].upper < share["code"].estimate


def test_a_quoted_marked_prompt_would_be_evidence_if_it_were_not_left_out(world):
    """The same outputs without their prompts look guilty: the rule is what protects."""
    outputs, prompts = innocent("prompts", world, np.random.default_rng(3))
    without = write_outputs(world.folder / "without.jsonl", outputs)
    with_prompts = write_outputs(world.folder / "with.jsonl", outputs, prompts)
    read = {
        path: check_outputs(
            observe([path], world.tokenizer, world.keyring.public), world.index, world.keyring, FAST
        )
        for path in (without, with_prompts)
    }
    assert read[without].conclusion == "evidence"
    assert read[with_prompts].conclusion == "inconclusive"
    assert not read[with_prompts].found_evidence
    assert read[with_prompts].log10_p > -3


def test_a_guilty_innocent_makes_the_check_invalid(world, guilty):
    """An `innocent` model that was trained on the log: a control fails, nothing is evidence."""
    found = check_outputs(guilty, world.index, world.keyring, FAST, {"not so innocent": guilty})
    assert found.conclusion == "inconclusive"
    (reason,) = found.reasons
    assert reason == f"1 of {len(found.controls)} controls failed: innocent not so innocent"
    assert not found.controls_passed
    assert found.attributed == {}
    assert found.log10_p < -30


def test_outputs_without_an_indexed_context_score_nothing(world, teacher):
    served = {pair for ids in world.served.tolist() for pair in pairwise(ids)}
    candidates = (np.arange(200, 256, step, dtype=np.uint32) for step in range(1, 8))
    ids = next(c for c in candidates if not served & set(pairwise(c.tolist())))
    path = write_outputs(world.folder / "foreign.jsonl", [ids])
    found = check_outputs(
        observe([path], world.tokenizer, world.keyring.public), world.index, world.keyring, FAST
    )
    assert found.log10_p == 0.0
    assert found.conclusion == "inconclusive"
    (reason,) = found.reasons
    assert reason.startswith(
        "nothing was scored under 7 keys: outputs: 1; positions: 17, of which "
    )
    assert reason.endswith(" contexts that were served marked")
    assert "they have none of the" in reason


def test_weights_do_not_depend_on_any_key_but_the_selector(world, guilty):
    """The pairs and weights are the same whichever marking keys exist: they are never opened."""
    opened = []
    original = type(world.keyring).key

    def spy(self, slot, value):
        opened.append((slot, value))
        return original(self, slot, value)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(world.keyring), "key", spy)
        weighing = weigh_observations(guilty, world.index, world.keyring, "log-sqrt")
    assert set(opened) == {SELECTOR_KEY}
    total = sum(len(pairs) for pairs in weighing.hypotheses.values())
    assert total > 1000
    for pairs in weighing.hypotheses.values():
        seen = np.concatenate([pairs.contexts, pairs.tokens[:, None]], axis=1)
        assert len(np.unique(seen, axis=0)) == len(pairs), "a coin is counted once per key"


def test_sampled_outputs_without_a_reference_are_refused_residual_weights(world, guilty):
    with pytest.raises(UsageError):
        weigh_observations(guilty, world.index, world.keyring, "residual")


def _choices(counts, responses):
    counts = np.asarray(counts, dtype=float)
    return PairCounts(counts, counts.astype(int), responses, np.zeros(counts.shape))


def test_weights_equal_a_slow_oracle(world, guilty):
    """n_c from the served ids with Python sets; N from the observations; both rules."""
    width, names = world.keyring.context_width, world.keyring.schedule.names
    served: dict = {}
    for ids, labels in zip(world.served.tolist(), world.labels, strict=True):
        for context in {tuple(ids[i - width : i]) for i in range(width, len(ids))}:
            slot = names[world.keyring.slots_of(np.array([context], dtype=np.uint32))[0]]
            key = (slot, labels.get(slot, ""), context)
            served[key] = served.get(key, 0) + 1
    for rule in ("presence", "log-sqrt"):
        weighing = weigh_observations(guilty, world.index, world.keyring, rule)
        for (slot, value), pairs in weighing.hypotheses.items():
            for context, weight in zip(pairs.contexts[:40], pairs.weights[:40], strict=True):
                n = served[slot, value, tuple(context.tolist())]
                counts = np.arange(1, 60)
                assert weight in set(weigh(_choices(counts, np.full(59, n)), rule).tolist())


def test_weight_rules_are_bounded_monotone_and_zero_without_a_served_response():
    n, counts = np.arange(0, 5000), np.arange(1, 5001)
    for rule in ("presence", "log-sqrt"):
        by_responses = weigh(_choices(np.ones(5000), n), rule)
        by_counts = weigh(_choices(counts, np.full(5000, 10)), rule)
        for weights in (by_responses, by_counts):
            assert weights.min() >= 0
            assert weights.max() <= 111
            assert (np.diff(weights) >= 0).all()
        assert by_responses[0] == 0
    with pytest.raises(UsageError):
        weigh(_choices(counts, n), "best")


@pytest.mark.parametrize(
    "settings", [{"alpha": 0.0}, {"alpha": 0.5}, {"rule": "best"}, {"placebo_keys": 3}]
)
def test_impossible_settings_are_refused(settings):
    with pytest.raises(UsageError):
        CheckSettings(**settings)


@pytest.mark.parametrize(
    "scheme",
    [
        SchemeSpecification("green", {"delta": 4.0}),
        SchemeSpecification("tournament", {"layers": 6}),
    ],
    ids=lambda scheme: scheme.name,
)
def test_the_other_schemes_find_a_guilty_suspect_too(tmp_path, teacher, scheme):
    other = make_world(tmp_path, teacher, 2, scheme=scheme)
    outputs = learn(other, np.random.default_rng(5), 200, 80)
    path = write_outputs(tmp_path / "o.jsonl", outputs)
    found = check_outputs(
        observe([path], other.tokenizer, other.keyring.public), other.index, other.keyring, FAST
    )
    assert found.conclusion == "evidence"
    blank = check_outputs(_observe(other, "ordinary", 1), other.index, other.keyring, FAST)
    assert blank.conclusion == "inconclusive"
    assert "too little data" in blank.reasons[0]


def test_the_declared_bound_of_each_rule_holds_and_is_reached():
    rng = np.random.default_rng(2)
    masses = rng.integers(0, 10**6, 20_000)
    totals = masses + rng.integers(0, 10**6, 20_000)
    responses = rng.integers(0, 2**31, 20_000)
    expected = totals * rng.random(20_000)
    assert {*RULES, *RETIRED} == set(MAXIMAL_WEIGHTS)
    for rule, bound in MAXIMAL_WEIGHTS.items():
        for sampled in (True, False):
            choices = PairCounts(masses.astype(float), totals, responses, expected, sampled)
            assert np.abs(weigh(choices, rule)).max() == bound
