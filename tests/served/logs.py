"""A served log in three forms at once, with everything that a reader must treat with care."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from provenance.served.records import SCHEMA


def write_three(folder: Path, records: list[dict[str, Any]]) -> list[Path]:
    """The records as JSONL, JSONL in gzip, and Parquet of small row groups, a third in each.

    In each file stand copies of records of the file before, which say other things beside the same
    ids: the first one counts. Some of the JSONL records hold text only.
    """
    thirds = [[dict(record) for record in records[i::3]] for i in range(3)]
    for i in (1, 2):
        thirds[i] += [{**record, "labels": {"week": "w3"}} for record in thirds[i - 1][5:15]]
    thirds[2] += thirds[2][:3]
    for record in thirds[0][20:30]:
        del record["token_ids"]
        record["text"] = "the cat sat on the mat and the dog"
    lines = ["".join(json.dumps(record) + "\n" for record in part) for part in thirds]
    paths = [folder / name for name in ("a.jsonl", "b.jsonl.gz", "c.parquet")]
    paths[0].write_text(lines[0])
    paths[1].write_bytes(gzip.compress(lines[1].encode(), mtime=0))
    write_parquet(paths[2], thirds[2])
    return paths


def write_parquet(path: Path, records: list[dict[str, Any]], group: int = 40) -> Path:
    """The records as Parquet with the columns of the log."""
    rows = [{**record, "labels": sorted(record["labels"].items())} for record in records]
    pq.write_table(pa.Table.from_pylist(rows, SCHEMA), path, row_group_size=group)
    return path
