"""Other people's schemes by name. `make_foreign` is the only place that maps a name to a class."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from provenance.errors import UsageError
from provenance.schemes.foreign.base import ForeignScheme, Secret
from provenance.schemes.foreign.huggingface import LeftHash, SelfHash
from provenance.schemes.foreign.lm_watermarking import LmWatermarking
from provenance.schemes.foreign.markllm import MarkLlmExp, MarkLlmKgw, MarkLlmUnigram
from provenance.schemes.foreign.radioactive import RadioactiveGreenList, RadioactiveGumbel
from provenance.schemes.foreign.synthid import SynthID
from provenance.schemes.foreign.textseal import (
    TextSealGreenList,
    TextSealGumbel,
    TextSealSynthID,
)
from provenance.schemes.foreign.vllm import DualKeyGumbel, VllmGumbel

__all__ = ["FOREIGN_SCHEMES", "ForeignScheme", "Secret", "make_foreign"]

FOREIGN_SCHEMES: Final[Mapping[str, type[ForeignScheme]]] = {
    scheme.name: scheme
    for scheme in (
        LeftHash,
        SelfHash,
        SynthID,
        VllmGumbel,
        DualKeyGumbel,
        LmWatermarking,
        RadioactiveGreenList,
        RadioactiveGumbel,
        TextSealGreenList,
        TextSealGumbel,
        TextSealSynthID,
        MarkLlmKgw,
        MarkLlmUnigram,
        MarkLlmExp,
    )
}


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
        raise UsageError(
            f"scheme must be one of {', '.join(FOREIGN_SCHEMES)}; got {name}. See the README."
        )
    return FOREIGN_SCHEMES[name].from_config(config, secret, vocabulary_size)
