"""`provenance plan`: write the analysis plan before the test, commit to it, show it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

import provenance as pv
from provenance.commands.console import (
    page_width,
    parse_labels,
    parse_parts,
    print_json,
    print_page,
    print_result,
    progress,
    results,
    tell,
)
from provenance.commands.options import Groups, IndexFolder, Json, open_case, shares_options
from provenance.errors import UsageError

app = typer.Typer(help="Analysis plans: what a check will do, fixed before.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(metavar="PLAN.json", help="File of the plan.")]


@app.command("enough")
@shares_options
def enough(
    outputs: Annotated[
        list[Path], typer.Argument(metavar="OUTPUTS...", help="All outputs so far.")
    ],
    index: IndexFolder,
    shift: Annotated[
        float,
        typer.Option(
            help="Mean shift of a score that is to be found, in standard deviations of one score."
        ),
    ],
    mark: Any,
    reference: Any,
    alpha: Annotated[float, typer.Option(help="Family-wise error rate of the check.")] = 1e-4,
    power: Annotated[float, typer.Option(help="Wanted probability of finding it.")] = 0.9,
    rule: Annotated[str | None, typer.Option(help="As of the check.")] = None,
    as_json: Json = False,
) -> None:
    """Say whether the outputs collected so far suffice; looks at no coin: it costs no error rate.

    They suffice if the test of the global key finds the shift with the wanted probability.
    """
    with progress() as show, open_case(mark, index, reference, show) as case:
        found = case.enough(outputs, shift, alpha=alpha, power=power, rule=rule)
    print_result(found, as_json=as_json)


@app.command("prompts")
@shares_options
def prompts(
    files: Annotated[
        list[Path],
        typer.Argument(metavar="PROMPTS...", help="Served logs, or files of your own prompts."),
    ],
    unmarked: Annotated[
        list[Path], typer.Option(help="Unmarked outputs of the served model; repeat.")
    ],
    output: Annotated[Path, typer.Option("-o", "--output", help="JSONL for collect --prompts.")],
    mark: Any,
    count: Annotated[int, typer.Option(help="How many to choose.")] = 500,
    label: Annotated[list[str] | None, typer.Option(help="Only NAME=VALUE; repeat.")] = None,
    balance: Annotated[
        str | None, typer.Option(help="Equally many of each value of this label.")
    ] = None,
    per_prefix: Annotated[int, typer.Option(help="At most so many that begin alike; 0: any.")] = 1,
    seed: Annotated[int, typer.Option(help="Of order and ties.")] = 0,
    as_json: Json = False,
) -> None:
    """Choose the prompts whose answers hold most expected evidence; looks at no coin and no answer.

    From a log these are prompts of customers, and the suspect's operator will see what is asked.
    """
    made = pv.choose_prompts(
        files,
        mark.describe(),
        output,
        unmarked=unmarked,
        count=count,
        labels=parse_labels(label or []),
        balance=balance,
        per_prefix=per_prefix,
        seed=seed,
        tokenizer=mark.tokenizer,
    )
    print_result(made, as_json=as_json)


@app.command("power")
def power(
    share: Annotated[
        float | None, typer.Option(help="Of marked responses in the suspect's training data.")
    ] = None,
    keys: Annotated[Path | None, typer.Option(help="Folder of the keyring.")] = None,
    access: Annotated[str, typer.Option(help="outputs, weights or logprobs.")] = "outputs",
    reference: Annotated[str, typer.Option(help="none, ngram or model.")] = "none",
    rule: Annotated[str | None, typer.Option(help="As of the check.")] = None,
    alpha: Annotated[float, typer.Option(help="Error rate over all keys.")] = 1e-4,
    wanted: Annotated[float, typer.Option("--power", help="Probability of finding it.")] = 0.9,
    audit: Annotated[
        Path | None, typer.Option(help="What log audit --json wrote: signals by capability.")
    ] = None,
    mix: Annotated[
        list[str] | None, typer.Option(help="CAPABILITY=PART of the answers; repeat.")
    ] = None,
    verdict: Annotated[
        Path | None, typer.Option(help="Instead: what this finished check finds, key by key.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Say how many tokens find a share, or what share a finished check finds.

    Exit 3: no number can be said within what was measured.
    """
    if verdict is not None:
        print_result(pv.state_detectable(verdict), as_json=as_json)
        return
    if share is None or keys is None:
        raise UsageError("--share and --keys must be given, or --verdict; one is missing.")
    found = pv.plan_power(
        share,
        pv.Keyring.load(keys),
        access=access,
        reference=reference,
        rule=rule,
        alpha=alpha,
        power=wanted,
        audit=audit,
        mix=parse_parts(mix or []),
    )
    print_result(found, as_json=as_json)
    raise typer.Exit(found.exit_code)


