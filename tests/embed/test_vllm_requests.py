"""What a vLLM request may ask, what is refused, and how a running server follows new values."""

import logging
import shutil
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provenance.embed.vllm import requests as vllm_requests
from provenance.embed.vllm.requests import (
    KEYRING_VARIABLE,
    LABELS_FIELD,
    PublicKeyring,
    ServedWatermark,
    admit_request,
    check_request,
    check_server,
    parse_labels,
)
from provenance.embed.vllm.responses import request_fields
from provenance.embed.watermark import Watermark
from provenance.errors import (
    ConfigurationMismatchError,
    DataError,
    KeyPermissionError,
    StorageError,
    UsageError,
)
from provenance.keys.keyring import Keyring, add_value
from provenance.keys.worker import export_worker
from tests.conftest import make_keyring

SHARES = {"global": 0.5, "week": 0.5}
NAMES = st.text(min_size=1, max_size=20).filter(lambda text: "=" not in text)
LABELS = st.dictionaries(NAMES, st.text(min_size=1, max_size=20), max_size=5)


def _request(labels=("week=2026-W17",), temperature=0.8, **more):
    fields = {} if labels is None else {LABELS_FIELD: list(labels)}
    return SimpleNamespace(temperature=temperature, extra_args=fields, **more)


@given(LABELS)
def test_labels_survive_the_request(labels):
    assert parse_labels(request_fields(labels)["vllm_xargs"]) == labels


@pytest.mark.parametrize(
    "fields",
    [
        {LABELS_FIELD: "week=2026-W17"},
        {LABELS_FIELD: {"week": "2026-W17"}},
        {LABELS_FIELD: None},
        {LABELS_FIELD: 1},
        {LABELS_FIELD: ["week"]},
        {LABELS_FIELD: ["=2026-W17"]},
        {LABELS_FIELD: ["week="]},
        {LABELS_FIELD: ["week=a", "week=b"]},
        {LABELS_FIELD: ["week=a", 7]},
        {"provenance_label": ["week=a"]},
        {"provenance": "week=a"},
        {LABELS_FIELD: ["week=a"], "provenance_week": "a"},
    ],
)
def test_malformed_labels_are_refused_not_ignored(fields):
    with pytest.raises(UsageError):
        parse_labels(fields)


@pytest.mark.parametrize("fields", [None, {}, {"session_id": "x", "other": [1]}])
def test_a_request_without_the_field_is_not_marked(fields):
    assert parse_labels(fields) is None
    assert check_request(SimpleNamespace(temperature=0.0, extra_args=fields)) is None


@pytest.mark.parametrize("temperature", [0.0, 9e-6, -1.0, float("nan")])
def test_greedy_decoding_is_refused_with_the_mark(temperature):
    with pytest.raises(UsageError, match="greedy"):
        check_request(_request(temperature=temperature))


def test_a_given_trace_is_refused_with_the_mark():
    assert check_request(_request(trace_decode_token_ids=None)).labels == {"week": "2026-W17"}
    with pytest.raises(UsageError, match="trace"):
        check_request(_request(trace_decode_token_ids=[1, 2]))


@pytest.mark.parametrize("label", ["week=1999-W01", "wek=2026-W17", "global=", "global=x"])
def test_a_label_without_a_key_is_refused(monkeypatch, keyring_folder, label):
    monkeypatch.setenv(KEYRING_VARIABLE, str(keyring_folder))
    admit_request(_request())
    admit_request(_request(labels=[]))
    admit_request(_request(labels=None, temperature=0.0))
    with pytest.raises(ValueError, match="label"):
        admit_request(_request(labels=[label]))


def test_admission_needs_no_secret(monkeypatch, tmp_path, keyring_folder):
    shutil.copy(keyring_folder / "keyring.json", tmp_path)
    monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path))
    admit_request(_request())
    with pytest.raises(StorageError):
        ServedWatermark(tmp_path)


def test_a_server_without_a_keyring_says_so(monkeypatch):
    monkeypatch.delenv(KEYRING_VARIABLE, raising=False)
    admit_request(_request(labels=None))
    with pytest.raises(UsageError, match=KEYRING_VARIABLE):
        admit_request(_request())


def test_a_value_added_while_the_server_runs_is_served(tmp_path, tokenizer_path, caplog):
    folder = tmp_path / "ring"
    make_keyring(folder, tokenizer_path, shares=SHARES, values={"week": ["a"]})
    public, served = PublicKeyring(folder), ServedWatermark(folder)
    before = served.watermark
    served.follow({"week": "a"})
    assert served.watermark is before
    for side in (public.check_labels, served.follow):
        with pytest.raises(ConfigurationMismatchError):
            side({"week": "b"})
    add_value(folder, "week", "b")
    with caplog.at_level(logging.INFO, "provenance.keys"):
        public.check_labels({"week": "b"})
        served.follow({"week": "b"})
    assert [record.name for record in caplog.records] == ["provenance.keys.following"] * 2
    assert served.watermark is not before
    fresh = Watermark.load(folder).keyring.key("week", "b").fingerprint
    assert served.watermark.keyring.key("week", "b").fingerprint == fresh


def test_the_secret_is_read_once(tmp_path, tokenizer_path):
    folder = tmp_path / "ring"
    make_keyring(folder, tokenizer_path, shares=SHARES, values={"week": ["a"]})
    served = ServedWatermark(folder)
    add_value(folder, "week", "b")
    (folder / "master.key").unlink()
    served.follow({"week": "b"})
    assert "week" in served.watermark.keyring.schedule.names


