"""The watermark core: which draws carry a mark, and that a batch is a set of single rows."""

import numpy as np
import pytest
from scipy import stats

from provenance.coins.contexts import pack, response_contexts
from provenance.embed.rules import PromptContexts
from provenance.embed.watermark import Watermark
from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.keys.keyring import SchemeSpecification, create_keyring
from provenance.keys.schedule import Schedule
from tests.conftest import make_keyring

LABELS = {"week": "2026-W17", "capability": "code", "cohort": "a", "request": "ignored"}
NO_PROMPT = PromptContexts.read([()], 2)


@pytest.fixture(scope="module")
def watermark(keyring):
    return Watermark(keyring, np.random.default_rng(0))


def _generate(watermark, labels, rng, tokens=120, size=40):
    """A response of a random flat-ish model; returns ids and the key of every draw."""
    ids, keys = [], []
    candidates = np.arange(size, dtype=np.uint32)
    for _ in range(tokens):
        before, p = np.array(ids, dtype=np.uint32), rng.dirichlet(np.ones(size))
        draw = watermark.draw(labels, before, candidates, p, NO_PROMPT)
        ids.append(draw.token)
        keys.append(draw.key)
    return np.array(ids, dtype=np.uint32), keys


def _context_of(keyring, slot):
    """Some context of this slot."""
    contexts = np.stack([np.arange(200), np.arange(1, 201)], axis=1).astype(np.uint32)
    return contexts[keyring.slots_of(contexts) == keyring.schedule.names.index(slot)][0]


def test_a_draw_is_keyed_exactly_where_the_rules_say(keyring, watermark):
    rng = np.random.default_rng(1)
    width, names = keyring.context_width, keyring.schedule.names
    ids, keys = _generate(watermark, LABELS, rng)
    contexts, _ = response_contexts(ids, width)
    slots = keyring.slots_of(contexts)
    seen = set()
    for i in range(len(ids)):
        if i < width:
            assert keys[i] is None
            continue
        context = tuple(contexts[i - width])
        slot = names[slots[i - width]]
        if context in seen or slot == "control":
            assert keys[i] is None
        else:
            assert (keys[i].slot, keys[i].value) == (slot, LABELS.get(slot, ""))
        seen.add(context)
    assert watermark.marked_positions(LABELS, ids, []).tolist() == [key is not None for key in keys]
    assert len({key.slot for key in keys if key}) == 4


def test_a_request_without_a_label_leaves_that_slot_unmarked(watermark):
    ids, keys = _generate(watermark, {}, np.random.default_rng(2))
    assert {key.slot for key in keys if key} == {"global"}
    assert watermark.marked_positions({}, ids, []).tolist() == [key is not None for key in keys]


def test_marked_draws_equal_the_scheme_on_the_keys_coins(keyring, watermark):
    rng = np.random.default_rng(3)
    ids, keys = _generate(watermark, LABELS, rng, size=40)
    contexts, tokens = response_contexts(ids, keyring.context_width)
    scores = []
    for i, key in enumerate(keys[keyring.context_width :]):
        if key is not None:
            scores.append(watermark.scheme.score(key.words(contexts[i : i + 1], tokens[i : i + 1])))
    law = watermark.scheme.null_law
    z = (np.mean(scores) - law.mean) / np.sqrt(law.variance / len(scores))
    assert len(scores) > 40
    assert z > 8


def test_a_label_without_a_key_is_an_error_never_silently_unmarked(watermark):
    watermark.check_labels(LABELS)
    watermark.check_labels({})
    with pytest.raises(ConfigurationMismatchError):
        watermark.check_labels({"week": "1999-W01"})
    candidates = np.arange(40, dtype=np.uint32)
    ids = _context_of(watermark.keyring, "week")
    with pytest.raises(ConfigurationMismatchError):
        watermark.draw({"week": "1999-W01"}, ids, candidates, np.full(40, 0.025), NO_PROMPT)


