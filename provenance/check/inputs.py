"""What went into a check, as its verdict names it: hashes, counts, settings and versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from provenance.errors import DISTRIBUTION
from provenance.served.index import Index
from provenance.served.index_manifest import IndexManifest
from provenance.storage.shapes.tally import say_reading
from provenance.suspect.observations import Observations


def describe_inputs(
    observations: Observations,
    index: Index,
    innocents: Mapping[str, Observations],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """What was looked at: hashes and counts of the outputs, the index and the innocents, settings.

    JSON-able; holds no path of a folder and no key.
    """
    return {
        "outputs": describe_observations(observations),
        "index_sha256": index.manifest.content_sha256,
        "index_responses": index.manifest.marked_responses,
        "index": describe_log(index.manifest, counts_weigh=index.counts_weigh),
        "contexts_served": _count_served(index),
        "tokenizer_sha256": index.manifest.tokenizer_sha256,
        "innocents": {name: describe_observations(found) for name, found in innocents.items()},
        "settings": dict(settings),
    }


def describe_log(manifest: IndexManifest, *, counts_weigh: bool) -> dict[str, int]:
    """What an index knows of the selection of its log, see `IndexManifest`.

    `counts_weigh`: False for a mark whose contexts share coins. Its test looks at every context of
    the suspect and weighs none by the log, so nothing that the log lost can matter.
    """
    return {
        "counts_weigh": counts_weigh,
        "marked_responses": manifest.marked_responses,
        "marked_retokenised": manifest.marked_retokenised,
        "unended": manifest.unended,
    }


def _count_served(index: Index) -> int:
    """Contexts that were served marked, each once per value of its slot; without the control."""
    slots = index.manifest.slots[1:]
    return sum(served.contexts for slot in slots for served in slot.values)


def describe_observations(observations: Observations) -> dict[str, Any]:
    """What was read of one model: hashes and counts."""
    return {
        "sha256": dict(observations.sha256),
        "outputs": observations.outputs,
        "tokens": observations.tokens_read,
        "short_outputs": observations.short_outputs,
        "positions": observations.positions,
        "pairs": int(observations.masses.shape[0]),
        "repeated": observations.repeated,
        "prompted": observations.prompted,
        "quoted": observations.quoted,
        "with_prompt": observations.with_prompt,
        "asked": _describe_asked(observations.asked),
        "source": dict(observations.source),
        "reference": dict(observations.reference),
    }


def say_positions(described: Mapping[str, Any]) -> str:
    """One sentence on what `describe_observations` says was counted and left out, and why.

    >>> say_positions({"source": {"access": "outputs"}, "outputs": 9, "with_prompt": 7,
    ...     "positions": 800, "repeated": 50, "prompted": 20, "quoted": 5, "short_outputs": 1})
    ... # doctest: +NORMALIZE_WHITESPACE
    '9 outputs, 7 of them with a prompt: 800 positions counted; left out: 50 repeated in their
    output, 20 token for token in the prompt, 5 quoted from it in another form; 1 too short.'
    """
    kind = "outputs" if described["source"].get("access") == "outputs" else "documents"
    prompts = described.get("with_prompt")  # bundles of earlier releases do not say
    shown = "" if prompts is None else f", {prompts:,} of them with a prompt"
    quoted = described.get("quoted")
    also = "" if quoted is None else f", {quoted:,} quoted from it in another form"
    return (
        f"{described['outputs']:,} {kind}{shown}: {described['positions']:,} positions counted; "
        f"left out: {described['repeated']:,} repeated in their {kind[:-1]}, "
        f"{described['prompted']:,} token for token in the prompt{also}; "
        f"{described['short_outputs']:,} too short.{_say_collected(described['source'])}"
    )


def _say_collected(source: Mapping[str, Any]) -> str:
    """Sentences on what the ledgers of collected files say; empty without."""
    return "".join(
        f" {name} was collected from {one['model']}: {one['answered']:,} of {one['wanted']:,} "
        f"answered, {one['without_text']:,} without text, {one['errors']:,} errors, "
        f"{one['unanswered']:,} unanswered; head of the ledger {one['head']}."
        for name, one in source.get("collected", {}).items()
    )


def say_read(described: Mapping[str, Any]) -> list[str]:
    """Sentences on the shapes of the files, on what held no text, and on what a plan left out.

    None if all was our own form and no plan chose. Parameters: what `describe_observations` says.
    """
    reading, planned = (described["source"].get(name) for name in ("reading", "planned"))
    said = say_reading(reading) if isinstance(reading, Mapping) else []
    return [*said, *_say_planned(planned)] if isinstance(planned, Mapping) else said


def _say_planned(planned: Mapping[str, Any]) -> list[str]:
    """What a plan chose of the outputs."""
    said = []
    if planned.get("left_out"):
        said.append(
            f"The plan takes the first {planned['taken']:,} outputs, in the order of the files; "
            f"left out: the {planned['left_out']:,} after them."
        )
    if "prompts" in planned:
        said.append(
            f"Every output answers one of the {planned['prompts']:,} prompts that the plan "
            f"commits; {planned['prompts_answered']:,} of them have one."
        )
    return said


def _describe_asked(asked: Observations | None) -> dict[str, int] | None:
    """How many distinct texts of prompts there are, and pairs in them; None if nobody looks."""
    if asked is None:
        return None
    return {"texts": asked.outputs, "pairs": int(asked.masses.shape[0])}


def describe_versions() -> dict[str, str]:
    """Python and the packages that a p-value depends on."""
    packages = ("numpy", "scipy", "numba", "tokenizers", "cryptography")
    found = {"python": platform.python_version(), "provenance": version(DISTRIBUTION)}
    return {**found, **{name: version(name) for name in packages}}
