"""`provenance log`: what a served log says of the service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import print_result
from provenance.commands.options import Json, shares_options

app = typer.Typer(help="The served log: is it what the service drew?", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Keeps `audit` a command of its own while it is the only one."""


@app.command("audit")
@shares_options
def audit(
    logs: Annotated[
        list[Path], typer.Argument(metavar="LOG...", help="JSONL, gz, zst, Parquet, folders.")
    ],
    mark: Any,
    as_json: Json = False,
) -> None:
    """Test whether every replica, key and hour of served logs was really marked.

    Exit 1: one is not, or tokens are said to be drawn where no key decides; 0: every replica marks;
    3: too little to say of one.
    """
    found = pv.audit_log(logs, mark.open(), mark.tokenizer)
    print_result(found, as_json=as_json)
    raise typer.Exit(found.exit_code)
