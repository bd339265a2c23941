"""A suspect with another tokenizer: its next-token probabilities at the positions of served tokens.

The suspect reads a text in its own tokens. Where both tokenisations end a token at the same byte,
its next-token distribution speaks about the next served token too: a mass moves to the served
token with exactly the same bytes, mass without such a token is left out, the rest is renormalised.
Knows bytes and ids; knows no model, key or scheme.

Exact: which bytes a token adds, which tokens are equal, and where tokens end in every text that the
tokens reproduce byte by byte (byte-level and byte-fallback tokenizers without normalisation: every
text). Approximate, and no work here can change it:

- The suspect's tokens up to a shared boundary come from tokenising the whole text; the text before
  the boundary, tokenised by itself, may give others.
- Mass that the suspect puts on a longer or shorter token than any served one is lost, although the
  text that it spells could begin with, or be the beginning of, a served token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from provenance.coins.contexts import check_token_ids
from provenance.errors import DataError
from provenance.suspect.tokenizers.vocabularies import TokenTable

_NOWHERE: Final = -1
"""End of a token that is not known; row of a position without one."""
_WORD: Final = 8
_ANCHOR: Final = 2 * _WORD
"""Bytes that must stand exactly once in the text and in the tokens to start a stretch."""


def encode_text(text: str) -> NDArray[np.uint8]:
    """UTF-8 bytes of a text; DataError if it has none (a lone surrogate)."""
    try:
        return np.frombuffer(text.encode(), dtype=np.uint8)
    except UnicodeEncodeError as error:
        raise DataError(
            f"a text must be valid Unicode; got a lone surrogate at character {error.start}. "
            "Repair the record."
        ) from error


def place_tokens(
    ids: NDArray[np.uint32], table: TokenTable, text: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], bool]:
    """Byte of the text at which each token ends, and whether the tokens reproduce it.

    Parameters
    ----------
    ids : of the whole text, special tokens included; inside the table
    table : of the tokenizer that made them
    text : uint8, as it was given to that tokenizer

    Returns
    -------
    int64 [n], ascending but for the -1 of tokens whose end is not known. Tokens without bytes end
    where the token before them ends. A space that the tokenizer set before the text is counted
    before byte 0: a token that consists of it ends at 0, and a token before it at -1.

    Notes
    -----
    Where the tokens reproduce the text the ends are exact. Otherwise (the tokenizer normalised the
    text, dropped spaces, met an unknown sign, or took a name such as <s> in the text for its
    control token) ends are placed only inside stretches that hold 16 bytes which stand exactly once
    in both, extended as far as the bytes agree; what two stretches claim, stretches that cross, cut
    characters, and tokens without bytes or before such a token have end -1. Linear but for the sort
    of the 16-byte windows, and that only for such texts. With `tokenizer.encode_special_tokens` set
    to True, names of control tokens in the text stay text.

    Examples
    --------
    >>> table = TokenTable.build([None, b"na", " ï".encode(), b"ve"])
    >>> ends, exact = place_tokens(np.arange(4, dtype=np.uint32), table, encode_text("na ïve"))
    >>> ends.tolist(), exact
    ([0, 2, 5, 7], True)
    """
    ends = np.cumsum(table.lengths[ids])
    spelled = table.spell(ids[table.lengths[ids] > 0])
    if np.array_equal(spelled, text):
        return ends, True
    if spelled[:1].tobytes() == b" " and np.array_equal(spelled[1:], text):
        return ends - 1, True
    return _resynchronise(ids, table, text), False


def _resynchronise(
    ids: NDArray[np.uint32], table: TokenTable, text: NDArray[np.uint8]
) -> NDArray[np.int64]:
    """Ends of tokens that do not reproduce the text; see the notes of `place_tokens`."""
    spelled, widths = table.spell(ids), table.widths[ids]
    places = _drop_crossings(_match(spelled, text))
    ends = np.full(ids.shape[0], _NOWHERE, dtype=np.int64)
    if not ids.size:
        return ends
    last = np.cumsum(widths) - 1
    first = last - widths + 1
    # a token is placed if each of its bytes stands right behind the one before it
    broken = np.zeros(spelled.shape[0], dtype=np.int64)
    broken[1:] = (places[1:] != places[:-1] + 1) | (places[:-1] < 0)
    breaks = np.cumsum(broken)
    whole = (places[last] >= 0) & (breaks[last] == breaks[first])
    # cut characters, and ends that a token of unknown extent follows, are left out
    starts = np.append((text & 0xC0) != 0x80, True)
    whole &= starts[places[last] + 1]
    whole[:-1] &= table.lengths[ids[1:]] > 0
    ends[whole] = places[last][whole] + 1
    return ends


def _match(spelled: NDArray[np.uint8], text: NDArray[np.uint8]) -> NDArray[np.int64]:
    """Place in the text of each spelled byte, int64 [n]; -1 where unknown or claimed twice."""
    middles, shifts = _find_stretches(spelled, text)
    if not middles.size:
        return np.full(spelled.shape[0], _NOWHERE, dtype=np.int64)
    own = np.arange(spelled.shape[0])
    after = np.searchsorted(middles, own, side="right")
    last = middles.shape[0] - 1

    def extend(
        stretch: NDArray[np.int64], ends: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
        """Place of each byte by the shift of a stretch, and whether all agree up to its end."""
        stretch = np.clip(stretch, 0, last)
        place = own + shifts[stretch]
        inside = (place >= 0) & (place < text.shape[0])
        agrees = inside & (spelled == text[np.clip(place, 0, text.shape[0] - 1)])
        failed = np.cumsum(~agrees)
        return place, agrees & (failed == failed[ends[stretch]])

    # bytes from a middle on belong to the stretch before them, so those before it end one sooner
    forward, reached = extend(after - 1, middles)
    backward, reaches = extend(after, middles - 1)
    reached &= after > 0
    reaches &= after <= last
    places = np.where(reached, forward, np.where(reaches, backward, _NOWHERE))
    places[reached & reaches & (forward != backward)] = _NOWHERE
    return places


def _find_stretches(
    spelled: NDArray[np.uint8], text: NDArray[np.uint8]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Bytes around windows of 16 that stand exactly once in both: middles and shifts, int64 [.]."""
    none = np.empty(0, dtype=np.int64)
    if min(spelled.shape[0], text.shape[0]) < _ANCHOR:
        return none, none
    # two rounds of exact names: of 8 bytes by the number that they are, of 16 by two such names
    both = np.concatenate([spelled, text])
    words = np.ndarray((both.shape[0] - _WORD + 1,), "<u8", both.tobytes(), 0, (1,))
    distinct, names = np.unique(words, return_inverse=True)
    pairs = names[:-_WORD] * np.int64(distinct.shape[0]) + names[_WORD:]
    windows = spelled.shape[0] - _ANCHOR + 1
    own, theirs = pairs[:windows], pairs[spelled.shape[0] :]
    values, inverse = np.unique(np.concatenate([own, theirs]), return_inverse=True)
    own, theirs = inverse[:windows], inverse[windows:]
    once = (np.bincount(own, minlength=values.shape[0]) == 1) & (
        np.bincount(theirs, minlength=values.shape[0]) == 1
    )
    place = np.empty(values.shape[0], dtype=np.int64)
    place[theirs] = np.arange(theirs.shape[0])
    begins = np.flatnonzero(once[own])
    places = _drop_crossings(place[own[begins]])
    begins, places = begins[places >= 0], places[places >= 0]
    if not begins.size:
        return none, none
    # anchors that overlap at one shift are one stretch; its middle stands for it
    shifts = places - begins
    breaks = np.flatnonzero((np.diff(shifts) != 0) | (np.diff(begins) > _ANCHOR))
    first, last = np.append(0, breaks + 1), np.append(breaks, begins.shape[0] - 1)
    return (begins[first] + begins[last] + _ANCHOR - 1) // 2, shifts[first]


