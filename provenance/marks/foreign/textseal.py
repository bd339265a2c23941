"""TextSeal's pseudo-random function: a linear form, one xor-shift, modulo 8191.

    y = (L + 500001713 key) * 15485863 * 40499 mod 2**64, signed,   L = sum w_i P_i + 100000007 t
    v = (y ^ (y >> 13)) mod 8191,   u = v / 8191 in float32

Green list: u < gamma. Gumbel: -ln(1 - u). SynthID: layer d of token t is the green bit of t + d.
Pairs with one L share their coin under every key: L is the effective unit. For a key uniform over
64 bits y is uniform, so the law of one unit's v is known exactly. Different units are *not*
independent: green bits of tokens 743 apart after one context correlate .42, of keys 76 apart -.30,
so the sum of many units may spread more than its law says. `caveat` says so; only placebo keys can
tell by how much on the text at hand. Placebo keys that correlate with the true one are refused.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache, cached_property
from typing import Any, ClassVar, Final, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.marks.foreign.configuration import (
    check_fields,
    read_key,
    read_share,
    whole_number,
)
from provenance.marks.foreign.scheme import Common, Secret, Tokens, check_pairs
from provenance.marks.foreign.uniforms import exponential_law, exponential_score
from provenance.stats.laws import NullLaw
from provenance.storage.kernels import kernel

_PRIMES: Final = (
    10000019,
    10000247,
    10000439,
    10000643,
    10000747,
    10000867,
    10000993,
    10001213,
    10001357,
    10001501,
)
_TOKEN: Final = 100000007
_KEY: Final = 500001713
_FACTOR: Final = 15485863 * 40499
_VALUES: Final = 8191
_MASK: Final = (1 << 64) - 1
_WEYL: Final = 0x9E3779B97F4A7C15
_KEY_SAMPLE: Final = 1 << 16
_LAW_SAMPLE: Final = 1 << 22
CORRELATED: Final = 0.03
"""Seven standard deviations of the sample correlation of independent keys."""

TEXTSEAL_FIELDS: Final = [
    "secret_key",
    "ngram",
    "watermark_type",
    "method",
    "gamma",
    "delta",
    "alpha",
    "depth",
    "after_topp",
    "k_morphmark",
    "p_0",
    "chunk_size",
    "num_drafts",
    "base_watermark",
    "attenuation",
    "attenuation_weight",
    "backprop_on_nonzero",
    "scoring_method",
    "secret_key_b",
    "mixing_alpha",
    "key_routing",
]
"""Those of 0.0.5 and of the repository in 2026; the last three came with the dual key."""
_READ_BY: Final = {
    "greenlist": "textseal-greenlist",
    "dipmark": "textseal-greenlist",
    "morphmark": "textseal-greenlist",
    "gumbelmax": "textseal-gumbel",
    "synthid": "textseal-synthid",
    "textseal": "textseal-dual-key",
}


@njit(inline="always")
def _value(form, shift):  # type: ignore[no-untyped-def]
    """v of one linear form under one key's shift; wraps in signed 64 bits."""
    y = np.int64((form + shift) * np.int64(627161965637))
    return np.int64(y ^ (y >> np.int64(13))) % np.int64(8191)


@kernel(nogil=True)
def _values(forms, shift, out):  # type: ignore[no-untyped-def]
    for i in range(forms.shape[0]):
        out[i] = _value(forms[i], shift)


@kernel(nogil=True)
def _count_green(forms, shift, depth, step, threshold, out):  # type: ignore[no-untyped-def]
    for i in range(forms.shape[0]):
        total = 0
        form = forms[i]
        for _ in range(depth):
            total += _value(form, shift) < threshold
            form = np.int64(form + step)
        out[i] = total


def _signed(value: int) -> np.int64:
    """A Python integer wrapped to signed 64 bits."""
    value &= _MASK
    return np.int64(value - (1 << 64) if value >> 63 else value)


@cache
def _weyl(length: int) -> NDArray[np.int64]:
    """Equidistributed 64-bit words, the same in every process."""
    return (np.arange(1, length + 1, dtype=np.uint64) * np.uint64(_WEYL)).view(np.int64)


