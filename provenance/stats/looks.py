"""When to stop collecting outputs: a rule that sees no coin.

Decide from outputs and weights only, open the key once: the fixed-n p-value is exact without any
correction. Whoever looks at coins more than once needs an e-process.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import ndtri

from provenance.errors import UsageError


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
