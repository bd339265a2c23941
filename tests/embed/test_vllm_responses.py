"""From the server's answers to log records: whole answers, streams, ends, and what is refused."""

import pytest

from provenance.embed.vllm.responses import read_responses, request_fields
from provenance.errors import DataError, UsageError

LABELS = {"week": "2026-W17"}


def _completion(*choices, **more):
    return {"id": "cmpl-1", "created": 1795720582, "choices": list(choices), **more}


def _choice(index=0, ids=(5, 6), text="ab", prompt=None, finish=None, stop=None):
    return {
        "index": index,
        "token_ids": None if ids is None else list(ids),
        "text": text,
        "prompt_token_ids": prompt,
        "finish_reason": finish,
        "stop_reason": stop,
    }


def test_a_whole_answer():
    chunk = _completion(_choice(0, prompt=[3, 4], finish="length"), _choice(1, [7], "c"))
    first, second = read_responses(request_fields(LABELS), [chunk])
    assert (first.request_id, second.request_id) == ("cmpl-1/0", "cmpl-1/1")
    assert first.token_ids.tolist() == [5, 6]
    assert first.prompt_token_ids.tolist() == [3, 4]
    assert second.prompt_token_ids is None
    assert first.labels == LABELS
    assert first.marked is None
    assert first.text == "ab"
    assert first.time == "2026-11-26T19:16:22+00:00"


def test_a_stream_of_a_chat_with_interleaved_choices():
    def chunk(index, ids, text, finish=None, **more):
        delta = {"content": text} if text else {"role": "assistant"}
        choice = {"index": index, "token_ids": ids, "delta": delta, "finish_reason": finish}
        return {"id": "chat-1", "created": 0, "choices": [choice], **more}

    chunks = [
        chunk(0, None, "", prompt_token_ids=[1, 2]),
        chunk(1, [8], "x"),
        chunk(0, [5], "a"),
        chunk(0, [6], "b", "length"),
        chunk(1, [9], "", "stop"),
        {"id": "chat-1", "created": 0, "choices": [], "usage": {}},
    ]
    first, second = read_responses(request_fields(LABELS), chunks)
    assert (first.token_ids.tolist(), first.text) == ([5, 6], "ab")
    assert first.prompt_token_ids.tolist() == [1, 2]
    assert (second.token_ids.tolist(), second.text) == ([8, 9], "x")
    assert (first.finish, second.finish) == ("length", "end")


@pytest.mark.parametrize(
    ("finish", "stop", "said"),
    [
        ("stop", None, "end"),
        ("stop", 7, "end"),
        ("stop", "END", "stop"),
        ("length", None, "length"),
        ("tool_calls", None, "end"),
        ("abort", None, "abort"),
        (None, None, "abort"),
        ("content_filter", None, None),
    ],
)
def test_every_id_is_kept_whatever_ended_the_response(finish, stop, said):
    """The end token was drawn with the mark: who drops it selects contexts by their coins."""
    chunk = _completion(_choice(ids=[5, 6, 7], finish=finish, stop=stop))
    (response,) = read_responses(request_fields(LABELS), [chunk])
    assert response.token_ids.tolist() == [5, 6, 7]
    assert response.finish == said


def test_a_stream_that_broke_off_counts_with_what_was_sent():
    chunks = [_completion(_choice(ids=[5])), {"error": {"message": "engine died", "code": 500}}]
    (response,) = read_responses(request_fields(LABELS), chunks)
    assert response.token_ids.tolist() == [5]
    assert response.finish == "abort"


def test_a_refused_request_and_an_empty_response_give_nothing():
    assert read_responses(request_fields({}), [{"error": {"code": 400}}]) == []
    empty = _completion(_choice(ids=[], text="", finish="stop"))
    assert read_responses(request_fields({}), [empty]) == []
    ended = _completion(_choice(ids=[1], text="", finish="stop"))
    assert [r.token_ids.tolist() for r in read_responses(request_fields({}), [ended])] == [[1]]
    assert read_responses({}, []) == []


