"""Vectors of Sander et al.'s `hash` seeding: radioactive-greenlist.json, radioactive-gumbel.json.

The original (github.com/facebookresearch/radioactive-watermark, no package, not to be fetched here)
is not run: its seeding is one line of Python integers, its lists and rows are torch's randperm and
rand, which are.
"""

import torch

from benchmarks.vectors import token_ids, windows, write

CASES = [
    (0, 1, 0.25, 32000),
    (42, 2, 0.25, 32000),
    ((1 << 40) + 9, 4, 0.5, 1000),
    (7, 3, 0.1, 128256),
]
SALT = 35317


def seed_of(key, context):
    seed = key
    for token in context:
        seed = (seed * SALT + token) % (2**64 - 1)
    return seed


def main():
    green, gumbel = [], []
    for number, (key, ngram, gamma, size) in enumerate(CASES):
        ids = token_ids(size, 100 + number, ngram)
        flags, mantissas = "", []
        for context, token in windows(ids, ngram):
            generator = torch.Generator().manual_seed(seed_of(key, context))
            flags += str(
                int(token in torch.randperm(size, generator=generator)[: int(gamma * size)])
            )
            generator.manual_seed(seed_of(key, context))
            mantissas.append(int(torch.rand(size, generator=generator)[token].item() * 2**24))
        config = {"seed": key, "ngram": ngram, "seeding": "hash", "salt_key": SALT}
        common = {"vocabulary_size": size, "token_ids": ids}
        green.append({"config": {**config, "gamma": gamma}, **common, "coins": flags})
        gumbel.append({"config": config, **common, "coins": mantissas})
    made_by = "the definition on torch's CPU generator, not the original; coins: "
    for name, vectors, coins in (
        ("greenlist", green, "1 = green"),
        ("gumbel", gumbel, "u * 2**24"),
    ):
        write(f"radioactive-{name}", "make_radioactive", made_by + coins, ("torch",), vectors)


if __name__ == "__main__":
    main()
