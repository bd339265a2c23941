"""An index in parts: the same as in one piece, also after a kill, and where conversations span."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import signal
from collections import namedtuple

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provenance.coins.contexts import pack
from provenance.errors import DataError, StorageError
from provenance.keys.keyring import Keyring, SchemeSpecification, create_keyring
from provenance.keys.schedule import Schedule
from provenance.served import build, counted_log, merging, part_files, spanning, workplace
from provenance.served.build import build_index, merge_indexes
from provenance.served.counted_log import Sizes
from provenance.served.packing import Packing
from provenance.served.sorted_counts import Run, add_runs, count_numbers
from tests.served.test_index import content_hash, read_rows, rows_of


@pytest.fixture
def small(monkeypatch):
    """Chunks of 40 windows, parts of 60 rows, blocks of 8."""

    def shrink(chunk=40, rows=60, threads=2):
        sizes = Sizes(chunk, rows, threads)
        monkeypatch.setattr(build.Sizes, "of", classmethod(lambda *_: sizes))
        monkeypatch.setattr(merging, "_BLOCK", 8)

    return shrink


@pytest.fixture
def keep_spill(monkeypatch):
    """The names of the parts that were written."""
    names = []
    real = part_files.PartFiles.save

    def save(self, number, part, run):
        saved = real(self, number, part, run)
        names.append(saved.table.name)
        return saved

    monkeypatch.setattr(part_files.PartFiles, "save", save)
    return names


@pytest.mark.parametrize("conversations", [0, 3, 40])
@pytest.mark.parametrize("threads", [1, 2])
def test_parts_equal_one_piece(
    tmp_path, keyring, make_log, write_log, oracle, small, keep_spill, conversations, threads
):
    """Conversations of turns that stand side by side, and ones scattered over the whole log."""
    records = make_log(11, 200)
    for number, record in enumerate(records):
        record.pop("conversation_id", None)
        if conversations == 3:
            record["conversation_id"] = f"c{number // 3}"
        elif conversations:
            record["conversation_id"] = f"c{number % conversations}"
    log = write_log(tmp_path / "a.jsonl", records)
    whole = build_index([log], tmp_path / "whole", keyring, batch_rows=7)
    assert not keep_spill
    small(threads=threads)
    parts = build_index([log], tmp_path / "parts", keyring, batch_rows=7)
    assert len(keep_spill) > 3
    assert parts == whole
    assert parts.content_sha256 == content_hash(rows_of(oracle(records, keyring)))
    bytes_of = [
        next((tmp_path / name).glob("*.parquet")).read_bytes() for name in ("whole", "parts")
    ]
    assert bytes_of[0] == bytes_of[1]
    assert sorted(path.name for path in (tmp_path / "parts").iterdir())[0] == ".lock"
    assert not list((tmp_path / "parts").glob(".spill*"))


def test_a_build_that_forgets_spanning_conversations_differs(
    tmp_path, keyring, make_log, write_log, small, monkeypatch
):
    """The double: what a conversation reached in two chunks stays counted twice."""
    records = make_log(11, 200)
    for number, record in enumerate(records):
        record["conversation_id"] = f"c{number % 40}"
    log = write_log(tmp_path / "a.jsonl", records)
    whole = build_index([log], tmp_path / "whole", keyring, batch_rows=7)
    small()
    monkeypatch.setattr(counted_log, "find_spanning", lambda _: np.empty(0, dtype=np.int64))
    wrong = build_index([log], tmp_path / "wrong", keyring, batch_rows=7)
    assert wrong.content_sha256 != whole.content_sha256


def test_spanning_conversations_in_buckets_and_rounds(
    tmp_path, keyring, make_log, write_log, small, monkeypatch
):
    records = make_log(12, 150)
    log = write_log(tmp_path / "a.jsonl", records)
    whole = build_index([log], tmp_path / "whole", keyring, batch_rows=5)
    small(chunk=20, rows=25)
    monkeypatch.setattr(spanning, "_BUCKET_TOKENS", 100)
    monkeypatch.setattr(spanning, "_ROUND_BYTES", 1000)
    monkeypatch.setattr(counted_log, "_MOST_SOURCES", 3)
    assert build_index([log], tmp_path / "parts", keyring, batch_rows=5) == whole


def test_a_log_that_changes_between_two_readings_is_refused(
    tmp_path, keyring, make_log, write_log, small, monkeypatch
):
    records = make_log(12, 150)
    log = write_log(tmp_path / "a.jsonl", records)
    small()
    real = counted_log.find_excess

    def change(*arguments):
        write_log(log, records[1:])
        return real(*arguments)

    monkeypatch.setattr(counted_log, "find_excess", change)
    with pytest.raises(DataError, match=r"a\.jsonl: must not change while it is read"):
        build_index([log], tmp_path / "i", keyring, batch_rows=5)
    assert [path.name for path in (tmp_path / "i").iterdir()] == [".lock"]


def _build_and_die(log, folder, keys, after):
    """Kill the process itself once `after` parts are on disk."""
    keyring = Keyring.load(keys).unlock(keys)
    counted = Sizes(40, 60, 2)
    build.Sizes.of = classmethod(lambda *_: counted)
    real, saved = part_files.PartFiles.save, []

    def save(self, *arguments):
        part = real(self, *arguments)
        saved.append(part)
        if len(saved) == after:
            os.kill(os.getpid(), signal.SIGKILL)
        return part

    part_files.PartFiles.save = save
    build_index([log], folder, keyring, batch_rows=7)


@pytest.fixture(scope="module")
def killed(tmp_path_factory, tokenizer_path, make_log, write_log):
    """(log, keys, folder) of a build that was killed after its second part."""
    folder = tmp_path_factory.mktemp("killed")
    schedule = Schedule.from_shares({"global": 0.3, "week": 0.2}, {"week": ["w1", "w2", "w3"]})
    create_keyring(folder / "keys", tokenizer_path, 300, SchemeSpecification("gumbel"), schedule)
    log = write_log(folder / "a.jsonl", make_log(13, 200))
    spawn = multiprocessing.get_context("spawn")
    child = spawn.Process(target=_build_and_die, args=(log, folder / "i", folder / "keys", 2))
    child.start()
    child.join(120)
    assert child.exitcode == -signal.SIGKILL
    return folder


def _spilled(folder):
    return sorted(path.name for path in (folder / "i" / ".spill").glob("*.parquet"))


def test_a_killed_build_goes_on_at_its_last_part(tmp_path, killed, small, keep_spill):
    folder = shutil.copytree(killed, tmp_path / "copy")
    keyring = Keyring.load(folder / "keys").unlock(folder / "keys")
    before = _spilled(folder)
    assert len(before) == 2
    assert (folder / "i" / ".spill").stat().st_mode & 0o077 == 0
    assert not (folder / "i" / "manifest.json").exists()
    whole = build_index([folder / "a.jsonl"], folder / "whole", keyring, batch_rows=7)
    small()
    resumed = build_index([folder / "a.jsonl"], folder / "i", keyring, batch_rows=7)
    assert keep_spill
    assert not set(keep_spill) & set(before)
    assert resumed == whole
    assert not (folder / "i" / ".spill").exists()
    # and once more, with nothing left of before: the same again
    again = build_index([folder / "a.jsonl"], folder / "i", keyring, batch_rows=7)
    assert again == resumed
    assert set(before) < set(keep_spill)


def test_parts_of_another_log_or_keyring_are_not_used(
    tmp_path, killed, small, keep_spill, make_log, write_log, keyring
):
    folder = shutil.copytree(killed, tmp_path / "copy")
    own = Keyring.load(folder / "keys").unlock(folder / "keys")
    before = _spilled(folder)
    records = make_log(13, 200)
    records[-150]["token_ids"] = [5, 6, 7, 8] * 4
    log = write_log(folder / "a.jsonl", records)
    whole = build_index([log], folder / "whole", own, batch_rows=7)
    small()
    assert build_index([log], folder / "i", own, batch_rows=7) == whole
    assert set(keep_spill) & set(before) != set(before)
    keep_spill.clear()
    shutil.copytree(killed / "i" / ".spill", tmp_path / "other" / ".spill")
    expected = build_index([killed / "a.jsonl"], tmp_path / "expected", keyring, batch_rows=7)
    found = build_index([killed / "a.jsonl"], tmp_path / "other", keyring, batch_rows=7)
    assert found == expected


@pytest.mark.parametrize("harm", ["notes", "gap", "shorter"])
def test_broken_parts_are_counted_again(tmp_path, killed, small, harm, make_log, write_log):
    folder = shutil.copytree(killed, tmp_path / "copy")
    own = Keyring.load(folder / "keys").unlock(folder / "keys")
    names = _spilled(folder)
    log = folder / "a.jsonl"
    if harm == "notes":
        (folder / "i" / ".spill" / names[1]).with_suffix(".npz").write_bytes(b"PK")
    elif harm == "gap":
        (folder / "i" / ".spill" / names[0]).unlink()
    else:
        write_log(log, make_log(13, 200)[:20])
    whole = build_index([log], folder / "whole", own, batch_rows=7)
    small()
    assert build_index([log], folder / "i", own, batch_rows=7) == whole


def test_interrupted_work_is_kept_and_refused_work_is_not(tmp_path, killed, small, monkeypatch):
    own = Keyring.load(killed / "keys").unlock(killed / "keys")
    small()
    real = part_files.PartFiles.save

    def interrupt(self, number, part, run):
        real(self, number, part, run)
        raise KeyboardInterrupt

    monkeypatch.setattr(part_files.PartFiles, "save", interrupt)
    with pytest.raises(KeyboardInterrupt):
        build_index([killed / "a.jsonl"], tmp_path / "i", own, batch_rows=7)
    assert len(_spilled(tmp_path)) == 1


usage = namedtuple("usage", "total used free")


def test_too_little_room_is_said_before_the_work(tmp_path, killed, small, monkeypatch):
    own = Keyring.load(killed / "keys").unlock(killed / "keys")
    small()
    monkeypatch.setattr(workplace.shutil, "disk_usage", lambda _: usage(1000, 900, 100))
    with pytest.raises(
        StorageError, match=r"room for about .* there is 100 bytes.*--spill"
    ) as found:
        build_index([killed / "a.jsonl"], tmp_path / "i", own, batch_rows=7)
    assert "\n" not in str(found.value)
    assert [path.name for path in (tmp_path / "i").iterdir()] == [".lock"]


def test_spill_is_a_choice(tmp_path, killed, small, monkeypatch):
    own = Keyring.load(killed / "keys").unlock(killed / "keys")
    small()
    (tmp_path / "big").mkdir()
    places = []
    real = part_files.PartFiles.save

    def save(self, number, part, run):
        saved = real(self, number, part, run)
        places.append(saved.table.parent)
        return saved

    monkeypatch.setattr(part_files.PartFiles, "save", save)
    log = killed / "a.jsonl"
    build_index([log], tmp_path / "i", own, batch_rows=7, spill=tmp_path / "big")
    assert {place.parent for place in places} == {tmp_path / "big"}
    assert not list((tmp_path / "big").iterdir())
    with pytest.raises(StorageError, match="--spill"):
        build_index([log], tmp_path / "j", own, batch_rows=7, spill=tmp_path / "nowhere")


def test_parent_of_the_index_is_not_touched(tmp_path, killed, small):
    """The index's folder may be a mount point, or all that we may write."""
    own = Keyring.load(killed / "keys").unlock(killed / "keys")
    small()
    (tmp_path / "parent" / "i").mkdir(parents=True)
    before = (tmp_path / "parent").stat().st_mtime_ns
    (tmp_path / "parent").chmod(0o500)
    try:
        build_index([killed / "a.jsonl"], tmp_path / "parent" / "i", own, batch_rows=7)
    finally:
        (tmp_path / "parent").chmod(0o700)
    assert (tmp_path / "parent").stat().st_mtime_ns == before


