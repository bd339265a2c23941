"""Keys: derivation, commitments, slots, and every way to a secret that must be refused."""

import copy
import hashlib
import hmac
import json
import os
import pickle
import stat
from collections import Counter

import numpy as np
import pytest

from provenance.errors import (
    ConfigurationMismatchError,
    DataError,
    KeyPermissionError,
    LockedError,
    StorageError,
    UsageError,
)
from provenance.keys.keyring import (
    Keyring,
    SchemeSpecification,
    add_value,
    disclose,
)
from provenance.keys.schedule import Schedule
from provenance.storage.files import lock_folder
from tests.conftest import SHARES, VALUES, make_keyring


def _hkdf(master: bytes, fields: list[str]) -> bytes:
    """RFC 5869 with hmac and hashlib only: one block is enough for 32 bytes."""
    info = b"".join(len(f.encode()).to_bytes(4, "big") + f.encode() for f in fields)
    extracted = hmac.digest(b"provenance-v1", master, "sha256")
    return hmac.digest(extracted, info + b"\x01", "sha256")


@pytest.mark.parametrize("rule", [[], ["prompt_contexts=unmarked"]], ids=["old", "new"])
def test_keys_equal_an_independent_derivation(tmp_path, tokenizer_path, rule):
    keyring = make_keyring(tmp_path, tokenizer_path, reads_prompt=bool(rule))
    master = (tmp_path / "master.key").read_bytes()
    scheme = json.dumps({"name": "gumbel", "parameters": {}}, separators=(",", ":"))
    for slot, value in [("global", ""), ("week", "2026-W17"), ("selector", "")]:
        expected = _hkdf(master, [keyring.public.id, scheme, "2", slot, value, *rule])
        assert keyring.key(slot, value).reveal() == expected


def test_the_version_says_whether_contexts_of_the_prompt_are_marked(tmp_path, tokenizer_path):
    """A reader of version 1 passes fields over that it does not know, so it must see version 2."""
    old = make_keyring(tmp_path / "old", tokenizer_path, reads_prompt=False).public
    new = make_keyring(tmp_path / "new", tokenizer_path).public
    assert new.to_json().keys() - old.to_json().keys() == {"prompt_contexts"}
    assert (old.to_json()["version"], new.to_json()["version"]) == (1, 2)
    for public, reads in ((old, False), (new, True)):
        assert Keyring.from_json(public.to_json()) == public
        assert public.reads_prompt is reads
    assert add_value(tmp_path / "new", "week", "2026-W30").reads_prompt
    document = {**new.to_json(), "version": 1}
    del document["prompt_contexts"]
    (tmp_path / "new/keyring.json").write_text(json.dumps(document))
    with pytest.raises(ConfigurationMismatchError, match="does not open"):
        Keyring.load(tmp_path / "new").unlock(tmp_path / "new")


def test_rfc_5869_vector_1_of_the_reference_used_here():
    """RFC 5869 A.1: the helper above computes HKDF when salt and info are the vector's."""
    extracted = hmac.digest(bytes(range(13)), b"\x0b" * 22, "sha256")
    info = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9")
    first = hmac.digest(extracted, info + b"\x01", "sha256")
    assert first.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


def test_every_key_is_committed_to_and_different(keyring):
    seen = set()
    for (slot, value), commitment in keyring.public.commitments.items():
        secret = keyring.key(slot, value).reveal()
        digest = hashlib.sha256(bytes.fromhex(commitment.salt) + secret).hexdigest()
        assert digest == commitment.sha256
        seen.add(secret)
    assert len(seen) == len(keyring.public.commitments) == 1 + 2 + 3 + 2 + 2


def test_keyring_json_is_public_and_survives_a_round_trip(keyring_folder, keyring):
    text = (keyring_folder / "keyring.json").read_text()
    for key in (keyring.key("global", ""), keyring.key("selector", "")):
        assert key.reveal().hex() not in text
    assert Keyring.load(keyring_folder) == keyring.public
    assert stat.S_IMODE((keyring_folder / "master.key").stat().st_mode) == 0o600


