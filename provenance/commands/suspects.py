"""`provenance suspects`: several verdicts of one keyring, judged together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import provenance as pv
from provenance.commands.console import print_result
from provenance.commands.options import Json


def suspects(
    folders: Annotated[
        list[Path], typer.Argument(metavar="VERDICT_DIR...", help="Folders of `check -o`.")
    ],
    alpha: Annotated[
        float, typer.Option(help="Family-wise error rate over all suspects and keys.")
    ] = 1e-4,
    fdr: Annotated[float, typer.Option(help="False discovery rate of e-BH over suspects.")] = 0.01,
    as_json: Json = False,
) -> None:
    """Judge several suspects together: nobody accused by chance, however many were checked.

    Exit 1: somebody is accused (family-wise); 0: nobody; 3: nobody, but not for want of a mark.
    """
    family = pv.judge_suspects([pv.read_suspect(folder) for folder in folders], alpha, fdr)
    print_result(family, as_json=as_json)
    raise typer.Exit(family.exit_code)
