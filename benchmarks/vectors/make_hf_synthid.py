"""Vectors of transformers' and Google's SynthID-Text: hf-synthid.json.

Google's synthid-text is run too where PYTHONPATH has it (pip download synthid-text): the note
says whether it agrees.
"""

from importlib.util import find_spec

import torch
from transformers import SynthIDTextWatermarkingConfig

from benchmarks.vectors import token_ids, write

GOOGLE_KEYS = [654, 400, 836, 123, 340, 443, 597, 160, 57, 29, 590, 639, 13, 715, 468]
WIDE_KEYS = [-(1 << 62) + 11, 2**40 + 7, 65536 + 3, 3, 99, 12345678901234]
CASES = [
    (GOOGLE_KEYS, 5, 0, 1 << 16, 32000),
    (GOOGLE_KEYS[:9], 2, 123, 1 << 16, 256000),
    (WIDE_KEYS, 4, 2**32 + 5, 1 << 10, 1000),
    ([(i * 7919 + 5) % 1000 for i in range(30)], 5, 0, 1 << 16, 151936),
]


def google(config, ids):
    """The same bits by synthid-text, or None where it is not importable."""
    if find_spec("synthid_text") is None:
        return None
    from synthid_text import logits_processing

    processor = logits_processing.SynthIDLogitsProcessor(
        ngram_len=config.ngram_len,
        keys=config.keys,
        sampling_table_size=config.sampling_table_size,
        sampling_table_seed=config.sampling_table_seed,
        context_history_size=config.context_history_size,
        temperature=1.0,
        top_k=40,
        device=torch.device("cpu"),
    )
    return processor.compute_g_values(torch.tensor([ids]))[0]


def main():
    vectors, agreed = [], []
    for seed, (keys, ngram_len, table_seed, table_size, size) in enumerate(CASES):
        config = SynthIDTextWatermarkingConfig(
            ngram_len=ngram_len,
            keys=keys,
            sampling_table_seed=table_seed,
            sampling_table_size=table_size,
        )
        ids = token_ids(size, 10 + seed, ngram_len - 1)
        processor = config.construct_processor(size, "cpu")
        bits = processor.compute_g_values(torch.tensor([ids]))[0]
        other = google(config, ids)
        agreed.append(other is not None and bool((bits == other).all()))
        coins = ["".join(str(int(bit)) for bit in row) for row in bits]
        vectors.append({"config": config.to_dict(), "token_ids": ids, "coins": coins})
    write(
        "hf-synthid",
        "make_hf_synthid",
        "transformers' SynthIDTextWatermarkLogitsProcessor.compute_g_values on the CPU; "
        "coins: one string a position, one g-value a key",
        ("transformers", "torch"),
        vectors,
        f"Google's synthid-text 0.2.1 gives the same bits: {agreed}",
    )


if __name__ == "__main__":
    main()
