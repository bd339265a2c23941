"""What the tests of foreign schemes share: vectors, windows, and one small instance of each."""

import json
from pathlib import Path

import numpy as np

from provenance.marks.foreign import FOREIGN_SCHEMES, make_foreign

FOLDER = Path(__file__).parents[3] / "fixtures" / "vectors"

SMALL = {
    "hf-lefthash": {"greenlist_ratio": 0.25, "hashing_key": 15485863},
    "hf-selfhash": {
        "greenlist_ratio": 0.25,
        "hashing_key": 999983,
        "seeding_scheme": "selfhash",
        "context_width": 4,
    },
    "hf-synthid": {"ngram_len": 3, "keys": [654, 400, 836, 123], "sampling_table_size": 1024},
    "vllm-gumbel": {"key": 77, "context_width": 2},
    "vllm-dual-key-gumbel": {
        "key": 77,
        "context_width": 2,
        "algorithm": "dual_key_gumbel",
        "alpha": 0.25,
    },
    "lm-watermarking": {"seeding_scheme": "minhash", "hash_key": 424243},
    "radioactive-greenlist": {"seed": 9, "ngram": 2, "gamma": 0.25},
    "radioactive-gumbel": {"seed": 9, "ngram": 2},
    "textseal-greenlist": {"secret_key": 42, "ngram": 2, "watermark_type": "greenlist"},
    "textseal-gumbel": {"secret_key": 42, "ngram": 2},
    "textseal-synthid": {"secret_key": 42, "ngram": 2, "watermark_type": "synthid", "depth": 8},
    "markllm-kgw": {"hash_key": 15485863, "gamma": 0.5, "prefix_length": 2, "f_scheme": "additive"},
    "markllm-unigram": {"hash_key": 15485863, "gamma": 0.5},
    "markllm-exp": {"hash_key": 15485863, "prefix_length": 2},
    "synthid-text-2025": {"ngram_len": 3, "keys": [654, 400, 836, 123]},
    "textseal-dual-key": {"secret_key": 1042, "ngram": 2, "watermark_type": "textseal"},
    "vllm-sbw": {"key": 7777, "algorithm": "sbw", "sbw_scheme": "lefthash", "context_width": 1},
    "sglang-gumbel": {"key": "0123456789abcdef", "context_window": 2},
    "markllm-ewd": {"hash_key": 15485863, "gamma": 0.5, "prefix_length": 2},
    "markllm-pf": {"seed": 909, "ngram": 2, "payload": 3},
    "markllm-exp-gumbel": {"seed": 909, "prefix_length": 2},
    "unigram": {"watermark_key": 15485863, "fraction": 0.5},
}
VOCABULARY = 500

assert set(SMALL) == set(FOREIGN_SCHEMES)


def small(name):
    """The instance of a scheme that the protocol tests use."""
    return make_foreign(name, SMALL[name], None, VOCABULARY)


def read_vectors(name):
    """(header, vectors) of one file."""
    content = json.loads((FOLDER / f"{name}.json").read_text())
    return content, content.pop("vectors")


def build(name, vector):
    """The scheme of a vector's configuration."""
    return make_foreign(name, vector["config"], None, vector.get("vocabulary_size"))


def windows(scheme, ids):
    """Every scored position: contexts uint32 [n, width] and tokens uint32 [n]."""
    ids = np.asarray(ids, dtype=np.uint32)
    width = scheme.width
    contexts = np.lib.stride_tricks.sliding_window_view(ids, width + 1)[:, :width]
    return np.ascontiguousarray(contexts), ids[width:]


def padded_windows(scheme, ids):
    """The same with the scheme's padding in front: one position a token."""
    ids = np.asarray(ids, dtype=np.uint32)
    before = np.full(scheme.width, scheme.padding, dtype=np.uint32)
    contexts, tokens = windows(scheme, np.concatenate((before, ids)))
    return contexts, tokens


def random_pairs(scheme, n, seed, vocabulary=VOCABULARY):
    """Uniform windows and tokens."""
    rng = np.random.default_rng(seed)
    contexts = rng.integers(0, vocabulary, (n, scheme.width), dtype=np.uint32)
    return contexts, rng.integers(0, vocabulary, n, dtype=np.uint32)
