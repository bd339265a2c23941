from __future__ import annotations

import hashlib
import json
import random
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provenance.coins.contexts import pack
from provenance.errors import (
    ConfigurationMismatchError,
    DataError,
    LockedError,
    StorageError,
    UsageError,
)
from provenance.served import table
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.served.index_manifest import IndexManifest
from provenance.storage.files import lock_folder


def rows_of(counts):
    """The oracle's dict as sorted (slot, value, packed context, responses)."""
    named = [
        (slot, value, int(pack(np.array([context], dtype=np.uint32))[0]), n)
        for (slot, context, value), n in counts.items()
    ]
    return sorted(named, key=lambda row: (row[0], row[2], row[1]))


def content_hash(rows):
    columns = []
    for place, kind in enumerate(("u1", "<u4", "<i8", "<i4")):
        column = np.array([row[place] for row in rows], dtype=kind)
        columns.append(hashlib.sha256(column.tobytes()).digest())
    return hashlib.sha256(b"".join(columns)).hexdigest()


def read_rows(folder):
    manifest = IndexManifest.load(folder)
    read = pq.read_table(folder / manifest.table)
    names = ("slot", "value", "context", "responses")
    return list(zip(*(read.column(name).to_pylist() for name in names), strict=True))


@pytest.mark.parametrize("width", [1, 2, 3])
def test_index_equals_the_oracle(tmp_path, make_keyring, make_log, oracle, write_log, width):
    keyring = make_keyring(width)
    records = make_log(width, 300)
    expected = rows_of(oracle(records, keyring))
    log = write_log(tmp_path / "a.jsonl", records)
    manifest = build_index([log], tmp_path / "index", keyring)
    assert read_rows(tmp_path / "index") == expected
    assert manifest.content_sha256 == content_hash(expected)
    assert manifest.rows == len(expected)
    assert manifest == IndexManifest.load(tmp_path / "index")
    marked = [r for r in records if r["marked"]]
    assert manifest.responses == 300
    assert manifest.marked_responses == len(marked)
    assert manifest.tokens == sum(len(r["token_ids"]) for r in records)
    assert manifest.slots[2].without_value == sum(
        r["labels"].get("week") not in ("w1", "w2", "w3") for r in marked
    )
    assert manifest.logs[0].sha256 == hashlib.sha256(log.read_bytes()).hexdigest()


def test_content_hash_ignores_batches_order_files_and_threads(
    tmp_path, keyring, make_log, oracle, write_log
):
    records = make_log(7, 200)
    expected = content_hash(rows_of(oracle(records, keyring)))
    shuffled = random.Random(1).sample(records, len(records))
    duplicated = [*shuffled, *shuffled[:30]]
    for number, (rows, cuts, batch, threads) in enumerate(
        [
            (records, 1, 4096, 1),
            (records, 1, 1, 2),
            (shuffled, 1, 7, 2),
            (shuffled, 5, 64, 1),
            (duplicated, 3, 64, 2),
        ]
    ):
        logs = [
            write_log(tmp_path / f"{number}-{cut}.jsonl", rows[cut::cuts]) for cut in range(cuts)
        ]
        manifest = build_index(
            logs, tmp_path / f"index{number}", keyring, batch_rows=batch, threads=threads
        )
        assert manifest.content_sha256 == expected
        assert manifest.duplicates == len(rows) - 200
    tables = {next(tmp_path.glob(f"index{i}/*.parquet")).read_bytes() for i in range(5)}
    assert len(tables) == 1


ids = st.lists(st.integers(0, 3), max_size=12)
record = st.fixed_dictionaries(
    {
        "marked": st.booleans(),
        "labels": st.dictionaries(
            st.sampled_from(["week", "capability"]), st.sampled_from(["w1", "w2", "code"])
        ),
        "token_ids": ids,
        "prompt_token_ids": st.none() | ids,
        "conversation_id": st.none() | st.sampled_from(["a", "b"]),
    }
)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(logs=st.lists(record, min_size=1, max_size=12), batch=st.sampled_from([1, 3, 100]))
def test_index_equals_the_oracle_on_small_logs(tmp_path, keyring, oracle, write_log, logs, batch):
    records = [{"response_id": str(i), **entry} for i, entry in enumerate(logs)]
    expected = rows_of(oracle(records, keyring))
    log = write_log(tmp_path / "h.jsonl", records)
    if expected:
        manifest = build_index([log], tmp_path / "h", keyring, batch_rows=batch)
        assert manifest.content_sha256 == content_hash(expected)
    else:
        with pytest.raises(DataError):
            build_index([log], tmp_path / "h", keyring, batch_rows=batch)


