"""A worker's keys: what is in the file and what is not, and every file that must be refused."""

import copy
import hashlib
import json
import logging
import pickle
import shutil
import stat
import subprocess
import sys
import traceback
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import provenance as pv
from provenance.embed.watermark import Watermark
from provenance.errors import (
    ConfigurationMismatchError,
    DataError,
    KeyPermissionError,
    ProvenanceError,
    StorageError,
    UsageError,
)
from provenance.keys.keyring import Key, Keyring, add_value
from provenance.keys.schedule import KeyName
from provenance.keys.worker import (
    WorkerKeys,
    export_worker,
    load_worker,
    open_keys,
    read_public,
)
from provenance.marks.own.mark import as_mark
from provenance.storage.files import canonical_json
from tests.conftest import make_keyring

VALUES = ("week=2026-W17", KeyName("cohort", "a"))
HELD = {KeyName("selector"), KeyName("global"), KeyName("week", "2026-W17"), VALUES[1]}
LATER = datetime.now(UTC) + timedelta(days=14)


@pytest.fixture
def file(keyring, tmp_path):
    path = tmp_path / "worker.key"
    export_worker(keyring, VALUES, expires=LATER, file=path)
    return path


def _one_line(error):
    return "\n" not in str(error) and "export-worker" in str(error)


# --- what is in it --------------------------------------------------------------------------------


def test_the_file_holds_the_named_keys_and_no_other(keyring, keyring_folder, file):
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    text = file.read_text()
    for name in keyring.public.commitments:
        assert (keyring.key(*name).reveal().hex() in text) == (name in HELD)
    assert (keyring_folder / "master.key").read_bytes().hex() not in text
    assert json.loads(text)["keyring"] == json.loads((keyring_folder / "keyring.json").read_text())


def test_what_is_loaded_is_what_was_exported_and_marks_as_the_keyring_does(keyring, file):
    worker = load_worker(file)
    assert worker.public == keyring.public
    assert set(worker.list_held()) == HELD
    assert worker.expires == LATER.replace(microsecond=0)
    for name in HELD:
        assert worker.key(*name).reveal() == keyring.key(*name).reveal()
    names = np.random.default_rng(0).integers(0, 2**40, 1000)
    assert np.array_equal(worker.slots_of_names(names), keyring.slots_of_names(names))
    assert WorkerKeys.from_json(worker.to_json()).to_json() == worker.to_json()


@pytest.mark.parametrize("name", [("week", "2026-W18"), ("week", "none"), ("control", "")])
def test_a_key_that_was_not_exported_is_refused_by_name(file, name):
    with pytest.raises(ConfigurationMismatchError) as refused:
        load_worker(file).key(*name)
    assert _one_line(refused.value)
    assert str(KeyName(*name)) in str(refused.value)


def test_the_global_key_alone_marks_requests_without_labels(keyring, tmp_path):
    worker = export_worker(keyring, [], expires=LATER, file=tmp_path / "w")
    assert set(worker.list_held()) == {KeyName("selector"), KeyName("global")}
    assert Watermark.load(tmp_path / "w").key_numbers([{}]).tolist() == [[-1, 0, -1, -1, -1]]


def test_a_folder_and_a_file_open_through_one_door(keyring, keyring_folder, file):
    assert open_keys(keyring_folder).public == open_keys(file).public == keyring.public
    assert read_public(keyring_folder).list_held() == frozenset(keyring.public.commitments)
    assert read_public(file).list_held() == HELD
    for path in (keyring_folder, file):
        secret = keyring.key("global", "").reveal()
        assert secret.hex() not in repr(read_public(path)) + repr(vars(read_public(path)))


# --- export ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("values", "error"),
    [
        (["week=1999-W01"], ConfigurationMismatchError),
        (["week"], ConfigurationMismatchError),
        (["control"], UsageError),
        (["selector"], UsageError),
        (["global"], UsageError),
        (["plan=free"], UsageError),
        ("week=2026-W17", UsageError),
    ],
)
def test_only_values_of_attributes_with_a_key_are_exported(keyring, tmp_path, values, error):
    with pytest.raises(error):
        export_worker(keyring, values, expires=LATER, file=tmp_path / "w")
    assert not list(tmp_path.iterdir())