def test_another_keyring_in_the_place_of_the_first_is_refused(tmp_path, tokenizer_path):
    for name, weeks in (("one", ["a"]), ("two", ["a", "b"])):
        make_keyring(tmp_path / name, tokenizer_path, shares=SHARES, values={"week": weeks})
    public = PublicKeyring(tmp_path / "one")
    shutil.copy(tmp_path / "two" / "keyring.json", tmp_path / "one" / "keyring.json")
    with pytest.raises(ConfigurationMismatchError, match="only grow"):
        public.check_labels({"week": "b"})
    public.check_labels({"week": "a"})


def test_an_exposed_key_stops_the_server_and_shows_nothing(tmp_path, tokenizer_path):
    folder = tmp_path / "ring"
    make_keyring(folder, tokenizer_path)
    served = ServedWatermark(folder)
    secret = (folder / "master.key").read_bytes()
    assert secret.hex() not in repr(served)
    assert repr(secret) not in repr(vars(served.watermark))
    (folder / "master.key").chmod(0o644)
    with pytest.raises(KeyPermissionError):
        ServedWatermark(folder)


def test_the_model_must_fit_the_keyring_and_logprobs_must_not_show_the_mark(keyring):
    size = keyring.public.vocabulary_size
    check_server(keyring.public, size, "raw_logprobs")
    with pytest.raises(ConfigurationMismatchError, match="vocabulary"):
        check_server(keyring.public, size + 1, "raw_logprobs")
    for mode in ("processed_logprobs", "processed_logits"):
        with pytest.raises(ConfigurationMismatchError, match="logprobs"):
            check_server(keyring.public, size, mode)


def test_next_keys_are_those_of_the_draw(keyring_folder):
    """Rows that it names are exactly the rows that `draw` marks, with the same key."""
    served = ServedWatermark(keyring_folder, np.random.default_rng(1))
    generator = np.random.default_rng(2)
    labels = {"week": "2026-W17", "capability": "code", "cohort": "a"}
    responses = [generator.integers(0, 90, n).astype(np.uint32) for n in range(40)]
    prompt = served.watermark.read_prompt([1, 2, 3])
    keys = served.watermark.next_keys([labels] * 40, responses, [prompt] * 40)
    candidates = np.arange(50, dtype=np.uint32)
    for key, response in zip(keys, responses, strict=True):
        draw = served.watermark.draw(labels, response, candidates, np.ones(50), prompt)
        assert draw.key is key
    assert 0 < sum(key is not None for key in keys) < 40


def test_the_public_keyring_is_cached_per_folder(monkeypatch, keyring_folder):
    monkeypatch.setenv(KEYRING_VARIABLE, str(keyring_folder))
    vllm_requests._public_keyring.cache_clear()
    for _ in range(3):
        admit_request(_request())
    assert vllm_requests._public_keyring.cache_info().misses == 1


def _export(folder, weeks, file):
    values, expires = [f"week={week}" for week in weeks], datetime.now(UTC) + timedelta(days=1)
    export_worker(Keyring.load(folder).unlock(folder), values, expires=expires, file=file)
    return file


def test_a_worker_admits_what_was_exported_and_follows_a_new_file(
    monkeypatch, tmp_path, tokenizer_path
):
    """Two-phase rotation: a value is in the keyring, then on the workers, then admitted."""
    folder = tmp_path / "ring"
    make_keyring(folder, tokenizer_path, shares=SHARES, values={"week": ["a", "b"]})
    file = _export(folder, ["a"], tmp_path / "worker.key")
    monkeypatch.setenv(KEYRING_VARIABLE, str(file))
    admit_request(_request(labels=["week=a"]))
    admit_request(_request(labels=[]))
    public, served = PublicKeyring(file), ServedWatermark(file)
    before = served.watermark
    served.follow({"week": "a"})
    assert served.watermark is before
    for side in (public.check_labels, served.follow, _admit):
        for week in ("b", "c"):
            with pytest.raises(ConfigurationMismatchError, match="export-worker"):
                side({"week": week})
    add_value(folder, "week", "c")
    _export(folder, ["b", "c"], file)
    for side in (public.check_labels, served.follow, _admit):
        for week in "bca":  # no key is forgotten before a restart
            side({"week": week})
    secret = Watermark.load(folder).keyring.key("week", "c")
    assert served.watermark.keyring.key("week", "c").fingerprint == secret.fingerprint
    for thing in (public, vars(public), vars(public.known), served, vars(served)):
        assert secret.reveal().hex() not in repr(thing)
    with pytest.raises(ConfigurationMismatchError, match="export-worker"):
        ServedWatermark(file).follow({"week": "a"})


def _admit(labels):
    admit_request(_request(labels=[f"{name}={value}" for name, value in labels.items()]))


def test_a_worker_takes_no_other_keyring_and_no_file_that_is_damaged_or_expired(
    tmp_path, tokenizer_path
):
    for name in ("one", "two"):
        make_keyring(tmp_path / name, tokenizer_path, shares=SHARES, values={"week": ["a", "b"]})
    file = _export(tmp_path / "one", ["a"], tmp_path / "worker.key")
    sides = PublicKeyring(file), ServedWatermark(file)
    _export(tmp_path / "two", ["a", "b"], file)
    for side in sides:
        with pytest.raises(ConfigurationMismatchError, match="only grow"):
            side.check_labels({"week": "b"})
    file.write_text("{}")
    for side in sides:
        with pytest.raises(DataError):
            side.check_labels({"week": "b"})
        side.check_labels({"week": "a"})
    for made in (PublicKeyring, ServedWatermark):
        with pytest.raises(DataError):
            made(file)
    file.chmod(0o644)
    for made in (PublicKeyring, ServedWatermark):
        with pytest.raises(KeyPermissionError):
            made(file)
