"""The sink of the adapters: what it says of a response follows from the ids and the keyring."""

import base64
import json
import shutil
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from provenance.embed.sink import ResponseSink
from provenance.embed.watermark import Watermark
from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.keys.keyring import Keyring, add_value
from provenance.keys.worker import export_worker
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.served.log import read_log
from provenance.served.records import ServedResponse
from provenance.served.rotation import RotatingLog
from provenance.served.writer import LogWriter
from tests.conftest import VALUES, make_keyring

LABELS = {"week": "2026-W17", "cohort": "a"}


@pytest.fixture
def watermark(keyring):
    return Watermark(keyring)


def _responses(keyring, count, tokens=60):
    size = keyring.public.vocabulary_size
    return np.random.default_rng(1).integers(0, size, (count, tokens)).astype(np.uint32)


def test_marked_is_replayed_and_the_record_says_how_it_was_made(keyring, watermark, tmp_path):
    (long,) = _responses(keyring, 1)
    with ResponseSink(watermark, tmp_path / "a.jsonl") as sink:
        assert sink.write(LABELS, long, prompt_token_ids=long[:4], text="x", conversation_id="c")
        assert not sink.write(
            LABELS, long[:2], prompt_token_ids=[]
        )  # shorter than a context: nothing was marked
        assert not sink.write(LABELS, long, drawn=False, response_id="greedy", time="then")
    first, second, third = map(json.loads, (tmp_path / "a.jsonl").read_text().splitlines())
    assert first["token_ids"] == long.tolist()
    assert first["labels"] == LABELS
    assert (first["keyring_id"], first["scheme"]) == (keyring.public.id, "gumbel")
    assert (first["marked"], second["marked"], third["marked"]) == (True, False, False)
    assert (third["response_id"], third["time"]) == ("greedy", "then")
    assert len({first["response_id"], second["response_id"]}) == 2
    assert first["time"].endswith("+00:00")


def test_contexts_of_the_prompt_are_replayed_as_unmarked_and_a_missing_prompt_is_refused(
    keyring, watermark, tokenizer_path, tmp_path
):
    (ids,) = _responses(keyring, 1)
    with ResponseSink(watermark, tmp_path / "a.jsonl") as sink:
        assert not sink.write(LABELS, ids, prompt_token_ids=ids, finish="length")
        with pytest.raises(UsageError, match="prompts must be given"):
            sink.write(LABELS, ids, finish="length")
        drawn = watermark.marked_positions(LABELS, ids, [])
        assert sink.write(LABELS, ids, drawn=drawn)
        assert not sink.write(LABELS, ids, drawn=False)
    old = make_keyring(tmp_path / "old", tokenizer_path, reads_prompt=False)
    with ResponseSink(Watermark(old), tmp_path / "b.jsonl") as sink:
        assert sink.write(LABELS, ids, prompt_token_ids=ids)
        assert sink.write(LABELS, ids)


def test_every_form_of_write_gives_the_same_record(keyring, watermark, tmp_path):
    """A response of an adapter, its fields by name, or labels and ids."""
    (ids,) = _responses(keyring, 1)
    response = ServedResponse(
        "r", labels=LABELS, token_ids=ids, finish="length", time="then", prompt_token_ids=[1, 2]
    )
    with ResponseSink(watermark, tmp_path / "a.jsonl") as sink:
        assert sink.write(response)
        assert sink.write(**vars(response))
        more = {"finish": "length", "response_id": "r", "time": "then"}
        assert sink.write(LABELS, ids, prompt_token_ids=[1, 2], **more)
        assert sink.write(replace(response, token_ids=ids.tolist()))
        assert sink.write(response, labels={**LABELS, "account": "7"}, text="x")
        assert not sink.write(replace(response, marked=False))
        with pytest.raises(UsageError, match="token_ids"):
            sink.write(LABELS)
        with pytest.raises(DataError):
            sink.write(LABELS, [-1])
    first, *same, more, plain = (tmp_path / "a.jsonl").read_text().splitlines()
    assert set(same) == {first}
    assert json.loads(more)["labels"] == {**LABELS, "account": "7"}
    assert (json.loads(more)["text"], json.loads(plain)["marked"]) == ("x", False)
    assert json.loads(first)["drawn"] == json.loads(more)["drawn"]
    with LogWriter(tmp_path / "b.jsonl") as log, pytest.raises(UsageError, match="ResponseSink"):
        log.append(response)


