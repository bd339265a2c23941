"""`provenance collect`: the suspect's outputs from an API or from batches, with custody."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import print_result, progress
from provenance.commands.options import Json, shares_options
from provenance.errors import UsageError

app = typer.Typer(help="Collect a suspect's outputs, with a ledger of every request.")

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the collection.")]
Prompts = Annotated[Path | None, typer.Option(help="JSONL: prompt or messages; optional id.")]
Into = Annotated[Path | None, typer.Option("-o", "--output", help="Folder of the collection.")]


@app.callback(invoke_without_command=True)
@shares_options
def collect(
    context: typer.Context,
    asking: Any,
    sending: Any,
    prompts: Prompts = None,
    output: Into = None,
    as_json: Json = False,
) -> None:
    """Ask an API in OpenAI's dialect; a killed run goes on where it stood.

    Exit 3: stopped before the end, and why.
    """
    if context.invoked_subcommand is None:
        places = _need(prompts, output)
        settings = pv.CollectSettings.read(**asking, **sending)
        with progress() as show:
            found = pv.collect_outputs(*places, settings, show)
        print_result(found, as_json=as_json)
        raise typer.Exit(found.exit_code)


@app.command("verify")
def verify(
    folder: Folder,
    head: Annotated[str | None, typer.Option(help="Head that the ledger must have had.")] = None,
    as_json: Json = False,
) -> None:
    """Recompute a ledger's chain and what follows from it. Exit 1: it does not hold."""
    found = pv.verify_collection(folder, head)
    print_result(found, as_json=as_json)
    raise typer.Exit(found.exit_code)


@app.command("prepare")
@shares_options
def prepare(
    batch_format: Annotated[str, typer.Option("--format", help="openai-batch or anthropic-batch.")],
    asking: Any,
    prompts: Prompts = None,
    output: Into = None,
    as_json: Json = False,
) -> None:
    """Write the input file of an offline batch."""
    places = _need(prompts, output)
    made = pv.prepare_batch(*places, pv.CollectSettings.read(**asking), batch_format)
    print_result(made, as_json=as_json)


@app.command("import")
def import_results(
    results: Annotated[Path, typer.Argument(metavar="FILE", help="Results, or errors.")],
    folder: Folder,
    as_json: Json = False,
) -> None:
    """Take the results of an offline batch into the ledger."""
    print_result(pv.import_batch(results, folder), as_json=as_json)


def _need(prompts: Path | None, output: Path | None) -> tuple[Path, Path]:
    if prompts is None or output is None:
        raise UsageError("--prompts and -o must both be given; one is missing. Name both.")
    return prompts, output
