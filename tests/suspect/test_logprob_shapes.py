"""Logprobs as OpenAI's APIs write them are the records that we would have written."""

import json

import numpy as np
import pytest

from provenance.errors import DataError
from provenance.suspect.access.logprobs import read_logprobs
from tests.suspect.shapes import FAILED, RESPONSE, batch, chat

TEXT = "return the path of the keyring"
ASKED = "What is to be returned by this function, and why?"


def _content(text):
    tokens = [" " + word if number else word for number, word in enumerate(text.split())]
    tokens += [" self", " def"]
    return [
        {
            "token": token,
            "bytes": list(token.encode()),
            "logprob": -0.5,
            "top_logprobs": [{"token": one, "bytes": list(one.encode()), "logprob": logprob}
                             for one, logprob in ((token, -0.5), (" zz", -2.0))],
        }
        for token in tokens[:-2]
    ]  # fmt: skip


def _chat():
    answer = chat(TEXT)
    answer["choices"][0]["logprobs"] = {"content": _content(TEXT), "refusal": None}
    return answer


def _response():
    part = {"type": "output_text", "text": TEXT, "annotations": [], "logprobs": _content(TEXT)}
    output = [{"type": "message", "id": "m", "role": "assistant", "content": [part]}]
    return {**RESPONSE, "instructions": ASKED, "output": output}


OURS = {"output": TEXT, "logprobs": {"content": _content(TEXT)}}
SHAPES = {
    "bare": (_chat(), OURS),
    "batch": (batch("a", _chat()), OURS),
    "responses": (_response(), {**OURS, "prompt": ASKED}),
    "responses in a batch": (batch("a", _response()), {**OURS, "prompt": ASKED}),
    "beside the request": (
        {"request": {"messages": [{"role": "user", "content": ASKED}]}, "response": _chat()},
        {**OURS, "prompt": ASKED},
    ),
}


def _read(path, record, tokenizer, keyring):
    path.write_text(json.dumps(record) + "\n")
    (part,) = read_logprobs([path], tokenizer, keyring.public)
    return part


@pytest.mark.parametrize("name", SHAPES)
def test_an_answer_of_an_api_is_our_record(tmp_path, tokenizer, keyring, name):
    theirs, ours = (
        _read(tmp_path / "x.jsonl", record, tokenizer, keyring) for record in SHAPES[name]
    )
    assert np.array_equal(theirs.positions.contexts, ours.positions.contexts)
    assert np.array_equal(theirs.positions.prompts[0], ours.positions.prompts[0])
    assert (theirs.positions.prompts[0].size > 0) == ("prompt" in SHAPES[name][1])
    for one, other in zip(theirs.lists[0], ours.lists[0], strict=True):
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one.masses, other.masses)
    assert sum(one is not None for one in theirs.lists[0]) > 0


def _legacy(lists):
    words = [token["token"] for token in _content(TEXT)]
    found = {"tokens": words, "token_logprobs": [-0.5] * len(words), "top_logprobs": lists}
    choice = {"index": 0, "text": TEXT, "finish_reason": "stop", "logprobs": found}
    return {"id": "c", "object": "text_completion", "model": "m", "choices": [choice]}


def _lists():
    return [{one["token"]: one["logprob"] for one in token["top_logprobs"]}
            for token in _content(TEXT)]  # fmt: skip


def test_a_legacy_completion_is_our_record(tmp_path, tokenizer, keyring):
    theirs = _read(tmp_path / "x.jsonl", _legacy(_lists()), tokenizer, keyring)
    ours = _read(tmp_path / "x.jsonl", OURS, tokenizer, keyring)
    assert np.array_equal(theirs.positions.contexts, ours.positions.contexts)
    for one, other in zip(theirs.lists[0], ours.lists[0], strict=True):
        assert (one is None) == (other is None)
        assert one is None or np.array_equal(one.masses, other.masses)


def test_a_token_that_is_listed_because_it_was_drawn_is_not_read(tmp_path, tokenizer, keyring):
    """Two tokens were asked for; in one place the drawn one, less probable, stands beside them."""
    plain, added = _lists(), _lists()
    for lists in (plain, added):
        lists[2] = {" qq": -0.9, " zz": -1.0}
    added[2][" of"] = -3.0
    parts = []
    for lists in (plain, added):
        record = _legacy(lists)
        record["choices"][0]["logprobs"]["token_logprobs"][2] = -3.0
        parts.append(_read(tmp_path / "x.jsonl", record, tokenizer, keyring))
    assert [listed and listed.total for listed in parts[0].lists[0]] == [
        listed and listed.total for listed in parts[1].lists[0]
    ]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_ids_of_an_engine_are_those_of_the_served_tokenizer(tmp_path, tokenizer, keyring, engine):
    ids = tokenizer.encode(TEXT, add_special_tokens=False).ids
    if engine == "vllm":
        lists = [{str(i): {"logprob": -0.5, "rank": 1}, "3": {"logprob": -2.0}} for i in ids]
        output = {"index": 0, "text": TEXT, "token_ids": ids, "logprobs": lists}
        record = {"request_id": "1", "prompt": ASKED, "outputs": [output], "prompt_logprobs": None}
    else:
        told = {
            "id": "1",
            "output_token_logprobs": [[-0.5, i, None] for i in ids],
            "output_top_logprobs": [[[-0.5, i, None], [-2.0, 3, None]] for i in ids],
        }
        record = {"text": TEXT, "output_ids": ids, "meta_info": told, "prompt": ASKED}
    ours = {
        "output_token_ids": ids, "generated": True, "prompt": ASKED,
        "top_logprobs": [[[i, -0.5], [3, -2.0]] for i in ids],
    }  # fmt: skip
    one, other = (_read(tmp_path / "x.jsonl", each, tokenizer, keyring) for each in (record, ours))
    assert np.array_equal(one.positions.contexts, other.positions.contexts)
    assert one.positions.prompts[0].size > 0
    for mine, theirs in zip(one.lists[0], other.lists[0], strict=True):
        assert np.array_equal(mine.ids, theirs.ids)
        assert np.array_equal(mine.masses, theirs.masses)
    record = json.loads(json.dumps(record).replace(TEXT, "another text than these ids"))
    with pytest.raises(DataError, match="ids of the served tokenizer"):
        _read(tmp_path / "x.jsonl", record, tokenizer, keyring)


@pytest.mark.parametrize("lists", [None, [None], [{"a": "b"}], [3], {}])
def test_legacy_logprobs_that_say_too_little_are_one_line(tmp_path, tokenizer, keyring, lists):
    with pytest.raises(DataError, match="without echo"):
        _read(tmp_path / "x.jsonl", _legacy(lists), tokenizer, keyring)


def test_errors_and_refusals_are_records_without_an_answer(tmp_path, tokenizer, keyring):
    refused = chat(None, refusal="No.")
    refused["choices"][0]["logprobs"] = {"content": None, "refusal": []}
    for record in (FAILED, refused):
        assert _read(tmp_path / "x.jsonl", record, tokenizer, keyring).silent == 1


def test_what_has_no_logprobs_or_may_hold_a_prompt_is_refused(tmp_path, tokenizer, keyring):
    for record in (chat(TEXT), {**_chat(), "a_field_of_nobody": ASKED}, {"a": "b"}):
        with pytest.raises(DataError):
            _read(tmp_path / "x.jsonl", record, tokenizer, keyring)
    path = tmp_path / "y.jsonl"
    path.write_bytes(b"PAR1")
    with pytest.raises(DataError, match="this is a Parquet file"):
        list(read_logprobs([path], tokenizer, keyring.public))
