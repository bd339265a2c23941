"""The `provenance` command. Collects the nouns and turns errors into one line and an exit code."""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import NoReturn

import typer

from provenance.commands import (
    check,
    demo,
    detect,
    evidence,
    generate,
    index,
    keys,
    plan,
    suspects,
    verify,
)
from provenance.commands.console import clean, words
from provenance.errors import ProvenanceError, StorageError

__all__ = ["app", "main"]

app = typer.Typer(
    name="provenance",
    help="Watermark a model's responses, and test whether another model was trained on them.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("demo")(demo.demo)
app.add_typer(keys.app, name="keys")
app.command("generate")(generate.generate)
app.add_typer(index.app, name="index")
app.add_typer(plan.app, name="plan")
app.command("check")(check.check)
app.command("verify")(verify.verify)
app.add_typer(evidence.app, name="evidence")
app.command("detect")(detect.detect)
app.command("suspects")(suspects.suspects)


def main() -> NoReturn:
    """Run the command line and exit with a documented code (docs/formats.md).

    Nothing but evidence exits 1: a defect exits 70, an interruption 130.
    """
    try:
        app()
    except ProvenanceError as error:
        _stop(str(error), error.exit_code)
    except BrokenPipeError:
        sys.exit(0)
    except OSError as error:
        place = f"{error.filename}: " if error.filename else ""
        _stop(f"{place}{error.strerror or error}", StorageError.exit_code)
    except Exception as error:  # noqa: BLE001 - exit 1 would read as "evidence found"
        frame = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{type(error).__name__} in {Path(frame.filename).name}:{frame.lineno}"
        _stop(f"a defect of this program, not of your input: {where}. Please report it.", 70)
    sys.exit(0)


def _stop(message: str, code: int) -> NoReturn:
    words.print(f"provenance: {clean(message)}", markup=False, highlight=False, soft_wrap=True)
    sys.exit(code)
