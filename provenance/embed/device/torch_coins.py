"""Coins and draws in torch, on the device that the logits are on: nothing travels to the host.

`words` and `row` are `coins.words` and `coins.row` bit for bit, in int32 arithmetic, for a batch in
which every row has a key and a context of its own; `slots` says which slot each context belongs to;
`choose` and `draw_unmarked` are copies of the draws of `provenance.marks.own.draws` for a batch of
survivors of top-k / top-p, held equal by tests/embed/test_draws.py. The next token with top-k 50:

    survivors = logits.topk(50)                                # [rows, 50]
    probabilities = survivors.values.double().softmax(-1)
    coin = words(key_table[key_of_row], pack_contexts(last_ids), survivors.indices)
    index = choose(scheme.code, probabilities, coin, uniforms) # [rows]
    token = survivors.indices.gather(1, index[:, None])

Words are int32 tensors that hold the *bit pattern* of the unsigned word (2**32 - 1 is -1). torch
has neither unsigned shifts nor unsigned comparisons for them: shift arithmetically, then mask; and
compare only after `unsigned`.

Rounding. Words, slots and uniforms are exact on every device. The draws compute in float64 from the
probabilities given (float32 ones are widened first) and choose the token that the numpy scheme
chooses, except where the order of float64 additions or the last bits of a logarithm decide. With m
candidates (worst-case bounds on the share of draws, over coins or over uniforms):

    gumbel      2**-47            two arrivals closer than 32 units in the last place, relative
    green       m**2 2**-51       the uniform falls between two roundings of a cumulative sum
    tournament  2**layers m (m + 4) 2**-50      the same; a layer at most doubles a deviation

For m = 50 and 4 layers that is 1e-14, 1e-12 and 4e-11; for 30 layers and thousands of candidates
the last bound says nothing, though no difference was ever seen. A candidate of probability 0 is
never drawn.

Speed. On a GPU, `words` and `row` are one kernel of `triton_coins` each (Triton comes with torch's
CUDA builds). Elsewhere, eagerly, a call is about 600 small operations whatever the size: compile
it, or let the host draw: on a CPU `coins` is faster than both.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from provenance.coins.words import KEY_BYTES, MAXIMUM_CONTEXT_WIDTH
from provenance.errors import MissingExtraError, UsageError
from provenance.marks.own.draws import GREEN, GUMBEL, TOURNAMENT, Code
from provenance.marks.own.scheme import WORDS

try:
    import torch
    from torch import Tensor
except ImportError as error:
    raise MissingExtraError("torch must be installed; it is not.", "torch") from error

try:
    from provenance.embed.device import triton_coins

    kernels = triton_coins
except MissingExtraError:
    kernels = None  # type: ignore[assignment]

_CONSTANTS: Final = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)  # "expand 32-byte k"
_MISSING: Final = -1
_KEY_WORDS: Final = KEY_BYTES // 4


def pack_keys(keys: Sequence[bytes], device: torch.device | str | None = None) -> Tensor:
    """Table of keys on a device: int32 [n, 8], little-endian words. Do it once, not per token.

    Index the table by row (`table[index]`) and no key travels again. It copies secrets to the
    device: whoever can read that memory has them. Raises UsageError unless each has 32 bytes.
    """
    if any(not isinstance(key, bytes) or len(key) != KEY_BYTES for key in keys):
        raise UsageError(f"every key must be {KEY_BYTES} bytes; one is not. Derive it by keyring.")
    table = np.frombuffer(b"".join(keys), dtype="<i4").astype(np.int32)
    return torch.from_numpy(table.reshape(len(keys), _KEY_WORDS)).to(device)


def has_kernels(device: torch.device) -> bool:
    """Whether coins on this device are one kernel: a GPU for which Triton is installed."""
    return kernels is not None and kernels.serves(device)


def pack_contexts(contexts: Tensor) -> Tensor:
    """Contexts of width k = 1, 2 or 3 as nonces: integer [rows, k] -> int32 [rows, 3].

    Oldest token first; missing leading words are 0xFFFFFFFF. Cost: one small copy.
    """
    if contexts.ndim != 2 or not 1 <= contexts.shape[1] <= MAXIMUM_CONTEXT_WIDTH:
        raise UsageError(
            f"contexts must have shape (rows, k) with k = 1, 2 or 3; got {tuple(contexts.shape)}."
        )
    missing = MAXIMUM_CONTEXT_WIDTH - contexts.shape[1]
    return torch.nn.functional.pad(contexts.to(torch.int32), (missing, 0), value=_MISSING)


def words(keys: Tensor, contexts: Tensor, tokens: Tensor) -> Tensor:
    """Coins of the survivors of each row.

    Parameters
    ----------
    keys : int32 [rows, 8], from `pack_keys`, one key per row
    contexts : int32 [rows, 3], from `pack_contexts`
    tokens : int32 or int64 [rows, m], ids of the survivors; where a row has fewer, any id with
        probability 0

    Returns
    -------
    int32 [rows, m], bit patterns; word [i, j] is the coin of tokens[i, j] after contexts[i].

    One ChaCha20 block, 64 bytes, a coin: from m = vocabulary / 16 on, `row` and a gather are
    cheaper. Memory without kernels: a few times 64 bytes a coin.
    """
    _check_keys_and_contexts(keys, contexts)
    if tokens.ndim != 2 or tokens.shape[0] != keys.shape[0] or tokens.dtype not in _IDS:
        raise UsageError(
            f"tokens must be int32 or int64 of shape ({keys.shape[0]}, m); got {tokens.dtype} of "
            f"shape {tuple(tokens.shape)}."
        )
    if has_kernels(keys.device):
        return kernels.words(keys, contexts, tokens)
    counters = ((tokens >> 4) & 0x0FFFFFFF).to(torch.int32)
    lanes = (tokens & 15).to(torch.int64)
    return _blocks(keys, contexts, counters).gather(0, lanes.unsqueeze(0)).squeeze(0)


def row(keys: Tensor, contexts: Tensor, vocabulary_size: int) -> Tensor:
    """Coins of every token of the vocabulary for each row.

    Parameters: keys int32 [rows, 8]; contexts int32 [rows, 3]; vocabulary_size >= 1.

    Returns int32 [rows, vocabulary_size]; word [i, t] is the coin of token t after contexts[i].
    Cost: one block for 16 tokens. Memory: a few times the result.
    """
    _check_keys_and_contexts(keys, contexts)
    if not 1 <= vocabulary_size <= WORDS:
        raise UsageError(f"vocabulary_size must be 1 .. 2**32; got {vocabulary_size}.")
    if has_kernels(keys.device):
        return kernels.row(keys, contexts, vocabulary_size)
    count = (vocabulary_size + 15) // 16
    counters = torch.arange(count, dtype=torch.int32, device=keys.device)
    counters = counters.expand(keys.shape[0], count)
    blocks = _blocks(keys, contexts, counters).permute(1, 2, 0)
    return blocks.reshape(keys.shape[0], 16 * count)[:, :vocabulary_size]


def slots(selector: Tensor, contexts: Tensor, ends: Tensor) -> Tensor:
    """Slot number of each context: word 0 of the selector's keystream, cut by the shares.

    Parameters: selector int32 [1, 8], the selector key from `pack_keys`; contexts int32 [rows, 3];
    ends int64 [slots], `Schedule.ends`. Returns int64 [rows]. Cost: one coin a context.
    """
    rows = contexts.shape[0]
    first = torch.zeros((rows, 1), dtype=torch.int32, device=contexts.device)
    coin = unsigned(words(selector.expand(rows, _KEY_WORDS), contexts, first))
    return (coin >= ends).sum(dim=1)


def unsigned(bits: Tensor) -> Tensor:
    """The words that int32 bit patterns stand for: int32 -> int64, 0 .. 2**32 - 1."""
    return bits.to(torch.int64) & (WORDS - 1)


def choose(code: Code, probabilities: Tensor, words: Tensor, uniforms: Tensor) -> Tensor:
    """The draw of the scheme with this code, of each row: see `marks.own.draws.choose`.

    Parameters: probabilities float32 or float64 [rows, m], final, each row with a positive and
    finite sum; words int32 [rows, m]; uniforms float64 [rows] in [0, 1). Returns int64 [rows]; for
    a row of zeros or with a nan some index. Cost: gumbel, a float64 logarithm a candidate; green, a
    cumulative sum; tournament, two passes a layer too.
    """
    if code.kind == GUMBEL:
        return draw_gumbel(probabilities, words, uniforms)
    _check_draw(probabilities, words, uniforms)
    p = probabilities.to(torch.float64)
    if code.kind == GREEN:
        p = torch.where(unsigned(words) < code.first, p * code.second, p)
    if code.kind == TOURNAMENT:
        p = p / p.sum(dim=1, keepdim=True)
        for layer in range(code.first):
            g = ((words >> (31 - layer)) & 1).to(torch.float64)
            p = p * (1 + g - (g * p).sum(dim=1, keepdim=True))
        p = p.clamp(min=0)
    return _draw_rows(p, uniforms)


def draw_gumbel(probabilities: Tensor, words: Tensor, uniforms: Tensor) -> Tensor:
    """argmin of -ln(u) / p of each row; `uniforms` is not used. Shapes, dtypes: see `choose`."""
    _check_draw(probabilities, words, uniforms)
    p = probabilities.to(torch.float64)
    exponential = -torch.log((unsigned(words).to(torch.float64) + 0.5) / WORDS)
    arrival = torch.where(p > 0, exponential / p, torch.inf)
    drawn = _first(arrival == arrival.amin(dim=1, keepdim=True))
    most = _first(p == p.amax(dim=1, keepdim=True))
    # every arrival may be infinite: then, like numpy, the first candidate or the likeliest
    return torch.where(p.gather(1, drawn.unsqueeze(1)).squeeze(1) > 0, drawn, most)


def draw_unmarked(probabilities: Tensor, uniforms: Tensor) -> Tensor:
    """Ordinary sampling of each row: see `choose`."""
    _check_draw(probabilities, None, uniforms)
    return _draw_rows(probabilities.to(torch.float64), uniforms)


_IDS: Final = (torch.int32, torch.int64)


def _rotate(x: Tensor, bits: int) -> Tensor:
    """Rotate left by `bits`; >> copies the sign bit, so mask what it brought in."""
    return (x << bits) | ((x >> (32 - bits)) & ((1 << bits) - 1))


def _quarter_round(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """RFC 8439 section 2.1, elementwise; int32 addition wraps."""
    a = a + b
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 12)
    a = a + b
    d = _rotate(d ^ a, 8)
    c = c + d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


@torch.compiler.nested_compile_region  # type: ignore[untyped-decorator]
def _double_round(
    a: Tensor, b: Tensor, c: Tensor, d: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A column round and a diagonal round; a diagonal is a column after turning rows 1, 2 and 3.

    The compiler traces and compiles this once and calls it ten times. (All rounds in one graph, on
    16 separate tensors, kept inductor busy for more than eight minutes.) Outside `torch.compile`
    the decorator does nothing.
    """
    a, b, c, d = _quarter_round(a, b, c, d)
    a, b, c, d = _quarter_round(a, b.roll(-1, 0), c.roll(-2, 0), d.roll(-3, 0))
    return a, b.roll(1, 0), c.roll(2, 0), d.roll(3, 0)


