"""`provenance verify`: repeat every step of a bundle, and say which held."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import provenance as pv
from provenance.commands.console import print_json, results
from provenance.errors import VerificationError


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="Bundle that `check -o` wrote.")],
    public_key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) of the expected signer.")
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="Root certificates (PEM) of time-stamp authorities.")
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Accept a bundle that nobody signed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The steps on stdout.")] = False,
) -> None:
    """Verify a bundle from its own files. Exit 0: nothing failed; 1: a step failed."""
    try:
        found = pv.verify(bundle, public_key=public_key, trust=trust, unsigned=unsigned)
    except VerificationError as error:
        found = error.verification
    if as_json:
        print_json(found.to_json())
    else:
        results.print(str(found), markup=False, highlight=False, soft_wrap=True)
    raise typer.Exit(0 if found.passed else 1)
