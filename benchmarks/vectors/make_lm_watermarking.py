"""Vectors of lm-watermarking's seedings: lm-watermarking.json.

The original (github.com/jwkirchenbauer/lm-watermarking, no package, not to be fetched here) is not
run. additive and anchored min-hash seedings are run through transformers' port of it, given the
original's table; min-hash and skip-gram follow the original's definition with torch's own tensors
and generator.
"""

import torch
from transformers import WatermarkLogitsProcessor

from benchmarks.vectors import token_ids, windows, write

PUBLIC_KEY = 15485863
TABLE_SIZE = 1_000_003
TABLE_SEED = 2971215073
CASES = [
    ({"seeding_scheme": "simple_1", "gamma": 0.5}, "additive", 1, False, PUBLIC_KEY, 32000),
    ({"seeding_scheme": "ff-additive_prf-1-False-999983"}, "additive", 1, False, 999983, 1000),
    (
        {"seeding_scheme": "lefthash", "hash_key": 1 << 40 | 9},
        "additive",
        1,
        False,
        1 << 40 | 9,
        50272,
    ),
    ({"seeding_scheme": "selfhash"}, "anchored", 4, True, PUBLIC_KEY, 32000),
    ({"seeding_scheme": "algorithm-3", "hash_key": 999983}, "anchored", 4, True, 999983, 151936),
    ({"seeding_scheme": "ff-anchored_minhash_prf-3-True-42"}, "anchored", 3, True, 42, 1000),
    ({"seeding_scheme": "minhash"}, "minhash", 4, False, PUBLIC_KEY, 32000),
    ({"seeding_scheme": "minhash", "hash_key": 999983}, "minhash", 4, False, 999983, 151936),
    ({"seeding_scheme": "ff-minhash_prf-2-False-42", "gamma": 0.5}, "minhash", 2, False, 42, 1000),
    ({"seeding_scheme": "skipgram"}, "skipgram", 5, False, PUBLIC_KEY, 32000),
    (
        {"seeding_scheme": "simple_1", "select_green_tokens": False},
        "additive",
        1,
        False,
        PUBLIC_KEY,
        1000,
    ),
]


def green_list(processor, prf, key, seen, size, count):
    if prf in ("additive", "anchored"):
        processor.set_seed(seen)
    else:
        hashed = processor.fixed_table[(key * seen) % TABLE_SIZE] + 1
        seed = hashed.min() if prf == "minhash" else hashed[0]
        processor.rng.manual_seed(seed.item() % (2**64 - 1))
    return torch.randperm(size, generator=processor.rng)[:count]


def main():
    generator = torch.Generator().manual_seed(TABLE_SEED)
    table = torch.randperm(TABLE_SIZE, generator=generator)
    vectors = []
    for seed, (config, prf, window, self_salted, key, size) in enumerate(CASES):
        gamma = config.get("gamma", 0.25)
        processor = WatermarkLogitsProcessor(
            vocab_size=size,
            device="cpu",
            greenlist_ratio=gamma,
            hashing_key=key,
            seeding_scheme="selfhash" if prf == "anchored" else "lefthash",
            context_width=window,
        )
        processor.fixed_table = table
        select = config.get("select_green_tokens", True)
        count = int(size * gamma) if select else size - int(size * gamma)
        width = window - self_salted
        ids = token_ids(size, 80 + seed, width)
        coins = ""
        for context, token in windows(ids, width):
            seen = torch.tensor([*context, token] if self_salted else context)
            first = green_list(processor, prf, key, seen, size, count)
            coins += str(int((token in first) == select))
        vectors.append(
            {"config": config, "vocabulary_size": size, "token_ids": ids, "coins": coins}
        )
    write(
        "lm-watermarking",
        "make_lm_watermarking",
        "not the original, which is not packaged: transformers' port with the original's table "
        "(additive, anchored_minhash), the definition on torch's generator (minhash, skipgram); "
        "coins: 1 = green",
        ("transformers", "torch"),
        vectors,
    )


if __name__ == "__main__":
    main()
