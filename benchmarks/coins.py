"""Speed of the coins on one core: scattered words per second, and milliseconds per row.

python -m benchmarks.coins [--output benchmarks/results/coins.json]
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from provenance.coins import words as coins

KEY = bytes(range(32))
SIZES = (32_000, 151_936)


def words_per_second(width: int, n: int = 1 << 20, rounds: int = 7) -> float:
    """Median over rounds of the kernel on one thread."""
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 150_000, (n, width), dtype=np.uint32)
    tokens = rng.integers(0, 150_000, n, dtype=np.uint32)
    out = np.empty(n, dtype=np.uint32)
    key = np.frombuffer(KEY, dtype="<u4").astype(np.uint32)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        coins.fill_words(key, coins.CONSTANTS, contexts, tokens, out)
        seconds.append(time.perf_counter() - started)
    return n / float(np.median(seconds[1:]))


def row_milliseconds(size: int, rounds: int = 201) -> float:
    """Median milliseconds of one row."""
    seconds = []
    for i in range(rounds):
        context = np.array([i, i + 1], dtype=np.uint32)
        started = time.perf_counter()
        coins.row(KEY, context, size)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds[1:]))


def openssl_milliseconds(size: int, rounds: int = 201) -> float:
    """Median milliseconds of OpenSSL alone on as many bytes, into a buffer that is reused."""
    zeros, out = bytes(4 * size), np.empty(4 * size, dtype=np.uint8)
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        cipher = Cipher(algorithms.ChaCha20(KEY, bytes(16)), mode=None)
        cipher.encryptor().update_into(zeros, out.data)
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds[1:]))


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(__file__).parent / "results/coins.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    result = {
        "command": "python -m benchmarks.coins",
        "words_per_second_per_core": {k: round(words_per_second(k)) for k in (1, 2, 3)},
        "row_milliseconds": {size: round(row_milliseconds(size), 4) for size in SIZES},
        "openssl_milliseconds": {size: round(openssl_milliseconds(size), 4) for size in SIZES},
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result, indent=1))


if __name__ == "__main__":
    main()
