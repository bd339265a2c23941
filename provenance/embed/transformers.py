"""Adapter for Hugging Face `generate`: the mark is the last step after temperature and top-k/p.

transformers applies user processors *before* temperature and top-k/top-p, and its own
`watermarking_config` after them. The draw must act on the final probabilities, so this adapter is a
watermarking config. It draws the token itself and leaves transformers a single candidate.

    arguments = TransformersWatermark(watermark).generate_arguments(inputs, labels)
    output = model.generate(**inputs, **arguments, temperature=0.8, top_p=0.95, max_new_tokens=200)

Sampling only: `do_sample=True` and `num_beams=1` are part of the arguments, so asking for greedy
decoding or beams as well is a TypeError, never a silently unmarked response.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from provenance.embed.watermark import Labels, Watermark
from provenance.errors import MissingExtraError, StorageError, UsageError

try:
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer, LogitsProcessor
    from transformers.generation.configuration_utils import BaseWatermarkingConfig
    from transformers.utils import logging
except ImportError as error:
    raise MissingExtraError(
        "the transformers adapter must have torch; it is not installed. "
        "Run: pip install 'provenance[torch]'"
    ) from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["GeneratedResponse", "TransformersWatermark", "generate_responses", "load_model"]


class TransformersWatermark:
    """Makes the arguments that mark one call of `model.generate`; re-usable."""

    def __init__(self, watermark: Watermark) -> None:
        self.watermark = watermark

    def generate_arguments(
        self, inputs: Mapping[str, Any], labels: Sequence[Labels]
    ) -> dict[str, Any]:
        """Keyword arguments for `model.generate(**inputs, **arguments)`.

        Parameters
        ----------
        inputs : what the tokenizer returned; `input_ids` [rows, width], padded on the left
        labels : attribute values, one mapping per row (`num_return_sequences` repeats them)

        Raises
        ------
        UsageError if there is not one mapping per row or the padding is on the right;
        ConfigurationMismatchError if a label has no key.
        """
        ids = inputs["input_ids"]
        if len(labels) != ids.shape[0]:
            raise UsageError(
                f"labels must have one mapping per row of input_ids; got {len(labels)} for "
                f"{ids.shape[0]} rows."
            )
        mask = inputs.get("attention_mask")
        if mask is not None and not bool(mask[:, -1].all()):
            raise UsageError(
                "prompts must be padded on the left; the last column is masked. "
                "Set tokenizer.padding_side = 'left'."
            )
        for mapping in labels:
            self.watermark.check_labels(mapping)
        config = _WatermarkConfig(self.watermark, tuple(labels), int(ids.shape[1]))
        return {"watermarking_config": config, "do_sample": True, "num_beams": 1}


class _WatermarkConfig(BaseWatermarkingConfig):  # type: ignore[misc]
    """What transformers carries to the end of its list of processors. Shows no secret."""

    def __init__(self, watermark: Watermark, labels: tuple[Labels, ...], width: int) -> None:
        self._watermark = watermark
        self._labels = labels
        self._width = width

    def __deepcopy__(self, memo: dict[int, Any]) -> _WatermarkConfig:
        return self

    def __repr__(self) -> str:
        return f"WatermarkConfig(keyring={self._watermark.keyring.public.id!r})"

    def __iter__(self) -> Iterator[tuple[str, Any]]:
        yield from self.to_dict().items()

    def to_dict(self) -> dict[str, Any]:
        return {"keyring": self._watermark.keyring.public.id}

    def to_json_string(self) -> str:
        return f'{{"keyring": "{self._watermark.keyring.public.id}"}}\n'

    def validate(self) -> None:
        """Nothing left to validate: `generate_arguments` did."""

    def construct_processor(self, vocab_size: int, device: Any = None) -> _WatermarkProcessor:
        del vocab_size, device
        return _WatermarkProcessor(self._watermark, self._labels, self._width)


class _WatermarkProcessor(LogitsProcessor):  # type: ignore[misc]
    """Draws the token of each row and leaves only that token possible."""

    def __init__(self, watermark: Watermark, labels: tuple[Labels, ...], width: int) -> None:
        self._watermark = watermark
        self._labels = labels
        self._width = width

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids int64 [rows, width + n], scores float [rows, vocabulary] -> same shape."""
        rows = scores.shape[0]
        repeats, rest = divmod(rows, len(self._labels))
        if rest:
            raise UsageError(
                f"the batch must be a multiple of the {len(self._labels)} labelled prompts; "
                f"got {rows} rows. Call generate_arguments for this very batch."
            )
        labels = [self._labels[row // repeats] for row in range(rows)]
        responses = input_ids[:, self._width :].cpu().numpy().astype(np.uint32)
        probabilities = torch.softmax(scores.double(), dim=-1).cpu().numpy()
        draws = self._watermark.draw_batch(labels, list(responses), probabilities)
        tokens = torch.tensor([draw.token for draw in draws], device=scores.device)
        only = torch.full_like(scores, float("-inf"))
        only.scatter_(1, tokens.unsqueeze(1), 0.0)
        return only


def load_model(folder: Path | str) -> PreTrainedModel:
    """A local causal language model, in evaluation mode: safetensors only, no code of the folder.

    Raises StorageError if it does not load.
    """
    logging.disable_progress_bar()
    try:
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise StorageError(
            f"{folder}: must be a transformers model with safetensors weights; got: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return model.eval()


def load_tokenizer_of(folder: Path | str) -> PreTrainedTokenizerBase:
    """A local model's tokenizer with its chat template; no code of the folder is run.

    Raises StorageError if it does not load. A tokenizer file is data that can hang its reader:
    compare its fingerprint first, or ask the user.
    """
    try:
        return AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (OSError, ValueError) as error:
        raise StorageError(
            f"{folder}: must have a tokenizer that transformers can load; got: "
            f"{str(error).splitlines()[0]}"
        ) from error


@dataclass(frozen=True)
class GeneratedResponse:
    """One served response: ids without prompt, padding and end token, and whether it is marked."""

    prompt_index: int
    token_ids: NDArray[np.uint32]
    prompt_token_ids: NDArray[np.uint32]
    marked: bool


def generate_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    labels: Sequence[Labels],
    watermark: Watermark,
    *,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[GeneratedResponse]:
    """Sample one marked response per prompt, batch by batch, in the order of the prompts.

    Parameters: prompts and labels of equal length; temperature > 0; top_k = 0 and top_p = 1 switch
    those off. Yields `GeneratedResponse`. Memory: one batch.
    """
    if temperature <= 0:
        raise UsageError(
            f"temperature must be above 0; got {temperature}. Greedy decoding carries no mark."
        )
    adapter = TransformersWatermark(watermark)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token
    for start in range(0, len(prompts), batch_size):
        chosen = list(range(start, min(start + batch_size, len(prompts))))
        inputs = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True).to(
            model.device
        )
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                **adapter.generate_arguments(inputs, [labels[i] for i in chosen]),
                max_new_tokens=max_new_tokens,
                temperature=temperature,
                top_k=top_k,
                top_p=top_p,
                pad_token_id=tokenizer.pad_token_id,
            )
        width = inputs["input_ids"].shape[1]
        ends = _end_tokens(model)
        for row, index in enumerate(chosen):
            ids = _cut_at_end(output[row, width:].cpu().numpy(), ends)
            mask = inputs["attention_mask"][row].bool()
            yield GeneratedResponse(
                prompt_index=index,
                token_ids=ids,
                prompt_token_ids=inputs["input_ids"][row][mask].cpu().numpy().astype(np.uint32),
                marked=bool(watermark.marked_positions(labels[index], ids).any()),
            )


def _end_tokens(model: PreTrainedModel) -> set[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, (list, tuple)) else {int(ends)}


def _cut_at_end(ids: NDArray[np.int64], ends: set[int]) -> NDArray[np.uint32]:
    """Drop the first end token and everything after it."""
    stops = np.flatnonzero(np.isin(ids, list(ends)))
    return ids[: stops[0]].astype(np.uint32) if stops.size else ids.astype(np.uint32)
