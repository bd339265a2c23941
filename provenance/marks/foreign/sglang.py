"""SGLang's text watermark: Gumbel sampling under MurmurHash3 of 32 bits, one key or two.

Read from its documentation and its detector (docs.sglang.io, text watermarking; pull request
37577). With M = MurmurHash3_x86_32 of 32-bit words, seed 0:

    C = M(context),   H = M(key low, key high, C, token),   u = (H + 1/2) / 2**32

The context is the last `context_window` tokens, the prompt's among them, so the first tokens of
a response cannot be scored from the response alone. With a second key, the context belongs
to A if M(A low, A high, B low, B high, C) < int(p 2**32), else to B.

Unit: (C, token). Law: for a key uniform over 64 bits H is exactly uniform. After the key the hash
has 32 bits of state, so some 2**32 different marks exist; it is not cryptographic.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Final, Self

import numpy as np
from numba import njit
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.marks.foreign.configuration import (
    check_fields,
    keys_differ,
    no_key,
    read_secret_pair,
    whole_number,
)
from provenance.marks.foreign.scheme import Common, Secret, Tokens, check_pairs, pack_units
from provenance.marks.foreign.uniforms import exponential_law, exponential_score
from provenance.stats.laws import NullLaw
from provenance.storage.kernels import kernel

_VALUES: Final = 1 << 32
_FIELDS: Final = ("key", "key_b", "context_window", "mixing_probability")
_HEX: Final = frozenset("0123456789abcdefABCDEF")


@njit(inline="always")
def _absorb(state, word):  # type: ignore[no-untyped-def]
    """One word into the state; both hold 32 bits in uint64, as numba widens them anyway."""
    mask = np.uint64(0xFFFFFFFF)
    value = (word * np.uint64(0xCC9E2D51)) & mask
    value = ((value << np.uint64(15)) | (value >> np.uint64(17))) & mask
    state ^= (value * np.uint64(0x1B873593)) & mask
    state = ((state << np.uint64(13)) | (state >> np.uint64(19))) & mask
    return (state * np.uint64(5) + np.uint64(0xE6546B64)) & mask


@njit(inline="always")
def _finish(state, words):  # type: ignore[no-untyped-def]
    mask = np.uint64(0xFFFFFFFF)
    state ^= np.uint64(4 * words)
    state ^= state >> np.uint64(16)
    state = (state * np.uint64(0x85EBCA6B)) & mask
    state ^= state >> np.uint64(13)
    state = (state * np.uint64(0xC2B2AE35)) & mask
    return state ^ (state >> np.uint64(16))


@njit(inline="always")
def _absorb_key(state, key):  # type: ignore[no-untyped-def]
    state = _absorb(state, key & np.uint64(0xFFFFFFFF))
    return _absorb(state, key >> np.uint64(32))


@kernel(nogil=True)
def _hash_contexts(contexts, out):  # type: ignore[no-untyped-def]
    for i in range(contexts.shape[0]):
        state = np.uint64(0)
        for j in range(contexts.shape[1]):
            state = _absorb(state, np.uint64(contexts[i, j]))
        out[i] = np.uint32(_finish(state, contexts.shape[1]))


@kernel(nogil=True)
def _hash_pairs(keys, threshold, hashes, tokens, out):  # type: ignore[no-untyped-def]
    """keys: uint64 [1] or [2]; threshold: coins below it belong to the first key."""
    for i in range(tokens.shape[0]):
        context = np.uint64(hashes[i])
        key = keys[0]
        if keys.shape[0] == 2:
            coin = _absorb_key(_absorb_key(np.uint64(0), keys[0]), keys[1])
            if _finish(_absorb(coin, context), 5) >= threshold:
                key = keys[1]
        state = _absorb(_absorb_key(np.uint64(0), key), context)
        out[i] = np.uint32(_finish(_absorb(state, np.uint64(tokens[i])), 4))


@dataclass(frozen=True, kw_only=True)
class SglangGumbel(Common):
    """keys: A, or A and B, 64 bits; mixing_probability: share of contexts that follow A."""

    keys: tuple[int, ...] = field(repr=False)
    context_window: int
    mixing_probability: float = 0.5
    name: ClassVar[str] = "sglang-gumbel"
    key_field: ClassVar[str] = "key"
    more_key_fields: ClassVar[tuple[str, ...]] = ("key_b",)
    caveat: ClassVar[str] = "a 32-bit hash: some 2**32 different marks exist"

    def __post_init__(self) -> None:
        if not 1 <= len(self.keys) <= 2:
            raise UsageError("the keys of this scheme must be one integer, or two.")

    @property
    def width(self) -> int:
        return self.context_window

    @property
    def parameters(self) -> Mapping[str, Any]:
        mixing = {"mixing_probability": self.mixing_probability} if len(self.keys) == 2 else {}
        return {"context_window": self.context_window, "keys": len(self.keys), **mixing}

    @cached_property
    def null_law(self) -> NullLaw:
        """Law of the lattice score of 2**32 equally likely values."""
        return exponential_law(None, _VALUES)

    def _hashes(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        check_pairs(contexts, tokens, self.width, None)
        out = np.empty(tokens.shape, dtype=np.uint32)
        _hash_contexts(np.ascontiguousarray(contexts), out)
        return out

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """(C, token), packed exactly."""
        return pack_units(self._hashes(contexts, tokens), tokens)

    def words(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        """H of every pair. About 10 ns a pair."""
        out = np.empty(tokens.shape, dtype=np.uint32)
        keys = np.array([key % (1 << 64) for key in self.keys], dtype=np.uint64)
        threshold = np.uint64(int(self.mixing_probability * _VALUES))
        _hash_pairs(keys, threshold, self._hashes(contexts, tokens), tokens, out)
        return out

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """-ln(1 - u) in whole steps of 1/4."""
        return exponential_score(self.words(contexts, tokens), _VALUES)

    def original_scores(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.float64]:
        """-ln(1 - u)."""
        return -np.log1p(-(self.words(contexts, tokens) + 0.5) / _VALUES)

    def random_key(self, rng: np.random.Generator) -> tuple[int, ...]:
        """Uniform over 64 bits, as many as there are."""
        size = len(self.keys)
        return tuple(rng.integers(0, 1 << 64, size, dtype=np.uint64).tolist())

    def with_key(self, key: int | Sequence[int]) -> Self:
        return replace(self, keys=(key,) if isinstance(key, int) else tuple(key))

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads the object of `--watermark-config`: hex keys and context_window.

        The server's `--watermark-mixing-probability` is added as mixing_probability. The secret is
        A, or [A, B], as whole numbers.
        """
        del vocabulary_size
        check_fields(config, _FIELDS, cls.name)
        probability = config.get("mixing_probability", 0.5)
        if isinstance(probability, bool) or not isinstance(probability, (int, float)):
            probability = -1.0
        if not 0 < probability < 1:
            raise UsageError(
                "mixing_probability must be in (0, 1); it is not. It is 0.5 by default."
            )
        return cls(
            keys=_read_keys(config, secret),
            context_window=whole_number(config.get("context_window"), "context_window", 1, 64),
            mixing_probability=float(probability),
        )


def _read_keys(config: Mapping[str, Any], secret: Secret) -> tuple[int, ...]:
    inside = [_parse_hex(config[name], name) for name in ("key", "key_b") if config.get(name)]
    if config.get("key_b") and not config.get("key") and secret is None:
        raise no_key("key")
    if secret is None:
        if not inside:
            raise no_key("key")
        return tuple(inside)
    given = read_secret_pair(secret, "key")
    if inside and inside != given[: len(inside)]:
        raise keys_differ("key")
    return tuple(given)


def _parse_hex(value: object, name: str) -> int:
    digits = value[2:] if isinstance(value, str) and value[:2].lower() == "0x" else value
    if not isinstance(digits, str) or not 1 <= len(digits) <= 16 or not _HEX.issuperset(digits):
        raise UsageError(
            f"{name} must be a string of 1 to 16 hexadecimal digits, as SGLang has it; it is not. "
            "Check the key."
        )
    return int(digits, 16)