def test_slots_have_their_shares_and_every_context_exactly_one(keyring):
    rng = np.random.default_rng(0)
    contexts = rng.integers(0, 400, (200_000, 2), dtype=np.uint32)
    counts = Counter(keyring.slots_of(contexts).tolist())
    shares = np.array([slot.share for slot in keyring.schedule.slots])
    assert shares.sum() == 1
    observed = np.array([counts[i] for i in range(len(shares))]) / 200_000
    # contexts repeat (160,000 possible): 6 standard errors of a binomial over distinct ones
    assert np.abs(observed - shares).max() < 6 * np.sqrt(0.25 / 100_000)
    assert np.array_equal(keyring.slots_of(contexts), keyring.slots_of(contexts))


def test_the_boundaries_of_slots_are_exact():
    schedule = Schedule.from_shares({"global": 0.5, "week": 0.25})
    words = np.array([0, 2**30 - 1, 2**30, 3 * 2**30 - 1, 3 * 2**30, 2**32 - 1], dtype=np.uint32)
    assert schedule.assign(words).tolist() == [0, 0, 1, 1, 2, 2]
    full = Schedule.from_shares({"global": 1.0})
    assert full.assign(words).tolist() == [1] * 6


def test_a_new_value_changes_no_existing_key(tmp_path, tokenizer_path):
    before = make_keyring(tmp_path / "k", tokenizer_path)
    grown = add_value(tmp_path / "k", "week", "2026-W20")
    after = Keyring.load(tmp_path / "k").unlock(tmp_path / "k")
    assert after.public == grown
    assert grown.schedule.slot("week").values[-1] == "2026-W20"
    for pair, commitment in before.public.commitments.items():
        assert after.key(*pair).reveal() == before.key(*pair).reveal()
        assert grown.commitments[pair] == commitment
    assert after.key("week", "2026-W20").reveal() != before.key("week", "2026-W17").reveal()
    for slot, value in [("week", "2026-W20"), ("global", "x"), ("control", "x"), ("week", "")]:
        with pytest.raises(UsageError):
            add_value(tmp_path / "k", slot, value)
    with pytest.raises(ConfigurationMismatchError):
        add_value(tmp_path / "k", "plan", "free")


def test_disclosure_opens_one_key_only(keyring):
    shown = disclose(keyring, "week", "2026-W17")
    key = bytes.fromhex(shown["key"])
    digest = hashlib.sha256(bytes.fromhex(shown["salt"]) + key).hexdigest()
    assert digest == shown["commitment"]
    text = json.dumps(shown)
    for pair in keyring.public.commitments:
        assert (keyring.key(*pair).reveal().hex() in text) == (pair == ("week", "2026-W17"))


def test_a_key_and_a_keyring_never_print_copy_or_pickle_their_secret(keyring):
    key = keyring.key("global", "")
    for thing in (key, keyring):
        for text in (repr(thing), str(thing), f"{thing}"):
            assert key.reveal().hex() not in text
            assert repr(key.reveal()) not in text
        with pytest.raises(TypeError):
            pickle.dumps(thing)
        with pytest.raises(TypeError):
            copy.deepcopy(thing)
    with pytest.raises(TypeError):
        key + key


def test_another_master_secret_is_a_mismatch(tmp_path, tokenizer_path):
    make_keyring(tmp_path / "k", tokenizer_path)
    (tmp_path / "k" / "master.key").write_bytes(bytes(32))
    with pytest.raises(ConfigurationMismatchError):
        Keyring.load(tmp_path / "k").unlock(tmp_path / "k")


def test_another_tokenizer_is_a_mismatch(tmp_path, keyring, tokenizer_path):
    keyring.public.check_tokenizer(tokenizer_path)
    other = tmp_path / "tokenizer.json"
    other.write_bytes(tokenizer_path.read_bytes() + b" ")
    keyring.public.check_tokenizer(other)  # the same, in other bytes
    other.write_bytes(tokenizer_path.read_bytes().replace(b"<pad>", b"<pap>"))
    with pytest.raises(ConfigurationMismatchError):
        keyring.public.check_tokenizer(other)


