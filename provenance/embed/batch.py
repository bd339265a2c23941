"""One step of a batch, compiled: which key each row has, and the draws among few candidates.

The rules are those of `provenance.embed.watermark`. Rows whose scores leave more candidates than a
limit are handed back: a whole row of coins is cheaper from OpenSSL.
"""

from __future__ import annotations

from typing import Final

import numpy as np

from provenance.coins.kernels import kernel
from provenance.coins.words import CONSTANTS, fill_one, fill_words
from provenance.marks.own.draws import GUMBEL, PLAIN, choose, choose_by_race

NOTHING: Final = -1
"""In place of a token: no score of this row is a number above minus infinity."""
MANY: Final = -2
"""In place of a token, or a smaller number: too many candidates for `draw_among_few`; see there."""
_MASKED: Final = np.int32(np.float32(-np.inf).view(np.int32))
_BLOCK: Final = 64


@kernel(nogil=True)
def find_keys(ids, lengths, width, selector, ends, numbers):  # type: ignore[no-untyped-def]
    """The key of the next token of each row, by rules 1 to 3.

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
    scores, ids, width, selector, ends, numbers, table, kind, first, second, uniforms, limit
):
    """Token of each row, where a row has at most `limit` candidates; else MANY or NOTHING.

    scores float32 [rows, V], unnormalised log-probabilities, minus infinity for what is no
    candidate; ids uint32 [rows, n]; width, selector, ends, numbers
    as for `find_keys`; table uint32 [keys, 8], the keys; kind, first, second, the scheme's `Code`;
    uniforms float64 [rows].

    Returns int64 [rows] tokens, the smallest of them, and the largest that was drawn with a key. In
    place of MANY stands MANY - 1 - the number of the row's key (-1: ordinary draw), which saves
    handing over one more array. Cost: one pass over the scores, and a coin for every candidate of a
    marked row.
    """
    rows = scores.shape[0]
    lengths = np.full(rows, ids.shape[1], np.int64)
    bits = scores.view(np.int32)
    keys = find_keys(ids, lengths, width, selector, ends, numbers)
    tokens = np.empty(rows, np.int64)
    candidates = np.empty(limit, np.uint32)
    kept = np.empty(limit, np.float32)
    p = np.empty(limit, np.float64)
    words = np.empty(limit, np.uint32)
    contexts = np.empty((limit, width), np.uint32)
    largest = -1
    for r in range(rows):
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
