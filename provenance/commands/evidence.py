"""`provenance evidence`: make signing keys and sign bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from provenance.commands.console import results, words

app = typer.Typer(help="Evidence bundles: signing keys and signatures.", no_args_is_help=True)


@app.command("new-signing-key")
def new_signing_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of the key, mode 0600.")],
) -> None:
    """Make an Ed25519 key: FILE (secret) and FILE.pub.pem, which you publish."""
    from provenance.evidence.signature import create_signing_key

    public = create_signing_key(file)
    words.print(f"Wrote {file} and {public}. Publish the latter.", markup=False, highlight=False)


@app.command("sign")
def sign(
    bundle: Annotated[Path, typer.Argument(metavar="DIR", help="Bundle that `check -o` wrote.")],
    signing_key: Annotated[
        Path | None, typer.Option(help="File of the key; or PROVENANCE_SIGNING_KEY_FILE or _CMD.")
    ] = None,
) -> None:
    """Sign the manifest of a bundle."""
    from provenance.evidence.signature import sign_bundle

    results.print(f"signed by {sign_bundle(bundle, signing_key)}", markup=False, highlight=False)
