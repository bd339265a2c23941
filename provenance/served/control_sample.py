"""The sample of never-marked contexts that an index keeps: decided by the context alone.

Control contexts are four fifths of a log's and serve one control of the check, so an index keeps a
share of them. Which ones is a fixed public function of the context: known before any draw, and
independent of every key, so a sampled context's coins are what those of all are. Samples are
nested: that of a smaller share is part of that of a larger one. Knows names of contexts; no keys.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.keys.schedule import WORDS
from provenance.storage.kernels import kernel

CONTROL_SHARE: Final = 1 / 16
"""Share of the control contexts that a new index keeps."""
_DOMAIN: Final = np.uint64(0x636F6E74726F6C31)
"""The letters "control1": no other hash of ours mixes it in."""


def control_words(share: float) -> int:
    """The share in 2**-32, 1 .. 2**32. Raises UsageError unless it is in (0, 1]."""
    words = round(share * WORDS) if 0 < share <= 1 else 0
    if not words:
        raise UsageError(
            f"the share of control contexts that an index keeps must be in (0, 1]; got {share}. "
            "Use 0.0625."
        )
    return words


def is_sampled(contexts: NDArray[np.int64], words: int) -> NDArray[np.bool_]:
    """Which contexts, by name (int64 [n]), belong to the sample of this share: bool [n].

    Parameters: the names, see `provenance.coins.contexts.name_contexts`; `control_words`. Two
    rounds of splitmix64's finaliser. Cost: 3 ns a context.

    >>> int(is_sampled(np.arange(4096), control_words(1 / 16)).sum())
    248
    """
    found = np.empty(contexts.shape[0], dtype=np.bool_)
    _sample(np.ascontiguousarray(contexts), np.uint64(words), found)
    return found


def thin_control(rows: pa.RecordBatch, words: int) -> pa.RecordBatch:
    """Rows of an index (columns slot, context) without control contexts outside of the sample."""
    if words == WORDS:
        return rows
    slot, context = (rows.column(name).to_numpy() for name in ("slot", "context"))
    return rows.filter(pa.array((slot != 0) | is_sampled(context, words)))


@kernel(nogil=True)
def _sample(contexts, words, out):  # type: ignore[no-untyped-def]
    for i in range(contexts.shape[0]):
        mixed = np.uint64(contexts[i]) ^ _DOMAIN
        for _ in range(2):
            mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
            mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
            mixed = (mixed ^ (mixed >> np.uint64(31))) + _DOMAIN
        out[i] = (mixed >> np.uint64(32)) < words
