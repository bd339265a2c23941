"""SBW, stateless Bernoulli watermarking (Ceppi and Sanchez, arXiv 2609.03844), as proposed to vLLM.

Read from vLLM pull request 56859 (d6d2f2c), which was open when this was written: no released vLLM
marks with it, and a later version may differ. A token is green if the low 31 bits of a Philox word
are below int(gamma (2**31 - 1)); the word is lane token & 3 of Philox 4x32-10 at counter
(token >> 2, 0, 0, 0) under the 64-bit seed of the window as key. With h Jenkins' 32-bit hash of
id + 1, signed, and every product in signed 64 bits:

    selfhash   seed = min(key h(w_i) h(token) for i >= 2, key h(token)**2); the oldest token of the
               window plays no part
    lefthash   seed = key * sum of the window: of ids, not of hashes, as the sampler of that version
               has it; its detector hashes them and so misses its own text

Ids missing before the first token of a response are -1. Unit: (seed, token).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, ClassVar, Final, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from provenance.coins.contexts import hash_columns
from provenance.errors import UsageError
from provenance.marks.foreign.configuration import (
    check_fields,
    read_key,
    read_share,
    whole_number,
)
from provenance.marks.foreign.scheme import Common, Secret, Tokens, check_pairs
from provenance.marks.foreign.vllm_native import VLLM_FIELDS, check_algorithm, run_philox
from provenance.stats.laws import NullLaw
from provenance.storage.kernels import kernel

_HALF: Final = 1 << 31
_WIDTHS: Final = {"selfhash": 4, "lefthash": 1}
_MISSING: Final = 0xFFFFFFFF


@njit(inline="always")
def _jenkins(token):  # type: ignore[no-untyped-def]
    """Signed 32-bit hash of id + 1, widened to 64 bits."""
    i = np.int32(np.int64(np.int32(token)) + np.int64(1))
    i = np.int32(np.int64(i) - np.int64(np.int32(np.int64(i) << np.int64(6))))
    i = np.int32(i ^ np.int32(i >> np.int32(17)))
    i = np.int32(np.int64(i) - np.int64(np.int32(np.int64(i) << np.int64(9))))
    i = np.int32(i ^ np.int32(np.int64(i) << np.int64(4)))
    i = np.int32(np.int64(i) - np.int64(np.int32(np.int64(i) << np.int64(3))))
    i = np.int32(i ^ np.int32(np.int64(i) << np.int64(10)))
    i = np.int32(i ^ np.int32(i >> np.int32(15)))
    return np.int64(i)


@kernel(nogil=True)
def _self_seeds(key, contexts, tokens, out):  # type: ignore[no-untyped-def]
    for i in range(tokens.shape[0]):
        anchor = _jenkins(tokens[i])
        scaled = np.int64(key * anchor)
        seed = np.int64(scaled * anchor)
        for j in range(contexts.shape[1]):
            seed = min(seed, np.int64(np.int64(key * _jenkins(contexts[i, j])) * anchor))
        out[i] = seed


@kernel(nogil=True)
def _words(seeds, tokens, out):  # type: ignore[no-untyped-def]
    """Word of every (seed, token), 16 at a time as `run_philox` wants them."""
    mask = np.uint64(0xFFFFFFFF)
    last = tokens.shape[0] - 1
    state = np.empty((4, 16), np.uint64)
    k0, k1 = np.empty(16, np.uint64), np.empty(16, np.uint64)
    for begin in range(0, tokens.shape[0], 16):
        for lane in range(16):
            i = min(begin + lane, last)
            state[0, lane] = np.uint64(tokens[i]) >> np.uint64(2)
            state[1, lane], state[2, lane] = np.uint64(0), np.uint64(0)
            state[3, lane] = np.uint64(0)
            k0[lane] = seeds[i] & mask
            k1[lane] = seeds[i] >> np.uint64(32)
        run_philox(state, k0, k1)
        for lane in range(min(16, last + 1 - begin)):
            word = state[np.int64(tokens[begin + lane] & np.uint32(3)), lane]
            out[begin + lane] = np.uint32(word)


@dataclass(frozen=True, kw_only=True)
class VllmSbw(Common):
    """key: below 2**63; scheme: selfhash or lefthash; context_width: tokens of the window."""

    key: int = field(repr=False)
    scheme: str
    context_width: int
    gamma: float = 0.5
    name: ClassVar[str] = "vllm-sbw"
    key_field: ClassVar[str] = "key"
    padding: ClassVar[int | None] = _MISSING

    def __post_init__(self) -> None:
        if not 0 < self.threshold < _HALF:
            raise UsageError(f"sbw_gamma must be in (0, 1); got {self.gamma}. Its default is 0.5.")

    @property
    def self_salted(self) -> bool:
        return self.scheme == "selfhash"

    @property
    def width(self) -> int:
        """context_width; with selfhash one less, since the oldest token plays no part."""
        return self.context_width - self.self_salted

    @property
    def shares_coins(self) -> bool:
        """Minima and sums are those of many windows."""
        return self.self_salted or self.context_width > 1

    @property
    def caveat(self) -> str:
        return "read from a proposal to vLLM, not from a release: versions may differ"

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {
            "sbw_scheme": self.scheme,
            "context_width": self.context_width,
            "sbw_gamma": self.gamma,
        }

    @property
    def threshold(self) -> int:
        """int(gamma (2**31 - 1)), in float64 as there."""
        return int(self.gamma * (_HALF - 1))

    @cached_property
    def null_law(self) -> NullLaw:
        """Bernoulli(threshold / 2**31)."""
        return NullLaw.bernoulli(self.threshold, _HALF)

    def _seeds(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint64]:
        check_pairs(contexts, tokens, self.width, None)
        key = np.int64(self.key)
        if self.self_salted:
            seeds = np.empty(tokens.shape, dtype=np.int64)
            _self_seeds(key, np.ascontiguousarray(contexts), tokens, seeds)
            return seeds.view(np.uint64)
        total = contexts.view(np.int32).sum(axis=1, dtype=np.int64)
        product: NDArray[np.uint64] = total.view(np.uint64) * np.uint64(self.key)
        return product

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """(seed, token), hashed to 64 bits."""
        seeds = self._seeds(contexts, tokens)
        low, high = seeds.astype(np.uint32), (seeds >> np.uint64(32)).astype(np.uint32)
        return hash_columns(low, high, tokens).view(np.int64)

    def usable(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.bool_]:
        """False where the seed is 0: the same coin under every key that gives it."""
        return np.not_equal(self._seeds(contexts, tokens), 0)

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """1 for a green token, else 0. About 20 ns a pair."""
        seeds = self._seeds(contexts, tokens)
        words = np.empty(tokens.shape, dtype=np.uint32)
        _words(seeds, tokens, words)
        return ((words & np.uint32(_HALF - 1)) < self.threshold).astype(np.int64)

    def random_key(self, rng: np.random.Generator) -> int:
        """Uniform over odd 63-bit numbers: a factor of two would take bits from every seed."""
        return int(rng.integers(0, 1 << 62)) * 2 + 1

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads vLLM's `watermark_config` with algorithm sbw. Any device: same integers."""
        del vocabulary_size
        check_algorithm(config, "sbw")
        check_fields(config, VLLM_FIELDS, cls.name)
        scheme = config.get("sbw_scheme", "selfhash")
        if scheme not in _WIDTHS:
            raise UsageError(f"sbw_scheme must be selfhash or lefthash; got {scheme}.")
        width = config.get("context_width")
        return cls(
            key=read_key(config, "key", secret, 63),
            scheme=scheme,
            context_width=whole_number(
                _WIDTHS[scheme] if width is None else width, "context_width", 1, 64
            ),
            gamma=read_share(config, "sbw_gamma", 0.5),
        )
