"""What the originals of foreign schemes report of a text, by their own counting."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from provenance.coins.contexts import first_occurrences, name_contexts
from provenance.marks.foreign import ForeignScheme

Ids = NDArray[np.uint32]


def original_log10_p(scheme: ForeignScheme, ids: Ids) -> float:
    """log10 p by the original's own counting and its own, or the obvious, tail."""
    contexts, tokens = windows(scheme, ids)
    if scheme.name.startswith(("textseal", "vllm", "sglang")):
        # each window (vLLM and SGLang: each context) once
        rows = np.c_[contexts, tokens] if scheme.name.startswith("textseal") else contexts
        first = first_occurrences(name_contexts(rows))
        contexts, tokens = contexts[first], tokens[first]
    scores, law = scheme.score(contexts, tokens).astype(float), scheme.null_law
    n = scores.size
    mean, variance = law.mean, law.variance
    if scheme.name in (
        "hf-synthid",
        "synthid-text-2025",
    ):  # repeated contexts are masked, bits are called fair
        first = recent_first(contexts, 1024)
        depth = len(law.masses) - 1
        scores, n = scores[first], int(first.sum())
        mean, variance = depth / 2, depth / 4
    z = (scores.sum() - n * mean) / np.sqrt(n * variance)
    return float(stats.norm.logsf(z) / np.log(10))


def recent_first(contexts: Ids, history: int) -> NDArray[np.bool_]:
    """SynthID's mask: the context does not stand among the last `history` ones."""
    names = name_contexts(contexts)
    order = np.argsort(names, kind="stable")
    gap = np.full(names.size, history + 1)
    same = names[order][1:] == names[order][:-1]
    gap[order[1:][same]] = np.diff(order)[same]
    return gap > history


def windows(scheme: ForeignScheme, ids: Ids) -> tuple[Ids, Ids]:
    """Every position of a text."""
    rows = np.lib.stride_tricks.sliding_window_view(ids, scheme.width + 1)
    return np.ascontiguousarray(rows[:, :-1]), np.ascontiguousarray(rows[:, -1])
