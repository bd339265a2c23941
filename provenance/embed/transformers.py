"""Adapter for Hugging Face `generate`: the mark is the last step after temperature and top-k/p.

transformers applies user processors *before* temperature, top-k, top-p, min-p and the other
warpers, and its own `watermarking_config` after all of them. The draw must act on the final
probabilities, so this adapter is a watermarking config. It draws the token itself and leaves
transformers a single candidate.

    marked = mark("keys/")
    with ResponseSink(marked.watermark, "served/") as sink:
        responses = marked.generate(model, **inputs, labels={"week": "2026-W49"}, sink=sink)

`Marked.generate_arguments` is for those who call `model.generate` themselves.

Sampling only. Greedy decoding, beams and continuous batching are refused in one line: nothing is
silently unmarked. Assisted decoding (an assistant model, prompt lookup) keeps the mark,
since a draw depends on the ids of the response alone.

Where the scores are on a GPU for which Triton is installed, they stay there: the draw runs on the
device and the host waits for nothing (`provenance.embed.device.torch_batch`). Scores on any other
accelerator are copied to the host.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from provenance.embed.rules import check_labels
from provenance.embed.sink import ResponseSink
from provenance.embed.transformers_config import Tables, check_options, make_config
from provenance.embed.watermark import Watermark
from provenance.errors import MissingExtraError, UsageError
from provenance.keys.marking import MarkingKeys
from provenance.served.records import Finish, Labels, ServedResponse

try:
    import torch
except ImportError as error:
    raise MissingExtraError("torch must be installed; it is not.", "torch") from error

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Marked:
    """Generates marked responses with any transformers model of its keyring; re-usable.

    `mark` makes one from a keyring. Shows no secret.
    """

    def __init__(self, watermark: Watermark) -> None:
        self.watermark = watermark
        self._tables: Tables = {}

    def __repr__(self) -> str:
        return f"Marked(keyring={self.watermark.keyring.public.id!r})"

    def generate(
        self,
        model: PreTrainedModel,
        *,
        labels: Labels | Sequence[Labels],
        sink: ResponseSink | None = None,
        **inputs: Any,
    ) -> list[ServedResponse]:
        """Sample marked responses, and log them.

        Parameters
        ----------
        model : the served model
        labels : attribute values, one mapping for all rows or one a row. Every name must be a slot
            of the keyring: names for groups are for `ResponseSink.write`
        sink : where to log the responses; None: nowhere
        inputs : what the tokenizer returned, padded on the left: `input_ids`, integers [rows,
            width], and `attention_mask`; and any options of `model.generate`

        Returns one response a row, in order (`num_return_sequences` of them one after another): its
        ids without prompt and padding, with the end token; which were drawn under a key.

        Raises UsageError for what `generate_arguments` refuses, and for what ends a response so
        that its last token cannot be told from padding (stop strings, criteria, a time limit);
        ConfigurationMismatchError if a label has no key, or the sink is of another keyring.
        """
        ids, _ = _read_inputs(inputs)
        rows = _match([labels] * len(ids) if isinstance(labels, Mapping) else labels, len(ids))
        for mapping in rows:
            check_labels(self.watermark.keyring, mapping, names_may_be_unknown=False)
        if sink is not None:
            sink.check_keyring(self.watermark.keyring.public)
        responses = self._serve(model, rows, inputs)
        if sink is not None:
            for response in responses:
                sink.write(response)
        return responses

    def _serve(
        self, model: PreTrainedModel, labels: Sequence[Labels], inputs: dict[str, Any]
    ) -> list[ServedResponse]:
        """`generate` without the log, for labels of which some names may be no slot."""
        ids, mask = _read_inputs(inputs)
        inputs["input_ids"] = ids.to(model.device)
        if mask is not None:
            inputs["attention_mask"] = mask.to(model.device)
        if "token_type_ids" not in inspect.signature(model.forward).parameters:
            inputs.pop("token_type_ids", None)  # many tokenizers make them, few models read them
        ends = _end_tokens(model, inputs)
        inputs["eos_token_id"] = ends or None
        arguments = self.generate_arguments(inputs, labels, inputs)
        with torch.inference_mode():
            output = model.generate(**arguments)
        output = getattr(output, "sequences", output)[:, ids.shape[1] :].cpu().numpy()
        repeats = len(output) // len(ids)
        responses = []
        prompts = _list_prompts(ids, mask)
        decided = arguments["watermarking_config"].read_drawn(output.shape)
        for i, row in enumerate(output):
            prompt = prompts[i // repeats]
            own, finish = _cut_after_end(row, ends)
            drawn = decided[i, : own.shape[0]]
            responses.append(
                ServedResponse(
                    marked=bool(drawn.any()),
                    labels=labels[i // repeats],
                    token_ids=own,
                    prompt_token_ids=prompt.astype(np.uint32),
                    drawn=drawn,
                    finish=finish,
                )
            )
        return responses

    def generate_arguments(
        self,
        inputs: Mapping[str, Any],
        labels: Sequence[Labels],
        options: Mapping[str, Any] | None = None,
    ) -> dict[str, Any]:
        """Keyword arguments for `model.generate(**inputs, **arguments)`.

        Parameters
        ----------
        inputs : what the tokenizer returned; `input_ids` [rows, width], padded on the left, and
            the `attention_mask` that tells the padding from the prompt
        labels : attribute values, one mapping per row (`num_return_sequences` repeats them)
        options : arguments of `generate`, for example temperature or max_new_tokens; they are
            checked here and returned with the others

        Raises UsageError if there is not one mapping per row, the padding is on the right, or an
        option asks for a way of decoding that cannot be marked; ConfigurationMismatchError if a
        label has no key.
        """
        ids, mask = _read_inputs(inputs)
        for mapping in _match(labels, len(ids)):
            self.watermark.check_labels(mapping)
        options = dict(options or {})
        for source in (options.get("generation_config"), options):
            check_options(source)
        prompts = _list_prompts(ids, mask)
        config = make_config(self.watermark, labels, prompts, ids.shape[1], self._tables)
        fixed = {"watermarking_config": config, "do_sample": True, "num_beams": 1}
        return {**options, **fixed}


TransformersWatermark = Marked
"""The name that `Marked` had before `mark` made it."""


def mark(keyring: str | Path | MarkingKeys, *, seed: int | None = None) -> Marked:
    """The front door: what marks the responses of a transformers model.

    Parameters
    ----------
    keyring : folder of a keyring, or an unlocked one; a worker's file, or its keys
    seed : of ordinary draws; default: from the operating system

    Raises UsageError for anything else, and what `provenance.keys.worker.open_keys` raises.
    """
    generator = np.random.default_rng(seed)
    if isinstance(keyring, MarkingKeys):
        return Marked(Watermark(keyring, generator))
    if isinstance(keyring, str | Path):
        return Marked(Watermark.load(keyring, generator))
    raise UsageError(
        f"keyring must be a folder or an unlocked keyring; got {type(keyring).__name__}. Pass the "
        "folder, or what Keyring.unlock returned."
    )


def _read_inputs(inputs: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Prompts int64 [rows, width] of any integers, and their mask; UsageError unless usable."""
    if inputs.get("input_ids") is None:
        raise UsageError(
            "input_ids must be given: the mark and the log need the ids of the prompt; got "
            f"{', '.join(sorted(inputs)) or 'nothing'}. Pass what the tokenizer returned."
        )
    try:
        ids = torch.as_tensor(inputs["input_ids"])
        mask = inputs.get("attention_mask")
        mask = None if mask is None else torch.as_tensor(mask)
    except (TypeError, ValueError, RuntimeError):  # rows of unequal lengths, text
        ids, mask = torch.empty(0), None
    kind = np.dtype(str(ids.dtype).removeprefix("torch.").replace("bfloat16", "float16")).kind
    if ids.ndim != 2 or not ids.numel() or kind not in "iu":
        raise UsageError(
            f"input_ids must be integers of shape [rows, width]; got {ids.dtype} of shape "
            f"{tuple(ids.shape)}. Tokenize with return_tensors='pt' and padding."
        )
    if mask is not None and mask.shape != ids.shape:
        raise UsageError(
            f"attention_mask must have the shape of input_ids, {tuple(ids.shape)}; got "
            f"{tuple(mask.shape)}. Pass what the tokenizer returned."
        )
    if mask is not None and not bool(mask[:, -1].all()):
        raise UsageError(
            "prompts must be padded on the left; the last column is masked. "
            "Set tokenizer.padding_side = 'left'."
        )
    return ids.long(), mask


