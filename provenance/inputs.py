"""What went into a check, as its verdict names it: hashes, counts, settings and versions."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from provenance.served.index import Index, IndexManifest
from provenance.suspect.observations import Observations

__all__ = ["describe_inputs", "describe_log", "describe_observations", "describe_versions"]


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
        "index": describe_log(index.manifest),
        "contexts_served": _count_served(index),
        "tokenizer_sha256": index.manifest.tokenizer_sha256,
        "innocents": {name: describe_observations(found) for name, found in innocents.items()},
        "settings": dict(settings),
    }


def describe_log(manifest: IndexManifest) -> dict[str, int]:
    """What an index knows of the selection of its log, see `IndexManifest`."""
    return {
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
        "source": dict(observations.source),
        "reference": dict(observations.reference),
    }


def describe_versions() -> dict[str, str]:
    """Python and the packages that a p-value depends on."""
    packages = ("provenance", "numpy", "scipy", "numba", "tokenizers", "cryptography")
    return {"python": platform.python_version(), **{name: version(name) for name in packages}}
