"""The `provenance` command. Collects the nouns and turns errors into one line and an exit code."""

from __future__ import annotations

import logging
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import typer

import provenance as pv
from provenance.commands import (
    case,
    check,
    collect,
    demo,
    detect,
    doctor,
    evidence,
    generate,
    index,
    keys,
    log,
    outputs,
    plan,
    suspects,
    verify,
)
from provenance.commands.console import errors, print_version, words
from provenance.commands.streams import guard_streams
from provenance.errors import ProvenanceError, StorageError, clean, shorten

_INTERRUPTED: Final = 130
_LONGEST: Final = 2000
"""Characters of an error: whoever writes a hostile value into a file does not fill a terminal."""
_debug: list[bool] = []
"""Whether `--debug` was given, last call last."""
_CLICK_ERROR: Final[Any] = next(
    kind for kind in typer.BadParameter.__mro__ if kind.__name__ == "ClickException"
)
"""The root of errors of usage; typer does not export it."""

app = typer.Typer(
    name="provenance",
    help="Watermark a model's responses, and test whether another model was trained on them.",
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print_version()
        raise typer.Exit


@app.callback()
def _options(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version", help="Show the version and exit.", is_eager=True, callback=_show_version
        ),
    ] = False,
    debug: Annotated[
        bool, typer.Option("--debug", help="Log on stderr; show the traceback of a defect.")
    ] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only results and errors, no other words.")
    ] = False,
) -> None:
    words.quiet = quiet
    context.default_map = _spread(context.command, pv.read_defaults())
    _debug.append(debug)
    if debug:
        logging.basicConfig(level=logging.DEBUG, stream=sys.stderr)
        logging.getLogger().setLevel(logging.WARNING)
        logging.getLogger("provenance").setLevel(logging.DEBUG)


def _spread(command: Any, defaults: dict[str, str]) -> dict[str, Any]:
    """What provenance.toml says, for every command below that has such an option."""
    below = getattr(command, "commands", None)
    if below is not None:
        return {name: _spread(one, defaults) for name, one in below.items()}
    names = {one.name for one in command.params}
    beside = () if "scheme" in names else ("tokenizer",)  # it belongs to the other's mark
    return {name: defaults[name] for name in names if name in defaults and name not in beside}


app.command("demo")(demo.demo)
app.add_typer(keys.app, name="keys")
app.command("generate")(generate.generate)
app.add_typer(log.app, name="log")
app.add_typer(index.app, name="index")
app.add_typer(plan.app, name="plan")
app.add_typer(case.app, name="case")
app.add_typer(collect.app, name="collect")
app.add_typer(outputs.app, name="outputs")
app.command("check")(check.check)
app.command("verify")(verify.verify)
app.add_typer(evidence.app, name="evidence")
app.command("detect")(detect.detect)
app.command("suspects")(suspects.suspects)
app.command("doctor")(doctor.doctor)


def main() -> NoReturn:
    """Run the command line and exit with a documented code (docs/formats.md).

    Nothing but evidence, failed steps of `verify` and a failed `log audit` exits 1: a defect exits
    70, an interruption 130. Whether anybody reads what is printed makes no difference.
    """
    try:
        with guard_streams():
            code = _call()
    except OSError:  # not even a null device to write to
        code = StorageError.exit_code
    sys.exit(code)


def _call() -> int:
    """The exit code of one command; whatever goes wrong is one line on stderr."""
    # it warns of a home that cannot be written, where it takes a temporary folder
    logging.getLogger("matplotlib").setLevel(logging.ERROR)
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except ProvenanceError as error:
        return _say(str(error), error.exit_code)
    except (KeyboardInterrupt, typer.Abort):
        return _say("interrupted", _INTERRUPTED)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        return _say(f"{place}{error.strerror or error}", StorageError.exit_code)
    except (Exception, SystemExit) as error:  # noqa: BLE001 - exit 1 would read as "evidence found"
        if isinstance(error, _CLICK_ERROR):
            error.show()
            return int(error.exit_code)
        if _debug and _debug[-1]:
            traceback.print_exception(error)
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
        return _say(f"a defect of this program, not of your input: {where}. Please report it.", 70)
    return code if isinstance(code, int) else 0


def _say(message: str, code: int) -> int:
    line = f"provenance: {shorten(clean(message), _LONGEST)}"
    errors.print(line, markup=False, highlight=False, soft_wrap=True)
    return code
