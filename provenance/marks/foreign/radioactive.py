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

from provenance.errors import UsageError
from provenance.marks.foreign import seeding
from provenance.marks.foreign.configuration import (
    check_fields,
    read_key,
    read_share,
    read_vocabulary_size,
    whole_number,
)
from provenance.marks.foreign.randperm import GreenList, RollingSeeded, UniformRow
from provenance.marks.foreign.scheme import Secret

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
class RadioactiveGreenList(RollingSeeded, GreenList):
    """Their "maryland": key, vocabulary size, gamma, window."""

    name: ClassVar[str] = "radioactive-greenlist"
    key_field: ClassVar[str] = "seed"

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads the arguments of `MarylandGenerator`; gamma and ngram must be among them."""
        fields = _read(config, secret, vocabulary_size, cls.name, ("gamma", "ngram"))
        return cls(**fields, gamma=read_share(config, "gamma", None))


@dataclass(frozen=True, kw_only=True)
class RadioactiveGumbel(RollingSeeded, UniformRow):
    """Their "openai": key, vocabulary size, window."""

    name: ClassVar[str] = "radioactive-gumbel"
    key_field: ClassVar[str] = "seed"

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads the arguments of `OpenaiGenerator`; ngram must be among them."""
        return cls(**_read(config, secret, vocabulary_size, cls.name, ("ngram",)))


def _read(
    config: Mapping[str, Any],
    secret: Secret,
    vocabulary_size: int | None,
    scheme: str,
    needed: tuple[str, ...],
) -> dict[str, Any]:
    """The generator always lives on the CPU here, so text made beside a GPU is fine.

    Their defaults differ between the scripts, so nothing that fixes a coin is guessed.
    """
    check_fields(config, _FIELDS, scheme)
    if missing := [name for name in needed if config.get(name) is None]:
        raise UsageError(
            f"a {scheme} configuration must hold {' and '.join(needed)}; {' and '.join(missing)} "
            f"{'is' if len(missing) == 1 else 'are'} missing. Their scripts have no common "
            "default: give the values that the text was marked with."
        )
    return read_rolling_seed(config, secret, vocabulary_size)


def read_rolling_seed(
    config: Mapping[str, Any], secret: Secret, vocabulary_size: int | None
) -> dict[str, int]:
    """Fields of a `RollingSeeded` scheme; refuses other seedings than `hash`."""
    seeding.refuse_global_table(config)
    size = read_vocabulary_size(config, vocabulary_size)
    width = whole_number(config.get("ngram"), "ngram", 1, 64)
    salt = whole_number(config.get("salt_key", 35317), "salt_key", 1, (1 << 32) - 1)
    return {
        "key": seeding.canonical_key(read_key(config, "seed", secret, 64), salt, width, size),
        "vocabulary_size": size,
        "ngram": width,
        "salt_key": salt,
    }
