from __future__ import annotations

import multiprocessing
import os
import time

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from provenance.errors import (
    DataError,
    StorageError,
    UsageError,
)
from provenance.keys.keyring import Keyring, add_value
from provenance.served.build import build_index, merge_indexes
from provenance.served.index import Index
from provenance.storage.database import open_database


def test_merge_equals_one_index(tmp_path, keyring, make_log, write_log):
    records = make_log(4, 200)
    for entry in records:
        entry.pop("conversation_id", None)
    logs = [write_log(tmp_path / f"{i}.jsonl", records[i::3]) for i in range(3)]
    whole = build_index(logs, tmp_path / "whole", keyring)
    parts = [tmp_path / f"part{i}" for i in range(3)]
    for log, part in zip(logs, parts, strict=True):
        build_index([log], part, keyring)
    merged = merge_indexes(parts, tmp_path / "merged", keyring.public)
    assert merged == whole
    Index.open(tmp_path / "merged", keyring.public).close()
    with pytest.raises(DataError, match="disjoint"):
        merge_indexes([parts[0], parts[0]], tmp_path / "m2", keyring.public)
    with pytest.raises(UsageError):
        merge_indexes(parts[:1], tmp_path / "m2", keyring.public)
    with pytest.raises(UsageError):
        merge_indexes(parts, parts[0], keyring.public)


def _build_and_die(log, folder, keys, calls):
    keyring = Keyring.load(keys).unlock(keys)
    real = os.fsync

    def dying(descriptor):
        nonlocal calls
        calls -= 1
        if calls < 0:
            os._exit(9)
        real(descriptor)

    os.fsync = dying
    build_index([log], folder, keyring)
    os._exit(0)


def test_killed_build_leaves_no_index_and_resumes_to_equal_bytes(
    tmp_path, tokenizer_path, make_log, write_log
):
    from provenance.keys.keyring import SchemeSpecification, create_keyring
    from provenance.keys.schedule import Schedule

    schedule = Schedule.from_shares({"global": 0.5})
    keys = tmp_path / "keys"
    keyring = create_keyring(keys, tokenizer_path, 300, SchemeSpecification("gumbel"), schedule)
    log = write_log(tmp_path / "a.jsonl", make_log(1, 50))
    build_index([log], tmp_path / "good", keyring)
    good = {p.name: p.read_bytes() for p in (tmp_path / "good").iterdir()}
    spawn = multiprocessing.get_context("spawn")
    for calls in range(3):
        child = spawn.Process(target=_build_and_die, args=(log, tmp_path / "i", keys, calls))
        child.start()
        child.join(60)
        assert child.exitcode == 9
        assert not (tmp_path / "i" / "manifest.json").exists()
        with pytest.raises(StorageError):
            Index.open(tmp_path / "i", keyring.public)
    build_index([log], tmp_path / "i", keyring)
    found = {p.name: p.read_bytes() for p in (tmp_path / "i").iterdir()}
    found = {n: c for n, c in found.items() if not n.startswith(".manifest.json.")}
    assert found == good


def test_engine_is_cut_off(tmp_path):
    import duckdb

    with open_database(tmp_path, "256MiB", 1) as connection:
        for query in (
            "INSTALL httpfs",
            "LOAD httpfs",
            "SELECT * FROM read_csv('/etc/passwd')",
            "COPY (SELECT 1) TO '/tmp/should-not-exist.csv'",
            "SET threads = 4",
            "SET enable_external_access = true",
        ):
            with pytest.raises(duckdb.Error):
                connection.execute(query)


def test_two_million_tokens_in_seconds(tmp_path, make_keyring):
    keyring = make_keyring(2, 50_000)
    rng = np.random.default_rng(0)
    responses, length = 5000, 400
    ids = (rng.pareto(0.7, responses * length) * 3).astype(np.int64) % 50_000
    offsets = np.arange(responses + 1, dtype=np.int32) * length
    log = pa.table(
        {
            "response_id": pa.array([f"r{i}" for i in range(responses)]),
            "marked": pa.array([True] * responses),
            "labels": pa.array([[("week", "w1")]] * responses, pa.map_(pa.string(), pa.string())),
            "token_ids": pa.ListArray.from_arrays(offsets, pa.array(ids.astype(np.uint32))),
        }
    )
    pq.write_table(log, tmp_path / "a.parquet")
    start = time.perf_counter()
    manifest = build_index([tmp_path / "a.parquet"], tmp_path / "i", keyring)
    assert manifest.tokens == responses * length
    assert time.perf_counter() - start < 20
    with Index.open(tmp_path / "i", keyring.public) as index:
        start = time.perf_counter()
        found = index.lookup(1, rng.integers(0, 1 << 37, 1_000_000))
        assert time.perf_counter() - start < 5
        assert found.query.shape == found.value.shape


def test_add_value_keeps_old_indexes(tmp_path, tokenizer_path, make_log, write_log):
    from provenance.keys.keyring import SchemeSpecification, create_keyring
    from provenance.keys.schedule import Schedule

    schedule = Schedule.from_shares({"global": 0.3, "week": 0.3}, {"week": ["w1"]})
    keys = tmp_path / "keys"
    keyring = create_keyring(keys, tokenizer_path, 300, SchemeSpecification("gumbel"), schedule)
    log = write_log(tmp_path / "a.jsonl", make_log(1, 50))
    build_index([log], tmp_path / "i", keyring)
    grown = add_value(keys, "week", "w2")
    Index.open(tmp_path / "i", grown).close()
    manifest = build_index([log], tmp_path / "i", grown.unlock(keys))
    assert [value.name for value in manifest.slots[2].values] == ["w1", "w2"]


def test_a_name_for_several_responses_is_refused_with_counts(tmp_path, keyring, write_log):
    """n choices under the id of their request, or a client that always sends the same one."""
    rng = np.random.default_rng(2)
    records = [
        {"response_id": "chatcmpl-1", "marked": True, "token_ids": rng.integers(0, 99, 30).tolist()}
        for _ in range(3)
    ]
    log = write_log(tmp_path / "a.jsonl", [*records, {**records[0]}])
    with pytest.raises(DataError, match="2 records repeat one with other token ids") as caught:
        build_index([log], tmp_path / "i", keyring)
    assert "'chatcmpl-1'" in str(caught.value)
    assert not (tmp_path / "i" / "manifest.json").exists()
