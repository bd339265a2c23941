"""An index of many tokens: time, memory, spill and size, beside DuckDB's own group-by.

    python -m benchmarks.scale [--tokens 1e7 1e8] [--work FOLDER] [--output FILE]

The text is random with repeated pairs (half of the tokens follow from the one before), 500 tokens a
response, labels of all slots, in Parquet with token ids. Every figure is that of a process of its
own, net of its start; DuckDB groups the same windows, which are made before its clock starts.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import resource
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numba import njit

from provenance.keys.keyring import Keyring, SchemeSpecification, create_keyring
from provenance.keys.schedule import DEFAULT_SHARES, Schedule
from provenance.served.build import build_index
from provenance.served.grouping import group_windows
from provenance.served.log import read_log
from provenance.served.lookup import Rows
from provenance.served.table import TABLE, Audit, seal_table, write_table
from provenance.served.windows import windows
from provenance.storage.files import sha256_of_file
from tests.conftest import train_tokenizer

VOCABULARY: Final = 50_000
LENGTH: Final = 500
SEED: Final = 17
VALUES: Final = {
    "week": ["w1", "w2", "w3"],
    "capability": ["code", "chat"],
    "cohort": [f"c{i}" for i in range(10)],
}
_RESPONSES: Final = 4000


@njit
def _fill(out, seed, size, share):  # type: ignore[no-untyped-def]
    """Zipf-like ids; with probability `share` one of eight that the id before decides."""
    np.random.seed(seed)
    before, scale = 0, np.log(size)
    for i in range(out.size):
        part = np.random.random()
        if np.random.random() < share:
            mixed = np.uint64(before * 8 + np.random.randint(0, 8))
            mixed *= np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            mixed ^= mixed >> np.uint64(32)
            part = np.float64(mixed >> np.uint64(11)) / 9007199254740992.0
        out[i] = np.uint32(np.exp(part * scale) - 1)
        before = np.int64(out[i])


def write_log(path: Path, tokens: int, turns: int) -> None:
    """A log of so many tokens; conversations of so many responses, 0 for none."""
    writer = None
    for start in range(0, tokens // LENGTH, _RESPONSES):
        numbers = range(start, min(start + _RESPONSES, tokens // LENGTH))
        size = len(numbers)
        ids = np.empty(size * LENGTH, dtype=np.uint32)
        _fill(ids, SEED * 1_000_003 + start, VOCABULARY, 0.5)
        values = [v[i % len(v)] for i in numbers for v in VALUES.values()]
        table = pa.table(
            {
                "response_id": [f"response-{i:012d}" for i in numbers],
                "marked": [True] * size,
                "labels": pa.MapArray.from_arrays(
                    np.arange(size + 1, dtype=np.int32) * 3, pa.array([*VALUES] * size), values
                ),
                "token_ids": pa.ListArray.from_arrays(
                    np.arange(size + 1, dtype=np.int32) * LENGTH, pa.array(ids)
                ),
                "conversation_id": pa.array(
                    [f"c{i // turns}" if turns else None for i in numbers], pa.string()
                ),
            }
        )
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table)
    assert writer is not None
    writer.close()


def open_keyring(work: Path) -> Any:
    """The keyring of all runs: default shares."""
    keys = work / "keys"
    if not keys.exists():
        tokenizer = train_tokenizer(work / "tokenizer.json", 300, ["the cat sat"] * 20, [])
        create_keyring(
            keys,
            tokenizer,
            VOCABULARY,
            SchemeSpecification("gumbel"),
            Schedule.from_shares(DEFAULT_SHARES, VALUES),
            2,
        )
    return Keyring.load(keys).unlock(keys)


class _Watch:
    """The most bytes that were in a folder."""

    def __init__(self, folder: Path) -> None:
        self.most, self._folder, self._end = 0, folder, threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)
        self._thread.start()

    def _look(self) -> None:
        while not self._end.wait(0.05):
            total = 0
            for path in self._folder.rglob("*"):
                try:
                    total += path.stat().st_size
                except OSError:
                    continue
            self.most = max(self.most, total)

    def stop(self) -> int:
        self._end.set()
        self._thread.join()
        return self.most


def measure_build(work: Path, log: Path, share: float, memory: str) -> dict[str, Any]:
    """Build an index of one log, warm: a first log of 100,000 tokens is not counted."""
    keyring, out, spill = open_keyring(work), work / "index", work / "spill"
    shutil.rmtree(spill, ignore_errors=True)
    spill.mkdir()
    build_index([work / "warm.parquet"], work / "warm", keyring)
    watch = _Watch(spill)
    cpu, wall = time.process_time(), time.perf_counter()
    manifest = build_index(
        [log], out, keyring, memory_limit=memory, control_share=share, spill=spill
    )
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    size = (out / manifest.table).stat().st_size
    return {
        "tokens": manifest.tokens,
        "control_share": share,
        "memory_limit": memory,
        "cpu_s": round(cpu, 2),
        "wall_s": round(wall, 2),
        "peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_spill_bytes": watch.stop(),
        "rows": manifest.rows,
        "index_bytes": size,
        "bytes_per_token": round(size / manifest.tokens, 4),
        "content_sha256": manifest.content_sha256,
    }


def measure_database(work: Path, log: Path, share: float) -> dict[str, Any]:
    """DuckDB's group-by alone, on windows that are in memory: slot, value, context, no lineage."""
    keyring = open_keyring(work)
    reader = read_log([log], tokenizer=None, vocabulary_size=VOCABULARY)
    rows = pa.concat_tables([windows(batch, keyring, share) for batch in reader])
    with duckdb.connect(config={"threads": len(os.sched_getaffinity(0))}) as database:
        cpu, wall = time.process_time(), time.perf_counter()
        database.register("rows", rows)
        grouped = "SELECT slot, value, context, count(*) FROM rows GROUP BY ALL"
        groups = database.execute(f"SELECT count(*) FROM ({grouped})").fetchone()
        cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    before = time.process_time()
    with group_windows(rows.to_batches(), work / "database", "512MiB", None) as batches:
        ours = sum(batch.num_rows for batch in batches)
    assert groups is not None and groups[0] == ours  # noqa: PT018
    return {
        "windows": rows.num_rows,
        "rows": ours,
        "control_share": share,
        "group_by_cpu_s": round(cpu, 2),
        "group_by_wall_s": round(wall, 2),
        "sorted_with_conversations_cpu_s": round(time.process_time() - before, 2),
    }


