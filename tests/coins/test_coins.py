"""The coins: known answers, two paths with the same bits, and independence scans."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provenance.coins import words as coins
from provenance.errors import UsageError

# RFC 8439, appendix A.1, test vectors 1 to 5: (key, block counter, nonce, keystream block).
RFC_8439_A1 = [
    (
        bytes(32),
        0,
        bytes(12),
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586",
    ),
    (
        bytes(32),
        1,
        bytes(12),
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f",
    ),
    (
        bytes(31) + b"\x01",
        1,
        bytes(12),
        "3aeb5224ecf849929b9d828db1ced4dd832025e8018b8160b82284f3c949aa5a"
        "8eca00bbb4a73bdad192b5c42f73f2fd4e273644c8b36125a64addeb006c13a0",
    ),
    (
        b"\x00\xff" + bytes(30),
        2,
        bytes(12),
        "72d54dfbf12ec44b362692df94137f328fea8da73990265ec1bbbea1ae9af0ca"
        "13b25aa26cb4a648cb9b9d1be65b2c0924a66c54d545ec1b7374f4872e99f096",
    ),
    (
        bytes(32),
        0,
        bytes(11) + b"\x02",
        "c2c64d378cd536374ae204b9ef933fcd1a8b2288b3dfa49672ab765b54ee27c7"
        "8a970e0e955c14f3a88e741b97c286f75f8fc299e8148362fa198a39531bed6d",
    ),
]


def _chacha20_block(key: bytes, counter: int, nonce: tuple[int, int, int]) -> list[int]:
    """RFC 8439 section 2.3 in Python integers: the slow second implementation."""
    constants = [int.from_bytes(b"expand 32-byte k"[i : i + 4], "little") for i in (0, 4, 8, 12)]
    words = [int.from_bytes(key[i : i + 4], "little") for i in range(0, 32, 4)]
    start = [*constants, *words, counter, *nonce]
    x = list(start)

    def turn(value: int, bits: int) -> int:
        return ((value << bits) | (value >> (32 - bits))) & 0xFFFFFFFF

    def quarter(a: int, b: int, c: int, d: int) -> None:
        for p, q, r, bits in ((a, b, d, 16), (c, d, b, 12), (a, b, d, 8), (c, d, b, 7)):
            x[p] = (x[p] + x[q]) & 0xFFFFFFFF
            x[r] = turn(x[r] ^ x[p], bits)

    for _ in range(10):
        for i in range(4):
            quarter(i, 4 + i, 8 + i, 12 + i)
        for i in range(4):
            quarter(i, 4 + (i + 1) % 4, 8 + (i + 2) % 4, 12 + (i + 3) % 4)
    return [(a + b) & 0xFFFFFFFF for a, b in zip(x, start, strict=True)]


@pytest.mark.parametrize(("key", "counter", "nonce", "block"), RFC_8439_A1)
def test_words_and_row_equal_the_vectors_of_the_rfc(key, counter, nonce, block):
    context = np.frombuffer(nonce, dtype="<u4").astype(np.uint32)
    expected = np.frombuffer(bytes.fromhex(block), dtype="<u4")
    tokens = np.arange(16 * counter, 16 * counter + 16, dtype=np.uint32)
    assert coins.words(key, np.tile(context, (16, 1)), tokens).tolist() == expected.tolist()
    assert coins.row(key, context, 16 * counter + 16)[-16:].tolist() == expected.tolist()


@settings(max_examples=60, deadline=None)
@given(
    key=st.binary(min_size=32, max_size=32),
    context=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3),
    token=st.integers(0, 5000),
)
def test_three_implementations_agree(key, context, token):
    ids = np.array(context, dtype=np.uint32)
    nonce = tuple([0xFFFFFFFF] * (3 - len(context)) + context)
    expected = _chacha20_block(key, token // 16, nonce)[token % 16]
    assert coins.words(key, ids[None], np.array([token], dtype=np.uint32))[0] == expected
    assert coins.row(key, ids, token + 1)[token] == expected


def test_words_do_not_depend_on_batch_boundaries_or_threads():
    rng = np.random.default_rng(1)
    n = 3 * coins._CHUNK + 5
    contexts = rng.integers(0, 2**32, (n, 2), dtype=np.uint32)
    tokens = rng.integers(0, 2**32, n, dtype=np.uint32)
    whole = coins.words(bytes(range(32)), contexts, tokens)
    for span in (slice(0, 1), slice(7, 40), slice(coins._CHUNK - 3, coins._CHUNK + 20)):
        part = coins.words(bytes(range(32)), contexts[span], tokens[span])
        assert part.tolist() == whole[span].tolist()
    strided = coins.words(bytes(range(32)), contexts[::-1], tokens[::-1])
    assert np.array_equal(strided[::-1], whole)
    assert coins.words(bytes(32), contexts[:0], tokens[:0]).shape == (0,)


def _keys(n: int) -> list[bytes]:
    """Adjacent keys: they differ in one counter."""
    return [i.to_bytes(32, "little") for i in range(n)]


def _correlation(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.corrcoef(a.astype(np.float64), b.astype(np.float64))[0, 1])


def test_coins_of_adjacent_keys_contexts_and_tokens_are_uncorrelated():
    """Limit 6 / sqrt(n): false alarm below 1e-5 over the scans. A peer fails with .29 and .42."""
    n = 1 << 18
    rng = np.random.default_rng(2)
    contexts = rng.integers(0, 50_000, (n, 2), dtype=np.uint32)
    tokens = rng.integers(0, 50_000, n, dtype=np.uint32)
    key, *others = _keys(40)
    base = coins.words(key, contexts, tokens)
    limit = 6 / np.sqrt(n)
    for other in others:
        assert abs(_correlation(base, coins.words(other, contexts, tokens))) < limit
    for lag in [*range(1, 40), 76, 743, 1024, 4096, 1 << 16]:
        shifted = tokens + np.uint32(lag)
        assert abs(_correlation(base, coins.words(key, contexts, shifted))) < limit
        moved = contexts.copy()
        moved[:, lag % 2] += np.uint32(lag)
        assert abs(_correlation(base, coins.words(key, moved, tokens))) < limit
    assert abs(_correlation(base, coins.words(key, contexts[:, ::-1].copy(), tokens))) < limit


def test_every_bit_is_fair_and_independent_of_the_others():
    n = 1 << 18
    rng = np.random.default_rng(3)
    word = coins.words(
        bytes(32),
        rng.integers(0, 50_000, (n, 3), dtype=np.uint32),
        rng.integers(0, 50_000, n, dtype=np.uint32),
    )
    bits = ((word[:, None] >> np.arange(32, dtype=np.uint32)) & 1).astype(np.float64) - 0.5
    limit = 6 / np.sqrt(n)
    assert np.abs(2 * bits.mean(axis=0)).max() < limit
    correlation = 4 * (bits.T @ bits) / n - np.eye(32)
    assert np.abs(correlation).max() < limit


def test_coins_of_widths_are_different_streams():
    context = np.array([[5, 6]], dtype=np.uint32)
    token = np.array([9], dtype=np.uint32)
    seen = {
        int(coins.words(bytes(32), context[:, -1:], token)[0]),
        int(coins.words(bytes(32), context, token)[0]),
        int(coins.words(bytes(32), np.array([[4, 5, 6]], dtype=np.uint32), token)[0]),
    }
    assert len(seen) == 3


@pytest.mark.parametrize(
    "call",
    [
        lambda: coins.words(b"short", np.zeros((1, 2), np.uint32), np.zeros(1, np.uint32)),
        lambda: coins.words("x" * 32, np.zeros((1, 2), np.uint32), np.zeros(1, np.uint32)),
        lambda: coins.words(bytes(32), np.zeros((1, 4), np.uint32), np.zeros(1, np.uint32)),
        lambda: coins.words(bytes(32), np.zeros((1, 0), np.uint32), np.zeros(1, np.uint32)),
        lambda: coins.words(bytes(32), np.zeros(2, np.uint32), np.zeros(1, np.uint32)),
        lambda: coins.words(bytes(32), np.zeros((1, 2), np.int64), np.zeros(1, np.uint32)),
        lambda: coins.words(bytes(32), np.zeros((1, 2), np.uint32), np.zeros(2, np.uint32)),
        lambda: coins.words(bytes(32), np.zeros((1, 2), np.uint32), np.zeros(1, np.int32)),
        lambda: coins.row(bytes(32), np.zeros(2, np.uint32), 0),
        lambda: coins.row(bytes(31), np.zeros(2, np.uint32), 5),
    ],
)
def test_arguments_outside_the_domain_are_refused_without_showing_a_key(call):
    with pytest.raises(UsageError) as caught:
        call()
    assert "xxxx" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_known_answer_of_a_million_coins():
    """Bits of this version, so that a later one cannot drift. Made by: this test's own code path
    `row` (OpenSSL), verified by `words`."""
    rows = [coins.row(bytes(range(32)), np.array([c, 7], np.uint32), 1000) for c in range(1000)]
    digest = hashlib.sha256(np.concatenate(rows).astype("<u4").tobytes()).hexdigest()
    contexts = np.stack([np.repeat(np.arange(1000), 1000), np.full(1_000_000, 7)], axis=1)
    tokens = np.tile(np.arange(1000), 1000).astype(np.uint32)
    scattered = coins.words(bytes(range(32)), contexts.astype(np.uint32), tokens)
    assert hashlib.sha256(scattered.astype("<u4").tobytes()).hexdigest() == digest
    assert digest == "6a414d55ab8690eb3aac50b0dad81f03aefa5e5f44c47363a45cbd8a95915d58"