def _blocks(keys: Tensor, contexts: Tensor, counters: Tensor) -> Tensor:
    """The 16 words of each block: int32 [rows, 8], [rows, 3], [rows, m] -> int32 [16, rows, m].

    Each row of ChaCha20's 4 x 4 state is one tensor [4, rows, m], so that a round of all columns is
    one quarter round.
    """
    counters = counters.contiguous()
    wide = (4, *counters.shape)
    nonce = [contexts[:, i : i + 1].expand_as(counters) for i in range(MAXIMUM_CONTEXT_WIDTH)]
    start = (
        torch.stack([torch.full_like(counters, constant) for constant in _CONSTANTS]),
        keys[:, :4].t().unsqueeze(-1).expand(wide).contiguous(),
        keys[:, 4:].t().unsqueeze(-1).expand(wide).contiguous(),
        torch.stack([counters, *nonce]),
    )
    state = start
    for _ in range(10):
        state = _double_round(*state)
    return torch.cat([end + initial for end, initial in zip(state, start, strict=True)])


def _first(marked: Tensor) -> Tensor:
    """Index of the first True of each row (m - 1 if there is none): bool [rows, m] -> int64 [rows].

    Spelt out, since not every device promises the first of equal elements for argmin.
    """
    last = marked.shape[1] - 1
    positions = torch.arange(last + 1, device=marked.device)
    return torch.where(marked, positions, last).amin(dim=1)