@cache
def _value_masses() -> NDArray[np.object_]:
    """How many of the 2**64 signed words are v modulo 8191, v = 0 .. 8190: exact integers."""
    half = 1 << 63
    counts = [(half - 1 - v) // _VALUES - (-half - 1 - v) // _VALUES for v in range(_VALUES)]
    return np.array(counts, dtype=object)


def _correlation(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    return float(np.asarray(np.corrcoef(first, second))[0, 1])


@dataclass(frozen=True, kw_only=True)
class _TextSeal(Common):
    """key: signed 64 bits; ngram: tokens before the scored one, at most 10."""

    key: int = field(repr=False)
    ngram: int = 1
    name: ClassVar[str]
    key_field: ClassVar[str] = "secret_key"

    @property
    def width(self) -> int:
        return self.ngram

    @property
    def caveat(self) -> str:
        """Why the law of one unit is not enough."""
        return (
            "coins of different units are correlated (a 13-bit linear hash): "
            "trust the p-value only if the placebo keys' z have variance 1"
        )

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"ngram": self.ngram}

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """The linear form L. Two operations a token; the key plays no part."""
        check_pairs(contexts, tokens, self.width, None)
        form = tokens.astype(np.int64) * _TOKEN
        for column, prime in zip(contexts.T, _PRIMES, strict=False):
            form += column.astype(np.int64) * prime
        return form

    def values(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """v of every pair, 0 .. 8190; the original's uniform is v / 8191 in float32."""
        out = np.empty(tokens.shape, dtype=np.int64)
        _values(self.units(contexts, tokens), self._shift, out)
        return out

    @property
    def _shift(self) -> np.int64:
        return _signed(_KEY * self.key)

    def random_key(self, rng: np.random.Generator) -> int:
        """Uniform over signed 64 bits, uncorrelated with the true key. 1 ms, SynthID 10 ms."""
        while True:
            key = int(rng.integers(-(1 << 63), 1 << 63))
            if abs(self.correlation(key)) < CORRELATED:
                return key

    def correlation(self, key: int) -> float:
        """Correlation of this key's coins with another's over 65,536 equidistributed forms."""
        return _correlation(self._sample, self.with_key(key)._sample)

    @cached_property
    def _sample(self) -> NDArray[np.int64]:
        """The coins of those forms: v, the green bit, or the sum of layers."""
        out = np.empty(_KEY_SAMPLE, dtype=np.int64)
        _values(_weyl(_KEY_SAMPLE), self._shift, out)
        return out


@dataclass(frozen=True, kw_only=True)
class TextSealGreenList(_TextSeal):
    """gamma: share of green tokens; also the mark of their dipmark and morphmark detectors."""

    gamma: float = 0.5
    name: ClassVar[str] = "textseal-greenlist"

    def __post_init__(self) -> None:
        if not 0 < self.threshold < _VALUES:
            raise UsageError(f"gamma must be in (0, 1); got {self.gamma}. Their default is 0.5.")

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"ngram": self.ngram, "gamma": self.gamma}

    @cached_property
    def threshold(self) -> int:
        """Number of green values: those with float32(v) / 8191 < float32(gamma)."""
        uniforms = np.arange(_VALUES, dtype=np.float32) / np.float32(_VALUES)
        return int((uniforms < np.float32(self.gamma)).sum())

    @cached_property
    def null_law(self) -> NullLaw:
        """Bernoulli with the exact share of the 2**64 words that are green."""
        return NullLaw.bernoulli(int(_value_masses()[: self.threshold].sum()), 1 << 64)

    @cached_property
    def _sample(self) -> NDArray[np.int64]:
        return _count(_weyl(_KEY_SAMPLE), self._shift, self._layers, self.threshold)

    @property
    def _layers(self) -> int:
        return 1

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """1 for a green token, else 0. About 5 ns a pair."""
        return (self.values(contexts, tokens) < self.threshold).astype(np.int64)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads TextSeal's `WatermarkConfig` of type greenlist, dipmark or morphmark."""
        del vocabulary_size
        fields = _read(config, secret, ("greenlist", "dipmark", "morphmark"), cls.name)
        return cls(**fields, gamma=read_share(config, "gamma", 0.5))


@dataclass(frozen=True, kw_only=True)
class TextSealGumbel(_TextSeal):
    """Their gumbelmax."""

    name: ClassVar[str] = "textseal-gumbel"

    @cached_property
    def null_law(self) -> NullLaw:
        """Law of the lattice score of v under a uniform 64-bit word."""
        return exponential_law(_value_masses(), _VALUES)

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """-ln(1 - u) in whole steps of 1/4: 0 .. 36."""
        return exponential_score(self.values(contexts, tokens), _VALUES)

    def original_scores(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.float64]:
        """-ln(1 - u)."""
        return -np.log1p(-self.values(contexts, tokens) / _VALUES)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads TextSeal's `WatermarkConfig` of type gumbelmax."""
        del vocabulary_size
        return cls(**_read(config, secret, ("gumbelmax",), cls.name))


@dataclass(frozen=True, kw_only=True)
class TextSealSynthID(TextSealGreenList):
    """depth: layers; layer d of token t is the green bit of t + d under the same key."""

    depth: int = 30
    name: ClassVar[str] = "textseal-synthid"
    refusal: ClassVar[str] = (
        "layer d of a token is layer 0 of the token whose id is d (since 2026: 659101 d) higher, "
        "so tokens share most of their coins with others and their sum spreads up to 1.4 times as "
        "far as its law says"
    )

    @property
    def _layers(self) -> int:
        return self.depth

    @property
    def caveat(self) -> str:
        """The law is counted, not exact, on top of what holds for all three."""
        return f"{super().caveat}; the law of a sum of layers is counted on 2**22 keys, not exact"

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"ngram": self.ngram, "gamma": self.gamma, "depth": self.depth}

    @cached_property
    def null_law(self) -> NullLaw:
        """Counted on 2**22 equidistributed words: layers are correlated, no closed form is known.

        Every entry is within 1e-3 of the law; its variance is .9 of the binomial one.
        """
        return NullLaw(tuple(_counted_law(self.depth, self.threshold)))

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """Number of green layers. About 2 ns a layer."""
        return _count(self.units(contexts, tokens), self._shift, self.depth, self.threshold)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads TextSeal's `WatermarkConfig` of type synthid; the weighted sum is not offered."""
        del vocabulary_size
        fields = _read(config, secret, ("synthid",), cls.name)
        depth = whole_number(config.get("depth", 30), "depth", 1, 64)
        return cls(**fields, gamma=read_share(config, "gamma", 0.5), depth=depth)


