"""Loading the models and the tokenizer of the experiment. Knows no watermark and no stage."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

SERVED_MODEL = "served-model"
"""The folder of the model that serves, in a work folder."""
VOCABULARY = 49_152
END = 2
"""`<|im_end|>`: ends a message, and pads."""


def precision() -> str:
    """The type of the products: bfloat16 where the processor multiplies it, float32 elsewhere."""
    found = torch.cpu.get_capabilities()
    return "bfloat16" if found.get("avx512_bf16") or found.get("amx_bf16") else "float32"


def load_model(folder: Path, dtype: torch.dtype = torch.float32) -> LlamaForCausalLM:
    """A model of the experiment in evaluation mode."""
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=dtype, local_files_only=True, use_safetensors=True
    ).eval()


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a model's folder, with its chat template."""
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
