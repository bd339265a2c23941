"""Fast batched sampling from a Llama model on one core: several times `transformers.generate`.

A batch holds several responses to each of several prompts. A prompt is read once (by transformers)
and its keys and values are copied to all of its rows, right-aligned; from then on `Decoder.advance`
reads one token a row with a preallocated cache. Rows that have ended are dropped from the batch.
How a token is drawn is a function given by the caller. Equal logits: see `check_decoder`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from benchmarks.smollm.model import END

TOP_K = 50
_KEEP_FROM = 7 / 8
"""Ended rows are dropped when no more than this share of the rows is alive."""

# (rows of the batch, their tokens so far uint32 [rows, n], candidates [rows, 50], probabilities
# float64 [rows, 50]) -> column of the drawn candidate [rows]
Draw = Callable[
    [NDArray[np.int64], NDArray[np.uint32], NDArray[np.uint32], NDArray[np.float64]],
    NDArray[np.int64],
]


class Decoder:
    """Key-value cache and forward pass of one batch."""

    def __init__(self, model: LlamaForCausalLM, rows: int, width: int, capacity: int) -> None:
        config = model.config
        self.model, self.length, self.width = model.model, width, width
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.size = config.head_dim
        shape = (2, rows, self.groups, capacity, self.size)
        self.head = model.lm_head.weight
        self.cache = [self.head.new_zeros(shape) for _ in self.model.layers]
        self.hidden = self.head.new_zeros(rows, 1, 1, capacity)
        cos, sin = self.model.rotary_emb(self.head[:1, :1], torch.arange(capacity)[None])
        self.cos, self.sin = cos[0], sin[0]  # [capacity, size]
        self.joint = [
            (
                torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]),
                torch.cat([m.gate_proj.weight, m.up_proj.weight]),
            )
            for a, m in ((layer.self_attn, layer.mlp) for layer in self.model.layers)
        ]

    def read(self, prompt: Sequence[int], first: int, copies: int) -> Tensor:
        """Read a prompt for the rows first .. first + copies; logits [copies, V] after it."""
        start, rows = self.width - len(prompt), slice(first, first + copies)
        output = self.model(
            input_ids=torch.tensor([list(prompt)]),
            position_ids=torch.arange(start, self.width)[None],
            use_cache=True,
        )
        for cache, layer in zip(self.cache, output.past_key_values.layers, strict=True):
            cache[0, rows, :, start : self.width] = layer.keys
            cache[1, rows, :, start : self.width] = layer.values
        self.hidden[rows, ..., :start] = float("-inf")
        logits = functional.linear(output.last_hidden_state[:, -1], self.head)
        return logits.float().expand(copies, -1)

    def _attend(self, layer: int, x: Tensor) -> Tensor:
        """Self-attention of one new position a row, x [rows, hidden], over the cached ones."""
        rows, end = x.shape[0], self.length + 1
        joint = functional.linear(x, self.joint[layer][0])
        joint = joint.view(rows, self.heads + 2 * self.groups, self.size)
        turned = joint[:, : self.heads + self.groups]
        first, second = turned.chunk(2, dim=-1)
        turned = (
            turned * self.cos[self.length]
            + torch.cat((-second, first), -1) * (self.sin[self.length])
        )
        keys, values = self.cache[layer]
        keys[:, :, self.length] = turned[:, self.heads :]
        values[:, :, self.length] = joint[:, self.heads + self.groups :]
        queries = turned[:, : self.heads].reshape(rows, self.groups, -1, self.size)
        scores = queries @ keys[:, :, :end].transpose(2, 3) * self.size**-0.5
        scores += self.hidden[..., :end]
        mixed = (scores.softmax(-1) @ values[:, :, :end]).reshape(rows, -1)
        return functional.linear(mixed, self.model.layers[layer].self_attn.o_proj.weight)

    def advance(self, tokens: Tensor) -> Tensor:
        """Read one token a row, int64 [rows], and return the logits [rows, V] after it."""
        x = functional.embedding(tokens, self.model.embed_tokens.weight)
        for index, layer in enumerate(self.model.layers):
            x = x + self._attend(index, layer.input_layernorm(x))
            joint = functional.linear(layer.post_attention_layernorm(x), self.joint[index][1])
            gate, up = joint.chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, layer.mlp.down_proj.weight)
        self.length += 1
        return functional.linear(self.model.norm(x), self.head).float()

    def keep(self, rows: Tensor) -> None:
        """Drop all other rows."""
        for index, cache in enumerate(self.cache):
            self.cache[index] = cache[:, rows]
        self.hidden = self.hidden[rows]


@dataclass(frozen=True)
class Response:
    """The ids of one response without its end token, and whether it came to an end by itself."""

    token_ids: list[int]
    ended: bool


@torch.inference_mode()
def generate(
    model: LlamaForCausalLM,
    prompts: Sequence[Sequence[int]],
    copies: int,
    new_tokens: int,
    draw: Draw,
) -> list[Response]:
    """`copies` responses to each prompt (ids), in order, drawn by `draw` among the top 50."""
    total, width = len(prompts) * copies, max(map(len, prompts))
    decoder = Decoder(model, total, width, width + new_tokens)
    logits = torch.cat(
        [decoder.read(prompt, i * copies, copies) for i, prompt in enumerate(prompts)]
    )
    tokens = np.zeros((total, new_tokens), dtype=np.uint32)
    lengths = np.full(total, new_tokens)
    alive = np.arange(total)  # rows of the batch that the decoder still holds
    for position in range(new_tokens):
        top, candidates = logits.topk(TOP_K)
        ids = candidates.numpy().astype(np.uint32)
        chances = top.double().softmax(-1).numpy()
        chosen = draw(alive, tokens[alive, :position], ids, chances)
        new = ids[np.arange(len(alive)), chosen]
        tokens[alive, position] = new
        ends = alive[(new == END) & (lengths[alive] == new_tokens)]
        lengths[ends] = position
        live = np.flatnonzero(lengths[alive] == new_tokens)
        if not len(live) or position + 1 == new_tokens:
            break
        if len(live) <= _KEEP_FROM * len(alive):
            decoder.keep(torch.from_numpy(live))
            alive, new = alive[live], new[live]
        logits = decoder.advance(torch.from_numpy(new.astype(np.int64)))
    return [
        Response(row[:length].tolist(), bool(length < new_tokens))
        for row, length in zip(tokens, lengths, strict=True)
    ]


@torch.inference_mode()
def check_decoder(model: LlamaForCausalLM, prompts: Sequence[Sequence[int]], tail: int) -> float:
    """Largest difference to transformers' logits when the last `tail` ids are read one by one."""
    width = max(map(len, prompts)) - tail
    decoder = Decoder(model, len(prompts), width, width + tail)
    ours = [torch.cat([decoder.read(p[:-tail], i, 1) for i, p in enumerate(prompts)])]
    ours += [decoder.advance(torch.tensor([p[i] for p in prompts])) for i in range(-tail, -1)]
    theirs = [model(torch.tensor([list(p)])).logits[0, -tail - 1 : -1] for p in prompts]
    return float((torch.stack(ours, 1) - torch.stack(theirs)).abs().max())