def _drop_crossings(places: NDArray[np.int64]) -> NDArray[np.int64]:
    """The places with -1 for each that is not above all before and below all behind it."""
    known = np.flatnonzero(places >= 0)
    own = places[known]
    kept = np.ones(own.shape[0], dtype=np.bool_)
    kept[1:] &= own[1:] > np.maximum.accumulate(own)[:-1]
    kept[:-1] &= own[:-1] < np.minimum.accumulate(own[::-1])[::-1][1:]
    cleaned = np.full(places.shape[0], _NOWHERE, dtype=np.int64)
    cleaned[known[kept]] = own[kept]
    return cleaned


@dataclass(frozen=True)
class Alignment:
    """Which row of the suspect's logits predicts which served token.

    Attributes
    ----------
    rows : int64 [n], per served token the number of the suspect's token that ends where it starts,
        or -1; the row of that token is the one that predicts what follows
    share : part of the served tokens that have a row
    served_unplaced, suspect_unplaced : tokens whose end in the text is not known
    exact : both tokenisations reproduce the text byte by byte, so no end was searched for
    """

    rows: NDArray[np.int64]
    share: float
    served_unplaced: int
    suspect_unplaced: int
    exact: bool


def align(
    text: str,
    served_ids: ArrayLike,
    served: TokenTable,
    suspect_ids: ArrayLike,
    suspect: TokenTable,
) -> Alignment:
    """Find the row of the suspect's logits for each served token of one text.

    Parameters
    ----------
    text : the text itself
    served_ids, served : its tokens in the served tokenizer, logged or tokenised, and their table
    suspect_ids, suspect : what the suspect reads (BOS included), and the table of its tokenizer

    Raises
    ------
    DataError for an id outside its table or a text without UTF-8.

    Notes
    -----
    Of several suspect tokens that end at one byte (control tokens add none) the last one counts.
    Served tokens without bytes have no row, nor has the first one where a tokenizer set a space
    before the text. That the suspect's tokens up to a boundary are those of the text before it is
    true only approximately; see the module. Cost: a few passes over bytes and tokens.

    Examples
    --------
    >>> served = TokenTable.build([b"the", b" c", b"at"])
    >>> suspect = TokenTable.build([None, b"the", b" ca", b"t"])
    >>> align("the cat", [0, 1, 2], served, [0, 1, 2, 3], suspect).rows.tolist()
    [0, 1, -1]
    """
    content = encode_text(text)
    own = check_token_ids(served_ids, served.size, "served ids")
    theirs = check_token_ids(suspect_ids, suspect.size, "suspect ids")
    own_ends, own_exact = place_tokens(own, served, content)
    ends, exact = place_tokens(theirs, suspect, content)
    lengths = served.lengths[own]
    starts = np.where((lengths > 0) & (own_ends >= 0), own_ends - lengths, _NOWHERE)
    placed = np.flatnonzero(ends >= 0)
    before = np.searchsorted(ends[placed], starts, side="right") - 1
    rows = np.full(own.shape[0], _NOWHERE, dtype=np.int64)
    if placed.size:
        candidate = placed[np.maximum(before, 0)]
        meets = (before >= 0) & (starts >= 0) & (ends[candidate] == starts)
        rows[meets] = candidate[meets]
    return Alignment(
        rows=rows,
        share=float((rows >= 0).mean()) if rows.size else 0.0,
        served_unplaced=int((own_ends < 0).sum()),
        suspect_unplaced=int((ends < 0).sum()),
        exact=own_exact and exact,
    )