def test_only_an_unlocked_keyring_exports_and_only_for_a_time_to_come(keyring, file, tmp_path):
    for other in (load_worker(file), keyring.public, "keys/"):
        with pytest.raises(UsageError, match="unlocked"):
            export_worker(other, [], expires=LATER, file=tmp_path / "w")
    for expires in (datetime.now(UTC) - timedelta(seconds=1), datetime(2999, 1, 1)):
        with pytest.raises(UsageError, match="expires"):
            export_worker(keyring, [], expires=expires, file=tmp_path / "w")


def test_an_export_replaces_an_earlier_one_and_nothing_else(keyring, file, tmp_path):
    export_worker(keyring, ["week=2026-W18"], expires=LATER, file=file)
    assert KeyName("week", "2026-W18") in load_worker(file).list_held()
    for name, content, mode in (
        ("master.key", bytes(32), 0o600),
        ("keyring.json", json.dumps(keyring.public.to_json()).encode(), 0o644),
        ("notes", b"", 0o600),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        path.chmod(mode)
        with pytest.raises(StorageError, match="must be new"):
            export_worker(keyring, [], expires=LATER, file=path)
        assert path.read_bytes() == content
    with pytest.raises(StorageError):
        export_worker(keyring, [], expires=LATER, file=tmp_path)


# --- expiry ---------------------------------------------------------------------------------------


def test_an_expired_file_does_not_load_and_still_names_its_keyring(keyring, file):
    end = load_worker(file).expires
    load_worker(file, now=end - timedelta(seconds=1))
    with pytest.raises(ConfigurationMismatchError, match="expired") as refused:
        load_worker(file, now=end)
    assert _one_line(refused.value)
    assert end.isoformat() in str(refused.value)
    _write(file, {**_content(file), "expires": "2026-01-01T00:00:00+00:00"})
    for load in (load_worker, Watermark.load, read_public):
        with pytest.raises(ConfigurationMismatchError, match="2026-01-01T00:00:00"):
            load(file)
    assert read_public(file, may_be_expired=True).public == keyring.public


def test_who_runs_when_the_keys_expire_goes_on_and_tells_the_log_once(file, caplog):
    worker = replace(load_worker(file), expires=datetime.now(UTC) - timedelta(hours=1))
    watermark = Watermark(worker)
    with caplog.at_level(logging.WARNING, "provenance.keys"):
        for _ in range(3):
            watermark.check_labels({"week": "2026-W17"})
        Watermark(load_worker(file)).check_labels({})
    (record,) = caplog.records
    assert record.name.startswith("provenance.keys")
    assert "expired at" in record.getMessage()
    assert watermark.key_numbers([{"week": "2026-W17"}]).max() >= 0


# --- files that are refused -----------------------------------------------------------------------


def _content(path):
    return json.loads(path.read_text())


def _write(path, content, mode=0o600):
    """With the hash that belongs to it: what a careful forger would write."""
    content.pop("sha256", None)
    digest = hashlib.sha256(canonical_json(content)).hexdigest()
    path.write_text(json.dumps({**content, "sha256": digest}))
    path.chmod(mode)


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o777])
def test_a_file_that_others_can_use_is_refused(file, mode):
    file.chmod(mode)
    for load in (load_worker, Watermark.load, read_public):
        with pytest.raises(KeyPermissionError, match="0600"):
            load(file)


def test_a_link_and_a_missing_file_are_refused(file, tmp_path):
    (tmp_path / "link").symlink_to(file)
    with pytest.raises(KeyPermissionError):
        Watermark.load(tmp_path / "link")
    for load in (load_worker, Watermark.load, read_public):
        with pytest.raises(StorageError):
            load(tmp_path / "none")


def _change(content, *path, value):
    changed = copy.deepcopy(content)
    place = changed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    return changed


