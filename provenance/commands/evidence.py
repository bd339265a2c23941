"""`provenance evidence`: make signing keys and sign bundles."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import results, tell
from provenance.commands.options import shares_options

app = typer.Typer(help="Evidence bundles: signing keys and signatures.", no_args_is_help=True)

Bundle = Annotated[Path, typer.Argument(metavar="DIR", help="Bundle that `check -o` wrote.")]


@app.command("new-signing-key")
def new_signing_key(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="File of the key, mode 0600.")],
) -> None:
    """Make an Ed25519 key: FILE (secret) and FILE.pub.pem, which you publish."""
    public = pv.create_signing_key(file)
    tell(f"Wrote {file} and {public}. Publish the latter.")


@app.command("file")
@shares_options
def file(bundle: Bundle, filing: Any) -> None:
    """Put case number, suspect and author onto the report of a bundle, before it is signed."""
    pv.file_bundle(bundle, filing)
    tell(f"Wrote {bundle / 'report.html'}. Sign the bundle now: what is signed stays as it is.")


@app.command("sign")
def sign(
    bundle: Bundle,
    signing_key: Annotated[
        Path | None, typer.Option(help="File of the key; or PROVENANCE_SIGNING_KEY_FILE or _CMD.")
    ] = None,
) -> None:
    """Sign the manifest of a bundle."""
    signer = pv.sign_bundle(bundle, signing_key)
    results.print(f"signed by {signer}", markup=False, highlight=False)
