"""`provenance verify`: repeat every step of a bundle, and say which held."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from provenance.commands.console import print_json, results
from provenance.evidence.steps import Verification
from provenance.storage.printable import clean


def verify(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="Bundle that `check -o` wrote.")],
    public_key: Annotated[
        Path | None, typer.Option(help="Public key (PEM) of the expected signer.")
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="Root certificates (PEM) of time-stamp authorities.")
    ] = None,
    unsigned: Annotated[
        bool, typer.Option("--unsigned", help="Accept a bundle that nobody signed.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="The steps on stdout.")] = False,
) -> None:
    """Verify a bundle from its own files. Exit 0: nothing failed; 1: a step failed."""
    from provenance.evidence.signature import read_public_key
    from provenance.evidence.timestamp import read_roots
    from provenance.evidence.verify.run import verify_bundle
    from provenance.evidence.verify.state import Trust

    trusted = Trust(
        read_public_key(public_key, str(public_key)) if public_key else None,
        read_roots(trust) if trust else (),
        unsigned,
    )
    found = verify_bundle(bundle, trusted)
    if as_json:
        print_json(found.to_json())
    else:
        _print(found)
    raise typer.Exit(0 if found.passed else 1)


def _print(found: Verification) -> None:
    for step in found.steps:
        mark = {"held": "held", "failed": "FAILED"}.get(step.status, "not possible")
        line = f"{step.number:2d} {mark:12s}  {step.title} [{step.file}]: {step.detail}"
        results.print(clean(line), markup=False, highlight=False, soft_wrap=True)
    failed = len(found.failures)
    open_steps = sum(step.status == "not possible" for step in found.steps)
    results.print(
        f"NOT VERIFIED: {failed} of {len(found.steps)} steps failed."
        if failed
        else f"VERIFIED: {len(found.steps) - open_steps} steps held, {open_steps} were not "
        "possible and claim nothing.",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
