"""Adapter for Hugging Face `generate`: the mark is the last step after temperature and top-k/p.

transformers applies user processors *before* temperature, top-k, top-p, min-p and the other
warpers, and its own `watermarking_config` after all of them. The draw must act on the final
probabilities, so this adapter is a watermarking config. It draws the token itself and leaves
transformers a single candidate.

    marked = TransformersWatermark(watermark)
    options = {"temperature": 0.8, "top_p": 0.95, "max_new_tokens": 200}
    output = model.generate(**inputs, **marked.generate_arguments(inputs, labels, options))

Sampling only. Greedy decoding, beams and continuous batching are refused in one line: nothing is
silently unmarked. Assisted decoding (an assistant model, prompt lookup) keeps the mark,
since a draw depends on the ids of the response alone.

Where the scores are on a GPU for which Triton is installed, they stay there: the draw runs on the
device and the host waits for nothing (`provenance.embed.device.torch_batch`). Scores on any other
accelerator are copied to the host.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.embed.device.torch_batch import DeviceWatermark, leave_alone
from provenance.embed.device.torch_coins import has_kernels, pack_keys
from provenance.embed.watermark import Labels, Watermark
from provenance.errors import (
    ConfigurationMismatchError,
    MissingExtraError,
    UsageError,
)
from provenance.served.records import Finish

try:
    import torch
    from transformers import LogitsProcessor
    from transformers.generation.configuration_utils import BaseWatermarkingConfig
except ImportError as error:
    raise MissingExtraError(
        "the transformers adapter must have torch; it is not installed.", "torch"
    ) from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

_NO_CONTINUOUS_BATCHING: Final = (
    "Continuous batching does not tell a processor which response a row is; use generate."
)
_NO_ENSEMBLE: Final = "It accepts tokens that the watermark did not draw; leave it out."

_Tables = dict[torch.device, DeviceWatermark]
"""The keys on each device that scores were on: copied once, whatever the number of calls."""


class TransformersWatermark:
    """Makes the arguments that mark one call of `model.generate`; re-usable."""

    def __init__(self, watermark: Watermark) -> None:
        self.watermark = watermark
        self._tables: _Tables = {}

    def generate_arguments(
        self,
        inputs: Mapping[str, Any],
        labels: Sequence[Labels],
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Keyword arguments for `model.generate(**inputs, **arguments)`.

        Parameters
        ----------
        inputs : what the tokenizer returned; `input_ids` [rows, width], padded on the left
        labels : attribute values, one mapping per row (`num_return_sequences` repeats them)
        options : arguments of `generate`, for example temperature or max_new_tokens; they are
            checked here and returned with the others

        Raises
        ------
        UsageError if there is not one mapping per row, the padding is on the right, or an option
        asks for a way of decoding that cannot be marked; ConfigurationMismatchError if a label has
        no key.
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
        options = dict(options or {})
        for source in (options.get("generation_config"), options):
            _check_options(source)
        config = _WatermarkConfig(self.watermark, tuple(labels), int(ids.shape[1]), self._tables)
        fixed = {"watermarking_config": config, "do_sample": True, "num_beams": 1}
        return {**options, **fixed}


def _check_options(options: Any) -> None:
    """Raise UsageError for a way of decoding that cannot carry the mark.

    `options` is a mapping, a GenerationConfig or None. Each rule: the option, the values that are
    refused, what to do.
    """
    asked = options if isinstance(options, Mapping) else vars(options) if options else {}
    rules: tuple[tuple[str, Callable[[Any], bool], str], ...] = (
        ("do_sample", lambda value: value is False, "Greedy decoding draws nothing; sample."),
        ("num_beams", lambda value: (value or 1) > 1, "Beam search picks by score; sample."),
        ("temperature", lambda value: value is not None and value <= 0, "Use one above 0."),
        ("cache_implementation", lambda value: value == "paged", _NO_CONTINUOUS_BATCHING),
        ("watermarking_config", lambda value: value is not None, "Use one watermark."),
        ("custom_generate", lambda value: value is not None, "Use transformers' own loop."),
        ("penalty_alpha", bool, "Contrastive search picks by score; sample."),
        ("token_healing", bool, "It changes the prompt that was measured; leave it out."),
        ("dola_layers", lambda value: value is not None, "DoLa is another decoding loop; sample."),
        ("assistant_ensemble_weight", lambda value: value is not None, _NO_ENSEMBLE),
    )
    for name, is_refused, advice in rules:
        value = asked.get(name)
        if is_refused(value):
            raise UsageError(f"{name}={value!r} must not be asked for with a watermark. {advice}")


class _WatermarkConfig(BaseWatermarkingConfig):  # type: ignore[misc]
    """What transformers carries to the end of its list of processors. Shows no secret."""

    def __init__(
        self, watermark: Watermark, labels: tuple[Labels, ...], width: int, tables: _Tables
    ) -> None:
        self._watermark = watermark
        self._labels = labels
        self._width = width
        self._tables = tables

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
        return _WatermarkProcessor(self._watermark, self._labels, self._width, self._tables)


class _WatermarkProcessor(LogitsProcessor):  # type: ignore[misc]
    """Draws the token of each row and leaves only that token possible."""

    def __init__(
        self, watermark: Watermark, labels: tuple[Labels, ...], width: int, tables: _Tables
    ) -> None:
        self._watermark = watermark
        self._labels = labels
        self._numbers = watermark.key_numbers(labels)
        self._width = width
        self._tables = tables
        self._rows: dict[tuple[torch.device, int], _DeviceRows] = {}

    @property
    def supports_continuous_batching(self) -> bool:
        """Raises: transformers asks, and drops a processor that says no, unmarked."""
        raise UsageError(
            f"a watermark must not be used with generate_batch. {_NO_CONTINUOUS_BATCHING}"
        )

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """input_ids int64 [rows, width + n], scores float [rows, vocabulary] -> same shape."""
        rows, prompts = scores.shape[0], self._numbers.shape[0]
        repeats = 1 if rows == prompts else rows // prompts
        if rows != repeats * prompts:
            raise UsageError(
                f"the batch must be a multiple of the {prompts} labelled prompts; got {rows} rows."
            )
        if input_ids.shape[1] < self._width:
            raise UsageError(
                f"the model must continue its prompt of {self._width} tokens; it holds "
                f"{input_ids.shape[1]}. Encoder-decoder models are not supported."
            )
        if has_kernels(scores.device):
            return self._draw_on_device(input_ids[:, self._width :], scores, repeats)
        numbers = self._numbers if repeats == 1 else np.repeat(self._numbers, repeats, axis=0)
        responses = _to_numpy(input_ids)[:, self._width :]
        final = scores if scores.dtype == torch.float32 else scores.float()
        tokens = self._watermark.draw_scores(numbers, responses, _to_numpy(final))
        only = torch.full_like(scores, float("-inf"))
        if final is scores and scores.is_cpu:
            places = only.numpy()
            for row, token in enumerate(tokens.tolist()):  # a tenth of a scatter's time for one row
                places[row, token] = 0.0
        else:
            only.scatter_(1, torch.from_numpy(tokens).to(only.device).unsqueeze(1), 0.0)
        return only

    def _draw_on_device(
        self, responses: torch.Tensor, scores: torch.Tensor, repeats: int
    ) -> torch.Tensor:
        """A row that is no distribution becomes nan, on which transformers' own draw fails."""
        size = self._watermark.keyring.public.vocabulary_size
        if scores.shape[1] > size:  # a single token cannot be asked about without waiting for it
            raise ConfigurationMismatchError(
                f"the model must have at most the keyring's {size} tokens; it has "
                f"{scores.shape[1]} logits. Make the keyring with keys new --vocabulary-size."
            )
        rows = self._rows_on(scores.device, repeats)
        responses = responses.to(scores.device)
        length, width = responses.shape[1], self._watermark.keyring.context_width
        if length <= width:  # padding: a step wants more columns than a context
            responses = torch.nn.functional.pad(responses, (0, width + 1))
        draw = rows.watermark.draw(
            scores,
            responses,
            torch.full(scores.shape[:1], length, device=scores.device),
            rows.key_numbers,
            rows.seeds,
        )
        return leave_alone(scores, draw.tokens)

    def _rows_on(self, device: torch.device, repeats: int) -> _DeviceRows:
        """What the rows of this call need on a device: copied there at the first step."""
        if (device, repeats) not in self._rows:
            if device not in self._tables:
                self._tables[device] = DeviceWatermark(self._watermark.keyring, device)
            table = self._tables[device]
            numbers = np.stack([table.key_numbers(mapping) for mapping in self._labels])
            numbers = np.repeat(numbers, repeats, axis=0)
            seeds = self._watermark.make_seeds(numbers.shape[0])
            self._rows[device, repeats] = _DeviceRows(
                table, torch.from_numpy(numbers).to(device), pack_keys(seeds, device)
            )
        return self._rows[device, repeats]


