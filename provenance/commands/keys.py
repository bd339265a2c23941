"""`provenance keys`: make and show keyrings, add values, disclose single keys."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Annotated

import typer

import provenance as pv
from provenance.commands.console import page_width, parse_labels, print_json, print_page, tell
from provenance.errors import UsageError

app = typer.Typer(help="Keyrings: master secret, slots and commitments.", no_args_is_help=True)

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of the keyring.")]


@app.command("new")
def new(
    folder: Folder,
    tokenizer: Annotated[Path, typer.Option(help="tokenizer.json of the served model.")],
    scheme: Annotated[str, typer.Option(help="gumbel, green or tournament.")] = "gumbel",
    parameters: Annotated[str, typer.Option(help="Parameters of the scheme, JSON.")] = "{}",
    width: Annotated[int, typer.Option(help="Tokens of a context: 1, 2 or 3.")] = 2,
    vocabulary_size: Annotated[
        int | None, typer.Option(help="Rows of the model's output layer; default: tokenizer's.")
    ] = None,
    slot: Annotated[
        list[str] | None, typer.Option(help="NAME=SHARE of the contexts; repeatable.")
    ] = None,
    value: Annotated[
        list[str] | None, typer.Option(help="SLOT=VALUE that gets a key; repeatable.")
    ] = None,
    prompt_contexts: Annotated[
        str, typer.Option(help="Contexts that stand in the prompt: unmarked or (before) marked.")
    ] = "unmarked",
) -> None:
    """Make a keyring: keyring.json (public), tokenizer.json and master.key (mode 0600)."""
    shares = dict(pv.DEFAULT_SHARES)
    if slot:
        shares = {name: _parse_share(text) for name, text in parse_labels(slot).items()}
    values: dict[str, list[str]] = {}
    for label in value or []:
        for name, text in parse_labels([label]).items():
            values.setdefault(name, []).append(text)
    if prompt_contexts not in ("unmarked", "marked"):
        raise UsageError(f"--prompt-contexts must be unmarked or marked; got {prompt_contexts}.")
    keyring = pv.make_keyring(
        folder,
        tokenizer,
        scheme=scheme,
        parameters=parameters,
        shares=shares,
        values=values,
        vocabulary_size=vocabulary_size,
        context_width=width,
        reads_prompt=prompt_contexts == "unmarked",
    )
    tell(f"Keyring {keyring.public.id} in {folder}. Back up its master key.")


@app.command("show")
def show(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="keyring.json.")] = False
) -> None:
    """Show the public half of a keyring; needs no secret."""
    keyring = pv.Keyring.load(folder)
    if as_json:
        print_json(keyring.to_json())
        return
    page = pv.Page(page_width())
    page.say(f"keyring {keyring.id}")
    parameters = json.dumps(dict(keyring.scheme.parameters))
    page.say(f"scheme {keyring.scheme.name} {parameters}", wrap=False)
    page.say(f"context width {keyring.context_width}, {keyring.vocabulary_size} tokens")
    page.say(f"contexts of the prompt {'unmarked' if keyring.reads_prompt else 'marked'}")
    page.say(f"tokenizer sha256 {keyring.tokenizer_sha256}", wrap=False)
    page.table(
        ["slot", "share", "values"],
        [
            [slot.name, f"{slot.share:.4f}", ", ".join(filter(None, slot.values)) or "-"]
            for slot in keyring.schedule.slots
        ],
    )
    print_page(str(page))


@app.command("add-value")
def add_value(
    folder: Folder,
    slot: Annotated[str, typer.Option(help="Attribute slot.")],
    value: Annotated[str, typer.Option(help="New value, for example 2026-W18.")],
) -> None:
    """Add one value to an attribute slot. No existing key changes."""
    pv.add_value(folder, slot, value)
    tell(f"Added {slot}={value}.")


@app.command("export-worker")
def export_worker(
    folder: Folder,
    output: Annotated[Path, typer.Option("-o", "--output", help="File, mode 0600.")],
    value: Annotated[
        list[str] | None, typer.Option(help="SLOT=VALUE whose key goes along; repeatable.")
    ] = None,
    days: Annotated[int, typer.Option(min=1, max=366, help="Days until it expires.")] = 14,
) -> None:
    """Write the keys that a worker needs to mark these values, without the master secret."""
    expires = datetime.now(UTC) + timedelta(days=days)
    values = [f"{slot}={text}" for one in value or [] for slot, text in parse_labels([one]).items()]
    worker = pv.export_worker(pv.open_keyring(folder), values, expires=expires, file=output)
    tell(
        f"Wrote {output}, until {worker.expires:%F %R} UTC. Whoever holds it can forge these marks."
    )


@app.command("disclose")
def disclose(
    folder: Folder,
    slot: Annotated[str, typer.Option(help="Slot of the key.")],
    value: Annotated[str, typer.Option(help="Value of the key; omit for global.")] = "",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File, mode 0600.")] = None,
) -> None:
    """Reveal one derived key with its commitment, for an expert. No other key is revealed."""
    shown = pv.disclose_key(folder, slot, value, output)
    if output is None:
        print_json(shown)
    else:
        tell(f"Wrote {output}. Whoever holds it can forge this mark.")


def _parse_share(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"a share must be a number in [0, 1]; got {text}.") from error
