"""Which key decides the next token of a response: rules 1 to 3 of the mark, said here only.

For every token of a response:

1. The context is the last k tokens *of the response*. The first k tokens have none: ordinary draw.
2. A context that already stood before a token of the same response: ordinary draw. Without this
   rule text loops, and a single response would not be undistorted.
3. The selector gives the context's slot. `control`, or an attribute for which the request carries
   no label: ordinary draw.

Else the key of (slot, value of the label) decides. Everything follows from the ids of the response
and its labels, so nothing is kept between tokens, and batch neighbours, padding, speculative
decoding and re-use of one object cannot change a mark.

The host has two forms, since neither is fast in place of the other: `find_keys` for the next token
of a batch, `find_marked` for a whole response. Accelerators need copies, in `device.torch_batch`
and `device.triton_coins`. tests/embed/test_rules.py holds all four to a plain reading of these
sentences.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import first_occurrences, pack, response_contexts
from provenance.coins.kernels import kernel
from provenance.coins.words import CONSTANTS, fill_one, fill_words
from provenance.errors import ConfigurationMismatchError
from provenance.keys.marking import KnownKeys, MarkingKeys
from provenance.keys.schedule import GLOBAL, GLOBAL_KEY, KeyName, Schedule
from provenance.served.records import Labels


def name_keys(schedule: Schedule, labels: Labels) -> list[KeyName | None]:
    """The key that each slot has under these labels (rule 3), in the order of the slots.

    None for `control` and for an attribute without a label. Whether such a key exists is not asked.
    """
    held = {name: KeyName(name, labels[name]) for name in schedule.attributes if name in labels}
    return [{**held, GLOBAL: GLOBAL_KEY}.get(name) for name in schedule.names]


def check_labels(keys: KnownKeys, labels: Labels, *, names_may_be_unknown: bool) -> None:
    """Raise ConfigurationMismatchError if a label has no key here: it is never silently unmarked.

    `names_may_be_unknown` lets names pass that are no slot, which a log keeps for groups. A door
    that cannot tell those from misspelt ones refuses them.
    """
    attributes, held = keys.public.schedule.attributes, keys.list_held()
    for name, value in labels.items():
        is_held = isinstance(value, str) and (name, value) in held
        if is_held if name in attributes else names_may_be_unknown:
            continue
        shown = f"{name}={value}"[:128]
        raise ConfigurationMismatchError(
            f"label {shown!a} must have a key of keyring {keys.public.id} here; it has none. "
            "Correct it, or run: provenance keys add-value (then for workers: export-worker)"
        )


@kernel(nogil=True)
def find_keys(ids, lengths, width, selector, ends, numbers):  # type: ignore[no-untyped-def]
    """The key of the next token of each row.

    ids uint32 [rows, n], lengths int64 [rows] (row r is ids[r, :lengths[r]]); width k; selector
    uint32 [8]; ends uint64 [slots], where each slot's interval of selector words ends; numbers
    int64 [rows, slots], the number of the key in each slot, -1: none. Returns int64 [rows].
    Cost: one comparison a token and one coin a row.
    """
    rows = ids.shape[0]
    found = np.full(rows, -1, np.int64)
    contexts = np.zeros((rows, width), np.uint32)
    fresh = np.zeros(rows, np.bool_)
    for r in range(rows):
        n = lengths[r]
        if n < width:
            continue
        fresh[r] = True
        for j in range(width):
            contexts[r, j] = ids[r, n - width + j]
        for start in range(n - width):
            alike = ids[r, start + width - 1] == contexts[r, width - 1]
            for j in range(width - 1):
                alike &= ids[r, start + j] == contexts[r, j]
            if alike:
                fresh[r] = False
                break
    words = np.empty(rows, np.uint32)
    tokens = np.zeros(rows, np.uint32)
    if rows == 1:
        fill_one(selector, CONSTANTS, contexts, tokens, words)
    else:
        fill_words(selector, CONSTANTS, contexts, tokens, words)
    for r in range(rows):
        if fresh[r]:
            slot = 0
            while words[r] >= ends[slot]:
                slot += 1
            found[r] = numbers[r, slot]
    return found


def find_marked(keyring: MarkingKeys, labels: Labels, ids: NDArray[np.uint32]) -> NDArray[np.bool_]:
    """Which tokens of a whole response a key decided: uint32 [n] -> bool [n].

    Raises ConfigurationMismatchError if a label has no key. Cost: one coin a token.
    """
    width = keyring.context_width
    contexts, _ = response_contexts(ids, width)
    marked = np.zeros(ids.shape[0], dtype=np.bool_)
    if contexts.shape[0]:
        names = name_keys(keyring.schedule, labels)
        has_key = np.array([name is not None and keyring.key(*name) is not None for name in names])
        marked[width:] = has_key[keyring.slots_of(contexts)] & first_occurrences(pack(contexts))
    return marked