def _draw_rows(weights: Tensor, uniforms: Tensor) -> Tensor:
    """First candidate whose cumulative share exceeds the uniform, else the last of positive weight.

    float64 [rows, m], [rows] -> int64 [rows]. A parallel scan need not be monotone in its last bit,
    so that a candidate must also have a positive weight to be drawn.
    """
    cumulative = weights.cumsum(dim=1)
    targets = uniforms.to(torch.float64).unsqueeze(1) * cumulative[:, -1:]
    positive = weights > 0
    exceeds = (cumulative > targets) & positive
    positions = torch.arange(weights.shape[1], device=weights.device)
    last = torch.where(positive, positions, 0).amax(dim=1)
    return torch.where(exceeds.any(dim=1), _first(exceeds), last)


def _check_keys_and_contexts(keys: Tensor, contexts: Tensor) -> None:
    """Shapes and dtypes only, which the host knows; the message shows no key."""
    rows = contexts.shape[0]
    if keys.dtype != torch.int32 or tuple(keys.shape) != (rows, _KEY_WORDS):
        raise UsageError(
            f"keys must be int32 of shape ({rows}, {_KEY_WORDS}), one per context; got "
            f"{keys.dtype} of shape {tuple(keys.shape)}. Use pack_keys."
        )
    if contexts.dtype != torch.int32 or tuple(contexts.shape) != (rows, MAXIMUM_CONTEXT_WIDTH):
        raise UsageError(
            f"contexts must be int32 of shape ({rows}, {MAXIMUM_CONTEXT_WIDTH}); got "
            f"{contexts.dtype} of shape {tuple(contexts.shape)}. Use pack_contexts."
        )


def _check_draw(probabilities: Tensor, words: Tensor | None, uniforms: Tensor) -> None:
    """Shapes and dtypes only; values stay on the device."""
    shape = tuple(probabilities.shape)
    if len(shape) != 2 or shape[1] == 0 or not probabilities.dtype.is_floating_point:
        raise UsageError(
            f"probabilities must be float32 or float64 of shape (rows, m) with m >= 1; got "
            f"{probabilities.dtype} of shape {shape}."
        )
    if words is not None and (words.dtype != torch.int32 or tuple(words.shape) != shape):
        raise UsageError(
            f"words must be int32 of shape {shape}, one per probability; got {words.dtype} of "
            f"shape {tuple(words.shape)}."
        )
    if tuple(uniforms.shape) != shape[:1] or uniforms.dtype != torch.float64:
        raise UsageError(
            f"uniforms must be float64 of shape {shape[:1]}, one per row; got {uniforms.dtype} of "
            f"shape {tuple(uniforms.shape)}. A float32 uniform would have too few values."
        )