@pytest.mark.parametrize("kind", ["object", "folder", "worker", "expired"])
def test_a_sink_needs_no_secret_where_records_say_what_was_drawn(keyring, tmp_path, kind):
    """The record is byte for byte that of a sink with the watermark."""
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys/keyring.json").write_text(json.dumps(keyring.public.to_json()))
    until = datetime.now(UTC) + timedelta(seconds=2 if kind == "expired" else 900)
    export_worker(keyring, ["week=2026-W17"], expires=until, file=tmp_path / "worker.key")
    if kind == "expired":
        time.sleep(max(0, (until - datetime.now(UTC)).total_seconds()))
        with pytest.raises(ConfigurationMismatchError, match="expired"):
            Watermark.load(tmp_path / "worker.key")
    given = {"object": keyring.public, "folder": str(tmp_path / "keys")}
    (ids,), watermark = _responses(keyring, 1), Watermark(keyring)
    response = ServedResponse(
        "r", labels=LABELS, token_ids=ids, finish="length", time="then", prompt_token_ids=[1, 2]
    )
    drawn = watermark.marked_positions(LABELS, ids, [1, 2])
    with ResponseSink(watermark, tmp_path / "a.jsonl") as sink:
        assert sink.write(response)
    with ResponseSink(given.get(kind, tmp_path / "worker.key"), tmp_path / "b.jsonl") as sink:
        assert sink.write(response, drawn=drawn)
        assert sink.write(replace(response, drawn=drawn))
        assert not sink.write(response, drawn=False)
        with pytest.raises(UsageError, match="has no keys"):
            sink.write(response)
        assert keyring.key("global", "").reveal().hex() not in repr(vars(sink))
    expected = (tmp_path / "a.jsonl").read_text()
    assert (tmp_path / "b.jsonl").read_text().startswith(expected * 2)


def test_a_sink_with_a_workers_keys_replays_the_labels_that_it_has(keyring, tmp_path):
    file, (ids,) = tmp_path / "worker.key", _responses(keyring, 1)
    expires = datetime.now(UTC) + timedelta(days=1)
    export_worker(keyring, ["week=2026-W17", "cohort=a"], expires=expires, file=file)
    response = ServedResponse(
        "r", labels=LABELS, token_ids=ids, finish="length", time="then", prompt_token_ids=[1, 2]
    )
    for name, made in (("a", Watermark(keyring)), ("b", Watermark.load(file))):
        with ResponseSink(made, tmp_path / f"{name}.jsonl") as sink:
            assert sink.write(response)
    refused = pytest.raises(ConfigurationMismatchError, match="export-worker")
    with ResponseSink(Watermark.load(file), tmp_path / "c.jsonl") as sink, refused:
        sink.write(replace(response, labels={"week": "2026-W18"}))
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()


def test_a_path_is_a_file_or_a_folder_and_an_open_log_is_used(watermark, tmp_path):
    assert isinstance(ResponseSink(watermark, tmp_path / "a.parquet").log, LogWriter)
    assert isinstance(ResponseSink(watermark, tmp_path / "served").log, RotatingLog)
    log = RotatingLog(tmp_path / "own", form="parquet")
    assert ResponseSink(watermark, log).log is log


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
def test_the_index_of_a_rotated_folder_is_that_of_one_file(
    keyring, watermark, tokenizer_path, tmp_path, form
):
    folder = tmp_path / "served"
    log = RotatingLog(folder, form=form, maximum_rows=3)
    with ResponseSink(watermark, log) as sink, ResponseSink(watermark, tmp_path / "a.jsonl") as one:
        for ids in _responses(keyring, 10):
            sink.write(LABELS, ids, prompt_token_ids=[])
            one.write(LABELS, ids, prompt_token_ids=[])
    assert len(list(folder.iterdir())) == 4
    built = [
        build_index([path], tmp_path / name, keyring, tokenizer_path)
        for path, name in ((folder, "i"), (tmp_path / "a.jsonl", "j"))
    ]
    assert built[0].content_sha256 == built[1].content_sha256
    assert built[0].marked_responses == 10
    assert len(Index.open(tmp_path / "i", None).info()["logs"]) == 4
    size = keyring.public.vocabulary_size
    rows = [
        r for b in read_log([folder], tokenizer=None, vocabulary_size=size) for r in b.to_pylist()
    ]
    assert [row["token_ids"] for row in rows] == _responses(keyring, 10).tolist()


