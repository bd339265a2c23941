"""Somebody else's scheme as the mark under test: the guilty are found, every coin counts once."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.score import tabulate, weigh_observations
from provenance.check.selection import name_selection
from provenance.coins.contexts import ContextIds, name_contexts, pack
from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.marks import Mark
from provenance.marks.detection import detect_mark
from provenance.marks.foreign import make_foreign
from provenance.marks.foreign.mark import ForeignKey, ForeignMark
from provenance.marks.sharing import MAXIMUM_WEIGHT
from provenance.suspect.access.outputs import observe, read_positions
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.observations import add_expectations
from tests.marks.foreign.lab import SMALL, VOCABULARY, random_pairs, small
from tests.world.foreign import TESTED, make_foreign_world, random_scheme
from tests.world.synthetic import WORDS, Teacher, innocent, learn, write_outputs

FAST = CheckSettings(placebo_keys=50)
WEAK = {"markllm-unigram", "unigram", "markllm-exp", "markllm-exp-gumbel"}
"""One list for all text, and coins shared by many contexts: too little evidence in this world."""


@pytest.fixture(scope="module")
def teacher():
    return Teacher.draw(0)


@pytest.fixture(scope="module", params=TESTED)
def world(request, tmp_path_factory, teacher):
    made = make_foreign_world(tmp_path_factory.mktemp(request.param), teacher, request.param, 1)
    yield made
    made.index.close()


def observed(world, name, outputs, prompts=None):
    path = write_outputs(world.folder / f"{name}.jsonl", outputs, prompts)
    return observe([path], world.tokenizer, world.mark.public)


def test_the_guilty_are_found_and_the_innocent_are_not(world):
    name = world.mark.scheme.name
    guilty = observed(world, "guilty", learn(world, np.random.default_rng(5), 200, 80))
    outputs, prompts = innocent("repeats", world, np.random.default_rng(7))
    blank = observed(world, "repeats", outputs, prompts)
    verdict = check_outputs(guilty, world.index, world.mark, FAST, {"repeats": blank})
    # coins of TextSeal are correlated: the placebo control may rightly refuse the whole check
    assert verdict.conclusion == "evidence" or name in WEAK or name.startswith("textseal")
    assert verdict.log10_p < -4 or name in WEAK
    names = [control.name for control in verdict.controls]
    selection = name_selection({}, ["repeats"])
    assert names == ["placebo keys (global)", *selection, "innocent repeats"]
    assert "no control slot" in verdict.caveat
    assert world.mark.scheme.caveat in verdict.caveat
    for kind in ("templates", "prompts"):
        outputs, prompts = innocent(kind, world, np.random.default_rng(8))
        found = check_outputs(
            observed(world, kind, outputs, prompts), world.index, world.mark, FAST
        )
        assert found.conclusion != "evidence"
        assert found.log10_p > -3.5


def test_a_verdict_is_a_function_of_its_inputs_and_shows_no_key(world):
    outputs = world.teacher.sample(np.random.default_rng(3), 40, 60)
    found = observed(world, "some", list(outputs))
    first, again = (check_outputs(found, world.index, world.mark, FAST) for _ in range(2))
    text = json.dumps(first.to_json(), allow_nan=False)
    assert text == json.dumps(again.to_json())
    scheme = world.mark.scheme
    for key in getattr(scheme, "keys", None) or [scheme.key]:
        assert str(key) not in text + repr(world.mark) + repr(world.mark.public)
    (commitment,) = world.mark.public.commitments.values()
    assert commitment.sha256 in text


def test_marked_text_is_detected_and_a_repeated_text_says_no_more(world):
    text = world.served[:12].ravel()
    found = detect_mark(text, world.mark)
    twice = detect_mark(np.concatenate([text, text]), world.mark)
    if world.mark.scheme.name not in WEAK:
        assert found.log10_p < -4
    (first,), (second,) = found.keys, twice.keys
    # the seam between the copies may add a few coins, never the copy itself
    assert first.coins <= second.coins <= first.coins + world.mark.scheme.width + 1
    assert found.caveat == world.mark.caveat
    assert detect_mark(np.empty(0, dtype=np.uint32), world.mark).log10_p == 0.0


def test_a_foreign_mark_satisfies_the_protocol_and_has_one_key():
    mark: Mark = mark_of("hf-synthid")
    assert mark.schedule.names == ("control", "global")
    assert mark.schedule.marked_share == 1.0
    with pytest.raises(ConfigurationMismatchError):
        mark.open("week", "2026-W17")
    with pytest.raises(UsageError):
        ForeignMark(small("hf-synthid"), 1, "0" * 64)


def mark_of(name):
    return ForeignMark(small(name), VOCABULARY, "0" * 64)


@settings(max_examples=30, deadline=None)
@given(name=st.sampled_from(TESTED), seed=st.integers(0, 1000), few=st.integers(2, 12))
def test_every_unit_is_one_coin_with_the_sum_of_its_weights(name, seed, few):
    """Against a dictionary; small alphabets make units collide."""
    scheme = small(name)
    contexts, tokens = random_pairs(scheme, 300, seed, few)
    weights = np.random.default_rng(seed).integers(-20, 200, 300)
    expected: dict[int, int] = {}
    scores = {}
    for unit, usable, score, weight in zip(
        scheme.units(contexts, tokens).tolist(),
        scheme.usable(contexts, tokens).tolist(),
        scheme.score(contexts, tokens).tolist(),
        weights.tolist(),
        strict=True,
    ):
        if usable:
            expected[unit] = expected.get(unit, 0) + weight
            scores[unit] = score
    largest = max(map(abs, expected.values()), default=0)
    scale = min(1.0, MAXIMUM_WEIGHT / max(largest, 1))
    wanted = sorted(
        (w, scores[unit]) for unit, total in expected.items() if (w := round(total * scale))
    )
    found = ForeignKey(scheme).open(contexts, tokens, weights)
    assert sorted(zip(*(part.tolist() for part in found), strict=True)) == wanted


@pytest.mark.parametrize("name", TESTED)
def test_placebo_keys_are_reproducible_and_never_the_true_key(name):
    mark = mark_of(name)
    keys = [mark.placebo(b"seed" * 8, number).scheme for number in (0, 1, 0)]
    assert keys[0] == keys[2]
    assert len({str(getattr(k, "keys", None) or k.key) for k in (*keys, mark.scheme)}) == 3


def test_the_id_fixes_scheme_parameters_tokenizer_and_key():
    config = SMALL["hf-lefthash"]
    ids = {
        ForeignMark(make_foreign("hf-lefthash", changed, None, 500), 500, sha).public.id
        for changed, sha in (
            (config, "0" * 64),
            ({**config, "hashing_key": 7}, "0" * 64),
            ({**config, "greenlist_ratio": 0.5}, "0" * 64),
            (config, "1" * 64),
        )
    }
    assert len(ids) == 4
    assert mark_of("hf-lefthash").public.id == mark_of("hf-lefthash").public.id


def test_an_index_of_another_key_is_refused(world):
    other = random_scheme(world.mark.scheme.name, np.random.default_rng(99))
    mark = ForeignMark(other, WORDS, world.mark.public.tokenizer_sha256)
    with pytest.raises(ConfigurationMismatchError):
        type(world.index).open(world.folder / "index", mark.public)


def test_a_scheme_without_a_valid_test_is_refused():
    with pytest.raises(ConfigurationMismatchError, match="valid test"):
        mark_of("textseal-synthid")


@pytest.mark.parametrize(
    ("name", "shared"),
    [("hf-lefthash", False), ("hf-selfhash", True), ("markllm-unigram", True)],
)
def test_where_contexts_share_coins_the_index_weighs_nothing(name, shared, tmp_path, teacher):
    assert mark_of(name).shares_coins == shared
    world = make_foreign_world(tmp_path, teacher, name, 3, 60, 40)
    found = observed(world, "o", list(teacher.sample(np.random.default_rng(1), 20, 40)))
    index = world.index.with_equal_counts() if shared else world.index
    pairs = weigh_observations(found, index, world.mark, "log-sqrt").hypotheses["global", ""]
    assert (len(pairs) == found.contexts.shape[0]) == shared
    verdict = check_outputs(found, world.index, world.mark, FAST)
    table = tabulate(pairs, world.mark.open("global", ""), world.mark.null_law)
    assert verdict.hypotheses[0].table == table
    world.index.close()


def test_a_key_under_which_all_contexts_share_a_list_is_noticed():
    """MarkLLM's KGW under a multiple of V: every seed is 0, so no count of the index is safe."""
    config = {"hash_key": 3 * VOCABULARY, "gamma": 0.5, "prefix_length": 1, "f_scheme": "time"}
    scheme = make_foreign("markllm-kgw", config, None, VOCABULARY)
    assert not scheme.shares_coins
    assert ForeignMark(scheme, VOCABULARY, "0" * 64).shares_coins


