"""Marked responses from a local model to a file of prompts, with the served log beside."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from provenance.embed.sink import ResponseSink
from provenance.embed.transformers import generate_responses
from provenance.embed.watermark import Watermark
from provenance.errors import DataError
from provenance.keys.keyring import TOKENIZER_FILE
from provenance.served.model import load_model, load_tokenizer_of
from provenance.storage.files import as_path
from provenance.storage.lines import LineReader, read_json_lines


@dataclass(frozen=True)
class GeneratedLog:
    """How many responses were written, how many of them are marked, and a salvaged earlier file."""

    responses: int
    marked: int
    recovered: Path | None = None


def generate_log(
    model: Any,
    prompts: Any,
    keys: Any,
    output: Any,
    *,
    labels: Mapping[str, str] | None = None,
    seed: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    **sampling: Any,
) -> GeneratedLog:
    """Sample one marked response per prompt and write the served log.

    Parameters
    ----------
    model : folder of a transformers model, whose tokenizer is that of the keyring
    prompts : JSONL with `prompt` or `messages`, and optional `labels`
    keys : folder of the keyring
    output : the served log: .jsonl, .parquet or a folder
    labels : of every response, beside its prompt's own
    seed : of ordinary draws; None: random
    progress : told how many responses are written, and how many there will be
    sampling : batch_size, max_new_tokens, temperature, top_k, top_p

    Raises
    ------
    MissingExtraError without torch; UsageError, DataError, StorageError,
    ConfigurationMismatchError before anything is sampled.
    """
    folder, file = as_path(model, "the model's folder"), as_path(prompts, "the prompts")
    watermark = Watermark.load(as_path(keys, "the keyring's folder"), np.random.default_rng(seed))
    watermark.keyring.public.check_tokenizer(folder / TOKENIZER_FILE)
    records = list(read_json_lines(LineReader(file)))
    tokenizer, loaded = load_tokenizer_of(folder), load_model(folder)
    texts = [_read_prompt(record, tokenizer, origin) for origin, record in records]
    own = [{**(labels or {}), **_read_labels(record, origin)} for origin, record in records]
    if not texts:
        raise DataError(f"{file}: must hold at least one prompt; it is empty.")
    for mapping in own:
        watermark.check_labels(mapping)
    marked = 0
    responses = generate_responses(loaded, tokenizer, texts, own, watermark, **sampling)
    with ResponseSink(watermark, as_path(output, "the log")) as sink:
        for done, response in enumerate(responses, start=1):
            text = tokenizer.decode(response.token_ids, skip_special_tokens=True)
            marked += sink.write(response, text=text)
            progress(done, len(texts))
    return GeneratedLog(len(texts), marked, getattr(sink.log, "recovered", None))


def _read_prompt(record: Any, tokenizer: Any, origin: str) -> str:
    if isinstance(record, dict) and isinstance(record.get("prompt"), str):
        return str(record["prompt"])
    if isinstance(record, dict) and isinstance(record.get("messages"), list):
        if tokenizer.chat_template is None:
            raise DataError(f"{origin}: messages need a chat template; the model has none.")
        text = tokenizer.apply_chat_template(
            record["messages"], tokenize=False, add_generation_prompt=True
        )
        return str(text)
    raise DataError(f"{origin}: must have prompt (a string) or messages (a list); it has neither.")


def _read_labels(record: Any, origin: str) -> dict[str, str]:
    labels = record.get("labels", {})
    if not isinstance(labels, dict) or not all(isinstance(v, str) for v in labels.values()):
        raise DataError(f"{origin}: labels must map names to strings; they do not.")
    return labels
