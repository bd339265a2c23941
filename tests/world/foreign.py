"""The synthetic world of `tests.world.synthetic`, served under a foreign scheme.

The log is drawn by tilting the teacher's candidates towards high scores: enough to leave a mark in
it for any scheme. How the originals draw matters only where they are run themselves (`end_to_end`).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from tokenizers import Tokenizer

from provenance.marks.foreign import ForeignScheme, make_foreign
from provenance.marks.foreign.mark import ForeignMark
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.served.writer import LogWriter
from provenance.storage.files import sha256_of_file
from tests.world.synthetic import WORDS, Ids, Teacher, decode, save_tokenizer

CONFIGURATIONS: Final[dict[str, dict[str, Any]]] = {
    "hf-lefthash": {"greenlist_ratio": 0.25, "hashing_key": 0},
    "hf-selfhash": {
        "greenlist_ratio": 0.25,
        "hashing_key": 0,
        "seeding_scheme": "selfhash",
        "context_width": 4,
    },
    "hf-synthid": {"ngram_len": 5, "keys": [0] * 30, "sampling_table_size": 65536},
    "lm-watermarking": {"seeding_scheme": "minhash", "hash_key": 0},
    "markllm-exp": {"hash_key": 0, "prefix_length": 4},
    "markllm-kgw": {"hash_key": 0, "gamma": 0.5, "prefix_length": 1, "f_scheme": "time"},
    "markllm-unigram": {"hash_key": 0, "gamma": 0.5},
    "radioactive-greenlist": {"seed": 0, "ngram": 2, "gamma": 0.25},
    "radioactive-gumbel": {"seed": 0, "ngram": 2},
    "textseal-greenlist": {"secret_key": 0, "ngram": 1, "watermark_type": "greenlist"},
    "textseal-gumbel": {"secret_key": 0, "ngram": 1},
    "textseal-synthid": {"secret_key": 0, "ngram": 1, "watermark_type": "synthid", "depth": 30},
    "vllm-gumbel": {"key": 0, "context_width": 4},
    "vllm-dual-key-gumbel": {"key": 0, "context_width": 4, "algorithm": "dual_key_gumbel"},
    "synthid-text-2025": {"ngram_len": 5, "keys": [0] * 30},
    "textseal-dual-key": {"secret_key": 0, "ngram": 1, "watermark_type": "textseal"},
    "vllm-sbw": {"key": 0, "algorithm": "sbw", "sbw_scheme": "selfhash", "context_width": 4},
    "sglang-gumbel": {"key": 0, "context_window": 4},
    "markllm-ewd": {"hash_key": 0, "gamma": 0.5, "prefix_length": 1},
    "markllm-pf": {"seed": 0, "ngram": 2},
    "markllm-exp-gumbel": {"seed": 0, "prefix_length": 2},
    "unigram": {"watermark_key": 0, "fraction": 0.5},
}
"""The originals' defaults where they have any; the key 0 stands for a random one."""

TESTED: Final = tuple(name for name in CONFIGURATIONS if name != "textseal-synthid")

BIAS: Final = 1.5


def random_scheme(name: str, rng: np.random.Generator, vocabulary: int = WORDS) -> ForeignScheme:
    """A scheme under a random key, large as the original's users choose it."""
    config = dict(CONFIGURATIONS[name])
    field = next(field for field, value in config.items() if value in (0, [0] * 30))
    if field == "keys":
        config[field] = [int(key) for key in rng.integers(0, 1 << 31, 30)]
    else:
        config[field] = int(rng.integers(1 << 20, 1 << 31)) | 1
    if name == "sglang-gumbel":
        config[field] = f"{config[field]:016x}"
    return make_foreign(name, config, None, vocabulary)


@dataclass(frozen=True)
class ForeignWorld:
    """A mark, its log on disk, and the index of it; what `learn` and `innocent` need of a world."""

    folder: Path
    mark: ForeignMark
    tokenizer: Tokenizer
    teacher: Teacher
    served: Ids
    index: Index


def serve(
    teacher: Teacher, scheme: ForeignScheme, rng: np.random.Generator, responses: int, tokens: int
) -> Ids:
    """Marked responses, uint32 [responses, tokens]."""
    ids = np.empty((responses, tokens), dtype=np.uint32)
    start = max(2, scheme.width)
    ids[:, :start] = teacher.sample(rng, responses, start)
    law = scheme.null_law
    for t in range(start, tokens):
        a, b = ids[:, t - 2], ids[:, t - 1]
        candidates, probabilities = teacher.candidates[a, b], teacher.probabilities[a, b]
        contexts = np.repeat(ids[:, t - scheme.width : t], candidates.shape[1], axis=0)
        scores = scheme.score(np.ascontiguousarray(contexts), candidates.ravel())
        tilt = (scores.reshape(candidates.shape) - law.mean) / np.sqrt(law.variance)
        weights = probabilities * np.exp(BIAS * tilt)
        cumulative = np.cumsum(weights / weights.sum(axis=1, keepdims=True), axis=1)
        drawn = (rng.random((responses, 1)) > cumulative).sum(axis=1)
        ids[:, t] = candidates[np.arange(responses), drawn.clip(max=candidates.shape[1] - 1)]
    return ids


def make_foreign_world(
    folder: Path,
    teacher: Teacher,
    name: str,
    seed: int,
    responses: int = 200,
    tokens: int = 80,
    scheme: ForeignScheme | None = None,
) -> ForeignWorld:
    """Serve marked responses under this scheme, or under a random key of it, and index them."""
    rng = np.random.default_rng([seed, 2])
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder / "tokenizer.json")
    scheme = scheme or random_scheme(name, rng)
    mark = ForeignMark(scheme, WORDS, sha256_of_file(folder / "tokenizer.json"))
    served = serve(teacher, scheme, rng, responses, tokens)
    with LogWriter(folder / "served.jsonl") as log:
        for i, ids in enumerate(served):
            log.write(
                response_id=f"r{i}",
                time="2026-01-01T00:00:00+00:00",
                labels={},
                token_ids=ids.tolist(),
                text=decode(ids),
                marked=True,
                finish="length",
            )
    build_index([folder / "served.jsonl"], folder / "index", mark, threads=1)
    return ForeignWorld(
        folder,
        mark,
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        teacher,
        served,
        Index.open(folder / "index", mark.public),
    )
