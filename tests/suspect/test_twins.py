"""Twins: the exact law against full enumeration, files, likelihoods, and a trained tiny model."""

import hashlib
import itertools
import json

import numpy as np
import pytest
from scipy import stats

from provenance.check.twin_test import check_twins, judge_twins, weigh_twins
from provenance.errors import DataError, StorageError
from provenance.suspect.access.twins import Twins, compare_twins, read_twins
from tests.suspect.lab import WORDS, load_llama, save_llama

ALPHA = 1e-3


def _twins(pairs, reused=0, equal=0):
    """Twins of one token each: for tests in which only the differences matter."""
    ids = [np.array([number], dtype=np.uint32) for number in range(pairs)]
    return Twins(ids, ids, ids, reused, equal, {"twins.jsonl": "ab"})


def _check(differences, alpha=ALPHA):
    differences = np.asarray(differences, dtype=np.float64)
    return judge_twins(_twins(len(differences)), differences, alpha)


# ---- the law ----


SIZES = {
    "one": [0.3],
    "distinct": [0.1, 0.2, 0.3, 0.4, 0.5],
    "all equal": [0.25] * 6,
    "ties": [0.1, 0.1, 0.2, 0.2, 0.2, 0.7],
    "with zeros": [0.0, 0.1, 0.0, 0.3, 0.3],
    "wide": [1e-12, 1e-3, 1.0, 1e6],
}


@pytest.mark.parametrize("name", SIZES)
def test_p_equals_full_enumeration(name):
    sizes = np.array(SIZES[name])
    weights = weigh_twins(sizes)
    signs = np.array(list(itertools.product([0, 1], repeat=len(sizes))))
    statistics = signs @ weights
    for pattern, statistic in zip(signs, statistics, strict=True):
        found = _check(sizes * (2 * pattern - 1))
        exact = np.mean(statistics >= statistic)
        assert found.tail.log10_p == pytest.approx(np.log10(exact), abs=1e-6)
        assert 10**found.tail.log10_p >= exact * (1 - 1e-9)
        assert found.pairs == np.count_nonzero(sizes)
        assert found.favour_served == int(pattern[sizes > 0].sum())


def test_weights_are_ranks_in_255_levels_and_ignore_signs():
    rng = np.random.default_rng(1)
    for count in (1, 2, 10, 255, 2000):
        sizes = np.round(rng.exponential(size=count), 2) + 0.01
        weights = weigh_twins(sizes)
        ranks = stats.rankdata(sizes)
        assert weights.tolist() == np.ceil(ranks * 255 / ranks.max() - 1e-12).astype(int).tolist()
        assert weights.min() >= 1
        assert weights.max() == 255
        np.testing.assert_array_equal(weights, weigh_twins(sizes * rng.choice([-1, 1], count)))
        np.testing.assert_array_equal(weights, weigh_twins(sizes * 1e-9))
    assert weigh_twins(np.zeros(3)).tolist() == [0, 0, 0]
    assert weigh_twins(np.array([])).tolist() == []


def test_no_difference_is_p_1():
    for count in (0, 1, 7):
        found = _check([0.0] * count)
        assert found.pairs == 0
        assert found.tail.log10_p == 0
        assert not found.rejected
        json.dumps(found.to_json(), allow_nan=False)


def test_p_is_calibrated_under_random_signs():
    """P(p <= a) <= a within what 200 draws show, and close to a where the law is fine."""
    rng = np.random.default_rng(2)
    sizes, draws = np.round(rng.exponential(size=20), 1), 200
    p = np.array([_check(sizes * rng.choice([-1, 1], 20)).tail.log10_p for _ in range(draws)])
    for level in (0.002, 0.01, 0.05, 0.2, 0.5):
        found = int((p <= np.log10(level)).sum())
        assert found <= stats.binom.ppf(1 - 1e-5, draws, level)
        assert found >= stats.binom.ppf(1e-5, draws, 0.7 * level)