def _count(
    forms: NDArray[np.int64], shift: np.int64, depth: int, threshold: int
) -> NDArray[np.int64]:
    out = np.empty(forms.shape, dtype=np.int64)
    _count_green(forms, shift, depth, np.int64(_TOKEN), threshold, out)
    return out


@cache
def _counted_law(depth: int, threshold: int) -> list[int]:
    sums = _count(_weyl(_LAW_SAMPLE), np.int64(0), depth, threshold)
    return [int(mass) for mass in np.bincount(sums, minlength=depth + 1)]


def check_type(config: Mapping[str, Any], types: tuple[str, ...], scheme: str) -> None:
    """Raise unless the watermark_type is one of the scheme's own, with one key where it has one."""
    found = config.get("watermark_type", "gumbelmax")
    if found not in types:
        reader = _READ_BY.get(found) if isinstance(found, str) else None
        raise UsageError(
            f"watermark_type of {scheme} must be {' or '.join(types)}; got {found}. "
            + (f"Use the scheme {reader}." if reader else "No other is read.")
        )
    if config.get("key_routing") is True and found != "textseal":
        raise ConfigurationMismatchError(
            f"key_routing of {scheme} must be false; got true: half of the tokens follow a second "
            "key, and no test of both is offered for green lists. Set it to false to test the "
            "first key alone."
        )


def _read(
    config: Mapping[str, Any], secret: Secret, types: tuple[str, ...], scheme: str
) -> dict[str, int]:
    """Integers on any device: nothing to refuse."""
    check_fields(config, TEXTSEAL_FIELDS, scheme)
    check_type(config, types, scheme)
    return {
        "key": read_key(config, "secret_key", secret, 63),
        "ngram": whole_number(config.get("ngram", 1), "ngram", 1, len(_PRIMES)),
    }
