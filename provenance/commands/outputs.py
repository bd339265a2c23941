"""`provenance outputs`: how files of outputs are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import print_result
from provenance.commands.options import Json, shares_options

Files = Annotated[
    list[Path], typer.Argument(metavar="OUTPUTS...", help="Files, folders; - is stdin.")
]
app = typer.Typer(help="Files of outputs: how they are read.", no_args_is_help=True)
app.callback()(lambda: None)  # `show` stays a command of its own while it is the only one


@app.command("show")
@shares_options
def show(files: Files, read_as: Any, as_json: Json = False) -> None:
    """Show the shape of outputs, their counts, the first record, and what holds no text."""
    print_result(pv.read_outputs(files, **read_as), as_json=as_json)
