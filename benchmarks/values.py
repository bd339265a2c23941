"""What 25,000 values of a slot cost: an index and a check, with the responses of fixtures/.

    python -m benchmarks.values [--values 25000]

The served responses are cut into pieces of 25 tokens, one or two to a value; the suspect is the
student of all marked responses (its texts; the keys here are new, so it is innocent of them), once
with and once without an innocent model beside it. Prints and keeps CPU seconds.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import provenance as pv

FIXTURES = Path("fixtures")
RESULTS = Path("benchmarks/results/values.json")
PIECE = 25


def write_log(path: Path, values: list[str]) -> int:
    """Write the pieces as a log; returns their number."""
    table = pq.read_table(FIXTURES / "served.parquet")
    lists = table.column("token_ids").combine_chunks()
    pieces = [
        ids[start : start + PIECE]
        for ids in lists.to_pylist()
        for start in range(0, len(ids) - PIECE + 1, PIECE)
    ]
    chosen = np.random.default_rng(1).permutation(len(pieces)) % len(values)
    pq.write_table(
        pa.table(
            {
                "response_id": [f"r-{i}" for i in range(len(pieces))],
                "marked": [True] * len(pieces),
                "labels": pa.array(
                    [[("account", values[i])] for i in chosen], pa.map_(pa.string(), pa.string())
                ),
                "token_ids": pa.array(pieces, pa.list_(pa.uint32())),
            }
        ),
        path,
    )
    return len(pieces)


def main() -> None:
    """Build, check, and keep what it cost."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=25_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    given = parser.parse_args()
    values = [f"account-{i:05d}" for i in range(given.values)]
    suspect = FIXTURES / "suspects" / "student-all.jsonl.gz"
    innocent = FIXTURES / "innocents" / "unmarked-teacher.jsonl.gz"
    costs: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        responses = write_log(folder / "served.parquet", values)

        def clock(what: str, start: float) -> None:
            costs[what] = round(time.process_time() - start, 1)
            print(what, costs[what], flush=True)

        start = time.process_time()
        keyring = pv.make_keyring(
            folder / "keys",
            FIXTURES / "keys" / "tokenizer.json",
            shares={"global": 0.05, "account": 0.05},
            values={"account": values},
        )
        clock("keyring", start)
        start = time.process_time()
        manifest = pv.build_index(folder / "served.parquet", folder / "index", keyring)
        clock("build", start)
        for what, innocents in (("check", None), ("check_with_innocent", innocent)):
            start = time.process_time()
            with pv.open_case(keyring, folder / "index") as case:
                verdict = case.check(suspect, innocents=innocents)
            clock(what, start)
    result = {
        "command": f"python -m benchmarks.values --values {given.values}",
        "machine": f"{platform.machine()}, Python {platform.python_version()}",
        "numpy": np.__version__,
        "values": given.values,
        "responses": responses,
        "rows": manifest.rows,
        "keys_tried": len(verdict.hypotheses),
        "log10_p": verdict.log10_p,
        "cpu_seconds": costs,
    }
    given.out.write_text(json.dumps(result, indent=1) + "\n")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
