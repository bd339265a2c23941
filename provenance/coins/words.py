"""The only place where a token becomes random: (key, context, token) -> 32-bit word.

The coin of token t after context (c1..ck) under key K is the t-th little-endian 32-bit word of the
ChaCha20 keystream (RFC 8439, section 2.4) with key K, initial block counter 0 and a nonce of three
little-endian 32-bit words (c1, c2, c3), where missing leading context words (k < 3) are 0xFFFFFFFF.

This module does not know what a scheme does with a word, which slot a key belongs to, or what a
tokenizer is. There are two code paths for the same bits: `row` asks OpenSSL for a whole row of the
vocabulary (needed while sampling), `words` computes scattered coins with a numba kernel (needed
while scoring). Tests hold them equal to each other and to the vectors of the RFC.
"""

from __future__ import annotations

import os
import struct
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms
from numba import njit
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.storage.kernels import kernel

KEY_BYTES = 32
MAXIMUM_CONTEXT_WIDTH = 3
_MISSING = 0xFFFFFFFF
_CHUNK = 1 << 16
CONSTANTS = np.frombuffer(b"expand 32-byte k", dtype="<u4").astype(np.uint32)

Words = NDArray[np.uint32]


@njit(inline="always")
def _quarter_round(lanes, x, a, b, c, d):  # type: ignore[no-untyped-def]
    """RFC 8439 section 2.1 on every lane.

    Every operation is cast back: numba widens the shift of a uint32 to 64 bits.
    """
    for i in range(lanes):
        xa = np.uint32(x[a, i] + x[b, i])
        xd = np.uint32(x[d, i] ^ xa)
        xd = np.uint32(np.uint32(xd << np.uint32(16)) | np.uint32(xd >> np.uint32(16)))
        xc = np.uint32(x[c, i] + xd)
        xb = np.uint32(x[b, i] ^ xc)
        xb = np.uint32(np.uint32(xb << np.uint32(12)) | np.uint32(xb >> np.uint32(20)))
        xa = np.uint32(xa + xb)
        xd = np.uint32(xd ^ xa)
        xd = np.uint32(np.uint32(xd << np.uint32(8)) | np.uint32(xd >> np.uint32(24)))
        xc = np.uint32(xc + xd)
        xb = np.uint32(xb ^ xc)
        xb = np.uint32(np.uint32(xb << np.uint32(7)) | np.uint32(xb >> np.uint32(25)))
        x[a, i] = xa
        x[b, i] = xb
        x[c, i] = xc
        x[d, i] = xd


@njit(inline="always")
def _fill(lanes, key, constants, contexts, tokens, out):  # type: ignore[no-untyped-def]
    """`lanes` blocks at a time; a constant once it is inlined, so the compiler uses vectors."""
    n = tokens.shape[0]
    k = contexts.shape[1]
    x = np.empty((16, lanes), np.uint32)
    start = np.empty((4, lanes), np.uint32)
    for base in range(0, n, lanes):
        count = min(lanes, n - base)
        for i in range(lanes):
            at = base + min(i, count - 1)
            start[0, i] = np.uint32(tokens[at] >> np.uint32(4))
            for j in range(3):
                missing = 3 - k
                if j < missing:
                    start[1 + j, i] = np.uint32(_MISSING)
                else:
                    start[1 + j, i] = contexts[at, j - missing]
        for r in range(4):
            for i in range(lanes):
                x[r, i] = constants[r]
                x[12 + r, i] = start[r, i]
        for r in range(8):
            for i in range(lanes):
                x[4 + r, i] = key[r]
        for _ in range(10):
            _quarter_round(lanes, x, 0, 4, 8, 12)
            _quarter_round(lanes, x, 1, 5, 9, 13)
            _quarter_round(lanes, x, 2, 6, 10, 14)
            _quarter_round(lanes, x, 3, 7, 11, 15)
            _quarter_round(lanes, x, 0, 5, 10, 15)
            _quarter_round(lanes, x, 1, 6, 11, 12)
            _quarter_round(lanes, x, 2, 7, 8, 13)
            _quarter_round(lanes, x, 3, 4, 9, 14)
        for i in range(count):
            lane = tokens[base + i] & np.uint32(15)
            initial = constants[lane & 3]
            if lane >= 12:
                initial = start[lane - 12, i]
            elif lane >= 4:
                initial = key[lane - 4]
            out[base + i] = np.uint32(x[lane, i] + initial)


@kernel(nogil=True)
def fill_words(key, constants, contexts, tokens, out):  # type: ignore[no-untyped-def]
    """Coins of tokens[i] after contexts[i], 16 ChaCha20 blocks at a time, into out[i].

    For compiled code, unchecked; others call `words`. key uint32 [8] of `read_key`, constants
    CONSTANTS, contexts uint32 [n, k], tokens and out uint32 [n]. Cost: 12 ns a coin with AVX-512,
    35 ns with AVX2; 0.6 microseconds at least.
    """
    _fill(16, key, constants, contexts, tokens, out)


@kernel(nogil=True)
def fill_one(key, constants, contexts, tokens, out):  # type: ignore[no-untyped-def]
    """`fill_words` for a coin or two."""
    _fill(1, key, constants, contexts, tokens, out)


