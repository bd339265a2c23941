"""`provenance check`: was this model trained on marked responses?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from provenance.commands.console import print_json, print_verdict, words
from provenance.errors import UsageError
from provenance.weigh import DEFAULT_RULE, REFERENCE_RULE

__all__ = ["check"]


def check(
    keys: Annotated[Path, typer.Option(help="Folder of the keyring.")],
    index: Annotated[Path, typer.Option(help="Folder of the index.")],
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
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json; default: the keyring's copy.")
    ] = None,
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
        float | None, typer.Option(help="Family-wise error rate over all keys; default 1e-4.")
    ] = None,
    rule: Annotated[
        str | None,
        typer.Option(help="presence, log-sqrt (default) or residual (default with a reference)."),
    ] = None,
    placebo_keys: Annotated[
        int | None, typer.Option(help="Keys of the placebo control; default 400.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The verdict on stdout.")] = False,
) -> None:
    """Check a suspect: its outputs, its weights or its logprobs.

    Exit 1: evidence; 0: none, or a control failed.
    """
    from provenance.check import examine_outputs
    from provenance.commands.observing import Access, Observer, Reference
    from provenance.commands.planning import choose_settings
    from provenance.evidence.bundle import Contents, check_request, gather_plan, write_bundle
    from provenance.keys.keyring import TOKENIZER_FILE, Keyring
    from provenance.served.index import Index
    from provenance.tokenizer import load_tokenizer

    access = Access.choose(outputs, weights, logprobs, read, documents)
    if twins and access.kind != "weights":
        raise UsageError("--twins must come with --weights; it did not. Give the model's folder.")
    if (disclose or without_pairs) and output is None:
        raise UsageError("--disclose and --without-pairs must come with -o. Name a folder.")
    contents = gather_plan(plan) if plan else Contents()
    from_text = access.kind == "outputs" and reference == "none"
    default = DEFAULT_RULE if from_text else REFERENCE_RULE
    # refuses nonsense before the suspect is read, which may take hours
    choose_settings(contents.plan, None, alpha, rule, default, placebo_keys, bool(twins))
    public = Keyring.load(keys)
    check_request(output, disclose or (), public)
    loaded = load_tokenizer(tokenizer or keys / TOKENIZER_FILE, public)
    opened = Index.open(index, public)
    unlocked = public.unlock(keys)
    expected = Reference(reference, tuple(reference_text or ()), cache, other_tokenizer)
    observer = Observer(expected, loaded, unlocked, opened)
    pairs = observer.read_twins(twins or [])
    observations = observer.observe(access)
    innocents = {str(path): observer.observe(access.of(path)) for path in innocent or []}
    settings = choose_settings(
        contents.plan, observations.outputs, alpha, rule, default, placebo_keys, bool(twins)
    )
    with words.status("Checking"):
        examination = examine_outputs(
            observations, opened, unlocked, settings, innocents, contents.plan
        )
    verdict = examination.verdict
    if pairs is not None and weights is not None:
        verdict = replace(verdict, twins=observer.check_twins(pairs, weights, settings.alpha))
    if output is not None:
        contents = replace(contents, disclosed=disclose or (), pairs=not without_pairs)
        write_bundle(output, replace(examination, verdict=verdict), unlocked, contents)
        words.print(
            f"Wrote {output}"
            + (": its pairs are as confidential as the log." if contents.pairs else "."),
            markup=False,
            highlight=False,
            soft_wrap=True,
        )
    if as_json:
        print_json(verdict.to_json())
    else:
        print_verdict(verdict)
    raise typer.Exit(1 if verdict.found_evidence else 0)
