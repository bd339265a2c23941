"""The index that Spark counts is the embedded one, on a cluster of two executors.

`make test-spark` runs this; without pyspark or Java it is skipped.
"""

from __future__ import annotations

import base64
import importlib
import os
import pickle
import shutil
import signal
import sys
import threading
import time
import types
from pathlib import Path

import pyarrow.parquet as pq
import pytest

pytest.importorskip("pyspark")
if shutil.which("java") is None and "JAVA_HOME" not in os.environ:
    pytest.skip("needs Java", allow_module_level=True)

from pyspark import Broadcast
from pyspark.serializers import CloudPickleSerializer
from pyspark.sql import SparkSession

import provenance as pv
from provenance.commands.app import main
from provenance.errors import DataError, StorageError, UsageError
from provenance.keys.schedule import SELECTOR_KEY
from provenance.marks.slots import export_slots
from provenance.served import excerpt, log_parts, spark
from provenance.served.build import build_index
from provenance.served.excerpt import match_index
from provenance.served.spread import COUNTED, Plan, count
from tests.served.logs import write_parquet, write_three

pytestmark = [
    pytest.mark.spark,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

MASTER = "local-cluster[2,1,1024]"
JVM = "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC"


@pytest.fixture(scope="module")
def events(tmp_path_factory):
    return tmp_path_factory.mktemp("events")


@pytest.fixture(scope="module")
def session(events):
    """Two executors with a core each: JVMs of their own, as on a cluster."""
    os.environ["PYSPARK_PYTHON"] = sys.executable
    settings = {
        "spark.ui.enabled": "false",
        "spark.ui.showConsoleProgress": "false",
        "spark.driver.host": "127.0.0.1",
        "spark.driver.bindAddress": "127.0.0.1",
        "spark.driver.extraJavaOptions": JVM,
        "spark.executor.extraJavaOptions": JVM,
        "spark.sql.shuffle.partitions": "4",
        "spark.eventLog.enabled": "true",
        "spark.eventLog.compress": "false",
        "spark.eventLog.dir": events.as_uri(),
    }
    builder = SparkSession.builder.master(MASTER).appName("tests")
    for name, value in settings.items():
        builder = builder.config(name, value)
    session = builder.getOrCreate()
    session.sparkContext.setLogLevel("OFF")
    yield session
    session.stop()


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Many parts and ranges of a small log."""
    monkeypatch.setattr(log_parts, "_PART_VALUES", 1000)
    monkeypatch.setattr(spark, "_LEAST_RANGE", 5000)


def build(logs, folder, keyring, tokenizer=None, **more):
    return pv.build_index(logs, folder, keyring, tokenizer, engine="spark", **more)


def contents(folder):
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def test_equal_bytes_from_jsonl_gzip_and_parquet(
    session, tmp_path, keyring, tokenizer_path, make_log
):
    logs = write_three(tmp_path, make_log(11, 900, 40))
    whole = build_index(logs, tmp_path / "embedded", keyring, tokenizer_path)
    urls = [logs[0].as_uri(), *logs[1:]]
    spread = build(urls, tmp_path / "spark", keyring, tokenizer_path, master=MASTER)
    assert spread == whole
    assert whole.duplicates == 23
    assert whole.retokenised == 10
    assert contents(tmp_path / "spark") == contents(tmp_path / "embedded")
    room = tmp_path / "room"
    room.mkdir()
    again = build(logs, tmp_path / "spark", keyring, tokenizer_path, force=True, spill=room)
    assert again == whole
    assert not list(room.iterdir())
    with pytest.raises(StorageError, match="must not hold an index yet"):
        build(logs, tmp_path / "spark", keyring, tokenizer_path)


def break_token(records):
    records[150]["token_ids"] = [1, 2, 300]


def break_id(records):
    records[150]["response_id"] = ""


def break_draw(records):
    """A coin is said to have drawn the first token, which has no context."""
    records[150] |= {"marked": True, "token_ids": [1, 2, 3], "drawn": bytes([1])}


def break_name(records):
    """One name for two responses."""
    records[150] = {**records[150], "response_id": "r20", "token_ids": [1, 2, 3, 4]}


@pytest.mark.parametrize("wrong", [break_token, break_id, break_draw, break_name])
def test_a_bad_record_is_one_line_and_nothing_is_written(
    session, tmp_path, keyring, make_log, write_log, monkeypatch, capsys, wrong
):
    records = make_log(5, 200, 40)
    wrong(records)
    good = write_log(tmp_path / "a.jsonl", rename(make_log(6, 50, 40)))
    bad = write_parquet(tmp_path / "b.parquet", records)
    with pytest.raises(DataError) as embedded:
        build_index([good, bad], tmp_path / "embedded", keyring)
    called = [
        "provenance",
        "index",
        "build",
        good,
        bad,
        "--keys",
        keyring.home,
        "--engine",
        "spark",
    ]
    called += ["--master", MASTER, "-o", tmp_path / "index"]
    monkeypatch.setattr(sys, "argv", [str(part) for part in called])
    with pytest.raises(SystemExit) as stopped:
        main()
    shown = capsys.readouterr()
    assert (stopped.value.code, shown.out) == (65, "")
    assert shown.err == f"provenance: {embedded.value}\n"
    if wrong in (break_token, break_id):
        assert f"{bad}: row 151" in shown.err
    assert [path.name for path in (tmp_path / "index").iterdir()] == [".lock"]


def rename(records):
    return [{**record, "response_id": f"g{i}"} for i, record in enumerate(records)]


def tokenizer_of(keyring):
    return keyring.public.tokenizer_copy


def test_the_session_that_runs_is_the_master(session, tmp_path, keyring, make_log, write_log):
    log = write_log(tmp_path / "a.jsonl", make_log(5, 50))
    with pytest.raises(UsageError, match="master must be that of the session"):
        build(log, tmp_path / "index", keyring, master="spark://elsewhere:7077")
    with pytest.raises(UsageError, match="Mount it on every machine"):
        build("s3a://bucket/log.jsonl", tmp_path / "index", keyring)
    with pytest.raises(StorageError, match=r"nowhere\.jsonl"):
        build(tmp_path / "nowhere.jsonl", tmp_path / "index", keyring)
    with pytest.raises(DataError, match=r"must hold marked responses longer"):
        build(
            write_log(tmp_path / "b.jsonl", [{**r, "marked": False} for r in make_log(5, 5)]),
            tmp_path / "index",
            keyring,
        )


def test_rows_that_do_not_come_back_are_missed(
    session, tmp_path, keyring, make_log, write_log, monkeypatch
):
    """A mount that shows a file too late must not become an index that lacks it."""
    log = write_log(tmp_path / "a.jsonl", make_log(5, 300, 40))
    real = spark._read_ranges
    monkeypatch.setattr(spark, "_read_ranges", lambda files, wanted: real(files[:-1], wanted))
    with pytest.raises(StorageError, match="must show here what the executors wrote"):
        build(log, tmp_path / "index", keyring)
    assert [p.name for p in (tmp_path / "index").iterdir()] == [".lock"]


def children(parent, word):
    """Processes below this one whose command has a word."""
    found = []
    for path in Path("/proc").iterdir():
        if path.name.isdecimal():
            try:
                fields = (path / "stat").read_text().rpartition(")")[2].split()
                command = (path / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if int(fields[1]) == parent:
                found += [int(path.name)] if word in command else []
                found += children(int(path.name), word)
    return found


@pytest.mark.parametrize("victim", ["CoarseGrainedExecutorBackend", "pyspark.daemon"])
def test_a_killed_executor_changes_nothing(
    session, tmp_path, keyring, make_log, write_log, monkeypatch, victim
):
    records = make_log(7, 1200, 40)
    logs = [write_log(tmp_path / f"{i}.jsonl", records[i::40]) for i in range(40)]
    whole = build_index(logs, tmp_path / "embedded", keyring)
    executors = children(os.getpid(), victim)
    assert executors
    tracker, killed, done = session.sparkContext.statusTracker(), [], threading.Event()

    def kill():
        """Kill one while a stage is half done, in the first job and in a later one."""
        while not done.is_set():
            for stage in tracker.getActiveStageIds():
                info = tracker.getStageInfo(stage)
                if info and info.numTasks == 40 and 4 <= info.numCompletedTasks < 36:
                    if stage in [other for other, _ in killed]:
                        continue
                    alive = children(os.getpid(), victim)
                    if alive:
                        os.kill(alive[0], signal.SIGKILL)
                        killed.append((stage, alive[0]))
            time.sleep(0.02)

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        found = build(logs, tmp_path / "spark", keyring)
    finally:
        done.set()
        thread.join()
    assert killed
    assert not set(children(os.getpid(), victim)) & {pid for _, pid in killed}
    assert found == whole


class Sent:
    """What PySpark pickles for other processes."""

    def __init__(self, monkeypatch):
        self.data = []
        dumps, dump = CloudPickleSerializer.dumps, Broadcast.dump

        def record(serializer, thing):
            self.data.append(dumps(serializer, thing))
            return self.data[-1]

        def record_broadcast(broadcast, value, file):
            self.data.append(pickle.dumps(value))
            return dump(broadcast, value, file)

        monkeypatch.setattr(CloudPickleSerializer, "dumps", record)
        monkeypatch.setattr(Broadcast, "dump", record_broadcast)

    def holds(self, secret):
        return any(find(data, secret) for data in self.data)


def find(data, secret):
    forms = (secret, secret.hex().encode(), base64.b64encode(secret), repr(secret).encode())
    return any(form in data for form in forms)


def secrets_of(keyring):
    """The master secret and every key but the selector's."""
    names = [name for name in keyring.list_held() if name != SELECTOR_KEY]
    return [keyring._master, *(keyring.key(*name).reveal() for name in names)]


def test_no_secret_travels_but_the_selectors(
    session, events, tmp_path, keyring, make_log, write_log, monkeypatch, capfd
):
    log = write_log(tmp_path / "a.jsonl", make_log(5, 100, 40))
    sent = Sent(monkeypatch)
    build(log, tmp_path / "index", keyring, tokenizer_of(keyring))
    selector = keyring.key(*SELECTOR_KEY).reveal()
    assert sent.holds(selector)  # so the recorder sees what travels
    assert len(secrets_of(keyring)) == 8
    for secret in secrets_of(keyring):
        assert not sent.holds(secret)
    job = spark._Job(session, Plan((), 1, 1.0, None), export_slots(keyring))
    job._map(count, COUNTED).explain(extended=True)
    shown = capfd.readouterr()
    places = [shown.out, shown.err, str(session.sparkContext.getConf().getAll()), str(job)]
    files = [path for path in [*events.rglob("*"), *tmp_path.rglob("*")] if path.is_file()]
    assert any(path.stat().st_size > 10_000 for path in events.rglob("*"))
    for data in [*(text.encode() for text in places), *(path.read_bytes() for path in files)]:
        for secret in [selector, *secrets_of(keyring)]:
            assert not find(data, secret)


def test_a_planted_leak_is_found(session, keyring, monkeypatch):
    """The double: slots that carry the master secret, or a key, along."""
    for secret in (keyring._master, keyring.key("week", "w1").reveal()):
        sent = Sent(monkeypatch)
        leaky = types.SimpleNamespace(slots=export_slots(keyring), beside=secret)
        spark._Job(session, Plan((), 1, 1.0, None), leaky)._map(count, COUNTED).schema  # noqa: B018
        assert [sent.holds(one) for one in secrets_of(keyring)].count(True) == 1
        monkeypatch.undo()


def test_an_excerpt_of_a_big_index(session, tmp_path, keyring, make_log, write_log, monkeypatch):
    log = write_log(tmp_path / "a.jsonl", make_log(5, 400, 40))
    whole = build_index([log], tmp_path / "index", keyring)
    rows = pq.read_table(tmp_path / "index" / whole.table)
    contexts = rows.column("context").to_numpy()[::7]
    embedded = match_index(tmp_path / "index", contexts, tmp_path / "embedded", keyring.public)
    monkeypatch.setattr(excerpt, "_GROUPS_AT_ONCE", 1)
    find = spark.match_with_spark(MASTER)
    spread = match_index(tmp_path / "index", contexts, tmp_path / "spark", keyring.public, find)
    assert spread == embedded
    assert len(whole.seal.groups) > 3
    assert 100 < spread.excerpt.rows < whole.rows
    assert contents(tmp_path / "spark") == contents(tmp_path / "embedded")
    path = tmp_path / "index" / whole.table
    content = bytearray(path.read_bytes())
    content[whole.seal.groups[2].start + 20] ^= 1
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"windows-.*\.parquet"):
        match_index(tmp_path / "index", contexts, tmp_path / "x", keyring.public, find)
    with pytest.raises(StorageError, match=r"manifest\.json"):
        pv.match_index(tmp_path / "nowhere", log, tmp_path / "y", keyring.public, engine="spark")


class Homesick:
    """Cannot be made again on an executor: its module is not there."""

    def __reduce__(self):
        return importlib.import_module, ("nowhere_on_executors",)


def test_the_cause_on_an_executor_is_in_the_one_line(session):
    frame = spark._Job(session, Plan((None,), 1, 1.0, None), Homesick())._map(count, COUNTED)
    with pytest.raises(StorageError, match="No module named 'nowhere_on_executors'") as raised:
        spark._run(frame.toArrow)
    assert "\n" not in str(raised.value)
