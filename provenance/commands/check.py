"""`provenance check`: was this model trained on marked responses?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import parse_labels, print_result, progress, tell
from provenance.commands.options import Force, IndexFolder, Output, open_case, shares_options
from provenance.errors import UsageError

_SHORT_KEY = (
    "The bundle's scored pairs are as confidential as the scheme's key: a short key can be found "
    "from them by trying. To leave them out: --without-pairs."
)


@shares_options
def check(
    index: IndexFolder,
    mark: Any,
    access: Any,
    reference: Any,
    settings: Any,
    read_as: Any,
    registering: Any,
    filing: Any,
    outputs: Annotated[
        list[Path] | None, typer.Argument(metavar="OUTPUTS...", help="Files, folders; - is stdin.")
    ] = None,
    innocent: Annotated[
        list[Path] | None,
        typer.Option(help="Like the suspect, of a model that cannot be guilty; repeat."),
    ] = None,
    output: Output = None,
    force: Force = False,
    disclose: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY", help="With -o: all, selector, global or SLOT=VALUE; repeat."),
    ] = None,
    without_pairs: Annotated[
        bool, typer.Option("--without-pairs", help="With -o: leave the confidential pairs out.")
    ] = False,
    sequential: Annotated[
        Path | None,
        typer.Option(help="Folder of a check that goes on: OUTPUTS are its next batch."),
    ] = None,
    other_tokenizer: Annotated[
        bool,
        typer.Option(help="Trust the tokenizers in the models' folders, if they are other ones."),
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Keep what models said here, to go on after a stop.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The verdict on stdout.")] = False,
) -> None:
    """Check a suspect: its outputs, its weights or its logprobs.

    Exit 1: evidence; 0: none, with power stated; 3: inconclusive, and why.
    """
    _refuse_without(output, [disclose, without_pairs, force, filing])
    settings["read_as"], access["groups"] = read_as, parse_labels(access["groups"] or ())
    if sequential is not None:
        _refuse_with_sequential([*access.values(), innocent, disclose, without_pairs, filing])
    else:
        pv.Case.refuse(outputs, **access, **settings)  # nonsense, before hours of reading
    models = {**reference, **registering, "cache": cache, "other_tokenizer": other_tokenizer}
    with progress() as show, open_case(mark, index, models, show) as case:
        if sequential is not None:
            found = case.look(sequential, outputs, **settings)
            if output is not None:
                found.save(output)
        else:
            case.refuse_bundle(output, disclose or (), settings["plan"], filing, force=force)
            found = case.check(outputs, **access, innocents=innocent, **settings)
            if output is not None:
                kept = {"pairs": not without_pairs, "force": force, "filing": filing}
                found.save(output, disclose or (), **kept)
    print_result(found, as_json=as_json)
    if output is not None and mark.scheme is not None and not without_pairs and not sequential:
        tell(_SHORT_KEY)
    raise typer.Exit(found.exit_code)


def _refuse_without(output: Path | None, options: list[Any]) -> None:
    """UsageError if an option is set that is about the evidence, and no folder for it."""
    if output is None and any(options):
        raise UsageError(
            "--disclose, --without-pairs, --force, --case-number, --suspect and --author must come "
            "with -o; it is missing. Name a folder."
        )


def _refuse_with_sequential(options: list[Any]) -> None:
    """UsageError if an option is set that opens coins early, or has nothing to do with batches."""
    if any(options):
        raise UsageError(
            "--sequential must come with OUTPUTS and --keys or --scheme only, without --weights, "
            "--read, --logprobs, --twins, --group, --innocent, --disclose, --without-pairs, "
            "--case-number, --suspect and --author; one is given. Do the other check on its own, "
            "when collecting has ended."
        )
