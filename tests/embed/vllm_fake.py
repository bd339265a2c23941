"""The few classes of vLLM 0.32 that the processors use, for machines without vLLM.

`test_vllm_processors.py::test_the_fake_is_like_vllm` compares them with the real ones wherever vLLM
is installed: names, parameters, fields and what the two functions compute.
"""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum, auto
from types import ModuleType
from typing import Any

import torch


class MoveDirectionality(Enum):
    UNIDIRECTIONAL = auto()
    SWAP = auto()


@dataclass(frozen=True)
class BatchUpdate:
    batch_size: int
    removed: Any
    added: Any
    moved: Any


class LogitsProcessorV1(ABC):
    @classmethod  # noqa: B027
    def validate_params(cls, sampling_params): ...

    @abstractmethod
    def __init__(self, vllm_config, device, is_pin_memory): ...

    @abstractmethod
    def apply(self, logits): ...

    @abstractmethod
    def is_argmax_invariant(self): ...

    @abstractmethod
    def update_state(self, batch_update): ...


def process_dict_updates(req_entries, batch_update, new_state):
    if not batch_update:
        return False
    for index, params, prompt, output in batch_update.added:
        state = new_state(params, prompt, output)
        req_entries.pop(index, None)
        if state is not None:
            req_entries[index] = state
    for index in batch_update.removed:
        req_entries.pop(index, None)
    for first, second, direction in batch_update.moved:
        a, b = req_entries.pop(first, None), req_entries.pop(second, None)
        if a is not None:
            req_entries[second] = a
        if b is not None and direction == MoveDirectionality.SWAP:
            req_entries[first] = b
    return True


def apply_top_k_top_p(logits, k, p):
    """Ascending sort; at least one token survives top-p; ties at the k-th place survive top-k."""
    ordered, places = logits.sort(dim=-1)
    if k is not None:
        least = ordered.gather(1, (ordered.shape[1] - k.long()).unsqueeze(1))
        ordered = ordered.masked_fill(ordered < least, float("-inf"))
    if p is not None:
        dropped = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - p.unsqueeze(1)
        dropped[:, -1] = False
        ordered = ordered.masked_fill(dropped, float("-inf"))
    return logits.scatter(-1, places, ordered)


@dataclass(frozen=True)
class LogitsProcRequestState:
    device: Any
    max_num_reqs: int
    vocab_size: int
    all_token_ids: Any
    prompt_len: Any
    prefill_len: Any
    total_len: Any


@dataclass(frozen=True)
class LogitsContext:
    expanded_idx_mapping: Any
    idx_mapping: Any
    idx_mapping_np: Any
    expanded_local_pos: Any
    input_ids: Any
    pos: Any
    seq_lens_upper_bound_np: Any


class LogitsProcessorV2(ABC):
    def __init__(self, vllm_config, req_states): ...  # noqa: B027

    @classmethod  # noqa: B027
    def validate_params(cls, sampling_params): ...

    def add_request(self, req_idx, sampling_params):
        return True

    def apply_staged_writes(self): ...  # noqa: B027

    @abstractmethod
    def apply(self, logits, ctx): ...


V1 = "vllm.v1.sample.logits_processor"
V2 = "vllm.v1.worker.gpu.sample.logits_processor"
SAMPLER = "vllm.v1.sample.ops.topk_topp_sampler"
CONTENTS = {
    V1: {
        "BatchUpdate": BatchUpdate,
        "LogitsProcessor": LogitsProcessorV1,
        "MoveDirectionality": MoveDirectionality,
    },
    f"{V1}.builtin": {"process_dict_updates": process_dict_updates},
    SAMPLER: {"apply_top_k_top_p": apply_top_k_top_p},
    V2: {
        "LogitsContext": LogitsContext,
        "LogitsProcRequestState": LogitsProcRequestState,
        "LogitsProcessor": LogitsProcessorV2,
    },
}


def install() -> list[str]:
    """Put the fake into `sys.modules`; returns the names to remove again."""
    names = set()
    for path, contents in CONTENTS.items():
        parts = path.split(".")
        for i in range(1, len(parts) + 1):
            name = ".".join(parts[:i])
            names.add(name)
            sys.modules.setdefault(name, ModuleType(name))
        vars(sys.modules[path]).update(contents)
    return sorted(names)


@torch.no_grad()
def same_top_k_top_p(real, rows: int = 64, size: int = 300) -> bool:
    """Whether `real` keeps the tokens that the fake keeps, with ties and with rows of few."""
    generator = torch.Generator().manual_seed(0)
    logits = (torch.randn(rows, size, generator=generator) * 3).round(decimals=1)
    logits[torch.rand(rows, size, generator=generator) < 0.3] = float("-inf")
    k = torch.randint(1, size, (rows,), generator=generator, dtype=torch.int32)
    p = torch.rand(rows, generator=generator) * 0.9 + 0.05
    pairs = [(k, None), (None, p), (k, p), (None, None)]
    return all(
        torch.equal(real(logits.clone(), _copy(a), _copy(b)), apply_top_k_top_p(logits, a, b))
        if a is not None or b is not None
        else torch.equal(real(logits.clone(), None, None), logits)
        for a, b in pairs
    )


def _copy(values):
    return None if values is None else values.clone()
