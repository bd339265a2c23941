"""The words of the report in plain English, and its controls in these words. Knows no HTML."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

import numpy as np

from provenance.check.findings import Control
from provenance.evidence.report.heading import say_time

GLOSSARY: Final = (
    (
        "Mark, key",
        "A key is a secret random number. While a marked response is written, it tips some "
        "choices between words. The global key serves all responses; every other key serves one "
        "week, one capability or one group of customers. The tipping of all keys together is "
        "the mark.",
    ),
    (
        "Choice scored",
        "A place in what the suspect wrote where a key, had it been at work, would have "
        "favoured one word over another. Each counts once.",
    ),
    (
        "z",
        "How far the choices lean towards a key, measured by how far chance usually carries "
        "them. 0 is what chance gives; beyond 3 is rare; negative means away from the key.",
    ),
    (
        "p",
        "How often chance alone gives a result this strong or stronger, if the model never saw "
        "marked responses. The printed figure is at or above the true one. 1.0 × 10⁻⁴ means 1 "
        "in 10,000, and each further step down to 10⁻⁵, 10⁻⁶ is ten times rarer. It is not the "
        "probability that somebody is innocent.",
    ),
    (
        "Adjusted",
        "Whoever tries many keys finds one that looks good by luck. The adjusted p makes up for "
        "all keys that were tried. It, not p, decides.",
    ),
    (
        "Level",
        "The adjusted p that a result must not exceed to be called evidence, fixed before the "
        "keys were opened.",
    ),
    (
        "Found",
        "The adjusted p of this key is at or below the level.",
    ),
    (
        "Control, placebo key",
        "A control is a test with a known answer: nothing. Placebo keys are random keys that "
        "marked no response; an innocent model is one that cannot have been trained on the "
        "responses. If a control shows something, the check is broken, and none of its numbers "
        "counts.",
    ),
    (
        "Share, limits",
        "How much of the trace that the model absorbed belongs to one value, such as one week. "
        "The share is the best single figure; the limits say between which figures the truth "
        "may lie.",
    ),
    (
        "Evidence; no evidence",
        "Evidence: at least one key is found, all controls passed, and nothing known of the "
        "data speaks against it. No evidence: no key is found, although a trace of the size "
        "that the page states would have been.",
    ),
    (
        "Too little data; inconclusive",
        "No answer, in either direction. Too little data: even a model trained on marked "
        "responses alone could have gone unnoticed. It must not be read as “no evidence”.",
    ),
    (
        "SHA-256",
        "A fingerprint of a file in 64 characters. If a file changes, so does its fingerprint.",
    ),
)
"""(word, what it means), in the order in which a reader meets them."""


def say_control(control: Control) -> str:
    """What a control found, in words that need no statistics; the numbers are in verdict.json."""
    if control.name == "prompts":
        carry = "carry your mark" in control.detail
        what = "do carry the mark; what repeats them is left out" if carry else "carry no mark"
        return f"The texts that the suspect was shown {what}."
    if control.log10_p is None:
        return "There was nothing to test." if control.passed else "No figure is stated."
    said = ""
    if control.placebo_z:
        z = np.asarray(control.placebo_z, dtype=np.float64)
        said = (
            f"{len(z)} random keys lean by {z.mean():+.2f} on average and differ by {z.std():.2f}; "
            "chance gives 0 and 1. "
        ).replace("-", "−")
    return f"{said}{_say_odds(control.log10_p)}"


def _say_odds(log10_p: float) -> str:
    """How odd the result of a sound check would be; never rarer than it is."""
    percent = math.ceil(100 * 10**log10_p - 1e-9)
    if percent >= 5:
        return f"A sound check looks at least this odd in {min(percent, 100)} of 100 cases."
    if log10_p >= -3:
        return f"A sound check looks this odd in at most {percent} of 100 cases: within limits."
    return "A sound check looks this odd in fewer than 1 of 1,000 cases."


def say_collected(outputs: Mapping[str, Any]) -> list[str]:
    """How the outputs came into the hands of whoever checked them, as far as the verdict knows.

    Parameters: `Verdict.inputs["outputs"]`. Sentences, for people; never empty.
    """
    source = outputs["source"]
    collected = source.get("collected") if isinstance(source, Mapping) else None
    if not isinstance(collected, Mapping) or not collected:
        weights = source.get("access") == "weights"
        return [
            "The folder of the model was handed to the check as it is."
            if weights
            else "The files were handed to the check as they are.",
            "This report cannot say who collected them, when, or how: whoever files it has to. "
            "What was checked is fixed by its fingerprints, in the last section.",
        ]
    said = []
    for name, one in sorted(collected.items()):
        models = ", ".join(map(str, one.get("models", {}))) or "nothing"
        said.append(
            f"{name}: asked of {one.get('base_url') or 'an offline batch'} for the model "
            f"{one['model']}, from {say_time(str(one.get('created', 'an unknown date')))} on; the "
            f"interface named its model {models}. Of {one['wanted']:,} answers that were wanted "
            f"{one['answered']:,} came with text, {one['without_text']:,} without, "
            f"{one['errors']:,} were errors and {one['unanswered']:,} are missing. Last hash of "
            f"the ledger: {one['head']}."
        )
    said.append(
        "Every request and every answer stands in a ledger whose records are chained by hashes: "
        "nothing can be taken out or changed without changing the last hash, which is part of the "
        "verdict. “provenance collect verify” recomputes it from the ledger’s folder."
    )
    return said
