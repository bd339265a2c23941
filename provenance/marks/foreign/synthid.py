"""SynthID-Text with a table: transformers, synthid-text 0.2.1 of PyPI, MarkLLM (Nature 634, 2024).

Google's repository has had another hash since 2025-06: `synthid_text.py`.

A window is hashed by a linear congruential generator, acc(h, x) = (h + x) A + 1 mod 2**64 from
h = 1; layer d of the n-gram is bit acc(h, key_d) mod T of a table of T bits drawn from a seed. With
T a power of two only the low bits of the hash count, so every coin of a pair is a function of its
*state*

    s = acc(1, context) + token  mod T

which is the effective unit: with the usual T = 65536 there are no more than 65,536 different coins
whatever the text, and tokens t and t + T never differ.

Law: over keys drawn with distinct residues modulo T, the layers of a state are a simple random
sample of the table, so their sum is exactly hypergeometric with the table's true number of ones
(32,743 of 65,536 for seed 0, a mean of .4996 a layer). Two layers whose keys are equal modulo T
are one coin; it is counted once. Under the true key each layer is a fixed shift of the table, so a
sum over many states is drawn without replacement and no more spread than independent ones.

The table is drawn by the generator of the device that serves. The CPU's is recomputed from its
seed; one that was drawn on a GPU can be given as the table itself, 8 KiB.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from math import comb
from typing import Any, ClassVar, Final, Self

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.marks.foreign.configuration import (
    check_fields,
    read_keys,
    refuse_cuda,
    whole_number,
)
from provenance.marks.foreign.scheme import Common, Secret, Tokens, check_pairs
from provenance.marks.foreign.torch_cpu import random_bits
from provenance.stats.laws import NullLaw
from provenance.storage.kernels import kernel

_A: Final = 6364136223846793005
_FIELDS: Final = (
    "ngram_len",
    "keys",
    "context_history_size",
    "sampling_table_seed",
    "sampling_table_size",
    "sampling_table",
    "skip_first_ngram_calls",
    "debug_mode",
    "top_k",
    "temperature",
    "apply_top_k",
    "num_leaves",
)
_MARKLLM_FIELDS: Final = ("algorithm_name", "watermark_mode", "detector_type", "threshold")
_FAIR: Final = 6.0
"""Standard deviations that the share of ones in a given table may be from one half."""
_MAXIMUM_TABLE: Final = 1 << 24
_PRECISION: Final = 1 << 256


@kernel(nogil=True)
def _sum_layers(states, residues, table, out):  # type: ignore[no-untyped-def]
    mask = np.uint64(table.shape[0] - 1)
    a = np.uint64(6364136223846793005)
    one = np.uint64(1)
    for i in range(states.shape[0]):
        hashed = np.uint64(states[i] * a + one)
        total = 0
        for d in range(residues.shape[0]):
            total += table[(np.uint64(hashed + residues[d]) * a + one) & mask]
        out[i] = total


@dataclass(frozen=True, kw_only=True)
class SynthID(Common):
    """keys: one a layer; ngram_len: window and token; the table's seed and size (power of two).

    packed : the table itself, eight bits a byte, first bit highest; None = drawn from the seed
    """

    keys: tuple[int, ...] = field(repr=False)
    ngram_len: int
    sampling_table_seed: int = 0
    sampling_table_size: int = 1 << 16
    skip_first: bool = False
    packed: bytes | None = field(default=None, repr=False)
    name: ClassVar[str] = "hf-synthid"
    key_field: ClassVar[str] = "keys"

    def __post_init__(self) -> None:
        size = self.sampling_table_size
        if not 2 <= size <= _MAXIMUM_TABLE or size & (size - 1):
            raise UsageError(
                f"sampling_table_size must be a power of two up to 2**24; got {size}. Other sizes "
                "have no exact null law; the default is 65536."
            )

    @property
    def width(self) -> int:
        return self.ngram_len - 1

    @property
    def padding(self) -> int | None:
        """0: generation starts from a context of zeros, never from the prompt."""
        return None if self.skip_first else 0

    @property
    def caveat(self) -> str:
        """The size of the state."""
        return f"at most {self.sampling_table_size} different coins exist under one key"

    @property
    def parameters(self) -> Mapping[str, Any]:
        given = {}
        if self.packed is not None:
            given["sampling_table"] = base64.b64encode(self.packed).decode("ascii")
        return {
            "ngram_len": self.ngram_len,
            "depth": len(self.keys),
            "sampling_table_seed": self.sampling_table_seed,
            "sampling_table_size": self.sampling_table_size,
            "skip_first_ngram_calls": self.skip_first,
            **given,
        }

    @cached_property
    def table(self) -> NDArray[np.uint8]:
        """The public table of bits, uint8 [T]."""
        if self.packed is not None:
            bits = np.unpackbits(np.frombuffer(self.packed, dtype=np.uint8))
            return bits[: self.sampling_table_size]
        return random_bits(self.sampling_table_seed, self.sampling_table_size)

    @cached_property
    def residues(self) -> NDArray[np.uint64]:
        """Keys modulo T, distinct, in order of first use."""
        distinct = dict.fromkeys(key % self.sampling_table_size for key in self.keys)
        return np.array(list(distinct), dtype=np.uint64)

    @cached_property
    def null_law(self) -> NullLaw:
        """Hypergeometric(T, ones, distinct layers).

        Where the counts exceed what a law may hold (more than 16 layers), tails are rounded up to
        multiples of 2**-256: an upper bound, off by less than 2**-250 of any tail that matters.
        """
        depth, ones = self.residues.shape[0], int(self.table.sum())
        zeros = self.sampling_table_size - ones
        counts = [comb(ones, j) * comb(zeros, depth - j) for j in range(depth + 1)]
        total = sum(counts)
        if total <= _PRECISION:
            return NullLaw(tuple(counts))
        tails = [-(-sum(counts[j:]) * _PRECISION // total) for j in range(depth + 2)]
        return NullLaw(tuple(a - b for a, b in pairwise(tails)))

    def units(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """The state, 0 .. T - 1. Two operations a token; keys play no part."""
        check_pairs(contexts, tokens, self.width, None)
        state = np.ones(tokens.shape, dtype=np.uint64)
        for column in contexts.T:
            state = (state + column) * np.uint64(_A) + np.uint64(1)
        state += tokens
        return (state & np.uint64(self.sampling_table_size - 1)).astype(np.int64)

    def score(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.int64]:
        """Number of ones among the distinct layers. Cost: one pass over T states and a gather."""
        units = self.units(contexts, tokens)
        if units.shape[0] < self.sampling_table_size:
            return self._sums(units.astype(np.uint64))
        return self._sums(np.arange(self.sampling_table_size, dtype=np.uint64))[units]

    def g_values(self, contexts: Tokens, tokens: Tokens) -> NDArray[np.uint8]:
        """Every layer's bit as the original has it, uint8 [n, number of keys]."""
        states = self.units(contexts, tokens).astype(np.uint64)[:, np.newaxis]
        a, one = np.uint64(_A), np.uint64(1)
        keys = np.array([key % self.sampling_table_size for key in self.keys], dtype=np.uint64)
        index = ((states * a + one) + keys) * a + one
        return np.take(self.table, index & np.uint64(self.sampling_table_size - 1))

    def _sums(self, states: NDArray[np.uint64]) -> NDArray[np.int64]:
        out = np.empty(states.shape, dtype=np.int64)
        _sum_layers(states, self.residues, self.table, out)
        return out

    def random_key(self, rng: np.random.Generator) -> tuple[int, ...]:
        """As many keys as layers, residues distinct and none of them the true key's."""
        size, depth = self.sampling_table_size, self.residues.shape[0]
        own = set(self.residues.tolist())
        if 2 * depth > size:
            raise UsageError("sampling_table_size is too small for placebo keys. Nothing to do.")
        while True:
            keys = [int(key) for key in rng.permutation(size)[:depth]]
            if own.isdisjoint(keys):
                return tuple(keys)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], secret: Secret = None, vocabulary_size: int | None = None
    ) -> Self:
        """Reads `SynthIDTextWatermarkingConfig`, synthid-text 0.2.1's or MarkLLM's SynthID object.

        At least one field must say that there is a table: without any, this is the object of
        Google's repository since 2025-06, another hash.
        """
        del vocabulary_size
        check_fields(config, (*_FIELDS, *_MARKLLM_FIELDS), cls.name)
        if not any(name.startswith("sampling_table") for name in config):
            raise UsageError(
                f"a {cls.name} configuration must hold sampling_table_size and "
                "sampling_table_seed, which transformers and synthid-text 0.2.1 always write; it "
                "has neither, so it is not known which hash it means. Use the scheme "
                "synthid-text-2025 for Google's repository since 2025-06, or add both fields "
                "(65536 and 0 by default)."
            )
        size = config.get("sampling_table_size", 1 << 16)
        size = whole_number(size, "sampling_table_size", 2, _MAXIMUM_TABLE)
        packed = None
        if "sampling_table" in config:
            packed = _pack_table(config["sampling_table"], size)
        else:
            refuse_cuda(
                config,
                cls.name,
                "Or give the table itself as sampling_table: processor.sampling_table.tolist().",
            )
        seed = config.get("sampling_table_seed", 0)
        return cls(
            keys=read_keys(config, "keys", secret),
            ngram_len=whole_number(config.get("ngram_len"), "ngram_len", 2, 64),
            sampling_table_seed=whole_number(seed, "sampling_table_seed", 0, (1 << 64) - 1),
            sampling_table_size=size,
            skip_first=bool(config.get("skip_first_ngram_calls", False)),
            packed=packed,
        )


