"""What an e-process that has not crossed could have found in the coins that are revealed so far.

Its e-value grows with S alone once the coins are given, so it crosses at one value of S. The tail
of S there is the level of the fixed test that is as strict, and its power is that of the e-process
at this look.
"""

from __future__ import annotations

import math
from dataclasses import replace

from scipy.optimize import brentq

from provenance.check.power_statement import Power, Setting, state_power
from provenance.stats.evalues import average_e
from provenance.stats.inversion import invert
from provenance.stats.lattice import Lattice
from provenance.stats.mixture import mixture_slopes, mixture_terms
from provenance.stats.tables import ClassTable


def find_level(table: ClassTable, maximal_weight: int, log10_e: float) -> float:
    """log10 P(S >= the least S at which E reaches 10^log10_e); -inf if no S reaches it.

    Parameters: a class table with at least one coin, whose totals do not matter; the declared bound
    of its weights; the wanted evidence, > 0. Cost: that of E and of one tail.
    """
    lattice = Lattice.from_table(table)
    slopes = mixture_slopes(table.classes[0].law, maximal_weight)
    terms = mixture_terms(table, slopes)

    def evidence(statistic: float) -> float:
        moved = [
            (term + slope * (statistic - table.statistic)) / math.log(10.0)
            for term, slope in zip(terms, slopes, strict=True)
        ]
        return average_e(moved) - log10_e

    highest = float(lattice.offset + lattice.span * lattice.maximum)
    if evidence(highest) < 0:
        return -math.inf
    crossing = float(brentq(evidence, min(table.mean, highest), highest))
    threshold = min(math.ceil((crossing - lattice.offset) / lattice.span), lattice.maximum)
    return invert(replace(lattice, threshold=threshold)).log10_p


def state_sequential_power(
    table: ClassTable, key: str, alpha: float, maximal_weight: int, setting: Setting
) -> Power | None:
    """`power_statement.state_power` at the level at which this key's e-process crosses 1 / alpha.

    None without coins. The outcome is `cannot reject` if no S is evidence enough.
    """
    if not table.coins:
        return None
    log10_level = find_level(table, maximal_weight, -math.log10(alpha))
    level = 10.0**log10_level
    if level <= 0.0:
        return Power(key, alpha, 0.9, None, None, True, "cannot reject", None, None)
    return state_power(table, key, level, setting)
