"""Llama-shaped models of about two million parameters: make, train, measure, save.

Everything runs on the CPU in float32 and is repeatable for a seed, a number of threads and a
build of torch. This module knows token ids only: no text, no capability, no watermark.
"""

import math
import time
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from benchmarks.lab.tokenizer import END_ID, PAD_ID, VOCABULARY, save_beside_model

THREADS = 2
SEQUENCE = 256
WARMUP_SHARE = 0.05
FINAL_RATE_SHARE = 0.05

TokenArray = NDArray[np.int64]


def lab_config(hidden: int = 192, layers: int = 3) -> LlamaConfig:
    """The shape of every model of the laboratory: tied embeddings, grouped-query attention."""
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=5 * hidden // 2,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 48,
        num_key_value_heads=hidden // 96,
        head_dim=48,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        initializer_range=0.05,  # the default 0.02 trains slower at this width
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
        dtype=torch.float32,
    )


def new_model(seed: int, config: LlamaConfig | None = None) -> LlamaForCausalLM:
    """A model with random weights that depend on the seed only."""
    torch.manual_seed(seed)
    return LlamaForCausalLM(config or lab_config()).float()


def save_model(model: LlamaForCausalLM, directory: Path, tokenizer: Tokenizer) -> None:
    """Save weights (safetensors), configuration and tokenizer as one loadable directory."""
    model.save_pretrained(directory)
    save_beside_model(tokenizer, directory)


def load_model(directory: Path) -> LlamaForCausalLM:
    """A model saved by `save_model`, in float32 and evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def pack(token_lists: Iterable[Sequence[int]]) -> TokenArray:
    """One stream of token ids: the end token before the first and after every document."""
    stream = [END_ID]
    for ids in token_lists:
        stream.extend(ids)
        stream.append(END_ID)
    return np.asarray(stream, dtype=np.int64)


def windows(stream: TokenArray, count: int, seed: int) -> TokenArray:
    """Rows of SEQUENCE tokens, shape (count, SEQUENCE), without repeats inside one epoch.

    Every epoch cuts the stream at a new random phase and takes the pieces in random order.
    """
    rng, rows = np.random.default_rng(seed), []
    while len(rows) < count:
        phase = int(rng.integers(0, min(SEQUENCE, len(stream) - SEQUENCE + 1)))
        pieces = (len(stream) - phase) // SEQUENCE
        cut = stream[phase : phase + pieces * SEQUENCE].reshape(pieces, SEQUENCE)
        rows.extend(cut[rng.permutation(pieces)])
    return np.stack(rows[:count])


def _rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a cosine down to FINAL_RATE_SHARE of the peak."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    return FINAL_RATE_SHARE + (1 - FINAL_RATE_SHARE) * 0.5 * (1 + math.cos(math.pi * progress))


def _optimizer(model: LlamaForCausalLM, learning_rate: float) -> torch.optim.AdamW:
    """AdamW that decays matrices only."""
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.95), fused=True)


def train(
    model: LlamaForCausalLM,
    stream: TokenArray,
    *,
    steps: int,
    tokens_per_step: int,
    learning_rate: float,
    seed: int,
    threads: int = THREADS,
    label: str = "train",
) -> LlamaForCausalLM:
    """Train the model in place on a packed stream and return it in evaluation mode.

    On two cores, two models in two processes of one thread each train faster than one after the
    other on two threads, above all when others use the machine: threads wait for each other.
    """
    torch.set_num_threads(threads)
    torch.manual_seed(seed)
    rows = tokens_per_step // SEQUENCE
    batches = torch.from_numpy(windows(stream, steps * rows, seed)).view(steps, rows, SEQUENCE)
    optimizer = _optimizer(model, learning_rate)
    model.train()
    started, losses = time.perf_counter(), []
    for step, batch in enumerate(batches):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate * _rate_factor(step, steps)
        logits = model(input_ids=batch[:, :-1], use_cache=False).logits
        loss = functional.cross_entropy(logits.flatten(0, 1), batch[:, 1:].flatten())
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
        if (step + 1) % 100 == 0 or step + 1 == steps:
            speed = (step + 1) * tokens_per_step / (time.perf_counter() - started)
            recent = sum(losses[-100:]) / len(losses[-100:])
            print(f"{label} {step + 1}/{steps} loss {recent:.3f} {speed:,.0f} tokens/s", flush=True)
    return model.eval()


@torch.inference_mode()
def nll(model: LlamaForCausalLM, token_lists: Sequence[Sequence[int]], batch: int = 32) -> float:
    """Mean negative log-likelihood in nats per token; documents start after the end token."""
    torch.set_num_threads(THREADS)
    documents = sorted((list(ids)[: SEQUENCE - 1] for ids in token_lists if ids), key=len)
    total, tokens = 0.0, 0
    for start in range(0, len(documents), batch):
        group = documents[start : start + batch]
        width = max(map(len, group))
        inputs = torch.full((len(group), width + 1), PAD_ID)
        for row, ids in enumerate(group):
            inputs[row, : len(ids) + 1] = torch.tensor([END_ID, *ids])
        targets = inputs[:, 1:]
        logits = model(input_ids=inputs[:, :-1], use_cache=False).logits
        total += float(
            functional.cross_entropy(
                logits.flatten(0, 1), targets.flatten(), ignore_index=PAD_ID, reduction="sum"
            )
        )
        tokens += sum(map(len, group))
    return total / tokens


def perplexity(model: LlamaForCausalLM, token_lists: Sequence[Sequence[int]]) -> float:
    """Perplexity per token of held-out documents: exp of their mean negative log-likelihood."""
    return math.exp(nll(model, token_lists))