@pytest.fixture
def folder(tmp_path, tokenizer_path):
    make_keyring(tmp_path / "k", tokenizer_path)
    return tmp_path / "k"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o610, 0o644, 0o777])
def test_a_key_file_that_others_can_use_is_refused(folder, mode):
    (folder / "master.key").chmod(mode)
    with pytest.raises(KeyPermissionError):
        Keyring.load(folder).unlock(folder)


def test_a_link_a_folder_and_a_pipe_are_no_key_files(folder):
    path = folder / "master.key"
    real = folder / "real.key"
    path.rename(real)
    path.symlink_to(real)
    with pytest.raises(KeyPermissionError):
        Keyring.load(folder).unlock(folder)
    path.unlink()
    path.mkdir(mode=0o700)
    with pytest.raises(KeyPermissionError):
        Keyring.load(folder).unlock(folder)
    path.rmdir()
    os.mkfifo(path, 0o600)
    with pytest.raises(KeyPermissionError):
        Keyring.load(folder).unlock(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_somebody_elses_key_file_is_refused(folder):
    os.chown(folder / "master.key", 12345, 12345)
    with pytest.raises(KeyPermissionError):
        Keyring.load(folder).unlock(folder)


@pytest.mark.parametrize("content", [b"", b"x" * 31, b"x" * 33, b"x" * 64])
def test_a_key_file_of_another_length_is_refused_without_showing_it(folder, content):
    (folder / "master.key").write_bytes(content)
    with pytest.raises(DataError) as caught:
        Keyring.load(folder).unlock(folder)
    assert "xxxx" not in str(caught.value)


def test_a_missing_key_file_is_a_storage_error(folder):
    (folder / "master.key").unlink()
    with pytest.raises(StorageError):
        Keyring.load(folder).unlock(folder)


def test_the_secret_may_come_from_a_named_file_or_command(folder, tmp_path, monkeypatch):
    expected = Keyring.load(folder).unlock(folder).key("global", "").reveal()
    moved = tmp_path / "elsewhere.key"
    (folder / "master.key").rename(moved)
    monkeypatch.setenv("PROVENANCE_KEY_FILE", str(moved))
    assert Keyring.load(folder).unlock(folder).key("global", "").reveal() == expected
    monkeypatch.setenv("PROVENANCE_KEY_CMD", f"cat {moved}")
    with pytest.raises(UsageError):
        Keyring.load(folder).unlock(folder)
    monkeypatch.delenv("PROVENANCE_KEY_FILE")
    assert Keyring.load(folder).unlock(folder).key("global", "").reveal() == expected
    (tmp_path / "hex").write_text(moved.read_bytes().hex() + "\n")
    monkeypatch.setenv("PROVENANCE_KEY_CMD", f"cat {tmp_path / 'hex'}")
    assert Keyring.load(folder).unlock(folder).key("global", "").reveal() == expected


@pytest.mark.parametrize(
    ("command", "error"),
    [
        ("false", StorageError),
        ("/no/such/program", StorageError),
        ("echo not-a-key-but-secret", DataError),
        ("'unclosed", StorageError),
    ],
)
def test_a_broken_key_command_is_one_line_without_its_output(folder, monkeypatch, command, error):
    monkeypatch.setenv("PROVENANCE_KEY_CMD", command)
    with pytest.raises(error) as caught:
        Keyring.load(folder).unlock(folder)
    assert "but-secret" not in str(caught.value)


def test_a_second_keyring_or_writer_in_one_folder_is_refused(folder, tokenizer_path):
    before = (folder / "keyring.json").read_bytes()
    with pytest.raises(StorageError):
        make_keyring(folder, tokenizer_path)
    with lock_folder(folder), pytest.raises(LockedError):
        add_value(folder, "week", "2026-W30")
    assert (folder / "keyring.json").read_bytes() == before


def test_with_an_external_secret_no_master_file_is_written(tmp_path, tokenizer_path, monkeypatch):
    secret = tmp_path / "s"
    secret.write_bytes(os.urandom(32))
    secret.chmod(0o600)
    monkeypatch.setenv("PROVENANCE_KEY_FILE", str(secret))
    made = make_keyring(tmp_path / "k", tokenizer_path)
    assert not (tmp_path / "k" / "master.key").exists()
    loaded = Keyring.load(tmp_path / "k").unlock(tmp_path / "k")
    assert loaded.key("global", "").reveal() == made.key("global", "").reveal()


@pytest.mark.parametrize(
    ("shares", "values"),
    [
        ({"week": 0.1}, {}),
        ({"global": -0.1}, {}),
        ({"global": 1.1}, {}),
        ({"global": 0.7, "week": 0.7}, {}),
        ({"global": float("nan")}, {}),
        ({"global": 0.1, "control": 0.1}, {}),
        ({"global": 0.1}, {"week": ["a"]}),
        ({"global": 0.1, "week": 0.1}, {"week": ["a", "a"]}),
        ({"global": 0.1, "week": 0.1}, {"week": [""]}),
        ({"global": 0.1, "week": 0.1}, {"week": ["a\nb"]}),
        ({"global": 0.1, "week": 0.1}, {"week": ["x" * 129]}),
    ],
)
def test_impossible_schedules_are_refused(shares, values):
    with pytest.raises(UsageError):
        Schedule.from_shares(shares, values)


def _set(document, path, value):
    for step in path[:-1]:
        document = document[step]
    if value is None:
        del document[path[-1]]
    else:
        document[path[-1]] = value


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (["format"], "other"),
        (["version"], 1),  # it would be marked by another rule
        (["version"], 3),
        (["version"], []),
        (["prompt_contexts"], None),
        (["prompt_contexts"], "marked"),
        (["id"], None),
        (["context_width"], 9),
        (["vocabulary_size"], -1),
        (["vocabulary_size"], "many"),
        (["slots"], []),
        (["slots"], None),
        (["slots", 0, "share_words"], 17),
        (["slots", 1, "name"], "renamed"),
        (["slots", 2, "values", 0, "salt"], "zz"),
        (["slots", 2, "values", 0, "sha256"], "ab"),
        (["selector"], {}),
        (["scheme"], "gumbel"),
    ],
)
def test_a_damaged_keyring_is_one_line(folder, path, value):
    document = json.loads((folder / "keyring.json").read_text())
    _set(document, path, value)
    (folder / "keyring.json").write_text(json.dumps(document))
    with pytest.raises(DataError) as caught:
        Keyring.load(folder)
    assert "\n" not in str(caught.value)


def test_any_change_of_scheme_width_or_values_changes_the_keys(tmp_path, tokenizer_path):
    a = make_keyring(tmp_path / "a", tokenizer_path)
    secret = (tmp_path / "a" / "master.key").read_bytes()
    fields = [a.public.id, '{"name":"gumbel","parameters":{}}', "2", "week", "2026-W17"]
    base = _hkdf(secret, fields)
    for i, other in enumerate(["x", '{"name":"green","parameters":{}}', "3", "cohort", "w"]):
        assert _hkdf(secret, [*fields[:i], other, *fields[i + 1 :]]) != base
    # the info string is injective: moving a character across fields changes the key
    assert _hkdf(secret, [*fields[:3], "week2", "026-W17"]) != base


def test_values_and_shares_of_the_shared_fixture(keyring):
    assert keyring.schedule.names == ("control", "global", "week", "capability", "cohort")
    assert keyring.schedule.attributes == tuple(VALUES)
    assert keyring.schedule.marked_share == pytest.approx(sum(SHARES.values()), abs=1e-9)
    with pytest.raises(ConfigurationMismatchError):
        keyring.key("week", "1999-W01")
    assert SchemeSpecification("gumbel").to_json() == {"name": "gumbel", "parameters": {}}
