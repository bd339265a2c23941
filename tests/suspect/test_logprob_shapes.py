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
