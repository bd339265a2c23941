"""Does it stay flat? A million responses through a sink, a thousand increments of an index.

python -m benchmarks.gates.endurance [--responses 1000000] [--increments 1000]

A response has 8 tokens and its `drawn` bits, as an engine writes it, into a folder of rotating
files. An increment merges the index so far with that of a new log of 20 responses. Peak memory is
read every tenth of the way: the second half must take at most 10 % more than the first.
"""

from __future__ import annotations

import argparse
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

import provenance as pv
from benchmarks.gates.record import record
from provenance.embed.sink import ResponseSink
from provenance.served.records import ServedResponse
from provenance.served.rotation import RotatingLog
from provenance.served.writer import LogWriter
from tests.world.synthetic import WORDS, save_tokenizer

_TOKENS = 8


def _memory() -> int:
    """Resident bytes now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize()


def _is_flat(points: list[int]) -> bool:
    half = len(points) // 2
    return max(points[half:]) <= 1.1 * max(points[:half])


def grow_log(folder: Path, keys: Path, responses: int) -> dict[str, Any]:
    """Responses through a sink."""
    generator = np.random.default_rng(0)
    ids = generator.integers(0, WORDS, (1000, _TOKENS)).astype(np.uint32)
    drawn = generator.random((1000, _TOKENS)) < 0.5
    drawn[:, 0] = True
    points, begun, cpu = [], time.monotonic(), time.process_time()
    with ResponseSink(keys, RotatingLog(folder / "log")) as sink:
        for number in range(responses):
            row = number % 1000
            sink.write(
                ServedResponse(
                    f"r{number}",
                    labels={"week": "W1"},
                    token_ids=ids[row],
                    drawn=drawn[row],
                    finish="length",
                )
            )
            if (number + 1) % (responses // 10) == 0:
                points.append(_memory())
                print(f"{number + 1:,} responses, {points[-1] >> 20} MiB", flush=True)
    return {
        "responses": responses,
        "tokens_each": _TOKENS,
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "resident_mib": [point >> 20 for point in points],
        "is_flat": _is_flat(points),
    }


def grow_index(folder: Path, keys: Path, increments: int) -> dict[str, Any]:
    """Increments by merging; 200 logs are used over and over under other names and ids."""
    generator = np.random.default_rng(1)
    current, points = folder / "index-0", []
    begun, cpu = time.monotonic(), time.process_time()
    for number in range(increments + 1):
        log = folder / f"log-{number}.jsonl"
        with LogWriter(log) as out:
            for i in range(20):
                out.write(
                    f"{number}-{i}",
                    labels={"week": "W1"},
                    marked=True,
                    token_ids=generator.integers(0, WORDS, 20).tolist(),
                    prompt_token_ids=[],
                    finish="length",
                )
        own = folder / f"index-{number}" if number == 0 else folder / "own"
        shutil.rmtree(own, ignore_errors=True)
        pv.build_index(log, own, keys)
        log.unlink()
        if number:
            merged = folder / f"index-{number}"
            pv.merge_indexes([current, own], merged, pv.Keyring.load(keys))
            shutil.rmtree(current)
            current = merged
        if number and number % max(1, increments // 10) == 0:
            points.append(_memory())
            print(f"{number:,} increments, {points[-1] >> 20} MiB", flush=True)
    info, _ = pv.describe_index(current)
    return {
        "increments": increments,
        "how": "merge of the index so far with that of 20 new responses",
        "rows": info["rows"],
        "responses": info["marked_responses"],
        "whole": info["marked_responses"] == 20 * (increments + 1),
        "seconds": round(time.monotonic() - begun, 1),
        "cpu_seconds": round(time.process_time() - cpu, 1),
        "resident_mib": [point >> 20 for point in points],
        "is_flat": _is_flat(points),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--responses", type=int, default=1_000_000)
    parser.add_argument("--increments", type=int, default=1000)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        save_tokenizer(folder / "tokenizer.json")
        pv.make_keyring(
            folder / "keys", folder / "tokenizer.json", shares={"global": 0.4, "week": 0.3},
            values={"week": ["W1"]},
        )  # fmt: skip
        found = {
            "sink": grow_log(folder, folder / "keys", asked.responses),
            "index": grow_index(folder, folder / "keys", asked.increments),
        }
    record("endurance", "python -m benchmarks.gates.endurance", found)
    sys.exit(not all(one["is_flat"] for one in found.values()))


if __name__ == "__main__":
    main()
