"""Sines of exactly reduced phases: the inner loops of the lattice inversion, compiled.

A phase is an integer r modulo M, a power of two, and stands for the angle pi r / M. Its sine is
put together from two tables, one of the high and one of the low half of the bits of |r|: on
[0, pi/2] all terms are positive, so the relative accuracy of a small angle is kept.

Knows integers and angles; no coins, no laws.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from provenance.storage.kernels import kernel

Sines = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]
"""Sines and cosines of the high halves, then of the low halves, of the bits of a phase."""


@lru_cache(maxsize=32)
def list_sines(modulus: int) -> Sines:
    """The tables of one modulus, float64 each: high (2**h + 1,), low (2**l,), h + l = log2(M) - 1.

    Parameters: modulus, a power of two, 4 <= M <= 2**31. Notes: a phase of 0 <= r <= M/2 is
    high * 2**l + low. Each entry errs by at most 1.2 ulp (of the angle .7, of sin .5); at most
    2 * 2**15 entries.
    """
    bits = modulus.bit_length() - 2
    low = bits // 2
    step = math.pi / modulus
    coarse = np.arange((1 << (bits - low)) + 1, dtype=np.float64) * float(1 << low) * step
    fine = np.arange(1 << low, dtype=np.float64) * step
    return np.sin(coarse), np.cos(coarse), np.sin(fine), np.cos(fine)


@kernel(nogil=True)
def add_logs(  # type: ignore[no-untyped-def]
    weights, counts, offsets, probabilities, frequencies, modulus, tables, logs, angles, sizes
):
    """Add n ln |phi|, n arg phi and n times what their errors scale with, of D classes, (F,) each.

    Parameters: weights int64 (D,) < M and counts float64 (D,); offsets int64 (D, L), steps from the
    centre; probabilities float64 (D, L); frequencies int64 (F,); see `list_sines`. With
    d = 2 pi w m / M, each phase reduced exactly, phi - 1 = -2 sum p sin^2(k d / 2) + 2 i sum p
    sin(k d / 2) cos(k d / 2), each term to 5 ulp. ln |phi| comes from |phi|^2 - 1 where |phi| is
    near 1 and from |phi| where it is near 0, so that it errs by (sqrt(-2 Re) - Re) / |phi|, Re the
    real part of phi - 1, times a few ulp. Cost: about 4 ns a class, level and frequency.
    """
    coarse_sine, coarse_cosine, fine_sine, fine_cosine = tables
    mask, half = modulus - 1, modulus // 2
    low = 0
    while (1 << low) < fine_sine.shape[0]:
        low += 1
    rest = (1 << low) - 1
    for row in range(weights.shape[0]):
        for place in range(frequencies.shape[0]):
            base = weights[row] * frequencies[place] & mask
            squares, products = 0.0, 0.0
            for column in range(offsets.shape[1]):
                phase = (offsets[row, column] * base + half & mask) - half
                size = abs(phase)
                a, b = size >> low, size & rest
                sine = coarse_sine[a] * fine_cosine[b] + coarse_cosine[a] * fine_sine[b]
                cosine = coarse_cosine[a] * fine_cosine[b] - coarse_sine[a] * fine_sine[b]
                scaled = probabilities[row, column] * sine
                squares += scaled * sine
                products += scaled * cosine if phase >= 0 else -scaled * cosine
            real, imaginary = -2.0 * squares, 2.0 * products
            beyond = 2.0 * real + real * real + imaginary * imaginary
            if beyond > -0.9:
                log = 0.5 * math.log1p(beyond)
            else:
                square = (1.0 + real) * (1.0 + real) + imaginary * imaginary
                log = 0.5 * math.log(max(square, 1e-300))
            logs[place] += counts[row] * log
            angles[place] += counts[row] * math.atan2(imaginary, 1.0 + real)
            sizes[place] += counts[row] * (math.sqrt(-2.0 * real) - real) * math.exp(-log)


@kernel(nogil=True)
def bound_blocks(  # type: ignore[no-untyped-def]
    weights, strengths, starts, width, modulus, tables, limit, kept
):
    """Set kept, bool (B,), where sum strength * sin^2(pi w m / M) may be below limit in a block.

    Parameters: weights int64 (T,) and strengths float64 (T,), strongest first; starts int64 (B,)
    and width, the blocks [start, start + width) of m; tables of 2 M. Positions are doubled, so that
    the middle of a block is an integer: with c = 2 start + width - 1 the distance of 2 w m to
    multiples of 2 M is at least dist(w c) - w (width - 1). Stops at the first term that settles it.
    """
    coarse_sine, coarse_cosine, fine_sine, fine_cosine = tables
    double = 2 * modulus
    low = 0
    while (1 << low) < fine_sine.shape[0]:
        low += 1
    rest = (1 << low) - 1
    for block in range(starts.shape[0]):
        middle = 2 * starts[block] + width - 1
        total = 0.0
        for term in range(weights.shape[0]):
            residue = (weights[term] & (double - 1)) * middle & (double - 1)
            distance = min(residue, double - residue) - weights[term] * (width - 1)
            if distance > 0:
                a, b = distance >> low, distance & rest
                sine = coarse_sine[a] * fine_cosine[b] + coarse_cosine[a] * fine_sine[b]
                total += strengths[term] * sine * sine
                if total >= limit:
                    break
        kept[block] = total < limit
