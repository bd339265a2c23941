"""`provenance suspects`: several verdicts of one keyring, judged together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.text import Text

from provenance.commands.console import print_json, print_reasons, print_table, results, words

if TYPE_CHECKING:
    from provenance.check.correlations import Correlation
    from provenance.check.suspects import Family, SuspectResult


def suspects(
    folders: Annotated[
        list[Path], typer.Argument(metavar="VERDICT_DIR...", help="Folders of `check -o`.")
    ],
    alpha: Annotated[
        float, typer.Option(help="Family-wise error rate over all suspects and keys.")
    ] = 1e-4,
    fdr: Annotated[float, typer.Option(help="False discovery rate of e-BH over suspects.")] = 0.01,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Judge several suspects together: nobody accused by chance, however many were checked.

    Exit 1: somebody is accused (family-wise); 0: nobody; 3: nobody, but not for want of a mark.
    """
    from provenance.check.suspects import judge_suspects, read_suspect

    with words.status("Judging suspects"):
        family = judge_suspects([read_suspect(folder) for folder in folders], alpha, fdr)
    if as_json:
        print_json(family.to_json())
    else:
        _print(family)
    raise typer.Exit(family.exit_code)


def _print(family: Family) -> None:
    print_table(
        ["suspect", "log10 p", "accused", "keys, at least", "log10 e", "level", "by e-BH"],
        [_row(result) for result in family.suspects],
        f"{len(family.suspects)} suspects, {family.committed_keys} committed keys each",
    )
    results.print()
    print_reasons(family.reasons)
    results.print(
        Text(
            f"log10 p: adjusted for all suspects and committed keys; accused at {family.alpha:g}: "
            "with that probability anybody is accused wrongly. level: log10 of the false discovery "
            f"rate at which e-BH names the suspect; named at {family.false_discovery_rate:g}: that "
            "share of the named is wrong on average. Do not accuse one suspect by e-BH alone.",
            style="dim",
        )
    )
    if family.correlations:
        results.print()
        print_table(
            ["suspect", "suspect", "key", "shared pairs", "correlation"],
            [_row_of_correlation(one) for one in _largest(family.correlations)],
            "Correlation of z under H0 by shared pairs, largest key of every two suspects",
        )
    if family.without_pairs:
        names = ", ".join(family.without_pairs)
        results.print(Text(f"No correlation for {names}: no pairs in the folder.", style="dim"))


def _row(result: SuspectResult) -> list[str]:
    return [
        result.name,
        f"{result.log10_p:.2f}",
        ("yes" if result.accused else "") if result.usable else "not usable",
        ", ".join(result.keys),
        "" if result.log10_e is None else f"{result.log10_e:.2f}",
        f"{result.log10_level:.2f}",
        "yes" if result.discovered else "",
    ]


def _row_of_correlation(one: Correlation) -> list[str]:
    return [one.first, one.second, one.key, f"{one.shared_pairs:,}", f"{one.correlation:+.3f}"]


def _largest(correlations: tuple[Correlation, ...]) -> list[Correlation]:
    """Per two suspects the key of the largest correlation, up to sign."""
    best: dict[tuple[str, str], Correlation] = {}
    for one in correlations:
        known = best.get((one.first, one.second))
        if known is None or abs(one.correlation) > abs(known.correlation):
            best[one.first, one.second] = one
    return list(best.values())