def words(key: bytes, contexts: Words, tokens: Words) -> Words:
    """Coins of scattered (context, token) pairs.

    Parameters
    ----------
    key : 32 bytes
    contexts : uint32 [n, k], k = 1, 2 or 3; row i is the context of pair i, oldest token first
    tokens : uint32 [n]

    Returns
    -------
    uint32 [n]; word i is the coin of tokens[i] after contexts[i].

    Raises
    ------
    UsageError if the key is not 32 bytes or a shape or dtype differs.

    Notes
    -----
    12 to 35 ns per coin and core (AVX-512, AVX2); releases the GIL and uses every core of the
    process from 131,072 pairs on. Memory: the result only.

    References
    ----------
    RFC 8439, section 2.3 (block function) and 2.4 (keystream).

    Examples
    --------
    >>> import numpy as np
    >>> pairs = np.array([[5, 6], [5, 7]], dtype=np.uint32)
    >>> words(bytes(32), pairs, np.array([9, 9], dtype=np.uint32)).tolist()
    [822393812, 3851543667]
    """
    key_words = read_key(key)
    contexts = _check_contexts(contexts)
    tokens = np.ascontiguousarray(tokens)
    if tokens.dtype != np.uint32 or tokens.shape != (contexts.shape[0],):
        raise UsageError(
            f"tokens must be uint32 of shape ({contexts.shape[0]},); got {tokens.dtype} of shape "
            f"{tokens.shape}. Pass one token per row of contexts."
        )
    out = np.empty(tokens.shape[0], dtype=np.uint32)
    spans = [slice(i, i + _CHUNK) for i in range(0, tokens.shape[0], _CHUNK)]

    def fill(span: slice) -> None:
        fill_words(key_words, CONSTANTS, contexts[span], tokens[span], out[span])

    workers = min(len(spans), len(os.sched_getaffinity(0)))
    if workers <= 1:
        for span in spans:
            fill(span)
    else:
        with ThreadPoolExecutor(workers) as pool:
            list(pool.map(fill, spans))
    return out


def row(key: bytes, context: Words, vocabulary_size: int) -> Words:
    """Coins of every token of the vocabulary after one context.

    Parameters
    ----------
    key : 32 bytes
    context : uint32 [k], k = 1, 2 or 3, oldest token first
    vocabulary_size : number of words wanted, 1 .. 2**32

    Returns
    -------
    uint32 [vocabulary_size]; word t is the coin of token t.

    Raises
    ------
    UsageError if an argument is outside its domain.

    Notes
    -----
    OpenSSL encrypts zeros: about 0.1 ms for 151,936 tokens; memory 8 bytes a token.

    Examples
    --------
    >>> import numpy as np
    >>> int(row(bytes(32), np.array([5, 6], dtype=np.uint32), 10)[9])
    822393812
    """
    _check_key(key)
    nonce = _check_contexts(np.asarray(context)[np.newaxis, :])[0].tolist()
    if not 1 <= vocabulary_size <= 1 << 32:
        raise UsageError(
            f"vocabulary_size must be 1 .. 2**32; got {vocabulary_size}. "
            "Pass the number of tokens of the served tokenizer."
        )
    missing = (_MISSING,) * (MAXIMUM_CONTEXT_WIDTH - len(nonce))
    encryptor = _encryptors.of(key)
    encryptor.reset_nonce(struct.pack("<4I", 0, *missing, *nonce))
    out = np.empty(vocabulary_size, dtype=np.uint32)
    encryptor.update_into(_zeros(4 * vocabulary_size), out.data.cast("B"))
    return out if sys.byteorder == "little" else out.byteswap(inplace=True)


class _Encryptors(threading.local):
    """One OpenSSL context a key and thread: making one takes a tenth of the time of a row."""

    def __init__(self) -> None:
        self.of = lru_cache(maxsize=64)(_make_encryptor)


def _make_encryptor(key: bytes) -> CipherContext:
    return Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()


_encryptors = _Encryptors()


@lru_cache(maxsize=2)
def _zeros(size: int) -> bytes:
    """The plaintext; kept, since clearing 600 kB costs as much as encrypting it."""
    return bytes(size)


def read_key(key: bytes) -> Words:
    """Eight little-endian words of a 256-bit key: uint32 [8]."""
    _check_key(key)
    return np.frombuffer(key, dtype="<u4").astype(np.uint32)


def _check_key(key: bytes) -> None:
    """The message never shows the key."""
    if not isinstance(key, bytes) or len(key) != KEY_BYTES:
        raise UsageError(
            f"key must be {KEY_BYTES} bytes; got {type(key).__name__} of length "
            f"{len(key) if hasattr(key, '__len__') else 'unknown'}. Derive it from a keyring."
        )


def _check_contexts(contexts: Words) -> Words:
    contexts = np.ascontiguousarray(contexts)
    if (
        contexts.dtype != np.uint32
        or contexts.ndim != 2
        or not 1 <= contexts.shape[1] <= MAXIMUM_CONTEXT_WIDTH
    ):
        raise UsageError(
            f"contexts must be uint32 of shape (n, k) with k = 1, 2 or 3; got {contexts.dtype} of "
            f"shape {contexts.shape}. Convert token ids with numpy.asarray(ids, dtype=uint32)."
        )
    return contexts