def test_batch_rows_equal_single_rows_under_the_same_uniforms(keyring):
    rng = np.random.default_rng(4)
    rows, size = 12, keyring.public.vocabulary_size
    responses = [rng.integers(0, 12, n, dtype=np.uint32) for n in (0, 1, 2, 3, 9, *[40] * 7)]
    labels = [LABELS if i % 2 else {"week": "2026-W18"} for i in range(rows)]
    probabilities = rng.dirichlet(np.full(size, 0.05), rows)
    probabilities[:, ::3] = 0
    batch = Watermark(keyring, np.random.default_rng(5)).draw_batch(
        labels, responses, probabilities, [NO_PROMPT] * rows
    )
    single = Watermark(keyring, np.random.default_rng(5))
    for i in range(rows):
        candidates = np.flatnonzero(probabilities[i]).astype(np.uint32)
        p = probabilities[i, candidates]
        alone = single.draw(labels[i], responses[i], candidates, p, NO_PROMPT)
        assert alone == batch[i]


def test_row_and_scattered_coins_give_the_same_draw(keyring, watermark):
    """Few candidates go through `words`, many through `row`: same bits, same token."""
    rng = np.random.default_rng(6)
    size = keyring.public.vocabulary_size
    agreed = 0
    for _ in range(60):
        ids = rng.integers(0, size, 5, dtype=np.uint32)
        few = rng.choice(size, 20, replace=False).astype(np.uint32)
        wide = np.arange(size, dtype=np.uint32)
        probabilities = np.zeros(size)
        probabilities[few] = rng.dirichlet(np.ones(20))
        one = watermark.draw(LABELS, ids, few, probabilities[few], NO_PROMPT)
        two = watermark.draw(LABELS, ids, wide, probabilities, NO_PROMPT)
        if one.key is not None:
            assert one == two
            agreed += 1
    assert agreed > 20


def test_responses_of_one_labelled_request_are_undistorted_over_keys(tmp_path, tokenizer_path):
    """Third token after two given ones, over 300 keyrings: the model's probabilities."""
    probabilities = np.array([0.5, 0.25, 0.15, 0.1])
    candidates = np.arange(4, dtype=np.uint32)
    counts = np.zeros(4)
    for i in range(300):
        ring = make_keyring(tmp_path / str(i), tokenizer_path, shares={"global": 1.0}, values={})
        mark = Watermark(ring, np.random.default_rng(i))
        for c in range(10):
            ids = np.array([c, 7], dtype=np.uint32)
            counts[mark.draw({}, ids, candidates, probabilities, NO_PROMPT).token] += 1
    assert stats.chisquare(counts, 3000 * probabilities).pvalue > 1e-6


def test_no_global_generator_is_touched(watermark):
    np.random.seed(0)
    before = np.random.get_state()[1].copy()
    _generate(watermark, LABELS, np.random.default_rng(7), tokens=30)
    assert np.array_equal(before, np.random.get_state()[1])


def test_candidates_beyond_the_vocabulary_and_uneven_batches_are_refused(keyring, watermark):
    size = keyring.public.vocabulary_size
    candidates = np.array([0, size], dtype=np.uint32)
    ids = _context_of(keyring, "global")
    with pytest.raises(ConfigurationMismatchError):
        watermark.draw(LABELS, ids, candidates, np.array([0.5, 0.5]), NO_PROMPT)
    with pytest.raises(UsageError):
        watermark.draw_batch([LABELS], [], np.ones((1, size)))


