"""What is no regular file is refused in a line, and never waited for; small files take little."""

import os
import resource
from pathlib import Path

import pytest

from provenance.errors import StorageError
from provenance.storage.chain import read_links
from provenance.storage.files import lock_folder, read_bytes, read_json, sha256_of_file
from provenance.storage.lines import LineReader, read_start
from provenance.storage.shapes.containers import check_format

READERS = {
    "bytes": read_bytes,
    "json": read_json,
    "hash": sha256_of_file,
    "lines": lambda path: list(LineReader(path)),
    "start": read_start,
    "chain": lambda path: list(read_links(path)),
    "format": check_format,
}


@pytest.mark.parametrize("name", READERS)
def test_a_pipe_a_device_and_a_folder_are_refused_at_once(tmp_path, name):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    for path, says in ((pipe, "a pipe or a device"), (os.devnull, "a pipe or a device"),
                       (tmp_path, "directory")):  # fmt: skip
        with pytest.raises(StorageError, match=says) as caught:
            READERS[name](Path(path))
        assert "\n" not in str(caught.value)


def test_a_limit_takes_no_memory_of_its_own(tmp_path):
    """A document of some bytes is read where 4 GiB, its limit, could not be had."""
    (tmp_path / "a.json").write_bytes(b"[1]")
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int((tmp_path / "a.json").stat().st_size)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * os.sysconf("SC_PAGE_SIZE") + (1 << 28), hard))
    try:
        assert len(read_bytes(tmp_path / "a.json", 1 << 32)) == used
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def test_a_lock_that_is_a_link_creates_nothing(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/.lock").symlink_to(tmp_path / "made")
    with pytest.raises(StorageError), lock_folder(tmp_path / "folder"):
        pass
    assert not (tmp_path / "made").exists()
