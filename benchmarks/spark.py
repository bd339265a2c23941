"""An index counted by Spark beside the embedded one: time, and the same hash.

    python -m benchmarks.spark [--tokens 1e7] [--turns 0 3] [--work FOLDER] [--output FILE]

The log is that of `benchmarks.scale`. Both engines are warm: a log of 100,000 tokens is indexed
before. CPU seconds of Spark are those of all its processes on this machine: the driver, its JVM,
two executors with a core each, and their Python workers.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyspark
from pyspark.sql import SparkSession

from benchmarks.scale import SEED, open_keyring, write_log
from provenance.served.build import build_index
from provenance.served.spark import build_index_with_spark

MASTER: Final = "local-cluster[2,1,2048]"
SETTINGS: Final = {
    "spark.ui.enabled": "false",
    "spark.ui.showConsoleProgress": "false",
    "spark.driver.host": "127.0.0.1",
    "spark.driver.bindAddress": "127.0.0.1",
    "spark.executor.memory": "2g",
    "spark.sql.shuffle.partitions": "16",
}


def _cpu_seconds(process: int) -> float:
    """CPU time of a process and of all below it, those that ended included."""
    total, parents = {}, {}
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            parents[int(path.name)] = int(fields[1])
            total[int(path.name)] = sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
    kept, found = {process}, 0
    while found != len(kept):
        found = len(kept)
        kept |= {one for one, parent in parents.items() if parent in kept}
    return sum(total.get(one, 0.0) for one in kept)


def _measure(build: Any, log: Path, out: Path, keyring: Any) -> dict[str, Any]:
    cpu, wall = _cpu_seconds(os.getpid()), time.perf_counter()
    manifest = build([log], out, keyring)
    return {
        "cpu_s": round(_cpu_seconds(os.getpid()) - cpu, 1),
        "wall_s": round(time.perf_counter() - wall, 1),
        "rows": manifest.rows,
        "content_sha256": manifest.content_sha256,
        "manifest": manifest,
    }


def measure(work: Path, sizes: list[int], every: list[int]) -> list[dict[str, Any]]:
    """Both engines on every log."""
    keyring, found = open_keyring(work), []
    write_log(work / "warm.parquet", 100_000, 0)
    for build in (build_index, build_index_with_spark):
        build([work / "warm.parquet"], work / "warm", keyring)
    for tokens in sizes:
        for turns in every:
            log = work / f"{tokens}-{turns}.parquet"
            write_log(log, tokens, turns)
            one = _measure(build_index, log, work / "embedded", keyring)
            other = _measure(build_index_with_spark, log, work / "spark", keyring)
            found.append(
                {
                    "tokens": tokens,
                    "turns": turns,
                    "log_bytes": log.stat().st_size,
                    "equal_hash": one["content_sha256"] == other["content_sha256"],
                    "equal_manifest": one.pop("manifest") == other.pop("manifest"),
                    "embedded": one,
                    "spark": other,
                }
            )
            print(found[-1], flush=True)
            log.unlink()
    return found


def main() -> None:
    """Measure and write the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokens", nargs="+", type=float, default=[1e7])
    parser.add_argument("--turns", nargs="+", type=int, default=[0, 3], help="of conversations")
    parser.add_argument("--work", type=Path)
    parser.add_argument("--output", type=Path, default=Path("benchmarks/results/spark.json"))
    options = parser.parse_args()
    load = os.getloadavg()[0]
    os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.master(MASTER).appName("benchmark")
    for name, value in SETTINGS.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("ERROR")
    with tempfile.TemporaryDirectory(prefix="spark-") as folder:
        work = options.work or Path(folder)
        work.mkdir(exist_ok=True)
        builds = measure(work, [int(n) for n in options.tokens], options.turns)
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(": ")[1] for line in lines if line.startswith("model name")]
    result = {
        "command": " ".join(["python -m benchmarks.spark", *sys.argv[1:]]),
        "seed": SEED,
        "master": MASTER,
        "settings": SETTINGS,
        "machine": {
            "cores": len(os.sched_getaffinity(0)),
            "processor": models[0] if models else "",
            "load_before": load,
        },
        "versions": {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "pyspark": pyspark.__version__,
        },
        "builds": builds,
    }
    session.stop()
    options.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
