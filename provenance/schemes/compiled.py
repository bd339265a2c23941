"""The arithmetic of a draw, compiled: what `Scheme.draw` does, for numba code to call.

A scheme is passed to compiled code as three numbers, its `code`, and `choose` draws with them.
Knows probabilities (or scores) and words; no keys, no contexts.
"""

from __future__ import annotations

from typing import Final, NamedTuple

import numpy as np
from numba import njit

__all__ = [
    "GREEN",
    "GUMBEL",
    "PLAIN",
    "TOURNAMENT",
    "Code",
    "choose",
    "choose_by_race",
    "draw_gumbel",
    "draw_plain",
    "draw_plain_of_many",
]

PLAIN: Final = 0
GUMBEL: Final = 1
GREEN: Final = 2
TOURNAMENT: Final = 3

_BLOCK: Final = 128
_LANES: Final = 32
_RARE: Final = np.uint32(0xFFFFFFFF - (1 << 22) + 1)
"""Words from here on have 1 - u <= 2**-10."""
_BONUS: Final = 10 * np.log(2) + 1e-4
"""No other word adds more than this to a score in the race; the slack covers float32."""


class Code(NamedTuple):
    """A scheme as numbers: `first` is a threshold or a count, `second` a factor."""

    kind: int
    first: int = 0
    second: float = 0.0


@njit(cache=True)
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


@njit(nogil=True, cache=True)
def draw_plain_of_many(p, uniform):  # type: ignore[no-untyped-def]
    """`draw_plain` for float32 p, in blocks: sums in another order, so equal up to rounding."""
    blocks = (p.shape[0] + _BLOCK - 1) // _BLOCK
    sums = np.zeros(blocks, np.float64)
    total = 0.0
    for b in range(blocks):
        block = p[b * _BLOCK : (b + 1) * _BLOCK]
        lanes = np.zeros(_LANES, np.float32)
        if block.shape[0] == _BLOCK:
            for i in range(0, _BLOCK, _LANES):
                part = block[i : i + _LANES]
                for lane in range(_LANES):
                    lanes[lane] += part[lane]
            for lane in range(_LANES):
                sums[b] += lanes[lane]
        else:
            for i in range(block.shape[0]):
                sums[b] += block[i]
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


@njit(cache=True)
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


@njit(cache=True)
def _draw_green(p, words, threshold, factor, uniform):  # type: ignore[no-untyped-def]
    """Ordinary draw from p * factor ** green; overwrites p."""
    for i in range(p.shape[0]):
        if words[i] < threshold:
            p[i] *= factor
    return draw_plain(p, uniform)


@njit(cache=True)
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


@njit(cache=True)
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


@njit(nogil=True, cache=True)
def choose_by_race(scores, words):  # type: ignore[no-untyped-def]
    """argmax of score - ln(-ln u): `draw_gumbel` for logits, without a softmax.

    scores float32 [m], -inf for what is no candidate; words uint32 [m]. Returns an index, -1 if
    there is no candidate or a score is not a number. Two logarithms for one candidate in a
    thousand, one pass over the rest: a word below _RARE cannot add more than _BONUS.
    """
    best, drawn = -np.inf, -1
    floor = np.float32(-np.inf)
    for start in range(0, scores.shape[0], _BLOCK):
        block, coins = scores[start : start + _BLOCK], words[start : start + _BLOCK]
        if block.shape[0] == _BLOCK:
            hopeful = np.int32(0)
            for i in range(_BLOCK):  # a fixed count: the compiler uses vectors
                hopeful |= np.int32(not block[i] < floor) | np.int32(coins[i] >= _RARE)
            if not hopeful:
                continue
        for i in range(block.shape[0]):
            if block[i] < floor and coins[i] < _RARE:
                continue
            if np.isnan(block[i]):
                return -1
            value = block[i] - np.log(-np.log((coins[i] + 0.5) / 4294967296.0))
            if value > best:
                best, drawn = value, start + i
                floor = np.float32(best - _BONUS)
    return drawn
