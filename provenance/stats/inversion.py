"""Upper bound of P(S >= observed) by tilted lattice inversion.

With the tilt s > 0, p = e^{K(s) - s x} E_s[e^{-s (S - x)}; S >= x]. The expectation is read off the
discrete Fourier transform of length M. Truncating to M only adds non-negative aliases, so the
result is an upper bound for every M and s; what is left is rounding, which is bounded along with
the computation and added.

Does not know where the table came from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provenance.errors import DataError
from provenance.stats.frequencies import (
    CUT,
    MAX_MODULUS,
    characteristic_values,
    surviving_frequencies,
)
from provenance.stats.lattice import EPSILON, Lattice, Tilt
from provenance.stats.tables import ClassTable

_LOG10 = math.log(10.0)
_ALIAS_TARGET = 1e-8
_FLOOR = 1e-14
"""Below this the factor is rounding (p = 1 to 12 digits): no reason for a longer transform."""


@dataclass(frozen=True)
class Inversion:
    """Outcome of the inversion.

    Parameters
    ----------
    log10_p : float
        Upper bound of log10 P(S >= observed), <= 0.
    slope : float or None
        Tilt used, per unit of S; None where no inversion was needed.
    tight : bool
        Whether the bound exceeds the truth by less than about 1e-6 (aliases and rounding
        together); if False, p is valid but may be too large.
    """

    log10_p: float
    slope: float | None
    tight: bool


def log10_upper_tail(table: ClassTable) -> float:
    """log10 of an upper bound of P(S >= observed statistic) under H0.

    Parameters
    ----------
    table : ClassTable

    Returns
    -------
    float
        <= 0, finite. 0.0 for an empty table. Never below the exact value; above it by less than
        1e-6 up to a thousand million coins (1e-15 per coin of a common score beyond; coins of rare
        ones add nothing), unless a few coins carry weights so large that the lattice cannot be
        covered (about 2**22 points for less than a hundred coins): then p is valid and `tight` says
        that it may be far too large.

    Raises
    ------
    DataError
        If the statistic exceeds its maximum.

    Notes
    -----
    H0: scores are independent, each with the law of its class, weights fixed beforehand. Cost
    does not depend on the number of coins; 60 classes take 5-40 ms. Around a hundred coins in as
    many classes of a law of many scores take seconds, few coins of huge weights up to 20 s.

    References
    ----------
    Abate & Whitt (1992), The Fourier-series method for inverting transforms; Esscher (1932).

    Examples
    --------
    >>> from provenance.stats.laws import NullLaw
    >>> table = ClassTable.from_scores([1] * 10, [1] * 8 + [0] * 2, NullLaw((1, 1)))
    >>> round(10 ** log10_upper_tail(table) * 1024, 4)   # 45 + 10 + 1
    56.0
    """
    return invert(Lattice.from_table(table)).log10_p


def estimate_upper_tail(table: ClassTable) -> float:
    """log10 P(S >= observed), roughly and at a tenth of the cost; no bound, to choose among many.

    Within .35 where p is below .01 (Bahadur & Rao 1960 at the saddle point); 0.0 where the
    statistic is not above its mean.
    """
    lattice = Lattice.from_table(table)
    if lattice.threshold <= 0:
        return 0.0
    if lattice.threshold >= lattice.maximum:
        return lattice.log_top / _LOG10
    _, mean, _ = lattice.cumulants(0.0)
    if lattice.threshold <= mean:
        return 0.0
    slope = lattice.saddle()
    log_mgf, _, variance = lattice.cumulants(slope)
    spread = max(slope * math.sqrt(2.0 * math.pi * variance), 1.0)
    return min((log_mgf - slope * lattice.threshold - math.log(spread)) / _LOG10, 0.0)


def invert(lattice: Lattice) -> Inversion:
    """Upper tail of a reduced table: see log10_upper_tail, which is this for a class table."""
    if lattice.threshold > lattice.maximum:
        raise DataError(
            f"The statistic must be at most its maximum {lattice.maximum} (on its lattice); got "
            f"{lattice.threshold}. The scores do not come from the stated laws."
        )
    if lattice.threshold <= 0:
        return Inversion(0.0, None, True)
    if lattice.threshold == lattice.maximum:
        exact = lattice.log_top * (1.0 - 4.0 * EPSILON * (4 + lattice.rows))
        return Inversion(min(exact / _LOG10, 0.0), None, True)
    slope = _slope(lattice)
    tilt = lattice.tilt(slope)
    exponent = tilt.log_mgf - slope * float(lattice.threshold - tilt.centre)
    rounding = tilt.rounding + 4.0 * EPSILON * (
        abs(tilt.log_mgf) + slope * abs(float(lattice.threshold - tilt.centre))
    )
    log_factor, tight = _log_factor(lattice, tilt)
    log_p = exponent + min(log_factor, 0.0)
    log_p += rounding + 4.0 * EPSILON * (abs(exponent) + abs(log_factor))
    return Inversion(min(log_p / _LOG10, 0.0), slope / lattice.span, tight and rounding < 1e-6)


def _slope(lattice: Lattice) -> float:
    """The tilt: at the saddle point, but not so small that aliases force a long transform.

    1 / max(standard deviation, largest step) changes no coin's law by more than a factor e.
    """
    _, mean, variance = lattice.cumulants(0.0)
    least = 1.0 / max(math.sqrt(variance), float(lattice.largest_step))
    return max(least, lattice.saddle()) if lattice.threshold > mean else least


def _log_factor(lattice: Lattice, tilt: Tilt) -> tuple[float, bool]:
    """ln of an upper bound of E_s[e^{-s (S - x)}; S >= x], and whether it is tight.

    The transform is lengthened until the bound on the aliases is small against the result.
    """
    wanted = 19.0 + math.log1p(tilt.slope * math.sqrt(tilt.variance))
    while True:
        modulus, capped, survivors = _frequencies(lattice, tilt, wanted)
        value, error = _fourier_sum(lattice, tilt, modulus, survivors)
        bound = value + error
        aliases = 2.0 * math.exp(-wanted)
        if capped or aliases <= 10.0 * _ALIAS_TARGET * max(value, _FLOOR):
            break
        wanted += math.log(aliases / (_ALIAS_TARGET * max(value, _FLOOR)))
    return math.log(bound), not capped and error <= 1e-7 * value


def _frequencies(
    lattice: Lattice, tilt: Tilt, wanted: float
) -> tuple[int, bool, NDArray[np.int64]]:
    """Period M for which aliases carry at most 2 e^-wanted, whether it had to be shorter, and its
    surviving frequencies.

    A value y returns at distance k = y - x mod M from x, weighted by e^{-s k}. With L = wanted / s,
    y < x is harmless if k = M - (x - y) >= L, and y > x if y < x + M: so M covers the window of
    S' on both sides of x, and L more on the lower one.
    """
    low, high = lattice.window(tilt.slope, wanted)
    length = max(lattice.threshold - low + wanted / tilt.slope, high - lattice.threshold) + 2.0
    capped = length > MAX_MODULUS
    modulus = MAX_MODULUS if capped else max(16, 1 << math.ceil(math.log2(length)))
    while (survivors := surviving_frequencies(tilt.groups, modulus)) is None:
        modulus, capped = modulus // 2, True
    return modulus, capped, survivors


def _fourier_sum(
    lattice: Lattice, tilt: Tilt, modulus: int, survivors: NDArray[np.int64]
) -> tuple[float, float]:
    """The sum F over frequencies, and a bound on its rounding error and dropped terms.

    F = 1/M sum_m Re[psi(theta_m) e^{-i theta_m x} / (1 - e^{-s - i theta_m})], theta_m = 2 pi m/M.
    """
    shift = (lattice.threshold - tilt.centre) % modulus
    half, mask = modulus // 2, modulus - 1
    decay = math.exp(-tilt.slope)
    gap = -math.expm1(-tilt.slope)  # 1 - e^-s
    total = absolute = error = 0.0
    for values in characteristic_values(tilt.groups, modulus, survivors):
        frequency = values.frequencies
        residue = ((shift * frequency + half) & mask) - half
        phase = values.phase - residue * (2.0 * math.pi / modulus)
        angle = frequency * (math.pi / modulus)  # theta / 2
        real = gap + 2.0 * decay * np.sin(angle) ** 2
        imaginary = 2.0 * decay * np.sin(angle) * np.cos(angle)
        squared = real * real + imaginary * imaginary
        size = np.exp(values.log_modulus)
        twice = np.where((frequency == 0) | (frequency == half), 1.0, 2.0) / modulus
        total += float(
            (twice * size / squared) @ (np.cos(phase) * real + np.sin(phase) * imaginary)
        )
        weight = twice * size / np.sqrt(squared)
        absolute += float(weight.sum())
        error += float(weight @ (2.0 * values.rounding + EPSILON * np.abs(phase)))
    # Cauchy-Schwarz over all frequencies, for the dropped terms: below the cut, or lost in rounding
    # where one coin has phi = 0
    wrap = -math.expm1(-tilt.slope * modulus)
    spread = 1.0 / (wrap * math.sqrt(-math.expm1(-2.0 * tilt.slope)))
    dropped = (math.exp(-CUT) + 16.0 * EPSILON) * spread
    return total, error + 32.0 * EPSILON * absolute + dropped
