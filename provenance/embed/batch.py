"""The next token of each row of a batch, compiled, where few candidates are left.

Which key a row has is said in `provenance.embed.rules`, how its coins choose in
`provenance.marks.own.draws`. Rows whose scores leave more candidates than a limit are handed back:
a whole row of coins is cheaper from OpenSSL.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from provenance.coins.words import CONSTANTS, fill_words
from provenance.embed.rules import find_keys, leaves_choice
from provenance.marks.own.draws import GUMBEL, PLAIN, choose, choose_by_race
from provenance.storage.kernels import kernel

NOTHING: Final = -1
"""In place of a token: no score of this row is a number above minus infinity."""
MANY: Final = -2
"""In place of a token, or a smaller number: too many candidates for `draw_among_few`; see there."""
_MASKED: Final = np.int32(np.float32(-np.inf).view(np.int32))
_BLOCK: Final = 64


@kernel(nogil=True)
def _list_candidates(bits, limit, candidates):  # type: ignore[no-untyped-def]
    """Places of the scores that are not minus infinity; how many, or limit + 1 if there are more.

    bits int32 [V], the scores' bits: comparing integers lets the compiler use vectors.
    """
    found = 0
    for i in range(min(2 * limit, bits.shape[0])):  # a row without top-k is known by its beginning
        found += 1 if bits[i] != _MASKED else 0
    if found > limit:
        return limit + 1
    found = 0
    for start in range(0, bits.shape[0], _BLOCK):
        block = bits[start : start + _BLOCK]
        if block.shape[0] == _BLOCK:
            different = np.int32(0)
            for i in range(_BLOCK):  # a fixed count: the compiler uses vectors
                different |= block[i] ^ _MASKED
            if not different:
                continue
            many, place = np.int32(0), np.int32(0)
            for i in range(_BLOCK):
                other = np.int32(block[i] != _MASKED)
                many += other
                place += other * np.int32(i)
            if many == 1:
                if found == limit:
                    return limit + 1
                candidates[found] = start + place
                found += 1
                continue
        for i in range(block.shape[0]):
            if block[i] != _MASKED:
                if found == limit:
                    return limit + 1
                candidates[found] = start + i
                found += 1
    return found


@kernel(nogil=True)
def draw_among_few(  # type: ignore[no-untyped-def]
    scores, ids, width, selector, ends, numbers, windows, bounds, table, kind, first, second,
    uniforms, limit, decided
):  # fmt: skip
    """Token of each row, where a row has at most `limit` candidates; else MANY or NOTHING.

    scores float32 [rows, V], unnormalised log-probabilities, minus infinity for what is no
    candidate; ids uint32 [rows, n]; width, selector, ends, numbers, windows, bounds
    as for `find_keys`; table uint32 [keys, 8], the keys; kind, first, second, the scheme's `Code`;
    uniforms float64 [rows]; decided bool [rows], filled in: whether a coin decided the row (not for
    rows of MANY).

    Returns int64 [rows] tokens, the smallest of them, and the largest that was drawn with a key. In
    place of MANY stands MANY - 1 - the number of the row's key (-1: ordinary draw), which saves
    handing over one more array. Cost: one pass over the scores, and a coin for every candidate of a
    marked row.
    """
    rows = scores.shape[0]
    lengths = np.full(rows, ids.shape[1], np.int64)
    bits = scores.view(np.int32)
    keys = find_keys(ids, lengths, width, selector, ends, numbers, windows, bounds)
    tokens = np.empty(rows, np.int64)
    candidates = np.empty(limit, np.uint32)
    kept = np.empty(limit, np.float32)
    p = np.empty(limit, np.float64)
    words = np.empty(limit, np.uint32)
    contexts = np.empty((limit, width), np.uint32)
    largest = -1
    for r in range(rows):
        decided[r] = False
        m = _list_candidates(bits[r], limit, candidates)
        if m > limit:
            tokens[r] = MANY - 1 - keys[r]
            continue
        top = np.float32(-np.inf)
        for i in range(m):
            kept[i] = scores[r, candidates[i]]
            top = max(top, kept[i])
        if m == 0 or not np.isfinite(top):
            tokens[r] = NOTHING
            continue
        steered = PLAIN
        if keys[r] >= 0:
            steered = kind
            decided[r] = leaves_choice(kept[:m])
            for j in range(width):
                contexts[:m, j] = ids[r, ids.shape[1] - width + j]
            fill_words(table[keys[r]], CONSTANTS, contexts[:m], candidates[:m], words[:m])
        if steered == GUMBEL:
            drawn = choose_by_race(kept[:m], words[:m])
        else:
            for i in range(m):
                p[i] = np.exp(np.float64(kept[i]) - np.float64(top))
            drawn = choose(steered, first, second, p[:m], words[:m], uniforms[r])
        tokens[r] = candidates[drawn] if drawn >= 0 else NOTHING
        if keys[r] >= 0:
            largest = max(largest, tokens[r])
    return tokens, tokens.min(), largest