@pytest.mark.parametrize(
    "scheme",
    [
        SchemeSpecification("green", {"delta": 3.0}),
        SchemeSpecification("tournament", {"layers": 4}),
    ],
    ids=lambda s: s.name,
)
@pytest.mark.parametrize("width", [1, 2, 3])
def test_every_scheme_and_width_marks_through_the_same_core(
    tmp_path, tokenizer_path, scheme, width
):
    ring = make_keyring(tmp_path / "k", tokenizer_path, scheme=scheme, width=width)
    mark = Watermark(ring, np.random.default_rng(8))
    totals, law = [], mark.scheme.null_law
    for seed in range(4):
        ids, keys = _generate(mark, LABELS, np.random.default_rng(seed), tokens=150)
        contexts, tokens = response_contexts(ids, width)
        for i, key in enumerate(keys[width:]):
            if key is not None:
                word = key.words(contexts[i : i + 1], tokens[i : i + 1])
                totals.append(int(mark.scheme.score(word)[0]))
        assert len(np.unique(pack(contexts))) >= sum(key is not None for key in keys)
    assert (np.mean(totals) - law.mean) / np.sqrt(law.variance / len(totals)) > 5


SCHEMES = [
    SchemeSpecification("gumbel"),
    SchemeSpecification("green", {"delta": 2.0}),
    SchemeSpecification("tournament", {"layers": 4}),
]


@pytest.mark.parametrize("specification", SCHEMES, ids=lambda s: s.name)
@pytest.mark.parametrize("size", [40, 3000], ids=["few candidates", "many candidates"])
def test_drawing_from_scores_equals_drawing_from_their_softmax(
    tmp_path, tokenizer_path, specification, size
):
    """Same keys, same uniforms: same tokens, but for float32 (at most 1 draw in 1,000 here)."""
    schedule = Schedule.from_shares({"global": 0.4, "week": 0.4}, {"week": ["a", "b"]})
    ring = create_keyring(tmp_path / "k", tokenizer_path, 3000, specification, schedule)
    rng, labels = np.random.default_rng(1), [{"week": "a"}, {}, {"week": "b"}] * 8
    one, two = (Watermark(ring, np.random.default_rng(2)) for _ in range(2))
    differences = marked = total = 0
    for length in (0, 1, 2, 3, 40, 41):
        responses = rng.integers(0, 12, (24, length), dtype=np.uint32)
        scores = np.full((24, 3000), -np.inf, dtype=np.float32)
        for row in scores:
            row[rng.choice(3000, size, replace=False)] = rng.normal(0, 2, size)
        p = np.exp(scores.astype(np.float64))
        prompts = two.read_prompts(list(rng.integers(0, 12, (24, 9))))
        draws = one.draw_batch(labels, list(responses), p, prompts)
        tokens = two.draw_scores(two.key_numbers(labels), responses, scores, prompts)
        differences += sum(draw.token != token for draw, token in zip(draws, tokens, strict=True))
        marked += sum(draw.key is not None for draw in draws)
        total += len(draws)
    assert differences <= 1
    assert 20 < marked < total - 20


def test_scores_without_a_candidate_or_a_number_are_refused(keyring, watermark):
    size = keyring.public.vocabulary_size
    numbers, ids = watermark.key_numbers([LABELS]), np.array([[5, 6, 7]], dtype=np.uint32)
    for wrong in (np.full(size, -np.inf), np.full(size, np.nan), np.r_[np.full(9, -1.0), np.inf]):
        scores = np.full((1, size), -np.inf, dtype=np.float32)
        scores[0, : wrong.shape[0]] = wrong
        with pytest.raises(UsageError):
            watermark.draw_scores(numbers, ids, scores, NO_PROMPT)


def test_many_candidates_without_a_number_are_refused(tmp_path, tokenizer_path):
    for share in (0.0, 1.0):
        schedule = Schedule.from_shares({"global": share})
        ring = create_keyring(
            tmp_path / str(share), tokenizer_path, 4000, SchemeSpecification("gumbel"), schedule
        )
        mark = Watermark(ring)
        scores = np.zeros((1, 4000), dtype=np.float32)
        scores[0, 7] = np.nan
        ids = np.array([[5, 6]], dtype=np.uint32)
        with pytest.raises(UsageError):
            mark.draw_scores(mark.key_numbers([{}]), ids, scores, NO_PROMPT)


def test_an_empty_batch_draws_nothing(watermark, keyring):
    assert watermark.draw_batch([], [], np.ones((0, keyring.public.vocabulary_size)), []) == []
