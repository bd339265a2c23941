"""MarkLLM's KGW, Unigram and EXP, and Unigram of its own repository.

KGW draws prf = randperm(V) from the key and seeds each list with a residue modulo V, so V lists
exist in all, the same for every key; only which context gets which list depends on it. Unigram is
one mask shuffled by numpy. EXP seeds a row of uniforms with key * (product of the window mod V).
The unit is the pair (seed, token), for Unigram the token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from math import gcd
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.marks.foreign import seeding
from provenance.marks.foreign.configuration import (
    check_fields,
    read_key,
    read_share,
    read_vocabulary_size,
    refuse_cuda,
    whole_number,
)
from provenance.marks.foreign.randperm import (
    GreenList,
    Prefixed,
    ProductSeeded,
    UniformRow,
    draw_key,
)
from provenance.marks.foreign.scheme import Common, Secret, Tokens, check_pairs
from provenance.marks.foreign.torch_cpu import permutation
from provenance.stats.laws import NullLaw

_F_SCHEMES: Final = ("time", "additive", "skip", "min")
_WINDOW_SCHEMES: Final = ("left", "self")
_KGW_FIELDS: Final = (
    "algorithm_name",
    "gamma",
    "delta",
    "hash_key",
    "prefix_length",
    "z_threshold",
    "f_scheme",
    "window_scheme",
)
_MORPHMARK_FIELDS: Final = ("type", "k_linear", "k_exp", "k_log", "p_0", "ewd", "delta_ewd")
_UNIGRAM_FIELDS: Final = ("algorithm_name", "gamma", "delta", "hash_key", "z_threshold")
_OWN_UNIGRAM_FIELDS: Final = ("fraction", "strength", "vocab_size", "watermark_key")
_EXP_FIELDS: Final = (
    "algorithm_name",
    "prefix_length",
    "hash_key",
    "threshold",
    "sequence_length",
    "top_k",
    "temperature",
)


@dataclass(frozen=True, kw_only=True)
class MarkLlmKgw(Prefixed, GreenList):
    """f_scheme: what of the window is hashed; self_salted: window_scheme is "self"."""

    f_scheme: str = "time"
    self_salted: bool = field(default=False)
    name: ClassVar[str] = "markllm-kgw"
    key_field: ClassVar[str] = "hash_key"

    @property
    def shares_coins(self) -> bool:
        """Products, sums, minima and the oldest token of a window are those of many windows."""
        return self.self_salted or self.prefix_length > 1

    @property
    def caveat(self) -> str:
        return f"only {self.vocabulary_size} lists exist, the same for every key"

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {
            **super().parameters,
            "f_scheme": self.f_scheme,
            "window_scheme": "self" if self.self_salted else "left",
        }

    def _seeds(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        size = self.vocabulary_size
        prf = permutation(self.key, size)
        if self.f_scheme == "time":
            hashed = prf[seeding.window_product(contexts, size).astype(np.int64)]
        elif self.f_scheme == "additive":
            hashed = prf[contexts.sum(axis=1, dtype=np.int64) % size]
        elif self.f_scheme == "skip":
            hashed = prf[contexts[:, 0]]
        else:
            hashed = prf[contexts].min(axis=1)
        factor = prf[tokens] if self.self_salted else self.key % size
        return (hashed * factor % size).astype(np.uint32)

    def random_key(self, rng: np.random.Generator) -> int:
        """A 32-bit key prime to the vocabulary size: any other has fewer lists, or only one."""
        while True:
            key = draw_key(rng, self.key)
            if gcd(key, self.vocabulary_size) == 1:
                return key

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads MarkLLM's `config/KGW.json`, and `MorphMark.json` without `ewd`: same lists."""
        morphs = config.get("algorithm_name") == "MorphMark"
        check_fields(config, (*_KGW_FIELDS, *(_MORPHMARK_FIELDS if morphs else ())), cls.name)
        refuse_cuda(config, cls.name)
        if morphs and config.get("window_scheme") == "self":
            raise ConfigurationMismatchError(
                "window_scheme of MorphMark must be left; got self, which it does not implement: "
                "no text of it exists. Check the configuration."
            )
        length = config.get("prefix_length", 1)
        return cls(
            key=read_key(config, "hash_key", secret, 64),
            vocabulary_size=read_vocabulary_size(config, vocabulary_size),
            gamma=read_share(config, "gamma", None),
            prefix_length=whole_number(length, "prefix_length", 1, 64),
            f_scheme=_choice(config, "f_scheme", _F_SCHEMES),
            self_salted=_choice(config, "window_scheme", _WINDOW_SCHEMES) == "self",
        )


