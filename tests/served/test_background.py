"""The log beside the engine: nothing is lost while it can be written, and nothing raises."""

import logging
import multiprocessing
import os
import threading
import time

import numpy as np
import pytest

from provenance.errors import StorageError
from provenance.served.background import BackgroundLog
from provenance.served.log import read_log
from provenance.served.records import ServedResponse
from provenance.served.rotation import RotatingLog


def _record(number, marked=True):
    return ServedResponse(f"r{number}", marked=marked, token_ids=[1, 2, 3 + number % 50])


def _names(folder):
    reader = read_log([folder], tokenizer=None, vocabulary_size=100)
    return [name for batch in reader for name in batch.column("response_id").to_pylist()]


class Disk:
    """A log whose disk may be slow or refuse."""

    def __init__(self):
        self.records, self.refuses, self.gate = [], False, threading.Event()
        self.gate.set()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.closed = True

    def append(self, record):
        self.gate.wait(20)
        if self.refuses:
            raise StorageError("served: must be writable; got: no space. Free some.")
        self.records.append(record.response_id)


def test_every_record_of_many_threads_is_written_once(tmp_path):
    with BackgroundLog(RotatingLog(tmp_path / "log", maximum_rows=100)) as log:
        workers = [
            threading.Thread(target=lambda part=part: [log.append(_record(i)) for i in part])
            for part in (range(0, 400), range(400, 800), range(800, 1000))
        ]
        [worker.start() for worker in workers]
        [worker.join() for worker in workers]
    assert sorted(_names(tmp_path / "log")) == sorted(f"r{i}" for i in range(1000))
    assert (log.written, log.lost, log.depth) == (1000, 0, 0)


def test_a_full_queue_holds_the_engine_up_then_drops_and_counts(caplog):
    disk = Disk()
    disk.gate.clear()
    log = BackgroundLog(disk, capacity=2, patience=0.2).start()
    begun = time.monotonic()
    for number in range(5):  # one in the thread's hands, two queued, two too many
        log.append(_record(number))
        time.sleep(0.02)
    assert 0.35 < time.monotonic() - begun < 5
    assert log.lost == 2
    assert log.waited > 0.3
    disk.gate.set()
    log.close()
    assert disk.records == ["r0", "r1", "r2"]
    assert caplog.text.count("is not in the served log: the queue is full") == 2


def test_a_disk_that_refuses_is_asked_again_and_nothing_is_lost(caplog, monkeypatch):
    monkeypatch.setattr("provenance.served.background._RETRY_SECONDS", 0.02)
    disk = Disk()
    disk.refuses = True
    log = BackgroundLog(disk).start()
    for number in range(10):
        log.append(_record(number))
    time.sleep(0.2)
    disk.refuses = False
    log.close()
    assert disk.records == [f"r{number}" for number in range(10)]
    assert log.lost == 0
    assert caplog.text.count("cannot be written") == 1
    assert "can be written again" in caplog.text


def test_a_disk_that_never_comes_back_ends_the_process_with_counts(monkeypatch):
    monkeypatch.setattr("provenance.served.background._RETRY_SECONDS", 0.02)
    disk = Disk()
    disk.refuses = True
    log = BackgroundLog(disk, patience=0.1).start()
    for number in range(3):
        log.append(_record(number))
    log.close()
    assert (log.lost, log.written) == (3, 0)


def test_a_record_that_no_log_can_hold_takes_no_other_with_it(tmp_path, caplog):
    bad = ServedResponse("bad", marked=True, token_ids=[1, 2], drawn=np.zeros(2, dtype=np.bool_))
    with BackgroundLog(RotatingLog(tmp_path / "log")) as log:
        for record in (_record(1), bad, _record(2)):
            log.append(record)
    assert _names(tmp_path / "log") == ["r1", "r2"]
    assert (log.lost, log.written) == (1, 2)
    assert "response bad is not in the served log: " in caplog.text


def test_ticks_are_called_and_one_that_fails_stops_nothing(tmp_path, caplog):
    called = []
    log = BackgroundLog(RotatingLog(tmp_path / "log"))
    log.on_tick(lambda: called.append(1))
    log.on_tick(lambda: 1 / 0)
    with log:
        log.append(_record(1))
    assert called
    assert "a part of the engine's log failed" in caplog.text
    assert _names(tmp_path / "log") == ["r1"]


def test_a_folder_that_cannot_be_made_is_an_error_at_the_start(tmp_path):
    (tmp_path / "file").write_text("")
    log = BackgroundLog(RotatingLog(tmp_path / "file/log"))
    with pytest.raises(StorageError, match="must be a folder that can be written"):
        log.start()


def _serve(folder, count, how):
    log = BackgroundLog(RotatingLog(folder)).start()
    for number in range(count):
        log.append(_record(number))
    if how == "kill":
        while log.depth:
            time.sleep(0.01)
        time.sleep(0.05)
        os.kill(os.getpid(), 9)
    if how == "exit":
        raise SystemExit(0)


@pytest.mark.parametrize("how", ["return", "exit", "kill"])
def test_a_process_that_ends_has_written_what_it_was_given(tmp_path, how):
    """As vLLM's engine is: a process of multiprocessing, which runs no atexit."""
    process = multiprocessing.get_context("spawn").Process(
        target=_serve, args=(tmp_path / "log", 300, how)
    )
    process.start()
    process.join(60)
    assert process.exitcode == (-9 if how == "kill" else 0)
    assert _names(tmp_path / "log") == [f"r{number}" for number in range(300)]
    ending = ".part" if how == "kill" else ".jsonl"
    assert all(path.name.endswith(ending) for path in (tmp_path / "log").iterdir())


def test_nothing_is_said_without_a_reason(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    with BackgroundLog(RotatingLog(tmp_path / "log")) as log:
        log.append(_record(1))
    assert not caplog.records


def test_an_engine_whose_log_is_taken_away_begins_another_and_loses_nothing_more(tmp_path, caplog):
    with BackgroundLog(RotatingLog(tmp_path / "log")) as log:
        log.append(_record(0))
        while not log.written:
            time.sleep(0.01)
        (tmp_path / "log").rename(tmp_path / "moved")
        log.append(_record(1))
    assert (log.written, log.lost) == (2, 0)
    assert _names(tmp_path / "log") == ["r1"]
    assert _names(tmp_path / "moved") == ["r0"]
    assert "taken away" in caplog.text
