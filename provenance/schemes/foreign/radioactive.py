"""The marks of "Watermarking makes language models radioactive" (Sander et al., arXiv 2402.14904).

Seeding `hash`: s = key, then s = (s * salt + t) mod 2**64 - 1 for every token of the window, oldest
first. "maryland" is a green list of the seed, "openai" a Gumbel row of it. Only the low 32 bits of
the last s reach the generator. The other seedings (`additive`, `skip`, `min`) hash with a table
that is drawn from the process's global generator and cannot be reproduced by anyone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from provenance.errors import ConfigurationMismatchError
from provenance.schemes.foreign import seeding
from provenance.schemes.foreign.base import Secret, Tokens
from provenance.schemes.foreign.configuration import (
    check_fields,
    read_key,
    read_share,
    read_vocabulary_size,
    whole_number,
)
from provenance.schemes.foreign.randperm import GreenList, Seeded, UniformRow

__all__ = ["RadioactiveGreenList", "RadioactiveGumbel"]

_FIELDS: Final = (
    "method",
    "ngram",
    "seed",
    "seeding",
    "salt_key",
    "gamma",
    "delta",
    "scoring_method",
)


@dataclass(frozen=True, kw_only=True)
class _Hashed(Seeded):
    """ngram: tokens of the window; salt_key: the multiplier, public."""

    ngram: int = 1
    salt_key: int = 35317

    @property
    def width(self) -> int:
        """ngram."""
        return self.ngram

    @property
    def parameters(self) -> Mapping[str, Any]:
        """Of the row or list, window and salt."""
        return {**super().parameters, "ngram": self.ngram, "salt_key": self.salt_key}  # type: ignore[safe-super]

    def _seeds(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        del tokens
        return seeding.rolling(self.key, self.salt_key, contexts)


@dataclass(frozen=True, kw_only=True)
class RadioactiveGreenList(_Hashed, GreenList):
    """Their "maryland": key, vocabulary size, gamma, window."""

    name: ClassVar[str] = "radioactive-greenlist"
    key_field: ClassVar[str] = "seed"

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads the arguments of `MarylandGenerator`; gamma defaults to their 0.5."""
        fields = _read(config, secret, vocabulary_size, cls.name)
        return cls(**fields, gamma=read_share(config, "gamma", 0.5))


@dataclass(frozen=True, kw_only=True)
class RadioactiveGumbel(_Hashed, UniformRow):
    """Their "openai": key, vocabulary size, window."""

    name: ClassVar[str] = "radioactive-gumbel"
    key_field: ClassVar[str] = "seed"

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads the arguments of `OpenaiGenerator`."""
        return cls(**_read(config, secret, vocabulary_size, cls.name))


def _read(
    config: Mapping[str, Any], secret: Secret, vocabulary_size: int | None, scheme: str
) -> dict[str, Any]:
    """The generator always lives on the CPU here, so text made beside a GPU is fine."""
    check_fields(config, _FIELDS, scheme)
    if (found := config.get("seeding", "hash")) != "hash":
        raise ConfigurationMismatchError(
            f"seeding must be hash; got {found}. Its table is drawn from the global generator of "
            "the process that made the text, so its coins cannot be recomputed."
        )
    salt = config.get("salt_key", 35317)
    return {
        "key": read_key(config, "seed", secret, 64),
        "vocabulary_size": read_vocabulary_size(config, vocabulary_size),
        "ngram": whole_number(config.get("ngram", 1), "ngram", 1, 64),
        "salt_key": whole_number(salt, "salt_key", 1, (1 << 32) - 1),
    }
