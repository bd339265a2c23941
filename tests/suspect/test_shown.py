"""Records in other people's shapes: what the suspect was shown is mapped, or refused by name."""

import json

import pytest

from provenance.errors import DataError
from provenance.suspect.access.outputs import observe
from provenance.suspect.shown import read_shown, same_text

PASSAGE = "return the keyring of this path, then import the naïve self"
OWN = frozenset({"output", "outputs", "output_token_ids"})


def _say(role, content, **more):
    return {"role": role, "content": content, **more}


CALL = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": ""}}
CALL_WITH = {
    **CALL,
    "function": {"name": "find", "arguments": json.dumps({"text": PASSAGE, "n": 3})},
}
# every one of these shows PASSAGE before the output
SISTERS = {
    "prompt": {"prompt": PASSAGE},
    "prompt of texts": {"prompt": ["Fix this.", PASSAGE]},
    "prompt of messages": {"prompt": [_say("user", PASSAGE)]},
    "prompt and messages": {"prompt": "Fix this.", "messages": [_say("user", PASSAGE)]},
    "messages and prompt": {"messages": [_say("user", "Fix this.")], "prompt": PASSAGE},
    "alpaca": {"instruction": "Correct the spelling.", "input": PASSAGE},
    "alpaca's instruction": {"instruction": PASSAGE, "input": ""},
    "capital letters": {"Instruction": "Fix this.", "Input": PASSAGE},
    "question": {"question": PASSAGE},
    "query": {"query": PASSAGE},
    "inputs": {"inputs": [PASSAGE]},
    "system": {"system": PASSAGE, "prompt": "Fix this."},
    "system-prompt": {"system-prompt": PASSAGE, "prompt": "Fix this."},
    "context": {"question": "What is it?", "context": {"title": "x", "text": PASSAGE}},
    "contexts": {"question": "What is it?", "contexts": [["a", PASSAGE]]},
    "history of pairs": {"instruction": "Go on.", "history": [["Hello", PASSAGE]]},
    "sharegpt": {"conversations": [{"from": "human", "value": PASSAGE}]},
    "a system message": {"messages": [_say("system", PASSAGE), _say("user", "Hi")]},
    "a developer message": {"messages": [_say("developer", PASSAGE), _say("user", "Hi")]},
    "parts": {"messages": [_say("user", [{"type": "text", "text": PASSAGE}])]},
    "parts with an image": {
        "messages": [
            _say(
                "user",
                [
                    {"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}},
                    {"type": "text", "text": PASSAGE},
                ],
            )
        ]
    },
    "an earlier answer": {
        "messages": [_say("user", "Hi"), _say("assistant", PASSAGE), _say("user", "Again")]
    },
    "a tool's result": {
        "messages": [
            _say("user", "Hi"),
            _say("assistant", None, tool_calls=[CALL]),
            _say("tool", PASSAGE, tool_call_id="c1"),
        ]
    },
    "a tool's result as JSON": {
        "messages": [_say("user", "Hi"), _say("tool", json.dumps({"found": [PASSAGE]}))]
    },
    "a tool call": {
        "messages": [
            _say("user", "Hi"),
            _say("assistant", None, tool_calls=[CALL_WITH]),
            _say("tool", "done"),
        ]
    },
    "a function call at the end": {
        "messages": [
            _say("user", "Hi"),
            _say("assistant", "", function_call={"arguments": PASSAGE}),
        ]
    },
    "reasoning in a message": {
        "messages": [_say("assistant", "Yes.", reasoning_content=PASSAGE), _say("user", "Go on")]
    },
    "tools": {
        "prompt": "Hi",
        "tools": [{"type": "function", "function": {"name": "f", "description": PASSAGE}}],
    },
    "a prefill": {"messages": [_say("user", "Hi"), _say("assistant", PASSAGE)]},
    "request": {"request": {"model": "m", "messages": [_say("user", PASSAGE)]}},
    "responses api": {"instructions": "Fix this.", "input": [_say("user", PASSAGE)]},
    "shown": {"shown": {"whatever": ["it", {"was": PASSAGE}]}},
    "metadata beside": {"prompt": PASSAGE, "metadata": {"n": 3, "ok": True, "by": "me"}},
}


def _observe(tmp_path, tokenizer, keyring, records):
    path = tmp_path / "o.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return observe([path], tokenizer, keyring.public)


@pytest.mark.parametrize("form", ["output", "outputs", "output_token_ids"])
@pytest.mark.parametrize("name", SISTERS)
def test_whatever_was_shown_is_no_choice(tmp_path, tokenizer, keyring, name, form):
    quote = PASSAGE.upper()
    value = {
        "output": quote,
        "outputs": [quote, quote],
        "output_token_ids": tokenizer.encode(quote, add_special_tokens=False).ids,
    }[form]
    found = _observe(tmp_path, tokenizer, keyring, [{**SISTERS[name], form: value}])
    assert found.positions == 0
    assert found.quoted > 10
    assert found.with_prompt == found.outputs


def test_the_same_output_without_a_prompt_counts(tmp_path, tokenizer, keyring):
    """What the test above would see if the fields were dropped."""
    found = _observe(tmp_path, tokenizer, keyring, [{"output": PASSAGE.upper()}])
    assert found.positions > 10
    assert (found.with_prompt, found.quoted, found.asked) == (0, 0, None)


def test_prompt_ids_of_the_served_tokenizer_are_a_prompt(tmp_path, tokenizer, keyring):
    ids = tokenizer.encode(PASSAGE, add_special_tokens=False).ids
    record = {"prompt_token_ids": ids, "output": PASSAGE.upper()}
    assert _observe(tmp_path, tokenizer, keyring, [record]).positions == 0


# ---- the turn at the end ----


@pytest.mark.parametrize("field", ["messages", "conversations", "prompt"])
@pytest.mark.parametrize("form", ["output", "outputs", "output_token_ids"])
def test_a_last_turn_equal_to_the_output_is_the_output(tmp_path, tokenizer, keyring, field, form):
    turns = [_say("user", "Hi"), _say("assistant", f"  {PASSAGE}\n")]
    if field == "conversations":
        turns = [{"from": "human", "value": "Hi"}, {"from": "gpt", "value": PASSAGE}]
    ids = tokenizer.encode(PASSAGE, add_special_tokens=False).ids
    value = {"output": PASSAGE, "outputs": ["Another one", PASSAGE], "output_token_ids": ids}[form]
    found = _observe(tmp_path, tokenizer, keyring, [{field: turns, form: value}])
    alone = _observe(tmp_path, tokenizer, keyring, [{"prompt": "Hi", form: value}])
    assert found.positions == alone.positions > 10
    assert found.prompted == found.quoted == 0


def test_an_output_that_goes_on_from_a_prefill_counts_from_there(tmp_path, tokenizer, keyring):
    begun = "Return the keyring of this path"
    rest = "; and nothing of what follows here was begun by anybody else"
    record = {"messages": [_say("user", "Hi"), _say("assistant", begun)], "output": begun + rest}
    found = _observe(tmp_path, tokenizer, keyring, [record])
    alone = _observe(tmp_path, tokenizer, keyring, [{"prompt": "Hi", "output": rest}])
    assert found.prompted > 5
    assert alone.positions - 8 <= found.positions <= alone.positions + 1


def test_an_earlier_turn_equal_to_the_output_was_shown(tmp_path, tokenizer, keyring):
    turns = [_say("assistant", PASSAGE), _say("user", "Say it again")]
    assert (
        _observe(tmp_path, tokenizer, keyring, [{"messages": turns, "output": PASSAGE}]).positions
        == 0
    )


def test_equal_but_for_white_space():
    assert same_text("a  b\n", " a b")
    assert not same_text("a b", "ab")


# ---- chats for a reference model ----


def test_a_chat_is_kept_for_the_template():
    turns = [_say("system", "S"), _say("user", [{"type": "text", "text": "U"}])]
    shown = read_shown({"messages": turns}, "o", OWN)
    assert shown.before(["x"])[1] == (("system", "S"), ("user", "U"))
    prefill = read_shown({"messages": [*turns, _say("assistant", "P")]}, "o", OWN)
    assert prefill.before(["x"]) == (
        ("S", "U", "P"),
        (("system", "S"), ("user", "U"), ("assistant", "P")),
    )
    assert prefill.before(["P"]) == (("S", "U"), (("system", "S"), ("user", "U")))
    both = read_shown({"messages": turns, "context": "C"}, "o", OWN)
    assert both.before(["x"]) == (("C", "S", "U"), None)


# ---- harmless, or refused ----


HARMLESS = {
    "numbers": {"seed": 3, "score": [0.5, 1.5], "ok": True, "nothing": None},
    "names": {"id": "resp-0123456789abcdef0123", "model": "maker/a-model-of-theirs-2026-05-01"},
    "usage": {"usage": {"prompt_tokens": 30, "completion_tokens": 50, "details": {"cached": 3}}},
    "finish": {"finish_reason": "max_output_tokens reached"},
    "labels": {"labels": {"week": "2026-W17", "capability": "code generation"}},
    "metadata": {"metadata": {"request_id": "0123456789abcdef0123456789", "n": 1}},
    "short": {"mood": "calm"},
    "said not to be shown": {"not_shown": PASSAGE},
    "not shown inside": {"metadata": {"not_shown": PASSAGE}},
    "embedding": {"vector": [0.25] * 50},
}


@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_fields_change_nothing(tmp_path, tokenizer, keyring, name):
    found = _observe(tmp_path, tokenizer, keyring, [{"output": PASSAGE, **HARMLESS[name]}])
    assert (
        found.positions == _observe(tmp_path, tokenizer, keyring, [{"output": PASSAGE}]).positions
    )
    assert found.with_prompt == 0


REFUSED = {
    "an unknown text": ({"thing": PASSAGE}, "thing"),
    "alpaca's text": ({"instruction": "x", "text": PASSAGE}, "text"),
    "another output": ({"completion": PASSAGE}, "completion"),
    "a reference answer": ({"reference": PASSAGE}, "reference"),
    "text under a harmless name": ({"id": PASSAGE * 4}, "id"),
    "lines under a harmless name": ({"category": "a\nb"}, "category"),
    "texts in metadata": ({"metadata": {"source_text": PASSAGE}}, "metadata.source_text"),
    "ids of somebody's tokens": ({"input_ids": list(range(40))}, "input_ids"),
    "ids as a prompt": ({"prompt": [5, 6, 7]}, "prompt"),
    "ids as an input": ({"input": [5, 6, 7]}, "input"),
    "a prompt that is none": ({"prompt": 3}, "prompt"),
    "messages that are none": ({"messages": PASSAGE}, "messages"),
    "a message that is none": ({"messages": [PASSAGE]}, "messages"),
    "a message without content": ({"messages": [{"role": "user"}]}, "messages"),
    "a content that is a number": ({"messages": [_say("user", 3)]}, "messages"),
    "two kinds of output": ({"outputs": [PASSAGE]}, "outputs"),
    "words of a prompt": ({"words": PASSAGE.split()}, "words"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_may_be_a_prompt_is_refused_by_name(tmp_path, tokenizer, keyring, name):
    record, field = REFUSED[name]
    with pytest.raises(DataError) as caught:
        _observe(tmp_path, tokenizer, keyring, [{"output": "x"}, {"output": PASSAGE, **record}])
    message = str(caught.value)
    assert "line 2" in message
    assert field in message
    assert "\n" not in message


def test_prompts_are_counted_once_for_their_own_control(tmp_path, tokenizer, keyring):
    records = [
        {"system": PASSAGE, "prompt": f"Number {i}, please", "output": "x"} for i in range(9)
    ]
    records.append({"output": PASSAGE})
    found = _observe(tmp_path, tokenizer, keyring, records)
    assert found.asked is not None
    assert found.asked.outputs == 10
    alone = _observe(tmp_path, tokenizer, keyring, [{"output": PASSAGE}])
    pairs = set(zip(alone.contexts.tolist(), alone.tokens.tolist(), strict=True))
    asked = set(zip(found.asked.contexts.tolist(), found.asked.tokens.tolist(), strict=True))
    assert pairs <= asked
    assert found.outputs == 10
    assert found.with_prompt == 9
