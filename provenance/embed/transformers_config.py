"""What transformers carries to the end of its processors: the config, and the processor it makes.

transformers asks a watermarking config for a processor and puts it after all others, so this one
sees the final scores. It draws the token of each row and leaves only that one possible. Which
options of `generate` cannot carry a mark is said here too. `provenance.embed.transformers` is the
door.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.embed.device.torch_batch import (
    DevicePrompts,
    DeviceWatermark,
    keep_only,
    leave_choice,
)
from provenance.embed.device.torch_coins import has_kernels, pack_keys
from provenance.embed.watermark import Watermark
from provenance.errors import ConfigurationMismatchError, MissingExtraError, UsageError
from provenance.served.records import Labels

try:
    import torch
    from transformers import LogitsProcessor
    from transformers.generation.configuration_utils import BaseWatermarkingConfig
except ImportError as error:
    raise MissingExtraError("torch must be installed; it is not.", "torch") from error

_log = logging.getLogger(__name__)

_NO_CONTINUOUS_BATCHING: Final = (
    "Continuous batching does not tell a processor which response a row is; use generate."
)
_NO_ENSEMBLE: Final = "It accepts tokens that the watermark did not draw; leave it out."

_DeviceRows = tuple[DeviceWatermark, torch.Tensor, torch.Tensor, DevicePrompts | None]
"""Of the rows of one call: the keys, int64 [rows, slots] which of them, int32 [rows, 8] seeds, and
the prompts if the keyring reads them."""
Prompts = Sequence[NDArray[np.int64]]
"""Ids of each prompt, without padding."""
Tables = dict[torch.device, DeviceWatermark]
"""The keys on each device that scores were on: copied once, whatever the number of calls."""


def check_options(options: Any) -> None:
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


def make_config(
    watermark: Watermark, labels: Sequence[Labels], prompts: Prompts, width: int, tables: Tables
) -> BaseWatermarkingConfig:
    """What `model.generate` takes as `watermarking_config`, for prompts of `width` columns."""
    return _WatermarkConfig(watermark, tuple(labels), prompts, width, tables)


class _WatermarkConfig(BaseWatermarkingConfig):  # type: ignore[misc]
    """What transformers carries to the end of its list of processors. Shows no secret."""

    # transformers shows and saves `__dict__`: only the keyring's id
    __slots__ = ("_arguments", "_drawn")

    def __init__(self, *arguments: Any) -> None:
        self._drawn: dict[int, Any] = {}
        self._arguments = (*arguments, self._drawn)
        self.__dict__["keyring"] = arguments[0].keyring.public.id

    def __deepcopy__(self, memo: dict[int, Any]) -> _WatermarkConfig:
        return self

    def validate(self) -> None:
        """Nothing left to validate: `generate_arguments` did."""

    def construct_processor(self, vocab_size: int, device: Any = None) -> _WatermarkProcessor:
        del vocab_size
        where = torch.device(device or "cpu")
        if where.type != "cpu" and not has_kernels(where):
            _log.info("no kernels on %s: the scores of every token are copied to the host", where)
        return _WatermarkProcessor(*self._arguments)

    def read_drawn(self, shape: tuple[int, int]) -> NDArray[np.bool_]:
        """Which tokens of the last call's responses a coin decided: bool of a shape [rows, n].

        Of a place that was drawn more than once, as drafts of assisted decoding are, the last.
        """
        drawn = np.zeros(shape, dtype=np.bool_)
        for place, rows in self._drawn.items():
            if place < shape[1]:
                drawn[:, place] = rows.cpu().numpy() if isinstance(rows, torch.Tensor) else rows
        return drawn


class _WatermarkProcessor(LogitsProcessor):  # type: ignore[misc]
    """Draws the token of each row and leaves only that token possible."""

    def __init__(
        self,
        watermark: Watermark,
        labels: tuple[Labels, ...],
        prompts: Prompts,
        width: int,
        tables: Tables,
        drawn: dict[int, Any],
    ) -> None:
        self._watermark = watermark
        self._drawn = drawn
        self._labels = labels
        self._numbers = watermark.key_numbers(labels)
        self._prompts = prompts
        self._contexts = watermark.read_prompts(prompts)
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
        numbers, contexts = self._numbers, self._contexts
        if repeats > 1:
            numbers, contexts = np.repeat(numbers, repeats, axis=0), contexts.repeat(repeats)
        responses = _to_numpy(input_ids)[:, self._width :]
        final = scores if scores.dtype == torch.float32 else scores.float()
        drawn = self._drawn[responses.shape[1]] = np.empty(rows, dtype=np.bool_)
        tokens = self._watermark.draw_scores(numbers, responses, _to_numpy(final), contexts, drawn)
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
        watermark, numbers, seeds, prompts = self._rows_on(scores.device, repeats)
        responses = responses.to(scores.device)
        length, width = responses.shape[1], self._watermark.keyring.context_width
        if length <= width:  # padding: a draw wants more columns than a context
            responses = torch.nn.functional.pad(responses, (0, width + 1))
        lengths = torch.full(scores.shape[:1], length, device=scores.device)
        draw = watermark.draw(scores, responses, lengths, numbers, seeds, prompts=prompts)
        self._drawn[length] = draw.marked & leave_choice(scores)
        return keep_only(scores, draw.tokens)

    def _rows_on(self, device: torch.device, repeats: int) -> _DeviceRows:
        """What the rows of this call need on a device: copied there at the first token."""
        if (device, repeats) not in self._rows:
            if device not in self._tables:
                self._tables[device] = DeviceWatermark(self._watermark.keyring, device)
            table = self._tables[device]
            numbers = np.stack([table.key_numbers(mapping) for mapping in self._labels])
            numbers = np.repeat(numbers, repeats, axis=0)
            seeds = self._watermark.make_seeds(numbers.shape[0])
            on_device = torch.from_numpy(numbers).to(device)
            prompts = self._prompts_on(device, repeats)
            self._rows[device, repeats] = table, on_device, pack_keys(seeds, device), prompts
        return self._rows[device, repeats]

    def _prompts_on(self, device: torch.device, repeats: int) -> DevicePrompts | None:
        if not self._watermark.keyring.reads_prompt:
            return None
        lengths = np.array([ids.shape[0] for ids in self._prompts])
        padded = np.zeros((lengths.shape[0], lengths.max()), dtype=np.int64)
        padded[np.arange(padded.shape[1]) < lengths[:, np.newaxis]] = np.concatenate(self._prompts)
        rows = np.repeat(np.arange(lengths.shape[0]), repeats)
        return DevicePrompts(
            *(torch.from_numpy(part).to(device) for part in (padded, rows, lengths[rows]))
        )


def _to_numpy(tensor: torch.Tensor) -> NDArray[Any]:
    """The tensor's memory where that is possible; `force` costs more than a small draw."""
    plain = tensor.is_cpu and not tensor.requires_grad
    array: NDArray[Any] = tensor.numpy() if plain else tensor.numpy(force=True)
    return array
