"""Steps on a bundle of another scheme's mark: its description, its disclosed key, its units."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from provenance.check.score import WeightedPairs, merge_weights
from provenance.evidence.steps import StepFailedError
from provenance.keys.keyring import KEYRING_FILE, Keyring
from provenance.keys.schedule import GLOBAL, GLOBAL_KEY
from provenance.marks.foreign.disclosed import open_disclosed
from provenance.marks.foreign.mark import ForeignMark, derive_id, derive_salt
from provenance.marks.own import SCHEMES
from provenance.storage.files import read_json

Integers = NDArray[np.int64]


def check_description(public: Keyring) -> str:
    """Salt and id follow from scheme, parameters, vocabulary size, tokenizer and commitment.

    The commitment itself is that of the key, which only its disclosure can show.
    """
    if public.scheme.name in SCHEMES or set(public.commitments) != {GLOBAL_KEY}:
        raise StepFailedError(KEYRING_FILE, "must commit to a selector, or to another scheme's key")
    (commitment,) = public.commitments.values()
    if commitment.salt != derive_salt(public).hex():
        raise StepFailedError(
            KEYRING_FILE,
            "salt: must follow from scheme, parameters, vocabulary size and tokenizer",
        )
    if public.id != derive_id(commitment):
        raise StepFailedError(KEYRING_FILE, "id: must follow from the commitment")
    return f"{public.id}, a {public.scheme.name} mark with one committed key"


def check_one_slot(public: Keyring, parts: Sequence[tuple[str, str, WeightedPairs]]) -> str:
    """Such a mark has one key for every context: all pairs must be the global key's.

    Parameters: the description; (slot, name of its file, pairs) of everything in a weighing.
    """
    if public.schedule.marked_share != 1.0 or len(public.schedule.slots) != 2:
        raise StepFailedError(KEYRING_FILE, "slots: such a mark must have one key for all contexts")
    for slot, name, pairs in parts:
        if slot != GLOBAL and len(pairs):
            raise StepFailedError(name, f"slot {slot} must hold no pairs; it does")
    return "one key marks every context, so there is nothing to share out"


def read_foreign(folder: Path, names: Sequence[str], public: Keyring) -> ForeignMark:
    """The mark whose original configuration, key included, is disclosed.

    Raises StepFailedError or what `open_disclosed` raises.
    """
    if len(names) != 1:
        raise StepFailedError(names[1], "such a mark has one key; a second one is disclosed")
    return open_disclosed(read_json(folder / names[0]), public, names[0])


def add_up(weights: Integers, scores: Integers, units: Integers) -> tuple[Integers, Integers]:
    """Weight and score of each unit, int64 [m], from those of its pairs."""
    first = np.unique(units[units >= 0], return_index=True)[1]
    return merge_weights(weights, units, first.shape[0]), scores[units >= 0][first]
