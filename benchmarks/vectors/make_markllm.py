"""Vectors of MarkLLM 0.1.5: markllm-kgw.json, markllm-unigram.json, markllm-exp.json.

Needs markllm on PYTHONPATH (pip download --no-deps markllm, unzip); its `...Utils` classes run.
"""

from types import SimpleNamespace

import torch
from markllm.watermark.exp.exp import EXPUtils
from markllm.watermark.kgw.kgw import KGWUtils
from markllm.watermark.unigram.unigram import UnigramUtils

from benchmarks.vectors import token_ids, windows, write

KGW = [
    (15485863, 32000, 0.5, 1, "time", "left"),
    (999983, 1000, 0.25, 3, "time", "left"),
    (42, 50272, 0.5, 3, "additive", "left"),
    ((1 << 40) + 12345, 32000, 0.25, 3, "skip", "left"),
    (7, 1000, 0.5, 3, "min", "left"),
    (999983, 151936, 0.25, 1, "additive", "left"),
    (15485863, 32000, 0.5, 1, "min", "left"),
    (42, 1000, 0.5, 1, "skip", "left"),
]
SELF = [(42, 300, 0.5, 1, "time", "self"), (999983, 257, 0.25, 2, "min", "self")]
UNIGRAM = [(15485863, 32000, 0.5), (42, 1000, 0.25), ((1 << 40) + 12345, 151936, 0.1)]
EXP = [(15485863, 32000, 4), (42, 1000, 1), ((1 << 40) + 12345, 50272, 2)]


def config_of(fields, size):
    return SimpleNamespace(**fields, vocab_size=size, device="cpu")


def kgw():
    for seed, (key, size, gamma, length, f_scheme, window) in enumerate([*KGW, *SELF]):
        fields = {
            "gamma": gamma,
            "hash_key": key,
            "prefix_length": length,
            "f_scheme": f_scheme,
            "window_scheme": window,
        }
        utils = KGWUtils(config_of(fields, size))
        ids = token_ids(size, 40 + seed, length)
        lists = {}
        coins = ""
        for context, token in windows(ids, length):
            if tuple(context) not in lists:
                lists[tuple(context)] = {
                    int(t) for t in utils.get_greenlist_ids(torch.tensor(context))
                }
            coins += str(int(token in lists[tuple(context)]))
        config = {"algorithm_name": "KGW", "delta": 2.0, "z_threshold": 4.0, **fields}
        yield {"config": config, "vocabulary_size": size, "token_ids": ids, "coins": coins}


def unigram():
    for seed, (key, size, gamma) in enumerate(UNIGRAM):
        fields = {"gamma": gamma, "hash_key": key}
        utils = UnigramUtils(config_of(fields, size))
        ids = token_ids(size, 60 + seed, 0)
        _, flags = utils.score_sequence(ids)
        config = {"algorithm_name": "Unigram", "delta": 2.0, "z_threshold": 4.0, **fields}
        coins = "".join(map(str, flags))
        yield {"config": config, "vocabulary_size": size, "token_ids": ids, "coins": coins}


def exp():
    for seed, (key, size, length) in enumerate(EXP):
        fields = {"hash_key": key, "prefix_length": length, "top_k": 0}
        utils = EXPUtils(config_of(fields, size))
        ids = token_ids(size, 70 + seed, length)
        coins = []
        for context, token in windows(ids, length):
            utils.seed_rng(torch.tensor(context))
            coins.append(int(torch.rand(size, generator=utils.rng)[token].item() * 2**24))
        config = {"algorithm_name": "EXP", "threshold": 1e-4, "sequence_length": 200, **fields}
        yield {"config": config, "vocabulary_size": size, "token_ids": ids, "coins": coins}


def main():
    for name, vectors, said in (
        ("kgw", kgw(), "KGWUtils.get_greenlist_ids on the CPU; coins: 1 = green"),
        ("unigram", unigram(), "UnigramUtils.score_sequence; coins: 1 = green"),
        ("exp", exp(), "EXPUtils.seed_rng and torch.rand; coins: u * 2**24"),
    ):
        made_by = f"MarkLLM 0.1.5's {said}"
        write(f"markllm-{name}", "make_markllm", made_by, ("torch", "numpy"), list(vectors))


if __name__ == "__main__":
    main()