@dataclass(frozen=True)
class _DeviceRows:
    """Rows of one call of `generate`: key_numbers int64 [rows, slots], seeds int32 [rows, 8]."""

    watermark: DeviceWatermark
    key_numbers: torch.Tensor
    seeds: torch.Tensor


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's memory where that is possible; `force` costs more than a small draw."""
    plain = tensor.is_cpu and not tensor.requires_grad
    array: NDArray[Any] = tensor.numpy() if plain else tensor.numpy(force=True)
    return array


@dataclass(frozen=True)
class GeneratedResponse:
    """One served response.

    Attributes
    ----------
    prompt_index : which prompt it answers
    token_ids, prompt_token_ids : uint32 [.]; the response with its end token, without padding
    drawn : bool [n], which of its tokens were drawn under a key
    finish : "end" if it ended with an end token, "length" if it was cut at `max_new_tokens`
    """

    prompt_index: int
    token_ids: NDArray[np.uint32]
    prompt_token_ids: NDArray[np.uint32]
    drawn: NDArray[np.bool_]
    finish: Finish

    @property
    def marked(self) -> bool:
        """Whether any token was drawn under a key."""
        return bool(self.drawn.any())


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
    options = {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "pad_token_id": tokenizer.pad_token_id,
    }
    for start in range(0, len(prompts), batch_size):
        chosen = list(range(start, min(start + batch_size, len(prompts))))
        inputs = tokenizer([prompts[i] for i in chosen], return_tensors="pt", padding=True).to(
            model.device
        )
        inputs.pop("token_type_ids", None)
        with torch.inference_mode():
            output = model.generate(
                **inputs,
                **adapter.generate_arguments(inputs, [labels[i] for i in chosen], options),
            )
        width = inputs["input_ids"].shape[1]
        ends = _end_tokens(model)
        for row, index in enumerate(chosen):
            ids, finish = _cut_after_end(output[row, width:].cpu().numpy(), ends)
            mask = inputs["attention_mask"][row].bool()
            yield GeneratedResponse(
                prompt_index=index,
                token_ids=ids,
                prompt_token_ids=inputs["input_ids"][row][mask].cpu().numpy().astype(np.uint32),
                drawn=watermark.marked_positions(labels[index], ids),
                finish=finish,
            )


def _end_tokens(model: PreTrainedModel) -> set[int]:
    ends = model.generation_config.eos_token_id
    if ends is None:
        return set()
    return set(ends) if isinstance(ends, (list, tuple)) else {int(ends)}


def _cut_after_end(ids: NDArray[np.int64], ends: set[int]) -> tuple[NDArray[np.uint32], Finish]:
    """Drop the padding after the first end token, which was drawn like any other."""
    stops = np.flatnonzero(np.isin(ids, list(ends)))
    if not stops.size:
        return ids.astype(np.uint32), "length"
    return ids[: stops[0] + 1].astype(np.uint32), "end"
