"""Coins, and all of the default scheme's draw, as Triton kernels: three launches a token.

`words` and `row` are those of `torch_coins`, one launch each instead of about 600 operations.
`find_keys` is a copy of `provenance.embed.rules` and `race` one of `choose_by_race` in
`provenance.marks.own.draws`, which never stores a coin; tests/embed/test_rules.py and test_draws.py
hold them equal. `keep_only` hands a sampler the drawn token as the only candidate. `torch_coins`
and `torch_batch` call them where `serves` says so, check their arguments and document them.

Words are uint32 inside and int32 bit patterns outside. Triton comes with torch's CUDA builds; with
TRITON_INTERPRET=1 it runs these kernels on CPU tensors, slowly, for tests.
"""

# Triton reads the annotations of a kernel, so they must not become strings.
import os
from typing import Any, Final

from provenance.coins.words import KEY_BYTES, MAXIMUM_CONTEXT_WIDTH
from provenance.errors import MissingExtraError

try:
    import torch
    import triton
    import triton.language as tl
    from torch import Tensor
except ImportError as error:
    raise MissingExtraError("Triton must be installed; it is not.", "torch") from error

_INTERPRETED: Final = os.environ.get("TRITON_INTERPRET") == "1"
_KEY_WORDS: Final = KEY_BYTES // 4
_LANES: Final = 64
"""Blocks of 16 coins that one program makes, a thread each."""
_WARPS: Final = 2
_EARLIER: Final = 256
"""Earlier contexts that are compared at a time."""
_PROMPTED: Final = 2048
"""The same of a prompt, which may be long."""


def serves(device: torch.device) -> bool:
    """Whether these kernels run on tensors of a device."""
    return device.type == "cuda" or (_INTERPRETED and device.type == "cpu")


def words(keys: Tensor, contexts: Tensor, tokens: Tensor) -> Tensor:
    """`torch_coins.words`: int32 [rows, 8], [rows, 3], integer [rows, m] -> int32 [rows, m]."""
    rows, m = tokens.shape
    found = torch.empty((rows, m), dtype=torch.int32, device=keys.device)
    if found.numel():
        grid = (rows, triton.cdiv(m, _LANES))
        keys, contexts, tokens = keys.contiguous(), contexts.contiguous(), tokens.contiguous()
        _launch(_words_kernel, grid, keys, contexts, tokens, found, m, lanes=_LANES)
    return found


def row(keys: Tensor, contexts: Tensor, vocabulary_size: int) -> Tensor:
    """`torch_coins.row`: int32 [rows, 8], [rows, 3] -> int32 [rows, vocabulary_size]."""
    rows = keys.shape[0]
    found = torch.empty((rows, vocabulary_size), dtype=torch.int32, device=keys.device)
    if rows:
        grid = (rows, triton.cdiv(vocabulary_size, 16 * _LANES))
        keys, contexts = keys.contiguous(), contexts.contiguous()
        _launch(_row_kernel, grid, keys, contexts, found, vocabulary_size, lanes=_LANES)
    return found


