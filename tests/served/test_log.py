from __future__ import annotations

import errno
import gzip
import hashlib
import json
import os
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tokenizers import Tokenizer

from provenance.errors import (
    DataError,
    StorageError,
    UsageError,
)
from provenance.keys.tokenizer import read_tokenizer
from provenance.served import json_lines, parquet_log
from provenance.served.identifiers import SeenNames, content_hashes
from provenance.served.log import LogStatistics, read_log
from provenance.served.records import READ
from provenance.served.windows import windows
from provenance.storage import lines

SIZE = 300


def line(**changes):
    record = {"response_id": "a", "marked": True, "labels": {"week": "w1"}, "token_ids": [1, 2, 3]}
    record.update(changes)
    return json.dumps({k: v for k, v in record.items() if v != "MISSING"}) + "\n"


GOOD = line().encode()

MALFORMED = {
    "broken line": b'{"response_id": "a", \n',
    "two values": GOOD.strip() + b" {}\n",
    "not an object": b"[1, 2]\n",
    "a number": b"7\n",
    "empty line": b"\n" + GOOD,
    "blank line": b"  \n" + GOOD,
    "empty file": b"",
    "NaN": line(time="X").replace('"X"', "NaN").encode(),
    "Infinity": line(time="X").replace('"X"', "-Infinity").encode(),
    "duplicate key": b'{"response_id": "a", "response_id": "b", "marked": true, "text": "x"}\n',
    "duplicate label": GOOD.replace(b'"week": "w1"', b'"week": "w1", "week": "w2"'),
    "negative id": line(token_ids=[1, -1]).encode(),
    "id beyond vocabulary": line(token_ids=[1, SIZE]).encode(),
    "huge id": line(token_ids=[1, 1 << 70]).encode(),
    "id of 2**63": line(token_ids=[1 << 63, -1]).encode(),
    "float id": line(token_ids=[1, 2.0]).encode(),
    "bool id": line(token_ids=[1, True]).encode(),
    "string id": line(token_ids=["1"]).encode(),
    "null id": line(token_ids=[1, None]).encode(),
    "nested ids": line(token_ids=[[1], [2]]).encode(),
    "ragged ids": line(token_ids=[[1], [2, 3]]).encode(),
    "ids not a list": line(token_ids="1 2 3").encode(),
    "ids an object": line(token_ids={"1": 2}).encode(),
    "bad prompt ids": line(prompt_token_ids=[SIZE]).encode(),
    "not UTF-8": GOOD.replace(b"w1", b"\xff\xfe"),
    "UTF-16": GOOD.decode().encode("utf-16"),
    "byte order mark": b"\xef\xbb\xbf" + GOOD,
    "lone surrogate": GOOD.replace(b"w1", b"\\ud800"),
    "deep nesting": b"[" * 100_000 + b"\n",
    "deep in a field": b'{"x": ' + b"[" * 100_000 + b"\n",
    "no response_id": line(response_id="MISSING").encode(),
    "null response_id": line(response_id=None).encode(),
    "number as response_id": line(response_id=5).encode(),
    "empty response_id": line(response_id="").encode(),
    "long response_id": line(response_id="a" * 2000).encode(),
    "no text nor ids": line(token_ids="MISSING").encode(),
    "text a list": line(text=["a"], token_ids="MISSING").encode(),
    "text without tokenizer": line(text="the cat", token_ids="MISSING").encode(),
    "no marked": line(marked="MISSING").encode(),
    "marked a number": line(marked=1).encode(),
    "marked a string": line(marked="true").encode(),
    "labels a list": line(labels=[["week", "w1"]]).encode(),
    "labels an empty list": line(labels=[]).encode(),
    "labels a string": line(labels="week=w1").encode(),
    "label a number": line(labels={"week": 17}).encode(),
    "label null": line(labels={"week": None}).encode(),
    "label an object": line(labels={"week": {}}).encode(),
    "long label": line(labels={"week": "w" * 2000}).encode(),
    "many labels": line(labels={str(i): "x" for i in range(300)}).encode(),
    "empty conversation": line(conversation_id="").encode(),
    "conversation a number": line(conversation_id=4).encode(),
    "time a number": line(time=1.5e9).encode(),
    "NUL bytes": b"\0" * 100 + b"\n",
    "integer of 5000 digits": GOOD.replace(b"[1,", b"[" + b"1" * 5000 + b","),
}


