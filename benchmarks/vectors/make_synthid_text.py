"""Vectors of Google's synthid-text as its repository has it since 2025-06: synthid-text-2025.json.

Needs the repository's src at commit addb4a1 on PYTHONPATH (the package on PyPI is another hash).
"""

import torch
from synthid_text import logits_processing

from benchmarks.vectors import token_ids, write
from benchmarks.vectors.make_hf_synthid import GOOGLE_KEYS, WIDE_KEYS

CASES = [
    (GOOGLE_KEYS, 5, 152000),
    ([1, 2, 3], 3, 32000),
    (WIDE_KEYS, 4, 256000),
    ([7, 9, 7, 1 << 40], 2, 1000),
]


def main():
    vectors = []
    for seed, (keys, ngram_len, size) in enumerate(CASES):
        ids = token_ids(size, 120 + seed, ngram_len - 1)
        processor = logits_processing.SynthIDLogitsProcessor(
            ngram_len=ngram_len,
            keys=keys,
            context_history_size=1024,
            temperature=1.0,
            top_k=40,
            device=torch.device("cpu"),
        )
        bits = processor.compute_g_values(torch.tensor([ids]))[0]
        mask = processor.compute_context_repetition_mask(torch.tensor([ids]))[0]
        config = {"ngram_len": ngram_len, "keys": keys, "context_history_size": 1024}
        vectors.append(
            {
                "config": config,
                "token_ids": ids,
                "coins": ["".join(str(int(bit)) for bit in row) for row in bits],
                "not_repeated": "".join(str(int(bit)) for bit in mask),
            }
        )
    write(
        "synthid-text-2025",
        "make_synthid_text",
        "google-deepmind/synthid-text at addb4a1 (2025-06-13), compute_g_values on the CPU; coins: "
        "one string a position, one g-value a key; not_repeated: its mask of repeated contexts",
        ("torch",),
        vectors,
        "its version string is 0.2.1, like that of the package on PyPI, which is another hash",
    )


if __name__ == "__main__":
    main()
