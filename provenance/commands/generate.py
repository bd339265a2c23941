"""`provenance generate`: marked responses from a local model, through transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import provenance as pv
from provenance.commands.console import parse_labels, progress, tell


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
    common = parse_labels(label or [])
    with progress() as show:
        made = pv.generate_log(
            model,
            prompts,
            keys,
            output,
            labels=common,
            seed=seed,
            progress=lambda done, total: show("Generating", done, total),
            batch_size=batch_size,
            max_new_tokens=max_new_tokens,
            temperature=temperature,
            top_k=top_k,
            top_p=top_p,
        )
    if made.recovered is not None:
        tell(f"An earlier run was cut off; its responses: {made.recovered}")
    tell(f"{made.responses} responses, {made.marked} of them marked: {output}")