def find_keys(
    responses: Tensor,
    lengths: Tensor,
    width: int,
    selector: Tensor,
    ends: Tensor,
    numbers: Tensor,
    table: Tensor,
    seeds: Tensor,
    prompts: tuple[Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Which key and nonce make the coins of each row's next token, by rules 1 to 3.

    Parameters: responses integer [rows, n], n > width; lengths int64 [rows]; width k; selector
    int32 [1, 8]; ends int64 [slots]; numbers int64 [rows, slots], -1 for no key; table int32
    [keys, 8]; seeds int32 [rows, 8]; prompts as in `torch_batch.DevicePrompts`, None for a keyring
    that does not read them.

    Returns bool [rows], whether a key decides; int32 [rows, 8], that key or the row's seed; int32
    [rows, 3], the context or the row's length. Cost: one launch.
    """
    rows, slots = numbers.shape
    marked = torch.empty(rows, dtype=torch.bool, device=responses.device)
    keys = torch.empty((rows, _KEY_WORDS), dtype=torch.int32, device=responses.device)
    nonces = torch.empty((rows, MAXIMUM_CONTEXT_WIDTH), dtype=torch.int32, device=responses.device)
    if rows:
        lengths, numbers, seeds = lengths.contiguous(), numbers.contiguous(), seeds.contiguous()
        asked, owners, sizes = prompts or (responses, lengths, lengths)  # else these are not read
        # fmt: off
        _launch(
            _keys_kernel, (rows,), responses, *responses.stride(), responses.shape[1], lengths,
            selector, ends, numbers, slots, table, seeds, asked, *asked.stride(),
            owners.contiguous(), sizes.contiguous(), marked, keys, nonces, width=width,
            slots_rounded=triton.next_power_of_2(slots), earlier=_EARLIER, prompted=_PROMPTED,
            reads_prompt=prompts is not None,
        )
        # fmt: on
    return marked, keys, nonces


def race(keys: Tensor, nonces: Tensor, scores: Tensor) -> Tensor:
    """argmax of score - ln(-ln(u)) over the vocabulary: the draw of gumbel, for logits.

    Parameters: keys int32 [rows, 8]; nonces int32 [rows, 3]; scores float [rows, vocabulary], final
    logits, minus infinity for what is no candidate.

    Returns int64 [rows]; -1 where the scores are no distribution (no candidate, a nan, an infinite
    score). Computes in float64. Cost: two launches; a coin a token, only in those stretches of
    1,024 tokens that hold a candidate. Memory: 12 bytes a stretch.
    """
    rows, size = scores.shape
    drawn = torch.empty(rows, dtype=torch.int64, device=scores.device)
    stretches = triton.cdiv(size, 16 * _LANES)
    values = torch.empty((rows, stretches), dtype=torch.float64, device=scores.device)
    tokens = torch.empty((rows, stretches), dtype=torch.int32, device=scores.device)
    if rows:
        scores = scores if scores.stride(1) == 1 else scores.contiguous()
        keys, nonces, stride = keys.contiguous(), nonces.contiguous(), scores.stride(0)
        grid = (rows, stretches)
        _launch(
            _race_kernel, grid, scores, stride, keys, nonces, values, tokens, size, lanes=_LANES
        )
        rounded = triton.next_power_of_2(stretches)
        _launch(_finish_kernel, (rows,), values, tokens, drawn, stretches, rounded=rounded)
    return drawn


def keep_only(scores: Tensor, tokens: Tensor) -> Tensor:
    """`torch_batch.keep_only` in one launch."""
    rows, size = scores.shape
    only = torch.empty((rows, size), dtype=scores.dtype, device=scores.device)
    if rows:
        grid = (rows, triton.cdiv(size, 16 * _LANES))
        _launch(_only_kernel, grid, only, tokens, size, lanes=_LANES)
    return only


def _launch(
    kernel: Any, grid: tuple[int, ...], first: Tensor, *arguments: Any, **fixed: Any
) -> None:
    """Run a kernel on the device of its first tensor, whichever device is current."""
    if first.device.type == "cuda" and first.device.index != torch.cuda.current_device():
        with torch.cuda.device(first.device):
            kernel[grid](first, *arguments, **fixed, num_warps=_WARPS)
    else:
        kernel[grid](first, *arguments, **fixed, num_warps=_WARPS)


# --- kernels ----------------------------------------------------------------------------------


@triton.jit
def _rotate(x, left: tl.constexpr):  # type: ignore[no-untyped-def]
    return (x << left) | (x >> (32 - left))


@triton.jit
def _quarter_round(a, b, c, d):  # type: ignore[no-untyped-def]
    """RFC 8439 section 2.1."""
    a = a + b
    d = _rotate(d ^ a, 16)
    c = c + d
    b = _rotate(b ^ c, 12)
    a = a + b
    d = _rotate(d ^ a, 8)
    c = c + d
    b = _rotate(b ^ c, 7)
    return a, b, c, d


@triton.jit
def _spread(word, like):  # type: ignore[no-untyped-def]
    """An int32 word as uint32, once for every lane."""
    return tl.zeros_like(like) + word.to(tl.uint32, bitcast=True)


@triton.jit
def _block(key, first, second, third, counters):  # type: ignore[no-untyped-def]
    """ChaCha20, RFC 8439 section 2.3: the 16 words of each block.

    key: pointer to 8 int32; first, second, third: the nonce, int32; counters uint32 [lanes].
    """
    zero = tl.zeros_like(counters)
    k0, k1 = _spread(tl.load(key), zero), _spread(tl.load(key + 1), zero)
    k2, k3 = _spread(tl.load(key + 2), zero), _spread(tl.load(key + 3), zero)
    k4, k5 = _spread(tl.load(key + 4), zero), _spread(tl.load(key + 5), zero)
    k6, k7 = _spread(tl.load(key + 6), zero), _spread(tl.load(key + 7), zero)
    n0, n1, n2 = _spread(first, zero), _spread(second, zero), _spread(third, zero)
    c0, c1, c2, c3 = zero + 0x61707865, zero + 0x3320646E, zero + 0x79622D32, zero + 0x6B206574
    x0, x1, x2, x3 = c0, c1, c2, c3
    x4, x5, x6, x7 = k0, k1, k2, k3
    x8, x9, x10, x11 = k4, k5, k6, k7
    x12, x13, x14, x15 = counters, n0, n1, n2
    for _ in range(10):
        x0, x4, x8, x12 = _quarter_round(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter_round(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter_round(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter_round(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter_round(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter_round(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter_round(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter_round(x3, x4, x9, x14)
    # fmt: off
    return (
        x0 + c0, x1 + c1, x2 + c2, x3 + c3, x4 + k0, x5 + k1, x6 + k2, x7 + k3,
        x8 + k4, x9 + k5, x10 + k6, x11 + k7, x12 + counters, x13 + n0, x14 + n1, x15 + n2,
    )
    # fmt: on


@triton.jit
def _block_of_row(keys, nonces, r, counters):  # type: ignore[no-untyped-def]
    """`_block` with the key and the nonce of row r."""
    nonce = nonces + r * 3
    return _block(keys + r * 8, tl.load(nonce), tl.load(nonce + 1), tl.load(nonce + 2), counters)


@triton.jit
def _words_kernel(keys, contexts, tokens, found, m, lanes: tl.constexpr):  # type: ignore[no-untyped-def]
    r = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * lanes + tl.arange(0, lanes)
    token = tl.load(tokens + r * m + places, mask=places < m, other=0)
    counters = ((token >> 4) & 0x0FFFFFFF).to(tl.uint32)
    lane = (token & 15).to(tl.int32)
    block = _block_of_row(keys, contexts, r, counters)
    coin = block[0]
    for j in tl.static_range(1, 16):
        coin = tl.where(lane == j, block[j], coin)
    tl.store(found + r * m + places, coin.to(tl.int32, bitcast=True), mask=places < m)


@triton.jit
def _row_kernel(keys, contexts, found, size, lanes: tl.constexpr):  # type: ignore[no-untyped-def]
    r = tl.program_id(0).to(tl.int64)
    counters = tl.program_id(1) * lanes + tl.arange(0, lanes)
    block = _block_of_row(keys, contexts, r, counters.to(tl.uint32))
    for j in tl.static_range(16):
        token = counters * 16 + j
        coin = block[j].to(tl.int32, bitcast=True)
        tl.store(found + r * size + token, coin, mask=token < size)


@triton.jit
def _race_kernel(  # type: ignore[no-untyped-def]
    scores, stride, keys, nonces, values, tokens, size, lanes: tl.constexpr
):
    """The winner of one stretch of the vocabulary: its value and token; token -2 if one is nan."""
    r = tl.program_id(0).to(tl.int64)
    stretch = tl.program_id(1)
    place = r * tl.num_programs(1) + stretch
    start = scores + r * stride
    whole = stretch * 16 * lanes + tl.arange(0, 16 * lanes)
    score = tl.load(start + whole, mask=whole < size, other=float("-inf")).to(tl.float32)
    broken = tl.max((score != score).to(tl.int32), 0) > 0
    if broken:
        tl.store(values + place, float("-inf"))
        tl.store(tokens + place, -2)
    elif tl.max(score, 0) == float("-inf"):
        tl.store(values + place, float("-inf"))
        tl.store(tokens + place, -1)
    else:
        counters = stretch * lanes + tl.arange(0, lanes)
        block = _block_of_row(keys, nonces, r, counters.to(tl.uint32))
        best = tl.full([lanes], float("-inf"), tl.float64)
        winner = tl.zeros([lanes], tl.int32)
        for j in tl.static_range(16):
            token = counters * 16 + j
            one = tl.load(start + token, mask=token < size, other=float("-inf")).to(tl.float64)
            u = (block[j].to(tl.float64) + 0.5) / 4294967296.0
            value = one - tl.log(-tl.log(u))
            better = value > best
            best = tl.where(better, value, best)
            winner = tl.where(better, token, winner)
        top = tl.max(best, 0)
        tl.store(values + place, top)
        tl.store(tokens + place, tl.min(tl.where(best == top, winner, 2147483647), 0))


@triton.jit
def _finish_kernel(values, tokens, drawn, stretches, rounded: tl.constexpr):  # type: ignore[no-untyped-def]
    """The winner of a row's stretches."""
    r = tl.program_id(0).to(tl.int64)
    places = tl.arange(0, rounded)
    inside = places < stretches
    value = tl.load(values + r * stretches + places, mask=inside, other=float("-inf"))
    token = tl.load(tokens + r * stretches + places, mask=inside, other=-1)
    top = tl.max(value, 0)
    winner = tl.min(tl.where(value == top, token, 2147483647), 0)
    broken = (tl.min(token, 0) == -2) | (top == float("-inf")) | (top == float("inf"))
    tl.store(drawn + r, tl.where(broken, -1, winner).to(tl.int64))


@triton.jit
def _only_kernel(only, tokens, size, lanes: tl.constexpr):  # type: ignore[no-untyped-def]
    r = tl.program_id(0).to(tl.int64)
    places = tl.program_id(1) * 16 * lanes + tl.arange(0, 16 * lanes)
    token = tl.load(tokens + r)
    score = tl.where(places == token, 0.0, float("-inf"))
    score = tl.where(token < 0, float("nan"), score)
    tl.store(only + r * size + places, score.to(only.dtype.element_ty), mask=places < size)


@triton.jit
def _stands_in(ids, apart, count, last, last_apart, width: tl.constexpr, block: tl.constexpr):  # type: ignore[no-untyped-def]
    """1 if the context at `last` is among the first `count` windows of the ids, else 0."""
    found = tl.zeros([], tl.int32)
    for start in range(0, count, block):
        places = start + tl.arange(0, block)
        alike = places < count
        for j in tl.static_range(width):
            there = tl.load(ids + (places + j) * apart, mask=alike, other=0)
            alike = alike & (there == tl.load(last + j * last_apart))
        found = tl.maximum(found, tl.max(alike.to(tl.int32), 0))
    return found


@triton.jit(do_not_specialize=["stride", "apart", "longest", "prompt_stride", "prompt_apart"])
def _keys_kernel(  # type: ignore[no-untyped-def]
    responses, stride, apart, longest, lengths, selector, ends, numbers, slots, table, seeds,
    prompts, prompt_stride, prompt_apart, owners, prompt_lengths, marked, keys, nonces,
    width: tl.constexpr,
    slots_rounded: tl.constexpr,
    earlier: tl.constexpr,
    prompted: tl.constexpr,
    reads_prompt: tl.constexpr,
):  # fmt: skip
    """Rules 1 to 3 for one row, whose ids stand `apart` from each other."""
    r = tl.program_id(0).to(tl.int64)
    length = tl.load(lengths + r)
    end = tl.minimum(length, longest)
    last = responses + r * stride + (tl.maximum(end, width) - width) * apart

    # 1. the context, as a nonce: oldest first, -1 for what a narrow one lacks
    missing = tl.full([], -1, tl.int32)
    first, second = missing, missing
    if width == 3:
        first = tl.load(last).to(tl.int32)
    if width >= 2:
        second = tl.load(last + (width - 2) * apart).to(tl.int32)
    third = tl.load(last + (width - 1) * apart).to(tl.int32)

    # 2. where it already stood
    row = responses + r * stride
    seen = _stands_in(row, apart, end - width, last, apart, width, earlier)

    # 3. its slot, and the row's key there
    slot = tl.arange(0, slots_rounded)
    zero = tl.zeros([slots_rounded], tl.uint32)
    coin = _block(selector, first, second, third, zero)[0].to(tl.int64)
    bounds = tl.load(ends + slot, mask=slot < slots, other=4294967296)
    number = tl.load(numbers + r * slots + tl.sum((coin >= bounds).to(tl.int32), 0))
    own = (length >= width) & (seen == 0) & (number >= 0)

    # 2 again, last since it is read only where all else says yes: the prompt, which may be long
    if reads_prompt:
        prompt = prompts + tl.load(owners + r).to(tl.int64) * prompt_stride
        stop = tl.where(own, tl.load(prompt_lengths + r) - width + 1, 0)
        stood = _stands_in(prompt, prompt_apart, stop, last, apart, width, prompted)
        own = own & (stood == 0)
    tl.store(marked + r, own)
    word = tl.arange(0, 8)
    key = tl.load(table + tl.maximum(number, 0) * 8 + word)
    tl.store(keys + r * 8 + word, tl.where(own, key, tl.load(seeds + r * 8 + word)))

    # an ordinary draw has coins too: those of the request's own seed at this place
    tl.store(nonces + r * 3, tl.where(own, first, missing))
    tl.store(nonces + r * 3 + 1, tl.where(own, second, missing))
    tl.store(nonces + r * 3 + 2, tl.where(own, third, length.to(tl.int32)))
