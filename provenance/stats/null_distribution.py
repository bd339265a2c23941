"""The whole null distribution of S for fixed weights, for many statistics at once.

Placebo keys share weights and laws, hence one null distribution: its characteristic function is
evaluated once, and every key costs one short sum. Absolute accuracy 1e-12: made for the centre of
the distribution. For the p-value of the true key use `tails`, which is an upper bound and relative.

Does not know keys; does not guard against rounding.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from provenance.errors import DataError, UsageError
from provenance.stats.frequencies import (
    MAX_FREQUENCIES,
    MAX_MODULUS,
    characteristic_values,
    surviving_frequencies,
)
from provenance.stats.lattice import Lattice
from provenance.stats.tables import ClassTable

_WANTED = 31.0
"""-ln of the probability left outside the window, per side: 3.4e-14."""

_CELLS = 1 << 18

_FEW_COINS = 1 << 12
"""Up to here products of characteristic functions keep 1e-12, and most frequencies matter."""

_PRODUCTS = 1 << 26
"""Classes times period up to which the search for frequencies costs more than all of them."""

_Array = NDArray[np.float64]
_Integers = NDArray[np.int64]


@dataclass(frozen=True)
class NullDistribution:
    """Distribution of S under H0 given the classes of a table; observed totals play no part.

    Build it with `from_table`.

    Examples
    --------
    >>> from provenance.stats.laws import NullLaw
    >>> coins = ClassTable.from_scores([3, 3], [0, 0], NullLaw((1, 1)))
    >>> NullDistribution.from_table(coins).tail([0, 3, 6]).round(12).tolist()
    [1.0, 0.75, 0.25]
    """

    lattice: Lattice
    centre: int
    low: int
    high: int
    modulus: int
    frequencies: _Integers
    values: NDArray[np.complex128]

    @classmethod
    def from_table(cls, table: ClassTable) -> NullDistribution:
        """Evaluate the characteristic function once.

        Parameters
        ----------
        table : ClassTable
            Only weights, laws and counts matter.

        Raises
        ------
        UsageError
            If few coins carry weights so large that more than 2**21 frequencies would be needed.

        Notes
        -----
        Of many coins: about one `upper_tail`. Of few coins most of the F <= 2**21 frequencies
        matter: one transform of each law, and one look-up and product per class and frequency,
        about 15 ns. F is about 16 standard deviations of S, in steps of its lattice: weights of few
        levels keep it short, see `placebo.coarsen`.
        """
        lattice = Lattice.from_table(table)
        none = np.zeros(0, dtype=np.int64)
        if not lattice.groups:
            return cls(lattice, 0, 0, 0, 4, none, none.astype(np.complex128))
        low, high = lattice.window(0.0, _WANTED)
        modulus = max(16, 1 << (2 * (high - low + 1)).bit_length())
        few = table.coins <= _FEW_COINS and modulus <= min(MAX_MODULUS, 2 * MAX_FREQUENCIES)
        if few and len(table.classes) * modulus <= _PRODUCTS:
            return cls._from_products(lattice, low, high, modulus)
        tilt = lattice.tilt(0.0)
        survivors = None
        if modulus <= MAX_MODULUS:
            survivors = surviving_frequencies(tilt.groups, modulus)
        if few and (survivors is None or survivors.size > modulus // 16):
            return cls._from_products(lattice, low, high, modulus)
        if survivors is None:
            raise UsageError(
                "The null distribution must need at most 2**21 frequencies; got more, on a "
                f"lattice of {modulus}. Quantise the weights to fewer levels."
            )
        frequencies, values = [none], [none.astype(np.complex128)]
        for batch in characteristic_values(tilt.groups, modulus, survivors):
            frequencies.append(batch.frequencies)
            values.append(np.exp(batch.log_modulus + 1j * batch.phase))
        return cls(
            lattice,
            tilt.centre,
            low,
            high,
            modulus,
            np.concatenate(frequencies),
            np.concatenate(values),
        )

    @classmethod
    def _from_products(
        cls, lattice: Lattice, low: int, high: int, modulus: int
    ) -> NullDistribution:
        """Every frequency, none searched for."""
        every = np.arange(modulus // 2 + 1, dtype=np.int64)
        return cls(lattice, 0, low, high, modulus, every, _multiply(lattice, modulus))

    def tail(self, statistics: ArrayLike) -> _Array:
        """P(S >= statistic), float64 (M,), absolute error 1e-12.

        Parameters
        ----------
        statistics : int64 (M,)
            Values of S.

        Raises
        ------
        DataError
            If a value is not on the lattice of S.
        """
        position = self._positions(statistics)
        if not self.lattice.groups:
            return np.asarray(position <= 0, dtype=np.float64)
        odd = self.frequencies % 2 == 1
        frequencies = self.frequencies[odd]
        angle = frequencies * (2.0 * math.pi / self.modulus)
        # a window of M/2 points: its geometric sum is 2 / (1 - e^{-i theta}) at odd m, 0 at even m
        factors = 4.0 * self.values[odd] / (self.modulus * (1.0 - np.exp(-1j * angle)))
        inside = np.clip(position, self.low, self.high)
        upper = 0.5 + self._sum(inside, frequencies, factors)
        upper = np.where(position > self.high, 0.0, upper)
        return np.clip(np.where(position <= self.low, 1.0, upper), 0.0, 1.0)

    def mass(self, statistics: ArrayLike) -> _Array:
        """P(S = statistic), float64 (M,), absolute error 1e-12. See `tail`."""
        position = self._positions(statistics)
        if not self.lattice.groups:
            return np.asarray(position == 0, dtype=np.float64)
        ends = (self.frequencies == 0) | (self.frequencies == self.modulus // 2)
        factors = np.where(ends, 1.0, 2.0) / self.modulus * self.values
        inside = np.clip(position, self.low, self.high)
        mass = np.where(position == inside, self._sum(inside, self.frequencies, factors), 0.0)
        return np.clip(mass, 0.0, 1.0)

    def randomised_p(self, statistics: ArrayLike, uniforms: ArrayLike) -> _Array:
        """U P(S = s) + P(S > s): exactly uniform under H0 for any law.

        Parameters
        ----------
        statistics : int64 (M,)
            Values of S.
        uniforms : float64 (M,)
            Independent uniform numbers in [0, 1].

        Returns
        -------
        float64 (M,)
            In [0, 1], absolute error 1e-12. A diagnostic of the null law, not a p-value to report.

        Raises
        ------
        UsageError
            If the lengths differ or a uniform is outside [0, 1].
        DataError
            If a value is not on the lattice of S.
        """
        uniform = np.asarray(uniforms, dtype=np.float64)
        if uniform.shape != np.shape(statistics) or not np.all((uniform >= 0) & (uniform <= 1)):
            raise UsageError(
                "uniforms must be one number in [0, 1] per statistic; got shape "
                f"{uniform.shape} for {np.shape(statistics)}. Draw one uniform per key."
            )
        upper, mass = self.tail(statistics), self.mass(statistics)
        return np.clip(upper - (1.0 - uniform) * mass, 0.0, 1.0)

    def _positions(self, statistics: ArrayLike) -> _Integers:
        """Positions on the reduced lattice, int64 (M,)."""
        values = np.asarray(statistics)
        if values.ndim != 1 or (values.size and values.dtype.kind not in "iu"):
            raise UsageError(
                f"statistics must be a one-dimensional integer array; got {values.dtype} of shape "
                f"{values.shape}. Pass one statistic per key."
            )
        shifted = values.astype(np.int64) - self.lattice.offset
        if np.any(shifted % self.lattice.span):
            raise DataError(
                f"Every statistic must be {self.lattice.offset} plus a multiple of "
                f"{self.lattice.span}; got another value. Use the weights of the table."
            )
        return np.asarray(shifted // self.lattice.span, dtype=np.int64)

    def _sum(
        self, positions: _Integers, frequencies: _Integers, factors: NDArray[np.complex128]
    ) -> _Array:
        """Re sum_m factors[m] e^{-i theta_m (position - centre)}, float64 (M,)."""
        shifts, inverse = np.unique(positions, return_inverse=True)
        shifts = (shifts - self.centre) % self.modulus
        totals = np.zeros(shifts.size)
        if frequencies.size * shifts.size > 4 * self.modulus * math.log2(self.modulus):
            spectrum = np.zeros(self.modulus, dtype=np.complex128)
            spectrum[frequencies] = factors
            return np.asarray(np.fft.fft(spectrum).real[shifts][inverse])
        batch = max(1, _CELLS // max(shifts.size, 1))
        for first in range(0, frequencies.size, batch):
            part, factor = frequencies[first : first + batch], factors[first : first + batch]
            angle = (shifts[:, None] * part[None, :] % self.modulus) * (2 * math.pi / self.modulus)
            totals += np.cos(angle) @ factor.real + np.sin(angle) @ factor.imag
        return totals[inverse]


def _multiply(lattice: Lattice, modulus: int) -> NDArray[np.complex128]:
    """psi(2 pi m / M) of S' at m = 0..M/2, complex128 (M/2 + 1,): the product over all coins.

    phi of weight w at m is phi of weight 1 at w m mod M, so that one transform serves every class
    of a law. Absolute error: a few 1e-16 per coin.
    """
    every = np.arange(modulus // 2 + 1, dtype=np.int64)
    psi = np.ones(every.size, dtype=np.complex128)
    for group in lattice.groups:
        steps = np.zeros(modulus)
        np.add.at(steps, group.levels % modulus, group.probabilities)
        phi = np.fft.fft(steps).conj()  # fft has e^{-i theta}
        for weight, count in zip(group.weights, group.counts, strict=True):
            psi *= _power(phi[(int(weight) % modulus) * every & (modulus - 1)], int(count))
    return psi


def _power(values: NDArray[np.complex128], exponent: int) -> NDArray[np.complex128]:
    """values ** exponent by squaring, exponent >= 1: np.power of complex numbers is far slower."""
    result: NDArray[np.complex128] | None = None
    while True:
        if exponent & 1:
            result = values if result is None else result * values
        exponent >>= 1
        if not exponent:
            return values if result is None else result
        values = values * values
