"""What a record says of its own draws: bits of every token, how it ended, and what is made of it.

A context counts if and only if it was reached; what was drawn there must not matter.
"""

from __future__ import annotations

import base64

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from provenance.embed.sink import ResponseSink
from provenance.embed.watermark import Watermark
from provenance.errors import DataError
from provenance.served.build import build_index, merge_indexes
from provenance.served.index import Index
from provenance.served.index_manifest import MANIFEST_FILE, IndexManifest
from provenance.served.records import check_drawn, pack_drawn, unpack_drawn
from provenance.served.windows import windows
from provenance.served.writer import LogWriter

LABELS = {"week": "w1", "capability": "code"}


def _b64(*bits):
    return base64.b64encode(pack_drawn(np.array(bits, dtype=np.bool_))).decode()


@given(st.lists(st.one_of(st.none(), st.lists(st.booleans(), max_size=40)), max_size=12))
def test_bits_survive_packing(rows):
    bits = [row if row is not None else [True] * 3 for row in rows]
    lengths = np.array([len(row) for row in bits], dtype=np.int64)
    packed = pa.array(
        [None if row is None else pack_drawn(np.array(row, dtype=np.bool_)) for row in rows],
        pa.binary(),
    )
    marked = np.array([any(row) for row in bits], dtype=np.bool_)
    check_drawn(packed, lengths, marked, str)
    assert unpack_drawn(packed, lengths).tolist() == [bit for row in bits for bit in row]


def _with_bits(records, keyring, seed):
    """Marked records of a random log with bits that a real engine could have written."""
    rng = np.random.default_rng(seed)
    k, schedule = keyring.context_width, keyring.schedule
    for record in records:
        ids = np.array(record["token_ids"], dtype=np.uint32)
        bits = np.zeros(len(ids), dtype=np.bool_)
        for i in range(k, len(ids)):
            slot = schedule.slots[int(keyring.slots_of(ids[np.newaxis, i - k : i])[0])]
            has_key = slot.name == "global" or record["labels"].get(slot.name) in slot.values
            # one draw in four had a single candidate left: no coin decided it
            bits[i] = slot.name != "control" and has_key and rng.random() < 0.75
        record["marked"] = bool(bits.any())
        if rng.random() < 0.8:
            record["drawn"] = _b64(*bits)
    return records


@pytest.mark.parametrize("width", [1, 2, 3])
def test_the_index_counts_contexts_of_keys_where_a_coin_decided(
    tmp_path, make_keyring, make_log, write_log, oracle, width
):
    keyring = make_keyring(width)
    records = _with_bits(make_log(width, 300), keyring, width)
    log = write_log(tmp_path / "a.jsonl", records)
    build_index([log], tmp_path / "i", keyring)
    with Index.open(tmp_path / "i", keyring.public) as index:
        table = pq.read_table(tmp_path / "i" / index.manifest.table).to_pylist()
    counted = {(r["slot"], r["context"], r["value"]): r["responses"] for r in table}
    expected = {
        (slot, sum(int(t) << 21 * (width - 1 - j) for j, t in enumerate(context)), value): n
        for (slot, context, value), n in oracle(records, keyring).items()
    }
    assert counted == expected
    without = [{n: v for n, v in record.items() if n != "drawn"} for record in records]
    assert oracle(without, keyring) != oracle(records, keyring)


BAD = {
    "too few bytes": {"drawn": ""},
    "too many bytes": {"drawn": _b64(*[0] * 16, 1)},
    "a bit beyond the last token": {"drawn": _b64(0, 0, 1, 1)},
    "no base64": {"drawn": "%%%%"},
    "a list": {"drawn": [0, 0, 1]},
    "a number": {"drawn": 4},
    "bits of text": {"token_ids": None, "text": "the cat", "drawn": _b64(0, 0, 1)},
    "marked, and no bit": {"drawn": _b64(0, 0, 0)},
    "a bit, and not marked": {"marked": False, "drawn": _b64(0, 0, 1)},
    "finish is a number": {"finish": 3},
}