@pytest.fixture(scope="module")
def built(tmp_path_factory, keyring, make_log, write_log):
    folder = tmp_path_factory.mktemp("built")
    log = write_log(folder / "log.jsonl", make_log(3, 400))
    build_index([log], folder / "index", keyring, control_share=1.0)
    return folder / "index"


def test_lookup_equals_the_oracle(built, keyring, make_log, oracle):
    counts = oracle(make_log(3, 400), keyring, 1.0)
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 9, (500, 2)).astype(np.uint32)
    packed = pack(contexts)
    with Index.open(built, keyring.public) as index:
        for slot in range(4):
            expected = sorted(
                (i, value, n)
                for i, context in enumerate(map(tuple, contexts.tolist()))
                for (s, c, value), n in counts.items()
                if s == slot and c == context
            )
            found = index.lookup(slot, packed)
            assert list(zip(*map(np.ndarray.tolist, vars(found).values()), strict=True)) == expected
        control = index.lookup(0, packed)
        assert control.query.tolist() == index.lookup(0, packed).query.tolist()
        assert control.query.size > 0
        for slot in range(4):
            for number, value in enumerate(index.values_served(slot)):
                own = [n for (s, _, v), n in counts.items() if (s, v) == (slot, number)]
                assert (value.contexts, value.responses) == (len(own), sum(own))
        assert json.dumps(index.info())


def test_lookup_of_nothing(built, keyring):
    with Index.open(built, None) as index:
        assert index.lookup(1, np.empty(0, dtype=np.int64)).query.shape == (0,)
        assert index.lookup(1, np.array([-1, 1 << 62])).responses.dtype == np.int32
        with pytest.raises(UsageError):
            index.lookup(4, np.empty(0, dtype=np.int64))
        with pytest.raises(UsageError):
            index.lookup(1, np.zeros((2, 2), dtype=np.int64))
        with pytest.raises(UsageError):
            index.lookup(1, np.zeros(2))


def test_lookup_across_row_groups(tmp_path, monkeypatch, keyring, make_log, oracle, write_log):
    monkeypatch.setattr(table, "_GROUP_ROWS", 3)
    records = make_log(5, 200)
    log = write_log(tmp_path / "a.jsonl", records)
    build_index([log], tmp_path / "i", keyring, control_share=1.0)
    counts = rows_of(oracle(records, keyring, 1.0))
    with Index.open(tmp_path / "i", keyring.public) as index:
        for slot in range(4):
            rows = [row for row in counts if row[0] == slot]
            assert len(rows) > 4
            found = index.lookup(slot, np.array(sorted({row[2] for row in rows})))
            assert found.value.tolist() == [row[1] for row in rows]
            assert found.responses.tolist() == [row[3] for row in rows]


def test_conversation_counts_once_and_prompt_is_skipped(tmp_path, make_keyring, write_log):
    keyring = make_keyring(shares={"global": 1.0, "week": 0.0, "capability": 0.0})
    base = {"marked": True, "token_ids": [1, 2, 3, 4], "labels": {}}
    records = [
        {"response_id": "a", "conversation_id": "c", **base},
        {"response_id": "b", "conversation_id": "c", **base},
        {"response_id": "d", "conversation_id": "e", **base},
        {"response_id": "f", **base},
        {"response_id": "g", **base, "prompt_token_ids": [9, 1, 2]},
        {"response_id": "h", **base, "marked": False},
    ]
    build_index([write_log(tmp_path / "a.jsonl", records)], tmp_path / "i", keyring)
    one, two = pack(np.array([[1, 2], [2, 3]], dtype=np.uint32)).tolist()
    assert read_rows(tmp_path / "i") == [(1, 0, one, 3), (1, 0, two, 4)]


