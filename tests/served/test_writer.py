from __future__ import annotations

import errno
import multiprocessing
import os
from pathlib import Path

import numpy as np
import pytest

from provenance.errors import (
    DataError,
    LockedError,
    StorageError,
    UsageError,
)
from provenance.served.log import LogWriter


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

    def test_exception_leaves_nothing(self, tmp_path):
        with pytest.raises(DataError), LogWriter(tmp_path / "a.jsonl") as log:
            log.write("a", labels={}, marked=True, token_ids=[-1])
        assert list(tmp_path.iterdir()) == []

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

    def test_killed_writer_leaves_no_log(self, tmp_path, read):
        path = tmp_path / "a.jsonl"
        child = multiprocessing.get_context("spawn").Process(target=_write_and_die, args=(path,))
        child.start()
        child.join(60)
        assert child.exitcode == 9
        assert not path.exists()
        with LogWriter(path) as log:
            log.write("new", labels={}, marked=True, token_ids=[1])
        assert [row["response_id"] for row in read(path)[0]] == ["new"]

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

    def test_full_disk(self, tmp_path, monkeypatch):
        def full(descriptor):
            raise OSError(errno.ENOSPC, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StorageError, match="No space"), LogWriter(tmp_path / "a.jsonl") as log:
            log.write("a", labels={}, marked=True, token_ids=[1])
        assert list(tmp_path.iterdir()) == []


def _write_and_die(path: Path) -> None:
    log = LogWriter(path).__enter__()
    log.write("old", labels={}, marked=True, token_ids=[1])
    log._file.flush()
    os._exit(9)
