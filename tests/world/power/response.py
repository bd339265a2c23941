"""Response curves: z against the share of marked training data, for the power of a "no evidence".

`python -m benchmarks.power.response` reads the recorded results of the power benchmark and writes
provenance/check/response_curves.json, which is part of the package. A curve needs to know how many
effective coins were behind its z. A record of text without reference that lacks the number (made
before it was recorded) gets an upper bound: its pairs are among the distinct (context, token) pairs
in served contexts that the test of Sander et al., closed and filtered, counted on the same outputs,
and effective coins are at most coins. The bound makes the shift per coin smaller than it was, and
so the share that a check states larger.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from provenance.check.power_statement import MARGIN
from provenance.check.weigh import DEFAULT_RULE, REFERENCE_RULE
from tests.world.power.settings import POWER, POWER_WORLDS

RESULTS = Path(__file__).parents[3] / "benchmarks/results/power.json"
CURVES = Path(__file__).parents[3] / "provenance/check/response_curves.json"

SETTINGS = {
    ("text", "provenance"): ("outputs", DEFAULT_RULE, "none"),
    ("text", "provenance-ngram"): ("outputs", REFERENCE_RULE, "ngram"),
    ("text", "provenance-base"): ("outputs", REFERENCE_RULE, "model"),
    ("weights", "provenance"): ("weights", REFERENCE_RULE, "none"),
    ("weights", "provenance-base"): ("weights", REFERENCE_RULE, "model"),
    ("logprobs", "provenance-base"): ("logprobs", REFERENCE_RULE, "model"),
}
BOUND = ("text", "provenance"), ("text", "sander-closed-filtered")
MEASURED_ON = "2026-11-27"
"""Day of the commit that recorded the results."""


def make_curves(results: dict[str, Any]) -> list[dict[str, Any]]:
    """One curve per world and way of access whose effective coins are known or bounded."""
    curves = []
    for world in POWER_WORLDS:
        records = [r for r in results["records"] if r["world"] == world.name and r["share"] > 0]
        for (access, method), (kind, rule, reference) in SETTINGS.items():
            own = [r for r in records if (r["access"], r["method"]) == (access, method)]
            coins, bound = _coins(own, records, (access, method))
            if len(own) < 2 or coins is None:
                continue
            curves.append(
                {
                    "setting": {
                        "scheme": world.scheme,
                        "context_width": world.context_width,
                        "access": kind,
                        "weight_rule": rule,
                        "reference": reference,
                    },
                    "points": sorted([r["share"], r["z"]] for r in own),
                    "effective_coins": coins,
                    "effective_coins_are": bound,
                    "positions": max(r["tokens"] for r in own),
                    "students": (
                        "Llama-shaped, 1.9 M parameters, the base model fine-tuned for "
                        f"{POWER.steps:,} steps of {POWER.tokens_per_step:,} tokens on "
                        f"{POWER.served:,} responses, the share of them marked; one student a "
                        "share, one key"
                    ),
                    "world": world.name,
                    "measured_by": results["command"],
                    "measured_on": MEASURED_ON,
                }
            )
    return curves


def make_strongest(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The largest mean shift of a wholly marked student per kind of mark and way of access.

    Over all worlds and methods whose effective coins were recorded, whatever the width, the rule
    and the share of marked contexts; each z less the margin that the curves take off.
    """
    best: dict[tuple[str, str], dict[str, Any]] = {}
    for record in results["records"]:
        setting = SETTINGS.get((record["access"], record["method"]))
        kind = record["world"].removeprefix("frontier-").split("-")[0]
        if setting is None or record["share"] != 1.0 or not record.get("effective_coins"):
            continue
        shift = round((record["z"] - MARGIN) / math.sqrt(record["effective_coins"]), 4)
        found = {"mark": kind, "access": setting[0], "shift": shift, "world": record["world"]}
        if shift > best.get((kind, setting[0]), found | {"shift": 0.0})["shift"]:
            best[kind, setting[0]] = found
    return [best[pair] for pair in sorted(best)]


def _coins(
    own: list[dict[str, Any]], records: list[dict[str, Any]], method: tuple[str, str]
) -> tuple[float | None, str]:
    """Most effective coins behind any z of the curve, and how they are known."""
    recorded = [r.get("effective_coins") for r in own]
    if own and None not in recorded:
        return max(recorded), "recorded"
    counted, bounding = BOUND
    if method != counted:
        return None, ""
    pairs = [r["tokens"] for r in records if (r["access"], r["method"]) == bounding]
    return (max(pairs) if pairs else None), "at most: pairs of the filtered closed test"
