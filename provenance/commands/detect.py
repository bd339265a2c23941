"""`provenance detect`: is this very text marked, and where?"""

from __future__ import annotations

from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import print_result
from provenance.commands.options import Json, shares_options


@shares_options
def detect(
    texts: Annotated[
        list[str],
        typer.Argument(metavar="TEXT...", help="Files of outputs or plain text; - is stdin."),
    ],
    mark: Any,
    read_as: Any,
    alpha: Annotated[float, typer.Option(help="Level over all keys, windows and texts.")] = 1e-4,
    pool: Annotated[
        bool, typer.Option("--pool", help="One test of all texts together, each coin once.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Test texts for the mark itself.

    Exit 1: at least one is marked; 0: none is; 3: none is, but one or more could not be tested.
    """
    options = {"tokenizer": mark.tokenizer, "alpha": alpha, "pool": pool, "read_as": read_as}
    options = {"tokenizer": mark.tokenizer, "alpha": alpha, "pool": pool, "read_as": read_as}
    found = pv.detect_texts(texts, mark.open(), **options)
    print_result(found, as_json=as_json)
    raise typer.Exit(found.exit_code)
