"""Vectors of TextSeal's dual key: textseal-dual-key.json.

Needs facebookresearch/textseal at 2c63fb8 (2025-12) on PYTHONPATH. Its `prf_uniform` runs under key
A and under key B; that B is A + 12345 by default was read in the repository of 2026, not run.
"""

import torch
from apps.common.watermark.pseudorandom import prf_uniform

from benchmarks.vectors import token_ids, windows, write

CASES = [
    ({"secret_key": 42, "ngram": 1}, 42 + 12345),
    ({"secret_key": 1234567, "ngram": 2, "secret_key_b": -1, "mixing_alpha": 0.3}, 1246912),
    ({"secret_key": (1 << 40) + 99, "ngram": 4, "secret_key_b": 98765}, 98765),
]


def main():
    vectors = []
    for seed, (fields, second) in enumerate(CASES):
        ids = token_ids(128256, 180 + seed, fields["ngram"])
        pairs = windows(ids, fields["ngram"])
        contexts = torch.tensor([context for context, _ in pairs])
        tokens = torch.tensor([token for _, token in pairs])
        coins = [
            [round(u * 8191) for u in prf_uniform(contexts, tokens, key).double().tolist()]
            for key in (fields["secret_key"], second)
        ]
        config = {**fields, "watermark_type": "textseal"}
        vectors.append({"config": config, "token_ids": ids, "coins": coins})
    write(
        "textseal-dual-key",
        "make_textseal_dual",
        "TextSeal's prf_uniform at 2c63fb8 under both keys; coins: 8191 u of A, then of B",
        ("torch",),
        vectors,
        "which key B is was read in the repository of 2026, not run",
    )


if __name__ == "__main__":
    main()
