"""`provenance generate`: marked responses from a local model, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from provenance.commands.console import parse_labels, words
from provenance.errors import DataError


def generate(
    model: Annotated[Path, typer.Option(help="Folder of a transformers model.")],
    prompts: Annotated[Path, typer.Option(help="JSONL: prompt or messages; optional labels.")],
    keys: Annotated[Path, typer.Option(help="Folder of the keyring.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Served log: .jsonl, .parquet or a folder.")
    ],
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeatable.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts per batch.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per response.")] = 256,
    temperature: Annotated[float, typer.Option(help="Above 0.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: off.")] = 0,
    top_p: Annotated[float, typer.Option(help="1: off.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of ordinary draws; default: random.")] = None,
) -> None:
    """Sample one marked response per prompt and write the served log."""
    import numpy as np
    from rich.progress import track

    from provenance.embed.sink import ResponseSink
    from provenance.embed.transformers import generate_responses
    from provenance.embed.watermark import Watermark
    from provenance.storage.lines import LineReader, read_json_lines

    watermark = Watermark.load(keys, np.random.default_rng(seed))
    watermark.keyring.public.check_tokenizer(model / "tokenizer.json")
    records = list(read_json_lines(LineReader(prompts)))
    common = parse_labels(label or [])
    loaded, tokenizer = _load_model(model)
    texts = [_read_prompt(record, tokenizer, origin) for origin, record in records]
    labels = [{**common, **_read_labels(record, origin)} for origin, record in records]
    if not texts:
        raise DataError(f"{prompts}: must hold at least one prompt; it is empty.")
    for mapping in labels:
        watermark.check_labels(mapping)
    responses = generate_responses(
        loaded,
        tokenizer,
        texts,
        labels,
        watermark,
        batch_size=batch_size,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )
    marked = 0
    with ResponseSink(watermark, output) as sink:
        progress = track(responses, "Generating", total=len(texts), console=words, transient=True)
        for response in progress:
            text = tokenizer.decode(response.token_ids, skip_special_tokens=True)
            marked += sink.write(response, text=text)
    recovered = getattr(sink.log, "recovered", None)
    if recovered is not None:
        words.print(f"An earlier run was cut off; its responses: {recovered}", highlight=False)
    words.print(f"{len(texts)} responses, {marked} of them marked: {output}", highlight=False)


def _load_model(folder: Path) -> tuple[Any, Any]:
    from provenance.served.model import load_model, load_tokenizer_of

    tokenizer = load_tokenizer_of(folder)
    return load_model(folder), tokenizer


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
