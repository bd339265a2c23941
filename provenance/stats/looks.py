"""The two ways to look more than once without an e-process.

Stop on outputs (rule R3): decide when to stop from outputs and weights only, open the key once; the
fixed-n p-value is exact without any correction. Planned looks (rule R4): a number of looks fixed
beforehand, each with the full fixed-n p over everything seen so far, alpha split among them.

Does not know coins; cannot tell whether the plan was really made first.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from provenance.errors import UsageError


def planned_looks(log10_p: ArrayLike, shares: ArrayLike) -> float:
    """P-value of a test with planned looks: min over looks of p_r / share_r.

    Parameters
    ----------
    log10_p : float64 (r,)
        Fixed-n log10 p of the looks taken so far, in the planned order; 0 <= r <= K. Weights may be
        re-aggregated over all outputs at each look, also those of coins already seen.
    shares : float64 (K,)
        Share of alpha given to each planned look, > 0, sum at most 1, fixed before the first look.

    Returns
    -------
    float
        log10 of the p-value of all looks together, <= 0; stop when it is <= log10(alpha).

    Raises
    ------
    UsageError
        If more looks were taken than planned, a p is above 1 or NaN, or the shares are no shares.

    Notes
    -----
    Valid if K and the shares were fixed before any coin was opened, whatever decides about the
    moments of the looks *as long as that sees no coin*; then each p_r is valid by itself and the
    union bound covers any dependence. Not valid if a look changes when the next one is taken or how
    it weighs coins that were already revealed: then use `sequential`. Costs log10 K orders.

    References
    ----------
    Bonferroni's inequality.

    Examples
    --------
    >>> round(planned_looks([-1.0, -4.0], [0.25, 0.25, 0.5]), 4)   # 1e-4 / .25
    -3.3979
    """
    values, parts = np.asarray(log10_p, dtype=np.float64), np.asarray(shares, dtype=np.float64)
    if parts.ndim != 1 or not np.all(parts > 0) or not float(parts.sum()) <= 1.0 + 1e-9:
        raise UsageError(
            "shares must be a vector of positive numbers with a sum of at most 1; got other "
            "values. Give each of K looks 1 / K."
        )
    if values.ndim != 1 or values.size > parts.size:
        raise UsageError(
            f"There must be at most {parts.size} looks as planned; got {values.size}. "
            "No further look is covered by this plan."
        )
    if not np.all((values <= 0) & (values > -np.inf)):
        raise UsageError("log10_p must be finite and <= 0; got other values. Pass log10 of p.")
    return float(np.min(values - np.log10(parts[: values.size]), initial=0.0))


def outputs_suffice(weights: ArrayLike, shift: float, alpha: float, power: float = 0.9) -> bool:
    """Whether outputs collected so far suffice for the effect one hopes for; sees no coin.

    Parameters
    ----------
    weights : int64 (n,)
        Weights of the distinct units over all outputs so far, positive or negative.
    shift : float
        Expected weighted mean shift of a score, in standard deviations of one score, > 0; the same
        measure as `power.DetectableShift.shift`.
    alpha : float
        Level of the test to come, in (0, 1/2).
    power : float
        Wanted probability of finding the effect, in [1/2, 1).

    Returns
    -------
    bool
        shift * sqrt(effective coins) >= z_alpha + z_power, effective coins = (sum |w|)^2 / sum w^2.

    Raises
    ------
    UsageError
        If an argument is outside its domain.

    Notes
    -----
    A stopping rule for R3: collect until it says True, then open the key once and report the
    fixed-n p of everything. Exact without correction, because under H0 the coins are independent of
    all outputs, hence of when the collection stopped. Not valid once any coin has been seen. The
    power is a normal approximation; the validity does not rest on it. O(n).

    Examples
    --------
    >>> outputs_suffice([1] * 1000, shift=0.1, alpha=0.01)   # sqrt(1000) * .1 = 3.2 < 3.6
    False
    >>> outputs_suffice([1] * 1400, shift=0.1, alpha=0.01)
    True
    """
    return effective_coins(weights) >= coins_needed(shift, alpha, power)


def coins_needed(shift: float, alpha: float, power: float = 0.9) -> float:
    """Effective coins at which `outputs_suffice` says True; arguments and errors as there.

    >>> round(coins_needed(0.1, 0.01))
    1302
    """
    if not (0.0 < shift < math.inf and 0.0 < alpha < 0.5 and 0.5 <= power < 1.0):
        raise UsageError(
            "shift must be positive, alpha in (0, 1/2) and power in [1/2, 1); got "
            f"{shift}, {alpha}, {power}. Fix them in the plan."
        )
    return float((ndtri(power) - ndtri(alpha)) / shift) ** 2


def effective_coins(weights: ArrayLike) -> float:
    """(sum |w|)^2 / sum w^2 of integer weights; 0.0 if there are none. UsageError otherwise.

    >>> effective_coins([3, 3, -3, 1])
    3.5714285714285716
    """
    array = np.asarray(weights)
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise UsageError(
            f"weights must be an integer vector; got {array.dtype} of shape {array.shape}. "
            "Pass one weight per unit."
        )
    sizes = np.abs(array.astype(np.float64))
    squares = float(sizes @ sizes)
    return float(sizes.sum()) ** 2 / squares if squares else 0.0
