"""PyTorch's CPU generator, recomputed without it: MT19937, `randperm`, `rand`, `randint(0, 2)`.

`Generator().manual_seed(s)` is `init_genrand(s mod 2**32)` of Matsumoto and Nishimura's MT19937
(ACM TOMACS 8(1), 1998). `randperm(n)` for n below 2**32 / 20 is a Fisher-Yates shuffle from the
front: step i swaps slot i with slot i + next32() % (n - i). `rand` keeps the low 24 bits of one
output an element, `randint(0, 2)` its low bit. All of it is equal to torch bit by bit (tested
against torch itself); the CUDA generator is Philox with another shuffle and is not covered.

Knows seeds and slots; knows no keys and no schemes.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from numba import njit
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.storage.kernels import kernel

MAXIMUM_LENGTH = 1 << 26
"""Longest permutation accepted; torch changes its algorithm at 214,748,364."""

_MANY = 24
"""From this number of tokens of one seed on, shuffling beats following each token."""


@kernel(nogil=True)
def _start(state, seed):  # type: ignore[no-untyped-def]
    """init_genrand: 624 words from one."""
    word = np.uint32(seed)
    state[0] = word
    for i in range(1, 624):
        mixed = np.uint32(word ^ np.uint32(word >> np.uint32(30)))
        word = np.uint32(np.uint32(np.uint32(1812433253) * mixed) + np.uint32(i))
        state[i] = word


@njit(inline="always")
def _mix(state, i, following, partner):  # type: ignore[no-untyped-def]
    y = np.uint32((state[i] & np.uint32(0x80000000)) | (state[following] & np.uint32(0x7FFFFFFF)))
    odd = np.uint32(np.uint32(0) - np.uint32(y & np.uint32(1)))
    half = np.uint32(y >> np.uint32(1))
    state[i] = np.uint32(state[partner] ^ half ^ np.uint32(odd & np.uint32(0x9908B0DF)))


@kernel(nogil=True)
def _twist(state):  # type: ignore[no-untyped-def]
    """The next 624 untempered words, in place."""
    for i in range(227):
        _mix(state, i, i + 1, i + 397)
    for i in range(227, 623):
        _mix(state, i, i + 1, i - 227)
    _mix(state, 623, 0, 396)


@njit(inline="always")
def _temper(word):  # type: ignore[no-untyped-def]
    y = np.uint32(word ^ np.uint32(word >> np.uint32(11)))
    y = np.uint32(y ^ np.uint32(np.uint32(y << np.uint32(7)) & np.uint32(0x9D2C5680)))
    y = np.uint32(y ^ np.uint32(np.uint32(y << np.uint32(15)) & np.uint32(0xEFC60000)))
    return np.uint32(y ^ np.uint32(y >> np.uint32(18)))


@kernel(nogil=True)
def _inverses(length, count):  # type: ignore[no-untyped-def]
    """floor(2**32 / (length - i)): division by multiplication, one too low at most."""
    out = np.empty(count, np.uint64)
    for i in range(count):
        out[i] = np.uint64(1 << 32) // np.uint64(length - i)
    return out


@kernel(nogil=True)
def _partners(state, seed, length, inverses, out):  # type: ignore[no-untyped-def]
    """out[i] = slot that step i of randperm(length) swaps with slot i."""
    _start(state, seed)
    drawn = np.empty(624, np.uint32)
    done = 0
    while done < out.shape[0]:
        _twist(state)
        for i in range(624):
            drawn[i] = _temper(state[i])
        for i in range(min(624, out.shape[0] - done)):
            rest = np.uint64(length - done - i)
            z = np.uint64(drawn[i])
            z -= ((z * inverses[done + i]) >> np.uint64(32)) * rest
            if z >= rest:
                z -= rest
            out[done + i] = np.int32(z) + np.int32(done + i)
        done += 624


@kernel(nogil=True)
def _hit(partners, first, count, slot):  # type: ignore[no-untyped-def]
    """Whether any of partners[first:count] is the slot; 512 at a time so that it vectorises."""
    for begin in range(first, count, 512):
        hits = np.int32(0)
        for i in range(begin, min(begin + 512, count)):
            hits += np.int32(partners[i] == slot)
        if hits:
            return True
    return False


@kernel(nogil=True)
def _is_first(partners, count, token):  # type: ignore[no-untyped-def]
    """Whether the token is moved into the first `count` slots; follows its slot only."""
    slot = np.int32(token)
    first = np.int32(0)
    while slot < count:
        if _hit(partners, first, slot, slot) or partners[slot] == slot:
            return True
        first = slot + 1
        slot = partners[slot]
    return _hit(partners, first, count, slot)


@kernel(nogil=True)
def _shuffle(partners, slots):  # type: ignore[no-untyped-def]
    """Apply the swaps i <-> partners[i], in order, to slots."""
    for i in range(partners.shape[0]):
        j = partners[i]
        slots[i], slots[j] = slots[j], slots[i]


@kernel(nogil=True)
def _flags(seeds, tokens, length, count, out):  # type: ignore[no-untyped-def]
    """out[i] = tokens[i] in randperm(length, seeds[i])[:count]; equal seeds must be adjacent."""
    state = np.empty(624, np.uint32)
    partners = np.empty(count, np.int32)
    inverses = _inverses(length, count)
    slots = np.empty(0, np.int32)
    n = seeds.shape[0]
    begin = 0
    while begin < n:
        end = begin + 1
        while end < n and seeds[end] == seeds[begin]:
            end += 1
        _partners(state, seeds[begin], length, inverses, partners)
        if end - begin < _MANY:
            for i in range(begin, end):
                out[i] = _is_first(partners, count, tokens[i])
        else:
            slots = np.arange(length).astype(np.int32)
            _shuffle(partners, slots)
            is_first = np.zeros(length, np.bool_)
            for i in range(count):
                is_first[slots[i]] = True
            for i in range(begin, end):
                out[i] = is_first[tokens[i]]
        begin = end


@kernel(nogil=True)
def _mantissas(seeds, tokens, out):  # type: ignore[no-untyped-def]
    """Low 24 bits of output tokens[i] of seeds[i]; sorted by seed, then by token."""
    state = np.empty(624, np.uint32)
    block = -1
    for i in range(seeds.shape[0]):
        if i == 0 or seeds[i] != seeds[i - 1]:
            _start(state, seeds[i])
            block = -1
        wanted = tokens[i] // 624
        while block < wanted:
            _twist(state)
            block += 1
        out[i] = np.uint32(_temper(state[tokens[i] % 624]) & np.uint32(0xFFFFFF))


@kernel(nogil=True)
def _outputs(seed, out):  # type: ignore[no-untyped-def]
    state = np.empty(624, np.uint32)
    _start(state, seed)
    for i in range(out.shape[0]):
        if i % 624 == 0:
            _twist(state)
        out[i] = _temper(state[i % 624])


def first_slots(
    seeds: NDArray[np.uint32], tokens: NDArray[np.uint32], length: int, count: int
) -> NDArray[np.bool_]:
    """Whether each token is among the first `count` entries of `randperm(length)` of its seed.

    Parameters
    ----------
    seeds : uint32 [n], any order; equal ones are computed once
    tokens : uint32 [n], below length
    length : 1 .. 2**26
    count : 0 .. length

    Returns
    -------
    bool [n].

    Notes
    -----
    A token is followed through the shuffle, so nothing of size `length` is written for a seed with
    few tokens. About 2 ns for each of the `count` draws of a distinct seed and .1 ns a draw and
    token; releases the GIL.

    Examples
    --------
    >>> first_slots(np.array([7, 7], np.uint32), np.array([0, 2], np.uint32), 10, 5).tolist()
    [True, False]
    """
    if not 1 <= length <= MAXIMUM_LENGTH or not 0 <= count <= length:
        raise UsageError(
            f"length must be 1 .. {MAXIMUM_LENGTH} and count 0 .. length; got {length} and "
            f"{count}. Pass the vocabulary size of the model."
        )
    order = np.argsort(seeds, kind="stable")
    flags = np.empty(seeds.shape, dtype=np.bool_)
    _flags(seeds[order], tokens[order].astype(np.int64), length, count, flags)
    out = np.empty_like(flags)
    out[order] = flags
    return out


def random_mantissas(
    seeds: NDArray[np.uint32], positions: NDArray[np.integer]
) -> NDArray[np.uint32]:
    """2**24 times entry `positions[i]` of `rand(...)` of seeds[i]: uint32 [n], below 2**24.

    Cost: about 1 ns for every output up to the highest position of each distinct seed.

    >>> random_mantissas(np.array([0], np.uint32), np.array([0], np.uint32)).tolist()
    [8325804]
    """
    order = np.lexsort((positions, seeds))
    values = np.empty(seeds.shape, dtype=np.uint32)
    _mantissas(seeds[order], positions[order].astype(np.int64), values)
    out = np.empty_like(values)
    out[order] = values
    return out


def random_bits(seed: int, length: int) -> NDArray[np.uint8]:
    """`randint(0, 2, (length,))` of the seed: uint8 [length]."""
    out = np.empty(length, dtype=np.uint32)
    _outputs(np.uint32(seed & 0xFFFFFFFF), out)
    return (out & np.uint32(1)).astype(np.uint8)


@lru_cache(maxsize=4)
def permutation(seed: int, length: int) -> NDArray[np.int64]:
    """`randperm(length)` of the seed: int64 [length], read-only. 10 ms for a million.

    >>> permutation(0, 5).tolist()
    [4, 0, 1, 3, 2]
    """
    partners = np.empty(length, dtype=np.int32)
    state = np.empty(624, np.uint32)
    _partners(state, np.uint32(seed & 0xFFFFFFFF), length, _inverses(length, length), partners)
    out = np.arange(length, dtype=np.int64)
    _shuffle(partners, out)
    out.setflags(write=False)
    return out
