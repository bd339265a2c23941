"""`provenance case`: a folder in which everything that is tried on one suspect is counted."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import print_result
from provenance.commands.options import Json, shares_options

app = typer.Typer(help="Case folders: what was tried on one suspect.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the case.")]


@app.command("new")
@shares_options
def new(
    folder: Folder,
    suspect: Annotated[str, typer.Option(help="Which model the case is about, in words.")],
    mark: Any,
    number: Annotated[str, typer.Option(help="Number of the case.")] = "",
    author: Annotated[str, typer.Option(help="Whose case it is.")] = "",
    index: Annotated[Path | None, typer.Option(help="Folder of the index.")] = None,
    signing_key: Annotated[
        Path | None, typer.Option(help="Key that signs every line of the register.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Begin a case. Commands that run in its folder find it, and enter what they try."""
    keyring = mark.keys or mark.describe(index)
    made = pv.new_case(
        folder,
        keyring,
        suspect,
        number=number,
        author=author,
        signing_key=signing_key,
        index=index,
    )
    print_result(made, as_json=as_json)


@app.command("show")
def show(folder: Folder, as_json: Json = False) -> None:
    """Show what was tried, and whether the register holds. Exit 1: it does not."""
    found = pv.read_case(folder)
    print_result(found, as_json=as_json)
    raise typer.Exit(found.exit_code)
