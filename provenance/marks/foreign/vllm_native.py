"""vLLM's native watermark: Gumbel sampling under Philox 4x32-10, one key or two.

The pseudo-random function is vLLM's `philox4x32-10-v1` on the generator of Salmon et al. (SC 2011):
a chain over blocks of four context tokens, then one more call whose counter holds token >> 2 and
whose lane token & 3 is the coin w; u = ((w >> 8) + 1) / (2**24 + 1). Context = the previous tokens
of the response, 0xFFFFFFFF where there is none; the prompt is never seen. It is not cryptographic,
but no two tuples of one width share a coin by construction: the unit is the tuple.

With two keys a token follows key B with probability alpha, else key A (both derived from the
configured key); the score adds both coins' in the whole ratio nearest to (1 - alpha) : alpha.
vLLM 0.30 to 0.33 offer `gumbel` and `dual_key_gumbel` under `watermark_config`; `alpha` was .2 by
default in 0.30 and is .1 since 0.32, so it should be given. For SBW see `sbw.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from hashlib import sha256
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.marks.foreign.configuration import check_fields, read_key, whole_number
from provenance.marks.foreign.scheme import Common, Secret, Tokens, check_pairs, hash_units
from provenance.marks.foreign.uniforms import exponential_law, exponential_score
from provenance.marks.foreign.weighted import add_laws, whole_weights
from provenance.stats.laws import NullLaw
from provenance.storage.kernels import kernel

VLLM_FIELDS: Final = (
    "key",
    "algorithm",
    "alpha",
    "context_width",
    "deduplicate_contexts",
    "deduplicate_contexts_max_history",
    "prf",
    "allow_target_only_watermarking",
    "sbw_scheme",
    "sbw_gamma",
    "sbw_delta",
)
"""Those that decide nothing for an algorithm are ignored, as vLLM does."""
_VALUES: Final = 1 << 24
_MISSING: Final = 0xFFFFFFFF
_READ_BY: Final = {
    "gumbel": "vllm-gumbel",
    "dual_key_gumbel": "vllm-dual-key-gumbel",
    "sbw": "vllm-sbw",
}


@kernel(nogil=True)
def run_philox(state, k0, k1):  # type: ignore[no-untyped-def]
    """Ten rounds on 16 blocks at a time, so that the compiler uses vector instructions.

    state [4, 16], k0 and k1 [16] hold 32-bit words in uint64, as numba widens them anyway.
    """
    mask = np.uint64(0xFFFFFFFF)
    shift = np.uint64(32)
    for _ in range(10):
        for lane in range(16):
            p0 = np.uint64(0xD2511F53) * (state[0, lane] & mask)
            p1 = np.uint64(0xCD9E8D57) * (state[2, lane] & mask)
            state[0, lane] = (p1 >> shift) ^ state[1, lane] ^ k0[lane]
            state[2, lane] = (p0 >> shift) ^ state[3, lane] ^ k1[lane]
            state[1, lane] = p1 & mask
            state[3, lane] = p0 & mask
            k0[lane] = (k0[lane] + np.uint64(0x9E3779B9)) & mask
            k1[lane] = (k1[lane] + np.uint64(0xBB67AE85)) & mask


@kernel(nogil=True)
def _fill(key, contexts, tokens, out):  # type: ignore[no-untyped-def]
    mask = np.uint64(0xFFFFFFFF)
    low, high = key & mask, key >> np.uint64(32)
    width, last = contexts.shape[1], tokens.shape[0] - 1
    state = np.empty((4, 16), np.uint64)
    k0, k1 = np.empty(16, np.uint64), np.empty(16, np.uint64)
    for begin in range(0, tokens.shape[0], 16):
        state[0], state[1] = np.uint64(0x574D4358), np.uint64(width)
        state[2], state[3] = np.uint64(0), np.uint64(0)
        for offset in range(0, width, 4):
            k0[:], k1[:] = low ^ np.uint64(offset), high
            for lane in range(16):
                i = min(begin + lane, last)
                for j in range(4):
                    if offset + j < width:
                        state[j, lane] ^= np.uint64(contexts[i, offset + j])
                    else:
                        state[j, lane] ^= mask - np.uint64(j)
            run_philox(state, k0, k1)
        for lane in range(16):
            k0[lane] = low ^ state[3, lane]
            k1[lane] = high ^ np.uint64(0x574D544B)
            for j in range(3, 0, -1):
                state[j, lane] = state[j - 1, lane]
            state[0, lane] = np.uint64(tokens[min(begin + lane, last)]) >> np.uint64(2)
        run_philox(state, k0, k1)
        for lane in range(min(16, last + 1 - begin)):
            word = state[np.int64(tokens[begin + lane] & np.uint32(3)), lane]
            out[begin + lane] = np.uint32(word)


def philox_words(key: int, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
    """32-bit word of every pair under a 64-bit key. About 17 ns a pair for up to 4 tokens."""
    out = np.empty(tokens.shape, dtype=np.uint32)
    _fill(np.uint64(key), np.ascontiguousarray(contexts), tokens, out)
    return out


def _as_uniforms(values: NDArray[np.uint32]) -> NDArray[np.float32]:
    return ((values + 1.0) / (_VALUES + 1)).astype(np.float32)


@dataclass(frozen=True, kw_only=True)
class VllmGumbel(Common):
    """key: 64 bits; context_width: tokens of the response before the scored one."""

    key: int = field(repr=False)
    context_width: int = 4
    name: ClassVar[str] = "vllm-gumbel"
    key_field: ClassVar[str] = "key"
    padding: ClassVar[int | None] = _MISSING

    @property
    def width(self) -> int:
        return self.context_width

    @property
    def caveat(self) -> str:
        """Equal prompts give equal responses."""
        return "the response is a function of key and prompt: repeated prompts repeat it"

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"context_width": self.context_width}

    @cached_property
    def null_law(self) -> NullLaw:
        """Law of the lattice score of 2**24 equally likely values."""
        return exponential_law(None, _VALUES)

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """The tuple, hashed to 64 bits."""
        check_pairs(contexts, tokens, self.width, None)
        return hash_units(contexts, tokens)

    def uniforms(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.float32]:
        """u as vLLM has it, float32 [n]."""
        return _as_uniforms(self._values(contexts, tokens))

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """-ln(1 - u) in whole steps of 1/4."""
        return exponential_score(self._values(contexts, tokens), _VALUES)

    def original_scores(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.float64]:
        """-ln(1 - u) of vLLM's own u."""
        return self.score_both(contexts, tokens)[1]

    def score_both(
        self, contexts: Tokens, tokens: Tokens
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`score` and `original_scores` of the same words, which are what costs."""
        values = self._values(contexts, tokens)
        original = -np.log1p(-_as_uniforms(values).astype(np.float64))
        return exponential_score(values, _VALUES), original

    def _values(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        """The upper 24 bits of each pair's word: uint32 [n]."""
        check_pairs(contexts, tokens, self.width, None)
        return philox_words(self.key, contexts, tokens) >> np.uint32(8)

    def random_key(self, rng: np.random.Generator) -> int:
        return int(rng.integers(0, 1 << 64, dtype=np.uint64))

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads vLLM's `watermark_config` with algorithm gumbel. Any device: same integers."""
        del vocabulary_size
        return cls(**_read(config, secret, "gumbel"))


@dataclass(frozen=True, kw_only=True)
class DualKeyGumbel(VllmGumbel):
    """alpha: share of tokens that follow key B."""

    alpha: float = 0.1
    name: ClassVar[str] = "vllm-dual-key-gumbel"

    @property
    def caveat(self) -> str:
        """Nothing: key A or B is chosen afresh for every token."""
        return ""

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {"context_width": self.context_width, "alpha": self.alpha}

    @cached_property
    def derived(self) -> tuple[VllmGumbel, VllmGumbel]:
        """The schemes of key A and key B."""
        secret = self.key.to_bytes(8, "big")
        a, b = (
            int.from_bytes(sha256(domain + secret).digest()[:8], "big")
            for domain in (b"key_a", b"key_b")
        )
        one = VllmGumbel(key=a, context_width=self.context_width)
        return one, one.with_key(b)

    @cached_property
    def weights(self) -> tuple[int, int]:
        """Whole weights of the coins of A and B, in the ratio nearest to (1 - alpha) : alpha."""
        return whole_weights(self.alpha)

    @cached_property
    def null_law(self) -> NullLaw:
        """Law of the weighted sum of two independent lattice scores."""
        return add_laws(exponential_law(None, _VALUES), self.weights)

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """Weighted sum of both coins' scores."""
        return self.score_both(contexts, tokens)[0]

    def score_both(
        self, contexts: Tokens, tokens: Tokens
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """`score`, and as the original adds up: (1 - alpha) * score of A + alpha * score of B."""
        first, second = (part.score_both(contexts, tokens) for part in self.derived)
        return (
            first[0] * self.weights[0] + second[0] * self.weights[1],
            (1 - self.alpha) * first[1] + self.alpha * second[1],
        )

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads vLLM's `watermark_config` with algorithm dual_key_gumbel."""
        del vocabulary_size
        alpha = config.get("alpha", 0.1)
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not 0 <= alpha <= 1:
            raise UsageError(f"alpha must be in [0, 1]; got {alpha!r}. vLLM's default is 0.1.")
        return cls(**_read(config, secret, "dual_key_gumbel"), alpha=float(alpha))


def check_algorithm(config: Mapping[str, Any], algorithm: str) -> None:
    """UsageError unless the configuration is of this algorithm; says which scheme reads another."""
    found = config.get("algorithm", "gumbel")
    if found != algorithm:
        reader = _READ_BY.get(found) if isinstance(found, str) else None
        raise UsageError(
            f"algorithm must be {algorithm} for this scheme; got {found}. "
            + (f"Use the scheme {reader}." if reader else f"Read are {', '.join(_READ_BY)}.")
        )
    if config.get("prf", "philox") != "philox":
        raise UsageError(f"prf must be philox; got {config['prf']}. No other is known.")


def _read(config: Mapping[str, Any], secret: Secret, algorithm: str) -> dict[str, int]:
    check_algorithm(config, algorithm)
    check_fields(config, VLLM_FIELDS, "vllm")
    width = config.get("context_width")
    return {
        "key": read_key(config, "key", secret, 64),
        "context_width": whole_number(4 if width is None else width, "context_width", 1, 64),
    }
