"""The e-value of a class table: a mixture of exponential likelihood ratios.

exp(s T - K(s)) is the likelihood ratio of the table under a tilt s against H0, for any laws and any
signs of the weights. The mixture over a fixed grid of tilts needs no guess of the effect.

Does not know in which order, or in how many looks, the coins came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from provenance.stats.evalues import average_e
from provenance.stats.lattice import EPSILON
from provenance.stats.laws import NullLaw
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable

GRID: Final = tuple(float(value) for value in np.geomspace(1e-3, 4.0, 48))
"""Slopes of the mixture for a largest weight of 1 and a green list of 1/4 (deviation sqrt(3)/4), in
equal shares: a log-uniform prior, so that no number of coins is planned."""

_REFERENCE_DEVIATION = math.sqrt(3.0) / 4.0
_LOG10 = math.log(10.0)
_STEEP = 30.0
_CELLS = 1 << 18

_Array = NDArray[np.float64]


def mixture_slopes(law: NullLaw, maximal_weight: int) -> tuple[float, ...]:
    """GRID per unit of S: divided by the largest weight and by the deviation of a score.

    Parameters
    ----------
    law : NullLaw
        Not constant.
    maximal_weight : int
        Declared bound on |weight|, >= 1.

    Returns
    -------
    tuple of 48 floats
        Without the deviation, slopes made for green lists would be too steep for wide laws: Gumbel
        scores (deviation 4) of 10 million coins would lose 15 orders at z = 5 instead of 2.3.

    Examples
    --------
    >>> [round(slope, 4) for slope in mixture_slopes(NullLaw.bernoulli(2**30), 2)[::47]]
    [0.0005, 2.0]
    """
    unit = maximal_weight * math.sqrt(law.variance) / _REFERENCE_DEVIATION
    return tuple(slope / unit for slope in GRID)


def log10_mixture(table: ClassTable, slopes: Sequence[float]) -> float:
    """log10 E of a class table: an e-value if the weights were fixed before the coins.

    Parameters
    ----------
    table : ClassTable
        Any laws, any signs of weights.
    slopes : sequence of float
        Positive slopes s_k per unit of S, of equal share, fixed beforehand.

    Returns
    -------
    float
        log10 (1/m) sum_k exp(s_k T - K(s_k)), rounded down (1e-8 for a million coins); never NaN,
        never overflows; 0.0 for an empty table.

    Notes
    -----
    Under H0 the mean of E is 1 (exactly, but for the rounding down): it is a mean of likelihood
    ratios. O(m * classes * levels): 15 ms for 48 slopes, 60 classes and 89 levels, whatever the
    number of coins.

    References
    ----------
    Robbins & Siegmund (1970), Annals of Math. Stat. 41 (mixtures of likelihood ratios).

    Examples
    --------
    >>> table = ClassTable.from_scores([2] * 400, [1] * 150 + [0] * 250, NullLaw.bernoulli(2**30))
    >>> round(log10_mixture(table, mixture_slopes(NullLaw.bernoulli(2**30), 3)), 3)   # p = 10^-7.66
    5.35
    """
    return average_e(mixture_terms(table, slopes) / _LOG10)


def mixture_terms(table: ClassTable, slopes: Sequence[float]) -> _Array:
    """s_k T - K(s_k) of each slope, rounded down, float64 (m,); for another T add s_k a step.

    Parameters and cost: as `log10_mixture`.
    """
    grid = np.asarray(slopes, dtype=np.float64)
    groups: dict[NullLaw, list[ScoreClass]] = {}
    for item in table.classes:
        groups.setdefault(item.law, []).append(item)
    terms = np.zeros(grid.size)
    for law, classes in groups.items():
        cells = len(classes) * len(law.support)
        for part in np.array_split(np.arange(grid.size), 1 + grid.size * cells // _CELLS):
            terms[part] += _log_terms(law, classes, grid[part])
    return terms


def _log_terms(law: NullLaw, classes: list[ScoreClass], slopes: _Array) -> _Array:
    """s T - K(s) of the coins of one law, minus a bound on the rounding error, float64 (m,).

    Scores are taken from the level c next to their mean, T - c sum(n w) and sum n ln E e^{s w (X -
    c)}: both terms stay small, so that their difference keeps its digits for millions of coins.
    """
    centre = round(law.mean)
    levels = np.array(law.support) - centre
    shares = law.probabilities[list(law.support)]
    weights = np.array([item.weight for item in classes], dtype=np.float64)
    counts = np.array([item.count for item in classes], dtype=np.float64)
    gap = float(sum(item.weight * (item.total - item.count * centre) for item in classes))
    steps = np.multiply.outer(slopes, np.multiply.outer(weights, levels))  # (m, D, J)
    top = np.maximum(steps.max(axis=2), 0.0)
    small = np.expm1(np.minimum(steps, _STEEP)) * shares
    excess = small.sum(axis=2)
    shifted = np.log((np.exp(steps - top[:, :, None]) * shares).sum(axis=2))
    flat = (top <= _STEEP) & (excess > -0.5)
    log_mgf = np.where(flat, np.log1p(np.maximum(excess, -0.5)), top + shifted)
    # a few ulp of every summand, and of its exponent; of the logarithms where it is steep
    reach = np.abs(steps).max(axis=2)
    relative = (1.0 + reach) * np.abs(small).sum(axis=2) / (1.0 + np.maximum(excess, -0.5))
    error = 8.0 * EPSILON * np.where(flat, relative, 1.0 + reach + np.abs(log_mgf))
    exponent = slopes * gap
    rounding = error @ counts + 8.0 * EPSILON * (np.abs(exponent) + np.abs(log_mgf) @ counts)
    return np.asarray(exponent - log_mgf @ counts - rounding)