@pytest.mark.parametrize(
    "records",
    [
        [{"response_id": "a", "marked": False, "token_ids": [1, 2, 3, 4]}],
        [{"response_id": "a", "marked": True, "token_ids": [1, 2]}],
    ],
)
def test_nothing_marked_is_an_error(tmp_path, keyring, write_log, records):
    log = write_log(tmp_path / "a.jsonl", records)
    with pytest.raises(DataError, match=r"got 1 responses, [01] of them marked"):
        build_index([log], tmp_path / "i", keyring)
    assert sorted(p.name for p in (tmp_path / "i").iterdir()) == [".lock"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "i"]


def test_errors_of_the_log_pass_through(tmp_path, keyring, make_log, write_log):
    log = write_log(tmp_path / "a.jsonl", make_log(1, 50))
    with log.open("a") as file:
        file.write('{"response_id": NaN}\n')
    with pytest.raises(DataError, match=r"a\.jsonl: line 51: .*NaN"):
        build_index([log], tmp_path / "i", keyring)
    with pytest.raises(StorageError, match=r"missing\.jsonl"):
        build_index([tmp_path / "missing.jsonl"], tmp_path / "i", keyring)
    with pytest.raises(UsageError, match="memory limit"):
        build_index([log], tmp_path / "i", keyring, memory_limit="lots")
    assert not (tmp_path / "i" / "manifest.json").exists()


def test_modes_and_no_litter(built):
    names = sorted(path.name for path in built.iterdir())
    assert names[0] == ".lock"
    assert names[1] == "manifest.json"
    assert len(names) == 3
    assert all(path.stat().st_mode & 0o077 == 0 for path in built.iterdir())
    assert sorted(path.name for path in built.parent.iterdir()) == ["index", "log.jsonl"]


def test_rebuild_replaces_and_another_keyring_is_refused(
    tmp_path, keyring, make_keyring, make_log, write_log
):
    first = write_log(tmp_path / "a.jsonl", make_log(1, 50))
    second = write_log(tmp_path / "b.jsonl", make_log(2, 50))
    build_index([first], tmp_path / "i", keyring)
    with Index.open(tmp_path / "i", keyring.public) as old:
        manifest = build_index([second], tmp_path / "i", keyring)
        rows = sum(old.lookup(s, np.arange(1 << 10)).query.size for s in range(4))
        assert rows >= 0
    assert len(list((tmp_path / "i").glob("*.parquet"))) == 1
    assert IndexManifest.load(tmp_path / "i") == manifest
    other = make_keyring()
    with pytest.raises(ConfigurationMismatchError, match="another keyring"):
        build_index([first], tmp_path / "i", other)
    assert IndexManifest.load(tmp_path / "i") == manifest


def test_open_checks_the_keyring(built, keyring, make_keyring):
    with pytest.raises(ConfigurationMismatchError, match="its keyring is"):
        Index.open(built, make_keyring().public)
    for change in ({"context_width": 3}, {"tokenizer_sha256": "0" * 64}, {"vocabulary_size": 9}):
        with pytest.raises(ConfigurationMismatchError):
            Index.open(built, replace(keyring.public, **change))


def test_open_with_a_grown_keyring(tmp_path, make_keyring, make_log, write_log, monkeypatch):
    keyring = make_keyring()
    log = write_log(tmp_path / "a.jsonl", make_log(1, 50))
    build_index([log], tmp_path / "i", keyring)
    schedule = keyring.public.schedule
    Index.open(tmp_path / "i", replace(keyring.public, schedule=schedule.with_value("week", "w4")))
    slots = [
        replace(slot, values=slot.values[::-1]) if slot.name == "week" else slot
        for slot in schedule.slots
    ]
    changed = replace(keyring.public, schedule=replace(schedule, slots=tuple(slots)))
    with pytest.raises(ConfigurationMismatchError, match="values of slot week"):
        Index.open(tmp_path / "i", changed)


