"""`provenance demo`: the whole story on fixtures/, without network and without torch."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Annotated, Any

import typer

from provenance.commands.console import print_json, print_table, results, words
from provenance.errors import StorageError

_FIXTURES = Path(__file__).resolve().parents[2] / "fixtures"


def demo(
    fixtures: Annotated[Path, typer.Option(help="Folder of the demo's data.")] = _FIXTURES,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Check suspects that were really trained: on all, on part, or on none of the marked text."""
    from provenance.check.examine import check_outputs
    from provenance.keys.keyring import MASTER_FILE, TOKENIZER_FILE, Keyring
    from provenance.keys.tokenizer import load_tokenizer
    from provenance.served.build import build_index
    from provenance.served.index import Index
    from provenance.storage.files import read_json
    from provenance.suspect.access.outputs import observe

    if not (fixtures / "suspects.json").exists():
        raise StorageError(
            f"{fixtures}: must be the fixtures folder of the repository; it is not. "
            "Run the demo from a clone, or pass --fixtures."
        )
    catalogue = read_json(fixtures / "suspects.json")
    with tempfile.TemporaryDirectory(prefix="provenance-demo-") as scratch:
        keys = Path(scratch) / "keys"
        shutil.copytree(fixtures / "keys", keys)
        # git does not keep modes; the key of the demo is public, a real one never is
        (keys / MASTER_FILE).chmod(0o600)
        public = Keyring.load(keys)
        keyring = public.unlock(keys)
        tokenizer = load_tokenizer(keys / TOKENIZER_FILE, public)
        with words.status("Indexing the served log"):
            build_index([fixtures / catalogue["served"]], Path(scratch) / "index", keyring)
        with Index.open(Path(scratch) / "index", public) as index:
            innocents = {
                name: observe([fixtures / name], tokenizer, public)
                for name in catalogue["innocents"]
            }
            rows = []
            for suspect in catalogue["suspects"]:
                with words.status(f"Checking {suspect['name']}"):
                    outputs = observe([fixtures / suspect["outputs"]], tokenizer, public)
                    verdict = check_outputs(outputs, index, keyring, innocents=innocents)
                rows.append((suspect, verdict))
    if as_json:
        print_json({"suspects": [_describe(suspect, verdict) for suspect, verdict in rows]})
        return
    print_table(
        ["suspect", "trained on", "log10 p", "controls", "attributed"],
        [
            [
                suspect["name"],
                suspect["trained_on"],
                f"{verdict.log10_p:.1f}",
                "passed" if verdict.controls_passed else "FAILED",
                _say_attributed(verdict),
            ]
            for suspect, verdict in rows
        ],
        "Were these models trained on the marked responses?",
    )
    results.print(
        "\nlog10 p: of the whole check, exact upper bound, corrected for all keys.\n"
        "attributed: values whose own key is found, family-wise error 1e-4: at least these.",
        style="dim",
    )


def _describe(suspect: dict[str, Any], verdict: Any) -> dict[str, Any]:
    return {
        "name": suspect["name"],
        "trained_on_marked": suspect["trained_on_marked"],
        "log10_p": verdict.log10_p,
        "controls_passed": verdict.controls_passed,
        "attributed": verdict.attributed,
    }


def _say_attributed(verdict: Any) -> str:
    if verdict.conclusion != "evidence":
        return str(verdict.conclusion)
    parts = [f"{slot}: {', '.join(values)}" for slot, values in verdict.attributed.items()]
    return "; ".join(parts) or "global key only"
