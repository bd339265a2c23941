"""Vectors of transformers' own green lists: hf-lefthash.json, hf-selfhash.json."""

import torch
from transformers import WatermarkingConfig

from benchmarks.vectors import token_ids, windows, write

CASES = [
    ("lefthash", 1, 15485863, 0.25, 32000),
    ("lefthash", 1, 999983, 0.5, 1000),
    ("lefthash", 1, (1 << 40) + 12345, 0.25, 151936),
    ("lefthash", 3, (1 << 63) + 987654321, 0.1, 50272),
    ("selfhash", 4, 15485863, 0.25, 32000),
    ("selfhash", 2, 7, 0.5, 1000),
    ("selfhash", 4, (1 << 40) + 12345, 0.25, 151936),
    ("selfhash", 1, 999983, 0.25, 50272),
]


def coins(config, vocabulary_size, ids, width):
    processor = config.construct_processor(vocabulary_size, "cpu")
    self_salted = config.seeding_scheme == "selfhash"
    out = ""
    for context, token in windows(ids, width):
        seen = torch.tensor([*context, token] if self_salted else context)
        out += str(int(token in processor._get_greenlist_ids(seen)))
    return out


def main():
    for scheme in ("lefthash", "selfhash"):
        vectors = []
        for seed, (name, context_width, key, ratio, size) in enumerate(CASES):
            if name != scheme:
                continue
            config = WatermarkingConfig(
                greenlist_ratio=ratio,
                hashing_key=key,
                seeding_scheme=scheme,
                context_width=context_width,
            )
            width = 1 if scheme == "lefthash" else context_width - 1
            ids = token_ids(size, seed, width)
            vectors.append(
                {
                    "config": config.to_dict(),
                    "vocabulary_size": size,
                    "token_ids": ids,
                    "coins": coins(config, size, ids, width),
                }
            )
        write(
            f"hf-{scheme}",
            "make_hf",
            "transformers' WatermarkLogitsProcessor on the CPU; coins: 1 = green, one a position",
            ("transformers", "torch"),
            vectors,
        )


if __name__ == "__main__":
    main()
