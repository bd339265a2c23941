"""How coins choose among candidates, compiled: the one place that says it for our own schemes.

`Scheme.draw` and the compiled code of adapters call it. Accelerators need copies,
`provenance.embed.device.torch_coins.choose` and `triton_coins.race`; tests/embed/test_draws.py
holds them and the forms below to the definition.

A scheme is passed to compiled code as three numbers, its `code`, and `choose` draws with them.
Knows probabilities (or scores) and words; no keys, no contexts.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from provenance.storage.kernels import kernel

PLAIN: Final = 0
GUMBEL: Final = 1
GREEN: Final = 2
TOURNAMENT: Final = 3

_BLOCK: Final = 128
_STEP: Final = 32
"""Twice the widest vector: a loop of 16 is unrolled before it is vectorised, four times as slow."""
_ALL: Final = np.float32((127 + 31) * 2.0**23)
"""The bits of 2^31 as float32: the exponent stands above 23 bits of fraction, 127 too high."""
_PER_NAT: Final = np.float32(2.0**23 / math.log(2))


class Code(NamedTuple):
    """A scheme as numbers: `first` is a threshold or a count, `second` a factor."""

    kind: int
    first: int = 0
    second: float = 0.0


@intrinsic
def _read_bits(_context, _value):  # type: ignore[no-untyped-def]
    """The bits of a float32 as int32."""

    def generate(_context, builder, _signature, arguments):  # type: ignore[no-untyped-def]
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.int32(types.float32), generate


@kernel()
def draw_plain(p, uniform):  # type: ignore[no-untyped-def]
    """Index whose cumulative share first exceeds `uniform`: p float64 [m]."""
    total = 0.0
    for i in range(p.shape[0]):
        total += p[i]
    target, cumulative, last = uniform * total, 0.0, 0
    for i in range(p.shape[0]):
        cumulative += p[i]
        if p[i] > 0:
            last = i
        if cumulative > target:
            return i
    return last


@kernel(nogil=True, fastmath={"reassoc"})
def _sum_blocks(p, sums):  # type: ignore[no-untyped-def]
    """sums[b] = sum of the b-th _BLOCK of float32 p, in whatever order is fast."""
    whole = p.shape[0] // _BLOCK
    for b in range(whole):
        total = np.float32(0)
        for i in range(b * _BLOCK, b * _BLOCK + _BLOCK):
            total += p[i]
        sums[b] = total
    for i in range(whole * _BLOCK, p.shape[0]):
        sums[whole] += p[i]


@kernel(nogil=True)
def draw_plain_of_many(p, uniform):  # type: ignore[no-untyped-def]
    """`draw_plain` for float32 p, in blocks: sums in another order, so equal up to rounding."""
    blocks = (p.shape[0] + _BLOCK - 1) // _BLOCK
    sums = np.zeros(blocks, np.float64)
    _sum_blocks(p, sums)
    total = 0.0
    for b in range(blocks):
        total += sums[b]
    target, cumulative, last = uniform * total, 0.0, 0
    for b in range(blocks):
        if sums[b] > 0:
            last = b
        if cumulative + sums[b] > target:
            break
        cumulative += sums[b]
    drawn = last * _BLOCK
    for i in range(last * _BLOCK, min((last + 1) * _BLOCK, p.shape[0])):
        cumulative += p[i]
        if p[i] > 0:
            drawn = i
        if cumulative > target and p[i] > 0:
            return i
    return drawn


@kernel()
def draw_gumbel(p, words):  # type: ignore[no-untyped-def]
    """argmin of -ln(u) / p. Since -ln(u) >= 1 - u, most candidates need no logarithm."""
    likely = int(np.argmax(p))
    best = -np.log((words[likely] + 0.5) / 4294967296.0) / p[likely]
    drawn = likely
    for i in range(p.shape[0]):
        u = (words[i] + 0.5) / 4294967296.0
        if p[i] > 0 and 1.0 - u <= best * p[i] * (1 + 1e-9):
            arrival = -np.log(u) / p[i]
            if arrival < best or (arrival == best and i < drawn):
                best, drawn = arrival, i
    return drawn


@kernel()
def _draw_green(p, words, threshold, factor, uniform):  # type: ignore[no-untyped-def]
    """Ordinary draw from p * factor ** green; overwrites p."""
    for i in range(p.shape[0]):
        if words[i] < threshold:
            p[i] *= factor
    return draw_plain(p, uniform)


@kernel()
def _draw_tournament(p, words, layers, uniform):  # type: ignore[no-untyped-def]
    """Ordinary draw after `layers` updates p (1 + g - sum g p); overwrites p."""
    total = 0.0
    for i in range(p.shape[0]):
        total += p[i]
    for i in range(p.shape[0]):
        p[i] /= total
    for layer in range(layers):
        bit = np.uint32(31 - layer)
        mean = 0.0
        for i in range(p.shape[0]):
            mean += p[i] * ((words[i] >> bit) & np.uint32(1))
        for i in range(p.shape[0]):
            p[i] *= 1.0 + ((words[i] >> bit) & np.uint32(1)) - mean
    for i in range(p.shape[0]):
        p[i] = max(p[i], 0.0)
    return draw_plain(p, uniform)


@kernel()
def choose(kind, first, second, p, words, uniform):  # type: ignore[no-untyped-def]
    """Draw one candidate with a scheme given as a `Code`; may overwrite p.

    p float64 [m], positive sum, need not be normalised; words uint32 [m], coins of the candidates
    (empty for PLAIN); uniform in [0, 1). Returns an index.
    """
    if kind == GUMBEL:
        return draw_gumbel(p, words)
    if kind == GREEN:
        return _draw_green(p, words, np.uint32(first), second, uniform)
    if kind == TOURNAMENT:
        return _draw_tournament(p, words, first, uniform)
    return draw_plain(p, uniform)


@kernel(nogil=True)
def choose_by_race(scores, words):  # type: ignore[no-untyped-def]
    """argmax of score - ln(-ln u): `draw_gumbel` for logits, without a softmax.

    scores float32 [m], -inf for what is no candidate; words uint32 [m]. Returns an index, -1 if
    there is no candidate or a score is not a number.

    Most candidates need no logarithm: with z = best - score and u the uniform of the word, one
    beats the best only if -ln(-ln u) > z, and then log2(1 - u) < -z / ln 2, since -ln u >= 1 - u.
    The bits of a float, read as an integer, are such a logarithm that is never too large (x below
    log2(1 + x) in [0, 1]): a test of a few operations, done for _STEP candidates at once.
    """
    best, drawn = -np.inf, -1
    near = np.float32(-np.inf)
    for start in range(0, scores.shape[0], _STEP):
        block, coins = scores[start : start + _STEP], words[start : start + _STEP]
        if block.shape[0] == _STEP:
            hopeful = np.int32(0)
            for i in range(_STEP):  # a fixed count: the compiler uses vectors
                left = np.float32(np.int32(~coins[i] >> np.uint32(1)))  # (1 - u) 2^31, or less
                limit = _ALL + (block[i] - near) * _PER_NAT
                # not "smaller than": what is not a number is hopeful, and found below
                hopeful |= np.int32(not np.float32(_read_bits(left)) >= limit)
            if not hopeful:
                continue
        for i in range(block.shape[0]):
            if np.isnan(block[i]):
                return -1
            value = block[i] - np.log(-np.log((coins[i] + 0.5) / 4294967296.0))
            if value > best:
                best, drawn = value, start + i
                # a little below, for the rounding of float32
                near = np.float32(best - 1e-6 * abs(best) - 1e-4)
    return drawn