def _list_prompts(ids: torch.Tensor, mask: torch.Tensor | None) -> list[NDArray[np.int64]]:
    """The prompt of each row, int64 [n], without padding."""
    rows: NDArray[np.int64] = ids.cpu().numpy()
    if mask is None:
        return list(rows)
    return [row[kept] for row, kept in zip(rows, mask.bool().cpu().numpy(), strict=True)]


def _match(labels: Any, rows: int) -> Sequence[Labels]:
    """Labels that are one mapping a row; UsageError otherwise."""
    found = list(labels) if isinstance(labels, Sequence) else []
    if len(found) != rows or not all(isinstance(mapping, Mapping) for mapping in found):
        raise UsageError(
            f"labels must be one mapping per row of input_ids; got {str(labels)[:60]} for {rows}."
        )
    return found


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
) -> Iterator[ServedResponse]:
    """Sample one marked response per prompt, batch by batch, in the order of the prompts.

    Parameters: prompts and labels of equal length; temperature > 0; top_k = 0 and top_p = 1 switch
    those off. Yields `ServedResponse`. Memory: one batch.
    """
    marked = Marked(watermark)
    options = _options(tokenizer, max_new_tokens, temperature, top_k, top_p)
    for rows, inputs in _batches(tokenizer, prompts, batch_size):
        yield from marked._serve(model, labels[rows], {**inputs, **options})


