"""`provenance check`: was this model trained on marked responses?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import print_result, progress, tell
from provenance.commands.options import IndexFolder, ReferenceKind, ReferenceText, takes_mark
from provenance.errors import UsageError


@takes_mark
def check(
    index: IndexFolder,
    mark: Any,
    outputs: Annotated[
        list[Path] | None, typer.Argument(metavar="OUTPUTS...", help="JSONL, gz, zst.")
    ] = None,
    weights: Annotated[
        Path | None, typer.Option(help="Folder of the suspect model, instead of outputs.")
    ] = None,
    read: Annotated[
        list[Path] | None,
        typer.Option(help="With --weights: served log that the model is to read; repeat."),
    ] = None,
    documents: Annotated[
        int | None, typer.Option(min=1, help="With --read: only the first so many responses.")
    ] = None,
    logprobs: Annotated[
        list[Path] | None, typer.Option(help="Logprobs of an API, instead of outputs; repeat.")
    ] = None,
    twins: Annotated[
        list[Path] | None,
        typer.Option(help="With --weights: served responses and unserved twins; repeat."),
    ] = None,
    innocent: Annotated[
        list[Path] | None,
        typer.Option(help="Like the suspect, of a model that cannot be guilty; repeat."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for the evidence bundle.")
    ] = None,
    plan: Annotated[
        Path | None, typer.Option(help="Follow this plan, or stop; without one: exploratory.")
    ] = None,
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
    reference: ReferenceKind = "none",
    reference_text: ReferenceText = None,
    other_tokenizer: Annotated[
        bool,
        typer.Option(help="Trust the tokenizers in the models' folders, if they are other ones."),
    ] = False,
    cache: Annotated[
        Path | None, typer.Option(help="Keep what models said here, to go on after a stop.")
    ] = None,
    alpha: Annotated[
        float | None, typer.Option(help="Error rate over all keys and twins; default 1e-4.")
    ] = None,
    rule: Annotated[
        str | None, typer.Option(help="log-sqrt or residual; default: by what is seen.")
    ] = None,
    placebo_keys: Annotated[
        int | None, typer.Option(help="Keys of the placebo control; default 400.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The verdict on stdout.")] = False,
) -> None:
    """Check a suspect: its outputs, its weights or its logprobs.

    Exit 1: evidence; 0: none, with power stated; 3: inconclusive, and why.
    """
    if (disclose or without_pairs) and output is None:
        raise UsageError("--disclose and --without-pairs must come with -o. Name a folder.")
    settings: dict[str, Any] = {
        "plan": plan,
        "alpha": alpha,
        "rule": rule,
        "placebo_keys": placebo_keys,
    }
    access: dict[str, Any] = {
        "weights": weights,
        "read": read,
        "documents": documents,
        "logprobs": logprobs,
        "twins": twins,
    }
    if sequential is not None:
        _refuse_with_sequential([*access.values(), innocent, disclose, without_pairs])
    else:
        pv.Case.refuse(outputs, **access, **settings)  # nonsense, before hours of reading
    with (
        progress() as show,
        pv.open_case(
            mark.open(index),
            index,
            tokenizer=mark.tokenizer,
            reference=reference,
            reference_text=reference_text,
            cache=cache,
            other_tokenizer=other_tokenizer,
            progress=show,
        ) as case,
    ):
        if sequential is not None:
            look = case.look(sequential, outputs, **settings)
            if output is not None:
                look.save(output)
        else:
            case.refuse_bundle(output, disclose or ())
            verdict = case.check(outputs, **access, innocents=innocent, **settings)
            if output is not None:
                verdict.save(output, disclose or (), pairs=not without_pairs)
    if sequential is not None:
        print_result(look, as_json=as_json)
        raise typer.Exit(look.exit_code)
    print_result(verdict, as_json=as_json)
    if output is not None and mark.scheme is not None and not without_pairs:
        tell(
            "The bundle's scored pairs are as confidential as the scheme's key: a short key "
            "can be found from them by trying. To leave them out: --without-pairs."
        )
    raise typer.Exit(verdict.exit_code)


def _refuse_with_sequential(options: list[Any]) -> None:
    """UsageError if an option is set that opens coins early, or has nothing to do with batches."""
    if any(options):
        raise UsageError(
            "--sequential must come with OUTPUTS and --keys or --scheme only, without --weights, "
            "--read, --logprobs, --twins, --innocent, --disclose and --without-pairs; one is "
            "given. Do the other check on its own, when collecting has ended."
        )
