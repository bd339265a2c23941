"""`provenance check`: was the model behind these outputs trained on marked responses?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from provenance.commands.console import print_json, print_verdict, words
from provenance.weigh import DEFAULT_RULE

__all__ = ["check"]


def check(
    outputs: Annotated[list[Path], typer.Argument(metavar="OUTPUTS...", help="JSONL, gz, zst.")],
    keys: Annotated[Path, typer.Option(help="Folder of the keyring.")],
    index: Annotated[Path, typer.Option(help="Folder of the index.")],
    innocent: Annotated[
        list[Path] | None,
        typer.Option(help="Outputs of a model that cannot have been trained on the log; repeat."),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="Folder for verdict.json.")
    ] = None,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json; default: the keyring's copy.")
    ] = None,
    alpha: Annotated[float, typer.Option(help="Family-wise error rate over all keys.")] = 1e-4,
    rule: Annotated[str, typer.Option(help="Weight rule: log-sqrt or presence.")] = DEFAULT_RULE,
    placebo_keys: Annotated[int, typer.Option(help="Keys of the placebo control.")] = 400,
    as_json: Annotated[bool, typer.Option("--json", help="The verdict on stdout.")] = False,
) -> None:
    """Check a suspect's outputs. Exit 1: evidence; 0: none, or a control failed."""
    from provenance.check import CheckSettings, check_outputs
    from provenance.files import lock_folder, write_json
    from provenance.keys.keyring import TOKENIZER_FILE, Keyring
    from provenance.served.index import Index
    from provenance.suspect.outputs import observe
    from provenance.tokenizer import load_tokenizer

    settings = CheckSettings(alpha=alpha, rule=rule, placebo_keys=placebo_keys)
    public = Keyring.load(keys)
    loaded = load_tokenizer(tokenizer or keys / TOKENIZER_FILE, public)
    opened = Index.open(index, public)
    unlocked = public.unlock(keys)
    with words.status("Reading outputs"):
        observations = observe(outputs, loaded, public)
        innocents = {str(path): observe([path], loaded, public) for path in innocent or []}
    with words.status("Checking"):
        verdict = check_outputs(observations, opened, unlocked, settings, innocents)
    if output is not None:
        with lock_folder(output):
            write_json(output / "verdict.json", verdict.to_json())
    if as_json:
        print_json(verdict.to_json())
    else:
        print_verdict(verdict)
    raise typer.Exit(1 if verdict.conclusion == "evidence" else 0)
