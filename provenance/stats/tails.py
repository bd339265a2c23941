"""P-values of a class table: the reported upper bound, and the numbers that must agree with it.

`upper_tail` computes the tail twice: by lattice inversion (reported) and by a rigorous normal
bracket under the tilt (checked), with Lugannani-Rice as a third voice. A contradiction raises; it
is never averaged away.

Does not know keys, tokens or schemes; does not know whether the weights were fixed before the coins
were opened, which is what makes p valid.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from provenance.errors import NumericalContradictionError
from provenance.stats.crosscheck import TiltedMoments, berry_esseen, lugannani_rice
from provenance.stats.inversion import invert
from provenance.stats.lattice import Lattice
from provenance.stats.tables import ClassTable

_BRACKET_TOLERANCE = 1e-6
_APPROXIMATION_TOLERANCE = 0.05


@dataclass(frozen=True)
class TailResult:
    """Upper tail of the statistic under H0.

    Parameters
    ----------
    log10_p : float
        The p-value, log10: an upper bound of P(S >= observed), above it by less than 1e-6 except
        for a few coins of huge weights or more than 1e9 coins (see `log10_upper_tail`). <= 0, never
        clamped from below.
    log10_berry_esseen : float or None
        Rigorous upper bound by another route, looser. None where S takes its maximum, is not above
        its minimum, or is constant: there p is exact without inversion.
    log10_lugannani_rice : float or None
        Approximation, not a bound. None for z below about 1 (the tilt is not at the saddle point
        there) and where undefined.
    z : float
        (S - mean) / standard deviation under H0; 0.0 if S is constant.
    coins : int
        Coins of nonzero weight.
    effective_coins : float
        (sum |w|)^2 / sum w^2.
    largest_share : float
        max w^2 / sum w^2: above .1 a single coin matters.
    table_sha256 : str
        Hex SHA-256 of the canonical JSON of the class table.
    """

    log10_p: float
    log10_berry_esseen: float | None
    log10_lugannani_rice: float | None
    z: float
    coins: int
    effective_coins: float
    largest_share: float
    table_sha256: str


def upper_tail(table: ClassTable) -> TailResult:
    """P-value of a class table, cross-checked.

    Parameters
    ----------
    table : ClassTable

    Returns
    -------
    TailResult

    Raises
    ------
    NumericalContradictionError
        If (1) the inversion is above the Berry-Esseen upper bound or (2) below its lower bound by
        more than 1e-6 (2e-14 per coin more for very many coins), or (3) differs from
        Lugannani-Rice by more than .05 orders, widened by what a coarser hidden lattice could
        explain, while 1000 coins or more share the weight evenly (no coin above 1 % of the squared
        weight, Lyapunov ratio under the tilt below .1).

    Notes
    -----
    H0: the suspect is independent of the key, so that scores are independent with the stated laws,
    whatever the weights. Not valid if weights depend on the scored coins.

    Examples
    --------
    >>> from provenance.stats.laws import NullLaw
    >>> table = ClassTable.from_scores([2] * 400, [1] * 150 + [0] * 250, NullLaw.bernoulli(2**30))
    >>> result = upper_tail(table)
    >>> round(result.log10_p, 6), round(result.z, 4)
    (-7.661599, 5.7735)
    """
    lattice = Lattice.from_table(table)
    inversion = invert(lattice)
    upper, approximation = None, None
    moments = None if inversion.slope is None else TiltedMoments.of(table, inversion.slope)
    if moments is not None:
        lower, upper = berry_esseen(moments)
        approximation = lugannani_rice(moments, lattice.span)
        _compare_bracket(inversion.log10_p, lower, upper, inversion.tight, table.coins)
        if inversion.tight and approximation is not None and _is_regular(table, moments):
            _compare_approximation(inversion.log10_p, approximation, moments)
    return TailResult(
        inversion.log10_p,
        upper,
        approximation,
        table.z,
        table.coins,
        table.effective_coins,
        table.largest_share,
        table.sha256(),
    )


def _compare_bracket(
    log10_p: float, lower: float | None, upper: float, tight: bool, coins: int
) -> None:
    """Raise if the inversion leaves the rigorous bracket."""
    tolerance = _BRACKET_TOLERANCE + 2e-14 * coins
    if tight and log10_p > upper + tolerance:
        raise NumericalContradictionError(
            f"The inverted tail must be at most the Berry-Esseen bound 10^{upper:.9g}; got "
            f"10^{log10_p:.9g}. Report the class table as a bug; do not use this p-value."
        )
    if lower is not None and log10_p < min(lower, 0.0) - tolerance:
        raise NumericalContradictionError(
            f"The inverted tail must be at least the Berry-Esseen bound 10^{lower:.9g}; got "
            f"10^{log10_p:.9g}. Report the class table as a bug; do not use this p-value."
        )


def _is_regular(table: ClassTable, moments: TiltedMoments) -> bool:
    """Whether Lugannani-Rice is known to be accurate for this table."""
    return table.coins >= 1000 and table.largest_share < 0.01 and moments.third < 0.1


def _compare_approximation(log10_p: float, approximation: float, moments: TiltedMoments) -> None:
    """Raise if Lugannani-Rice differs by more than its known error.

    A sum may live almost wholly on a coarser lattice than its span says (one odd weight among even
    ones); the correction (1 - e^{-h s}) / (h s) is then off by at most its value at the largest
    step, which widens the tolerance.
    """
    step = moments.largest_step
    tolerance = _APPROXIMATION_TOLERANCE - math.log10(-math.expm1(-step) / step)
    if abs(approximation - log10_p) > tolerance:
        raise NumericalContradictionError(
            f"Lugannani-Rice 10^{approximation:.6g} must agree with the inverted tail within "
            f"{tolerance:.3g} orders; got 10^{log10_p:.6g}. Report the class table as a bug; do "
            "not use this p-value."
        )
