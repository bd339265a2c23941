"""The compiled windows against the ones that are sorted."""

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from provenance.errors import DataError
from provenance.keys.schedule import Schedule
from provenance.served.records import READ, pack_drawn
from provenance.served.windows import windows
from tests.served import windows_oracle

ids = st.lists(st.integers(0, 3), max_size=14)
response = st.fixed_dictionaries(
    {
        "marked": st.booleans(),
        "labels": st.dictionaries(
            st.sampled_from(["week", "capability"]), st.sampled_from(["w1", "w2", "code", "no"])
        ),
        "token_ids": ids,
        "prompt_token_ids": st.none() | ids,
        "conversation_id": st.none() | st.sampled_from(["a", "b"]),
        "drawn": st.none() | st.integers(0, 2**14 - 1),
    }
)


def make_batch(responses):
    rows = []
    for number, entry in enumerate(responses):
        size = len(entry["token_ids"])
        bits = None
        if entry["drawn"] is not None:
            bits = pack_drawn(np.array([entry["drawn"] >> i & 1 for i in range(size)], dtype=bool))
        labels = sorted(entry["labels"].items())
        rows.append({"response_id": f"r{number}", **entry, "labels": labels, "drawn": bits})
        rows[-1] |= {"time": None, "finish": None, "whole": False}
    return pa.RecordBatch.from_pylist(rows, schema=READ)


class Served:
    """Slots by a rule of its own: any width."""

    def __init__(self, width, schedule):
        self.context_width, self.schedule = width, schedule

    def slots_of_names(self, names):
        mixed = names.astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        return (mixed >> np.uint64(32)).astype(np.uint8) % len(self.schedule.slots)


SCHEDULE = Schedule.from_shares(
    {"global": 0.3, "week": 0.2, "capability": 0.2},
    {"week": ["w1", "w2"], "capability": ["code", "chat"]},
)


def rows_of(table):
    return sorted(map(tuple, zip(*table.to_pydict().values(), strict=True)), key=repr)


def outcome(function, batch, keyring):
    try:
        return rows_of(function(batch, keyring))
    except DataError as error:
        return str(error)


@settings(max_examples=300, deadline=None)
@given(st.lists(response, max_size=6), st.sampled_from([1, 2, 3, 4]), st.booleans())
def test_rows_are_those_of_sorting(responses, width, stated):
    if not stated:
        responses = [{**entry, "drawn": None} for entry in responses]
    batch, keyring = make_batch(responses), Served(width, SCHEDULE)
    expected = outcome(windows_oracle.windows, batch, keyring)
    found = outcome(windows, batch, keyring)
    if isinstance(expected, str):
        # which response of several is named is not the same
        assert isinstance(found, str)
        assert found.split("it is set")[1] == expected.split("it is set")[1]
    else:
        assert found == expected
        assert windows(batch, keyring).schema == windows_oracle.windows(batch, keyring).schema


@pytest.mark.parametrize("width", [1, 2])
def test_rows_of_long_responses(make_keyring, width):
    keyring = make_keyring(width)
    rng = np.random.default_rng(width)
    responses = [
        {
            "marked": True,
            "labels": {"week": f"w{i % 4}"},
            "token_ids": rng.integers(0, 300, 700 * (i % 3)).tolist(),
            "prompt_token_ids": rng.integers(0, 300, 400).tolist(),
            "conversation_id": f"c{i % 5}",
            "drawn": None,
        }
        for i in range(30)
    ]
    batch = make_batch(responses)
    assert rows_of(windows(batch, keyring)) == rows_of(windows_oracle.windows(batch, keyring))
