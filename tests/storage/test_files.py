"""What is written atomically survives a crash: content before its name, and the name itself."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from provenance.served.writer import LogWriter
from provenance.storage.files import write_atomically


@pytest.fixture
def steps(monkeypatch):
    """In order: ("file" or "folder", inode) of every fsync, ("rename", inode) of every rename."""
    done = []
    sync, replace, rename = os.fsync, Path.replace, Path.rename

    def noting_sync(descriptor):
        status = os.fstat(descriptor)
        done.append(("folder" if stat.S_ISDIR(status.st_mode) else "file", status.st_ino))
        sync(descriptor)

    def noting(real):
        def move(self, target):
            done.append(("rename", self.stat().st_ino))
            return real(self, target)

        return move

    monkeypatch.setattr(os, "fsync", noting_sync)
    monkeypatch.setattr(Path, "replace", noting(replace))
    monkeypatch.setattr(Path, "rename", noting(rename))
    return done


def test_an_atomic_write_syncs_the_file_then_renames_it_then_syncs_the_folder(tmp_path, steps):
    path = tmp_path / "verdict.json"
    write_atomically(path, b"{}")
    inode, folder = path.stat().st_ino, tmp_path.stat().st_ino
    assert steps == [("file", inode), ("rename", inode), ("folder", folder)]


@pytest.mark.parametrize("name", ["served.jsonl", "served.parquet"])
def test_a_log_is_synced_before_it_gets_its_name_and_its_folder_after(tmp_path, steps, name):
    with LogWriter(tmp_path / name):
        pass
    inode, folder = (tmp_path / name).stat().st_ino, tmp_path.stat().st_ino
    renamed = steps.index(("rename", inode))
    assert ("file", inode) in steps[:renamed]
    assert ("folder", folder) in steps[renamed:]
