"""E-values: evidence with mean at most 1 under H0, whatever the stopping rule or the dependence.

Averages of e-values are e-values under any dependence (keys, suspects, weight rules); e-BH controls
the false discovery rate over many of them. Works on log10, so that 10^1000 is an ordinary number.

Does not know where an e-value comes from, and cannot tell whether its mean is really at most 1.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from provenance.errors import UsageError

_Array = NDArray[np.float64]
_LOG_10 = float(np.log(10.0))


def average_e(log10_e: ArrayLike, weights: ArrayLike | None = None) -> float:
    """log10 of the weighted mean of e-values, itself an e-value.

    Parameters
    ----------
    log10_e : float64 (m,)
        log10 of each e-value, m >= 1; -inf for an e-value of 0.
    weights : float64 (m,), optional
        Weight of each, >= 0, sum 1, fixed before looking; equal if None.

    Returns
    -------
    float
        log10 of sum w_i e_i; 10 to minus this is a p-value (Markov). -inf if every e-value of
        positive weight is 0; never NaN, never overflows.

    Raises
    ------
    UsageError
        If an e-value is NaN or infinite, none is given, or the weights are no weights.

    Notes
    -----
    Valid under any dependence. Use it to hedge among m weight rules: the price is log10(m) orders
    at most, and nothing is lost by looking at all of them. O(m).

    References
    ----------
    Vovk & Wang (2021), Annals of Statistics 49, arXiv:1912.06116, theorem 3.2 (no symmetric way to
    merge e-values of unknown dependence is better than a mean of their mean and 1).

    Examples
    --------
    >>> round(average_e([3.0, -1.0]), 6)   # (1000 + .1) / 2
    2.699013
    >>> average_e([1000.0, 1000.0])
    1000.0
    """
    values, shares = _checked(log10_e, weights)
    if not values.size:
        raise UsageError("log10_e must hold one e-value at least; got none. Pass one per test.")
    top = float(values[shares > 0].max())
    if top == -np.inf:
        return -np.inf
    # log10 sum w_i e_i = top + log10 sum w_i 10^(log10 e_i - top)
    return top + float(np.log10(shares[shares > 0] @ 10.0 ** (values[shares > 0] - top)))


def adjust_e(log10_e: ArrayLike, weights: ArrayLike) -> _Array:
    """Adjusted e-values: family-wise error by closed testing with weighted averages.

    Parameters
    ----------
    log10_e : float64 (m,)
        log10 of each e-value; -inf for an e-value of 0.
    weights : float64 (m,)
        Share of each hypothesis, >= 0, sum 1, fixed before looking.

    Returns
    -------
    float64 (m,)
        log10 of the adjusted e-value of each hypothesis, in the order of the input; -inf for a
        hypothesis of weight 0. Rejecting where it is >= log10(1 / alpha) keeps the probability of
        any false rejection <= alpha, whatever the dependence. Of e-processes it holds at all times
        together: whoever reaches 1 / alpha at any look stays rejected.

    Raises
    ------
    UsageError
        If an e-value is NaN or infinite, or the weights are no weights.

    Notes
    -----
    Adjusted e_i = min over sets I of hypotheses with i in I of sum_I w_j e_j / sum_I w_j: the
    weighted average over I is an e-value (an e-process) under the intersection of I. The minimum is
    reached where I is i and the hypotheses of the smallest e-values, up to some one. Never less
    than weighted Holm on 1 / e. O(m^2).

    References
    ----------
    Vovk & Wang (2021), Annals of Statistics 49, arXiv:1912.06116, algorithm 1 (equal weights).

    Examples
    --------
    >>> adjust_e([3.0, 1.0, -1.0], [0.5, 0.25, 0.25]).round(3).tolist()   # 502.5, 5.05, .1
    [2.701, 0.703, -1.0]
    """
    values, shares = _checked(log10_e, weights)
    adjusted = np.full(values.size, -np.inf)
    own = np.flatnonzero(shares > 0)
    own = own[np.argsort(values[own], kind="stable")]
    if not own.size or values[own[-1]] == -np.inf:
        return adjusted
    # sums over the k smallest e-values, k = 0 .. m - 1, relative to the largest
    top = values[own[-1]]
    parts = values[own] - top + np.log10(shares[own])
    sums = np.concatenate([[-np.inf], np.logaddexp.accumulate(parts * _LOG_10)[:-1] / _LOG_10])
    totals = np.concatenate([[0.0], np.cumsum(shares[own])[:-1]])
    both = np.logaddexp(parts[:, None] * _LOG_10, sums[None, :] * _LOG_10) / _LOG_10
    averages = both - np.log10(shares[own][:, None] + totals[None, :])
    averages[np.triu_indices(own.size, 1)] = np.inf  # i itself is not among the k smaller ones
    adjusted[own] = top + averages.min(axis=1)
    return adjusted


def e_bh(log10_e: ArrayLike, weights: ArrayLike | None = None) -> _Array:
    """Adjusted levels of the e-BH procedure: false discovery rate under any dependence.

    Parameters
    ----------
    log10_e : float64 (m,)
        log10 of each e-value; -inf for an e-value of 0.
    weights : float64 (m,), optional
        Share of each hypothesis, >= 0, sum 1, fixed before looking; equal if None.

    Returns
    -------
    float64 (m,)
        log10 of the smallest level at which each hypothesis is rejected, in the order of the input,
        <= 0. Rejecting where it is <= log10(alpha) keeps the expected share of false rejections
        among all rejections <= alpha * (share of the true nulls). 0.0: never rejected.

    Raises
    ------
    UsageError
        If an e-value is NaN or infinite, or the weights are no weights.

    Notes
    -----
    With e_[1] >= e_[2] >= ..., e-BH at level alpha rejects the k* largest,
    k* = max {k : k e_[k] / m >= 1 / alpha}; hence the level of the i-th is min over k >= i of
    m / (k e_[k]). With weights, e_i is replaced by m w_i e_i. Why it holds: if i is among the R
    rejected, R e_i / m >= 1 / alpha, so 1 / R <= alpha e_i / m, and the expected sum of that over
    the true nulls is <= alpha.

    Not valid for the running maximum of an e-process (10 to minus its anytime p), whose mean
    exceeds 1: pass `EProcess.log10_e`, the value at the moment of the decision. The error rate is a
    mean over rejections; to accuse suspects one by one use `families.weighted_holm`. O(m log m).

    References
    ----------
    Wang & Ramdas (2022), J. R. Stat. Soc. B 84, arXiv:2009.02824 (the procedure and its error rate
    under arbitrary dependence); Tavyrikov, Goeman & de Heide (2025), arXiv:2501.19360 (why not
    suprema).

    Examples
    --------
    >>> e_bh([3.0, 1.7, -0.5]).round(3).tolist()   # 3 / 1000, 3 / (2 * 50), never
    [-2.523, -1.524, 0.0]
    """
    values, shares = _checked(log10_e, weights)
    levels = np.zeros(values.size)
    positive = np.flatnonzero((shares > 0) & (values > -np.inf))
    weighted = values[positive] + np.log10(shares[positive])
    order = np.argsort(-weighted, kind="stable")
    ranks = np.arange(1, positive.size + 1)
    steps = -(weighted[order] + np.log10(ranks))  # m / (k m w e) = 1 / (k w e)
    lowest = np.minimum.accumulate(steps[::-1])[::-1]
    levels[positive[order]] = np.minimum(lowest, 0.0)
    return levels


def _checked(log10_e: ArrayLike, weights: ArrayLike | None) -> tuple[_Array, _Array]:
    values = np.asarray(log10_e, dtype=np.float64)
    if values.ndim != 1 or not np.all(values < np.inf):
        raise UsageError(
            f"log10_e must be a vector of numbers or -inf; got shape {values.shape} or NaN or "
            "infinity. Pass log10 of each e-value."
        )
    if weights is None:
        return values, np.full(values.size, 1.0 / max(values.size, 1))
    shares = np.asarray(weights, dtype=np.float64)
    if shares.shape != values.shape or not np.all(shares >= 0):
        raise UsageError(
            f"weights must be >= 0, one per e-value; got shape {shares.shape} for {values.shape} "
            "or a negative weight. Pass one weight per e-value."
        )
    if shares.size and not abs(float(shares.sum()) - 1.0) <= 1e-9:
        raise UsageError(
            f"weights must sum to 1; got {float(shares.sum()):.9g}. Divide them by their sum."
        )
    return values, shares
