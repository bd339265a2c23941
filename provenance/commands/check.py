"""`provenance check`: was this model trained on marked responses?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from provenance.commands import marks
from provenance.commands.console import print_json, print_verdict, words
from provenance.commands.marks import MarkChoice
from provenance.errors import UsageError
from provenance.weigh import DEFAULT_RULE, REFERENCE_RULE

__all__ = ["check"]


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
        Path | None, typer.Option("-o", "--output", help="Folder for verdict.json.")
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
    alpha: Annotated[float, typer.Option(help="Family-wise error rate over all keys.")] = 1e-4,
    rule: Annotated[
        str | None,
        typer.Option(help="presence, log-sqrt (default) or residual (default with a reference)."),
    ] = None,
    placebo_keys: Annotated[int, typer.Option(help="Keys of the placebo control.")] = 400,
    as_json: Annotated[bool, typer.Option("--json", help="The verdict on stdout.")] = False,
) -> None:
    """Check a suspect: its outputs, its weights or its logprobs.

    Exit 1: evidence; 0: none, or a control failed.
    """
    from provenance.check import CheckSettings, check_outputs
    from provenance.commands.observing import Access, Observer, Reference
    from provenance.files import lock_folder, write_json
    from provenance.marks import as_mark
    from provenance.served.index import Index, IndexManifest

    access = Access.choose(outputs, weights, logprobs, read, documents)
    if twins and access.kind != "weights":
        raise UsageError("--twins must come with --weights; it did not. Give the model's folder.")
    from_text = access.kind == "outputs" and reference == "none"
    settings = CheckSettings(
        alpha=alpha / 2 if twins else alpha,
        rule=rule or (DEFAULT_RULE if from_text else REFERENCE_RULE),
        placebo_keys=placebo_keys,
    )
    choice = MarkChoice(keys, scheme, config, key_file, key_command, tokenizer, vocabulary_size)
    mark = as_mark(choice.open(IndexManifest.load(index).vocabulary_size))
    loaded = choice.load_tokenizer(mark)
    opened = Index.open(index, mark.public)
    if mark.shares_coins:
        opened = opened.evened()
    expected = Reference(reference, tuple(reference_text or ()), cache, other_tokenizer)
    observer = Observer(expected, loaded, mark, opened)
    pairs = observer.read_twins(twins or [])
    observations = observer.observe(access)
    innocents = {str(path): observer.observe(access.of(path)) for path in innocent or []}
    with words.status("Checking"):
        verdict = check_outputs(observations, opened, mark, settings, innocents)
    if pairs is not None and weights is not None:
        verdict = replace(verdict, twins=observer.check_twins(pairs, weights, settings.alpha))
    if output is not None:
        with lock_folder(output):
            write_json(output / "verdict.json", verdict.to_json())
    if as_json:
        print_json(verdict.to_json())
    else:
        print_verdict(verdict)
    raise typer.Exit(1 if verdict.found_evidence else 0)
