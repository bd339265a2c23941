"""`provenance keys`: make and show keyrings, add values, disclose single keys."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from provenance.commands.console import parse_labels, print_json, print_table, results, words
from provenance.errors import UsageError
from provenance.keys.schedule import DEFAULT_SHARES
from provenance.storage.files import parse_json, write_json

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
) -> None:
    """Make a keyring: keyring.json (public), tokenizer.json and master.key (mode 0600)."""
    from provenance.keys.keyring import SchemeSpecification, create_keyring
    from provenance.keys.schedule import Schedule
    from provenance.keys.tokenizer import read_tokenizer
    from provenance.marks.own import make_scheme

    shares = dict(DEFAULT_SHARES)
    if slot:
        shares = {name: _parse_share(text) for name, text in parse_labels(slot).items()}
    values: dict[str, list[str]] = {}
    for label in value or []:
        for name, text in parse_labels([label]).items():
            values.setdefault(name, []).append(text)
    options = parse_json(parameters, "--parameters")
    if not isinstance(options, dict):
        raise UsageError('--parameters must be a JSON object. Example: {"layers": 4}')
    made = make_scheme(scheme, options)
    size = read_tokenizer(tokenizer).get_vocab_size()
    keyring = create_keyring(
        folder,
        tokenizer,
        max(size, vocabulary_size or 0),
        SchemeSpecification(made.name, dict(made.parameters)),
        Schedule.from_shares(shares, values),
        width,
    )
    words.print(
        f"Keyring {keyring.public.id} in {folder}. Back up its master key.", highlight=False
    )


@app.command("show")
def show(
    folder: Folder, as_json: Annotated[bool, typer.Option("--json", help="keyring.json.")] = False
) -> None:
    """Show the public half of a keyring; needs no secret."""
    from provenance.keys.keyring import Keyring

    keyring = Keyring.load(folder)
    if as_json:
        print_json(keyring.to_json())
        return
    results.print(f"keyring {keyring.id}", highlight=False)
    results.print(f"scheme {keyring.scheme.name} {json.dumps(dict(keyring.scheme.parameters))}")
    results.print(f"context width {keyring.context_width}, {keyring.vocabulary_size} tokens")
    results.print(f"tokenizer sha256 {keyring.tokenizer_sha256}", highlight=False)
    print_table(
        ["slot", "share", "values"],
        [
            [slot.name, f"{slot.share:.4f}", ", ".join(filter(None, slot.values)) or "-"]
            for slot in keyring.schedule.slots
        ],
    )


@app.command("add-value")
def add_value(
    folder: Folder,
    slot: Annotated[str, typer.Option(help="Attribute slot.")],
    value: Annotated[str, typer.Option(help="New value, for example 2026-W18.")],
) -> None:
    """Add one value to an attribute slot. No existing key changes."""
    from provenance.keys import keyring

    keyring.add_value(folder, slot, value)
    words.print(f"Added {slot}={value}.", highlight=False)


@app.command("disclose")
def disclose(
    folder: Folder,
    slot: Annotated[str, typer.Option(help="Slot of the key.")],
    value: Annotated[str, typer.Option(help="Value of the key; omit for global.")] = "",
    output: Annotated[Path | None, typer.Option("-o", "--output", help="File, mode 0600.")] = None,
) -> None:
    """Reveal one derived key with its commitment, for an expert. No other key is revealed."""
    from provenance.keys import keyring

    unlocked = keyring.Keyring.load(folder).unlock(folder)
    shown = keyring.disclose(unlocked, slot, value)
    if output is None:
        print_json(shown)
    else:
        write_json(output, shown, mode=0o600)
        words.print(f"Wrote {output}. Whoever holds it can forge this mark.", highlight=False)


def _parse_share(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise UsageError(f"a share must be a number in [0, 1]; got {text}.") from error
