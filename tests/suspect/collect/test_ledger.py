"""The chain: whatever is taken out, changed, repeated or moved is found and named."""

import base64
import errno
import hashlib
import itertools
import json
import os

import pytest

import provenance
from provenance.errors import DataError, StorageError, UsageError
from provenance.storage.chain import (
    GENESIS,
    MAXIMUM_RECORD,
    Chain,
    find_breaks,
    read_chain,
    read_links,
)
from provenance.storage.files import canonical_json
from provenance.storage.formats import LEDGER_FILE
from provenance.suspect.collect.answers import pack_body, read_answer, unpack_body

COUNT = 8


@pytest.fixture
def ledger(tmp_path):
    with Chain(tmp_path / LEDGER_FILE) as own:
        for number in range(COUNT):
            own.append("note", text=f"number {number} é", value=number / 3)
    return tmp_path / LEDGER_FILE


def lines_of(path):
    return path.read_bytes().splitlines(keepends=True)


def breaks_of(path):
    return find_breaks(list(read_links(path)))


def test_the_chain_is_what_stock_software_recomputes(ledger):
    previous = "0" * 64
    for number, line in enumerate(lines_of(ledger)):
        record = json.loads(line)
        assert record["previous"] == previous
        assert record["n"] == number
        previous = hashlib.sha256(line[:-1]).hexdigest()
    with Chain(ledger) as own:
        assert len(list(own.replay())) == COUNT
        assert own.head == previous
    assert breaks_of(ledger) == []
    assert GENESIS == "0" * 64


@pytest.mark.parametrize("number", range(COUNT - 1))
def test_a_record_that_was_taken_out_is_named(ledger, number):
    lines = lines_of(ledger)
    ledger.write_bytes(b"".join(lines[:number] + lines[number + 1 :]))
    assert f"record {number} was taken out" in " ".join(breaks_of(ledger))
    with pytest.raises(DataError, match=f"line {number + 1}: must follow"):
        list(read_chain(ledger))


@pytest.mark.parametrize("number", range(COUNT - 1))
def test_a_record_that_was_changed_is_named(ledger, number):
    lines = lines_of(ledger)
    lines[number] = lines[number].replace(b"number", b"nUmber")
    ledger.write_bytes(b"".join(lines))
    assert breaks_of(ledger) == [
        f"line {number + 1}: record {number} was changed, or what line {number + 2} says of it"
    ]


@pytest.mark.parametrize("number", range(COUNT))
def test_a_record_that_stands_twice_is_named(ledger, number):
    lines = lines_of(ledger)
    ledger.write_bytes(b"".join([*lines, lines[number]]))
    assert breaks_of(ledger) == [f"line {COUNT + 1}: record {number} stands there once more"]


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(range(COUNT), 2)))
def test_records_that_were_moved_are_named(ledger, one, other):
    lines = lines_of(ledger)
    lines[one], lines[other] = lines[other], lines[one]
    ledger.write_bytes(b"".join(lines))
    said = " ".join(breaks_of(ledger))
    assert "is not in its place" in said
    assert "taken out" not in said
    with pytest.raises(DataError):
        list(read_chain(ledger))


def test_a_range_that_was_taken_out_is_named(ledger):
    lines = lines_of(ledger)
    ledger.write_bytes(b"".join(lines[:2] + lines[5:]))
    assert breaks_of(ledger) == ["line 3: each of 3 records, 2 to 4, was taken out before it"]


def test_every_bit_counts(ledger):
    content = ledger.read_bytes()
    last = content.rstrip(b"\n").rfind(b"\n")
    for place in range(0, last, 7):
        for bit in (1, 32):
            changed = bytearray(content)
            changed[place] ^= bit
            ledger.write_bytes(bytes(changed))
            assert breaks_of(ledger), place
    ledger.write_bytes(content)


