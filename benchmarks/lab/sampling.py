"""Fast batched sampling from the laboratory's models on the CPU.

`Decoder` is a small forward pass with a preallocated key-value cache: several times the speed of
`transformers.generate` at these sizes, equal logits (see `check_decoder`). How a token is drawn is
a function given by the caller, so marked sampling needs nothing but another `draw`.

The end and pad tokens are suppressed: every response has exactly `new_tokens` tokens. That makes
batches rectangular and token counts exact; the price is that a text goes on where it would end.
"""

from collections.abc import Callable, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor
from torch.nn import functional
from transformers import LlamaForCausalLM

from benchmarks.lab.models import THREADS
from benchmarks.lab.tokenizer import END_ID, PAD_ID

PROMPT_TOKENS = 16
NEW_TOKENS = 160

# (logits (B, V) with the special tokens at -inf, tokens generated so far (B, n)) -> tokens (B,)
Draw = Callable[[Tensor, Tensor], Tensor]


class Decoder:
    """Incremental forward pass of a Llama model without biases, for one batch at a time."""

    def __init__(self, model: LlamaForCausalLM, batch: int, capacity: int) -> None:
        config = model.config
        self.model, self.length = model.model, 0
        self.heads, self.groups = config.num_attention_heads, config.num_key_value_heads
        self.size = config.head_dim
        shape = (config.num_hidden_layers, 2, batch, self.groups, capacity, self.size)
        self.cache = torch.empty(shape)
        self.output = model.lm_head.weight
        positions = torch.arange(capacity)[None]
        cos, sin = self.model.rotary_emb(torch.empty(1, 1), positions)
        self.cos, self.sin = cos[0], sin[0]  # (capacity, size)
        self.joint = [
            (
                torch.cat([a.q_proj.weight, a.k_proj.weight, a.v_proj.weight]),
                torch.cat([m.gate_proj.weight, m.up_proj.weight]),
            )
            for a, m in ((layer.self_attn, layer.mlp) for layer in self.model.layers)
        ]

    def _rotate(self, x: Tensor, start: int) -> Tensor:
        """Rotary position embedding of x, shape (B, heads, S, size)."""
        end = start + x.shape[2]
        first, second = x.chunk(2, dim=-1)
        return x * self.cos[start:end] + torch.cat((-second, first), -1) * self.sin[start:end]

    def _attend(self, layer: int, x: Tensor) -> Tensor:
        """Self-attention of the new positions x (B, S, hidden) over all cached positions."""
        batch, new, _ = x.shape
        start, end = self.length, self.length + new
        joint = functional.linear(x, self.joint[layer][0])
        joint = joint.view(batch, new, self.heads + 2 * self.groups, self.size).transpose(1, 2)
        rotated = self._rotate(joint[:, : self.heads + self.groups], start)
        keys, values = self.cache[layer]
        keys[:, :, start:end] = rotated[:, self.heads :]
        values[:, :, start:end] = joint[:, self.heads + self.groups :]
        queries = rotated[:, : self.heads].reshape(batch, self.groups, -1, self.size)
        scores = queries @ keys[:, :, :end].transpose(2, 3) * self.size**-0.5
        if new > 1:
            hidden = torch.ones(new, end, dtype=torch.bool).triu(start + 1)
            per_head = scores.view(batch, self.groups, -1, new, end)
            scores = per_head.masked_fill(hidden, float("-inf")).view_as(scores)
        mixed = scores.softmax(-1) @ values[:, :, :end]  # (B, groups, heads/groups * S, size)
        mixed = mixed.view(batch, self.heads, new, self.size).transpose(1, 2)
        out = self.model.layers[layer].self_attn.o_proj.weight
        return functional.linear(mixed.reshape(batch, new, -1), out)

    def advance(self, tokens: Tensor) -> Tensor:
        """Read tokens (B, S) and return the logits (B, V) after the last of them."""
        x = functional.embedding(tokens, self.model.embed_tokens.weight)
        for index, layer in enumerate(self.model.layers):
            x = x + self._attend(index, layer.input_layernorm(x))
            gate, up = functional.linear(
                layer.post_attention_layernorm(x), self.joint[index][1]
            ).chunk(2, dim=-1)
            x = x + functional.linear(functional.silu(gate) * up, layer.mlp.down_proj.weight)
        self.length += tokens.shape[1]
        return functional.linear(self.model.norm(x[:, -1]), self.output)


