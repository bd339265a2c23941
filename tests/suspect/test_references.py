"""Expected counts from k-grams and from a real (tiny) language model, against slow oracles."""

import json
from collections import Counter, defaultdict

import numpy as np
import pytest

from provenance.contexts import pack, unpack
from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.suspect.expectations import Expectations, add_expectations
from provenance.suspect.ngram import NgramReference
from provenance.suspect.outputs import count_positions, observe, read_positions
from provenance.weigh import weigh

WORDS = ["def", "keyring", "return", "path", "(", "self", "\n", "import"]


def _write(path, seed, n, words=60):
    rng = np.random.default_rng(seed)
    lines = [
        {"prompt": " ".join(rng.choice(WORDS, 5)), "output": " ".join(rng.choice(WORDS, words))}
        for _ in range(n)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def texts(tmp_path_factory, tokenizer, keyring):
    folder = tmp_path_factory.mktemp("texts")
    return (
        read_positions([_write(folder / "a.jsonl", 1, 40)], tokenizer, keyring.public),
        read_positions([_write(folder / "b.jsonl", 2, 60)], tokenizer, keyring.public),
    )


def _slow_probability(text, width, size):
    """Witten-Bell with dictionaries, straight from the formula."""
    tables = [defaultdict(Counter) for _ in range(width + 1)]
    for ids in map(list, text.outputs):
        for i, token in enumerate(ids):
            for j in range(width + 1):
                if i >= j:
                    tables[j][tuple(ids[i - j : i])][token] += 1
    total = sum(tables[0][()].values())

    def q(context, token):
        value = (tables[0][()][token] + 0.5) / (total + 0.5 * size)
        for j in range(1, width + 1):
            seen = tables[j].get(tuple(context[width - j :]))
            if seen:
                n, types = sum(seen.values()), len(seen)
                share = n / (n + types)
                value = share * seen[token] / n + (1 - share) * value
        return value

    return q


def test_ngram_probabilities_equal_a_slow_oracle_and_sum_to_one(texts, keyring):
    text, suspect = texts
    size, width = keyring.public.vocabulary_size, keyring.context_width
    reference = NgramReference(text, size, width)
    slow = _slow_probability(text, width, size)
    observed = count_positions(suspect)
    some = slice(0, 300)
    fast = reference.probability(observed.contexts[some], observed.tokens[some])
    contexts = unpack(observed.contexts[some], width).tolist()
    for context, token, value in zip(contexts, observed.tokens[some].tolist(), fast, strict=True):
        assert value == pytest.approx(slow(context, token), rel=1e-12)
    for context in [contexts[0], [399, 398]]:
        packed = pack(np.array([context] * size, dtype=np.uint32))
        row = reference.probability(packed, np.arange(size, dtype=np.uint32))
        assert row.sum() == pytest.approx(1, rel=1e-12)
        assert row.min() > 0


def test_ngram_expectations_hold_every_observed_and_every_likely_pair(texts, keyring):
    text, suspect = texts
    size, width = keyring.public.vocabulary_size, keyring.context_width
    observed = count_positions(suspect)
    reference = NgramReference(text, size, width)
    both = add_expectations(observed, reference.expect(observed))
    slow = _slow_probability(text, width, size)
    counts = Counter()
    for context, count in zip(observed.contexts.tolist(), observed.counts.tolist(), strict=True):
        counts[context] += count
    found = {
        (c, t): (n, e)
        for c, t, n, e in zip(
            both.contexts.tolist(),
            both.tokens.tolist(),
            both.counts.tolist(),
            both.expected.tolist(),
            strict=True,
        )
    }
    assert len(found) == both.contexts.shape[0]
    assert sum(n for n, _ in found.values()) == observed.positions
    for context in list(counts)[:60]:
        ids = unpack(np.array([context]), width)[0].tolist()
        for token in range(size):
            mass = counts[context] * slow(ids, token)
            if (context, token) in found:
                assert found[context, token][1] == pytest.approx(mass, rel=1e-9)
            else:
                # 0.1 is asked of one level alone; the mixture of all levels can be no larger
                assert mass < 0.1
    assert both.reference["kind"] == "ngram"


def test_adding_expectations_merges_pairs_and_keeps_the_order(texts):
    observed = count_positions(texts[1])
    contexts = np.concatenate([observed.contexts[:5], observed.contexts[:5], [7]])
    tokens = np.concatenate([observed.tokens[:5], observed.tokens[:5], [9]]).astype(np.uint32)
    masses = np.concatenate([np.full(5, 0.25), np.full(5, 0.5), [2.0]])
    both = add_expectations(observed, Expectations(contexts, tokens, masses, {"kind": "x"}))
    assert both.positions == observed.positions
    assert both.expected.sum() == pytest.approx(5 * 0.75 + 2)
    pairs = list(zip(both.contexts.tolist(), both.tokens.tolist(), strict=True))
    assert pairs == sorted(set(pairs))
    assert both.counts[pairs.index((7, 9))] == 0


def test_residual_weights_are_signed_bounded_and_need_a_reference():
    counts = np.array([0, 1, 1, 5, 1000, 0])
    expected = np.array([3.0, 1.0, 0.1, 0.0, 0.0, 1000.0])
    n = np.array([10, 10, 10, 0, 5000, 5000])
    weights = weigh(counts, n, "residual", expected)
    assert weights.tolist() == [-7, 0, 2, 0, 139, -139]
    with pytest.raises(UsageError):
        weigh(counts, n, "residual")
    assert weigh(counts, n, "log-sqrt", expected).min() == 0


def test_reference_text_without_a_kgram_is_refused(tmp_path, tokenizer, keyring, texts):
    with pytest.raises(DataError):
        observe([_write(tmp_path / "short.jsonl", 1, 1, words=0)], tokenizer, keyring.public)


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory, tokenizer_path, keyring):
    """A tiny Llama with the served tokenizer."""
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(1)
    config = transformers.LlamaConfig(
        vocab_size=keyring.public.vocabulary_size + 16,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=2048,
        initializer_range=0.4,
    )
    path = tmp_path_factory.mktemp("reference")
    transformers.LlamaForCausalLM(config).save_pretrained(path)
    (path / "tokenizer.json").write_bytes(tokenizer_path.read_bytes())
    return path


