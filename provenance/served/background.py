"""A served log that is written beside the program that serves: the engine hands a record over.

    log = BackgroundLog(RotatingLog("served/")).start()
    log.append(record)                 # a queue; a thread writes

Serving must not wait for a disk, and must not end with it: `append` never raises. If the queue is
full it waits (back-pressure) for `patience` seconds at most, then drops the record, counts it and
says so. A disk that refuses is asked again while the queue fills. Knows no keys and no serving
stack.
"""

from __future__ import annotations

import logging
import queue
import threading
import time as clock
from collections.abc import Callable, Iterable
from contextlib import suppress
from multiprocessing.util import Finalize
from typing import Any, Final

from provenance.errors import LockedError, ProvenanceError, StorageError, say_briefly
from provenance.served.records import ServedResponse
from provenance.served.writer import Log

_log = logging.getLogger(__name__)

_TICK_SECONDS: Final = 0.05
_RETRY_SECONDS: Final = 1.0
_CLOSING_SECONDS: Final = 30.0


class BackgroundLog:
    """Writes to another log in a thread of its own; safe to share among threads.

    Parameters
    ----------
    log : not opened yet; this object opens and closes it
    capacity : records in the queue before `append` waits
    patience : seconds that `append` waits for room, and that a disk is asked again at the end

    Attributes: written and lost, records so far; waited, seconds that `append` waited for room.

    Cost of `append`: microseconds. Memory: the queue. The thread ends with the process, also with
    one that multiprocessing started; what is queued is written first. A killed process (SIGKILL)
    loses what is queued: hardly ever more than a record, unless the disk is slower than the engine.
    """

    def __init__(self, log: Log, *, capacity: int = 4096, patience: float = 5.0) -> None:
        self.log = log
        self.written = 0
        self.lost = 0
        self.waited = 0.0
        self._patience = patience
        self._queue: queue.Queue[ServedResponse] = queue.Queue(capacity)
        self._ticks: list[Callable[[], None]] = []
        self._ends: list[Callable[[], None]] = []
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="served-log", daemon=True)
        self._lock = threading.Lock()
        self._refused = False
        self._ticked = clock.monotonic()

    def __enter__(self) -> BackgroundLog:
        return self.start()

    def __exit__(self, *_: Any) -> None:
        self.close()

    @property
    def depth(self) -> int:
        """Records that wait in the queue."""
        return self._queue.qsize()

    def start(self) -> BackgroundLog:
        """Open the log and begin; what the log raises when it is opened is raised here."""
        self.log.__enter__()
        self._thread.start()
        Finalize(None, self.close, exitpriority=100)  # processes of multiprocessing run no atexit
        return self

    def on_tick(self, call: Callable[[], None]) -> None:
        """Have something called in the thread twenty times a second."""
        self._ticks.append(call)

    def on_close(self, call: Callable[[], None]) -> None:
        """Have something called in the thread once, before it ends; it may append."""
        self._ends.append(call)

    def append(self, record: ServedResponse) -> None:
        """Hand a record over. Never raises; see the class for a queue that stays full."""
        if threading.current_thread() is self._thread:
            self._write(record)  # from a tick: nobody else would make room
            return
        with suppress(queue.Full):
            self._queue.put_nowait(record)
            return
        begun = clock.monotonic()
        try:
            self._queue.put(record, timeout=self._patience)
        except queue.Full:
            self._lose(record, "the queue is full")
        with self._lock:
            self.waited += clock.monotonic() - begun

    def close(self) -> None:
        """Write what is queued and close the log; a second time does nothing."""
        self._closing.set()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_CLOSING_SECONDS)

    def _run(self) -> None:
        while not self._closing.is_set():
            self._write_next(_TICK_SECONDS)
        _call_all([*self._ticks, *self._ends])
        while self.depth:
            self._write_next(0)
        try:
            self.log.__exit__(None, None, None)
        except ProvenanceError as error:
            _log.error("the served log could not be closed: %s", say_briefly(error))

    def _write_next(self, seconds: float) -> None:
        try:
            record = self._queue.get(timeout=seconds) if seconds else self._queue.get_nowait()
        except queue.Empty:
            record = None
        if record is not None:
            self._write(record)
        if clock.monotonic() - self._ticked > _TICK_SECONDS:
            self._ticked = clock.monotonic()
            _call_all(self._ticks)

    def _write(self, record: ServedResponse) -> None:
        """Append to the log; ask a disk that refuses again, for ever while the engine runs."""
        given_up = clock.monotonic() + self._patience
        while True:
            try:
                self.log.append(record)
            except (StorageError, LockedError) as error:
                if not self._refused:
                    _log.error("the served log cannot be written: %s", say_briefly(error))
                self._refused = True
                if self._closing.wait(_RETRY_SECONDS) and clock.monotonic() > given_up:
                    return self._lose(record, "the disk refuses it")
            except Exception as error:  # noqa: BLE001  a record that no log can hold
                return self._lose(record, say_briefly(error))
            else:
                if self._refused:
                    _log.warning("the served log can be written again")
                self._refused = False
                with self._lock:
                    self.written += 1
                return None

    def _lose(self, record: ServedResponse, why: str) -> None:
        with self._lock:
            self.lost += 1
        _log.error("response %s is not in the served log: %s", record.response_id, why)


def _call_all(calls: Iterable[Callable[[], None]]) -> None:
    for call in calls:
        try:
            call()
        except Exception:  # noqa: BLE001  whatever it is, the records behind it must be written
            _log.exception("a part of the engine's log failed")
