"""Names that were seen, and labels of a column: against dictionaries, one by one."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provenance.errors import DataError
from provenance.served import identifiers
from provenance.served.identifiers import SeenNames, content_hashes
from provenance.served.records import LABELS, check_labels, sort_labels


@settings(max_examples=60, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 60), st.integers(0, 2)), max_size=40)))
def test_names_are_new_once_and_conflicts_are_seen(batches):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(identifiers, "_LEAST", 2)
        seen, known = SeenNames(), {}
        for batch in batches:
            contents = np.array([content for _, content in batch], dtype=np.int64)
            new, conflicts = seen.add([f"name {name}" for name, _ in batch], contents)
            for i, (name, content) in enumerate(batch):
                assert new[i] == (name not in known)
                assert conflicts[i] == (known.setdefault(name, content) != content)


def test_many_names_take_little_memory():
    seen = SeenNames()
    for start in range(0, 200_000, 20_000):
        names = [f"response-{i}" for i in range(start, start + 20_000)]
        new, _ = seen.add(names, np.arange(20_000, dtype=np.int64))
        assert new.all()
    assert sum(table.nbytes for pair in seen._tables for table in pair) <= 37 * 200_000
    new, conflicts = seen.add([f"response-{i}" for i in range(200_000)], np.zeros(200_000, int))
    assert not new.any()
    assert conflicts.sum() == 200_000 - 10


def test_content_hashes_depend_on_order_length_and_place():
    lists = [[], [1], [1, 2], [2, 1], [1, 2, 0], [0, 1, 2], [0], [0, 0], [1 << 20, 5], [1, 2]]
    values = np.array([v for one in lists for v in one], dtype=np.uint32)
    found = content_hashes(values, np.array([len(one) for one in lists], dtype=np.int64))
    assert found[2] == found[-1]
    assert np.unique(found).shape[0] == len(lists) - 1


text = st.text(st.sampled_from("abé\U0001f600"), max_size=2)
maps = st.none() | st.lists(st.tuples(text, st.none() | text), max_size=3)


@settings(max_examples=300, deadline=None)
@given(st.lists(maps, max_size=6), st.integers(0, 3), st.booleans())
def test_labels_of_a_column_are_those_of_its_rows(rows, skipped, coded):
    column = pa.array(rows, LABELS)
    if coded:
        parts = [part.dictionary_encode() for part in (column.keys, column.items)]
        column = pa.MapArray.from_arrays(column.offsets, *parts, mask=column.is_null())
    column = column.slice(skipped)
    expected = []
    try:
        for row in rows[skipped:]:
            if row is not None and len({name for name, _ in row}) != len(row):
                raise DataError("a label twice")
            expected.append(check_labels(None if row is None else dict(row), "row"))
    except DataError:
        assert sort_labels(column) is None
        return
    found = sort_labels(column)
    # nulls outside of the slice are enough to look at each row for itself
    if found is not None:
        assert found.type == LABELS
        assert found.to_pylist() == expected
    else:
        assert not expected or any(value is None for row in rows if row for _, value in row)