@pytest.mark.parametrize("form", ["jsonl", "parquet"])
@pytest.mark.parametrize("name", BAD)
def test_bits_that_cannot_be_are_refused(tmp_path, write_log, read, tokenizer_path, name, form):
    from provenance.keys.tokenizer import read_tokenizer

    record = {"response_id": "a", "marked": True, "token_ids": [1, 2, 3], **BAD[name]}
    good = {"response_id": "b", "marked": True, "token_ids": [1, 2, 3], "drawn": _b64(0, 0, 1)}
    path = tmp_path / f"a.{form}"
    if form == "jsonl":
        write_log(path, [good, record])
    else:
        if isinstance(record.get("drawn"), str):
            try:
                record["drawn"] = base64.b64decode(record["drawn"], validate=True)
            except ValueError:
                record["drawn"] = 5
        rows = [{**good, "drawn": base64.b64decode(good["drawn"])}, record]
        columns = {n: [row.get(n) for row in rows] for n in {*rows[0], *rows[1]}}
        try:
            pq.write_table(pa.table(columns), path)
        except (pa.ArrowException, TypeError):
            pytest.skip("Arrow itself cannot hold such a column")
    with pytest.raises(DataError) as caught:
        read(path, tokenizer=read_tokenizer(tokenizer_path))
    assert "\n" not in str(caught.value)
    assert form == "parquet" or "line 2" in str(caught.value)


def test_a_draw_where_no_key_decides_is_refused(tmp_path, keyring, write_log):
    """Bits of another keyring, or of labels that the record does not carry."""
    rng = np.random.default_rng(5)
    ids = rng.integers(0, 300, 40)
    record = {"response_id": "a", "marked": True, "labels": LABELS, "token_ids": ids.tolist()}
    for bits in (np.ones(40, dtype=np.bool_), np.arange(40) == 1):
        log = write_log(tmp_path / "a.jsonl", [{**record, "drawn": _b64(*bits)}])
        with pytest.raises(DataError, match="only where a key of the keyring decides"):
            build_index([log], tmp_path / "i", keyring)


def _responses(keyring, count):
    """Responses that end with token 7 or at 30 tokens, drawn by a real watermark."""
    watermark = Watermark(keyring, np.random.default_rng(3))
    p = np.full(300, 1 / 300)
    p[7] = 0.1
    everything, prompt = np.arange(300, dtype=np.uint32), watermark.read_prompt([])
    for _ in range(count):
        ids = np.array([11, 12], dtype=np.uint32)
        while len(ids) < 30 and ids[-1] != 7:
            token = watermark.draw(LABELS, ids, everything, p / p.sum(), prompt).token
            ids = np.append(ids, np.uint32(token))
        yield ids


def test_the_sink_keeps_the_end_and_the_index_counts_the_context_before_it(tmp_path, keyring):
    watermark, last = Watermark(keyring), set()
    with ResponseSink(watermark, tmp_path / "a.parquet") as sink:
        for ids in _responses(keyring, 60):
            ended = ids[-1] == 7
            sink.write(LABELS, ids, prompt_token_ids=[], finish="end" if ended else "length")
            if ended and watermark.marked_positions(LABELS, ids, [])[-1]:
                last.add(tuple(ids[-3:-1].tolist()))
    manifest = build_index([tmp_path / "a.parquet"], tmp_path / "i", keyring)
    assert (manifest.unended, manifest.marked_retokenised) == (0, 0)
    assert manifest.end_tokens == [7]
    assert len(last) > 10
    counted = set()
    with Index.open(tmp_path / "i", keyring.public) as index:
        table = pq.read_table(tmp_path / "i" / index.manifest.table)
    for slot, packed in zip(table["slot"].to_pylist(), table["context"].to_pylist(), strict=True):
        if slot:
            counted.add((packed >> 21, packed & ((1 << 21) - 1)))
    assert last <= counted


def test_a_response_whose_only_draw_was_the_end_is_marked(tmp_path, keyring):
    """Dropping the end made such a response unmarked: the coins decided what counted."""
    watermark = Watermark(keyring)
    rng = np.random.default_rng(8)
    while True:
        ids = rng.integers(0, 300, 3).astype(np.uint32)
        if watermark.marked_positions(LABELS, ids, [])[-1]:
            break
    with ResponseSink(watermark, tmp_path / "a.jsonl") as sink:
        assert sink.write(LABELS, ids, prompt_token_ids=[], finish="end")
        assert not sink.write(LABELS, ids[:-1], prompt_token_ids=[], finish="length")


