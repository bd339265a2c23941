"""What machines do with parts of a log, held together by a cluster of plain Python.

`make test` needs no Spark: dicts stand for the shuffles, and everything else is what runs there.
"""

from __future__ import annotations

import json
import os
import pickle
import sys
from collections import Counter, defaultdict
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from provenance.case.indexing import build_index as build_at_the_door
from provenance.errors import (
    ConfigurationMismatchError,
    DataError,
    MissingExtraError,
    StorageError,
    UsageError,
)
from provenance.keys.keyring import Keyring
from provenance.keys.schedule import GLOBAL_KEY, SELECTOR_KEY
from provenance.keys.selector import SelectorOnly, export_selector
from provenance.marks import as_mark
from provenance.marks.slots import OneSlot, export_slots
from provenance.served import log_parts
from provenance.served.build import build_index
from provenance.served.control_sample import CONTROL_SHARE
from provenance.served.log import LogStatistics
from provenance.served.log_parts import list_parts, read_names
from provenance.served.spread import (
    AMOUNTS,
    FAULT,
    RECORD,
    SAMPLE,
    SURVEY,
    Plan,
    Ranges,
    count,
    raise_fault,
    read_amounts,
    survey,
)
from tests.served.logs import write_parquet, write_three


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(log_parts, "_PART_VALUES", 300)


@pytest.fixture
def three(tmp_path, make_log):
    return write_three(tmp_path, make_log(11, 400, 40))


def make_plan(paths, keyring, tokenizer_path):
    content = None if tokenizer_path is None else tokenizer_path.read_bytes()
    return Plan(tuple(list_parts(paths)), 64, CONTROL_SHARE, content)


def run_survey(plan, slots):
    """Rows of all parts, and the plan with duplicates and ranges known."""
    numbers = range(len(plan.parts))
    rows = [b for n in reversed(numbers) for b in survey(plan, n, slots)]
    table = pa.Table.from_batches(rows, SURVEY).sort_by("place")
    for row in table.to_pylist():
        if row["kind"] == FAULT:
            raise_fault(row["note"])
    met, dropped = set(), []
    for row in table.to_pylist():
        if row["kind"] == RECORD:
            if row["name"] in met:
                dropped.append(row["place"])
            met.add(row["name"])
    sample = table.filter(pc.equal(table.column("kind"), SAMPLE))
    ranges = Ranges.of_sample(len(slots.schedule.slots), sample, 12)
    return table, replace(plan, dropped=np.array(dropped, dtype=np.int64), ranges=ranges)


def run_count(plan, slots):
    """(range, slot, context, value) -> responses, and the amounts."""
    lineages, amounts = defaultdict(set), []
    counts = Counter()
    for number in range(len(plan.parts)):
        for batch in count(plan, number, slots):
            for row in batch.to_pylist():
                key = tuple(row[name] for name in ("range", "slot", "context", "value"))
                if row["range"] == AMOUNTS:
                    amounts.append({name: row[name] for name in ("value", "context", "n")})
                elif row["lineage"] is None:
                    counts[key] += row["n"]
                else:
                    lineages[key].add(row["lineage"])
    for key, found in lineages.items():
        counts[key] += len(found)
    return counts, pa.Table.from_pylist(amounts)


def test_parts_add_up_to_the_embedded_index(tmp_path, three, keyring, tokenizer_path, small_parts):
    whole = build_index(three, tmp_path / "index", keyring, tokenizer_path)
    slots = export_slots(as_mark(keyring))
    plan = make_plan(three, keyring, tokenizer_path)
    assert len(plan.parts) > 5  # the Parquet file is split
    _, plan = run_survey(plan, slots)
    counts, amounts = run_count(plan, slots)
    statistics = LogStatistics()
    without_value = read_amounts(plan, slots, amounts, statistics)
    for name in ("responses", "empty", "retokenised", "marked_retokenised", "unended", "tokens"):
        assert getattr(statistics, name) == getattr(whole, name), name
    assert statistics.marked == whole.marked_responses
    assert without_value.tolist() == [slot.without_value for slot in whole.slots]
    assert plan.dropped.shape[0] == whole.duplicates == 23
    assert tuple(read_names(plan.parts, plan.dropped[:5].tolist(), 300)) == whole.duplicate_ids
    assert len(counts) == whole.rows
    # sorted by range first is sorted as the table is
    assert sorted(counts) == sorted(counts, key=lambda key: key[1:])
    assert len({key[0] for key in counts}) > len(slots.schedule.slots)
    stored = pq.read_table(tmp_path / "index" / whole.table).to_pylist()
    rows = [(row["slot"], row["context"], row["value"], row["responses"]) for row in stored]
    assert [(*key[1:], counts[key]) for key in sorted(counts)] == rows
    assert {row[0] for row in rows} == set(range(len(slots.schedule.slots)))


def test_a_reader_that_keeps_duplicates_is_noticed(three, keyring, tokenizer_path, small_parts):
    """The double: without the places of duplicates the same sums come out too large."""
    slots = export_slots(keyring)
    _, plan = run_survey(make_plan(three, keyring, tokenizer_path), slots)
    right, _ = run_count(plan, slots)
    wrong, _ = run_count(replace(plan, dropped=plan.dropped[:0]), slots)
    assert wrong != right