@pytest.mark.parametrize("name", MALFORMED)
def test_malformed_jsonl(tmp_path, name, read):
    path = tmp_path / "bad.jsonl"
    path.write_bytes(MALFORMED[name])
    with pytest.raises(DataError) as caught:
        read(path)
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 700
    if name != "empty file":
        assert f"{path}: line 1" in message


def test_the_line_number_is_right(tmp_path, read):
    path = tmp_path / "bad.jsonl"
    lines = [line(response_id=str(i)) for i in range(10)]
    path.write_text("".join(lines) + line(token_ids=[SIZE]))
    for batch_rows in (1, 4, 100):
        with pytest.raises(DataError, match="line 11: token_ids"):
            read(path, batch_rows=batch_rows)


def test_a_line_has_a_limit(tmp_path, monkeypatch, read):
    monkeypatch.setattr("provenance.storage.lines.MAXIMUM_LINE", 1000)
    path = tmp_path / "bad.jsonl"
    path.write_text(line() + line(time="x" * 1000))
    with pytest.raises(DataError, match="line 2: must be at most 1000 bytes"):
        read(path)
    monkeypatch.setattr(json_lines, "MAXIMUM_TOKENS", 3)
    path.write_text(line(token_ids=[1, 2, 3, 4]))
    with pytest.raises(DataError, match="line 1: token_ids: must be at most 3"):
        read(path)


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_broken_compression(tmp_path, ending, read):
    content = "".join(line(response_id=str(i)) for i in range(2000)).encode()
    packed = pa.compress(content, {"gz": "gzip", "zst": "zstd"}[ending], asbytes=True)
    path = tmp_path / f"bad.jsonl.{ending}"
    middle = len(packed) // 2
    flipped = bytes([*packed[:middle], packed[middle] ^ 0x55, *packed[middle + 1 :]])
    cases = [packed[:-6], packed[: len(packed) // 3], packed[:3], b"", content, packed + b"garbage"]
    if ending == "gz":
        cases.append(flipped)
    for case in cases:
        path.write_bytes(case)
        with pytest.raises(DataError, match=r"bad\.jsonl"):
            read(path)
    path.write_bytes(packed)
    rows, found = read(path)
    assert len(rows) == 2000
    assert found.files[0].sha256 == hashlib.sha256(packed).hexdigest()
    path.write_bytes(packed + packed)
    assert read(path)[1].duplicates == 2000


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_bombs(tmp_path, ending, read):
    path = tmp_path / f"bomb.jsonl.{ending}"
    one = (line()[:-2] + ',"x":"' + "0" * 1_000_000 + '"}\n').encode()
    with pa.CompressedOutputStream(str(path), {"gz": "gzip", "zst": "zstd"}[ending]) as file:
        for _ in range(80):
            file.write(one)
    assert path.stat().st_size < 200_000
    with pytest.raises(DataError, match="must not expand more than 200 times"):
        read(path)
    with pa.CompressedOutputStream(str(path), {"gz": "gzip", "zst": "zstd"}[ending]) as file:
        file.write(b" " * (1 << 26))
    with pytest.raises(DataError, match="line 1: must be at most"):
        read(path)


def test_files_that_are_none(tmp_path, read):
    with pytest.raises(UsageError):
        read()
    (tmp_path / "a.csv").write_text("x")
    with pytest.raises(DataError, match=r"a\.csv: must end in \.jsonl"):
        read(tmp_path / "a.csv")
    (tmp_path / "a.json").write_text(line())
    with pytest.raises(DataError, match="must end in"):
        read(tmp_path / "a.json")
    with pytest.raises(StorageError, match="missing"):
        read(tmp_path / "missing.jsonl")
    with pytest.raises(StorageError, match="missing"):
        read(tmp_path / "missing.parquet")
    (tmp_path / "d.jsonl").mkdir()
    with pytest.raises(StorageError, match="must hold files"):
        read(tmp_path / "d.jsonl")
    os.mkfifo(tmp_path / "f.jsonl")
    with pytest.raises(StorageError, match="regular file"):
        read(tmp_path / "f.jsonl")


def test_a_failing_disk_is_a_storage_error(tmp_path, monkeypatch, read):
    class Failing(lines._HashedFile):
        def read(self, size=-1):
            if self.count:
                self._file = self
            return super().read(size) if not self.count else self.fail()

        def fail(self):
            raise lines.unreadable(self.path, OSError(errno.EIO, "Input/output error"))

    monkeypatch.setattr(lines, "_HashedFile", Failing)
    content = os.urandom(3_000_000).hex().encode()
    for name, data in {
        "a.jsonl": GOOD * 100_000,
        "a.jsonl.gz": gzip.compress(content, 1),
        "a.jsonl.zst": pa.compress(content, "zstd", asbytes=True),
    }.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(StorageError, match="Input/output"):
            read(tmp_path / name)


def test_fields(tmp_path, read):
    path = tmp_path / "a.jsonl"
    path.write_text(
        line(extra={"a": [1.5]}, time="2026-04-20T10:00:00Z", prompt_token_ids=[4])
        + line(response_id="b", labels=None, conversation_id="c", token_ids=[], text="ignored")
        + line(response_id="ü€😀", labels="MISSING", prompt_token_ids=[])[:-1]
    )
    rows, found = read(path)
    assert rows[0] == {
        "response_id": "a",
        "marked": True,
        "labels": {"week": "w1"},
        "token_ids": [1, 2, 3],
        "prompt_token_ids": [4],
        "conversation_id": None,
        "time": "2026-04-20T10:00:00Z",
        "drawn": None,
        "finish": None,
        "whole": False,
    }
    assert rows[1]["labels"] == {}
    assert rows[1]["token_ids"] == []
    assert rows[1]["conversation_id"] == "c"
    assert rows[1]["prompt_token_ids"] is None
    assert rows[2]["response_id"] == "ü€😀"
    assert rows[2]["prompt_token_ids"] == []
    assert found.empty == 1
    assert (found.responses, found.marked, found.unmarked, found.tokens) == (3, 3, 0, 6)


def test_duplicates_count_once_across_files_and_batches(tmp_path, read):
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text("".join(line(response_id=str(i % 7), token_ids=[i]) for i in range(10)))
    second.write_text("".join(line(response_id=str(i), token_ids=[99]) for i in range(5, 15)))
    for batch_rows in (1, 3, 100):
        rows, found = read(first, second, batch_rows=batch_rows)
        assert {row["response_id"]: row["token_ids"] for row in rows} == {
            str(i): [i] if i < 7 else [99] for i in range(15)
        }
        assert len(rows) == found.responses == found.tokens == 15
        assert found.duplicates == 5
        assert found.duplicate_ids == ("0", "1", "2", "5", "6")
        assert [(log.name, log.records) for log in found.files] == [
            ("a.jsonl", 10),
            ("b.jsonl", 10),
        ]


def test_seen_names_equals_a_dictionary():
    rng, seen, known = random.Random(0), SeenNames(), {}
    for _ in range(200):
        names = [str(rng.randrange(3000)) for _ in range(rng.randrange(60))]
        contents = [rng.randrange(2) for _ in names]
        new, conflicting = [], []
        for name, content in zip(names, contents, strict=True):
            new.append(name not in known)
            conflicting.append(known.setdefault(name, content) != content)
        found = seen.add(names, np.array(contents, dtype=np.int64))
        assert [mask.tolist() for mask in found] == [new, conflicting]


def test_contents_are_told_apart_wherever_they_stand():
    lists = [[], [0], [0, 0], [1, 2], [2, 1], [1, 2, 0], [5, 1, 2]]
    hashes = {}
    for order in (lists, lists[::-1], [[9, 9, 9], *lists]):
        values = np.array([i for part in order for i in part], dtype=np.uint32)
        found = content_hashes(values, np.array([len(part) for part in order], dtype=np.int64))
        for part, value in zip(order, found.tolist(), strict=True):
            assert hashes.setdefault(tuple(part), value) == value
    assert len(set(hashes.values())) == len(hashes)


def test_other_ids_under_one_name_are_a_conflict_and_copies_are_not(tmp_path, read):
    copies = line(token_ids=[1, 2, 3]) * 2
    (tmp_path / "a.jsonl").write_text(copies)
    _, found = read(tmp_path / "a.jsonl")
    assert (found.duplicates, found.conflicts, found.conflict_ids) == (1, 0, ())
    others = line(token_ids=[1, 2, 4]) + line(token_ids=[1, 2]) + line(response_id="b")
    (tmp_path / "b.jsonl").write_text(others)
    _, found = read(tmp_path / "a.jsonl", tmp_path / "b.jsonl", batch_rows=1)
    assert (found.duplicates, found.conflicts, found.conflict_ids) == (3, 2, ("a", "a"))


def test_text_is_tokenised(tmp_path, tokenizer_path, read):
    tokenizer = read_tokenizer(tokenizer_path)
    path = tmp_path / "a.jsonl"
    path.write_text(
        line(token_ids=None, text="the cat sat")
        + line(response_id="b", token_ids=[5])
        + line(response_id="c", token_ids="MISSING", text="")
        + line(response_id="a", token_ids=None, text="dropped")
        + line(response_id="d", token_ids=None, text="the dog\u00e9")
    )
    rows, found = read(path, tokenizer=tokenizer)
    assert [tokenizer.decode(row["token_ids"]) for row in (rows[0], rows[3])] == [
        "the cat sat",
        "the dogé",
    ]
    assert [row["token_ids"] for row in rows[1:3]] == [[5], []]
    assert (found.retokenised, found.empty, found.duplicates) == (3, 1, 1)
    with pytest.raises(DataError, match="line 1: token ids must be 0"):
        read(path, tokenizer=tokenizer, size=20)
    cut = Tokenizer.from_file(str(tokenizer_path))
    cut.enable_truncation(2)
    cut.enable_padding(length=50)
    assert read(path, tokenizer=cut)[0] == rows
    assert cut.truncation["max_length"] == 2


def test_bad_tokenizer_files(tmp_path, tokenizer_path):
    bad = json.loads(tokenizer_path.read_text())
    bad["pre_tokenizer"] = {
        "type": "Split",
        "pattern": {"Regex": "(" * 5},
        "behavior": "Isolated",
        "invert": False,
    }
    for content in ("", "{}", "[]", json.dumps(bad)):
        (tmp_path / "tokenizer.json").write_text(content)
        with pytest.raises(DataError, match=r"tokenizer\.json"):
            read_tokenizer(tmp_path / "tokenizer.json")


def test_batches_are_small(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAXIMUM_VALUES", 100)
    monkeypatch.setattr(parquet_log, "MAXIMUM_VALUES", 100)
    ids = [[1] * 40] * 20
    (tmp_path / "a.jsonl").write_text(
        "".join(line(response_id=str(i), token_ids=part) for i, part in enumerate(ids))
    )
    names = [str(i) for i in range(20)]
    data = pa.table({"response_id": names, "marked": [True] * 20, "token_ids": ids})
    pq.write_table(data, tmp_path / "a.parquet")
    for name, most in (("a.jsonl", 3), ("a.parquet", 2)):
        batches = list(read_log([tmp_path / name], tokenizer=None, vocabulary_size=SIZE))
        assert max(batch.num_rows for batch in batches) == most
        assert all(batch.schema.equals(READ) for batch in batches)


def test_arguments(tmp_path, read):
    for changes in ({"batch_rows": 0}, {"size": 0}, {"size": 1 << 30}):
        with pytest.raises(UsageError):
            read(tmp_path / "a.jsonl", **changes)
    assert read_log([tmp_path / "a.jsonl"], tokenizer=None, vocabulary_size=9).statistics == (
        LogStatistics()
    )


def test_windows_of_a_sliced_batch(tmp_path, keyring, make_log, write_log):
    path = write_log(tmp_path / "a.jsonl", make_log(11, 60))
    (batch,) = read_log([path], tokenizer=None, vocabulary_size=SIZE)
    whole = windows(batch, keyring).to_pylist()
    parts = [
        row for i in range(0, 60, 7) for row in windows(batch.slice(i, 7), keyring).to_pylist()
    ]
    assert sorted(map(str, whole)) == sorted(map(str, parts))
    assert windows(batch.slice(0, 0), keyring).num_rows == 0


@pytest.mark.parametrize(
    ("start", "name"),
    [
        (b"PAR1\x15", "a Parquet file"),
        (b"\x1f\x8b\x08\x00", "a gzip file"),
        (b"PK\x03\x04\x14", "a zip archive"),
        (b"\xff\xfe{\x00", "text in UTF-16"),
    ],
)
def test_a_log_of_another_format_is_named(tmp_path, start, name):
    (tmp_path / "log.jsonl").write_bytes(start + b"\n" * 9)
    with pytest.raises(DataError, match=f"this is {name}") as caught:
        list(read_log([tmp_path / "log.jsonl"], tokenizer=None, vocabulary_size=SIZE))
    assert "codec" not in str(caught.value)
