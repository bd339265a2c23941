"""Marks that share one of MarkLLM's seedings, and two of its Gumbel schemes.

`markllm-ewd` : EWD, SWEET and IE (and MorphMark with `ewd`) seed with key * (product of the last
    tokens mod V), as EXP does, and take a green list of it. They differ in where they *mark* (by
    the entropy of the model), which a test of the text alone does not see: positions left unmarked
    only dilute. With one token of prefix the lists are those of lm-watermarking `simple_1`.
`markllm-pf` : permute-and-flip. The seed is a rolling hash of the window as in `radioactive.py`;
    the token with the largest log p - ln r wins, so a marked token has a *small* r; score -ln r.
`markllm-exp-gumbel` : one table of uniforms, rand(prefix_length V, V) of the seed, row = sum of the
    window. Only the entries that are looked at are made here.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from provenance.marks.foreign import seeding
from provenance.marks.foreign.configuration import (
    check_fields,
    read_key,
    read_share,
    read_vocabulary_size,
    refuse_cuda,
    whole_number,
)
from provenance.marks.foreign.markllm import read_product_seed
from provenance.marks.foreign.radioactive import read_rolling_seed
from provenance.marks.foreign.randperm import (
    GreenList,
    Prefixed,
    ProductSeeded,
    RollingSeeded,
    UniformRow,
)
from provenance.marks.foreign.scheme import Secret, Tokens, pack_units
from provenance.marks.foreign.torch_cpu import random_mantissas
from provenance.marks.foreign.uniforms import exponential_score

_EWD_FIELDS: Final = (
    "algorithm_name",
    "gamma",
    "delta",
    "hash_key",
    "prefix_length",
    "z_threshold",
)
_MORE_FIELDS: Final[Mapping[str, tuple[str, ...]]] = {
    "EWD": (),
    "SWEET": ("entropy_threshold",),
    "IE": (
        "embedding_model_path",
        "entropy_tagger_path",
        "entropy_threshold",
        "start_entropy",
        "interval",
        "end_entropy",
        "direction",
    ),
    "MorphMark": (
        "type",
        "k_linear",
        "k_exp",
        "k_log",
        "p_0",
        "ewd",
        "delta_ewd",
        "f_scheme",
        "window_scheme",
    ),
}
_PF_FIELDS: Final = (
    "algorithm_name",
    "ngram",
    "seed",
    "seeding",
    "salt_key",
    "payload",
    "max_seq_len",
)
_GUMBEL_FIELDS: Final = (
    "algorithm_name",
    "prefix_length",
    "eps",
    "threshold",
    "sequence_length",
    "temperature",
    "seed",
)
_VALUES: Final = 1 << 24


@dataclass(frozen=True, kw_only=True)
class MarkLlmEwd(ProductSeeded, GreenList):
    """prefix_length: tokens whose product seeds the list."""

    name: ClassVar[str] = "markllm-ewd"
    key_field: ClassVar[str] = "hash_key"

    @property
    def caveat(self) -> str:
        """Few lists, and keys that are the same mark."""
        few = "one token seeds the list: frequent words have the same list in all text; "
        return f"{few if self.prefix_length == 1 else ''}{seeding.SAME_KEYS}"

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads MarkLLM's EWD.json, SWEET.json, IE.json, or MorphMark.json with `ewd`."""
        more = _MORE_FIELDS.get(str(config.get("algorithm_name", "EWD")), ())
        check_fields(config, (*_EWD_FIELDS, *more), cls.name)
        refuse_cuda(config, cls.name)
        fields = read_product_seed(config, secret, vocabulary_size, 1)
        return cls(**fields, gamma=read_share(config, "gamma", None))


@dataclass(frozen=True, kw_only=True)
class MarkLlmPf(RollingSeeded, UniformRow):
    """ngram: tokens of the window; salt_key: multiplier; payload: message, a shift of the row."""

    payload: int = 0
    name: ClassVar[str] = "markllm-pf"
    key_field: ClassVar[str] = "seed"

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {**super().parameters, "payload": self.payload}

    def mantissas(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        """r * 2**24 of each pair."""
        self._check(contexts, tokens)
        shifted = (tokens.astype(np.int64) + self.payload) % self.vocabulary_size
        return random_mantissas(self._seeds(contexts, tokens), shifted)

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """-ln r in whole steps of 1/4: r has the same law as 1 - 2**-24 - r."""
        return exponential_score(_VALUES - 1 - self.mantissas(contexts, tokens), _VALUES)

    def original_scores(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.float64]:
        """-ln r; r = 0 counts as 1e-4, as there."""
        uniforms = self.mantissas(contexts, tokens) / _VALUES
        return -np.log(np.where(uniforms == 0, 1e-4, uniforms))

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads MarkLLM's PF.json with seeding hash."""
        check_fields(config, _PF_FIELDS, cls.name)
        refuse_cuda(config, cls.name)
        fields = read_rolling_seed(config, secret, vocabulary_size)
        most = fields["vocabulary_size"] - 1
        return cls(**fields, payload=whole_number(config.get("payload", 0), "payload", 0, most))


@dataclass(frozen=True, kw_only=True)
class MarkLlmExpGumbel(Prefixed, UniformRow):
    """prefix_length: tokens whose sum is the row of the table."""

    prefix_length: int = 2
    name: ClassVar[str] = "markllm-exp-gumbel"
    key_field: ClassVar[str] = "seed"

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """(row, token), packed exactly."""
        self._check(contexts, tokens)
        return pack_units(contexts.sum(axis=1, dtype=np.uint32), tokens)

    def mantissas(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        """u * 2**24 of each pair. About 1.5 ns for every entry of the table up to the last one."""
        self._check(contexts, tokens)
        rows = contexts.sum(axis=1, dtype=np.int64)
        return random_mantissas(self._seeds(contexts, tokens), rows * self.vocabulary_size + tokens)

    def _seeds(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        del contexts
        return np.full(tokens.shape, self.key & 0xFFFFFFFF, dtype=np.uint32)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads MarkLLM's EXPGumbel.json. Its generator is always the CPU's."""
        check_fields(config, _GUMBEL_FIELDS, cls.name)
        return cls(
            key=read_key(config, "seed", secret, 64) & 0xFFFFFFFF,
            vocabulary_size=read_vocabulary_size(config, vocabulary_size),
            prefix_length=whole_number(config.get("prefix_length"), "prefix_length", 1, 64),
        )