def test_tokenizer_of_another_keyring(tmp_path, keyring, make_log, write_log):
    log = write_log(tmp_path / "a.jsonl", make_log(1, 50))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(ConfigurationMismatchError):
        build_index([log], tmp_path / "i", keyring, tmp_path / "tokenizer.json")


def test_second_writer_is_locked_out(tmp_path, keyring, make_log, write_log):
    log = write_log(tmp_path / "a.jsonl", make_log(1, 50))
    with lock_folder(tmp_path / "i"), pytest.raises(LockedError):
        build_index([log], tmp_path / "i", keyring)


def test_every_flipped_bit_is_found(built, keyring, tmp_path):
    rng = random.Random(3)
    for path in [p for p in built.iterdir() if p.name != ".lock"]:
        content = path.read_bytes()
        for place in [
            0,
            5,
            len(content) - 1,
            len(content) - 6,
            *rng.sample(range(len(content)), 60),
        ]:
            shutil.rmtree(tmp_path / "copy", ignore_errors=True)
            shutil.copytree(built, tmp_path / "copy")
            flipped = bytearray(content)
            flipped[place] ^= 1 << rng.randrange(8)
            (tmp_path / "copy" / path.name).write_bytes(flipped)
            with pytest.raises((DataError, StorageError, ConfigurationMismatchError)) as caught:
                Index.open(tmp_path / "copy", keyring.public, "all")
            assert path.name in str(caught.value)
            assert "\n" not in str(caught.value)


def forge(folder, rows):
    """Write other rows under a manifest whose file hash matches them."""
    manifest = IndexManifest.load(folder)
    columns = [
        pa.array(c, t) for c, t in zip(zip(*rows, strict=True), table.TABLE.types, strict=True)
    ]
    pq.write_table(pa.table(columns, schema=table.TABLE), folder / manifest.table)
    digest = hashlib.sha256((folder / manifest.table).read_bytes()).hexdigest()
    replace(manifest, table_sha256=digest).write(folder)


@pytest.mark.parametrize(
    "rows",
    [
        [(1, 0, 9, 1), (1, 0, 8, 1)],
        [(1, 0, 8, 1), (1, 0, 8, 1)],
        [(2, 1, 8, 1), (2, 0, 8, 1)],
        [(2, 1, 8, 1), (1, 0, 8, 1)],
        [(1, 0, 8, 0)],
        [(1, 0, -8, 1)],
        [(1, 1, 8, 1)],
        [(9, 0, 8, 1)],
        [(1, 0, 8, 1), (2, 0, 8, 1)],
        [(1, 0, 8, 1)],
    ],
)
def test_forged_tables_are_refused(built, keyring, tmp_path, rows):
    shutil.copytree(built, tmp_path / "copy")
    forge(tmp_path / "copy", rows)
    with pytest.raises(DataError, match=r"windows-.*\.parquet"):
        Index.open(tmp_path / "copy", keyring.public, "all")


def test_forged_manifests_are_refused(built, keyring, tmp_path):
    shutil.copytree(built, tmp_path / "copy")
    manifest = IndexManifest.load(built)
    for change in (
        {"table": "../../etc/passwd"},
        {"table": "windows-0.parquet"},
        {"table_sha256": "x"},
        {"rows": "many", "table": None},
    ):
        replace(manifest, **change).write(tmp_path / "copy")
        with pytest.raises(DataError, match=r"manifest\.json"):
            Index.open(tmp_path / "copy", keyring.public, "all")
    for text in ("{}", "[]", "not json", '{"format": "provenance-index", "version": 2}'):
        (tmp_path / "copy" / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=r"manifest\.json"):
            Index.open(tmp_path / "copy", keyring.public, "all")
    with pytest.raises(StorageError, match=r"manifest\.json"):
        Index.open(tmp_path / "nowhere", keyring.public)
    replace(manifest, table=f"windows-{'0' * 16}.parquet").write(tmp_path / "copy")
    with pytest.raises(StorageError, match="windows-0"):
        Index.open(tmp_path / "copy", keyring.public, "all")
