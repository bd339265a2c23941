"""`provenance check --sequential`: one more batch of outputs, and what is known by now."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.text import Text

from provenance.check.power_statement import say_power
from provenance.commands.console import (
    print_controls,
    print_json,
    print_reasons,
    print_table,
    results,
    words,
)
from provenance.errors import UsageError

if TYPE_CHECKING:
    from provenance.check.examine import CheckSettings
    from provenance.check.looks.result import SequentialVerdict
    from provenance.check.plan import Plan
    from provenance.keys.keyring import UnlockedKeyring
    from provenance.marks import Mark
    from provenance.served.index import Index
    from provenance.suspect.observations import Observations

REPORT_FILE = "sequential.json"


def refuse_with_sequential(options: Sequence[object]) -> None:
    """UsageError if an option is set that opens coins early, or has nothing to do with batches."""
    if any(options):
        raise UsageError(
            "--sequential must come with OUTPUTS and --keys or --scheme only, without --weights, "
            "--read, --logprobs, --twins, --innocent, --disclose and --without-pairs; one is "
            "given. Do the other check on its own, when collecting has ended."
        )


def continue_sequentially(
    state: Path,
    observations: Observations | None,
    index: Index,
    keyring: UnlockedKeyring | Mark,
    settings: CheckSettings,
    plan: Plan | None,
    output: Path | None,
    as_json: bool,
) -> int:
    """Add a batch to the state (None: only look), write and print; returns the exit code.

    With a plan the batch is compared with it before a coin is revealed; without one the check is
    exploratory.
    """
    from provenance.check.inputs import describe_inputs
    from provenance.check.looks.conclude import conclude
    from provenance.check.looks.state import continue_check
    from provenance.storage.files import lock_folder, write_json

    if plan is not None and observations is not None:
        tested = index.keys_served(keyring.schedule)
        inputs = describe_inputs(observations, index, {}, asdict(settings))
        plan.require(keyring.public, tested, inputs, sequential=True)
    with words.status("Revealing new coins"):
        check, sha256 = continue_check(state, observations, index, keyring, settings)
        verdict = conclude(check, keyring)
    report = {
        **verdict.to_json(),
        "state_sha256": sha256,
        "exploratory": plan is None,
        "plan": {"sha256": plan.sha256, "timestamp": plan.timestamp} if plan else None,
    }
    if output is not None:
        with lock_folder(output):
            write_json(output / REPORT_FILE, report)
    if as_json:
        print_json(report)
    else:
        _print(verdict, sha256, plan)
    return verdict.exit_code


def _print(verdict: SequentialVerdict, sha256: str, plan: Plan | None) -> None:
    from provenance.check.inputs import say_positions

    results.print(Text(_say(verdict), style="bold"))
    print_reasons(verdict.reasons)
    results.print(
        Text(f"Planned: {plan.sha256}." if plan else "Exploratory: no plan fixed this check.")
    )
    results.print(
        Text(
            f"Evidence at any time: p <= 10^{verdict.log10_p:.2f} (all keys, all looks); "
            f"log10 e {verdict.log10_e:.2f} now; alpha {verdict.alpha:g}"
        )
    )
    results.print()
    print_table(
        ["batch", "outputs", "tokens", "coins", "known", "log10 e"],
        [
            [
                str(number),
                f"{look.outputs['outputs']:,}",
                f"{look.outputs['tokens']:,}",
                f"{look.coins:,}",
                f"{look.known:,}",
                f"{look.log10_e:.2f}",
            ]
            for number, look in enumerate(verdict.looks, start=1)
        ],
        "Batches (coins: newly revealed, all keys; known: revealed before, ignored)",
    )
    for number, look in enumerate(verdict.looks, start=1):
        results.print(Text(f"Batch {number}: {say_positions(look.outputs)}", style="dim"))
    results.print()
    print_table(
        ["key", "coins", "log10 e", "log10 p", "rejected"],
        [
            [
                result.name,
                f"{result.table.coins:,}",
                f"{result.log10_e:.2f}",
                f"{result.log10_p:.2f}",
                "yes" if result.rejected else "",
            ]
            for result in verdict.hypotheses
        ],
        "Keys (log10 p: at any time, adjusted for all keys)",
    )
    results.print()
    print_controls(verdict.controls)
    if verdict.caveat:
        results.print(Text(f"Caveat of this mark: {verdict.caveat}."))
    results.print()
    if verdict.power is not None:
        results.print(Text(say_power(verdict.power), style="dim"))
    results.print(
        Text(
            "Valid if these keys scored no output of this suspect elsewhere, and if each batch was "
            f"cut without looking at its coins. State: sha256 {sha256 or 'none yet'}.",
            style="dim",
        )
    )


def _say(verdict: SequentialVerdict) -> str:
    if verdict.conclusion == "evidence":
        parts = [f"{slot} {', '.join(values)}" for slot, values in verdict.attributed.items()]
        where = f", at least: {'; '.join(parts)}" if parts else ""
        return f"EVIDENCE: consistent with training on marked responses{where}. You may stop."
    if verdict.conclusion == "inconclusive":
        return "INCONCLUSIVE so far: speaks neither for nor against training on the responses."
    return "NO EVIDENCE so far. More outputs may be added at any time."