def test_the_share_of_alpha_decides():
    sizes = np.linspace(1, 2, 12)
    assert _check(sizes, 2**-11.99).rejected
    assert not _check(sizes, 2**-12.01).rejected
    assert not _check(-sizes, 0.05).rejected


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_impossible_likelihoods_are_a_data_error(value):
    with pytest.raises(DataError, match="finite"):
        _check([0.1, value])


def test_the_result_can_be_recomputed_from_its_table():
    found = judge_twins(_twins(3, reused=4, equal=5), np.array([0.2, -0.1, 0.3]), ALPHA)
    told = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert (told["reused"], told["equal"], told["pairs"], told["favour_served"]) == (4, 5, 3, 2)
    assert told["sha256"] == {"twins.jsonl": "ab"}
    assert told["log10_p"] == found.tail.log10_p
    assert found.table.coins == 3


# ---- comparing ----


class Taste:
    """Likelihoods that are a hash of prompt and response."""

    def __init__(self, name):
        self.description = {"kind": "fake", "name": name}
        self._name = name

    def log_likelihoods(self, prompts, responses):
        def one(prompt, response):
            text = f"{self._name} {prompt.tolist()} {response.tolist()}".encode()
            return -int.from_bytes(hashlib.sha256(text).digest()[:4], "big") / 2**32

        return np.array([one(*pair) for pair in zip(prompts, responses, strict=True)])


def _ids(*values):
    return np.array(values, dtype=np.uint32)


def _random_twins(rng, pairs=50):
    def draw():
        return [rng.integers(2, 400, rng.integers(1, 9)).astype(np.uint32) for _ in range(pairs)]

    return Twins(draw(), draw(), draw(), 0, 0, {})


def test_exchanging_twins_changes_signs_and_nothing_else():
    rng = np.random.default_rng(3)
    twins = _random_twins(rng)
    for reference in (None, Taste("b")):
        found = compare_twins(twins, Taste("a"), reference)
        swap = rng.random(50) < 0.5
        pairs = [
            (u, s) if x else (s, u)
            for s, u, x in zip(twins.served, twins.unserved, swap, strict=True)
        ]
        served, unserved = zip(*pairs, strict=True)
        turned = compare_twins(
            Twins(twins.prompts, served, unserved, 0, 0, {}), Taste("a"), reference
        )
        np.testing.assert_array_equal(turned, np.where(swap, -found, found))
        np.testing.assert_array_equal(weigh_twins(turned), weigh_twins(found))
    own = compare_twins(twins, Taste("a"))
    np.testing.assert_array_equal(compare_twins(twins, Taste("a"), Taste("a")), own * 0)


# ---- files ----


def _write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_text_and_ids_and_missing_prompts(tmp_path, tokenizer, keyring):
    ids = tokenizer.encode("return self").ids
    records = [
        {"prompt": "def", "served": "return self", "unserved": "import key"},
        {"prompt": [5, 6], "served": ids, "unserved": "import"},
        {"served": "path", "unserved": [7]},
    ]
    path = _write(tmp_path / "twins.jsonl", records)
    twins = read_twins([path], tokenizer, keyring.public)
    assert [part.tolist() for part in twins.prompts] == [tokenizer.encode("def").ids, [5, 6], []]
    assert twins.served[0].tolist() == twins.served[1].tolist() == ids
    assert twins.unserved[2].tolist() == [7]
    assert (twins.reused, twins.equal) == (0, 0)
    assert twins.sha256 == {path.name: hashlib.sha256(path.read_bytes()).hexdigest()}