def _pack_table(value: object, size: int) -> bytes:
    """The table as packed bits, from a list of 0 and 1 or from Base64 of the packed bits."""
    if isinstance(value, str):
        try:
            packed = base64.b64decode(value.encode("ascii"), validate=True)
        except (ValueError, binascii.Error) as error:
            raise UsageError(
                "sampling_table must be Base64 without line breaks, or a list of 0 and 1; it is "
                "neither. Write base64.b64encode(numpy.packbits(table))."
            ) from error
        if len(packed) != -(-size // 8) or (size < 8 and packed[0] & (0xFF >> size)):
            raise UsageError(
                f"sampling_table must hold sampling_table_size bits, {-(-size // 8)} bytes of "
                f"eight each; got {len(packed)} bytes. Pack the table with numpy.packbits, or give "
                "the size that the text was marked with."
            )
    else:
        bits = value if isinstance(value, list) else []
        if len(bits) != size or not all(type(bit) is int and bit in (0, 1) for bit in bits):
            raise UsageError(
                f"sampling_table must be a list of sampling_table_size ({size}) numbers 0 or 1, or "
                f"Base64 of the packed bits; got {len(bits) or 'no'} entries, or others. Write "
                "processor.sampling_table.tolist()."
            )
        packed = np.packbits(np.array(bits, dtype=np.uint8)).tobytes()
    ones = int(np.unpackbits(np.frombuffer(packed, dtype=np.uint8)).sum())
    if not 0 < ones < size or abs(ones - size / 2) > _FAIR * np.sqrt(size) / 2:
        raise UsageError(
            f"sampling_table must look like {size} fair bits; got {ones} ones. Check what was "
            "exported."
        )
    return packed
