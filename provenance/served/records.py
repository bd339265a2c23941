"""What a served response is, and what its record in a log may say, whatever file it stands in.

Checks names, labels and sizes, and defines the intermediate batch that the JSONL and the Parquet
reader hand to `provenance.served.log`. Does not know files, tokenizers or keys.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, Literal, NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from provenance.errors import DataError

LABELS = pa.map_(pa.string(), pa.string())
TOKENS = pa.list_(pa.field("item", pa.uint32(), nullable=False))

SCHEMA = pa.schema(
    [
        pa.field("response_id", pa.string(), nullable=False),
        pa.field("marked", pa.bool_(), nullable=False),
        pa.field("labels", LABELS, nullable=False),
        pa.field("token_ids", TOKENS, nullable=False),
        pa.field("prompt_token_ids", TOKENS),
        pa.field("conversation_id", pa.string()),
        pa.field("time", pa.string()),
        pa.field("drawn", pa.binary()),
        pa.field("finish", pa.string()),
    ]
)
"""A served log in Parquet; one row is one response. For `drawn` see `pack_drawn`."""

READ = SCHEMA.append(pa.field("whole", pa.bool_(), nullable=False))
"""Record batches of a log that is read. `whole`: the ids are known to be all that was drawn.

They are if the record says which tokens were `drawn`, or that it ended by its length or with an end
token that is among its ids. Ids that come from text never are: text need not tokenise to them.
"""

Finish = Literal["end", "length", "stop", "abort"]
"""How a response ended: with an end token (its last id), at the most tokens it could have, at a
string that stops (the ids hold it whole), or because somebody broke it off."""
WHOLE_FINISHES: Final = ("end", "length")
"""What makes the ids of a record whole that does not say which tokens were drawn. Other people's
`stop` does not: their logs leave the end token out."""

Labels = Mapping[str, str]
"""Attribute values of one request, for example week=2026-W17."""


@dataclass(frozen=True, eq=False)
class ServedResponse:
    """One served response: what an adapter returns, the sink completes, and a log keeps.

    Attributes
    ----------
    response_id : unique in the whole log of the service, never chosen by a client; None: the sink
        makes one
    marked : whether any token was drawn under the keyring; None: the sink finds out from the ids;
        False of an adapter: the watermark did not draw it (greedy decoding, beams)
    labels : attribute values of the request
    token_ids : uint32 [n], all that was drawn, without prompt and padding: the end token belongs to
        them, so do stop strings, tool calls and hidden reasoning. A log prefers them to `text`
    text : the response as text; a log needs it if `token_ids` is None
    time : when it was served, as the service writes times; None: the sink says now
    prompt_token_ids : uint32 [m], ids of everything the model had seen before the response
    conversation_id : equal for all turns of one conversation, None for a single turn
    keyring_id, scheme : of the keyring that was in use; for people, readers do not need them
    drawn : bool [n], which of the tokens were drawn by a coin of the keyring; None: not known.
        Whoever gives it says that `token_ids` are all that was drawn, the end token included
    finish : how the response ended; None: not known, and then nobody claims that the ids are whole
    request_id : what the client or a gateway called the request. Only kept beside the record's own
        id: a client who sends the same one for ever must not drop out of an index
    reason : why no token, or fewer than the labels ask for, was drawn under a key; for people
    """

    response_id: str | None = None
    marked: bool | None = None
    labels: Labels = field(default_factory=dict)
    token_ids: Sequence[int] | NDArray[np.uint32] | None = None
    text: str | None = None
    time: str | None = None
    prompt_token_ids: Sequence[int] | NDArray[np.uint32] | None = None
    conversation_id: str | None = None
    keyring_id: str | None = None
    scheme: str | None = None
    drawn: NDArray[np.bool_] | None = None
    finish: Finish | None = None
    request_id: str | None = None
    reason: str | None = None


MAXIMUM_NAME = 1024
"""Characters of an identifier, a time, or the name or value of a label."""
MAXIMUM_TOKENS = 1 << 22
"""Token ids of one response or prompt."""
MAXIMUM_VALUES = 1 << 20
"""A batch is closed as soon as it holds this many token ids, so a batch fits in memory."""
_MAXIMUM_LABELS = 256


@dataclass(frozen=True)
class RawBatch:
    """Checked records of one file, before duplicates are dropped and text is tokenised.

    `batch` has the columns of SCHEMA (token_ids may be null) and `text`. Row i stands at
    `unit` number `first + i` of `path`, counted from 1.
    """

    batch: pa.RecordBatch
    path: Path
    unit: str
    first: int

    def origin(self, row: int) -> str:
        """Where a row came from, for messages."""
        return f"{self.path}: {self.unit} {self.first + row}"


def check_name(value: Any, field: str, origin: str, optional: bool = False) -> str | None:
    """An identifier: a string of 1 .. MAXIMUM_NAME characters, or None where that is allowed."""
    if value is None and optional:
        return None
    if not isinstance(value, str) or not 1 <= len(value) <= MAXIMUM_NAME:
        raise DataError(
            f"{origin}: {field} must be a string of 1 to {MAXIMUM_NAME} characters"
            f"{' or null' if optional else ''}; got {_show(value)}. Repair the record."
        )
    return value


def check_labels(value: Any, origin: str) -> list[tuple[str, str]]:
    """Labels as pairs sorted by name; `value` is a mapping of strings to strings, or None."""
    if value is None:
        return []
    if not isinstance(value, Mapping) or not all(
        isinstance(part, str) for pair in value.items() for part in pair
    ):
        raise DataError(
            f"{origin}: labels must map names to strings; got {_show(value)}. Repair the record."
        )
    if len(value) > _MAXIMUM_LABELS or any(
        len(part) > MAXIMUM_NAME for pair in value.items() for part in pair
    ):
        raise DataError(
            f"{origin}: labels must be at most {_MAXIMUM_LABELS} pairs of strings of at most "
            f"{MAXIMUM_NAME} characters; got more. Repair the record."
        )
    return sorted(value.items())


def sort_labels(column: pa.MapArray) -> pa.MapArray | None:
    """`check_labels` of a whole column of maps of strings, without a loop over its rows.

    None if a row must be refused, or cannot be judged so: then each row is looked at for itself.
    """
    keys, items = column.keys, column.items
    text = (pa.types.is_string, pa.types.is_large_string)
    for part in (keys, items):
        kind = part.type.value_type if pa.types.is_dictionary(part.type) else part.type
        if part.null_count or not any(is_text(kind) for is_text in text):
            return None
    bounds = column.offsets.to_numpy()
    begins = np.where(column.is_valid().to_numpy(zero_copy_only=False), bounds[:-1], bounds[1:])
    sizes = bounds[1:] - begins
    if not sizes.size or int(sizes.max()) > _MAXIMUM_LABELS:
        return None
    offsets = np.zeros(sizes.shape[0] + 1, dtype=np.int32)
    np.cumsum(sizes, out=offsets[1:])
    rows = np.repeat(np.arange(sizes.shape[0]), sizes)
    places = np.arange(rows.shape[0]) + (begins - offsets[:-1])[rows]
    coded = keys.take(pa.array(places)).dictionary_encode()
    names = coded.dictionary.to_pylist()
    if len(set(names)) != len(names):
        return None
    ranks = np.empty(len(names), dtype=np.int64)
    ranks[np.array(sorted(range(len(names)), key=names.__getitem__), dtype=np.int64)] = np.arange(
        len(names)
    )
    order = np.lexsort((own := ranks[coded.indices.to_numpy()], rows))
    if bool(((own[order][1:] == own[order][:-1]) & (rows[1:] == rows[:-1])).any()):
        return None
    chosen = (part.take(pa.array(places[order])).cast(pa.string()) for part in (keys, items))
    return pa.MapArray.from_arrays(pa.array(offsets), *chosen).cast(LABELS)


def pack_drawn(drawn: NDArray[np.bool_]) -> bytes:
    """One bit a token, the first in the lowest bit of the first byte; the last byte ends in zeros.

    >>> pack_drawn(np.array([0, 0, 1, 0, 0, 0, 0, 0, 1], dtype=np.bool_)).hex()
    '0401'
    """
    return np.packbits(drawn, bitorder="little").tobytes()


def unpack_drawn(packed: pa.Array, lengths: NDArray[np.int64]) -> NDArray[np.bool_]:
    """The bits of many responses one after another: bool [sum of lengths].

    Parameters: binary [n], checked by `check_drawn`, null where a record says nothing (all True
    there); int64 [n], how many tokens each response has. Cost: a few nanoseconds a token.
    """
    stated = packed.is_valid().to_numpy(zero_copy_only=False)
    drawn = np.ones(int(lengths.sum()), dtype=np.bool_)
    bits, places, rows = _list_bits(packed, lengths)
    drawn[np.repeat(stated, lengths)] = bits[places < lengths[rows]]
    return drawn


def check_drawn(
    packed: pa.Array,
    lengths: NDArray[np.int64],
    marked: NDArray[np.bool_],
    origin: Callable[[int], str],
) -> None:
    """Raise DataError unless the bits of each response can be those of its tokens.

    Parameters: binary [n], null where a record says nothing; int64 [n], -1 for a record of text
    only, which can have no bits; bool [n], what the records say of themselves; what to call row i.
    """
    stated = packed.is_valid().to_numpy(zero_copy_only=False)
    sizes = pc.fill_null(pc.binary_length(packed), 0).to_numpy(zero_copy_only=False)
    wrong = stated & ((lengths < 0) | (sizes != (lengths + 7) // 8))
    if not wrong.any():
        bits, places, rows = _list_bits(packed, lengths)
        beyond = bits & (places >= lengths[rows])
        wrong[rows[beyond]] = True
    if wrong.any():
        row = int(wrong.argmax())
        refuse_drawn(int(sizes[row]), int(lengths[row]), origin(row))
    some = np.zeros(stated.shape, dtype=np.bool_)
    some[rows[bits]] = True
    if (odd := stated & (some != marked)).any():
        row = int(odd.argmax())
        raise DataError(
            f"{origin(row)}: marked must say whether any token was drawn under a key; it says "
            f"{str(bool(marked[row])).lower()}, and drawn has {'a' if some[row] else 'no'} bit "
            "set. Repair the record."
        )


def refuse_drawn(size: int, tokens: int, origin: str) -> NoReturn:
    """Raise the DataError of bits that are not those of so many tokens (-1: only text)."""
    if tokens < 0:
        raise DataError(
            f"{origin}: drawn must come with token_ids, a bit for each of them; the record has "
            "text only. Add the ids that were drawn."
        )
    raise DataError(
        f"{origin}: drawn must have one bit for each of the {tokens} token_ids, and zeros to "
        f"the end of its last byte; got {size} bytes. Repair the record."
    )


def _sizes(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Bits of so many tokens with the zeros that fill the last byte."""
    return np.asarray((lengths + 7) // 8 * 8)


def _list_bits(
    packed: pa.Array, lengths: NDArray[np.int64]
) -> tuple[NDArray[np.bool_], NDArray[np.int64], NDArray[np.int64]]:
    """All bits of the rows that state any, fillers too: the bit, its place in its row, the row."""
    rows = np.flatnonzero(packed.is_valid().to_numpy(zero_copy_only=False))
    sizes = _sizes(lengths[rows])
    content = np.frombuffer(b"".join(packed.drop_null().to_pylist()), dtype=np.uint8)
    places = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    bits = np.unpackbits(content, bitorder="little").astype(np.bool_)
    return bits, places, np.repeat(rows, sizes)


def list_array(parts: Iterable[NDArray[np.uint32] | None]) -> pa.Array:
    """Token ids of many responses as one Arrow list column; None becomes null."""
    kept = list(parts)
    missing = np.array([part is None for part in kept], dtype=np.bool_)
    filled = [part for part in kept if part is not None]
    lengths = [0 if part is None else part.shape[0] for part in kept]
    offsets = np.zeros(len(kept) + 1, dtype=np.int32)
    np.cumsum(lengths, out=offsets[1:])
    values = np.concatenate(filled) if filled else np.empty(0, dtype=np.uint32)
    return pa.ListArray.from_arrays(
        pa.array(offsets), pa.array(values), type=TOKENS, mask=pa.array(missing)
    )


def _show(value: Any) -> str:
    """A short, printable picture of a value from a file."""
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