def test_a_coin_counts_once(tmp_path, tokenizer, keyring):
    """Equal pairs, repeated pairs, turned pairs, and pairs that share a response with another."""
    first = {"prompt": [1], "served": [5, 6], "unserved": [7, 8]}
    records = [
        first,
        first,
        {"prompt": [1], "served": [7, 8], "unserved": [5, 6]},
        {"prompt": [1], "served": [5, 6], "unserved": [9]},
        {"prompt": [1], "served": [10], "unserved": [7, 8]},
        {"prompt": [1], "served": [11], "unserved": [9]},
        {"prompt": [1], "served": [12], "unserved": [12]},
        {"prompt": [2], "served": [5, 6], "unserved": [7, 8]},
        {"prompt": [1, 5], "served": [6], "unserved": [13]},
        {"served": [1, 5, 6], "unserved": [14]},
    ]
    one, two = _write(tmp_path / "a.jsonl", records[:4]), _write(tmp_path / "b.jsonl", records[4:])
    twins = read_twins([one, two], tokenizer, keyring.public)
    # 5 shares with 3, which was left out itself: its coin could be the same one
    assert (twins.reused, twins.equal) == (5, 1)
    assert [part.tolist() for part in twins.prompts] == [[1], [2], [1, 5], []]
    # what is left out does not depend on which twin was served
    turned = [{**r, "served": r["unserved"], "unserved": r["served"]} for r in records]
    other = read_twins([_write(tmp_path / "c.jsonl", turned)], tokenizer, keyring.public)
    assert [part.tolist() for part in other.unserved] == [part.tolist() for part in twins.served]


@pytest.mark.parametrize(
    "record",
    [
        [],
        "text",
        None,
        {"served": "a"},
        {"unserved": "a"},
        {"served": "", "unserved": "a"},
        {"served": "a", "unserved": []},
        {"served": None, "unserved": "a"},
        {"served": "a", "unserved": 3},
        {"served": "a", "unserved": {"text": "b"}},
        {"served": [1.5], "unserved": "a"},
        {"served": [400], "unserved": "a"},
        {"served": [-1], "unserved": "a"},
        {"served": [True], "unserved": "a"},
        {"served": ["a"], "unserved": "b"},
        {"prompt": None, "served": "a", "unserved": "b"},
        {"prompt": {"role": "user"}, "served": "a", "unserved": "b"},
        pytest.param(
            {"served": [5, [6]], "unserved": "b"},
        ),
        pytest.param(
            {"served": [5, True], "unserved": "b"},
        ),
    ],
)
def test_malformed_pairs_name_file_and_line(tmp_path, tokenizer, keyring, record):
    path = _write(tmp_path / "bad.jsonl", [{"served": "a", "unserved": "b"}, record])
    with pytest.raises(DataError) as raised:
        read_twins([path], tokenizer, keyring.public)
    assert str(raised.value).startswith(f"{path}: line 2: ")


def test_no_pair_left(tmp_path, tokenizer, keyring):
    for records in ([], [{"served": "a", "unserved": "a"}] * 2):
        path = _write(tmp_path / "none.jsonl", records)
        with pytest.raises(DataError, match=f"{len(records)} equal"):
            read_twins([path], tokenizer, keyring.public)
    with pytest.raises(StorageError):
        read_twins([tmp_path / "missing.jsonl"], tokenizer, keyring.public)


# ---- likelihoods ----


def _slow_likelihood(model, prompt, response, size=None, longest=None):
    """One document, one forward pass, no padding; of a long text the last `longest` ids."""
    import torch

    ids = [*prompt, *response]
    dropped = max(len(ids) - longest, 0) if longest else 0
    ids, begin = ids[dropped:], max(len(prompt) - dropped, 1)
    with torch.inference_mode():
        logits = model(input_ids=torch.tensor([ids])).logits[0, :, :size].double()
    logs = logits.log_softmax(-1).numpy()
    found = [logs[place - 1, ids[place]] for place in range(begin, len(ids))]
    return float(np.mean(found)) if found else 0.0


def _texts(rng, count, low, high):
    return [rng.integers(2, 400, rng.integers(low, high)).astype(np.uint32) for _ in range(count)]


def test_likelihoods_equal_one_document_at_a_time(load, suspect_folder, keyring):
    rng = np.random.default_rng(4)
    prompts, responses = _texts(rng, 12, 0, 9), _texts(rng, 12, 1, 30)
    prompts[3], responses[3] = _ids(), _ids(9)
    prompts[4], responses[4] = _ids(), _ids(9, 10)
    found = load(suspect_folder).log_likelihoods(prompts, responses)
    model, size = load_llama(suspect_folder), keyring.public.vocabulary_size
    slow = [
        _slow_likelihood(model, p.tolist(), r.tolist(), size)
        for p, r in zip(prompts, responses, strict=True)
    ]
    np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-5)
    assert found[3] == 0.0


