"""Google's synthid-text as its repository has had it since 2025-06-13: a hash without a table.

The package on PyPI (0.2.1) and transformers look bits up in a table (`synthid.py`). The repository,
whose version string is still 0.2.1, does not:

    IV    = SHA-256(keys as little-endian int64), big-endian, mod 2**63 - 1
    c     = acc over the context from IV,   acc(h, x) = (h + x) A + 1 mod 2**64, signed
    h_d   = acc(acc(c, token), key_d), then twelve times h = acc(h, 1) >> 5 (arithmetic)
    g_d   = bit 30 of h_d

The state c + token has 64 bits and is the effective unit: in practice the (context, token) pair.
Layers under equal keys are one coin and count once.

Law: IV makes the state of a unit uniform, and each bit of it is fair. But the hash is weak: bits
of two states that differ by any fixed amount correlate, by .03 as a rule and by .1 at times. Layers
are states a fixed amount apart, so the variance of their sum is .85 to 1.07 of the binomial one,
as the keys have it (1.065 for the keys that the repository publishes). So the law is beta-binomial
with the variance that these very keys have, measured and rounded up, never below the binomial one.
Different units correlate as much, with either sign: the caveat says so, and placebo keys show
what it comes to on the text at hand.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import ceil, comb
from typing import Any, ClassVar, Final, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.marks.foreign.configuration import check_fields, read_keys, whole_number
from provenance.marks.foreign.scheme import Common, Secret, Tokens, check_pairs
from provenance.stats.laws import NullLaw
from provenance.storage.kernels import kernel

_A: Final = 6364136223846793005
_IV_MODULUS: Final = (1 << 63) - 1
_MAXIMUM_DEPTH: Final = 128
_PARTS: Final = 64
_MARGIN: Final = 0.01
_STATES: Final = 1 << 18
"""Enough for the variance of a sum of layers to .3 %; the margin is more than three times that."""
_PRECISION: Final = 1 << 256
_TABLE_FIELDS: Final = ("sampling_table_size", "sampling_table_seed", "sampling_table")
_FIELDS: Final = (
    "ngram_len",
    "keys",
    "context_history_size",
    "skip_first_ngram_calls",
    "top_k",
    "temperature",
    "apply_top_k",
    "num_leaves",
)


@njit(inline="always")
def _bit(state, key):  # type: ignore[no-untyped-def]
    """g-value of one state under one layer's key; signed 64-bit, wrapping."""
    a = np.int64(6364136223846793005)
    one = np.int64(1)
    h = np.int64(np.int64(np.int64(state * a + one) + key) * a + one)
    for _ in range(12):
        h = np.int64(np.int64(h + one) * a + one) >> np.int64(5)
    return (h >> np.int64(30)) & one


@kernel(nogil=True)
def _bits(states, keys, out):  # type: ignore[no-untyped-def]
    for i in range(states.shape[0]):
        for d in range(keys.shape[0]):
            out[i, d] = _bit(states[i], keys[d])


@kernel(nogil=True)
def _sums(states, keys, out):  # type: ignore[no-untyped-def]
    for i in range(states.shape[0]):
        total = np.int64(0)
        for d in range(keys.shape[0]):
            total += _bit(states[i], keys[d])
        out[i] = total


