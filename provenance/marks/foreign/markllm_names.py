"""Which scheme reads which of MarkLLM's algorithms (commit 112fa74), or why none does.

MarkLLM names the algorithm inside its configuration, so that a file can be led to the scheme that
reads it, whatever scheme was asked for.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from provenance.errors import ConfigurationMismatchError, UsageError

MARKLLM_READ: Final[Mapping[str, str]] = {
    "KGW": "markllm-kgw",
    "MorphMark": "markllm-kgw",
    "EWD": "markllm-ewd",
    "SWEET": "markllm-ewd",
    "IE": "markllm-ewd",
    "Unigram": "markllm-unigram",
    "EXP": "markllm-exp",
    "EXPGumbel": "markllm-exp-gumbel",
    "PF": "markllm-pf",
    "SynthID": "hf-synthid",
}
"""Algorithm -> scheme. MorphMark with `ewd` seeds as EWD does."""

_NETWORK: Final = (
    "a trained network on the text before draws its green lists, so a key is not enough"
)
_ALIGNED: Final = (
    "its test aligns the text with a secret sequence by edit distance, so no coin belongs to one "
    "(context, token) pair"
)
_SENTENCES: Final = "it marks whole sentences by their embedding, not tokens"

MARKLLM_REFUSED: Final[Mapping[str, str]] = {
    "UPV": "trained networks mark and detect, so no p-value exists",
    "SIR": _NETWORK,
    "XSIR": _NETWORK,
    "Adaptive": _NETWORK,
    "Unbiased": (
        "its key is drawn at random by every process and kept nowhere (the configured key is not "
        "used), so nobody can recompute its coins"
    ),
    "DIP": "its class never sets its key and stops at the first token, so no text of it exists",
    "EXPEdit": _ALIGNED,
    "ITSEdit": _ALIGNED,
    "TS": (
        "a trained network sets the share of green tokens anew after every token; with an empty "
        'ckpt_path its text is read as lm-watermarking with "seeding_scheme": "simple_1"'
    ),
    "SEMSTAMP": _SENTENCES,
    "KSEMSTAMP": _SENTENCES,
    "STEAL": "it imitates the mark of another model: test its text under that mark",
}
"""Algorithm -> why no scheme reads it."""


def check_markllm(scheme: str, config: Mapping[str, Any]) -> None:
    """Raise unless the scheme reads the algorithm that the configuration names, if it names one.

    UsageError (2) where another scheme does, or for an unknown name; ConfigurationMismatchError
    (78) where none does.
    """
    if "algorithm_name" not in config:
        return
    name = config["algorithm_name"]
    known = isinstance(name, str)
    if known and name in MARKLLM_REFUSED:
        raise ConfigurationMismatchError(
            f"algorithm_name must be one of {', '.join(MARKLLM_READ)}; got {name}: "
            f"{MARKLLM_REFUSED[name]}. Nothing to do."
        )
    if not known or name not in MARKLLM_READ:
        raise UsageError(
            "algorithm_name must be one of MarkLLM's algorithms, "
            f"{', '.join((*MARKLLM_READ, *MARKLLM_REFUSED))}; it is not. "
            "Pass the original's own object."
        )
    reader = MARKLLM_READ[name]
    if name == "MorphMark" and config.get("ewd") is True:
        reader = "markllm-ewd"
    if reader != scheme:
        raise UsageError(
            f"algorithm_name of {scheme} must be one of its own; got {name}. "
            f"Use the scheme {reader}."
        )
