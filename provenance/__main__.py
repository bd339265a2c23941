"""`python -m provenance` and the `provenance` command: where the program starts.

Before any module of ours or of anybody else's that could be broken.

Python itself exits 1 when an import fails, and 1 means "evidence found" here. Imports nothing but
the standard library until the guard stands.
"""

from __future__ import annotations

import sys
from typing import NoReturn

_DEFECT = 70
_INTERRUPTED = 130


def main() -> NoReturn:
    """Run the command line; a program that cannot even be loaded exits 70 and says why."""
    try:
        from provenance.commands.app import main as run
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)
    except BaseException as error:  # noqa: BLE001 - exit 1 would read as "evidence found"
        _say(
            f"the program could not be loaded: {type(error).__name__}: {error}. "
            "Install it and its dependencies again, or report it."
        )
        sys.exit(_DEFECT)
    run()


def _say(message: str) -> None:
    """One line on stderr, if anybody is there to read it; printable characters only."""
    line = "".join(c if c.isprintable() else " " for c in message)
    try:
        print(f"provenance: {line[:2000]}", file=sys.stderr, flush=True)  # noqa: T201
    except (OSError, ValueError, AttributeError):
        return


if __name__ == "__main__":
    main()