def test_merging_many_indexes_in_blocks(tmp_path, keyring, make_log, write_log, small):
    records = make_log(14, 240)
    for record in records:
        record.pop("conversation_id", None)
    small()
    folders = []
    for number in range(6):
        log = write_log(tmp_path / f"{number}.jsonl", records[number::6])
        folders.append(tmp_path / f"part{number}")
        build_index([log], folders[-1], keyring)
    logs = [tmp_path / f"{number}.jsonl" for number in range(6)]
    whole = build_index(logs, tmp_path / "whole", keyring)
    first = merge_indexes(folders[:4], tmp_path / "first", keyring.public)
    grown = merge_indexes([tmp_path / "first", *folders[4:]], tmp_path / "all", keyring.public)
    assert grown == whole
    assert first.rows < whole.rows
    with pytest.raises(DataError, match="disjoint"):
        merge_indexes([tmp_path / "all", folders[5]], tmp_path / "again", keyring.public)


numbers = st.lists(st.integers(0, 30), max_size=40)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(numbers, max_size=6), st.integers(1, 9))
def test_streams_add_up(lists, block):
    runs = [count_numbers(np.array(values, dtype=np.uint64)) for values in lists]
    expected = np.unique(
        np.array([n for one in lists for n in one], dtype=np.uint64), return_counts=True
    )
    whole = add_runs(runs)
    blocks = list(merging.merge_runs([merging.cut_run(run, block) for run in runs]))
    joined = Run(*map(np.concatenate, zip(*blocks, strict=True))) if blocks else whole
    for found in (whole, joined):
        assert found.numbers.tolist() == expected[0].tolist()
        assert found.counts.tolist() == expected[1].tolist()


