"""What a sequential check says in words after any number of batches."""

from __future__ import annotations

from collections.abc import Sequence

from provenance.check.inputs import say_positions, say_read
from provenance.check.looks.result import SequentialVerdict
from provenance.check.power_statement import say_power
from provenance.check.words import add_controls, say_attributed
from provenance.storage.printable import Page


def say_look(
    verdict: SequentialVerdict, state_sha256: str, standing: Sequence[str], width: int
) -> str:
    """The readable report of one look.

    Parameters: the verdict; SHA-256 of the state, "" if there is none yet; sentences on plan and
    register; width of the page.
    """
    page = Page(width)
    page.say(_conclude(verdict))
    page.reasons(verdict.reasons)
    for sentence in standing:
        page.say(sentence)
    page.say(
        f"Evidence at any time: p <= 10^{verdict.log10_p:.2f} (all keys, all looks); "
        f"log10 e {verdict.log10_e:.2f} now; alpha {verdict.alpha:g}"
    )
    page.say()
    _add_batches(page, verdict)
    page.say()
    _add_keys(page, verdict)
    page.say()
    add_controls(page, verdict.controls)
    if verdict.caveat:
        page.say(f"Caveat of this mark: {verdict.caveat}.")
    page.say()
    if verdict.power is not None:
        page.say(say_power(verdict.power))
    page.say(
        "Valid if these keys scored no output of this suspect elsewhere, and if each batch was "
        f"cut without looking at its coins. State: sha256 {state_sha256 or 'none yet'}."
    )
    return str(page)


def _add_batches(page: Page, verdict: SequentialVerdict) -> None:
    page.table(
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
        page.say(f"Batch {number}: {say_positions(look.outputs)}")
        for sentence in say_read(look.outputs):
            page.say(sentence)


def _add_keys(page: Page, verdict: SequentialVerdict) -> None:
    page.table(
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


def _conclude(verdict: SequentialVerdict) -> str:
    if verdict.conclusion == "evidence":
        where = say_attributed(verdict.attributed)
        return f"EVIDENCE: consistent with training on marked responses{where}. You may stop."
    if verdict.conclusion == "inconclusive":
        return "INCONCLUSIVE so far: speaks neither for nor against training on the responses."
    return "NO EVIDENCE so far. More outputs may be added at any time."