@app.command("new")
@shares_options
def new(
    file: File,
    index: IndexFolder,
    mark: Any,
    reference: Any,
    registering: Any,
    suspect: Annotated[
        str | None, typer.Option(help="Which model, in words; default: that of the case.")
    ] = None,
    access: Annotated[str, typer.Option(help="outputs, weights or logprobs.")] = "outputs",
    outputs: Annotated[
        list[int] | None,
        typer.Option(min=1, help="How many outputs will be read; repeat for several looks."),
    ] = None,
    sequential: Annotated[
        bool, typer.Option("--sequential", help="Stop when the evidence suffices: an e-process.")
    ] = False,
    alpha: Annotated[float, typer.Option(help="Error rate over all keys and looks.")] = 1e-4,
    rule: Annotated[
        str | None, typer.Option(help="Weight rule; default: the one that `check` would take.")
    ] = None,
    placebo_keys: Annotated[int, typer.Option(help="Keys of the placebo control.")] = 400,
    innocents: Annotated[
        int, typer.Option(min=0, help="How many innocent models will be checked.")
    ] = 0,
    twins: Annotated[bool, typer.Option("--twins", help="Twins take half of alpha.")] = False,
    prompts: Annotated[
        Path | None, typer.Option(help="JSONL of the prompts whose answers will be checked.")
    ] = None,
    group: Groups = None,
) -> None:
    """Write a plan. It names every key that may be opened; later values are not tested."""
    made = pv.make_plan(
        file,
        mark.describe(index),
        index,
        suspect,
        access=access,
        outputs=outputs or (),
        sequential=sequential,
        **reference,
        alpha=alpha,
        rule=rule,
        placebo_keys=placebo_keys,
        innocents=innocents,
        twins=twins,
        prompts=prompts,
        groups=parse_labels(group or ()),
        **registering,
    )
    tell(f"Wrote {file}, sha256 {made.sha256}.")


@app.command("commit")
@shares_options
def commit(
    file: File,
    registering: Any,
    url: Annotated[
        str | None, typer.Option(help="Ask this time-stamp authority; else carry the request.")
    ] = None,
    response: Annotated[
        Path | None, typer.Option(help="Answer of an authority that was carried back.")
    ] = None,
    trust: Annotated[
        Path | None, typer.Option(help="Root certificates (PEM) that the answer must chain to.")
    ] = None,
) -> None:
    """Print the plan's hash; write a time-stamp request, or take its answer in."""
    made = pv.commit_plan(file, url=url, response=response, trust=trust, **registering)
    results.print(made.plan.sha256, markup=False, highlight=False)
    tell(str(made))


@app.command("show")
def show(
    file: File, as_json: Annotated[bool, typer.Option("--json", help="The plan itself.")] = False
) -> None:
    """Show a plan and its hash."""
    plan = pv.Plan.load(file)
    if as_json:
        print_json(plan.document)
        return
    page = pv.Page(page_width())
    page.say(f"plan {plan.sha256}", wrap=False)
    rows = [(name, _say(value)) for name, value in plan.document.items() if name != "commitments"]
    rows.append(("commitments", f"{len(plan.document['commitments'])} keys"))
    page.table(["field", "value"], rows)
    print_page(str(page))


def _say(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_say(one)}" for name, one in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