def test_of_a_text_longer_than_the_model_the_end_is_read(load, tmp_path, tokenizer_path, keyring):
    size = keyring.public.vocabulary_size
    folder = save_llama(tmp_path, tokenizer_path, size, 21, longest=24)
    rng = np.random.default_rng(5)
    prompts = [*_texts(rng, 2, 30, 40), *_texts(rng, 2, 3, 6), *_texts(rng, 1, 10, 11)]
    responses = [*_texts(rng, 2, 5, 9), *_texts(rng, 2, 60, 90), *_texts(rng, 1, 14, 15)]
    found = load(folder).log_likelihoods(prompts, responses)
    model = load_llama(folder)
    slow = [
        _slow_likelihood(model, p.tolist(), r.tolist(), size, 24)
        for p, r in zip(prompts, responses, strict=True)
    ]
    np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-5)


def test_likelihoods_with_another_tokenizer(
    load, foreign_folder, foreign_tokenizer, tokenizer, tmp_path
):
    rng = np.random.default_rng(6)
    texts = [" ".join(rng.choice(WORDS, n)) for n in (3, 8, 12, 1, 5, 9)]
    prompts = [np.array(tokenizer.encode(t).ids, dtype=np.uint32) for t in texts[:3]]
    responses = [np.array(tokenizer.encode(t).ids, dtype=np.uint32) for t in texts[3:]]
    model = load_llama(foreign_folder)
    found = load(foreign_folder, other_tokenizer=True).log_likelihoods(prompts, responses)
    slow = [
        _slow_likelihood(model, foreign_tokenizer.encode(p).ids, foreign_tokenizer.encode(r).ids)
        for p, r in zip(texts[:3], texts[3:], strict=True)
    ]
    np.testing.assert_allclose(found, slow, rtol=1e-4, atol=1e-5)
    # ids that are no text: half a character, control tokens, any ids at all
    odd = [_ids(0, 1), _ids(222), *_texts(rng, 6, 1, 20)]
    strange = load(foreign_folder, other_tokenizer=True).log_likelihoods([_ids()] * 8, odd)
    assert np.isfinite(strange).all()


def _train(folder, twins, steps):
    """A few steps on prompt and served response of each pair."""
    import torch

    model = load_llama(folder).train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=5e-3)
    length = max(len(p) + len(r) for p, r in zip(twins.prompts, twins.served, strict=True))
    ids = torch.zeros(len(twins.served), length, dtype=torch.long)
    labels = torch.full_like(ids, -100)
    for row, (p, r) in enumerate(zip(twins.prompts, twins.served, strict=True)):
        text = torch.from_numpy(np.concatenate([p, r]).astype(np.int64))
        ids[row, : len(text)] = labels[row, : len(text)] = text
    for _ in range(steps):
        optimiser.zero_grad()
        model(input_ids=ids, labels=labels).loss.backward()
        optimiser.step()
    model.save_pretrained(folder)


def test_a_model_trained_on_the_served_twins_is_found(load, tmp_path, tokenizer_path, keyring):
    size = keyring.public.vocabulary_size
    base = save_llama(tmp_path / "base", tokenizer_path, size, 31, scale=0.02)
    trained = save_llama(tmp_path / "trained", tokenizer_path, size, 31, scale=0.02)
    rng = np.random.default_rng(7)
    n = 60
    twins = Twins(_texts(rng, n, 2, 4), _texts(rng, n, 8, 14), _texts(rng, n, 8, 14), 0, 0, {})
    _train(trained, twins, 40)
    for reference in (None, load(base)):
        found = check_twins(twins, load(trained), reference, ALPHA)
        assert found.rejected
        assert found.tail.log10_p < -6
        assert found.favour_served > 50
    innocent = check_twins(twins, load(base), None, ALPHA)
    assert not innocent.rejected
    assert innocent.tail.log10_p > -3
    assert innocent.pairs == n
