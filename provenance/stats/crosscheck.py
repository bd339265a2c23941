"""Second opinions on a tail: a rigorous normal bracket and the Lugannani-Rice approximation.

Works on the class table itself, signed weights and all, by plain log-sum-exp: it shares no
reduction, no centring and no Fourier transform with the inversion, only the value of the tilt,
which may be any positive number.

Does not know which of two contradicting numbers is right.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy.special import erfcx

from provenance.stats.tables import ClassTable

SHEVTSOVA_CONSTANT = 0.56
"""Berry-Esseen constant for independent, not identically distributed terms (Shevtsova 2010)."""

_LOG10 = math.log(10.0)


@dataclass(frozen=True)
class TiltedMoments:
    """Moments of S under the tilt exp(s S).

    Parameters
    ----------
    slope : float
        s > 0.
    exponent : float
        K(s) - s x, natural logarithm of the Chernoff bound.
    shift : float
        x minus the tilted mean, in tilted standard deviations.
    deviation : float
        Tilted standard deviation of S.
    third : float
        Sum of absolute third central moments over deviation^3 (the Lyapunov ratio).
    largest_step : float
        s times the largest possible change of S by one coin.
    """

    slope: float
    exponent: float
    shift: float
    deviation: float
    third: float
    largest_step: float

    @classmethod
    def of(cls, table: ClassTable, slope: float) -> TiltedMoments | None:
        """Evaluate at a slope > 0; None if the tilted law is a point to float64."""
        exponent = mean_gap = variance = third = largest = 0.0
        for item in table.classes:
            support = np.array(item.law.support, dtype=np.float64)
            logs = np.log(item.law.probabilities[np.array(item.law.support)])
            observed = item.total / item.count  # per coin, to keep the exponent small
            steps = item.weight * (support - observed)
            exponents = logs + slope * steps
            top = float(exponents.max())
            tilted = np.exp(exponents - top)
            mass = float(tilted.sum())
            tilted /= mass
            mean = float(tilted @ steps)
            exponent += item.count * (top + math.log(mass))
            mean_gap -= item.count * mean
            variance += item.count * float(tilted @ (steps - mean) ** 2)
            third += item.count * float(tilted @ np.abs(steps - mean) ** 3)
            largest = max(largest, slope * float(steps.max() - steps.min()))
        if variance <= 0.0:
            return None
        deviation = math.sqrt(variance)
        return cls(slope, exponent, mean_gap / deviation, deviation, third / deviation**3, largest)


def berry_esseen(moments: TiltedMoments) -> tuple[float | None, float]:
    """Rigorous bracket of log10 P(S >= x).

    Parameters
    ----------
    moments : TiltedMoments

    Returns
    -------
    tuple of (float or None, float)
        Lower bound (None where it says nothing) and upper bound of log10 p, the latter <= 0.

    Notes
    -----
    p = e^{K - s x} E_s[e^{-s (S - x)}; S >= x]. By parts, with P_s within eps = .56 * third of the
    normal law at every point, the expectation is within 2 eps of
    e^{-d^2 / 2} erfcx((u + d) / sqrt 2) / 2, u = s * deviation, d = shift. At the saddle point
    d = 0 (statistics as in Shevtsova 2010 with the constant .56; tilting as in Cramer 1938).
    """
    normal = (
        math.exp(-0.5 * moments.shift**2)
        * 0.5
        * float(erfcx((moments.slope * moments.deviation + moments.shift) / math.sqrt(2.0)))
    )
    slack = 2.0 * SHEVTSOVA_CONSTANT * moments.third
    upper = (moments.exponent + math.log(min(1.0, normal + slack))) / _LOG10
    lower = None
    if normal > slack:
        lower = (moments.exponent + math.log(normal - slack)) / _LOG10
    return lower, min(upper, 0.0)


def lugannani_rice(moments: TiltedMoments, span: int) -> float | None:
    """Lattice-corrected Lugannani-Rice approximation of log10 P(S >= x).

    Parameters
    ----------
    moments : TiltedMoments
        At the saddle point.
    span : int
        Distance of neighbouring values of S.

    Returns
    -------
    float or None
        None where the approximation is undefined: away from the saddle point (x at or below the
        mean of S), or where its terms cancel.

    Notes
    -----
    Not a bound. p = phi(r) [Mills(r) + 1/v - 1/r], r = sqrt(2 (s x - K)),
    v = (1 - e^{-h s}) / h * deviation.

    References
    ----------
    Lugannani & Rice (1980), Adv. Appl. Probab. 12; Daniels (1987), Int. Stat. Rev. 55, eq. 6.4.
    """
    root = math.sqrt(max(-2.0 * moments.exponent, 0.0))
    if abs(moments.shift) > 1e-6 or root < 1e-4:
        return None
    lattice = -math.expm1(-span * moments.slope) / span * moments.deviation
    mills = math.sqrt(math.pi / 2.0) * float(erfcx(root / math.sqrt(2.0)))
    bracket = mills + 1.0 / lattice - 1.0 / root
    if not bracket > 0.0:
        return None
    log_density = moments.exponent - 0.5 * math.log(2.0 * math.pi)
    return (log_density + math.log(bracket)) / _LOG10
