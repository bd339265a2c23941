"""Which frequencies of a lattice characteristic function matter, and its value there.

Of the M/2 frequencies of a sum of many coins only a few hundred have |psi| above e^-60. They are
found by branch and bound: for every lag i, |phi(d)|^2 <= 1 - 4 r_i sin^2(i d / 2) with
r_i = sum_k p_k p_{k+i}, and over a block of frequencies the distance of i w m to the nearest
multiple of M is bounded from below in exact integer arithmetic. Whole blocks are discarded, and
what is discarded is provably below the cut.

Does not know about tails or tables: tilted groups and a modulus in, characteristic function out.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provenance.stats.lattice import EPSILON, TiltedGroup
from provenance.stats.phases import add_logs, bound_blocks, list_sines

_Triple = tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]

CUT = 60.0
"""Frequencies with ln |psi| < -CUT are dropped."""

MAX_MODULUS = 1 << 30
"""Longest lattice period: products of residues stay below 2**62."""

MAX_FREQUENCIES = 1 << 21
"""Most frequencies that are evaluated."""

_BATCH = 1 << 14
_SPLIT = 8
_FEW_COINS = 1 << 14
_FEW_LEVELS = 8
_SPREAD_POWERS = (0.0, 0.5, 1.0, 1.5, 2.0)


@dataclass(frozen=True)
class CharacteristicValues:
    """psi(2 pi m / M) of the sum of (level - centre) * weight at the surviving frequencies.

    Parameters
    ----------
    frequencies : int64 (F,)
        m, 0 <= m <= M/2; every other frequency has ln |psi| < -CUT.
    log_modulus : float64 (F,)
        ln |psi|.
    phase : float64 (F,)
        arg psi up to multiples of 2 pi.
    rounding : float64 (F,)
        Bound on the absolute error of log_modulus and phase.
    """

    frequencies: NDArray[np.int64]
    log_modulus: NDArray[np.float64]
    phase: NDArray[np.float64]
    rounding: NDArray[np.float64]


def surviving_frequencies(groups: Sequence[TiltedGroup], modulus: int) -> NDArray[np.int64] | None:
    """Find the frequencies that matter.

    Parameters
    ----------
    groups : sequence of TiltedGroup
        The law, under any tilt.
    modulus : int
        M, a power of two, 4 <= M <= 2**30.

    Returns
    -------
    int64 (F,) or None
        Ascending; every other m in 0..M/2 has ln |psi| < -CUT. None if there would be more than
        2**21: few coins on a long lattice.

    Notes
    -----
    Cost: about classes * log(M) * 1000 for many coins, independent of M.
    """
    bounds = _Bounds.of(groups)
    if float(bounds.strengths.sum()) < CUT:
        full = modulus // 2 + 1
        return np.arange(full, dtype=np.int64) if full <= MAX_FREQUENCIES + 1 else None
    starts = np.zeros(1, dtype=np.int64)
    width = modulus // 2
    while starts.size:
        batches = [
            _discard(bounds, starts[first : first + _BATCH], width, modulus)
            for first in range(0, starts.size, _BATCH)
        ]
        starts = np.concatenate(batches)
        parts = min(_SPLIT, width)
        if starts.size * parts > MAX_FREQUENCIES:
            return None
        if width == 1:
            break
        width //= parts
        starts = (starts[:, None] + width * np.arange(parts)[None, :]).ravel()
    last = _discard(bounds, np.array([modulus // 2], dtype=np.int64), 1, modulus)
    return np.concatenate([starts, last])


def characteristic_values(
    groups: Sequence[TiltedGroup], modulus: int, survivors: NDArray[np.int64]
) -> Iterator[CharacteristicValues]:
    """Evaluate the characteristic function where it matters, in batches of frequencies.

    Parameters
    ----------
    groups : sequence of TiltedGroup
        The law, under any tilt.
    modulus : int
        M, as for `surviving_frequencies`.
    survivors : int64 (F,)
        What `surviving_frequencies` returned.

    Yields
    ------
    CharacteristicValues
        Together they hold every m in 0..M/2 with ln |psi| >= -CUT.

    Notes
    -----
    Cost: survivors * classes * levels. Phases are n * arg(phi) with arg computed from exactly
    reduced integers, so the error per coin is a few ulp of an already small angle.
    """
    pieces = [piece for group in groups for piece in _pieces(group)]
    pieces.sort(key=lambda piece: -piece.strength)
    coins = sum(float(group.group.counts.sum()) for group in groups)
    few = coins <= _FEW_COINS
    batch = max(survivors.size, 1) if few else _BATCH
    for start in range(0, survivors.size, batch):
        values = _evaluate(pieces, survivors[start : start + batch], modulus, few)
        if values.frequencies.size:
            yield values


@dataclass(frozen=True)
class _Bounds:
    """Terms of the bound ln |psi| <= -sum strength * sin^2(pi weight m / M), strongest first."""

    weights: NDArray[np.int64]
    strengths: NDArray[np.float64]

    @classmethod
    def of(cls, groups: Sequence[TiltedGroup]) -> _Bounds:
        weights, strengths = [np.zeros(0, np.int64)], [np.zeros(0)]
        for tilted in groups:
            dense = np.zeros((tilted.centres.size, int(tilted.group.levels[-1]) + 1))
            dense[:, tilted.group.levels] = tilted.probabilities
            for lag in _useful_lags(dense, tilted.group.counts):
                overlap = (dense[:, :-lag] * dense[:, lag:]).sum(axis=1)
                weights.append(tilted.group.weights * lag)
                strengths.append(2.0 * tilted.group.counts * overlap)
        weight, strength = np.concatenate(weights), np.concatenate(strengths)
        keep = np.flatnonzero(strength > 1e-3)
        order = keep[np.argsort(-strength[keep] * weight[keep].astype(np.float64) ** 2)]
        return cls(weight[order], strength[order])


def _useful_lags(dense: NDArray[np.float64], counts: NDArray[np.float64]) -> list[int]:
    """A few lags whose overlap bounds |phi| well near 0 (long lags) and elsewhere (short ones)."""
    if dense.shape[1] == 2:
        return [1]
    row = dense[int(np.argmax(counts))]
    size = 1 << (2 * row.size - 1).bit_length()
    spectrum = np.fft.rfft(row, size)
    overlaps = np.fft.irfft(spectrum * spectrum.conj(), size)[1 : row.size]
    lags = np.arange(1, row.size, dtype=np.float64)
    return sorted({int(np.argmax(overlaps * lags**power)) + 1 for power in _SPREAD_POWERS})


def _discard(
    bounds: _Bounds, starts: NDArray[np.int64], width: int, modulus: int
) -> NDArray[np.int64]:
    """Keep the blocks [start, start + width) on which |psi| may exceed the cut."""
    useful = np.flatnonzero(bounds.weights * (width - 1.0) < modulus)
    kept = np.zeros(starts.size, dtype=np.bool_)
    bound_blocks(
        bounds.weights[useful],
        bounds.strengths[useful],
        starts,
        width,
        modulus,
        list_sines(2 * modulus),
        CUT + 1.0,  # a margin of 1 covers the rounding of this bound
        kept,
    )
    return starts[kept]


@dataclass(frozen=True)
class _Piece:
    """A few classes of one law, evaluated together."""

    weights: NDArray[np.int64]
    counts: NDArray[np.float64]
    offsets: NDArray[np.int64]
    probabilities: NDArray[np.float64]
    strength: float


def _pieces(tilted: TiltedGroup, size: int = 8) -> Iterator[_Piece]:
    """Cut a group into pieces of 8 classes, those of the largest variance first."""
    group = tilted.group
    strength = group.counts * group.weights.astype(np.float64) ** 2 * tilted.variances
    order = np.argsort(-strength)
    for first in range(0, order.size, size):
        rows = order[first : first + size]
        yield _Piece(
            group.weights[rows],
            group.counts[rows],
            tilted.offsets[rows],
            tilted.probabilities[rows],
            float(strength[rows[0]]),
        )


def _evaluate(
    pieces: Sequence[_Piece], frequencies: NDArray[np.int64], modulus: int, few: bool
) -> CharacteristicValues:
    """Sum n ln phi over the pieces; frequencies below the cut leave on the way.

    Few coins leave most frequencies alive: one transform per class of many levels is cheaper then.
    """
    modulus_log = np.zeros(frequencies.size)
    phase, rounding = np.zeros(frequencies.size), np.zeros(frequencies.size)
    for piece in pieces:
        levels = piece.offsets.shape[1]
        sines = 12.0 * frequencies.size * levels  # cost in butterflies
        whole = few and levels > _FEW_LEVELS and sines > modulus * math.log2(modulus)
        added = (_transform if whole else _direct)(piece, frequencies, modulus)
        modulus_log, phase = modulus_log + added[0], phase + added[1]
        rounding = rounding + added[2]
        keep = modulus_log >= -CUT
        if not keep.all():
            frequencies, modulus_log = frequencies[keep], modulus_log[keep]
            phase, rounding = phase[keep], rounding[keep]
        if not frequencies.size:
            break
    return CharacteristicValues(frequencies, modulus_log, phase, rounding)


def _transform(piece: _Piece, frequencies: NDArray[np.int64], modulus: int) -> _Triple:
    """The values of _direct by one Fourier transform per class.

    The error of phi is absolute, not relative to 1 - phi: good for few coins only.
    """
    logs, angles, errors = (np.zeros(frequencies.size) for _ in range(3))
    ulps = EPSILON * 8.0 * math.log2(modulus)
    for row in range(piece.weights.size):
        pmf = np.zeros(modulus)
        position = (piece.weights[row] % modulus) * piece.offsets[row] % modulus
        np.add.at(pmf, position, piece.probabilities[row])
        phi = np.fft.rfft(pmf)[frequencies]
        size = np.maximum(np.abs(phi), 1e-150)
        logs += piece.counts[row] * np.log(size)
        angles -= piece.counts[row] * np.angle(phi)  # rfft has e^{-i theta}
        errors += piece.counts[row] * ulps / size
    return logs, angles, errors


def _direct(piece: _Piece, frequencies: NDArray[np.int64], modulus: int) -> _Triple:
    """ln |phi|^n, n arg(phi) and their rounding bound, each (F,).

    The real part of phi - 1 has one sign, and centring keeps the imaginary part small against it.
    """
    logs, angles, sizes = (np.zeros(frequencies.size) for _ in range(3))
    add_logs(
        piece.weights & (modulus - 1),
        piece.counts,
        piece.offsets,
        piece.probabilities,
        frequencies,
        modulus,
        list_sines(modulus),
        logs,
        angles,
        sizes,
    )
    return logs, angles, EPSILON * (8.0 + piece.offsets.shape[1] / 8.0) * sizes
