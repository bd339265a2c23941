"""`provenance index`: from the served log to the index of marked contexts."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import page_width, print_json, print_page, print_result, tell
from provenance.commands.options import Force, Json, shares_options
from provenance.errors import UsageError

app = typer.Typer(
    help="The index: which context was served marked how often.", no_args_is_help=True
)

Spill = Annotated[
    Path | None,
    typer.Option(metavar="FOLDER", help="For what does not fit into memory; else in the index."),
]

Engine = Annotated[str, typer.Option(help="embedded, or spark: a cluster, see docs/spark.md.")]
Master = Annotated[str | None, typer.Option(help="With --engine spark: URL of the cluster.")]


@app.command("build")
@shares_options
def build(
    logs: Annotated[
        list[Path], typer.Argument(metavar="LOG...", help="JSONL, gz, zst, Parquet, folders.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the index.")],
    mark: Any,
    only: Annotated[
        Path | None,
        typer.Option(help="Build a group: the responses whose --field is in this file."),
    ] = None,
    field: Annotated[
        str, typer.Option(help="With --only: a label, response_id, conversation_id or time.")
    ] = "response_id",
    spill: Spill = None,
    engine: Engine = "embedded",
    master: Master = None,
    force: Force = False,
) -> None:
    """Build the index of served logs, or a group of them. It is as confidential as the logs."""
    if only is not None and (engine != "embedded" or master is not None):
        raise UsageError("a group must be built without --engine and --master. Leave them out.")
    opened = mark.open()
    if only is not None:
        group = pv.build_group(
            logs, output, opened, only, field, mark.tokenizer, force=force, spill=spill
        )
        tell(f"{group}: {output}")
        return
    manifest = pv.build_index(
        logs,
        output,
        opened,
        mark.tokenizer,
        force=force,
        engine=engine,
        master=master,
        spill=spill,
    )
    _tell_made(manifest, output, pv.list_warnings(manifest, opened))


@app.command("merge")
@shares_options
def merge(
    indexes: Annotated[list[Path], typer.Argument(metavar="INDEX...", help="Two or more folders.")],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the merged index.")],
    mark: Any,
    spill: Spill = None,
    force: Force = False,
) -> None:
    """Add up indexes of disjoint logs: equal to one index of all of them. Needs no secret.

    No response and no conversation may be in two of them; a log file that is in two is refused.
    """
    public = mark.describe(indexes[0])
    manifest = pv.merge_indexes(indexes, output, public, force=force, spill=spill)
    _tell_made(manifest, output, pv.list_warnings(manifest))


@app.command("match")
@shares_options
def match(
    index: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of a whole index.")],
    outputs: Annotated[
        list[Path], typer.Argument(metavar="OUTPUTS...", help="All outputs of the check.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="Folder of the excerpt.")],
    mark: Any,
    read_as: Any,
    engine: Engine = "embedded",
    master: Master = None,
    force: Force = False,
) -> None:
    """Take from an index what a check of these outputs looks up. Needs no secret.

    A check against the excerpt gives the verdict of the whole index; other outputs are refused.
    """
    public = mark.describe(index)
    options = {"force": force, "engine": engine, "master": master, "read_as": read_as}
    made = pv.match_index(index, outputs, output, public, mark.tokenizer, **options)
    if (held := made.excerpt) is not None:
        tell(f"{held.rows:,} rows of {made.rows:,}, for {held.contexts:,} contexts: {output}")


def _tell_made(manifest: Any, output: Path, warnings: list[str]) -> None:
    tell(
        f"{manifest.marked_responses:,} marked responses of {manifest.responses:,} "
        f"({manifest.duplicates:,} duplicates counted once), {manifest.rows:,} rows: {output}"
    )
    for warning in warnings:
        tell(f"Warning: {warning}")


@app.command("groups")
@shares_options
def groups(
    logs: Annotated[list[Path], typer.Argument(metavar="LOG...", help="As of `index build`.")],
    field: Annotated[str, typer.Option(help="A label, such as account.")],
    mark: Any,
    as_json: Json = False,
) -> None:
    """List the groups of a log by a label, and what could be attributed to each. Reads the log."""
    found = pv.list_groups(logs, mark.open(), field, mark.tokenizer)
    print_result(found, as_json=as_json)


@app.command("info")
def info(
    folder: Annotated[Path, typer.Argument(metavar="INDEX", help="Folder of the index.")],
    verify: Annotated[
        bool, typer.Option("--verify", help="Read every row, and compare hashes and counts.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show what an index holds; needs no secret."""
    found, warnings = pv.describe_index(folder, verify=verify)
    for warning in warnings:
        tell(f"Warning: {warning}")
    if as_json:
        print_json(found)
        return
    page = pv.Page(page_width())
    for name, value in found.items():
        if not isinstance(value, (list, tuple, dict)):
            page.say(f"{name}: {value}", wrap=False)
    for log in found["logs"]:
        line = f"log {log['name']}: {log['records']:,} records, sha256 {log['sha256']}"
        page.say(line, wrap=False)
    page.table(
        ["slot", "value", "contexts", "windows"],
        [
            [slot["name"], v["name"] or "-", f"{v['contexts']:,}", f"{v['responses']:,}"]
            for slot in found["slots"]
            for v in slot["values"]
        ],
    )
    print_page(str(page))