def _damages(content, keyring):
    other = keyring.key("week", "2026-W18").reveal().hex()
    control = {"slot": "control", "value": "", "key": keyring.key("control", "").reveal().hex()}
    unnamed = {"slot": "week", "value": "2026-W99", "key": other}
    keys = content["keys"]
    yield "another key under a name", _change(content, "keys", 2, "key", value=other)
    yield "a key cut short", _change(content, "keys", 2, "key", value=other[:-2])
    yield "a key that is no hex", _change(content, "keys", 2, "key", value="x" * 64)
    yield "the control key", {**content, "keys": [*keys, control]}
    yield "a key without a commitment", {**content, "keys": [*keys, unnamed]}
    yield "a key twice", {**content, "keys": [*keys, keys[-1]]}
    yield "no selector", {**content, "keys": keys[1:]}
    yield "no global key", {**content, "keys": [keys[0], *keys[2:]]}
    yield "an extra field", {**content, "note": other}
    yield "an extra field of a key", _change(content, "keys", 2, "note", value=other)
    yield "an extra field of the keyring", _change(content, "keyring", "note", value=other)
    yield "another version", {**content, "version": 2}
    yield "a version that is a truth", {**content, "version": True}
    yield "another format", {**content, "format": "provenance-keyring"}
    yield "a time without a zone", {**content, "expires": "2999-01-01T00:00:00"}
    yield "a time out of reach", {**content, "expires": "9999-12-31T23:59:59-23:59"}
    yield "a time that is a number", {**content, "expires": 4}
    yield "keys that are an object", {**content, "keys": {other: other}}
    yield "a name that is a list", _change(content, "keys", 2, "value", value=[other])
    yield "a keyring that is text", {**content, "keyring": other}
    yield "nothing", {}


def test_a_changed_file_is_refused_in_one_line_even_if_its_hash_is_right(keyring, file):
    content = _content(file)
    for what, changed in _damages(content, keyring):
        _write(file, changed)
        with pytest.raises(DataError) as refused:
            load_worker(file)
        assert _one_line(refused.value), what
        _shows_nothing(refused.value, keyring)
    _write(file, content)
    load_worker(file)


@pytest.mark.parametrize("text", ["", "[]", "null", "{", "[" * 100_000, '{"a":1,"a":2}', "NaN"])
def test_what_is_no_such_document_is_refused(file, text):
    file.write_text(text)
    with pytest.raises(DataError) as refused:
        load_worker(file)
    assert _one_line(refused.value)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), new=st.integers(0, 255), cut=st.booleans())
def test_one_changed_byte_never_loads_as_something_else(keyring, file, place, new, cut):
    whole = file.read_bytes()
    at = int(place * len(whole))
    try:
        file.write_bytes(whole[:at] + (b"" if cut else bytes([new]) + whole[at + 1 :]))
        try:
            assert load_worker(file).to_json() == json.loads(whole)  # white space, the same digit
        except DataError as error:
            _shows_nothing(error, keyring)
    finally:
        file.write_bytes(whole)


# --- nothing shows a secret -----------------------------------------------------------------------


def _shows_nothing(thing, keyring):
    """Neither what it prints, nor its traceback, nor what an error holds on to."""
    texts = [repr(thing), str(thing), f"{thing}"]
    while isinstance(thing, BaseException):
        texts += traceback.format_exception(thing)
        texts += [repr(value) for value in (vars(thing), thing.args)]
        thing = thing.__cause__ or thing.__context__
    for name in HELD | {KeyName("week", "2026-W18")}:
        secret = keyring.key(*name).reveal()
        for text in texts:
            assert secret.hex() not in text
            assert repr(secret)[2:-1] not in text


