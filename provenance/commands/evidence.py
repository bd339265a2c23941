"""`provenance evidence`: make signing keys and sign bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

import provenance as pv
from provenance.commands.console import results, tell

app = typer.Typer(help="Evidence bundles: signing keys and signatures.", no_args_is_help=True)


@app.command("new-signing-key")
def new_signing_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of the key, mode 0600.")],
) -> None:
    """Make an Ed25519 key: FILE (secret) and FILE.pub.pem, which you publish."""
    public = pv.create_signing_key(file)
    tell(f"Wrote {file} and {public}. Publish the latter.")


@app.command("sign")
def sign(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="Bundle that `check -o` wrote.")],
    signing_key: Annotated[
        Path | None, typer.Option(help="File of the key; or PROVENANCE_SIGNING_KEY_FILE or _CMD.")
    ] = None,
) -> None:
    """Sign the manifest of a bundle."""
    signer = pv.sign_bundle(bundle, signing_key)
    results.print(f"signed by {signer}", markup=False, highlight=False)
