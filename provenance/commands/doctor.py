"""`provenance doctor`: what is installed, and which parts work."""

from __future__ import annotations

import typer

import provenance as pv
from provenance.commands.console import print_result
from provenance.commands.options import Json


def doctor(as_json: Json = False) -> None:
    """Show what is installed, which parts work, and where caches are.

    Exit 0: the base works; 78: it does not.
    """
    found = pv.inspect_installation()
    print_result(found, as_json=as_json)
    raise typer.Exit(found.exit_code)