def test_no_object_error_or_copy_shows_a_key(keyring, file, caplog):
    worker = load_worker(file)
    watermark = Watermark(worker)
    for thing in (
        worker,
        vars(worker),
        watermark,
        vars(watermark),
        worker.keys,
        worker.list_held(),
    ):
        _shows_nothing(thing, keyring)
    for copying in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError) as refused:
            copying(worker)
        _shows_nothing(refused.value, keyring)
    with caplog.at_level(logging.DEBUG, "provenance"):
        replace(worker, expires=datetime.now(UTC)).list_held()
    _shows_nothing(caplog.text, keyring)
    file.write_bytes(file.read_bytes() + b"\xff")  # not UTF-8
    with pytest.raises(DataError) as refused:
        load_worker(file)
    _shows_nothing(refused.value, keyring)


# --- it cannot test -------------------------------------------------------------------------------


def test_every_test_refuses_a_workers_keys_in_one_line(keyring, file, tmp_path):
    worker = load_worker(file)
    text = np.arange(50, dtype=np.uint32)
    doors = (
        as_mark,
        lambda keys: pv.open_case(keys, tmp_path),
        lambda keys: pv.detect(text, keys),
        lambda keys: pv.detect_mark(text, keys),
        lambda keys: pv.detect_pooled([text], keys),
        lambda keys: pv.build_index([file], tmp_path / "index", keys),
        lambda keys: pv.check_outputs(None, None, keys),
    )
    for door in doors:
        with pytest.raises(UsageError, match="worker's keys") as refused:
            door(worker)
        assert "\n" not in str(refused.value)
        assert "every key" in str(refused.value)
    for door in (pv.open_keyring, Keyring.load, *doors[1:3], doors[5]):
        with pytest.raises(StorageError, match="every key of the schedule"):
            door(str(file))
    with pytest.raises(ProvenanceError):
        pv.disclose_key(worker, "global")


# --- rotation in two phases: two processes on different versions ---------------------------------

_WORKER = """
import sys
import numpy as np
from provenance.embed.watermark import Watermark
from provenance.errors import ConfigurationMismatchError

watermark = Watermark.load(sys.argv[1], np.random.default_rng(7))
for week in sys.argv[2:]:
    labels, ids, marked = {"week": week}, np.arange(3, dtype=np.uint32), 0
    try:
        watermark.check_labels(labels)
    except ConfigurationMismatchError as error:
        print("refused", str(error).count(week), "export-worker" in str(error))
        continue
    for _ in range(120):
        candidates, p = np.arange(90, dtype=np.uint32), np.ones(90)
        draw = watermark.draw(labels, ids, candidates, p, watermark.read_prompt([]))
        marked += draw.key is not None and draw.key.value == week
        ids = np.append(ids, np.uint32(draw.token))
    print(marked, *ids.tolist())
"""


def test_two_workers_on_different_versions(tmp_path, tokenizer_path):
    folder, old, new = tmp_path / "keys", tmp_path / "old.key", tmp_path / "new.key"
    shares = {"global": 0.2, "week": 0.6}
    first = make_keyring(folder, tokenizer_path, shares=shares, values={"week": ["W1"]})
    export_worker(first, ["week=W1"], expires=LATER, file=old)
    add_value(folder, "week", "W2")
    grown = pv.open_keyring(folder)
    export_worker(grown, ["week=W1", "week=W2"], expires=LATER, file=new)
    shutil.rmtree(folder)  # workers need nothing of the key host
    printed = {
        file: subprocess.run(
            [sys.executable, "-c", _WORKER, file, "W1", "W2"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.splitlines()
        for file in (old, new)
    }
    assert printed[old][0] == printed[new][0]
    assert int(printed[old][0].split()[0]) > 30
    assert printed[old][1] == "refused 1 True"
    assert int(printed[new][1].split()[0]) > 30
    assert read_public(old).reread(new).list_held() == read_public(new).list_held()


def test_a_reread_file_forgets_no_key(keyring, file):
    worker = load_worker(file)
    export_worker(keyring, ["week=2026-W19"], expires=LATER + timedelta(days=1), file=file)
    grown = worker.reread(file)
    assert set(grown.list_held()) == HELD | {KeyName("week", "2026-W19")}
    assert grown.expires > worker.expires
    assert isinstance(grown.key("week", "2026-W17"), Key)
