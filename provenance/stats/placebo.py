"""Placebo keys: does the pipeline really have the null law that the p-value assumes?

Random keys run through the same pipeline must look null, whatever the suspect did. Three checks see
three failures: a wrong variance (repeated coins), a shifted mean, and any other shape.

Blind spot: placebo keys do not see a leak between the index and the *true* key, such as a filter
on (context, token) pairs. And the rank of the true key among M placebo keys never falls below
1 / (M + 1): it validates the analytic p, it does not replace it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammainc, gammaincc, ndtr, ndtri, smirnov

from provenance.errors import UsageError

_Array = NDArray[np.float64]
_CLIP = 1e-15
_FINE, _FINE_FOR_WIDE_LAWS, _WIDE = 63, 15, 16
_MANY_COINS = 1 << 12


@dataclass(frozen=True)
class PlaceboResult:
    """Outcome of the placebo keys.

    Parameters
    ----------
    keys : int
        Number M of placebo keys.
    chi_square_p, mean_p, ks_p : float
        Two-sided p-values of the spread, the mean and the shape (Kolmogorov-Smirnov).
    mean, standard_deviation : float
        Of the placebo z; 0 and 1 are expected. The latter with divisor M - 1.
    rank_p : float
        (1 + number of placebo keys with z >= that of the true key) / (M + 1).
    passed : bool
        Whether 3 * min(chi_square_p, mean_p, ks_p) >= level (Bonferroni).
    level : float
        Probability of failing although all is well.
    """

    keys: int
    chi_square_p: float
    mean_p: float
    ks_p: float
    mean: float
    standard_deviation: float
    rank_p: float
    passed: bool
    level: float


def placebo_test(
    z: ArrayLike,
    randomised_p: ArrayLike,
    true_z: float,
    level: float = 1e-3,
    excess_kurtosis: float | None = None,
) -> PlaceboResult:
    """Test that placebo keys follow the null law.

    Parameters
    ----------
    z : float64 (M,)
        (S - mean) / standard deviation of each placebo key, M >= 2.
    randomised_p : float64 (M,)
        Of the same keys, in [0, 1]; see `NullDistribution.randomised_p`.
    true_z : float
        z of the true key.
    level : float
        Size of the three tests together.
    excess_kurtosis : float, optional
        `ClassTable.excess_kurtosis`. If given, spread and mean are tested on z itself: sum z^2
        against a scaled chi-square of variance M (2 + kurtosis), approximate for skewed laws. If
        None, on the normal scores of randomised_p: exactly normal under H0 whatever the law.

    Returns
    -------
    PlaceboResult

    Raises
    ------
    UsageError
        If the arrays do not match, hold a NaN or are too short; if level is not in (0, 1).

    Notes
    -----
    Power at level .001 with M = 400: standard deviation 1.1 -> .4, 1.2 -> .98 (.04 for the
    Kolmogorov-Smirnov test alone); mean .3 -> .995.

    References
    ----------
    Satterthwaite (1946); Birnbaum & Tingey (1951); Phipson & Smyth (2010), arXiv:1603.05766.
    """
    values, shares = _checked(z, randomised_p, true_z, level)
    keys = values.size
    normal = -ndtri(np.clip(shares, _CLIP, 1.0 - _CLIP))
    scores = normal if excess_kurtosis is None else values
    spread = _spread_p(scores, excess_kurtosis or 0.0)
    mean_p = 2.0 * float(ndtr(-abs(float(scores.mean())) * math.sqrt(keys)))
    shape = _uniform_p(shares)
    return PlaceboResult(
        keys,
        spread,
        mean_p,
        shape,
        float(values.mean()),
        float(values.std(ddof=1)),
        (1 + int(np.count_nonzero(values >= true_z))) / (keys + 1),
        3.0 * min(spread, mean_p, shape) >= level,
        level,
    )


def coarsen(weights: NDArray[np.int64], scores: int) -> NDArray[np.int64]:
    """Weights in few levels, if few coins carry finer ones: their null distribution is cheap.

    Parameters
    ----------
    weights : int64 (n,)
    scores : int
        Number of scores of the null law.

    Returns
    -------
    int64 (n,)
        The same array if no |weight| is above 63 (15 for laws of more than 16 scores) or n exceeds
        4,096; else rounded to so many levels of the largest, where small ones become 0.

    Notes
    -----
    Any function of the weights is a weight, so the law of the coarse sum is as exact; it is another
    statistic of the same coins. Of up to 4,096 coins with weights of 2**40 the null distribution
    has to cover every step of the lattice, seconds a key where every key has its own weights
    (pairs that share coins); coarse, 16 * 63 * sqrt(n) standard deviations of a score: about
    .2 s a key, 1.6 s for a law of 300 scores (`tests/stats/test_placebo.py` holds hostile tables
    to a CPU time).

    Examples
    --------
    >>> coarsen(np.array([6300, 149, 20]), 2).tolist()
    [63, 1, 0]
    """
    largest = int(np.abs(weights).max(initial=0))
    fine = _FINE if scores <= _WIDE else _FINE_FOR_WIDE_LAWS
    if largest <= fine or weights.size > _MANY_COINS:
        return weights
    return np.asarray(np.rint(weights * (fine / largest)), dtype=np.int64)


def _checked(z: ArrayLike, shares: ArrayLike, true_z: float, level: float) -> tuple[_Array, _Array]:
    values, uniform = np.asarray(z, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    if values.ndim != 1 or values.shape != uniform.shape or values.size < 2:
        raise UsageError(
            "z and randomised_p must be vectors of one length >= 2; got shapes "
            f"{values.shape} and {uniform.shape}. Run at least two placebo keys."
        )
    if not (np.isfinite(values).all() and np.all((uniform >= 0) & (uniform <= 1))):
        raise UsageError(
            "z must be finite and randomised_p in [0, 1]; got other values. "
            "Compute them with ClassTable.z and NullDistribution.randomised_p."
        )
    if not (0.0 < level < 1.0 and math.isfinite(true_z)):
        raise UsageError(
            f"level must be in (0, 1) and true_z finite; got {level} and {true_z}. "
            "Pass the z of the true key."
        )
    return values, uniform


def _spread_p(scores: _Array, excess_kurtosis: float) -> float:
    """Two-sided p of sum z^2 against a chi-square matched in mean M and variance M (2 + kappa)."""
    keys, total = scores.size, float(scores @ scores)
    scale = (2.0 + excess_kurtosis) / 2.0
    if scale < 1e-9:  # z^2 is constant under H0: two equally likely values of S
        return 1.0 if abs(total - keys) <= 1e-6 * keys else 0.0
    shape, value = keys / scale / 2.0, total / scale / 2.0
    return min(1.0, 2.0 * float(min(gammainc(shape, value), gammaincc(shape, value))))


def _uniform_p(shares: _Array) -> float:
    """Kolmogorov-Smirnov p against the uniform law: twice the exact one-sided tail, a bound."""
    ordered = np.sort(shares)
    steps = np.arange(ordered.size + 1) / ordered.size
    distance = float(max((steps[1:] - ordered).max(), (ordered - steps[:-1]).max()))
    return min(1.0, 2.0 * float(smirnov(ordered.size, distance)))
