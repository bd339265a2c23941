"""`provenance plan enough`: do the outputs suffice? Looks at outputs and weights, at no coin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from provenance.check.weigh import choose_rule, refuse_retired
from provenance.commands import marks
from provenance.commands.console import print_json, print_table, results, words
from provenance.commands.marks import MarkChoice


def enough(
    outputs: Annotated[
        list[Path], typer.Argument(metavar="OUTPUTS...", help="All outputs so far.")
    ],
    index: Annotated[Path, typer.Option(help="Folder of the index.")],
    shift: Annotated[
        float,
        typer.Option(
            help="Mean shift of a score that is to be found, in standard deviations of one score."
        ),
    ],
    keys: marks.Keys = None,
    scheme: marks.SchemeName = None,
    config: marks.SchemeConfig = None,
    key_file: marks.SchemeKeyFile = None,
    key_command: marks.SchemeKeyCommand = None,
    vocabulary_size: marks.VocabularySize = None,
    alpha: Annotated[float, typer.Option(help="Family-wise error rate of the check.")] = 1e-4,
    power: Annotated[float, typer.Option(help="Wanted probability of finding it.")] = 0.9,
    tokenizer: marks.TokenizerFile = None,
    reference: Annotated[str, typer.Option(help="As of the check.")] = "none",
    reference_text: Annotated[
        list[Path] | None, typer.Option(help="As of the check; repeat.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="As of the check.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Say whether the outputs collected so far suffice; looks at no coin: it costs no error rate.

    They suffice if the test of the global key finds the shift with the wanted probability.
    """
    from provenance.check.score import weigh_coins, weigh_observations
    from provenance.commands.observing import Observer, Reference
    from provenance.marks import KeyringMark, as_mark
    from provenance.marks.alpha import family_weights
    from provenance.served.index import Index
    from provenance.served.index_manifest import IndexManifest
    from provenance.stats.looks import coins_needed, effective_coins, outputs_suffice

    choice = MarkChoice(keys, scheme, config, key_file, key_command, tokenizer, vocabulary_size)
    mark = as_mark(choice.open(IndexManifest.load(index).vocabulary_size))
    loaded, opened = choice.load_tokenizer(mark), Index.open(index, mark.public)
    opened = opened.with_equal_counts() if mark.shares_coins else opened
    expected = Reference(reference, tuple(reference_text or ()), None, False)
    observations = Observer(expected, loaded, mark, opened).observe_outputs(outputs)
    rule = refuse_retired(rule or choose_rule(sampled=True, has_reference=reference != "none"))
    with words.status("Weighing"):
        weighing = weigh_observations(observations, opened, mark, rule)
    own, rows = isinstance(mark, KeyringMark), []  # of our own no tested key is even derived
    shares = family_weights(list(weighing.hypotheses))
    for (key, pairs), share in zip(weighing.hypotheses.items(), shares, strict=True):
        level = alpha * float(share)
        weights = pairs.weights if own else weigh_coins(pairs, mark.open(*key))
        rows.append(
            {
                "key": str(key),
                "pairs": len(pairs),
                "coins": int((weights != 0).sum()),
                "effective_coins": effective_coins(weights),
                "needed": coins_needed(shift, level, power),
                "suffices": outputs_suffice(weights, shift, level, power),
            }
        )
    suffices = bool(rows) and bool(rows[int(shares.argmax())]["suffices"])
    if as_json:
        print_json({"suffices": suffices, "shift": shift, "alpha": alpha, "keys": rows})
        return
    results.print(
        Text("The outputs suffice." if suffices else "MORE OUTPUTS are needed.", style="bold")
    )
    print_table(
        ["key", "coins", "effective", "needed", "suffices"],
        [
            [
                str(row["key"]),
                f"{row['coins']:,}",
                f"{row['effective_coins']:,.0f}",
                f"{row['needed']:,.0f}",
                "yes" if row["suffices"] else "",
            ]
            for row in rows
        ],
        f"Finding a shift of {shift:g} with probability {power:g}, alpha {alpha:g} over all keys",
    )
