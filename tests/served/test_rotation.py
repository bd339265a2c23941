"""A log as a folder: rotation, several writers, killed writers, and what readers take."""

from __future__ import annotations

import threading

import pytest

from provenance.errors import DataError, LockedError, StorageError, UsageError
from provenance.served.records import ServedResponse
from provenance.served.rotation import RotatingLog, list_log_files
from provenance.served.writer import LogWriter


def _record(name: str, ids: int = 3) -> ServedResponse:
    return ServedResponse(name, marked=True, labels={"week": "w"}, token_ids=range(ids))


def _names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_rotates_by_rows_and_a_reader_of_the_folder_finds_all(tmp_path, read, form):
    with RotatingLog(tmp_path, form=form, maximum_rows=4) as log:
        for i in range(10):
            log.append(_record(f"r{i}"))
    assert _names(tmp_path) == [f"served-0000{i}.{form}" for i in range(3)]
    rows, statistics = read(tmp_path)
    assert [row["response_id"] for row in rows] == [f"r{i}" for i in range(10)]
    assert [file.records for file in statistics.files] == [4, 4, 2]


def test_rotates_by_bytes_and_goes_on_after_the_last_number(tmp_path, read):
    for run in range(2):
        with RotatingLog(tmp_path, maximum_bytes=1000, stem="a") as log:
            for i in range(20):
                log.append(_record(f"{run}-{i}", 40))
    sizes = [path.stat().st_size for path in tmp_path.iterdir()]
    assert len(sizes) > 4
    assert max(sizes) < 1000 + 200
    assert len(read(tmp_path)[0]) == 40


def test_two_writers_and_many_threads_share_a_folder(tmp_path, read):
    with RotatingLog(tmp_path, maximum_rows=7) as one, RotatingLog(tmp_path, maximum_rows=7) as two:

        def work(name, log):
            for i in range(25):
                log.append(_record(f"{name}-{i}"))

        threads = [
            threading.Thread(target=work, args=(n, log)) for n, log in enumerate((one, two) * 2)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    rows, statistics = read(tmp_path)
    assert len({row["response_id"] for row in rows}) == 100
    assert statistics.duplicates == 0


def test_a_folder_leaves_out_what_is_being_written_and_takes_what_a_killed_writer_left(
    tmp_path, read
):
    part = tmp_path / "served-00000.jsonl.part"
    part.write_text('{"response_id":"old","marked":true,"token_ids":[1]}\n{"resp')
    (tmp_path / "served-00001.parquet.part").write_text('{"response_id"')
    with RotatingLog(tmp_path) as log:
        log.append(_record("new"))
        assert _names(tmp_path)[-1] == "served-00002.jsonl.part"
        assert list_log_files([tmp_path]) == [part]
        with pytest.raises(LockedError):
            read(tmp_path / "served-00002.jsonl.part")
    rows, statistics = read(tmp_path)
    assert [row["response_id"] for row in rows] == ["old", "new"]
    assert statistics.torn == 1


def test_a_refused_record_changes_nothing_and_an_unused_log_leaves_nothing(tmp_path, read):
    with RotatingLog(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()
    with RotatingLog(tmp_path / "one") as log:
        log.append(_record("a"))
        with pytest.raises(DataError):
            log.append(ServedResponse("b", marked=True, token_ids=[-1]))
        log.append(_record("c"))
    assert [row["response_id"] for row in read(tmp_path / "one")[0]] == ["a", "c"]


def test_a_file_whose_first_record_was_refused_gets_no_name(tmp_path, read, monkeypatch):
    """An empty file among the others would have the whole folder refused."""

    def full(*_):
        raise StorageError("no space left")

    with RotatingLog(tmp_path / "log", maximum_rows=1) as log:
        log.append(_record("a"))
        with monkeypatch.context() as patch:
            patch.setattr(LogWriter, "append", full)
            with pytest.raises(StorageError):
                log.append(_record("b"))
    assert len(list((tmp_path / "log").iterdir())) == 1
    assert [row["response_id"] for row in read(tmp_path / "log")[0]] == ["a"]


def test_wrong_arguments_and_a_closed_log(tmp_path):
    for arguments in ({"form": "csv"}, {"maximum_rows": 0}, {"maximum_bytes": 0}):
        with pytest.raises(UsageError):
            RotatingLog(tmp_path, **arguments)
    with pytest.raises(UsageError):
        RotatingLog(tmp_path).append(_record("a"))
    with pytest.raises(StorageError):
        list_log_files([tmp_path])
    with LogWriter(tmp_path / "a.jsonl") as log:
        log.write("a", labels={}, marked=True, token_ids=[1])
    assert list_log_files([tmp_path, tmp_path / "x.jsonl"]) == [
        tmp_path / "a.jsonl",
        tmp_path / "x.jsonl",
    ]


@pytest.mark.parametrize("how", ["file removed", "file replaced", "folder moved"])
def test_a_log_that_is_taken_away_says_so_at_the_next_record_and_goes_on(tmp_path, read, how):
    folder = tmp_path / "served"
    with RotatingLog(folder) as log:
        log.append(_record("r0"))
        (part,) = folder.iterdir()
        if how == "folder moved":
            folder.rename(tmp_path / "moved")
        else:
            part.unlink()
        if how == "file replaced":
            part.write_text("")
        with pytest.raises(StorageError, match="taken away, with 1 records"):
            log.append(_record("r1"))
        log.append(_record("r1"))
    assert [row["response_id"] for row in read(folder)[0]] == ["r1"]
    if how == "folder moved":
        assert [row["response_id"] for row in read(tmp_path / "moved")[0]] == ["r0"]


def test_a_single_file_that_is_taken_away_refuses_every_record(tmp_path):
    log = LogWriter(tmp_path / "a.jsonl").__enter__()
    log.append(_record("r0"))
    (tmp_path / "a.jsonl.part").unlink()
    for name in ("r1", "r2"):
        with pytest.raises(StorageError, match="taken away"):
            log.append(_record(name))
    with pytest.raises(StorageError):  # and it can be given no name
        log.__exit__(None, None, None)