def measure_lookups(work: Path, rows: int, queries: int) -> dict[str, Any]:
    """Open a synthetic table of one slot and look up sorted contexts, half of them in it."""
    path = work / "synthetic.parquet"
    rng = np.random.default_rng(SEED)
    audit = Audit([1, 1], str(path))
    known: list[Any] = []

    def batches() -> Any:
        last = 0
        for start in range(0, rows, 1 << 20):
            size = min(1 << 20, rows - start)
            contexts = last + np.cumsum(rng.integers(1, 20_000, size))
            last = int(contexts[-1])
            known.append(contexts[:: max(2 * rows // queries, 1)])
            counts = np.minimum(rng.zipf(1.7, size), 100_000).astype(np.int32)
            columns = [np.ones(size, np.uint8), np.zeros(size, np.uint32), contexts, counts]
            yield pa.record_batch([pa.array(one) for one in columns], schema=TABLE)

    write_table(path, batches(), audit)
    seal = seal_table(path, audit.groups)
    others = rng.integers(0, audit.groups[-1].last, queries // 2)
    wanted = np.sort(np.concatenate([*known, others]))[:queries]
    Rows.open_sealed(path, seal).close()
    cpu = time.process_time()
    opened = Rows.open_sealed(path, seal)
    open_s = time.process_time() - cpu
    opened.lookup(1, wanted[:10])
    cpu = time.process_time()
    found = opened.lookup(1, wanted)
    lookup_s = time.process_time() - cpu
    opened.close()
    cpu = time.process_time()
    Rows.open(path, sha256_of_file(path), Audit([1, 1], str(path))).close()
    result = {
        "rows": rows,
        "queries": queries,
        "found": int(found.query.shape[0]),
        "bytes_per_row": round(path.stat().st_size / rows, 2),
        "open_cpu_s": round(open_s, 4),
        "lookup_cpu_s": round(lookup_s, 2),
        "verify_all_cpu_s": round(time.process_time() - cpu, 2),
    }
    path.unlink()
    return result


def _run_alone(work: Path, name: str, *arguments: object) -> dict[str, Any]:
    """One measurement in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.scale", "--work", str(work), "--alone", name]
    found = subprocess.run(
        [*command, *map(str, arguments)], check=True, capture_output=True, text=True
    )
    result: dict[str, Any] = json.loads(found.stdout)
    print(name, *arguments, result, flush=True)
    return result


_ALONE: Final[dict[str, Callable[..., dict[str, Any]]]] = {
    "build": lambda work, log, share, memory: measure_build(work, Path(log), float(share), memory),
    "database": lambda work, log, share: measure_database(work, Path(log), float(share)),
    "lookups": lambda work, rows, queries: measure_lookups(work, int(rows), int(queries)),
}


def measure(work: Path, sizes: list[int], every: list[int], rows: int) -> dict[str, Any]:
    """All figures."""
    write_log(work / "warm.parquet", 100_000, 0)
    builds, databases = [], []
    for tokens in sizes:
        for turns in every:
            log = work / f"{tokens}-{turns}.parquet"
            write_log(log, tokens, turns)
            for share in (1.0, 1 / 16) if tokens <= 10**8 else (1 / 16,):
                found = _run_alone(work, "build", log, share, "512MiB")
                builds.append({"turns": turns, "log_bytes": log.stat().st_size, **found})
                if tokens <= 10**7:
                    if not turns:
                        databases.append(_run_alone(work, "database", log, share))
                    parts = _run_alone(work, "build", log, share, "16MiB")
                    same = parts["content_sha256"] == found["content_sha256"]
                    builds[-1]["parts_equal_one_piece"] = same
                    builds[-1]["spill_in_parts"] = parts["peak_spill_bytes"]
            log.unlink()
    return {
        "command": " ".join(["python -m benchmarks.scale", *sys.argv[1:]]),
        "seed": SEED,
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": _processor(),
            "load_before": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "duckdb": duckdb.__version__,
        },
        "builds": builds,
        "database": databases,
        "exponent_of_cpu": _exponents(builds),
        "lookups": _run_alone(work, "lookups", rows, 10_000_000) if rows else None,
    }


def _exponents(builds: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """d ln CPU / d ln tokens between sizes that follow each other."""
    found = []
    for one in builds:
        for other in builds:
            same = all(one[name] == other[name] for name in ("turns", "control_share"))
            if same and other["tokens"] == 10 * one["tokens"]:
                growth = math.log10(other["cpu_s"] / one["cpu_s"])
                kept = {name: one[name] for name in ("turns", "control_share")}
                found.append({**kept, "from": one["tokens"], "exponent": round(growth, 3)})
    return found


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.split(": ")[1] for line in lines if line.startswith("model name")), "")


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", nargs="+", type=float, default=[1e7, 1e8])
    parser.add_argument("--rows", type=float, default=1e8, help="of the table for look-ups")
    parser.add_argument("--turns", nargs="+", type=int, default=[0, 3], help="of conversations")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/scale.json"))
    parser.add_argument("--alone", nargs="+", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.alone:
        name, *arguments = options.alone
        print(json.dumps(_ALONE[name](options.work, *arguments)))
        return
    with tempfile.TemporaryDirectory(prefix="scale-") as folder:
        work = options.work or Path(folder)
        work.mkdir(exist_ok=True)
        result = measure(work, [int(n) for n in options.tokens], options.turns, int(options.rows))
    if options.output.exists() and not options.rows:
        # a run without look-ups adds to the one before
        before = json.loads(options.output.read_text())
        result = {
            **before,
            "command": f"{before['command']}; {result['command']}",
            "builds": before["builds"] + result["builds"],
        }
        result["exponent_of_cpu"] = _exponents(result["builds"])
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
