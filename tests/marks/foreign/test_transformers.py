"""transformers' own detectors and processors as the oracle, run beside ours in this process."""

from types import SimpleNamespace

import numpy as np
import pytest

from provenance.marks.foreign import make_foreign
from provenance.stats.laws import NullLaw
from tests.marks.foreign.lab import padded_windows, windows

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers import (  # noqa: E402
    SynthIDTextWatermarkDetector,
    SynthIDTextWatermarkingConfig,
    WatermarkDetector,
    WatermarkingConfig,
)

VOCABULARY = 600
TABLE = {"sampling_table_size": 1 << 16}


def text(seed, n=150):
    """Repetitive ids, token 1 (the BOS) never first."""
    rng = np.random.default_rng(seed)
    return [
        5,
        *np.where(rng.random(n) < 0.5, rng.zipf(1.5, n) % 40, rng.integers(0, 600, n)).tolist(),
    ]


@pytest.mark.parametrize("seeding_scheme", ["lefthash", "selfhash"])
@pytest.mark.parametrize("context_width", [1, 3])
@pytest.mark.parametrize("ignore_repeated", [False, True])
@pytest.mark.parametrize("key", [7, 15485863, 2**40 + 12345])
def test_watermark_detector_counts_the_same_tokens(
    seeding_scheme, context_width, ignore_repeated, key
):
    config = WatermarkingConfig(
        greenlist_ratio=0.3,
        hashing_key=key,
        seeding_scheme=seeding_scheme,
        context_width=context_width,
    )
    model = SimpleNamespace(bos_token_id=1, is_encoder_decoder=False, vocab_size=VOCABULARY)
    ids = text(key % 97)
    detector = WatermarkDetector(
        model, "cpu", config.to_dict(), ignore_repeated_ngrams=ignore_repeated
    )
    found = detector(torch.tensor([ids]), return_dict=True)
    scheme = make_foreign(f"hf-{seeding_scheme}", config.to_dict(), None, VOCABULARY)
    contexts, tokens = windows(scheme, ids)
    scores = scheme.score(contexts, tokens)
    if seeding_scheme == "lefthash":  # its n-grams are context_width + 1 long all the same
        scores = scores[context_width - 1 :]
        grams = np.lib.stride_tricks.sliding_window_view(np.array(ids), context_width + 1)
    else:
        grams = np.lib.stride_tricks.sliding_window_view(np.array(ids), context_width)
    counted = np.arange(len(grams))
    if ignore_repeated:
        counted = np.unique(grams, axis=0, return_index=True)[1]
    assert found.num_tokens_scored.tolist() == [counted.size]
    assert found.num_green_tokens.tolist() == [int(scores[counted].sum())]


@pytest.mark.parametrize(("seeding_scheme", "context_width"), [("lefthash", 1), ("selfhash", 3)])
def test_text_marked_by_the_logits_processor_is_found(seeding_scheme, context_width):
    """Greedy choice among random logits with a large bias: nearly all tokens are green."""
    config = WatermarkingConfig(
        bias=8.0, hashing_key=4711, seeding_scheme=seeding_scheme, context_width=context_width
    )
    processor = config.construct_processor(VOCABULARY, "cpu")
    rng = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (1, 4), generator=rng)
    for _ in range(60):
        scores = processor(ids, torch.randn(1, VOCABULARY, generator=rng))
        ids = torch.cat((ids, scores.argmax(dim=-1, keepdim=True)), dim=1)
    scheme = make_foreign(f"hf-{seeding_scheme}", config.to_dict(), None, VOCABULARY)
    contexts, tokens = windows(scheme, ids[0].numpy())
    own = scheme.score(contexts, tokens)[-60:]
    other = scheme.with_key(4713).score(contexts, tokens)[-60:]
    assert own.mean() > 0.95
    assert other.mean() < 0.6


def synthid(**changes):
    fields = {"ngram_len": 5, "keys": [654, 400, 836, 123, 340, 443], "sampling_table_seed": 3}
    return SynthIDTextWatermarkingConfig(**{**fields, **changes})