def test_masses_equal_reading_position_by_position(model_folder, texts, keyring):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from provenance.suspect.language_model import expect_with_model

    suspect = texts[1]
    wanted = np.arange(suspect.contexts.shape[0]) % 3 == 0
    calls = []
    expected = expect_with_model(
        suspect, wanted, model_folder, keyring.public, progress=lambda *now: calls.append(now)
    )
    model = transformers.LlamaForCausalLM.from_pretrained(model_folder).eval()
    size = keyring.public.vocabulary_size
    slow = defaultdict(float)
    with torch.inference_mode():
        for row in np.unique(suspect.rows):
            ids = np.concatenate([suspect.prompts[row], suspect.outputs[row]])
            inputs = torch.tensor(ids.astype(np.int64))[None]
            q = model(input_ids=inputs).logits[0, :, :size].softmax(-1).numpy()
            for i in np.flatnonzero((suspect.rows == row) & wanted):
                place = suspect.offsets[i] + len(suspect.prompts[row]) - 1
                assert ids[place + 1] == suspect.tokens[i]
                for token in np.flatnonzero(q[place] > 0.002):
                    slow[int(suspect.contexts[i]), int(token)] += float(q[place, token])
    fast = {
        (c, t): m
        for c, t, m in zip(
            expected.contexts.tolist(),
            expected.tokens.tolist(),
            expected.masses.tolist(),
            strict=True,
        )
    }
    borderline = set(fast) ^ set(slow)
    assert all(max(fast.get(p, 0), slow.get(p, 0)) < 0.0021 for p in borderline)
    for pair in set(fast) & set(slow):
        assert fast[pair] == pytest.approx(slow[pair], rel=1e-3, abs=0.0021)
    assert calls[-1][0] == calls[-1][1] > 0
    assert expected.reference["kind"] == "model"


def test_long_outputs_are_read_in_overlapping_segments(texts, keyring):
    pytest.importorskip("torch")
    from provenance.suspect.language_model import _cut

    suspect = texts[1]
    wanted = np.ones(suspect.contexts.shape[0], dtype=bool)
    for longest in (16, 50, 4096):
        seen = []
        for segment in _cut(suspect, wanted, longest):
            assert len(segment.ids) <= longest
            for place, position in zip(segment.places, segment.positions, strict=True):
                assert place >= 1
                context = segment.ids[place - 2 : place] if place >= 2 else None
                if context is not None:
                    assert pack(context[None])[0] == suspect.contexts[position]
                seen.append(position)
        assert sorted(seen) == list(range(suspect.contexts.shape[0]))


def test_another_tokenizer_is_a_mismatch(model_folder, texts, keyring, tmp_path):
    pytest.importorskip("torch")
    from provenance.suspect.language_model import expect_with_model

    (tmp_path / "tokenizer.json").write_text("{}")
    wanted = np.ones(texts[1].contexts.shape[0], dtype=bool)
    with pytest.raises(ConfigurationMismatchError):
        expect_with_model(texts[1], wanted, tmp_path, keyring.public)