@pytest.mark.parametrize("kind", ["keyring", "worker"])
def test_a_value_that_is_added_later_reaches_an_open_sink(tokenizer_path, tmp_path, kind):
    """The engine follows the keyring; a sink that did not refused, and lost, the new week."""
    keyring = make_keyring(tmp_path / "ring", tokenizer_path)
    home, soon = tmp_path / "ring", datetime.now(UTC) + timedelta(days=1)
    if kind == "worker":
        home = tmp_path / "worker.json"
        export_worker(keyring, ["week=2026-W17"], expires=soon, file=home)
    ids = _responses(keyring, 3)
    new = {"week": "2026-W20"}
    with ResponseSink(Watermark.load(home), tmp_path / "a.jsonl") as sink:
        with pytest.raises(ConfigurationMismatchError, match="2026-W20"):
            sink.write(new, ids[0], prompt_token_ids=[], finish="length")
        add_value(tmp_path / "ring", "week", "2026-W20")
        if kind == "worker":
            grown = Keyring.load(tmp_path / "ring").unlock(tmp_path / "ring")
            export_worker(grown, ["week=2026-W20"], expires=soon, file=home)
        assert sink.write(new, ids[1], prompt_token_ids=[], finish="length")
        assert sink.write({"week": "2026-W17"}, ids[2], prompt_token_ids=[], finish="length")
        with pytest.raises(ConfigurationMismatchError, match="2026-W21"):
            sink.write({"week": "2026-W21"}, ids[0], prompt_token_ids=[], finish="length")
    written = list(read_log([tmp_path / "a.jsonl"], tokenizer=None, vocabulary_size=1 << 20))
    assert sum(batch.num_rows for batch in written) == 2
    whole = Watermark.load(tmp_path / "ring")
    drawn = json.loads((tmp_path / "a.jsonl").read_text().splitlines()[0])["drawn"]
    expected = np.packbits(whole.marked_positions(new, ids[1], []), bitorder="little")
    assert base64.b64decode(drawn) == expected.tobytes()


def test_a_misspelt_value_costs_a_look_at_the_file_and_not_a_reading(
    tokenizer_path, tmp_path, monkeypatch
):
    make_keyring(tmp_path / "ring", tokenizer_path)
    watermark, read = Watermark.load(tmp_path / "ring"), []
    load = Keyring.load
    monkeypatch.setattr(Keyring, "load", lambda *given: read.append(1) or load(*given))
    with ResponseSink(watermark, tmp_path / "a.jsonl") as sink:
        for _ in range(5):
            with pytest.raises(ConfigurationMismatchError):
                sink.write({"week": "W"}, np.arange(9, dtype=np.uint32), prompt_token_ids=[])
    assert len(read) <= 1


def test_another_keyring_under_the_same_name_is_not_followed(tokenizer_path, tmp_path):
    make_keyring(tmp_path / "ring", tokenizer_path)
    with ResponseSink(Watermark.load(tmp_path / "ring"), tmp_path / "a.jsonl") as sink:
        shutil.rmtree(tmp_path / "ring")
        make_keyring(tmp_path / "ring", tokenizer_path, values={**VALUES, "week": ["new"]})
        with pytest.raises(ConfigurationMismatchError):
            sink.write({"week": "new"}, np.arange(9, dtype=np.uint32), prompt_token_ids=[])
