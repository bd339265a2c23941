"""Direct detection: a passage inside a long text, exact under H0, nothing for repeats."""

import numpy as np
import pytest
from scipy import stats

from provenance.embed.watermark import Watermark
from provenance.errors import UsageError
from provenance.marks.detection import detect_mark, detect_pooled
from tests.conftest import make_keyring

LABELS = {"week": "2026-W18", "capability": "code", "cohort": "a"}


def _text(rng, tokens, watermark=None, size=60):
    """A response of a model with about 3 nats of entropy, marked or not."""
    ids = []
    candidates = np.arange(size, dtype=np.uint32)
    for _ in range(tokens):
        probabilities = rng.dirichlet(np.full(size, 0.6))
        if watermark is None:
            ids.append(int(rng.choice(size, p=probabilities)))
        else:
            response, prompt = np.array(ids, dtype=np.uint32), watermark.read_prompt([])
            ids.append(watermark.draw(LABELS, response, candidates, probabilities, prompt).token)
    return np.array(ids, dtype=np.uint32)


@pytest.fixture(scope="module")
def watermark(keyring):
    return Watermark(keyring, np.random.default_rng(0))


def test_a_marked_response_is_found_under_its_own_values_only(keyring, watermark):
    found = detect_mark(_text(np.random.default_rng(1), 600, watermark), keyring)
    assert found.marked
    assert found.log10_p < -20
    names = {key.name for key in found.keys if key.log10_adjusted <= -4}
    assert names == {"global", "week=2026-W18", "capability=code", "cohort=a"} or (
        names == {"global", "week=2026-W18", "capability=code"}
    )


def test_a_marked_passage_of_150_tokens_is_found_inside_3000_unmarked_ones(keyring, watermark):
    hits = 0
    for seed in range(5):
        rng = np.random.default_rng(seed)
        passage = _text(rng, 150, watermark)
        before, after = _text(rng, 1200 + 100 * seed), _text(rng, 1800 - 100 * seed)
        found = detect_mark(np.concatenate([before, passage, after]), keyring)
        best = min(found.keys, key=lambda key: key.log10_adjusted)
        start, end = len(before), len(before) + 150
        overlap = min(end, best.end) - max(start, best.start)
        hits += found.marked and overlap > 75 and best.end - best.start <= 512
    assert hits == 5


def test_unmarked_text_is_not_accused_and_p_is_valid_on_hostile_text(tmp_path, tokenizer_path):
    """P(p <= a) <= a over random keyrings, for loops and templates too (exact binomial, 1e-6)."""
    rng = np.random.default_rng(2)
    ordinary = _text(rng, 400)
    texts = {
        "ordinary": ordinary,
        "loop": np.tile(ordinary[:50], 8),
        "template": np.where(rng.random(400) < 0.03, _text(rng, 400), np.tile(ordinary[:40], 10)),
    }
    runs = 60
    for name, ids in texts.items():
        p = []
        for i in range(runs):
            ring = make_keyring(tmp_path / f"{name}{i}", tokenizer_path)
            p.append(detect_mark(ids.astype(np.uint32), ring).log10_p)
        for level in (0.05, 0.01):
            rejected = int((np.array(p) <= np.log10(level)).sum())
            assert stats.binom.sf(rejected - 1, runs, level) > 1e-6


def test_a_repeated_passage_adds_no_evidence(keyring, watermark):
    ids = _text(np.random.default_rng(3), 120, watermark)
    once = {key.name: key.coins for key in detect_mark(ids, keyring).keys}
    thrice = {key.name: key.coins for key in detect_mark(np.tile(ids, 3), keyring).keys}
    for name, coins in once.items():
        assert thrice[name] <= coins + 2  # the seams are new contexts


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 64, 65])
def test_short_texts_give_a_p_of_at_most_one_never_nan(keyring, tokens):
    found = detect_mark(_text(np.random.default_rng(4), tokens), keyring)
    assert -8 < found.log10_p <= 0.0
    assert not found.marked
    assert found.to_json()["tokens"] == tokens


def test_a_pool_is_one_test_in_which_no_coin_counts_twice_and_no_window_crosses_texts(
    keyring, watermark
):
    rng = np.random.default_rng(5)
    texts = [_text(rng, 60, watermark) for _ in range(8)]
    pooled = {key.name: key for key in detect_pooled(texts, keyring).keys}
    # by hand: every pair of every text, first occurrence over all of them
    pairs = {tuple(ids[i - 2 : i + 1].tolist()) for ids in texts for i in range(2, len(ids))}
    alone = [{key.name: key for key in detect_mark(ids, keyring).keys} for ids in texts]
    for name, key in pooled.items():
        assert key.coins <= sum(found[name].coins for found in alone)
        assert key.score <= sum(found[name].score for found in alone)
    by_slot: dict[str, int] = {}
    for key in pooled.values():
        by_slot[key.slot] = key.coins
    assert sum(by_slot.values()) <= len(pairs)
    assert pooled["global"].log10_p < min(found["global"].log10_p for found in alone)
    again = {key.name: key for key in detect_pooled([*texts[::-1], *texts], keyring).keys}
    for name, key in pooled.items():
        assert (again[name].coins, again[name].score) == (key.coins, key.score)
        assert again[name].log10_p == pytest.approx(key.log10_p)
    # put end to end they are another text: windows cross the seams
    joined = {key.name: key for key in detect_mark(np.concatenate(texts), keyring).keys}
    assert joined["global"].coins > pooled["global"].coins - 16
    with pytest.raises(UsageError, match="at least one"):
        detect_pooled([], keyring)


def test_p_of_pools_of_unmarked_texts_is_valid(tmp_path, tokenizer_path):
    """Templates cut into pieces, the same piece again and again: exact binomial, 1e-6."""
    rng = np.random.default_rng(6)
    pieces = [_text(rng, 40)] * 10 + [_text(rng, 20) for _ in range(10)]
    p = [
        detect_pooled(pieces, make_keyring(tmp_path / f"{i}", tokenizer_path)).log10_p
        for i in range(60)
    ]
    for level in (0.05, 0.01):
        rejected = int((np.array(p) <= np.log10(level)).sum())
        assert stats.binom.sf(rejected - 1, 60, level) > 1e-6


@pytest.mark.parametrize("tokens", [0, 1, 2, 3, 5])
def test_a_text_that_could_not_be_called_marked_says_so(keyring, tokens):
    ids = _text(np.random.default_rng(4), tokens)
    found = detect_mark(ids, keyring)
    assert found.too_short == (found.smallest_log10_p > -4)
    assert found.smallest_log10_p <= found.log10_p
    if tokens < 3:
        assert found.too_short
        assert found.to_json()["strongest"]["coins"] == 0
    assert found.to_json()["keys_tried"] > 0
    assert not detect_mark(_text(np.random.default_rng(4), 80), keyring).too_short
