from __future__ import annotations

import hashlib
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from provenance.errors import (
    DataError,
    ProvenanceError,
)
from provenance.keys.tokenizer import read_tokenizer

SIZE = 300


def columns(**changes):
    base = {
        "response_id": pa.array(["a", "b"]),
        "marked": pa.array([True, False]),
        "labels": pa.array([[("week", "w1")], []], pa.map_(pa.string(), pa.string())),
        "token_ids": pa.array([[1, 2, 3], [4]], pa.list_(pa.int64())),
    }
    base.update(changes)
    return pa.table({name: column for name, column in base.items() if column is not None})


BAD_PARQUET = {
    "no response_id": {"response_id": None},
    "no marked": {"marked": None},
    "no token_ids": {"token_ids": None},
    "null response_id": {"response_id": pa.array(["a", None])},
    "empty response_id": {"response_id": pa.array(["a", ""])},
    "long response_id": {"response_id": pa.array(["a", "b" * 2000])},
    "binary response_id": {"response_id": pa.array([b"a", b"b"])},
    "number as response_id": {"response_id": pa.array([1, 2])},
    "marked null": {"marked": pa.array([True, None])},
    "marked integer": {"marked": pa.array([1, 0])},
    "ids null": {"token_ids": pa.array([[1], None], pa.list_(pa.int64()))},
    "id null": {"token_ids": pa.array([[1], [2, None]], pa.list_(pa.int64()))},
    "id negative": {"token_ids": pa.array([[1], [-2]], pa.list_(pa.int8()))},
    "id beyond": {"token_ids": pa.array([[1], [SIZE]], pa.list_(pa.int16()))},
    "id beyond int64": {"token_ids": pa.array([[1], [1 << 63]], pa.list_(pa.uint64()))},
    "float ids": {"token_ids": pa.array([[1.0], [2.0]])},
    "string ids": {"token_ids": pa.array(["1", "2"])},
    "nested ids": {"token_ids": pa.array([[[1]], [[2]]])},
    "flat ids": {"token_ids": pa.array([1, 2])},
    "bad prompt": {"prompt_token_ids": pa.array([None, [SIZE]], pa.list_(pa.int64()))},
    "text number": {"token_ids": None, "text": pa.array([1, 2])},
    "text without tokenizer": {"token_ids": None, "text": pa.array(["a", "b"])},
    "labels numbers": {"labels": pa.array([[("w", 1)], []], pa.map_(pa.string(), pa.int64()))},
    "labels list": {"labels": pa.array([["w1"], []])},
    "labels bad JSON": {"labels": pa.array(["{}", "{"])},
    "labels JSON list": {"labels": pa.array(["{}", "[]"])},
    "labels twice": {
        "labels": pa.array([[], [("w", "1"), ("w", "2")]], pa.map_(pa.string(), pa.string()))
    },
    "label null": {"labels": pa.array([[], [("w", None)]], pa.map_(pa.string(), pa.string()))},
    "struct of numbers": {"labels": pa.array([{"w": 1}, {"w": 2}])},
    "long label": {
        "labels": pa.array([[], [("w", "x" * 2000)]], pa.map_(pa.string(), pa.string()))
    },
    "empty conversation": {"conversation_id": pa.array(["a", ""])},
    "no rows": {
        "response_id": pa.array([], pa.string()),
        "marked": pa.array([], pa.bool_()),
        "labels": None,
        "token_ids": pa.array([], pa.list_(pa.int64())),
    },
}