@pytest.mark.parametrize("changes", [{}, {"ngram_len": 2}, {"keys": [-5, 2**62, 3] * 10}])
def test_synthid_detector_is_fed_our_g_values(changes):
    """The detector's own g-values, through its own module that hands back what it is given."""
    config = synthid(**changes)
    processor = config.construct_processor(VOCABULARY, "cpu")
    ids = text(4)
    tokenizer = SimpleNamespace(eos_token_id=VOCABULARY + 1)
    detector = SynthIDTextWatermarkDetector(lambda g, mask: (g, mask), processor, tokenizer)
    g_values, _ = detector(torch.tensor([ids]))
    scheme = make_foreign("hf-synthid", config.to_dict())
    assert (scheme.g_values(*windows(scheme, ids)) == g_values[0].numpy()).all()


def test_synthid_states_of_generation_start_from_zeros():
    """The first tokens of a response are marked after contexts padded with 0."""
    config = synthid(keys=[(i * 7919 + 5) % 60000 for i in range(20)])
    processor = config.construct_processor(VOCABULARY, "cpu")
    scheme = make_foreign("hf-synthid", config.to_dict())
    rng = torch.Generator().manual_seed(1)
    prompt = torch.randint(0, VOCABULARY, (1, 7), generator=rng)
    ids = prompt
    for _ in range(120):
        scores = processor(ids, torch.randn(1, VOCABULARY, generator=rng))
        drawn = torch.multinomial(scores.softmax(dim=-1), 1, generator=rng)
        ids = torch.cat((ids, drawn), dim=1)
    response = ids[0, 7:].numpy()
    contexts, tokens = padded_windows(scheme, response)
    law = scheme.null_law
    scores = scheme.score(contexts, tokens)
    z = (scores.sum() - law.mean * tokens.size) / np.sqrt(law.variance * tokens.size)
    first = scores[: scheme.width]
    assert z > 12
    assert (first.mean() - law.mean) / np.sqrt(law.variance / first.size) > 2


def test_synthid_law_has_the_tables_own_mean():
    """Seed 0: 32,743 ones of 65,536, not half; exact hypergeometric up to 16 layers."""
    scheme = make_foreign("hf-synthid", {**TABLE, "ngram_len": 5, "keys": list(range(9))})
    ones = int(scheme.table.sum())
    processor = synthid(sampling_table_seed=0).construct_processor(VOCABULARY, "cpu")
    assert ones == int(processor.sampling_table.sum())
    assert scheme.null_law.mean == pytest.approx(9 * ones / 65536, rel=1e-15)
    wide = make_foreign("hf-synthid", {**TABLE, "ngram_len": 5, "keys": list(range(30))})
    assert wide.null_law.mean == pytest.approx(30 * ones / 65536, rel=1e-15)
    assert wide.null_law.total == 1 << 256


def test_synthid_law_is_counted_over_all_keys_of_a_tiny_table():
    """Two layers, table of 64: all ordered pairs of distinct residues, at one state."""
    config = {
        "ngram_len": 2,
        "keys": [0, 1],
        "sampling_table_size": 64,
    }
    scheme = make_foreign("hf-synthid", config)
    pair = np.array([[9]], dtype=np.uint32), np.array([17], dtype=np.uint32)
    counts = np.zeros(3, dtype=np.int64)
    for first in range(64):
        for second in range(64):
            if first != second:
                counts[scheme.with_key((first, second)).score(*pair)[0]] += 1
    law = scheme.null_law
    assert NullLaw(tuple(int(c) for c in counts)).probabilities.tolist() == pytest.approx(
        law.probabilities.tolist(), rel=1e-15
    )


def test_synthid_layers_whose_keys_agree_are_one_coin():
    config = {"ngram_len": 2, "sampling_table_size": 65536, "keys": [5, 5 + 65536, -65531, 6]}
    scheme = make_foreign("hf-synthid", config)
    assert scheme.residues.tolist() == [5, 6]
    assert len(scheme.null_law.masses) == 3
