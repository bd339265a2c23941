"""The windows of a batch by sorting, in numpy: what the compiled kernel must be equal to."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from provenance.coins.contexts import list_windows, pack_windows
from provenance.errors import DataError
from provenance.marks import Served
from provenance.served.identifiers import name_hashes
from provenance.served.records import unpack_drawn
from provenance.served.windows import WINDOWS, label_numbers

_NO_VALUE = -1


def windows(batch: pa.RecordBatch, keyring: Served) -> pa.Table:
    """As `provenance.served.windows.windows`."""
    width = keyring.context_width
    batch = batch.filter(batch.column("marked"))
    rows, contexts, drawn, impossible = _reached(batch, width)
    # distinct contexts of the batch: each needs its slot once
    distinct, which = np.unique(contexts, return_inverse=True)
    slots = keyring.slots_of_names(distinct)
    labels = label_numbers(batch.column("labels"), keyring.schedule)
    keyed = (slots[which] > 0) & (labels[slots[which], rows] != _NO_VALUE)
    _refuse_impossible(batch, np.concatenate([impossible, rows[drawn & ~keyed]]))
    counted = drawn | (slots[which] == 0)
    pairs = _distinct(rows[counted] * distinct.shape[0] + which[counted])
    pairs = pairs[~_in_prompt(batch.column("prompt_token_ids"), width, distinct, pairs)]
    rows, which = np.divmod(pairs, max(distinct.shape[0], 1))
    values = labels[slots[which], rows]
    keep = values != _NO_VALUE
    rows, which = rows[keep], which[keep]
    return pa.Table.from_arrays(
        [
            pa.array(slots[which]),
            pa.array(values[keep].astype(np.uint32)),
            pa.array(distinct[which]),
            _lineages(batch.column("conversation_id")).take(pa.array(rows)),
        ],
        schema=WINDOWS,
    )


def _reached(
    batch: pa.RecordBatch, width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.bool_], NDArray[np.int64]]:
    """Row and context of every token of the responses, and whether the token was drawn.

    True for all tokens of a record that does not say which were. Last, the row of every token that
    is said to be drawn although it has no context.
    """
    lists = batch.column("token_ids")
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64)
    ids = lists.flatten().to_numpy(zero_copy_only=False)
    rows, starts = list_windows(ids, lengths, width, followed=True)
    drawn = unpack_drawn(batch.column("drawn"), lengths)
    early = drawn.copy()
    early[starts + width] = False
    impossible = np.repeat(np.arange(lengths.shape[0]), lengths)[early]
    return rows, pack_windows(ids, starts, width), drawn[starts + width], impossible


def _refuse_impossible(batch: pa.RecordBatch, rows: NDArray[np.int64]) -> None:
    """Raise DataError if a record states a draw that no key can have decided: a row of each."""
    stated = batch.column("drawn").is_valid().to_numpy(zero_copy_only=False)
    wrong = rows[stated[rows]]
    if wrong.size:
        name = batch.column("response_id")[int(wrong[0])].as_py()
        raise DataError(
            f"response {name!r}: drawn must be set only where a key of the keyring decides, for "
            f"the labels of the response; it is set elsewhere {wrong.size} times in "
            f"{np.unique(wrong).size} responses. Use the keyring that they were served under."
        )


def _in_prompt(
    prompts: pa.Array, width: int, distinct: NDArray[np.int64], pairs: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which (row, context) pairs stand in the prompt of their own row; bool [pairs]."""
    lengths = pc.fill_null(pc.list_value_length(prompts), 0).to_numpy(zero_copy_only=False)
    ids = prompts.flatten().to_numpy(zero_copy_only=False)
    rows, starts = list_windows(ids, lengths, width, followed=False)
    contexts = pack_windows(ids, starts, width)
    if not distinct.size or not rows.size:
        return np.zeros(pairs.shape[0], dtype=np.bool_)
    places = np.minimum(np.searchsorted(distinct, contexts), distinct.shape[0] - 1)
    known = distinct[places] == contexts
    seen = _distinct(rows[known] * distinct.shape[0] + places[known])
    if not seen.size:
        return np.zeros(pairs.shape[0], dtype=np.bool_)
    nearest = np.minimum(np.searchsorted(seen, pairs), seen.shape[0] - 1)
    return np.asarray(seen[nearest] == pairs)


def _distinct(values: NDArray[np.int64]) -> NDArray[np.int64]:
    """Sorted distinct values. numpy.unique hashes since 2.3, 15 times slower on such keys."""
    ordered = np.sort(values)
    new = np.ones(ordered.shape[0], dtype=np.bool_)
    new[1:] = ordered[1:] != ordered[:-1]
    return np.asarray(ordered[new])


def _lineages(conversations: pa.Array) -> pa.Array:
    """64-bit hash of each conversation id, null where there is none."""
    coded = conversations.dictionary_encode()
    hashes = pa.array(name_hashes(coded.dictionary.to_pylist()), pa.int64())
    return hashes.take(coded.indices)
