"""Tails of equal weights in closed form: binomial and gamma, far below the range of float64.

Does not know class tables; these are the independent reference for them, and the tails that other
people's schemes quote.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import betainc, betaincc, gammainc, gammaincc, gammaln

from provenance.errors import UsageError

_LOG10 = math.log(10.0)
_SMALL = 1e-250
_TINY = 1e-300
_MAX_TERMS = 100_000

_Array = NDArray[np.float64]


def log10_binomial_tail(hits: ArrayLike, trials: ArrayLike, probability: ArrayLike) -> _Array:
    """log10 P(X >= hits), X ~ Binomial(trials, probability).

    Parameters
    ----------
    hits, trials : int64, broadcastable
        0 <= hits <= trials <= 2**52.
    probability : float64, broadcastable
        Strictly between 0 and 1.

    Returns
    -------
    float64, broadcast shape
        <= 0 and finite; 0.0 for hits = 0. Relative accuracy of p about 1e-11 (trials up to 1e6).

    Raises
    ------
    UsageError
        If an argument is outside its domain.

    Notes
    -----
    I_p(hits, trials - hits + 1) where float64 can hold it; below, the point mass by Loader's
    saddle-point form times a continued fraction. A two-sided approximation at rounding level, not
    a guarded bound: `log10_upper_tail` is the bound.

    References
    ----------
    DiDonato & Morris (1992), TOMS 18, eq. 9-10; Loader (2000), Fast and accurate computation of
    binomial probabilities.

    Examples
    --------
    >>> round(float(log10_binomial_tail(8, 10, 0.5)), 9)   # log10(56 / 1024)
    -1.26211193
    >>> round(float(log10_binomial_tail(10**6, 10**6, 0.25)), 3)
    -602059.991
    """
    x, n, p = np.broadcast_arrays(
        _whole(hits, "hits"), _whole(trials, "trials"), _numbers(probability, "probability")
    )
    _require(bool(np.all((p > 0) & (p < 1))), "probability must be strictly between 0 and 1", p)
    _require(bool(np.all(x >= 0)), "hits must be >= 0", x)
    _require(bool(np.all(x <= n)), "hits must be at most trials", x)
    _require(bool(np.all(n <= 2.0**52)), "trials must be at most 2**52", n)
    result = np.zeros(x.shape)
    inner = x > 0
    result[inner] = _log_binomial(x[inner], n[inner], p[inner])
    return np.minimum(result / _LOG10, 0.0)


def log10_gamma_tail(total: ArrayLike, shape: ArrayLike) -> _Array:
    """log10 P(G >= total), G ~ Gamma(shape, 1): the sum of `shape` standard exponentials.

    Parameters
    ----------
    total : float64, broadcastable
        >= 0, finite.
    shape : float64, broadcastable
        > 0, finite.

    Returns
    -------
    float64, broadcast shape
        <= 0 and finite; 0.0 for total = 0. Relative accuracy of p about 1e-11 (shape up to 1e6).

    Raises
    ------
    UsageError
        If an argument is outside its domain.

    Notes
    -----
    Q(shape, total) where float64 can hold it; below, the prefactor in Loader's form times
    Legendre's continued fraction.

    References
    ----------
    NIST DLMF 8.9.2; Loader (2000).

    Examples
    --------
    >>> round(float(log10_gamma_tail(2302.585092994046, 1.0)), 6)
    -1000.0
    """
    x, a = np.broadcast_arrays(_numbers(total, "total"), _numbers(shape, "shape"))
    _require(bool(np.all((x >= 0) & (x < np.inf))), "total must be >= 0 and finite", x)
    _require(bool(np.all((a > 0) & (a < np.inf))), "shape must be > 0 and finite", a)
    result = np.zeros(x.shape)
    inner = x > 0
    result[inner] = _log_gamma(x[inner], a[inner])
    return np.minimum(result / _LOG10, 0.0)


def _log_binomial(x: _Array, n: _Array, p: _Array) -> _Array:
    """ln P(X >= x), x >= 1."""
    b = n - x + 1.0
    upper = np.asarray(betainc(x, b, p))
    lower = np.asarray(betaincc(x, b, p))
    logs = np.where(
        upper > 0.5, np.log1p(-np.minimum(lower, 0.5)), np.log(np.maximum(upper, _TINY))
    )
    far = np.flatnonzero(upper < _SMALL)
    if far.size:
        x, n, p = x[far], n[far], p[far]
        q = 1.0 - p
        odds = p / q
        # Gauss: sum of the pmf ratios from x on = 1 + (n-x)/(x+1) odds (1 + ...), as a fraction
        logs[far] = _log_binomial_mass(x, n, p) + np.log(_ratio_sum(x, n, odds))
    return logs


def _ratio_sum(x: _Array, n: _Array, odds: _Array) -> _Array:
    """P(X >= x) / P(X = x): terms of one sign, decreasing since x is beyond the mean."""
    total, term, step = np.ones_like(x), np.ones_like(x), 0
    while step < _MAX_TERMS:
        term = term * ((n - x - step) / (x + step + 1.0)) * odds
        total = total + term
        step += 1
        if np.all(term <= 1e-17 * total):
            return total
    raise UsageError(
        f"The binomial tail must converge within {_MAX_TERMS} terms; it did not. "
        "Use log10_upper_tail."
    )


def _log_binomial_mass(x: _Array, n: _Array, p: _Array) -> _Array:
    """ln P(X = x), 1 <= x <= n (Loader 2000, eq. 3)."""
    rest = n - x
    safe = np.maximum(rest, 1.0)
    inner = (
        _stirling_error(n)
        - _stirling_error(x)
        - _stirling_error(safe)
        - _deviance(x, n * p)
        - _deviance(rest, n * (1.0 - p))
        + 0.5 * np.log(n / (2.0 * math.pi * x * safe))
    )
    return np.where(rest == 0, n * np.log(p), inner)


def _log_gamma(x: _Array, a: _Array) -> _Array:
    """ln Q(a, x), x > 0."""
    upper, lower = np.asarray(gammaincc(a, x)), np.asarray(gammainc(a, x))
    logs = np.where(
        upper > 0.5, np.log1p(-np.minimum(lower, 0.5)), np.log(np.maximum(upper, _TINY))
    )
    far = np.flatnonzero(upper < _SMALL)
    if far.size:
        x, a = x[far], a[far]
        prefactor = 0.5 * np.log(a / (2.0 * math.pi)) - _stirling_error(a) - _deviance(a, x)
        logs[far] = prefactor + np.log(_legendre_fraction(x, a))
    return logs


def _legendre_fraction(x: _Array, a: _Array) -> _Array:
    """1 / (x + 1 - a - 1 (1 - a) / (x + 3 - a - ...)), by Lentz's method; converges for x > a."""
    b = x + 1.0 - a
    c = np.full_like(x, 1.0 / _TINY)
    d = 1.0 / b
    value = d.copy()
    for step in range(1, _MAX_TERMS):
        numerator = -step * (step - a)
        b = b + 2.0
        d = 1.0 / _nonzero(b + numerator * d)
        c = _nonzero(b + numerator / c)
        change = c * d
        value = value * change
        if np.all(np.abs(change - 1.0) < 1e-15):
            return value
    raise UsageError(
        f"The gamma tail must converge within {_MAX_TERMS} terms; it did not. Use a smaller shape."
    )


