"""Expected counts from k-grams and from a real (tiny) language model, against slow oracles."""

import json
import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from provenance.check.weigh import PairCounts, weigh
from provenance.coins.contexts import pack, unpack
from provenance.errors import ConfigurationMismatchError, DataError
from provenance.suspect.access.outputs import count_positions, observe, read_positions
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.observations import Expectations, add_expectations, sum_pairs

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
    for context, count in zip(observed.contexts.tolist(), observed.masses.tolist(), strict=True):
        counts[context] += count
    found = {
        (c, t): (n, e)
        for c, t, n, e in zip(
            both.contexts.tolist(),
            both.tokens.tolist(),
            both.masses.tolist(),
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
    assert both.masses[pairs.index((7, 9))] == 0


def _choices(masses, totals, responses, expected, sampled=True):
    return PairCounts(
        np.array(masses, dtype=float),
        np.array(totals),
        np.array(responses),
        np.array(expected, dtype=float),
        sampled,
    )


@pytest.mark.parametrize("huge", [1e5, 1e3, 20])
@pytest.mark.parametrize("sampled", [True, False])
def test_residual_weights_follow_the_formula(sampled, huge):
    rows = [(0, 30, 10, 3), (1, 5, 10, 1), (1, 1, 10, 0.1), (5, 9, 0, 0), (huge, huge, 5e3, 0)]
    rows.append((0, 1000, 5000, 1000))
    prior, clip, addend = (10, 0.4, 0.3) if sampled else (0, 0.2, 0.003)
    real = []
    for mass, total, n, expected in rows:
        residual = (mass - expected) / (total + prior)
        clipped = max(-clip, min(clip, residual))
        scale = math.log(1 + min(n, 1024)) * math.sqrt(min(total, 65536))
        real.append(clipped / math.sqrt(expected / total + addend) * scale)
    weights = weigh(_choices(*zip(*rows, strict=True), sampled), "residual")
    assert weights.tolist() == [round(w * 255 / max(map(abs, real))) for w in real]
    assert weights.max() == 255 or huge == 20  # then the unexpected absence weighs most
    assert abs(weights).max() == 255
    assert weights[3] == 0
    assert weights[5] < 0


def test_no_pairs_and_no_surprise_weigh_nothing():
    assert weigh(_choices([], [], [], []), "residual").tolist() == []
    assert weigh(_choices([1, 0], [4, 4], [3, 3], [1, 0]), "residual").tolist() == [0, 0]


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


def test_masses_equal_reading_position_by_position(model_folder, texts, keyring, tokenizer):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    from provenance.suspect.models.language_model import LanguageModel

    suspect = texts[1]
    wanted = np.arange(suspect.contexts.shape[0]) % 3 == 0
    reading = LanguageModel(model_folder, keyring.public, tokenizer).read(suspect, wanted)
    contexts, tokens, (masses,) = sum_pairs(reading.contexts, reading.tokens, reading.masses)
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
            contexts.tolist(),
            tokens.tolist(),
            masses.tolist(),
            strict=True,
        )
    }
    borderline = set(fast) ^ set(slow)
    assert all(max(fast.get(p, 0), slow.get(p, 0)) < 0.0021 for p in borderline)
    for pair in set(fast) & set(slow):
        assert fast[pair] == pytest.approx(slow[pair], rel=1e-3, abs=0.0021)
    assert sorted(reading.visited) == sorted(suspect.contexts[wanted])
    assert reading.tally["positions_read"] == reading.tally["positions"] == wanted.sum()


def test_long_outputs_are_read_in_overlapping_segments(texts):
    pytest.importorskip("torch")
    from provenance.suspect.models.language_model import _cut

    suspect = texts[1]

    def documents():
        for row in np.unique(suspect.rows):
            own = np.flatnonzero(suspect.rows == row)
            prompt = suspect.prompts[row]
            rows = suspect.offsets[own] + prompt.shape[0] - 1
            yield np.concatenate([prompt, suspect.outputs[row]]), rows, own

    for longest in (16, 50, 4096):
        seen = []
        for segment in _cut(documents(), longest):
            assert len(segment.ids) <= longest
            for row, position in zip(segment.rows, segment.positions, strict=True):
                context = segment.ids[row - 1 : row + 1]
                assert pack(context[None])[0] == suspect.contexts[position]
                seen.append(position)
        assert sorted(seen) == list(range(suspect.contexts.shape[0]))


def test_another_tokenizer_is_a_mismatch(tokenizer, keyring, tmp_path):
    pytest.importorskip("torch")
    from provenance.suspect.models.language_model import LanguageModel

    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationMismatchError):
        LanguageModel(tmp_path, keyring.public, tokenizer)
    with pytest.raises(DataError):
        LanguageModel(tmp_path, keyring.public, tokenizer, other_tokenizer=True)


def test_a_chat_is_read_in_the_template_of_the_model(
    model_folder, tokenizer, tokenizer_path, keyring, tmp_path
):
    """Equal to a plain prompt that spells the template; without a template the texts are joined."""
    pytest.importorskip("torch")
    import shutil

    from provenance.suspect.models.language_model import LanguageModel

    chat = [{"role": "system", "content": "return"}, {"role": "user", "content": "path ("}]
    spelled = "[system]return[user]path ([assistant]"
    output = " ".join(WORDS * 4)
    for name, prompt in (("chat", {"messages": chat}), ("plain", {"prompt": spelled})):
        (tmp_path / f"{name}.jsonl").write_text(json.dumps({**prompt, "output": output}) + "\n")
    folder = shutil.copytree(model_folder, tmp_path / "model")
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "PreTrainedTokenizerFast",
                "chat_template": "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
                "[assistant]",
            }
        )
    )

    def read(path, model):
        positions = read_positions([path], tokenizer, keyring.public)
        wanted = np.ones(positions.contexts.shape[0], dtype=bool)
        return LanguageModel(model, keyring.public, tokenizer).read(positions, wanted).masses

    by_template = read(tmp_path / "chat.jsonl", folder)
    assert np.array_equal(by_template, read(tmp_path / "plain.jsonl", folder))
    assert not np.array_equal(by_template, read(tmp_path / "chat.jsonl", model_folder))
    # the same tokenizer with a decoder that hangs or fails: it is not what is loaded
    bad = {"type": "Replace", "pattern": {"Regex": "(" * 50}, "content": ""}
    document = {**json.loads(tokenizer_path.read_text()), "decoder": bad}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    assert np.array_equal(by_template, read(tmp_path / "chat.jsonl", folder))