def sample_responses(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: Sequence[str],
    *,
    seed: int | None = None,
    batch_size: int = 16,
    max_new_tokens: int = 256,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
) -> Iterator[tuple[NDArray[np.uint32], Finish]]:
    """Sample one unmarked response per prompt, as `generate_responses` does marked ones.

    Yields the ids, with the end token, and how the response ended. The same seed gives the same
    responses; None: random. Raises UsageError for what cannot be sampled.
    """
    options = _options(tokenizer, max_new_tokens, temperature, top_k, top_p)
    check_options({**options, "do_sample": True})
    generator_seed = int(np.random.SeedSequence(seed).generate_state(1)[0])
    for rows, inputs in _batches(tokenizer, prompts, batch_size):
        if "token_type_ids" not in inspect.signature(model.forward).parameters:
            inputs.pop("token_type_ids", None)
        ends = _end_tokens(model, options)
        with torch.random.fork_rng(), torch.inference_mode():
            torch.manual_seed(generator_seed + rows.start)
            output = model.generate(
                **{name: value.to(model.device) for name, value in inputs.items()},
                **options,
                eos_token_id=ends or None,
                do_sample=True,
                num_beams=1,
            )
        width = inputs["input_ids"].shape[1]
        yield from (_cut_after_end(row, ends) for row in output[:, width:].cpu().numpy())


def _options(
    tokenizer: PreTrainedTokenizerBase,
    max_new_tokens: int,
    temperature: float,
    top_k: int,
    top_p: float,
) -> dict[str, Any]:
    """Options of `generate`; the tokenizer pads on the left from now on."""
    tokenizer.padding_side = "left"
    if tokenizer.pad_token_id is None:
        # without an end token either, any token does: what is padded is masked, and nothing ends
        tokenizer.pad_token = tokenizer.eos_token or tokenizer.convert_ids_to_tokens(0)
    return {
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "pad_token_id": tokenizer.pad_token_id,
    }


def _batches(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], batch_size: int
) -> Iterator[tuple[slice, dict[str, Any]]]:
    """Rows of every batch, and what the tokenizer makes of their prompts."""
    for start in range(0, len(prompts), batch_size):
        rows = slice(start, start + batch_size)
        yield rows, dict(tokenizer(list(prompts[rows]), return_tensors="pt", padding=True))


def _end_tokens(model: PreTrainedModel, options: Mapping[str, Any]) -> list[int]:
    """Tokens that end a response of this call: of its options, else of the model.

    Raises UsageError for another end that is asked for: a row that it ended is filled up to the
    longest one, and only end tokens can be told from what was drawn before.
    """
    given = options.get("generation_config")
    sources = [options, {} if given is None else vars(given), vars(model.generation_config)]
    for name in ("stop_strings", "stopping_criteria", "max_time"):
        if any(source.get(name) for source in sources):
            raise UsageError(
                f"{name} must not be asked for with Marked.generate, which could not tell where a "
                "response ended. Use generate_arguments, and log what was drawn."
            )
    if "eos_token_id" in options:
        ends = options["eos_token_id"]
    else:
        ends = next((s["eos_token_id"] for s in sources[1:] if s.get("eos_token_id")), None)
    return [int(end) for end in np.atleast_1d([] if ends is None else ends)]


def _cut_after_end(ids: NDArray[np.int64], ends: list[int]) -> tuple[NDArray[np.uint32], Finish]:
    """Drop the padding after the first end token, which was drawn like any other."""
    stops = np.flatnonzero(np.isin(ids, ends))
    if not stops.size:
        return ids.astype(np.uint32), "length"
    return ids[: stops[0] + 1].astype(np.uint32), "end"
