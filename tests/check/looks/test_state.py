"""The state on disk: replayed exactly, never half a batch, and no other check's."""

from __future__ import annotations

import errno
import hashlib
import io
import json
import shutil
from dataclasses import replace

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import provenance.check.looks.state as module
from provenance.check.looks.conclude import conclude
from provenance.check.looks.process import add_outputs, start
from provenance.check.looks.state import STATE_FILE, continue_check
from provenance.errors import (
    ConfigurationMismatchError,
    DataError,
    LockedError,
    StorageError,
)
from provenance.marks import as_mark
from provenance.storage.files import canonical_json, lock_folder
from tests.check.looks.conftest import SETTINGS
from tests.conftest import make_keyring


def _go_on(folder, part, world, settings=SETTINGS):
    return continue_check(folder, part, world.index, world.keyring, settings)


@pytest.fixture(scope="module")
def finished(tmp_path_factory, world, observed):
    """A state of two batches that tests copy."""
    folder = tmp_path_factory.mktemp("state")
    for part in observed[:2]:
        _go_on(folder, part, world)
    return folder


@pytest.fixture
def state(finished, tmp_path):
    folder = tmp_path / "state"
    shutil.copytree(finished, folder)
    return folder


def _content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_what_is_loaded_is_what_was_computed(world, observed, state):
    memory = start(world.index, world.keyring, SETTINGS)
    for part in observed[:2]:
        memory = add_outputs(memory, part, world.index, world.keyring)
    disk, sha256 = _go_on(state, None, world)
    assert conclude(disk, world.keyring) == conclude(memory, world.keyring)
    assert sha256 == hashlib.sha256((state / STATE_FILE).read_bytes()).hexdigest()
    memory = add_outputs(memory, observed[3], world.index, world.keyring)
    disk, _ = _go_on(state, observed[3], world)
    assert conclude(disk, world.keyring) == conclude(memory, world.keyring)


def test_looking_writes_nothing_and_files_are_private(world, state, tmp_path):
    before = _content(state)
    _go_on(state, None, world)
    assert _content(state) == before
    assert set(before) == {"0001.parquet", "0002.parquet", "state.json"}
    assert {path.stat().st_mode & 0o777 for path in state.iterdir()} == {0o600}
    assert canonical_json(json.loads(before["state.json"])) == before["state.json"]
    check, sha256 = _go_on(tmp_path / "new", None, world)
    assert (check.batches, sha256, _content(tmp_path / "new")) == ((), "", {})


@pytest.mark.parametrize("number", [1, 2])
def test_a_batch_that_is_cut_short_is_not_in_and_can_be_added_again(
    world, observed, state, monkeypatch, tmp_path, number
):
    """Fail the n-th write of the batch; then go on: the bytes of a run without failure."""
    calls = 0
    write = module.write_atomically

    def failing(path, content, mode):
        nonlocal calls
        calls += 1
        if calls == number:
            raise StorageError(f"{path}: no space: {errno.ENOSPC}")
        write(path, content, mode)

    before = _content(state)
    expected = tmp_path / "expected"
    shutil.copytree(state, expected)
    _go_on(expected, observed[2], world)
    with monkeypatch.context() as patch:
        patch.setattr(module, "write_atomically", failing)
        with pytest.raises(StorageError):
            _go_on(state, observed[2], world)
    assert len(_go_on(state, None, world)[0].batches) == 2
    assert _content(state) | before == _content(state)
    _go_on(state, observed[2], world)
    assert _content(state) == _content(expected)


def test_two_writers_are_one_too_many(world, observed, state):
    with lock_folder(state), pytest.raises(LockedError):
        _go_on(state, observed[2], world)


def test_the_same_outputs_are_refused_and_the_state_stays(world, observed, state):
    before = _content(state)
    with pytest.raises(DataError, match="was in batch 2"):
        _go_on(state, observed[1], world)
    assert _content(state) == before


@pytest.mark.parametrize(
    "change", [{"alpha": 1e-5}, {"rule": "presence"}, {"placebo_keys": 61}], ids=str
)
def test_other_terms_are_refused(world, observed, state, change):
    settings = replace(SETTINGS, **change)
    with pytest.raises(ConfigurationMismatchError, match=f"settings.{next(iter(change))} must be"):
        _go_on(state, observed[2], world, settings)


def test_another_keyring_and_another_index_are_refused(world, state, tmp_path, monkeypatch):
    other = make_keyring(tmp_path / "keys", world.folder / "tokenizer.json")
    foreign = replace(start(world.index, world.keyring, SETTINGS), keyring_id=other.public.id)
    monkeypatch.setattr(module, "start", lambda *_: foreign)
    with pytest.raises(ConfigurationMismatchError, match="keyring_id must be"):
        _go_on(state, None, world)
    foreign = replace(start(world.index, world.keyring, SETTINGS), index_sha256="00")
    with pytest.raises(ConfigurationMismatchError, match="index_sha256 must be"):
        _go_on(state, None, world)


# --- damage: every case changes a good state and must be refused ---------------------------------


def _edit_state(folder, change):
    path = folder / STATE_FILE
    data = json.loads(path.read_bytes())
    change(data)
    if isinstance(data, dict):
        data["content_sha256"] = module._checksum(data)
    path.write_bytes(canonical_json(data))


def _edit_pairs(folder, number, change):
    """Change a Parquet file and the hash that state.json holds of it."""
    path = folder / f"{number:04d}.parquet"
    sink = io.BytesIO()
    pq.write_table(change(pq.read_table(path)), sink)
    path.write_bytes(sink.getvalue())

    def rename(data):
        data["batches"][number - 1]["pairs_sha256"] = hashlib.sha256(sink.getvalue()).hexdigest()

    _edit_state(folder, rename)


