"""Vectors of Unigram of its own repository: unigram.json.

Needs XuandongZhao/Unigram-Watermark at b96cdb4 on PYTHONPATH (`gptwm.py`); the one class of
transformers that it imports and newer ones lack is stood in for.
"""

import transformers

from benchmarks.vectors import token_ids, write

CASES = [(0, 50257, 0.5), (42, 1000, 0.25), ((1 << 40) + 12345, 151936, 0.1)]


def main():
    if not hasattr(transformers, "LogitsWarper"):
        transformers.LogitsWarper = transformers.LogitsProcessor
    from gptwm import GPTWatermarkBase

    vectors = []
    for seed, (key, size, fraction) in enumerate(CASES):
        config = {"fraction": fraction, "strength": 2.0, "vocab_size": size, "watermark_key": key}
        mask = GPTWatermarkBase(**config).green_list_mask
        ids = token_ids(size, 170 + seed, 0)
        coins = "".join(str(int(mask[i])) for i in ids)
        vectors.append(
            {"config": config, "vocabulary_size": size, "token_ids": ids, "coins": coins}
        )
    made_by = "Unigram-Watermark at b96cdb4, GPTWatermarkBase.green_list_mask; coins: 1 = green"
    write("unigram", "make_unigram", made_by, ("torch", "numpy", "transformers"), vectors)


if __name__ == "__main__":
    main()
