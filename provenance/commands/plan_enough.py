"""`provenance plan enough`: do the outputs suffice? Looks at outputs and weights, at no coin."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from provenance.commands.console import print_json, print_table, results, words
from provenance.weigh import choose_rule, refuse_retired

__all__ = ["enough"]


def enough(
    outputs: Annotated[
        list[Path], typer.Argument(metavar="OUTPUTS...", help="All outputs so far.")
    ],
    keys: Annotated[Path, typer.Option(help="Folder of the keyring.")],
    index: Annotated[Path, typer.Option(help="Folder of the index.")],
    shift: Annotated[
        float,
        typer.Option(
            help="Mean shift of a score that is to be found, in standard deviations of one score."
        ),
    ],
    alpha: Annotated[float, typer.Option(help="Family-wise error rate of the check.")] = 1e-4,
    power: Annotated[float, typer.Option(help="Wanted probability of finding it.")] = 0.9,
    tokenizer: Annotated[
        Path | None, typer.Option(help="tokenizer.json; default: the keyring's copy.")
    ] = None,
    reference: Annotated[str, typer.Option(help="As of the check.")] = "none",
    reference_text: Annotated[
        list[Path] | None, typer.Option(help="As of the check; repeat.")
    ] = None,
    rule: Annotated[str | None, typer.Option(help="As of the check.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="JSON on stdout.")] = False,
) -> None:
    """Say whether the outputs collected so far suffice; opens no key, so it costs no error rate.

    They suffice if the test of the global key finds the shift with the wanted probability.
    """
    from provenance.commands.observing import Observer, Reference
    from provenance.families import family_weights
    from provenance.keys.keyring import TOKENIZER_FILE, Keyring
    from provenance.keys.schedule import key_name
    from provenance.scoring import weigh_observations
    from provenance.served.index import Index
    from provenance.stats.looks import coins_needed, effective_coins, outputs_suffice
    from provenance.tokenizer import load_tokenizer

    public = Keyring.load(keys)
    loaded = load_tokenizer(tokenizer or keys / TOKENIZER_FILE, public)
    opened, unlocked = Index.open(index, public), public.unlock(keys)
    expected = Reference(reference, tuple(reference_text or ()), None, False)
    observations = Observer(expected, loaded, unlocked, opened).observe_outputs(outputs)
    with words.status("Weighing"):
        weighing = weigh_observations(
            observations,
            opened,
            unlocked,
            refuse_retired(rule or choose_rule(sampled=True, has_reference=reference != "none")),
        )
    rows = []
    shares = family_weights(list(weighing.hypotheses))
    for (key, pairs), share in zip(weighing.hypotheses.items(), shares, strict=True):
        level = alpha * float(share)
        rows.append(
            {
                "key": key_name(*key),
                "pairs": len(pairs),
                "effective_coins": effective_coins(pairs.weights),
                "needed": coins_needed(shift, level, power),
                "suffices": outputs_suffice(pairs.weights, shift, level, power),
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
                f"{row['pairs']:,}",
                f"{row['effective_coins']:,.0f}",
                f"{row['needed']:,.0f}",
                "yes" if row["suffices"] else "",
            ]
            for row in rows
        ],
        f"Finding a shift of {shift:g} with probability {power:g}, alpha {alpha:g} over all keys",
    )
