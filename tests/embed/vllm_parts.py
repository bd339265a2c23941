"""Parameters, configurations and logits as vLLM would hand them to a processor."""

import importlib
from types import SimpleNamespace

import torch

from provenance.embed.vllm.requests import LABELS_FIELD
from tests.embed.conftest import ADAPTERS, LONGEST, REAL


def make_config(size, mode="raw_logprobs", **more):
    model = SimpleNamespace(
        get_vocab_size=lambda: size, logprobs_mode=mode, seed=0, max_model_len=LONGEST
    )
    parallel = SimpleNamespace(tensor_parallel_size=1, rank=0)
    values = {"num_speculative_tokens": 0, "watermark_config": None, **more}
    return SimpleNamespace(model_config=model, parallel_config=parallel, **values)


def make_parameters(labels=("week=a",), *, fields=None, ends=(), **options):
    extra = {} if labels is None else {LABELS_FIELD: list(labels)}
    extra = {**extra, **(fields or {})} or None
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": None, **options}
    if REAL:
        from vllm import SamplingParams

        return SamplingParams(extra_args=extra, stop_token_ids=list(ends), **given)
    more = {"stop": [], "max_tokens": None, "all_stop_token_ids": set(ends)}
    return SimpleNamespace(extra_args=extra, **{**more, **given})


def make_logits(rows, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator) * 3


def make_v1(size, **more):
    module = importlib.import_module(ADAPTERS[0])
    return module.WatermarkLogitsProcessor(make_config(size, **more), torch.device("cpu"), False)