@torch.inference_mode()
def check_decoder(model: LlamaForCausalLM, tokens: Tensor) -> float:
    """Largest difference between the logits of `Decoder` and of transformers on tokens (B, S)."""
    decoder = Decoder(model, *tokens.shape)
    half = tokens.shape[1] // 2
    ours = [decoder.advance(tokens[:, :half])]
    ours += [decoder.advance(tokens[:, i : i + 1]) for i in range(half, tokens.shape[1])]
    theirs = model(input_ids=tokens, use_cache=False).logits[:, half - 1 :]
    return float((torch.stack(ours, 1) - theirs).abs().max())


def random_draw(temperature: float, seed: int) -> Draw:
    """Ordinary sampling: one uniform per response and token, by inversion of the CDF."""
    generator = torch.Generator().manual_seed(seed)

    def draw(logits: Tensor, _generated: Tensor) -> Tensor:
        cdf = (logits / temperature).softmax(-1).cumsum(-1)
        u = torch.rand(len(logits), 1, generator=generator) * cdf[:, -1:]
        return torch.searchsorted(cdf, u, right=True).squeeze(1).clamp_(max=logits.shape[1] - 1)

    return draw


@torch.inference_mode()
def generate(model: LlamaForCausalLM, prompts: Tensor, new_tokens: int, draw: Draw) -> Tensor:
    """Tokens (B, new_tokens) that continue the prompts (B, S), drawn by `draw`."""
    decoder = Decoder(model, len(prompts), prompts.shape[1] + new_tokens)
    generated = torch.empty(len(prompts), new_tokens, dtype=torch.long)
    tokens = prompts
    for position in range(new_tokens):
        logits = decoder.advance(tokens)
        logits[:, [END_ID, PAD_ID]] = float("-inf")
        generated[:, position] = draw(logits, generated[:, :position])
        tokens = generated[:, position : position + 1]
    return generated


def encode_prompts(
    tokenizer: Tokenizer, prompts: Sequence[str], length: int = PROMPT_TOKENS
) -> Tensor:
    """The first `length` tokens of every prompt, shape (len(prompts), length)."""
    ids = [encoding.ids[:length] for encoding in tokenizer.encode_batch(list(prompts))]
    if short := [p for p, i in zip(prompts, ids, strict=True) if len(i) < length]:
        raise ValueError(f"prompts must have at least {length} tokens; got {short[0]!r}.")
    return torch.tensor(ids)


def sample_unmarked(
    model: LlamaForCausalLM,
    tokenizer: Tokenizer,
    prompts: Sequence[str],
    new_tokens: int = NEW_TOKENS,
    temperature: float = 1.0,
    seed: int = 0,
    batch: int = 256,
) -> list[list[int]]:
    """One unmarked response per prompt, each of exactly `new_tokens` token ids."""
    torch.set_num_threads(THREADS)
    ids, draw = encode_prompts(tokenizer, prompts), random_draw(temperature, seed)
    return [
        response
        for chunk in ids.split(batch)
        for response in generate(model, chunk, new_tokens, draw).tolist()
    ]


@torch.inference_mode()
def mean_entropy(model: LlamaForCausalLM, prompts: Tensor, responses: Tensor) -> float:
    """Mean entropy in nats of the distribution from which each response token was drawn."""
    total, width = 0.0, responses.shape[1]
    for p, r in zip(prompts.split(32), responses.split(32), strict=True):
        logits = model(input_ids=torch.cat([p, r], 1), use_cache=False).logits
        logits = logits[:, -width - 1 : -1]
        logits[..., [END_ID, PAD_ID]] = -1e9
        log_p = logits.log_softmax(-1)
        total -= float((log_p.exp() * log_p).sum())
    return total / responses.numel()