@pytest.mark.parametrize(
    "line",
    [
        b"{}\n",
        b"[]\n",
        b"\n",
        b"\xff\n",
        b'{"n":NaN}\n',
        b'{"n":-1,"kind":"a","previous":"b","time":"c"}\n',
        b'{"kind": "a"}\n',
    ],
)
def test_a_line_that_is_no_record_is_named(ledger, line):
    lines = lines_of(ledger)
    ledger.write_bytes(b"".join([*lines[:3], line, *lines[3:]]))
    assert breaks_of(ledger)[0] == "line 4 is no record: it was changed or put in"


def test_an_end_that_was_cut_off_is_seen_by_the_head_only(ledger):
    lines = lines_of(ledger)
    ledger.write_bytes(b"".join(lines[:-1]))
    assert breaks_of(ledger) == []


def test_what_follows_the_last_line_break_is_no_record(ledger):
    whole = ledger.read_bytes()
    ledger.write_bytes(whole + b'{"kind":"answ')
    assert breaks_of(ledger) == []
    with Chain(ledger) as own:
        assert len(list(own.replay())) == COUNT
        own.append("note")
    assert ledger.read_bytes().startswith(whole)
    assert breaks_of(ledger) == []
    assert len(lines_of(ledger)) == COUNT + 1


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO])
def test_a_record_that_the_disk_refuses_leaves_nothing(ledger, monkeypatch, code):
    def refuse(_descriptor):
        raise OSError(code, os.strerror(code))

    whole = ledger.read_bytes()
    with Chain(ledger) as own:
        list(own.replay())
        with monkeypatch.context() as patched:
            patched.setattr(os, "fsync", refuse)
            with pytest.raises(StorageError, match="what was recorded is kept"):
                own.append("note")
        assert ledger.read_bytes() == whole
        own.append("note")
    assert breaks_of(ledger) == []


def test_an_unopened_ledger_takes_nothing(tmp_path):
    with pytest.raises(UsageError, match="open"):
        Chain(tmp_path / LEDGER_FILE).append("note")


@pytest.mark.parametrize(
    "body", [b"plain", "é\u2028".encode(), b"\xff\xfe\x00", b"", bytes(9 << 20)]
)
def test_raw_bytes_come_back(body):
    packed = pack_body(body)
    assert unpack_body(json.loads(canonical_json(packed))) == body
    assert ("body_base64" in packed) == (b"\xff" in body or len(body) > 1 << 23)
    assert len(canonical_json(packed)) < MAXIMUM_RECORD
    if "body_base64" in packed:
        assert base64.b64decode(packed["body_base64"]) == body


@pytest.mark.parametrize(
    ("status", "body", "outcome"),
    [
        (200, b"", "malformed"),
        (200, b"[]", "malformed"),
        (200, b"{}", "malformed"),
        (200, b'{"choices": []}', "malformed"),
        (200, b'{"choices": [{}]}', "malformed"),
        (200, b'{"choices": [{"message": {}}]}', "empty"),
        (200, b'{"choices": [{"message": {"content": ""}}]}', "empty"),
        (200, b'{"choices": [{"text": "x"}], "usage": {"prompt_tokens": "y"}}', "answer"),
        (
            200,
            b'{"choices": [{"message": {"content": [{"type": "text", "text": "x"}]}}]}',
            "answer",
        ),
        (200, b'{"choices": [{"text": "x", "logprobs": {"content": NaN}}]}', "empty"),
        (500, b"<html>", "error"),
        (400, b'{"error": "no"}', "error"),
        (400, b'{"detail": [1]}', "error"),
    ],
)
def test_answers_of_any_shape_have_an_outcome(status, body, outcome):
    answer = read_answer(status, body)
    assert answer.outcome == outcome
    assert answer.tokens is None


def test_verify_names_what_does_not_follow(tmp_path, ledger):
    found = provenance.verify_collection(tmp_path)
    assert found.exit_code == 1
    assert "must be a record of kind 'note'" in found.say()
    with pytest.raises(StorageError):
        provenance.verify_collection(tmp_path / "nowhere")
