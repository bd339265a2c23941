from __future__ import annotations

import errno
import itertools
import multiprocessing
import os
import signal
import time
from dataclasses import replace
from pathlib import Path
from unittest.mock import ANY

import numpy as np
import pytest

from provenance.errors import (
    DataError,
    LockedError,
    StorageError,
    UsageError,
)
from provenance.served.writer import LogWriter


class TestWriter:
    def test_round_trip(self, tmp_path, read):
        path = tmp_path / "out" / "a.jsonl"
        with LogWriter(path) as log:
            log.write(
                "a",
                labels={"week": "w1"},
                marked=True,
                token_ids=np.array([1, 2, 3], dtype=np.uint32),
                prompt_token_ids=[7],
                text="é😀\n",
                time="now",
                conversation_id="c",
            )
            log.write("b", labels={}, marked=False, token_ids=[])
            assert not path.exists()
        rows, _ = read(path)
        assert rows[0]["token_ids"] == [1, 2, 3]
        assert rows[0]["prompt_token_ids"] == [7]
        assert rows[0]["labels"] == {"week": "w1"}
        assert rows[0]["conversation_id"] == "c"
        assert rows[1]["marked"] is False
        assert path.stat().st_mode & 0o777 == 0o600
        assert [p.name for p in path.parent.iterdir()] == ["a.jsonl"]

    def test_exception_before_the_first_record_leaves_nothing(self, tmp_path):
        with pytest.raises(DataError), LogWriter(tmp_path / "a.jsonl") as log:
            log.write("a", labels={}, marked=True, token_ids=[-1])
        assert list(tmp_path.iterdir()) == []

    def test_exception_keeps_what_was_finished_under_the_parts_name(self, tmp_path, read):
        path = tmp_path / "a.jsonl"
        log = LogWriter(path)
        with pytest.raises(DataError):
            _write_two(log, [1], [-1])
        assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl.part"]
        assert [row["response_id"] for row in read(tmp_path / "a.jsonl.part")[0]] == ["a"]

    def test_second_writer_and_existing_file(self, tmp_path, read):
        path = tmp_path / "a.jsonl"
        with LogWriter(path) as log:
            log.write("a", labels={}, marked=True, token_ids=[1])
            with pytest.raises(LockedError), LogWriter(path):
                pass
            with LogWriter(tmp_path / "b.jsonl") as other:
                other.write("b", labels={}, marked=True, token_ids=[1])
        assert len(read(path)[0]) == 1
        with pytest.raises(StorageError, match="must not exist"), LogWriter(path):
            pass
        assert len(read(path)[0]) == 1
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "b.jsonl"]

    @pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
    def test_killed_writer_leaves_every_finished_record(self, tmp_path, read, name):
        """SIGKILL while another process writes as fast as it can: see the module's one rule."""
        path = tmp_path / name
        part = tmp_path / f"{name}.part"
        child = multiprocessing.get_context("spawn").Process(target=_write_forever, args=(path,))
        child.start()
        deadline = time.monotonic() + 60
        while not part.exists() or part.stat().st_size < 200_000:
            assert child.is_alive()
            assert time.monotonic() < deadline
        with pytest.raises(LockedError):
            read(part)
        os.kill(child.pid, signal.SIGKILL)
        child.join(60)
        assert not path.exists()
        told = int((tmp_path / "told").read_bytes()[-8:])  # what `write` had returned for
        with part.open("ab") as file:
            file.write(b'{"response_id":"torn","marked":true,"token_ids":[1')
        rows, statistics = read(part)
        ids = [row["response_id"] for row in rows]
        assert ids == [f"r{i}" for i in range(len(ids))]
        assert len(ids) >= told
        assert statistics.torn == 1
        with LogWriter(path) as log:
            log.write("new", labels={}, marked=True, token_ids=[1])
        assert log.recovered == tmp_path / "a.recovered-1.jsonl"
        assert [row["response_id"] for row in read(path)[0]] == ["new"]
        assert read(log.recovered) == (rows, replace(statistics, torn=0, files=ANY))
        assert not part.exists()

    def test_a_record_that_ends_in_no_line_break_is_no_record_even_if_it_is_json(
        self, tmp_path, read
    ):
        part = tmp_path / "a.jsonl.part"
        line = '{"response_id":"a","marked":true,"token_ids":[1]}\n'
        part.write_text(line + line.replace('"a"', '"b"').rstrip())
        assert [row["response_id"] for row in read(part)[0]] == ["a"]
        with LogWriter(tmp_path / "a.jsonl"):
            pass
        assert (tmp_path / "a.recovered-1.jsonl").read_text() == line

    def test_a_torn_line_of_a_file_with_a_final_name_is_an_error(self, tmp_path, read):
        path = tmp_path / "a.jsonl"
        path.write_text('{"response_id":"a","marked":true,"token_ids":[1]}\n{"response')
        with pytest.raises(DataError, match="line 2"):
            read(path)

    def test_parquet_holds_the_same_records(self, tmp_path, read):
        for name in ("a.jsonl", "a.parquet"):
            with LogWriter(tmp_path / name) as log:
                for i in range(5000):
                    log.write(
                        f"r{i}",
                        labels={"week": "w", "cohort": "c"} if i % 2 else {},
                        marked=i % 3 == 0,
                        token_ids=range(i % 7),
                        prompt_token_ids=None if i % 5 else [3, 4],
                        time="now",
                    )
        first, second = (read(tmp_path / name) for name in ("a.jsonl", "a.parquet"))
        assert first[0] == second[0]
        assert (tmp_path / "a.parquet").stat().st_mode & 0o777 == 0o600
        assert sorted(p.name for p in tmp_path.iterdir()) == ["a.jsonl", "a.parquet"]

    def test_refusals(self, tmp_path):
        with pytest.raises(UsageError):
            LogWriter(tmp_path / "a.txt")
        with pytest.raises(UsageError):
            LogWriter(tmp_path / "a.jsonl").write("a", labels={}, marked=True, token_ids=[1])
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError), LogWriter(tmp_path / "file" / "a.jsonl"):
            pass
        with LogWriter(tmp_path / "a.jsonl") as log:
            with pytest.raises(UsageError):
                log.write("a", labels={}, marked=True)
            for changes in (
                {"token_ids": [-1]},
                {"token_ids": [1.5]},
                {"token_ids": [[1]]},
                {"token_ids": [1 << 21]},
                {"labels": {"a": 1}},
                {"text": "\ud800"},
                {"conversation_id": ""},
                {"text": "x" * (1 << 24)},
            ):
                with pytest.raises(DataError):
                    log.write("a", **{"labels": {}, "marked": True, "token_ids": [1], **changes})

    def test_full_disk_at_the_end_keeps_the_part(self, tmp_path, read, monkeypatch):
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", _full)
            log = LogWriter(tmp_path / "a.jsonl")
            with pytest.raises(StorageError, match="No space"):
                _write_two(log, [1], [2])
        assert [p.name for p in tmp_path.iterdir()] == ["a.jsonl.part"]
        assert len(read(tmp_path / "a.jsonl.part")[0]) == 2

    def test_full_disk_in_the_middle_of_a_record_leaves_no_piece_of_it(self, tmp_path, read):
        with LogWriter(tmp_path / "a.jsonl") as log:
            log.write("a", labels={}, marked=True, token_ids=[1])
            log._file = _HalfFull(log._file)
            with pytest.raises(StorageError, match="No space"):
                log.write("b", labels={}, marked=True, token_ids=[1] * 100)
            log._file = log._file.file
            log.write("c", labels={}, marked=True, token_ids=[1])
        assert [row["response_id"] for row in read(tmp_path / "a.jsonl")[0]] == ["a", "c"]


class _HalfFull:
    """Takes ten bytes, then the disk is full."""

    def __init__(self, file):
        self.file, self.taken = file, False

    def write(self, data):
        if self.taken:
            _full(0)
        self.taken = True
        return self.file.write(data[:10])

    def __getattr__(self, name):
        return getattr(self.file, name)


def _full(descriptor):
    raise OSError(errno.ENOSPC, "No space left on device")


def _write_two(log: LogWriter, first: list[int], second: list[int]) -> None:
    with log:
        log.write("a", labels={}, marked=True, token_ids=first)
        log.write("b", labels={}, marked=True, token_ids=second)


def _write_forever(path: Path) -> None:
    log = LogWriter(path).__enter__()
    told = os.open(path.with_name("told"), os.O_CREAT | os.O_WRONLY)
    for number in itertools.count():
        log.write(f"r{number}", labels={}, marked=True, token_ids=range(number % 50))
        os.pwrite(told, f"{number + 1:08d}".encode(), 0)