def _spread_law(depth: int, spread: int) -> NullLaw:
    """Law of `depth` fair bits whose sum has at least spread / 64 of the binomial variance.

    A Polya urn of a balls of each colour: pairs correlate by 1 / (2 a + 1). Tails are rounded up to
    multiples of 2**-256 where the exact counts would not fit.
    """
    excess = spread - _PARTS
    if depth == 1 or not excess:
        return NullLaw(tuple(comb(depth, j) for j in range(depth + 1)))
    balls = max((_PARTS * (depth - 1) - excess) // (2 * excess), 1)
    rising = [1]
    for j in range(depth):
        rising.append(rising[-1] * (balls + j))
    counts = [comb(depth, j) * rising[j] * rising[depth - j] for j in range(depth + 1)]
    total = sum(counts)
    tails = [-(-sum(counts[j:]) * _PRECISION // total) for j in range(depth + 2)]
    return NullLaw(tuple(a - b for a, b in pairwise(tails)))


@dataclass(frozen=True, kw_only=True)
class SynthIDText2025(Common):
    """keys: one a layer; ngram_len: window and token."""

    keys: tuple[int, ...] = field(repr=False)
    ngram_len: int
    skip_first: bool = False
    name: ClassVar[str] = "synthid-text-2025"
    key_field: ClassVar[str] = "keys"
    caveat: ClassVar[str] = (
        "coins of different units are correlated (a weak linear hash): trust the p-value only if "
        "the placebo keys' z have variance 1"
    )

    @property
    def width(self) -> int:
        return self.ngram_len - 1

    @property
    def padding(self) -> int | None:
        """0: generation starts from a context of zeros, never from the prompt."""
        return None if self.skip_first else 0

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {
            "ngram_len": self.ngram_len,
            "depth": len(self.keys),
            "spread": self.spread,
            "skip_first_ngram_calls": self.skip_first,
        }

    @cached_property
    def initial(self) -> np.int64:
        """IV."""
        content = np.array(self.keys, dtype="<i8").tobytes()
        return np.int64(int.from_bytes(hashlib.sha256(content).digest(), "big") % _IV_MODULUS)

    @cached_property
    def layers(self) -> NDArray[np.int64]:
        """Distinct keys in order of first use."""
        return np.array(list(dict.fromkeys(self.keys)), dtype=np.int64)

    @cached_property
    def spread(self) -> int:
        """Variance of the sum of layers, in 64ths of the binomial one, rounded up; at least 64."""
        rng = np.random.default_rng(0)
        states = rng.integers(-(1 << 63), 1 << 63, _STATES, dtype=np.int64)
        sums = np.empty(_STATES, dtype=np.int64)
        _sums(states, self.layers, sums)
        ratio = float(sums.var()) / (len(self.layers) / 4)
        return max(_PARTS, ceil(_PARTS * (ratio + _MARGIN)))

    @cached_property
    def null_law(self) -> NullLaw:
        """Beta-binomial of mean 1/2 with this variance or a little more; see `spread`."""
        return _spread_law(self.layers.shape[0], self.spread)

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """The state c + token. Three operations a token of the window."""
        check_pairs(contexts, tokens, self.width, None)
        state = np.full(tokens.shape, self.initial, dtype=np.int64).view(np.uint64)
        for column in contexts.T:
            state = (state + column) * np.uint64(_A) + np.uint64(1)
        return (state + tokens).view(np.int64)

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """Number of ones among the distinct layers. About 25 ns a layer."""
        out = np.empty(tokens.shape, dtype=np.int64)
        _sums(self.units(contexts, tokens), self.layers, out)
        return out

    def g_values(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint8]:
        """Every layer's bit as the original has it, uint8 [n, number of keys]."""
        out = np.empty((tokens.shape[0], len(self.keys)), dtype=np.uint8)
        _bits(self.units(contexts, tokens), np.array(self.keys, dtype=np.int64), out)
        return out

    def random_key(self, rng: np.random.Generator) -> tuple[int, ...]:
        """As many distinct 64-bit keys as layers."""
        while True:
            depth = self.layers.shape[0]
            words = rng.integers(-(1 << 63), 1 << 63, (depth,), dtype=np.int64)
            drawn = [int(word) for word in words]
            if len({*drawn, *self.keys}) == 2 * depth:
                return tuple(drawn)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads the arguments of the repository's `SynthIDLogitsProcessor`. Any device."""
        del vocabulary_size
        if table := [name for name in _TABLE_FIELDS if name in config]:
            raise UsageError(
                f"a {cls.name} configuration must have no table; got {', '.join(table)}: this is "
                "the hash of transformers and of synthid-text 0.2.1 on PyPI. Use the scheme "
                "hf-synthid."
            )
        check_fields(config, _FIELDS, cls.name)
        keys = read_keys(config, "keys", secret)
        whole_number(len(keys), "the number of keys", 1, _MAXIMUM_DEPTH)
        return cls(
            keys=keys,
            ngram_len=whole_number(config.get("ngram_len"), "ngram_len", 2, 64),
            skip_first=bool(config.get("skip_first_ngram_calls", False)),
        )