def test_long_contexts_keep_their_ids_beside_their_names(tmp_path, teacher):
    world = make_foreign_world(tmp_path, teacher, "hf-synthid", 4, 40, 40)
    outputs = teacher.sample(np.random.default_rng(2), 30, 40)
    found = observed(world, "o", list(outputs))
    expected = set()
    for row in outputs.tolist():
        first: dict[tuple[int, ...], int] = {}
        for i in range(4, len(row)):
            first.setdefault(tuple(row[i - 4 : i]), row[i])
        expected |= {(*context, token) for context, token in first.items()}
    rows = np.c_[found.context_ids(np.arange(len(found.tokens)), 4), found.tokens]
    assert {tuple(row) for row in rows.tolist()} == expected
    assert len(rows) == len(expected)
    # a reference adds pairs of the same contexts only, and reads their last three tokens
    path = write_outputs(
        tmp_path / "r.jsonl", list(teacher.sample(np.random.default_rng(9), 60, 40))
    )
    text = read_positions([path], world.tokenizer, world.mark.public)
    both = add_expectations(found, NgramReference(text, WORDS, 4).expect(found))
    assert both.wide is found.wide
    assert both.expected.sum() > 0
    settings = CheckSettings(rule="residual", placebo_keys=50)
    verdict = check_outputs(both, world.index, world.mark, settings)
    assert not verdict.found_evidence
    assert verdict.controls_passed
    world.index.close()


