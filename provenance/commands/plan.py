"""`provenance plan`: write the analysis plan before the test, commit to it, show it."""

from __future__ import annotations

import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from provenance.check.weigh import choose_rule, refuse_retired
from provenance.commands import marks
from provenance.commands.console import print_json, print_table, results, words
from provenance.commands.marks import MarkChoice
from provenance.commands.plan_enough import enough
from provenance.errors import MissingExtraError, StorageError, UsageError

app = typer.Typer(help="Analysis plans: what a check will do, fixed before.", no_args_is_help=True)
app.command("enough")(enough)

File = Annotated[Path, typer.Argument(metavar="PLAN.json", help="File of the plan.")]


@app.command("new")
def new(
    file: File,
    index: Annotated[Path, typer.Option(help="Folder of the index.")],
    suspect: Annotated[str, typer.Option(help="Which model will be tested, in words.")],
    keys: marks.Keys = None,
    scheme: marks.SchemeName = None,
    config: marks.SchemeConfig = None,
    key_file: marks.SchemeKeyFile = None,
    key_command: marks.SchemeKeyCommand = None,
    vocabulary_size: marks.VocabularySize = None,
    tokenizer: marks.TokenizerFile = None,
    access: Annotated[str, typer.Option(help="outputs, weights or logprobs.")] = "outputs",
    outputs: Annotated[
        list[int] | None,
        typer.Option(min=1, help="How many outputs will be read; repeat for several looks."),
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Stop when the evidence suffices: an e-process.")
    ] = False,
    reference: Annotated[str, typer.Option(help="none, ngram, or a model's folder.")] = "none",
    reference_text: Annotated[
        list[Path] | None, typer.Option(help="For ngram: the text that will be counted; repeat.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Error rate over all keys and looks.")] = 1e-4,
    rule: Annotated[
        str | None, typer.Option(help="Weight rule; default: the one that `check` would take.")
    ] = None,
    placebo_keys: Annotated[int, typer.Option(help="Keys of the placebo control.")] = 400,
    innocents: Annotated[
        int, typer.Option(min=0, help="How many innocent models will be checked.")
    ] = 0,
    twins: Annotated[bool, typer.Option("--twins", help="Twins take half of alpha.")] = False,
) -> None:
    """Write a plan. It names every key that may be opened; later values are not tested."""
    from provenance.check.examine import CheckSettings, has_control_slot
    from provenance.check.plan import CONTROLS, FOREIGN_CONTROLS, describe_commitments, write_plan
    from provenance.served.index import Index
    from provenance.served.index_manifest import IndexManifest
    from provenance.storage.files import write_atomically

    if file.exists():
        raise StorageError(f"{file}: must not exist yet; it does. A plan is never overwritten.")
    rule = rule or choose_rule(sampled=access == "outputs", has_reference=reference != "none")
    CheckSettings(alpha, refuse_retired(rule), placebo_keys)
    choice = MarkChoice(keys, scheme, config, key_file, key_command, tokenizer, vocabulary_size)
    public = choice.describe(IndexManifest.load(index).vocabulary_size)
    with Index.open(index, public) as opened:
        names = sorted(str(pair) for pair in opened.keys_served(public.schedule))
        content = opened.manifest.content_sha256
    made = write_plan(
        {
            "suspect": suspect,
            "access": access,
            "keyring_id": public.id,
            "scheme": public.scheme.to_json(),
            "index_sha256": content,
            "keys": names,
            "weight_rule": rule,
            "reference": _fingerprint(reference, reference_text or []),
            "stopping": _choose_stopping(outputs or [], sequential),
            "alpha": alpha,
            "twins": twins,
            "placebo_keys": placebo_keys,
            "controls": list(CONTROLS if has_control_slot(public.schedule) else FOREIGN_CONTROLS),
            "innocents": innocents,
            "commitments": describe_commitments(public),
            "tokenizer_sha256": public.tokenizer_sha256,
            "created": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "nonce": secrets.token_hex(32),
        }
    )
    write_atomically(file, made.content)
    words.print(
        f"Wrote {file}, sha256 {made.sha256}.", markup=False, highlight=False, soft_wrap=True
    )