def test_ranges_follow_the_order_of_the_table():
    rng = np.random.default_rng(0)
    slot = np.sort(rng.integers(0, 3, 1000)).astype(np.uint8)
    context = rng.integers(0, 1 << 40, 1000)
    columns = {"place": slot.astype(np.int64), "name": context}
    ranges = Ranges.of_sample(5, pa.table(columns), 30)
    order = np.lexsort((context, slot))
    found = ranges.find(slot[order], context[order])
    assert (np.diff(found) >= 0).all()
    assert 25 <= np.unique(found).shape[0] <= 40
    assert ranges.find(np.array([4], dtype=np.uint8), np.array([0]))[0] == found[-1] + 2
    one = Ranges.of_sample(2, pa.table({name: [] for name in columns}), 30)
    assert one.find(np.array([0, 1], dtype=np.uint8), np.array([7, 7])).tolist() == [0, 1]


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_a_bad_record_is_named_as_the_embedded_reader_names_it(
    tmp_path, keyring, make_log, write_log, small_parts, form
):
    records = make_log(5, 200)
    records[150]["token_ids"] = [1, 2, 300]
    path = tmp_path / f"a.{form}"
    (write_log if form == "jsonl" else write_parquet)(path, records)
    with pytest.raises(DataError) as embedded:
        build_index([path], tmp_path / "index", keyring)
    slots = export_slots(keyring)
    with pytest.raises(DataError) as spread:
        run_survey(make_plan([path], keyring, None), slots)
    assert str(spread.value) == str(embedded.value)
    assert f"{'line' if form == 'jsonl' else 'row'} 151" in str(spread.value)


def test_a_fault_of_the_second_reading_is_raised_as_it_was(tmp_path, keyring, make_log, write_log):
    path = write_log(tmp_path / "a.jsonl", make_log(5, 50))
    slots = export_slots(keyring)
    _, plan = run_survey(make_plan([path], keyring, None), slots)
    stamp = path.stat()
    path.write_text(path.read_text().replace('"marked": true', '"marked": 1234', 1))
    os.utime(path, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))  # nobody sees that it changed
    _, amounts = run_count(plan, slots)
    with pytest.raises(DataError, match=r"line \d+: marked must be true or false"):
        read_amounts(plan, slots, amounts, LogStatistics())


def test_a_file_that_changes_or_differs_elsewhere_is_refused(
    tmp_path, keyring, make_log, write_log
):
    path = write_log(tmp_path / "a.jsonl", make_log(5, 50))
    plan = make_plan([path], keyring, None)
    path.write_text(path.read_text() + "\n")
    with pytest.raises(StorageError, match="must not change while it is read"):
        run_survey(plan, export_slots(keyring))
    path.write_text("")
    with pytest.raises(DataError, match="must hold at least one record"):
        run_survey(make_plan([path], keyring, None), export_slots(keyring))
    with pytest.raises(ConfigurationMismatchError, match="Install the same version everywhere"):
        run_survey(replace(plan, version="0"), export_slots(keyring))


def test_text_needs_the_tokenizer(tmp_path, keyring):
    path = tmp_path / "a.jsonl"
    path.write_text(json.dumps({"response_id": "r", "marked": True, "text": "a"}) + "\n")
    with pytest.raises(DataError, match="tokenizer must be given"):
        run_survey(make_plan([path], keyring, None), export_slots(keyring))


def test_the_selector_alone_can_travel(keyring):
    names = np.arange(0, 1 << 22, 991)
    own = export_slots(as_mark(keyring))
    there = pickle.loads(pickle.dumps(own))
    assert isinstance(there, SelectorOnly)
    assert (there.slots_of_names(names) == keyring.slots_of_names(names)).all()
    assert np.unique(there.slots_of_names(names)).shape[0] == 4
    assert there.list_held() == (SELECTOR_KEY,)
    assert there.home is None
    with pytest.raises(ConfigurationMismatchError, match="Open the keyring on the key host"):
        there.key(*GLOBAL_KEY)
    with pytest.raises(UsageError):
        there.reread("keys")
    with pytest.raises(ConfigurationMismatchError):
        SelectorOnly(keyring.public, keyring.key(*GLOBAL_KEY).reveal())
    secret = keyring.key(*SELECTOR_KEY).reveal()
    assert secret.hex() not in repr(there)
    assert secret in pickle.dumps(own)
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(keyring)


def test_a_foreign_mark_travels_without_its_key(keyring):
    public = replace(
        keyring.public,
        schedule=type(keyring.schedule).from_shares({"global": 1.0}),
        commitments={GLOBAL_KEY: keyring.public.commitments[GLOBAL_KEY]},
    )

    class Foreign:
        def __init__(self, public: Keyring) -> None:
            self.public, self.schedule, self.context_width = public, public.schedule, 2

    there = pickle.loads(pickle.dumps(export_slots(Foreign(public))))
    assert isinstance(there, OneSlot)
    assert not there.public.commitments
    assert there.slots_of_names(np.arange(5)).tolist() == [1] * 5
    assert (there.context_width, there.schedule) == (2, public.schedule)
    with pytest.raises(UsageError, match="must be a keyring, or have one slot"):
        export_slots(Foreign(keyring.public))
    assert export_selector(keyring).public.commitments.keys() == {SELECTOR_KEY}


def test_without_pyspark_one_line_names_the_extra(
    tmp_path, keyring, make_log, write_log, monkeypatch
):
    log = write_log(tmp_path / "a.jsonl", make_log(5, 50))
    monkeypatch.setitem(sys.modules, "pyspark", None)
    monkeypatch.setitem(sys.modules, "pyspark.errors", None)
    monkeypatch.delitem(sys.modules, "provenance.served.spark", raising=False)
    with pytest.raises(MissingExtraError, match=r"provenance-watermark\[spark\]"):
        build_at_the_door(log, tmp_path / "index", keyring, engine="spark", master="local")
    assert not (tmp_path / "index").exists()
    for wrong in ({"engine": "flink"}, {"master": "local"}):
        with pytest.raises(UsageError, match="engine must be embedded, or spark"):
            build_at_the_door(log, tmp_path / "index", keyring, **wrong)