def _nonzero(values: _Array) -> _Array:
    return np.where(np.abs(values) < _TINY, _TINY, values)


def _stirling_error(n: _Array) -> _Array:
    """ln Gamma(n + 1) - (n + 1/2) ln n + n - ln(2 pi) / 2, for n > 0 (Loader 2000, eq. 4)."""
    direct = gammaln(n + 1.0) - (n + 0.5) * np.log(n) + n - 0.5 * math.log(2.0 * math.pi)
    inverse = 1.0 / np.maximum(n, 1.0) ** 2
    series = 1 / 12 - inverse * (1 / 360 - inverse * (1 / 1260 - inverse * (1 / 1680)))
    return np.where(n < 25.0, direct, series / np.maximum(n, 1.0))


def _deviance(x: _Array, mean: _Array) -> _Array:
    """x ln(x / mean) + mean - x, without cancellation (Loader's bd0); mean for x = 0."""
    safe = np.maximum(x, _TINY)
    excess = (mean - x) / safe
    near = np.abs(excess) < 0.5
    small = np.where(near, excess, 0.0)
    ratio = mean / safe
    with np.errstate(over="ignore", invalid="ignore"):
        far = safe * (ratio - 1.0 - np.log(ratio))
    value = np.where(near, safe * (small - np.log1p(small)), far)
    return np.where(x == 0, mean, value)


def _numbers(values: ArrayLike, name: str) -> _Array:
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise UsageError(f"{name} must be numbers; got {error}. Pass an array.") from error


def _whole(values: ArrayLike, name: str) -> _Array:
    array = _numbers(values, name)
    _require(bool(np.all(np.floor(array) == array)), f"{name} must be whole numbers", array)
    return array


def _require(holds: bool, rule: str, values: _Array) -> None:
    if not holds:
        low, high = np.min(values), np.max(values)
        raise UsageError(f"{rule}; got values {low:.9g}..{high:.9g}. Correct the input.")