@app.command("commit")
def commit(
    file: File,
    url: Annotated[
        str | None, typer.Option(help="Ask this time-stamp authority; else carry the request.")
    ] = None,
    response: Annotated[
        Path | None, typer.Option(help="Answer of an authority that was carried back.")
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="Root certificates (PEM) that the answer must chain to.")
    ] = None,
) -> None:
    """Print the plan's hash; write a time-stamp request, or take its answer in."""
    from provenance.check.plan import Plan
    from provenance.evidence.timestamp import (
        ask_authority,
        make_request,
        read_roots,
        read_timestamp,
    )
    from provenance.storage.files import read_bytes, write_atomically

    if url and response:
        raise UsageError("only one of --url and --response may be given; both are. Choose one.")
    plan = Plan.load(file)
    request, answer = file.with_suffix(".tsq"), file.with_suffix(".tsr")
    results.print(plan.sha256, markup=False, highlight=False)
    if response is None:
        try:
            write_atomically(request, make_request(plan.content))
        except MissingExtraError as error:
            if url is not None:
                raise
            words.print(
                f"No request was written: {error} For example: openssl ts -query -sha256 -cert "
                f"-data {file} -out {request}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
            return
        if url is None:
            words.print(
                f"Wrote {request}. Carry it to a time-stamp authority, and bring the answer back "
                "with --response.",
                markup=False,
                highlight=False,
            )
            return
    content = ask_authority(url, request.read_bytes()) if url else read_bytes(response or answer)
    roots = read_roots(trust) if trust else ()
    found = read_timestamp(content, plan.content, roots, url or str(response))
    write_atomically(answer, content)
    words.print(
        f"Wrote {answer}: seen {found.time}"
        + ("." if roots else "; its authority was not checked, for want of --trust."),
        markup=False,
        highlight=False,
    )


@app.command("show")
def show(
    file: File, as_json: Annotated[bool, typer.Option("--json", help="The plan itself.")] = False
) -> None:
    """Show a plan and its hash."""
    from provenance.check.plan import Plan

    plan = Plan.load(file)
    if as_json:
        print_json(plan.document)
        return
    results.print(f"plan {plan.sha256}", markup=False, highlight=False, soft_wrap=True)
    rows = [(name, _say(value)) for name, value in plan.document.items() if name != "commitments"]
    rows.append(("commitments", f"{len(plan.document['commitments'])} keys"))
    print_table(["field", "value"], rows)


def _choose_stopping(outputs: list[int], sequential: bool) -> dict[str, Any]:
    """The stopping rule: exactly one of a fixed number, planned looks and an e-process."""
    if sequential == bool(outputs):
        raise UsageError(
            "a plan must have either --outputs or --sequential. Say how many outputs are read."
        )
    if sequential:
        return {"rule": "sequential"}
    if len(outputs) == 1:
        return {"rule": "fixed", "outputs": outputs[0]}
    looks = sorted(set(outputs))
    return {"rule": "looks", "outputs": looks, "shares": [1 / len(looks)] * len(looks)}


def _fingerprint(reference: str, text: list[Path]) -> dict[str, Any]:
    """Kind and file hashes of the reference that will be used."""
    from provenance.check.plan import fingerprint_reference
    from provenance.storage.files import sha256_of_files
    from provenance.suspect.models.model_files import describe_model

    if (reference == "ngram") != bool(text):
        raise UsageError(
            "--reference ngram and --reference-text must be given together; one is missing."
        )
    if reference == "none":
        return fingerprint_reference({})
    if text:
        hashes = sha256_of_files(text)
        return fingerprint_reference({"kind": "ngram", "sha256": hashes})
    return fingerprint_reference(describe_model(Path(reference)))


def _say(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_say(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
