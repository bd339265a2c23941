"""Vectors of TextSeal 0.0.5: textseal-greenlist.json, textseal-gumbel.json, textseal-synthid.json.

Needs textseal on PYTHONPATH (pip download --no-deps textseal, unzip). Only its `common.watermark`
runs: the package itself, which imports post-hoc tools, is stood in for.
"""

import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch

from benchmarks.vectors import token_ids, windows, write

CASES = [(42, 1, 0.5), (1234567, 2, 0.25), ((1 << 40) + 99, 4, 0.1), (0, 3, 0.5)]


def stand_in():
    """An empty `textseal` whose submodules are found as usual."""
    package = ModuleType("textseal")
    package.__path__ = [str(Path(p, "textseal")) for p in sys.path if Path(p, "textseal").is_dir()]
    sys.modules["textseal"] = package


def scores(config, pairs, depth):
    from textseal.common.watermark.core import score_listed_tokens

    rows = []
    for context, token in pairs:
        listed = [token + layer for layer in range(depth)]
        rows.append(score_listed_tokens(torch.tensor([context]), config, listed)[0].tolist())
    return rows


def main():
    stand_in()
    from textseal.common.watermark.core import WatermarkConfig
    from textseal.common.watermark.pseudorandom import prf_uniform

    files = {"greenlist": [], "gumbelmax": [], "synthid": []}
    for seed, (key, ngram, gamma) in enumerate(CASES):
        ids = token_ids(128256, 30 + seed, ngram)
        pairs = windows(ids, ngram)
        base = WatermarkConfig(secret_key=key, ngram=ngram, gamma=gamma, method="binary")
        public = {"secret_key": key, "ngram": ngram, "gamma": gamma}
        green = "".join(str(int(row[0])) for row in scores(base, pairs, 1))
        contexts = torch.tensor([context for context, _ in pairs])
        uniforms = prf_uniform(contexts, torch.tensor([token for _, token in pairs]), key)
        layers = [sum(map(int, row)) for row in scores(base, pairs, base.depth)]
        row = scores(replace(base, method="uniform"), pairs, 1)
        assert [r[0] for r in row] == uniforms.tolist()
        coins = {
            "greenlist": green,
            "gumbelmax": [round(u * 8191) for u in uniforms.double().tolist()],
            "synthid": layers,
        }
        for kind, found in files.items():
            config = {**public, "watermark_type": kind}
            if kind == "synthid":
                config["depth"] = base.depth
            found.append({"config": config, "token_ids": ids, "coins": coins[kind]})
    for kind, name in (("greenlist", "greenlist"), ("gumbelmax", "gumbel"), ("synthid", "synthid")):
        write(
            f"textseal-{name}",
            "make_textseal",
            "TextSeal 0.0.5's score_listed_tokens and prf_uniform; coins: 1 = green, or 8191 u, or "
            "the number of green layers",
            ("torch",),
            files[kind],
        )


if __name__ == "__main__":
    main()
