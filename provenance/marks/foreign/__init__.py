"""Other people's schemes by name. `make_foreign` is the only place that maps a name to a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from provenance.errors import UsageError
from provenance.marks.foreign.huggingface import LeftHash, SelfHash
from provenance.marks.foreign.lm_watermarking import LmWatermarking
from provenance.marks.foreign.markllm import MarkLlmExp, MarkLlmKgw, MarkLlmUnigram, Unigram
from provenance.marks.foreign.markllm_lists import MarkLlmEwd, MarkLlmExpGumbel, MarkLlmPf
from provenance.marks.foreign.markllm_names import MARKLLM_READ, check_markllm
from provenance.marks.foreign.radioactive import RadioactiveGreenList, RadioactiveGumbel
from provenance.marks.foreign.sbw import VllmSbw
from provenance.marks.foreign.scheme import ForeignScheme, Secret
from provenance.marks.foreign.sglang import SglangGumbel
from provenance.marks.foreign.synthid import SynthID
from provenance.marks.foreign.synthid_text import SynthIDText2025
from provenance.marks.foreign.textseal import (
    TextSealGreenList,
    TextSealGumbel,
    TextSealSynthID,
)
from provenance.marks.foreign.textseal_dual import TextSealDualKey
from provenance.marks.foreign.vllm_native import DualKeyGumbel, VllmGumbel
from provenance.marks.plugins import Registry

__all__ = ["FOREIGN_SCHEMES", "ForeignScheme", "Secret", "make_foreign"]

FOREIGN_SCHEMES: Final[Registry[type[ForeignScheme]]] = Registry(
    {
        scheme.name: scheme
        for scheme in (
            LeftHash,
            SelfHash,
            SynthID,
            SynthIDText2025,
            VllmGumbel,
            DualKeyGumbel,
            VllmSbw,
            SglangGumbel,
            LmWatermarking,
            RadioactiveGreenList,
            RadioactiveGumbel,
            TextSealGreenList,
            TextSealGumbel,
            TextSealSynthID,
            TextSealDualKey,
            MarkLlmKgw,
            MarkLlmEwd,
            MarkLlmUnigram,
            MarkLlmExp,
            MarkLlmExpGumbel,
            MarkLlmPf,
            Unigram,
        )
    },
    ForeignScheme,
    foreign=True,
)

_OTHER_NAMES: Final[Mapping[str, str]] = {
    **{f"markllm-{name.lower()}": reader for name, reader in MARKLLM_READ.items()},
    "textseal-textseal": "textseal-dual-key",
    "vllm-dual_key_gumbel": "vllm-dual-key-gumbel",
    "sbw": "vllm-sbw",
    "synthid": "hf-synthid",
    "synthid-text": "synthid-text-2025",
    "sglang": "sglang-gumbel",
}
"""What a scheme may be called elsewhere -> its name here; only for messages."""


def make_foreign(
    name: str,
    config: Mapping[str, Any],
    secret: Secret = None,
    vocabulary_size: int | None = None,
) -> ForeignScheme:
    """The scheme of this name under the original's own configuration; see `from_config`.

    >>> make_foreign("hf-lefthash", {"greenlist_ratio": 0.5, "hashing_key": 7}, None, 1000)
    LeftHash(vocabulary_size=1000, self_salted=False, gamma=0.5)
    """
    if name not in FOREIGN_SCHEMES:
        reader = _OTHER_NAMES.get(name.lower())
        raise UsageError(
            f"scheme must be one of {', '.join(FOREIGN_SCHEMES)}; got {name}. "
            + (f"Use {reader}." if reader else "See the README.")
        )
    check_markllm(name, config)
    scheme = FOREIGN_SCHEMES[name]
    made: ForeignScheme = FOREIGN_SCHEMES.make(
        name, lambda: scheme.from_config(config, secret, vocabulary_size)
    )
    return made
