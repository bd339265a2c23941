"""Options that several commands share: whose mark it is, and what is expected of an innocent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

import provenance as pv

_MARK: dict[str, Any] = {
    "keys": Annotated[Path | None, typer.Option(help="Folder of the keyring.")],
    "scheme": Annotated[
        str | None, typer.Option(help="Instead of --keys: whose mark, like hf-synthid.")
    ],
    "config": Annotated[
        Path | None,
        typer.Option("--scheme-config", help="With --scheme: the original's configuration, JSON."),
    ],
    "key_file": Annotated[
        Path | None,
        typer.Option(
            "--scheme-key-file", help="With --scheme: its key, if not in the configuration."
        ),
    ],
    "key_command": Annotated[
        str | None, typer.Option("--scheme-key-cmd", help="With --scheme: prints its key.")
    ],
    "vocabulary_size": Annotated[
        int | None,
        typer.Option(help="With --scheme: vocab_size of the marked model's config.json."),
    ],
    "tokenizer": Annotated[
        Path | None, typer.Option(help="tokenizer.json; default: the keyring's copy.")
    ],
}

IndexFolder = Annotated[Path, typer.Option(help="Folder of the index.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
ReferenceKind = Annotated[str, typer.Option(help="none, ngram, or a model's folder.")]
ReferenceText = Annotated[
    list[Path] | None,
    typer.Option(help="For ngram: unmarked outputs, or those of other suspects; repeat."),
]


def takes_mark(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options that say whose mark it is, in place of its parameter `mark`."""

    @wraps(command)
    def call(**given: Any) -> Any:
        chosen = {name: given.pop(name) for name in _MARK}
        return command(mark=pv.MarkChoice(**chosen), **given)

    hints = get_type_hints(command, include_extras=True)
    parameters = []
    for one in inspect.signature(command).parameters.values():
        if one.name == "mark":
            parameters += [
                inspect.Parameter(name, one.KEYWORD_ONLY, default=None, annotation=kind)
                for name, kind in _MARK.items()
            ]
        else:
            kind = hints[one.name]
            parameters.append(one.replace(kind=one.KEYWORD_ONLY, annotation=kind))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    del call.__wrapped__  # typer would look through it, at the command's own parameters
    return call
