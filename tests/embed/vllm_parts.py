"""Parameters, configurations and logits as vLLM would hand them to a processor."""

import importlib
import sys
from types import SimpleNamespace

import numpy as np
import torch

from provenance.embed.vllm.requests import LABELS_FIELD
from tests.embed import vllm_fake as fake
from tests.embed.conftest import ADAPTERS, LONGEST, REAL
from tests.embed.device import DEVICE

SLOTS, WIDEST = 64, 200


def make_config(size, mode="raw_logprobs", **more):
    model = SimpleNamespace(
        get_vocab_size=lambda: size, logprobs_mode=mode, seed=0, max_model_len=LONGEST
    )
    parallel = SimpleNamespace(tensor_parallel_size=1, rank=0)
    values = {"num_speculative_tokens": 0, "watermark_config": None, **more}
    return SimpleNamespace(model_config=model, parallel_config=parallel, **values)


def make_parameters(labels=("week=a",), *, fields=None, ends=(), end=None, **options):
    """`ends` are stop tokens of the request, `end` is the model's; `ignore_eos` is an option."""
    extra = {} if labels is None else {LABELS_FIELD: list(labels)}
    extra = {**extra, **(fields or {})} or None
    given = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": None, **options}
    if REAL:
        from vllm import SamplingParams

        found = SamplingParams(extra_args=extra, stop_token_ids=list(ends), **given)
        found.update_from_generation_config({}, end)
        return found
    more = {"stop": [], "max_tokens": None, "stop_token_ids": list(ends), "ignore_eos": False}
    found = SimpleNamespace(extra_args=extra, **{**more, **given})
    found.eos_token_id = None if found.ignore_eos else end
    found.all_stop_token_ids = {*ends, *([] if end is None else [end])}
    return found


def make_logits(rows, size, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, size, generator=generator) * 3


def make_v1(size, **more):
    module = importlib.import_module(ADAPTERS[0])
    return module.WatermarkLogitsProcessor(make_config(size, **more), torch.device("cpu"), False)


class Buffer:
    """A per-slot buffer of the runner: `.gpu` on the device, `.np` on the host."""

    def __init__(self, *shape):
        self.np = np.zeros(shape, dtype=np.int32)

    @property
    def gpu(self):
        return torch.from_numpy(self.np).to(DEVICE)


def make_v2(size, **more):
    module = importlib.import_module(ADAPTERS[1])
    state = sys.modules[fake.V2].LogitsProcRequestState
    states = state(
        device=torch.device(DEVICE),
        max_num_reqs=SLOTS,
        vocab_size=size,
        all_token_ids=Buffer(SLOTS, WIDEST),
        prompt_len=Buffer(SLOTS),
        prefill_len=Buffer(SLOTS),
        total_len=Buffer(SLOTS),
    )
    processor = module.WatermarkLogitsProcessor(make_config(size, **more), states)
    processor.states = states
    return processor


def make_context(processor, slots, drafts=()):
    """The step's layout: one row a request, and one more for each of its drafts."""
    drafts = drafts or [[] for _ in slots]
    total = processor.states.total_len.np
    table = processor.states.all_token_ids.np
    owners, local, tokens, places = [], [], [], []
    for slot, draft in zip(slots, drafts, strict=True):
        last = int(total[slot]) - 1
        for j, token in enumerate([int(table[slot, last]), *draft]):
            owners, local = [*owners, slot], [*local, j]
            tokens, places = [*tokens, token], [*places, last + j]
    upper = [int(total[slot]) + len(draft) for slot, draft in zip(slots, drafts, strict=True)]
    return sys.modules[fake.V2].LogitsContext(
        expanded_idx_mapping=torch.tensor(owners, dtype=torch.int32, device=DEVICE),
        idx_mapping=torch.tensor(slots, dtype=torch.int32, device=DEVICE),
        idx_mapping_np=np.array(slots, dtype=np.int32),
        expanded_local_pos=torch.tensor(local, dtype=torch.int32, device=DEVICE),
        input_ids=torch.tensor(tokens, dtype=torch.int32, device=DEVICE),
        pos=torch.tensor(places, dtype=torch.int64, device=DEVICE),
        seq_lens_upper_bound_np=np.array(upper, dtype=np.int32),
    )