@dataclass(frozen=True, kw_only=True)
class MarkLlmUnigram(Common):
    """One green list for all contexts; at most V units exist.

    Law: over a random key a token is green with probability exactly G / V; under the true key
    exactly G tokens are, so sums over many tokens spread less than independent coins.
    """

    key: int = field(repr=False)
    vocabulary_size: int
    gamma: float
    name: ClassVar[str] = "markllm-unigram"
    key_field: ClassVar[str] = "hash_key"
    width: ClassVar[int] = 0
    shares_coins: ClassVar[bool] = True

    @property
    def caveat(self) -> str:
        return "one list for all text: every word counts once, however often it occurs"

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"vocabulary_size": self.vocabulary_size, "gamma": self.gamma}

    @property
    def green_size(self) -> int:
        """G = int(gamma V)."""
        return int(self.gamma * self.vocabulary_size)

    @cached_property
    def mask(self) -> NDArray[np.bool_]:
        """Which tokens are green, bool [V], by numpy's PCG64 and its shuffle. 10 ns a token."""
        digest = sha256(self.key.to_bytes(8, "little")).digest()
        mask = np.arange(self.vocabulary_size) < self.green_size
        np.random.default_rng(int.from_bytes(digest[:4], "little")).shuffle(mask)
        return mask

    @cached_property
    def null_law(self) -> NullLaw:
        """Bernoulli(G / V)."""
        return NullLaw.bernoulli(self.green_size, self.vocabulary_size)

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """The token."""
        check_pairs(contexts, tokens, 0, self.vocabulary_size)
        return tokens.astype(np.int64)

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """1 for a green token, else 0."""
        check_pairs(contexts, tokens, 0, self.vocabulary_size)
        return self.mask[tokens].astype(np.int64)

    def random_key(self, rng: np.random.Generator) -> int:
        return int(rng.integers(0, 1 << 63))

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads MarkLLM's `config/Unigram.json`. numpy draws the mask: any device is fine."""
        check_fields(config, _UNIGRAM_FIELDS, cls.name)
        return cls(
            key=read_key(config, "hash_key", secret, 63),
            vocabulary_size=read_vocabulary_size(config, vocabulary_size),
            gamma=read_share(config, "gamma", None),
        )


@dataclass(frozen=True, kw_only=True)
class Unigram(MarkLlmUnigram):
    """The same mask under the names of its own repository (Zhao et al., arXiv 2306.17439)."""

    name: ClassVar[str] = "unigram"
    key_field: ClassVar[str] = "watermark_key"

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads the arguments of `GPTWatermarkBase`, Unigram-Watermark at b96cdb4."""
        check_fields(config, _OWN_UNIGRAM_FIELDS, cls.name)
        return cls(
            key=read_key(config, "watermark_key", secret, 63),
            vocabulary_size=read_vocabulary_size(config, vocabulary_size),
            gamma=read_share(config, "fraction", None),
        )


@dataclass(frozen=True, kw_only=True)
class MarkLlmExp(ProductSeeded, UniformRow):
    """seed = key * (product of the last prefix_length tokens mod V); a Gumbel row of it."""

    prefix_length: int = 4
    name: ClassVar[str] = "markllm-exp"
    key_field: ClassVar[str] = "hash_key"

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads MarkLLM's `config/EXP.json`. Its generator is always the CPU's."""
        check_fields(config, _EXP_FIELDS, cls.name)
        return cls(**read_product_seed(config, secret, vocabulary_size, 4))


def read_product_seed(
    config: Mapping[str, Any], secret: Secret, vocabulary_size: int | None, length: int
) -> dict[str, Any]:
    """Fields of a `ProductSeeded` scheme; `length`: the prefix_length of an object without any."""
    size = read_vocabulary_size(config, vocabulary_size)
    key = read_key(config, "hash_key", secret, 64)
    if key * (size - 1) >> 64:
        raise UsageError(
            "hash_key times the vocabulary size must be below 2**64, as torch wants its seeds; "
            "it is not. Check the key."
        )
    prefix = whole_number(config.get("prefix_length", length), "prefix_length", 1, 64)
    key = seeding.canonical_factor(key, size - 1)
    return {"key": key, "vocabulary_size": size, "prefix_length": prefix}


def _choice(config: Mapping[str, Any], field_name: str, allowed: tuple[str, ...]) -> str:
    found = config.get(field_name, allowed[0])
    if found not in allowed:
        raise UsageError(f"{field_name} must be one of {', '.join(allowed)}; got {found}.")
    return str(found)
