"""What is known of the log and forbids to call a result evidence, and the innocent that lifts it.

A log whose windows were selected by what was drawn in them makes innocent models look guilty: one
that lost the tokens which ended its responses, or one that was tokenised from text. The index and
the reading of a log say how many of their responses may be so. Evidence against such an index needs
an innocent model of at least the suspect's size beside it, under the same keys: the selection would
show there too, at least as strongly, so the suspect must exceed it. What could not be
read of a suspect stands against a clean bill instead. Computes no p-value from coins; knows the
inputs of a verdict.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from scipy import special

from provenance.check.findings import HypothesisResult, Reservation
from provenance.suspect.gaps import say_gaps


def list_reservations(
    inputs: Mapping[str, Any], hypotheses: Sequence[HypothesisResult], alpha: float
) -> list[Reservation]:
    """Reservations that follow from the inputs of a check.

    Parameters
    ----------
    inputs : `Verdict.inputs`: what is known of the index, of what was read, and the coins and z of
        each innocent model under each key
    hypotheses : of the check, tested
    alpha : of the keys together

    Returns
    -------
    What could not be read of the suspect is against `no evidence`; what is known of the log is
    against `evidence`. The latter is lifted by an innocent model that scored at least as many coins
    as the suspect under the key with the smallest p, if (z - z of the innocent) / sqrt(2) is still
    beyond alpha: what selection does to the suspect it does to the innocent as well.
    """
    gaps = [Reservation(gap, "no evidence") for gap in say_gaps(inputs["outputs"]["source"])]
    found = list(_list_reasons(inputs))
    if not found:
        return gaps
    headline = min(hypotheses, key=lambda h: (h.log10_adjusted, h.tail.log10_p), default=None)
    lifted = "" if headline is None else _find_innocent(inputs, headline, alpha)
    return [*gaps, *(Reservation(reason, "evidence", lifted) for reason in found)]


def reserve_index(index: Mapping[str, int]) -> list[Reservation]:
    """Reservations of an index alone, for a check that has no innocent models."""
    return [Reservation(reason, "evidence") for reason in _say_index(index)]


def _list_reasons(inputs: Mapping[str, Any]) -> Iterator[str]:
    yield from _say_index(inputs.get("index", {}))
    source = inputs["outputs"]["source"]
    if opened := int(source.get("open_documents", 0)):
        advice = (
            "let each record say how its text ended (finish), or that it was not served marked"
            if source.get("access") == "logprobs"
            else "read a log whose records say what was drawn, or unmarked responses"
        )
        yield (
            f"{opened:,} of the documents that were read may be marked and lack the token that "
            "ended them, or were tokenised from text: which positions were read then hangs on "
            f"what was drawn there; {advice}"
        )


def _say_index(index: Mapping[str, int]) -> Iterator[str]:
    if not index.get("counts_weigh", True):
        return
    marked = index.get("marked_responses", 0)
    if unended := index.get("unended", 0):
        yield (
            f"{unended:,} of the index's {marked:,} marked responses were logged without saying "
            "which tokens were drawn (drawn) or that they were cut by their length (finish): the "
            "tokens that ended them may be lost, and with them contexts that the coins chose to "
            "forget"
        )
    if retokenised := index.get("marked_retokenised", 0):
        yield (
            f"{retokenised:,} of the index's {marked:,} marked responses were tokenised from text: "
            "whether a window survives that hangs on the token that was drawn in it"
        )


def _find_innocent(inputs: Mapping[str, Any], headline: HypothesisResult, alpha: float) -> str:
    """Name of an innocent model that lifts the reservations; "" for none."""
    for name, keys in sorted(inputs.get("innocent_keys", {}).items()):
        found = keys.get(headline.name)
        if found is None or found["coins"] < headline.tail.coins:
            continue
        beyond = (headline.tail.z - found["z"]) / math.sqrt(2)
        if special.ndtr(-beyond) <= alpha:
            return str(name)
    return ""
