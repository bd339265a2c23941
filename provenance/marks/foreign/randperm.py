"""What all green lists cut from a permutation share: seed a generator, permute, take the front.

The green list of a seed is the first G = int(gamma V) entries of torch's CPU `randperm(V)`. A
family only says how a window becomes a seed. A coin is determined by (seed mod 2**32, token), which
is the effective unit: windows whose seeds collide share a list.

Law: over a random permutation a token is green with probability exactly G / V, the law used here.
Under the true key it is a fixed list of exactly G tokens, so the coins of one seed are drawn
without replacement: their sum is never more spread than the law says (Hoeffding 1963, section 6).
The shuffle's modulo favours low slots by less than V / 2**32 (4e-5 for V = 151,936) of a
probability, .006 sd at a million tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.marks.foreign import seeding
from provenance.marks.foreign.scheme import Common, Tokens, check_pairs, pack_units
from provenance.marks.foreign.torch_cpu import first_slots, random_mantissas
from provenance.marks.foreign.uniforms import exponential_law, exponential_score
from provenance.stats.laws import NullLaw

_SHARED_BITS = 12
"""Two multipliers equal modulo 2**20 or more share the seeds of many windows."""


@dataclass(frozen=True, kw_only=True)
class Seeded(Common, ABC):
    """A scheme whose coins are one draw of a torch CPU generator seeded by the window."""

    key: int = field(repr=False)
    vocabulary_size: int
    name: ClassVar[str]
    key_field: ClassVar[str]
    self_salted: bool = field(default=False, init=False)

    @property
    def shares_coins(self) -> bool:
        """Where the token is part of the seed, one of the window often decides it alone."""
        return self.self_salted

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"vocabulary_size": self.vocabulary_size}

    @abstractmethod
    def _seeds(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        """Low 32 bits of the seed of each pair."""

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """(seed, token), packed exactly."""
        self._check(contexts, tokens)
        return pack_units(self._seeds(contexts, tokens), tokens)

    def random_key(self, rng: np.random.Generator) -> int:
        """Uniform over 32 bits, as many as the generator's seed has."""
        return draw_key(rng, self.key)

    def _check(self, contexts: Tokens, tokens: Tokens) -> None:
        check_pairs(contexts, tokens, self.width, self.vocabulary_size)


@dataclass(frozen=True, kw_only=True)
class Prefixed(Seeded):
    """prefix_length: tokens before the scored one that the seed is a product or sum of."""

    prefix_length: int = 1

    @property
    def width(self) -> int:
        return self.prefix_length

    @property
    def shares_coins(self) -> bool:
        """A product or sum of a window is that of its tokens in any order."""
        return self.prefix_length > 1

    @property
    def caveat(self) -> str:
        """Keys that are the same mark."""
        return seeding.SAME_KEYS

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {**super().parameters, "prefix_length": self.prefix_length}


@dataclass(frozen=True, kw_only=True)
class ProductSeeded(Prefixed):
    """Seed key * (product of the last prefix_length tokens mod V): MarkLLM's EXP and EWD."""

    def usable(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.bool_]:
        """False where the product is 0 modulo V, for example at token 0: seed 0 for all keys."""
        self._check(contexts, tokens)
        return np.not_equal(seeding.window_product(contexts, self.vocabulary_size), 0)

    def _seeds(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        del tokens
        return seeding.product(self.key, seeding.window_product(contexts, self.vocabulary_size))


@dataclass(frozen=True, kw_only=True)
class RollingSeeded(Seeded):
    """ngram: tokens of the window; salt_key: the public multiplier of the rolling hash."""

    ngram: int = 8
    salt_key: int = 35317

    @property
    def width(self) -> int:
        return self.ngram

    @property
    def caveat(self) -> str:
        """Keys that are the same mark."""
        return seeding.same_keys_of_hash(self.salt_key, self.ngram)

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {**super().parameters, "ngram": self.ngram, "salt_key": self.salt_key}

    def _seeds(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        del tokens
        return seeding.rolling(self.key, self.salt_key, contexts)


@dataclass(frozen=True, kw_only=True)
class GreenList(Seeded):
    """gamma: share of green tokens; select_green: False takes the green list from the end."""

    gamma: float
    select_green: bool = field(default=True, repr=False)

    def __post_init__(self) -> None:
        if not 0 < self.green_size < self.vocabulary_size:
            raise UsageError(
                f"gamma must leave 1 .. {self.vocabulary_size - 1} green tokens; got {self.gamma}. "
                "Use the value that the text was marked with."
            )

    @property
    def green_size(self) -> int:
        """G = int(gamma V), in float64 as in the originals."""
        return int(self.vocabulary_size * self.gamma)

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {**super().parameters, "gamma": self.gamma}

    @cached_property
    def null_law(self) -> NullLaw:
        """Bernoulli(G / V)."""
        return NullLaw.bernoulli(self.green_size, self.vocabulary_size)

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """1 for a green token, else 0. Cost: `torch_cpu.first_slots` per distinct seed."""
        self._check(contexts, tokens)
        seeds = self._seeds(contexts, tokens)
        if self.select_green:
            green = first_slots(seeds, tokens, self.vocabulary_size, self.green_size)
        else:
            red_size = self.vocabulary_size - self.green_size
            green = ~first_slots(seeds, tokens, self.vocabulary_size, red_size)
        return green.astype(np.int64)


@dataclass(frozen=True, kw_only=True)
class UniformRow(Seeded):
    """A Gumbel scheme: u = rand(V)[token] of the seed, 24 bits, scored on our lattice."""

    @cached_property
    def null_law(self) -> NullLaw:
        """Law of the lattice score of 2**24 equally likely values."""
        return exponential_law(None, 1 << 24)

    def mantissas(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        """u * 2**24 of each pair: the original's float32 uniform is exactly this over 2**24."""
        self._check(contexts, tokens)
        return random_mantissas(self._seeds(contexts, tokens), tokens)

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """-ln(1 - u) in whole steps of 1/4. Cost: 1 ns an output up to the highest token."""
        return exponential_score(self.mantissas(contexts, tokens), 1 << 24)

    def original_scores(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.float64]:
        """-ln(1 - u)."""
        return -np.log1p(-self.mantissas(contexts, tokens) / (1 << 24))


def draw_key(rng: np.random.Generator, true_key: int, low: int = 1) -> int:
    """A 32-bit key whose products with token ids have the true key's low 32 bits almost never.

    With k' - k divisible by 2**j, tokens divisible by 2**(32 - j) get the same seed under both.
    """
    while True:
        key = int(rng.integers(low, 1 << 32))
        if (key - true_key) % (1 << _SHARED_BITS) and key % (1 << _SHARED_BITS):
            return key
