"""lm-watermarking (Kirchenbauer et al., arXiv 2301.10226 and 2306.04634): its named seedings.

`simple_1` or `lefthash`, `algorithm-3` or `selfhash`, `minhash`, `skipgram`, and the free form
`ff-PRF-WIDTH-SELFSALT-KEY` of the same four functions. Green lists are those of
`huggingface.py`; what differs is the hash table, drawn once from the public seed 2971215073.
A named seeding fixes the key to the public 15485863: anyone can then imitate or remove the mark.
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
from provenance.marks.foreign.randperm import GreenList, draw_key
from provenance.marks.foreign.scheme import Secret, Tokens
from provenance.marks.foreign.torch_cpu import permutation

PUBLIC_KEY: Final = 15485863
_TABLE_SEED: Final = 2971215073
_ADDITIVE: Final = "additive_prf"
_MINHASH: Final = "minhash_prf"
_ANCHORED: Final = "anchored_minhash_prf"
_SKIPGRAM: Final = "skipgram_prf"
_PRFS: Final = (_ADDITIVE, _MINHASH, _ANCHORED, _SKIPGRAM)
_NAMED: Final[Mapping[str, tuple[str, int, bool]]] = {
    "simple_1": (_ADDITIVE, 1, False),
    "lefthash": (_ADDITIVE, 1, False),
    "algorithm-3": (_ANCHORED, 4, True),
    "selfhash": (_ANCHORED, 4, True),
    "minhash": (_MINHASH, 4, False),
    "skipgram": (_SKIPGRAM, 5, False),
}
_FIELDS: Final = (
    "gamma",
    "delta",
    "seeding_scheme",
    "hash_key",
    "select_green_tokens",
    "z_threshold",
    "ignore_repeated_ngrams",
    "normalizers",
)


@dataclass(frozen=True, kw_only=True)
class LmWatermarking(GreenList):
    """prf: function of the window; window: its tokens, the scored one included if self-salted."""

    prf: str
    window: int
    self_salted: bool = field(default=False)
    name: ClassVar[str] = "lm-watermarking"
    key_field: ClassVar[str] = "hash_key"

    @property
    def width(self) -> int:
        return self.window - self.self_salted

    @property
    def shares_coins(self) -> bool:
        """Sums, minima and the oldest token of a window are those of many windows."""
        return self.window > 1

    @property
    def caveat(self) -> str:
        """Public key, few seeds."""
        said = []
        if self.key == PUBLIC_KEY:
            said.append("the key 15485863 is public")
        if self.prf in (_MINHASH, _SKIPGRAM):
            said.append("at most 1000003 lists exist, the same for every key")
        if self.prf == _ADDITIVE:
            said.append(seeding.SAME_KEYS)
        return "; ".join(said)

    @property
    def parameters(self) -> Mapping[str, Any]:
        return {
            **super().parameters,
            "prf": self.prf,
            "window": self.window,
            "self_salted": self.self_salted,
            "select_green_tokens": self.select_green,
        }

    def usable(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.bool_]:
        """False where the seed comes from token id 0 alone: the same under every key."""
        self._check(contexts, tokens)
        if self.prf == _ANCHORED:
            return np.ones(tokens.shape, dtype=np.bool_)
        constant = 0
        if self.prf != _ADDITIVE:
            constant = int(permutation(_TABLE_SEED, seeding.TABLE_SIZE)[0]) + 1
        seeds: NDArray[np.uint32] = self._seeds(contexts, tokens)
        return np.not_equal(seeds, constant)

    def _seeds(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint32]:
        windows = contexts
        if self.self_salted:
            windows = np.concatenate((contexts, tokens[:, np.newaxis]), axis=1)
        if self.prf == _ADDITIVE:
            return seeding.product(self.key, windows.sum(axis=1, dtype=np.uint64))
        if self.prf == _ANCHORED:
            return seeding.anchored_minhash(self.key, _TABLE_SEED, windows)
        if self.prf == _MINHASH:
            return seeding.minhash(self.key, _TABLE_SEED, windows)
        return seeding.skipgram(self.key, _TABLE_SEED, windows)

    def random_key(self, rng: np.random.Generator) -> int:
        """Uniform over 32 bits; another residue modulo the table where only that counts."""
        while True:
            key = draw_key(rng, self.key)
            if key % seeding.TABLE_SIZE not in (0, self.key % seeding.TABLE_SIZE):
                return key

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads the arguments of `WatermarkLogitsProcessor`, which has no configuration file."""
        check_fields(config, _FIELDS, cls.name)
        refuse_cuda(config, cls.name)
        prf, window, self_salted, key = _read_seeding(config.get("seeding_scheme", "selfhash"))
        fixed = {"hash_key": config["hash_key"]} if "hash_key" in config else {}
        size = read_vocabulary_size(config, vocabulary_size)
        key = read_key(fixed, "hash_key", secret, 63, default=key)
        if prf == _ADDITIVE:
            key = seeding.canonical_factor(key, window * (size - 1))
        return cls(
            key=key,
            vocabulary_size=size,
            gamma=read_share(config, "gamma", 0.25),
            select_green=bool(config.get("select_green_tokens", True)),
            prf=prf,
            window=window,
            self_salted=self_salted,
        )


def _read_seeding(text: object) -> tuple[str, int, bool, int]:
    """(function, window, self-salt, key) of a seeding's name."""
    if isinstance(text, str) and text in _NAMED:
        return (*_NAMED[text], PUBLIC_KEY)
    parts = text.split("-") if isinstance(text, str) else []
    shaped = 4 <= len(parts) <= 5 and parts[0] == "ff" and parts[1] in _PRFS
    if not shaped or not all(part.isdecimal() for part in (parts[2], *parts[4:])):
        raise UsageError(
            f"seeding_scheme must be one of {', '.join(_NAMED)} or ff-PRF-WIDTH-True|False-KEY "
            f"with PRF one of {', '.join(_PRFS)}; it is not. Use the original's own name."
        )
    window = whole_number(int(parts[2]), "the width of seeding_scheme", 1, 64)
    key = int(parts[4]) if len(parts) == 5 else PUBLIC_KEY
    return parts[1], window, parts[3] == "True", key