def _set_column(name, value):
    def change(table):
        column = table.column_names.index(name)
        values = table[name].to_pylist()
        values[0] = value
        return table.set_column(column, name, pa.array(values, table[name].type))

    return change


def _other_score(table):
    """The first pair's score is one higher than the key says."""
    first = table["scores"].to_pylist()[0]
    return _set_column("scores", [first[0] + 1])(table)


def _other_slot(table):
    """A pair of the control slot is said to be one of the first tested key, with its true score."""
    row = next(row for row in table.to_pylist() if len(row["scores"]) > 1)
    row |= {"sheet": 0, "scores": row["scores"][:1]}
    return pa.concat_tables([pa.Table.from_pylist([row], table.schema), table])


def _flip(name):
    def change(folder):
        path = folder / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(bytes(content))

    return change


DAMAGE = {
    "a count that nothing depends on": lambda f: (f / STATE_FILE).write_bytes(
        (f / STATE_FILE).read_bytes().replace(b'"short_outputs":0', b'"short_outputs":1', 1)
    ),
    "a bit of the pairs": _flip("0001.parquet"),
    "pairs of another batch": lambda f: shutil.copy(f / "0001.parquet", f / "0002.parquet"),
    "no pairs": lambda f: (f / "0002.parquet").unlink(),
    "empty state": lambda f: (f / STATE_FILE).write_bytes(b""),
    "a list": lambda f: (f / STATE_FILE).write_bytes(b"[]"),
    "another format": lambda f: _edit_state(f, lambda d: d.update(format="x")),
    "an unknown field": lambda f: _edit_state(f, lambda d: d.update(x=1)),
    "a missing field": lambda f: _edit_state(f, lambda d: d.pop("keys")),
    "white space": lambda f: (f / STATE_FILE).write_bytes((f / STATE_FILE).read_bytes() + b"\n"),
    "NaN": lambda f: (f / STATE_FILE).write_bytes(b'{"format":NaN}'),
    "batches that are no list": lambda f: _edit_state(f, lambda d: d.update(batches={})),
    "a batch that is no object": lambda f: _edit_state(f, lambda d: d.update(batches=[1])),
    "a batch twice": lambda f: _edit_state(f, lambda d: d["batches"].insert(0, d["batches"][0])),
    "batches in another order": lambda f: _edit_state(f, lambda d: d["batches"].reverse()),
    "known pairs below 0": lambda f: _edit_state(
        f, lambda d: d["batches"][0]["known"].__setitem__(0, -1)
    ),
    "known pairs of too few sheets": lambda f: _edit_state(
        f, lambda d: d["batches"][0]["known"].pop()
    ),
    "a control without a name": lambda f: _edit_state(
        f, lambda d: d["batches"][0]["placebo"][0].pop("name")
    ),
    "a pair twice": lambda f: _edit_pairs(f, 1, lambda t: pa.concat_tables([t, t.slice(0, 1)])),
    "a pair of an earlier batch": lambda f: _edit_pairs(
        f, 2, lambda t: pa.concat_tables([t, pq.read_table(f / "0001.parquet").slice(0, 1)])
    ),
    "a weight above the scale": lambda f: _edit_pairs(f, 1, _set_column("weight", 112)),
    "a weight of 0": lambda f: _edit_pairs(f, 1, _set_column("weight", 0)),
    "an impossible score": lambda f: _edit_pairs(f, 1, _set_column("scores", [9999])),
    "another score": lambda f: _edit_pairs(f, 1, _other_score),
    "another token": lambda f: _edit_pairs(f, 1, _set_column("token", 3)),
    "a context of another slot": lambda f: _edit_pairs(f, 1, _other_slot),
    "too few scores": lambda f: _edit_pairs(f, 1, _set_column("scores", [])),
    "no column of tokens": lambda f: _edit_pairs(f, 1, lambda t: t.drop_columns(["token"])),
    "a sheet that is none": lambda f: _edit_pairs(f, 1, _set_column("sheet", 99)),
    "a token that is missing": lambda f: _edit_pairs(f, 1, _set_column("token", None)),
}


def test_a_flipped_bit_anywhere_in_the_state_is_refused(world, state):
    path = state / STATE_FILE
    content = path.read_bytes()
    for place in range(0, len(content), max(1, len(content) // 100)):
        damaged = bytearray(content)
        damaged[place] ^= 1 << (place % 8)
        path.write_bytes(bytes(damaged))
        with pytest.raises((DataError, ConfigurationMismatchError)):
            _go_on(state, None, world)


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_refused(world, observed, state, name):
    DAMAGE[name](state)
    before = _content(state)
    with pytest.raises((DataError, StorageError)) as caught:
        _go_on(state, observed[2], world)
    assert str(state) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert _content(state) == before


def test_a_stored_batch_that_repeats_revealed_pairs_is_refused_as_such(world, observed):
    """Replayed twice, a batch reveals nothing new: refused before its scores are compared."""
    check = start(world.index, world.keyring, SETTINGS)
    check = add_outputs(check, observed[0], world.index, world.keyring)
    batch = check.batches[0]
    record = module.StoredBatch(batch.outputs, batch.known, (), batch.pairs_sha256)
    with pytest.raises(DataError, match="must hold new pairs only; it repeats revealed ones"):
        module._replay(check, batch.revealed, record, as_mark(world.keyring), "batch 2")