def test_who_does_not_say_how_a_response_ended_does_not_claim_to_be_whole(
    tmp_path, keyring, read, tokenizer_path
):
    watermark = Watermark(keyring)
    (ids,) = _responses(keyring, 1)
    bits = watermark.marked_positions(LABELS, ids, [])
    with ResponseSink(watermark, tmp_path / "a.jsonl") as sink:
        sink.write(LABELS, ids, prompt_token_ids=[])
        sink.write(LABELS, ids, prompt_token_ids=[], drawn=bits)
        sink.write(LABELS, ids, prompt_token_ids=[], finish="abort")
        sink.write(LABELS, ids, prompt_token_ids=[], drawn=False, finish="end")
        with pytest.raises(DataError, match="finish"):
            sink.write(LABELS, ids, prompt_token_ids=[], finish="content_filter")
        with pytest.raises(DataError, match="drawn"):
            sink.write(LABELS, ids, prompt_token_ids=[], drawn=np.append(bits, True))
    rows, found = read(tmp_path / "a.jsonl")
    assert [row["whole"] for row in rows] == [False, True, True, True]
    assert [row["marked"] for row in rows] == [True, True, True, False]
    assert found.unended == 1


def test_what_makes_an_old_record_whole(tmp_path, write_log, read, tokenizer_path):
    from provenance.keys.tokenizer import read_tokenizer

    finishes = ["length", "end", "stop", "tool_calls", None]
    record = {"marked": True, "token_ids": [1, 2, 3]}
    records = [
        *({**record, "response_id": f"{f}", "finish": f} for f in finishes),
        {"response_id": "t", "marked": True, "text": "the cat sat", "finish": "length"},
        {"response_id": "u", "marked": False, "text": "the cat sat"},
    ]
    path = write_log(tmp_path / "a.jsonl", records)
    rows, found = read(path, tokenizer=read_tokenizer(tokenizer_path))
    assert [row["whole"] for row in rows] == [True, True, False, False, False, False, False]
    assert (found.unended, found.marked_retokenised, found.retokenised) == (3, 1, 2)
    assert found.ends == {3: 1}


def test_a_merge_adds_up_what_is_not_whole(tmp_path, keyring):
    folders = []
    for number, finish in enumerate(("end", None)):
        watermark = Watermark(keyring)
        with ResponseSink(watermark, tmp_path / f"{number}.jsonl") as sink:
            for ids in list(_responses(keyring, 20))[number::2]:
                sink.write(LABELS, ids, prompt_token_ids=[], finish=finish)
        folders.append(tmp_path / f"i{number}")
        build_index([tmp_path / f"{number}.jsonl"], folders[-1], keyring)
    merged = merge_indexes(folders, tmp_path / "m", keyring.public)
    assert merged.unended == IndexManifest.load(folders[1]).unended > 0
    assert merged.ends == IndexManifest.load(folders[0]).ends


def test_an_index_of_the_first_version_says_that_it_may_have_lost_ends(tmp_path, keyring):
    """Whoever built it dropped the end tokens, and nothing of it says how responses ended."""
    import hashlib
    import json

    from provenance.storage.files import canonical_json

    with LogWriter(tmp_path / "a.jsonl") as log:
        for number, ids in enumerate(_responses(keyring, 5)):
            log.write(f"r{number}", labels=LABELS, marked=True, token_ids=ids, finish="length")
    assert build_index([tmp_path / "a.jsonl"], tmp_path / "i", keyring).unended == 0
    path = tmp_path / "i" / MANIFEST_FILE
    document = json.loads(path.read_text())
    document["version"] = 1
    for name in ("marked_retokenised", "unended", "ends"):
        del document["index"][name]
    del document["sha256"]
    document["sha256"] = hashlib.sha256(canonical_json(document)).hexdigest()
    path.write_text(json.dumps(document))
    assert IndexManifest.load(tmp_path / "i").unended == 5
    Index.open(tmp_path / "i", keyring.public).close()


def test_windows_without_bits_are_those_of_all_draws(keyring, read, tmp_path, make_log, write_log):
    path = write_log(tmp_path / "a.jsonl", make_log(9, 50))
    from provenance.served.log import read_log

    (batch,) = read_log([path], tokenizer=None, vocabulary_size=300)
    table = windows(batch, keyring)
    assert table.num_rows
    assert pa.types.is_uint8(table["slot"].type)
