"""Responses from a local model to a file of prompts: marked, with the served log, or unmarked.

Unmarked ones are what references and innocents are made of: records that `check --innocent`,
`--reference-text`, `plan prompts --unmarked` and `index build` take as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from provenance.embed.sink import ResponseSink
from provenance.embed.transformers import generate_responses, sample_responses
from provenance.embed.watermark import Watermark
from provenance.errors import DataError, UsageError
from provenance.keys.keyring import TOKENIZER_FILE
from provenance.keys.worker import read_public
from provenance.served.model import load_model, load_tokenizer_of
from provenance.storage.files import as_path, canonical_json, write_atomically
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
    n: int = 1,
    seed: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    **sampling: Any,
) -> GeneratedLog:
    """Sample marked responses, n a prompt, and write the served log.

    Parameters
    ----------
    model : folder of a transformers model, whose tokenizer is that of the keyring
    prompts : JSONL with `prompt` or `messages`, and optional `labels`
    keys : folder of the keyring
    output : the served log: .jsonl, .parquet or a folder
    labels : of every response, beside its prompt's own
    n : responses a prompt, at least 1
    seed : of ordinary draws; None: random
    progress : told how many responses are written, and how many there will be
    sampling : batch_size, max_new_tokens, temperature, top_k, top_p

    Raises
    ------
    MissingExtraError without torch; UsageError, DataError, StorageError,
    ConfigurationMismatchError before anything is sampled.
    """
    folder = as_path(model, "the model's folder")
    watermark = Watermark.load(as_path(keys, "the keyring's folder"), np.random.default_rng(seed))
    watermark.keyring.public.check_tokenizer(folder / TOKENIZER_FILE)
    tokenizer = load_tokenizer_of(folder)
    asked = _read_prompts(prompts, tokenizer, labels or {}, n)
    for one in asked:
        watermark.check_labels(one.labels)
    loaded, marked = load_model(folder), 0
    texts, own = [one.text for one in asked], [one.labels for one in asked]
    responses = generate_responses(loaded, tokenizer, texts, own, watermark, **sampling)
    with ResponseSink(watermark, as_path(output, "the log")) as sink:
        for done, response in enumerate(responses, start=1):
            text = tokenizer.decode(response.token_ids, skip_special_tokens=True)
            marked += sink.write(response, text=text)
            progress(done, len(asked))
    return GeneratedLog(len(asked), marked, getattr(sink.log, "recovered", None))


def generate_unmarked(
    model: Any,
    prompts: Any,
    output: Any,
    *,
    keys: Any = None,
    labels: Mapping[str, str] | None = None,
    n: int = 1,
    seed: int | None = None,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
    **sampling: Any,
) -> GeneratedLog:
    """Sample unmarked responses, n a prompt: for references, innocents and `choose_prompts`.

    Parameters
    ----------
    model, prompts, labels, n, seed, progress, sampling : as of `generate_log`
    output : JSONL of outputs, a record a response: prompt or messages, output, `"marked": false`
    keys : folder of a keyring whose tokenizer the model must have; no key is opened. None: not
        compared

    Raises
    ------
    MissingExtraError without torch; UsageError, DataError, StorageError,
    ConfigurationMismatchError before anything is sampled. A file that is there is replaced when all
    responses are made.
    """
    folder, path = as_path(model, "the model's folder"), as_path(output, "the outputs")
    if not path.name.endswith(".jsonl"):
        raise UsageError(f"unmarked outputs must go to a file .jsonl; got {path}. Rename it.")
    if keys is not None:
        public = read_public(as_path(keys, "the keyring's folder"), may_be_expired=True).public
        public.check_tokenizer(folder / TOKENIZER_FILE)
    tokenizer = load_tokenizer_of(folder)
    asked = _read_prompts(prompts, tokenizer, labels or {}, n)
    loaded, lines = load_model(folder), []
    drawn = sample_responses(loaded, tokenizer, [one.text for one in asked], seed=seed, **sampling)
    for done, (one, (ids, finish)) in enumerate(zip(asked, drawn, strict=True), start=1):
        record = {
            **one.shown,
            "output": tokenizer.decode(ids, skip_special_tokens=True),
            "marked": False,
            "labels": one.labels,
            "finish": finish,
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
        }
        lines.append(canonical_json(record) + b"\n")
        progress(done, len(asked))
    write_atomically(path, b"".join(lines))
    return GeneratedLog(len(asked), 0)


@dataclass(frozen=True)
class _Asked:
    """One response that is wanted: what is shown, as the file says it and as the model reads it."""

    shown: dict[str, Any]
    text: str
    labels: dict[str, str]


def _read_prompts(prompts: Any, tokenizer: Any, labels: Mapping[str, str], n: int) -> list[_Asked]:
    """Every prompt n times. Raises UsageError, DataError, StorageError."""
    if n < 1:
        raise UsageError(f"n must be at least 1 response a prompt; got {n}.")
    file = as_path(prompts, "the prompts")
    found = list(_read_each(file, tokenizer, labels))
    if not found:
        raise DataError(f"{file}: must hold at least one prompt; it is empty.")
    return [one for one in found for _ in range(n)]


def _read_each(file: Path, tokenizer: Any, labels: Mapping[str, str]) -> Iterator[_Asked]:
    for origin, record in read_json_lines(LineReader(file)):
        text = _read_prompt(record, tokenizer, origin)
        shown = {name: record[name] for name in ("prompt", "messages") if name in record}
        yield _Asked(shown, text, {**labels, **_read_labels(record, origin)})


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
