"""`provenance check`: was this model trained on marked responses?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from provenance.commands import marks
from provenance.commands.marks import MarkChoice
from provenance.errors import UsageError


def check(
    index: Annotated[Path, typer.Option(help="Folder of the index.")],
    outputs: Annotated[
        list[Path] | None, typer.Argument(metavar="OUTPUTS...", help="JSONL, gz, zst.")
    ] = None,
    keys: marks.Keys = None,
    scheme: marks.SchemeName = None,
    config: marks.SchemeConfig = None,
    key_file: marks.SchemeKeyFile = None,
    key_command: marks.SchemeKeyCommand = None,
    vocabulary_size: marks.VocabularySize = None,
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
    tokenizer: marks.TokenizerFile = None,
    reference: Annotated[str, typer.Option(help="none, ngram, or a model's folder.")] = "none",
    reference_text: Annotated[
        list[Path] | None,
        typer.Option(help="For ngram: unmarked outputs, or those of other suspects; repeat."),
    ] = None,
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
        str | None,
        typer.Option(help="log-sqrt or residual; default: by what is seen."),
    ] = None,
    placebo_keys: Annotated[
        int | None, typer.Option(help="Keys of the placebo control; default 400.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The verdict on stdout.")] = False,
) -> None:
    """Check a suspect: its outputs, its weights or its logprobs.

    Exit 1: evidence; 0: none, with power stated; 3: inconclusive, and why.
    """
    from provenance.commands.checking import Bench, Bundle, Wanted
    from provenance.commands.observing import Access, Reference
    from provenance.commands.sequential import refuse_with_sequential

    if sequential is not None:
        refuse_with_sequential([weights, read, logprobs, twins, innocent, disclose, without_pairs])
    if sequential is not None and not outputs:
        access = Access("outputs", ())
    else:
        access = Access.choose(outputs, weights, logprobs, read, documents)
    if twins and access.kind != "weights":
        raise UsageError("--twins must come with --weights; it did not. Give the model's folder.")
    if (disclose or without_pairs) and output is None:
        raise UsageError("--disclose and --without-pairs must come with -o. Name a folder.")
    choice = MarkChoice(keys, scheme, config, key_file, key_command, tokenizer, vocabulary_size)
    expected = Reference(reference, tuple(reference_text or ()), cache, other_tokenizer)
    # refuses nonsense before the suspect is read, which may take hours
    wanted = Wanted.choose(plan, alpha, rule, placebo_keys, twins or [])
    bench = Bench(choice, index, expected)
    if sequential is not None:
        code = bench.continue_check(sequential, access, wanted, output, as_json)
    else:
        bundle = Bundle(output, tuple(disclose or ()), not without_pairs)
        code = bench.check(access, wanted, innocent or [], bundle, as_json)
    raise typer.Exit(code)
