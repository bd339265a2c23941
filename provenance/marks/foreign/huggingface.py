"""Hugging Face `WatermarkLogitsProcessor`: left-hash and self-hash green lists.

The scheme of Kirchenbauer et al. (arXiv 2301.10226, 2306.04634) as transformers serves it under
`WatermarkingConfig`. Left-hash seeds with the last token only, whatever `context_width` says;
self-hash with the smallest of the anchored pair hashes of the last `context_width` tokens, the
candidate among them. Equal to transformers 5.23 and 5.24 coin by coin.

A valid test differs from `WatermarkDetector` in what it counts: every (seed, token) once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.marks.foreign import seeding
from provenance.marks.foreign.configuration import (
    check_fields,
    read_key,
    read_share,
    read_vocabulary_size,
    refuse_cuda,
    whole_number,
)
from provenance.marks.foreign.randperm import GreenList
from provenance.marks.foreign.scheme import Secret, Tokens

_FIELDS: Final = ("greenlist_ratio", "bias", "hashing_key", "seeding_scheme", "context_width")


@dataclass(frozen=True, kw_only=True)
class LeftHash(GreenList):
    """seed = key * last token mod 2**64 - 1. Token 0 has the same list under every key."""

    name: ClassVar[str] = "hf-lefthash"
    key_field: ClassVar[str] = "hashing_key"

    @property
    def width(self) -> int:
        """1, also where the configuration says more."""
        return 1

    @property
    def caveat(self) -> str:
        """What every green list seeded by one token suffers from."""
        few = "one token seeds the list: frequent words have the same list in all text"
        return f"{few}; {seeding.SAME_KEYS}"

    def usable(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.bool_]:
        """False after token 0: seed 0 under every key."""
        self._check(contexts, tokens)
        return np.not_equal(contexts[:, 0], 0)

    def _seeds(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        del tokens
        return seeding.product(self.key, contexts[:, 0].astype(np.uint64))

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads transformers' `WatermarkingConfig` JSON with seeding_scheme lefthash."""
        _check_config(config, "lefthash")
        size = read_vocabulary_size(config, vocabulary_size)
        key = read_key(config, "hashing_key", secret, 64)
        return cls(
            key=seeding.canonical_factor(key, size - 1),
            vocabulary_size=size,
            gamma=read_share(config, "greenlist_ratio", 0.25),
        )


@dataclass(frozen=True, kw_only=True)
class SelfHash(GreenList):
    """seed = min over the window of key * table[w] * table[candidate], signed 64-bit.

    The coin depends only on the token that gives the minimum and on the candidate: most windows of
    the same candidate share it, which is why the unit is the seed and not the window.
    """

    context_width: int
    name: ClassVar[str] = "hf-selfhash"
    key_field: ClassVar[str] = "hashing_key"
    self_salted: bool = field(default=True, init=False)

    @property
    def width(self) -> int:
        """context_width - 1: the window includes the token itself."""
        return self.context_width - 1

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {**super().parameters, "context_width": self.context_width}

    def _seeds(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        windows = np.concatenate((contexts, tokens[:, np.newaxis]), axis=1)
        return seeding.anchored_minhash(self.key, self.key, windows)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads transformers' `WatermarkingConfig` JSON with seeding_scheme selfhash."""
        _check_config(config, "selfhash")
        return cls(
            key=read_key(config, "hashing_key", secret, 63),
            vocabulary_size=read_vocabulary_size(config, vocabulary_size),
            gamma=read_share(config, "greenlist_ratio", 0.25),
            context_width=whole_number(config.get("context_width", 1), "context_width", 1, 64),
        )


def _check_config(config: Mapping[str, Any], seeding_scheme: str) -> None:
    check_fields(config, _FIELDS, f"hf-{seeding_scheme}")
    refuse_cuda(config, f"hf-{seeding_scheme}")
    found = config.get("seeding_scheme", "lefthash")
    if found != seeding_scheme:
        raise UsageError(
            f"seeding_scheme of hf-{seeding_scheme} must be {seeding_scheme}; got {found}. "
            + (
                f"Use the scheme hf-{found}."
                if found in ("lefthash", "selfhash")
                else "transformers has lefthash and selfhash; lm-watermarking has others."
            )
        )