@pytest.mark.parametrize(
    ("width", "size", "values", "fits"),
    [
        (1, 1 << 21, 5, True),
        (2, 1 << 21, 25_000, True),
        (3, 1 << 17, 500, True),
        (3, 1 << 21, 2, False),
        (3, 1 << 17, 5000, False),
    ],
)
def test_packed_numbers_are_in_the_order_of_a_table(width, size, values, fits):
    names = [f"v{i}" for i in range(values)]
    schedule = Schedule.from_shares({"global": 0.3, "week": 0.2, "x": 0.1}, {"week": names})
    public = namedtuple("Public", "schedule context_width vocabulary_size")(schedule, width, size)
    packing = Packing.of(public)
    assert (packing is not None) == fits
    if packing is None:
        return
    rng = np.random.default_rng(width)
    ids = rng.integers(0, size, (500, width)).astype(np.uint32)
    ids[:3] = size - 1
    slot = rng.integers(0, 4, 500).astype(np.uint8)
    value = rng.integers(0, values, 500).astype(np.uint32)
    context = pack(ids)
    packed = packing.pack(slot, value, context)
    for found, given_ in zip(packing.unpack(packed), (slot, value, context), strict=True):
        assert found.tolist() == given_.tolist()
    assert np.argsort(packed).tolist() == np.lexsort((value, context, slot)).tolist()
    with pytest.raises(DataError):
        packing.pack(slot, value, context | (1 << 62))


def test_a_mark_that_does_not_fit_is_built_by_the_database(
    tmp_path, make_keyring, make_log, write_log, oracle, monkeypatch
):
    keyring = make_keyring(3)
    records = make_log(15, 100)
    log = write_log(tmp_path / "a.jsonl", records)
    expected = build_index([log], tmp_path / "i", keyring)
    monkeypatch.setattr(build.Packing, "of", classmethod(lambda *_: None))
    assert build_index([log], tmp_path / "j", keyring) == expected
    assert read_rows(tmp_path / "j") == rows_of(oracle(records, keyring))
