"""Options that several commands share: whose mark it is, and what is expected of an innocent."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer

import provenance as pv
from provenance.commands.streams import STDIN, keep_stdin

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

Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group", metavar="NAME=DIR", help="Also test this group (index build --only); repeat."
    ),
]
_ACCESS: dict[str, Any] = {
    "weights": Annotated[
        Path | None, typer.Option(help="Folder of the suspect model, instead of outputs.")
    ],
    "read": Annotated[
        list[Path] | None,
        typer.Option(help="With --weights: served log that the model is to read; repeat."),
    ],
    "documents": Annotated[
        int | None, typer.Option(min=1, help="With --read: only the first so many responses.")
    ],
    "logprobs": Annotated[
        list[Path] | None, typer.Option(help="Logprobs of an API, instead of outputs; repeat.")
    ],
    "twins": Annotated[
        list[Path] | None,
        typer.Option(help="With --weights: served responses and unserved twins; repeat."),
    ],
    "groups": Groups,
}
_REFERENCE: dict[str, Any] = {
    "reference": Annotated[
        str | None, typer.Option(help="none, ngram, or a model's folder; default: none.")
    ],
    "reference_text": Annotated[
        list[Path] | None,
        typer.Option(help="For ngram: unmarked outputs, or those of other suspects; repeat."),
    ],
}
_SETTINGS: dict[str, Any] = {
    "plan": Annotated[
        Path | None, typer.Option(help="Follow this plan, or stop; without one: exploratory.")
    ],
    "alpha": Annotated[
        float | None, typer.Option(help="Error rate over all keys and twins; default 1e-4.")
    ],
    "rule": Annotated[
        str | None, typer.Option(help="log-sqrt or residual; default: by what is seen.")
    ],
    "placebo_keys": Annotated[
        int | None, typer.Option(help="Keys of the placebo control; default 400.")
    ],
}
_COLLECTING: dict[str, Any] = {}
for _one in fields(pv.CollectSettings):
    _option, _kind, _help = _one.metadata["option"]
    _COLLECTING[_one.name] = Annotated[_kind, typer.Option(_option, help=_help)]
_ASKED = ("model", "endpoint", "parameters", "samples", "logprobs")
_READING: dict[str, Any] = {
    "format": Annotated[str | None, typer.Option(help="Shape of the files; default: found out.")],
    "requests": Annotated[
        list[Path] | None, typer.Option(help="What a batch was asked, joined by its ids; repeat.")
    ],
    "mapping": Annotated[
        list[str] | None, typer.Option("--map", help="output=PATH, prompt=PATH, ...; repeat.")
    ],
    "strict": Annotated[bool, typer.Option("--strict", help="Refuse records without a text.")],
}
_REGISTERING: dict[str, Any] = {
    "case": Annotated[
        Path | None, typer.Option(help="Folder of the case, in whose register this is entered.")
    ],
    "signing_key": Annotated[
        Path | None, typer.Option(help="Key that signs its lines, if the case has a signer.")
    ],
}
CaseNumber = Annotated[
    str | None, typer.Option("--case-number", help="For the report: number of the case.")
]
Author = Annotated[str | None, typer.Option(help="For the report: who answers for the check.")]
_FILING: dict[str, Any] = {
    "number": CaseNumber,
    "suspect": Annotated[
        str | None, typer.Option(help="For the report: which model, if no plan says it.")
    ],
    "author": Author,
}
_GROUPS: dict[str, dict[str, Any]] = {
    "registering": _REGISTERING,
    "asking": {name: _COLLECTING[name] for name in _ASKED},
    "sending": {name: _COLLECTING[name] for name in _COLLECTING if name not in _ASKED},
    "mark": _MARK,
    "access": _ACCESS,
    "reference": _REFERENCE,
    "settings": _SETTINGS,
    "read_as": _READING,
    "filing": _FILING,
}

_FILES = ("outputs", "files")
"""Parameters that are files of outputs."""

IndexFolder = Annotated[Path, typer.Option(help="Folder of the index.")]
Json = Annotated[bool, typer.Option("--json", help="JSON on stdout.")]
Force = Annotated[bool, typer.Option("--force", help="Replace what is there, unless signed.")]
Output = Annotated[Path | None, typer.Option("-o", "--output", help="Folder for the evidence.")]


def shares_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command the options of a group in place of a parameter of its name, annotated Any.

    `mark` becomes a MarkChoice, `filing` a Filing; the others are dicts of the options. Among
    `outputs` or `files` a `-` is stdin.
    """
    hints = get_type_hints(command, include_extras=True)
    taken = [name for name in _GROUPS if hints.get(name) is Any]

    @wraps(command)
    def call(**given: Any) -> Any:
        groups: dict[str, Any] = {
            group: {name: given.pop(name) for name in _GROUPS[group]} for group in taken
        }
        if "mark" in groups:
            groups["mark"] = _choose_mark(groups["mark"], given.pop("context"))
        if "filing" in groups:
            groups["filing"] = pv.Filing(**{n: v or "" for n, v in groups["filing"].items()})
        if "reference" in groups:
            groups["reference"]["reference"] = groups["reference"]["reference"] or "none"
        with ExitStack() as kept:
            for name in _FILES:
                if STDIN in (given.get(name) or ()):
                    given[name] = kept.enter_context(keep_stdin(given[name]))
            return command(**given, **groups)

    parameters = []
    if "mark" in taken:
        kind = inspect.Parameter.KEYWORD_ONLY
        parameters.append(inspect.Parameter("context", kind, annotation=typer.Context))
    for one in inspect.signature(command).parameters.values():
        if one.name in taken:
            parameters += [
                inspect.Parameter(name, one.KEYWORD_ONLY, default=None, annotation=kind)
                for name, kind in _GROUPS[one.name].items()
            ]
        else:
            parameters.append(one.replace(kind=one.KEYWORD_ONLY, annotation=hints[one.name]))
    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {one.name: one.annotation for one in parameters}
    del call.__wrapped__  # typer would look through it, at the command's own parameters
    return call


def _choose_mark(options: dict[str, Any], context: Any) -> Any:
    """The mark that was asked for; what provenance.toml says of another one is put aside."""
    source = {name: context.get_parameter_source(name) for name in options}
    asked = {name for name, one in source.items() if one is not None and one.name == "COMMANDLINE"}
    if asked & {"keys", "scheme"}:
        options = {name: value if name in asked else None for name, value in options.items()}
    return pv.MarkChoice(**options)


def open_case(mark: Any, index: Path, reference: Any, progress: Any, **models: Any) -> Any:
    """The case that the options of these groups ask for."""
    return pv.open_case(
        mark.open(index),
        index,
        tokenizer=mark.tokenizer,
        **reference,
        **models,
        progress=progress,
    )
