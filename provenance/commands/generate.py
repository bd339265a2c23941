"""`provenance generate`: responses from a local model, marked or not, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import parse_labels, progress, tell
from provenance.errors import UsageError


def generate(
    model: Annotated[Path, typer.Option(help="Folder of a transformers model.")],
    prompts: Annotated[Path, typer.Option(help="JSONL: prompt or messages; optional labels.")],
    output: Annotated[
        Path, typer.Option("-o", "--output", help="Served log: .jsonl, .parquet or a folder.")
    ],
    keys: Annotated[Path | None, typer.Option(help="Folder of the keyring.")] = None,
    unmarked: Annotated[
        bool, typer.Option("--unmarked", help="Without the mark: for references and innocents.")
    ] = False,
    n: Annotated[int, typer.Option("--n", help="Responses per prompt.")] = 1,
    label: Annotated[list[str] | None, typer.Option(help="NAME=VALUE; repeatable.")] = None,
    batch_size: Annotated[int, typer.Option(help="Prompts per batch.")] = 16,
    max_new_tokens: Annotated[int, typer.Option(help="Tokens per response.")] = 256,
    temperature: Annotated[float, typer.Option(help="Above 0.")] = 1.0,
    top_k: Annotated[int, typer.Option(help="0: off.")] = 0,
    top_p: Annotated[float, typer.Option(help="1: off.")] = 1.0,
    seed: Annotated[int | None, typer.Option(help="Of ordinary draws; default: random.")] = None,
) -> None:
    """Sample marked responses and write the served log; or unmarked ones, as outputs in JSONL.

    --unmarked needs no keys; with them the model must have the keyring's tokenizer.
    """
    options: dict[str, Any] = {
        "labels": parse_labels(label or []),
        "n": n,
        "seed": seed,
        "batch_size": batch_size,
        "max_new_tokens": max_new_tokens,
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
    }
    if keys is None and not unmarked:
        raise UsageError("--keys must be given, or --unmarked; both are missing. Give one.")
    with progress() as show:
        options["progress"] = lambda done, total: show("Generating", done, total)
        if unmarked:
            made = pv.generate_unmarked(model, prompts, output, keys=keys, **options)
        else:
            made = pv.generate_log(model, prompts, keys, output, **options)
    if made.recovered is not None:
        tell(f"An earlier run was cut off; its responses: {made.recovered}")
    tell(f"{made.responses} responses, {made.marked} of them marked: {output}")