@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_names_of_contexts_are_exact_up_to_three_ids_and_distinct_beyond(seed, width):
    rng = np.random.default_rng(seed)
    contexts = np.unique(rng.integers(0, 5, (50, width), dtype=np.uint32), axis=0)
    names = name_contexts(contexts)
    assert (names >= 0).all()
    assert np.unique(names).size == len(contexts)
    if width <= 3:
        assert (names == pack(contexts)).all()
    else:
        assert (ContextIds.collect(contexts).find(names) == contexts).all()


@pytest.mark.parametrize("kind", ["lefthash", "synthid"])
def test_a_student_of_text_that_transformers_marked_is_found_and_its_twin_is_not(
    kind, tmp_path, teacher
):
    """The mark is made by transformers' own processors, on the log-probabilities of a teacher."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = (
        transformers.WatermarkingConfig(bias=3.0, hashing_key=77_777_777)
        if kind == "lefthash"
        else transformers.SynthIDTextWatermarkingConfig(
            ngram_len=3, keys=[(i * 7919 + 5) % 60000 for i in range(8)]
        )
    )
    rng, generator = np.random.default_rng(6), torch.Generator().manual_seed(6)
    processor = config.construct_processor(WORDS, "cpu")
    ids = torch.from_numpy(teacher.sample(rng, 150, 2).astype(np.int64))
    for _ in range(58):
        last = ids.numpy().astype(np.uint32)
        rows = torch.from_numpy(np.log(teacher.dense(last[:, -2], last[:, -1]) + 1e-9)).float()
        scores = processor(ids, rows)
        drawn = torch.multinomial(scores.softmax(dim=-1), 1, generator=generator)
        ids = torch.cat((ids, drawn), dim=1)
    world = make_foreign_world(tmp_path, teacher, f"hf-{kind}", 5, 1, 10)
    world.index.close()
    scheme = make_foreign(f"hf-{kind}", config.to_dict(), None, WORDS)
    mark = ForeignMark(scheme, WORDS, world.mark.public.tokenizer_sha256)
    verdicts = []
    for number, served in enumerate((ids.numpy().astype(np.uint32), teacher.sample(rng, 150, 60))):
        taught = SimpleNamespace(served=served, teacher=teacher)
        outputs = learn(taught, np.random.default_rng(number), 150, 60)
        index = index_of(tmp_path / "marked", mark, ids.tolist())
        found = observe(
            [write_outputs(tmp_path / f"{number}.jsonl", outputs)], world.tokenizer, mark.public
        )
        verdicts.append(check_outputs(found, index, mark, FAST))
        index.close()
    student, twin = verdicts
    assert student.conclusion == "evidence"
    assert student.log10_p < -10
    assert not twin.found_evidence
    assert twin.controls_passed


def index_of(folder, mark, responses):
    from provenance.served.build import build_index
    from provenance.served.index import Index

    folder.mkdir(exist_ok=True)
    lines = [
        json.dumps(
            {
                "response_id": f"r{i}",
                "time": "2026-01-01T00:00:00Z",
                "labels": {},
                "token_ids": row,
                "marked": True,
                "finish": "length",
            }
        )
        for i, row in enumerate(responses)
    ]
    (folder / "served.jsonl").write_text("\n".join(lines) + "\n")
    build_index([folder / "served.jsonl"], folder / "index", mark, threads=1)
    return Index.open(folder / "index", mark.public)
