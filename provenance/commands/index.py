"""`provenance index`: from the served log to the index of marked contexts."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provenance.commands import marks
from provenance.commands.console import print_json, print_table, results, words
from provenance.commands.marks import MarkChoice

if TYPE_CHECKING:
    from provenance.served.index_manifest import IndexManifest

app = typer.Typer(
    help="The index: which context was served marked how often.", no_args_is_help=True
)


@app.command("build")
def build(
    logs: Annotated[
        list[Path], typer.Argument(metavar="LOG...", help="JSONL, gz, zst, Parquet, folders.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the index.")],
    keys: marks.Keys = None,
    scheme: marks.SchemeName = None,
    config: marks.SchemeConfig = None,
    key_file: marks.SchemeKeyFile = None,
    key_command: marks.SchemeKeyCommand = None,
    tokenizer: marks.TokenizerFile = None,
    vocabulary_size: marks.VocabularySize = None,
) -> None:
    """Build the index of served logs. It is as confidential as the logs."""
    from provenance.marks import as_mark
    from provenance.served.build import build_index

    choice = MarkChoice(keys, scheme, config, key_file, key_command, tokenizer, vocabulary_size)
    mark = choice.open()
    manifest = build_index(logs, output, mark, choice.tokenizer_path)
    words.print(
        f"{manifest.marked_responses:,} marked responses of {manifest.responses:,} "
        f"({manifest.duplicates:,} duplicates counted once), {manifest.rows:,} rows: {output}",
        highlight=False,
    )
    _warn(manifest, counts_weigh=not as_mark(mark).shares_coins)


@app.command("info")
def info(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")],
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Show what an index holds; needs no secret."""
    from provenance.served.index import Index

    index = Index.open(folder, None)
    found = index.info()
    _warn(index.manifest, counts_weigh=True)
    if as_json:
        print_json(found)
        return
    for name, value in found.items():
        if not isinstance(value, (list, tuple, dict)):
            results.print(f"{name}: {value}", highlight=False, markup=False, soft_wrap=True)
    for log in found["logs"]:
        line = f"log {log['name']}: {log['records']:,} records, sha256 {log['sha256']}"
        results.print(line, highlight=False, markup=False, soft_wrap=True)
    print_table(
        ["slot", "value", "contexts", "windows"],
        [
            [slot["name"], v["name"] or "-", f"{v['contexts']:,}", f"{v['responses']:,}"]
            for slot in found["slots"]
            for v in slot["values"]
        ],
    )


def _warn(manifest: IndexManifest, *, counts_weigh: bool) -> None:
    """Say on stderr what stands against every check of this index."""
    from provenance.check.inputs import describe_log
    from provenance.check.reservations import reserve_index

    for one in reserve_index(describe_log(manifest, counts_weigh=counts_weigh)):
        words.print(
            f"Warning: {one.reason}. No check against this index is evidence without an innocent "
            "model of the suspect's size (--innocent).",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
