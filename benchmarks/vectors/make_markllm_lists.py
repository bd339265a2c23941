"""Vectors of MarkLLM 112fa74: markllm-ewd.json, markllm-pf.json, markllm-exp-gumbel.json.

Needs the repository at that commit on PYTHONPATH; its `...Utils` classes run. pandas and
scikit-learn, which only IE's plots want, are stood in for.
"""

import sys
from types import ModuleType, SimpleNamespace

import torch

from benchmarks.vectors import token_ids, windows, write

EWD = [
    ("EWD", 15485863, 32000, 0.5, 1),
    ("SWEET", 999983, 1000, 0.25, 3),
    ("IE", (1 << 40) + 12345, 50272, 0.5, 2),
    ("MorphMark", 42, 32000, 0.25, 1),
    ("EWD", 15485863 + (1 << 32), 32000, 0.5, 1),
]
PF = [(0, 32000, 8, 0), (42, 1000, 2, 3), ((1 << 33) + 9, 50272, 1, 0), ((1 << 33) + 9, 1000, 3, 1)]
EXP_GUMBEL = [(42, 600, 2), (7, 1000, 1), ((1 << 32) + 42, 500, 4)]


def config_of(fields, size):
    tokenizer = SimpleNamespace(pad_token_id=0, eos_token_id=0)
    return SimpleNamespace(**fields, vocab_size=size, device="cpu", generation_tokenizer=tokenizer)


def utils_of(name, config):
    for module in ("pandas", "sklearn", "sklearn.metrics"):
        sys.modules.setdefault(module, ModuleType(module))
    sys.modules["sklearn"].metrics = sys.modules["sklearn.metrics"]
    from watermark.ewd.ewd import EWDUtils
    from watermark.ie.ie import IEUtils
    from watermark.morphmark.morphmark import MorphMarkUtils
    from watermark.sweet.sweet import SWEETUtils

    classes = {"EWD": EWDUtils, "SWEET": SWEETUtils, "IE": IEUtils, "MorphMark": MorphMarkUtils}
    return classes[name](config)


def ewd():
    for seed, (name, key, size, gamma, length) in enumerate(EWD):
        fields = {"gamma": gamma, "delta": 2.0, "hash_key": key, "prefix_length": length}
        public = {"algorithm_name": name, **fields, "z_threshold": 4.0}
        if name == "MorphMark":
            more = {"ewd": True, "delta_ewd": 1.25, "f_scheme": "time", "window_scheme": "left"}
            fields, public = fields | more, public | more
            del public["delta"]
        utils = utils_of(name, config_of(fields, size))
        ids = token_ids(size, 140 + seed, length)
        coins = ""
        for context, token in windows(ids, length):
            greens = utils.get_greenlist_ids(torch.tensor(context))
            coins += str(int((greens == token).any()))
        yield {"config": public, "vocabulary_size": size, "token_ids": ids, "coins": coins}


def pf():
    from watermark.pf.pf import PFUtils

    for seed, (key, size, ngram, payload) in enumerate(PF):
        fields = {
            "ngram": ngram,
            "seed": key,
            "seeding": "hash",
            "salt_key": 35317,
            "payload": payload,
            "max_seq_len": 1024,
        }
        utils = PFUtils(config_of(fields, size))
        ids = token_ids(size, 150 + seed, ngram)
        coins = []
        for context, token in windows(ids, ngram):
            utils.rng.manual_seed(utils.get_seed_rng(torch.tensor(context)))
            row = torch.rand(size, generator=utils.rng).roll(-payload)
            coins.append(int(row[token].item() * 2**24))
            # its own score of the token, without a payload
            shifted = utils.score_tok(context, token)[payload].item()
            expected = -torch.log(row[token].clamp(min=2.0**-24)).item()
            assert abs(shifted - expected) < 1e-5 or row[token] == 0
        config = {"algorithm_name": "PF", **fields}
        yield {"config": config, "vocabulary_size": size, "token_ids": ids, "coins": coins}


def exp_gumbel():
    from watermark.exp_gumbel.exp_gumbel import EXPGumbelUtils

    for seed, (key, size, length) in enumerate(EXP_GUMBEL):
        fields = {"prefix_length": length, "eps": 1e-20, "threshold": 1e-4, "seed": key}
        utils = EXPGumbelUtils(config_of(fields, size))
        ids = token_ids(size, 160 + seed, length)
        coins = [
            int(utils.uniform[sum(context), token].item() * 2**24)
            for context, token in windows(ids, length)
        ]
        config = {"algorithm_name": "EXPGumbel", **fields, "temperature": 0.7}
        yield {"config": config, "vocabulary_size": size, "token_ids": ids, "coins": coins}


def main():
    for name, vectors, said in (
        ("ewd", ewd(), "EWD-, SWEET-, IE- and MorphMarkUtils.get_greenlist_ids; coins: 1 = green"),
        ("pf", pf(), "PFUtils.get_seed_rng and torch.rand, its row rolled; coins: r * 2**24"),
        ("exp-gumbel", exp_gumbel(), "EXPGumbelUtils.uniform; coins: u * 2**24"),
    ):
        made_by = f"MarkLLM at 112fa74 on the CPU: {said}"
        write(f"markllm-{name}", "make_markllm_lists", made_by, ("torch", "numpy"), list(vectors))


if __name__ == "__main__":
    main()
