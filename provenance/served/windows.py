"""From served responses to the windows that count: one pure function over Arrow.

**A context counts if and only if it was reached**: generation stood before a draw after it. What
was drawn there must not matter, so for every marked response: each context that stands before one
of its tokens, the end token included, once. Where the record says which tokens were drawn under a
key, contexts of a key count at those tokens only (a draw with one candidate decides nothing). A
context that occurs in the response's prompt is skipped (the mark may have come from there). Only
contexts are counted, never (context, token) pairs: which token followed depends on the coins, and
an index that knew it would accuse innocent models. All of this is decided before the draw after
the context, see docs/method.md, section 3. Knows keys only through the slot of a context; no files.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from provenance.coins.window_sets import WindowSets, find_window_sets
from provenance.errors import DataError
from provenance.keys.schedule import Schedule
from provenance.marks import Served
from provenance.served.control_sample import control_words, is_sampled
from provenance.served.identifiers import name_hashes
from provenance.served.records import unpack_drawn

WINDOWS = pa.schema(
    [
        pa.field("slot", pa.uint8(), nullable=False),
        pa.field("value", pa.uint32(), nullable=False),
        pa.field("context", pa.int64(), nullable=False),
        pa.field("lineage", pa.int64()),
    ]
)
"""One row per response and distinct context; lineage is null without a conversation."""

_NO_VALUE = -1


def windows(batch: pa.RecordBatch, keyring: Served, control_share: float = 1.0) -> pa.Table:
    """The windows of a batch of responses.

    Parameters
    ----------
    batch : columns of `provenance.served.log.READ` (time, finish and whole are not used)
    keyring : gives the slot of each context and the number of each label value
    control_share : share of the control contexts that are kept, see `control_sample`

    Returns
    -------
    pa.Table with the columns WINDOWS:

    slot : number of the context's slot (0 = control, which is indexed but never marked)
    value : position of the response's label in the slot's values; 0 for control and global. A
        context whose slot has no value for this response gives no row
    context : the k ids before a token, packed (`provenance.coins.contexts.pack`)
    lineage : 64-bit hash of conversation_id, null if there is none. Windows of equal lineage count
        once per (slot, value, context); this function sees one batch and leaves that to the index

    Raises
    ------
    DataError if a record says that a token was drawn under a key where this keyring has none: it
    was served under another keyring, or under other labels. UsageError for the share.

    Notes
    -----
    Pure: the rows of a response depend on that response and the keyring only; their order is not
    part of the contract. Cost: about 15 M tokens per second and core, most of it without the GIL;
    the only loop is over distinct conversation ids. Memory: some 90 bytes a token.
    """
    width, words = keyring.context_width, control_words(control_share)
    marked = batch.column("marked")
    batch = batch if marked.true_count == len(marked) else batch.filter(marked)
    drawn, impossible = _list_draws(batch, width)
    ids, lengths = list_ids(batch.column("token_ids"))
    sets = find_window_sets(
        ids,
        lengths,
        width,
        followed=True,
        flags=drawn,
        others=list_ids(batch.column("prompt_token_ids")),
    )
    slots = keyring.slots_of_names(sets.names)
    values = label_numbers(batch.column("labels"), keyring.schedule)[slots, sets.rows]
    undecided = (slots == 0) | (values == _NO_VALUE)
    _refuse_impossible(batch, sets, undecided, impossible)
    counted = np.where(slots == 0, is_sampled(sets.names, words), sets.draws > 0)
    keep = counted & ~sets.excluded & (values != _NO_VALUE)
    return pa.Table.from_arrays(
        [
            pa.array(slots[keep]),
            pa.array(values[keep].astype(np.uint32)),
            pa.array(sets.names[keep]),
            _lineages(batch.column("conversation_id"), sets.rows[keep]),
        ],
        schema=WINDOWS,
    )


def label_numbers(labels: pa.Array, schedule: Schedule) -> NDArray[np.int64]:
    """Number of each response's value in each slot: int64 [slots, responses], -1 for none.

    Parameters: labels, map<string, string> [responses]. A label that is absent, or whose value has
    no key in the schedule, has no number.
    """
    numbers = np.zeros((len(schedule.slots), len(labels)), dtype=np.int64)
    for place, slot in enumerate(schedule.slots):
        if slot.name in schedule.attributes:
            found = pc.map_lookup(labels, pa.scalar(slot.name), "first")
            known = pc.index_in(found, value_set=pa.array(slot.values, pa.string()))
            numbers[place] = pc.fill_null(known, _NO_VALUE).to_numpy(zero_copy_only=False)
    return numbers


def list_ids(lists: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Ids of all lists one after another, uint32 [n], and how many each has, int64 [rows].

    A list that is null has none.
    """
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy(zero_copy_only=False)
    ids = lists.flatten().to_numpy(zero_copy_only=False)
    return ids.astype(np.uint32, copy=False), lengths.astype(np.int64)


def _list_draws(batch: pa.RecordBatch, width: int) -> tuple[NDArray[np.bool_], NDArray[np.int64]]:
    """Whether each token was drawn, True for all tokens of a record that does not say.

    Last, the row of every token that is said to be drawn although it has no context.
    """
    lengths = batch.column("token_ids").value_lengths().to_numpy(zero_copy_only=False)
    lengths = lengths.astype(np.int64)
    drawn = unpack_drawn(batch.column("drawn"), lengths)
    begins = np.cumsum(lengths) - lengths
    early = [np.flatnonzero(lengths > place) for place in range(width)]
    wrong = [rows[drawn[begins[rows] + place]] for place, rows in enumerate(early)]
    return drawn, np.concatenate(wrong)


def _refuse_impossible(
    batch: pa.RecordBatch,
    sets: WindowSets,
    undecided: NDArray[np.bool_],
    impossible: NDArray[np.int64],
) -> None:
    """Raise DataError if a record states a draw that no key can have decided."""
    stated = batch.column("drawn").is_valid().to_numpy(zero_copy_only=False)
    if not stated.any():
        return
    impossible = impossible[stated[impossible]]
    wrong = np.flatnonzero(undecided & (sets.draws > 0) & stated[sets.rows])
    rows = np.concatenate([impossible, sets.rows[wrong]])
    if rows.size:
        name = batch.column("response_id")[int(rows[0])].as_py()
        times = impossible.size + int(sets.draws[wrong].sum())
        raise DataError(
            f"response {name!r}: drawn must be set only where a key of the keyring decides, for "
            f"the labels of the response; it is set elsewhere {times} times in "
            f"{np.unique(rows).size} responses. Use the keyring that they were served under."
        )


def _lineages(conversations: pa.Array, rows: NDArray[np.int64]) -> pa.Array:
    """64-bit hash of the conversation id of each of these rows, null where there is none."""
    if conversations.null_count == len(conversations):
        return pa.nulls(rows.shape[0], pa.int64())
    coded = conversations.dictionary_encode()
    hashes = pa.array(name_hashes(coded.dictionary.to_pylist()), pa.int64())
    return hashes.take(coded.indices).take(pa.array(rows))
