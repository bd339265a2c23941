"""Served logs in the shapes of APIs: text, and what a log must say beside it."""

import json

import pytest

from provenance.errors import DataError
from provenance.keys.tokenizer import read_tokenizer
from provenance.served.log import read_log
from tests.suspect.shapes import ANSWER, ASKED, FAILED, SECOND, batch, chat

LABELS = {"week": "2026-W17"}


def _log(tmp_path, tokenizer_path, *records):
    path = tmp_path / "served.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    tokenizer = read_tokenizer(tokenizer_path)
    reader = read_log([path], tokenizer=tokenizer, vocabulary_size=1 << 16)
    rows = [row for part in reader for row in part.to_pylist()]
    return rows, reader.statistics, tokenizer


def test_a_batch_with_labels_is_a_log_of_text(tmp_path, tokenizer_path):
    records = [{**batch(name, chat()), "marked": True, "labels": LABELS} for name in "ab"]
    rows, counts, tokenizer = _log(tmp_path, tokenizer_path, *records, FAILED)
    ids = tokenizer.encode(ANSWER, add_special_tokens=False).ids
    assert [row["token_ids"] for row in rows] == [ids, ids]
    assert [row["response_id"] for row in rows] == ["a/1", "b/1"]
    assert all(dict(row["labels"]) == LABELS for row in rows)
    assert (counts.marked, counts.marked_retokenised) == (2, 2)


def test_turns_of_a_record_are_one_conversation_and_a_copy_counts_once(tmp_path, tokenizer_path):
    turns = [*ASKED, {"role": "assistant", "content": ANSWER}]
    turns += [*ASKED, {"role": "assistant", "content": SECOND}]
    record = {"id": "c", "messages": turns, "marked": False}
    rows, counts, _ = _log(tmp_path, tokenizer_path, record)
    assert len(rows) == len({row["response_id"] for row in rows}) == 2
    assert len({row["conversation_id"] for row in rows}) == 1
    assert counts.duplicates == 0
    answers = [{**batch("a", chat()), "marked": True}] * 2
    assert _log(tmp_path, tokenizer_path, *answers)[1].duplicates == 1


def test_what_a_log_must_say_is_asked_for(tmp_path, tokenizer_path):
    with pytest.raises(DataError, match="marked must be true or false"):
        _log(tmp_path, tokenizer_path, batch("a", chat()))
    lost = {**batch("a", chat(None, refusal="No.")), "marked": True}
    with pytest.raises(DataError, match=r"line 1: a served response must hold its text.*refusal"):
        _log(tmp_path, tokenizer_path, lost)