def test_what_was_not_drawn_by_the_watermark_is_not_called_drawn():
    (plain,) = read_responses({"return_token_ids": True}, [_completion(_choice())])
    assert (plain.marked, plain.labels) == (False, {})
    beams = {**request_fields(LABELS), "use_beam_search": True}
    (beam,) = read_responses(beams, [_completion(_choice())])
    assert (beam.marked, beam.labels) == (False, LABELS)
    (marked,) = read_responses(request_fields({}), [_completion(_choice())])
    assert (marked.marked, marked.labels) == (None, {})


def test_answers_without_ids_and_malformed_labels_are_refused():
    with pytest.raises(DataError, match="return_token_ids"):
        read_responses(request_fields(LABELS), [_completion(_choice(ids=None))])
    with pytest.raises(UsageError):
        read_responses({"vllm_xargs": {"provenance_labels": "week=a"}}, [])
    with pytest.raises(DataError):
        read_responses(request_fields(LABELS), [_completion(_choice(ids=[-1]))])


BATCH_LINE = {
    "id": "vllm-1",
    "custom_id": "r-1",
    "response": {"status_code": 200, "body": _completion(_choice(finish="length"))},
    "error": None,
}
REFUSED_LINE = {"id": "vllm-2", "custom_id": "r-2", "response": None, "error": {"message": "no"}}


def test_a_line_of_run_batch_is_read_and_a_refused_one_gives_nothing():
    (found,) = read_responses(request_fields(LABELS), [BATCH_LINE])
    assert (found.request_id, found.token_ids.tolist()) == ("cmpl-1/0", [5, 6])
    assert read_responses(request_fields(LABELS), [REFUSED_LINE]) == []


@pytest.mark.parametrize(
    ("answer", "place"),
    [
        ({"id": "resp_1", "object": "response", "output": []}, "/v1/responses"),
        ({"type": "response.output_text.delta", "delta": "a"}, "/v1/responses"),
        ({"id": "msg_1", "type": "message", "content": []}, "/v1/messages"),
        ({"type": "message_start", "message": {}}, "/v1/messages"),
        ({"type": "content_block_delta", "delta": {}}, "/v1/messages"),
        ({"id": "x", "object": "embedding"}, "not known (embedding)"),
        ({}, "not known (no object, no type)"),
        ({"choices": "text"}, "not known"),
        ({"choices": None}, "not known"),
    ],
)
def test_an_answer_that_is_no_error_is_never_an_empty_list(answer, place):
    """vLLM marks these endpoints too: a log without their responses would be silently partial."""
    with pytest.raises(DataError, match="must have choices with token ids") as caught:
        read_responses(request_fields(LABELS), [answer])
    assert place in str(caught.value)
    assert "\n" not in str(caught.value)


def test_errors_of_every_form_give_nothing():
    for error in ({"error": {"message": "no"}}, {"object": "error", "message": "no", "code": 400}):
        assert read_responses(request_fields(LABELS), [error]) == []


def test_answers_as_proxies_rewrite_them_are_read():
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    choice = {"index": 0, "message": {"content": parts}, "token_ids": [5, 6]}
    chunk = {"id": "c", "created": 1767225600000, "choices": [choice]}
    (found,) = read_responses(request_fields(LABELS), [chunk])
    assert found.text == "ab"
    assert found.time == "2026-01-01T00:00:00+00:00"


@pytest.mark.parametrize(
    "answer",
    [
        *(
            {"id": "c", "created": time, "choices": []}
            for time in ("soon", [], 1e300, float("nan"))
        ),
        {"id": "c", "choices": [None]},
        {"id": "c", "choices": [{"token_ids": [1]}]},
        {"id": "c", "choices": [{"index": "x", "token_ids": [1]}]},
        {"id": "c", "choices": [{"index": 0, "token_ids": 7}]},
        {"id": "c", "choices": [{"index": 0, "token_ids": [1], "message": "text"}]},
        {"custom_id": "r", "response": {"body": []}, "error": None},
        [],
        "data: [DONE]",
        None,
    ],
)
def test_malformed_answers_are_one_line(answer):
    with pytest.raises(DataError) as caught:
        read_responses(request_fields(LABELS), [answer])
    assert "\n" not in str(caught.value)