@pytest.mark.parametrize("name", BAD_PARQUET)
def test_malformed_parquet(tmp_path, name, read):
    path = tmp_path / "bad.parquet"
    pq.write_table(columns(**BAD_PARQUET[name]), path)
    with pytest.raises(DataError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    if name in (
        "null response_id",
        "id null",
        "id negative",
        "id beyond",
        "bad prompt",
        "ids null",
    ):
        assert "row 2" in str(caught.value)


def test_parquet_types(tmp_path, read):
    path = tmp_path / "a.parquet"
    expected, _ = read(written(path, columns()))
    assert expected[0]["token_ids"] == [1, 2, 3]
    assert expected[0]["labels"] == {"week": "w1"}
    for changes in (
        {"response_id": pa.array(["a", "b"], pa.large_string())},
        {"response_id": pa.array(["a", "b"]).dictionary_encode()},
        {"token_ids": pa.array([[1, 2, 3], [4]], pa.large_list(pa.uint8()))},
        {"token_ids": pa.array([[1, 2, 3], [4]], pa.list_(pa.uint64()))},
        {"labels": pa.array([{"week": "w1", "x": None}, {"week": None, "x": None}])},
        {"labels": pa.array(['{"week": "w1"}', None])},
        {"prompt_token_ids": pa.nulls(2), "conversation_id": pa.nulls(2)},
    ):
        assert read(written(path, columns(**changes)))[0] == expected
    times = pa.array([0, None], pa.timestamp("s"))
    rows, found = read(written(path, columns(time=times, labels=None)))
    assert [row["time"] for row in rows] == ["1970-01-01 00:00:00.000", None]
    assert found.files[0].sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def written(path, data, **options):
    pq.write_table(data, path, **options)
    return path


def test_parquet_equals_jsonl(tmp_path, make_log, write_log, tokenizer_path, read):
    records = make_log(0, 100)
    for i in range(0, 100, 7):
        records[i]["text"] = "the cat"
        records[i]["token_ids"] = None
    data = pa.table(
        {
            "response_id": [r["response_id"] for r in records],
            "marked": [r["marked"] for r in records],
            "labels": pa.array(
                [list(r["labels"].items()) for r in records], pa.map_(pa.string(), pa.string())
            ),
            "token_ids": pa.array([r["token_ids"] for r in records], pa.list_(pa.int32())),
            "prompt_token_ids": [r.get("prompt_token_ids") for r in records],
            "conversation_id": [r.get("conversation_id") for r in records],
            "text": [r.get("text") for r in records],
        }
    )
    tokenizer = read_tokenizer(tokenizer_path)
    expected = read(write_log(tmp_path / "a.jsonl", records), tokenizer=tokenizer)
    for rows in (1, 13, 1000):
        path = written(tmp_path / "a.parquet", data, row_group_size=31)
        found = read(path, tokenizer=tokenizer, batch_rows=rows)
        assert found[0] == expected[0]
        assert found[1].tokens == expected[1].tokens


def test_damaged_parquet(tmp_path, read):
    path = tmp_path / "a.parquet"
    content = written(path, columns(), write_page_checksum=True).read_bytes()
    rng = random.Random(0)
    cases = [b"", b"PAR1", content[:-1], content[:-9], content[: len(content) // 2], content[4:]]
    for _ in range(150):
        damaged = bytearray(content)
        damaged[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        cases.append(bytes(damaged))
    messages = []
    for case in cases:
        path.write_bytes(case)
        try:
            read(path)
        except ProvenanceError as error:
            messages.append(str(error))
    assert len(messages) >= 6
    assert all(str(path) in message and "\n" not in message for message in messages)


def test_parquet_bombs(tmp_path, read):
    path = tmp_path / "bomb.parquet"
    offsets = np.array([0, 1 << 25], dtype=np.int32)
    flat = pa.array(np.zeros(1 << 25, dtype=np.uint32))
    data = columns(
        response_id=pa.array(["a"]),
        marked=pa.array([True]),
        labels=None,
        token_ids=pa.ListArray.from_arrays(offsets, flat),
    )
    written(path, data, compression="zstd")
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="must not expand more than 200 times"):
        read(path)
    long = pa.array(["x" * 1_000_000]).dictionary_encode()
    repeated = pa.DictionaryArray.from_arrays(np.zeros(5000, dtype=np.int32), long.dictionary)
    base = {
        "response_id": pa.array([str(i) for i in range(5000)]),
        "marked": pa.array([True] * 5000),
        "token_ids": pa.array([[1]] * 5000),
        "labels": None,
    }
    for name in ("conversation_id", "time", "text"):
        written(path, columns(**{**base, name: repeated}), store_schema=False)
        with pytest.raises(DataError, match=f"{name} must be at most"):
            read(path)
    labels = pa.MapArray.from_arrays(
        np.arange(5001, dtype=np.int32), pa.array(["week"] * 5000), repeated
    )
    written(path, columns(**{**base, "labels": labels}), store_schema=False)
    with pytest.raises(DataError, match="labels must be at most"):
        read(path)
