"""`provenance suspects`: several verdicts of one keyring, judged together."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import provenance as pv
from provenance.commands.console import print_result, tell
from provenance.commands.options import Author, CaseNumber, Json
from provenance.errors import UsageError


def suspects(
    folders: Annotated[
        list[Path], typer.Argument(metavar="VERDICT_DIR...", help="Folders of `check -o`.")
    ],
    alpha: Annotated[
        float, typer.Option(help="Family-wise error rate over all suspects and keys.")
    ] = 1e-4,
    fdr: Annotated[float, typer.Option(help="False discovery rate of e-BH over suspects.")] = 0.01,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Write a page, all side by side: HTML.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace that file.")] = False,
    case_number: CaseNumber = None,
    author: Author = None,
    as_json: Json = False,
) -> None:
    """Judge several suspects together: nobody accused by chance, however many were checked.

    Exit 1: somebody is accused (family-wise); 0: nobody; 3: nobody, but not for want of a mark.
    """
    filing = pv.Filing(number=case_number or "", author=author or "")
    if output is None and (filing or force):
        raise UsageError(
            "--case-number, --author and --force must come with -o; it is missing. Name the file "
            "of the page."
        )
    family = pv.judge_suspects([pv.read_suspect(folder) for folder in folders], alpha, fdr)
    if output is not None:
        pv.save_suspects_page(output, family, folders, filing=filing, force=force)
        tell(f"Wrote {output}.")
    print_result(family, as_json=as_json)
    raise typer.Exit(family.exit_code)
