"""`provenance demo`: the whole story on fixtures/, without network and without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import provenance as pv
from provenance.commands.console import print_result, progress
from provenance.commands.options import Json


def demo(
    fixtures: Annotated[
        Path | None, typer.Option(help="Folder of the demo's data, if not the one installed.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Check suspects that were really trained: on all, on part, or on none of the marked text."""
    with progress():
        story = pv.tell_story(fixtures)
    print_result(story, as_json=as_json)
