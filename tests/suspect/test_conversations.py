"""Turns of a conversation share its prompt: the same result as each turn by itself, linear cost."""

import json
import time

import numpy as np

from provenance.suspect.access.outputs import read_positions
from tests.suspect.test_outputs import _text


def _conversations(rng, turns, count):
    """Conversations whose turns quote earlier and later ones, in other spellings too."""
    for _ in range(count):
        said = [_text(rng, 40) for _ in range(turns)]
        for number in range(1, turns, 2):
            other = said[int(rng.integers(turns))]
            said[number] += " " + (other.upper() if rng.random() < 0.5 else other)
        roles = ["user", "assistant"] * turns
        yield [{"role": role, "content": text} for role, text in zip(roles, said, strict=False)]


def _lines(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_turns_together_are_turns_one_by_one(tmp_path, tokenizer, keyring):
    conversations = list(_conversations(np.random.default_rng(0), 9, 12))
    together = _lines(tmp_path / "a.jsonl", [{"messages": turns} for turns in conversations])
    alone = [
        {"messages": turns[:number], "output": turns[number]["content"]}
        for turns in conversations
        for number in range(1, 9, 2)
    ]
    found = read_positions([together], tokenizer, keyring.public)
    assert found.quoted + found.prompted > 100
    parts = []
    for number, record in enumerate(alone):
        path = _lines(tmp_path / f"{number}.jsonl", [record])
        parts.append(read_positions([path], tokenizer, keyring.public))
    for name in ("repeated", "prompted", "quoted", "with_prompt", "short_outputs"):
        assert getattr(found, name) == sum(getattr(part, name) for part in parts), name
    assert np.array_equal(found.contexts, np.concatenate([part.contexts for part in parts]))
    assert np.array_equal(found.tokens, np.concatenate([part.tokens for part in parts]))
    for one, part in zip(found.prompts, parts, strict=True):
        assert np.array_equal(one, part.prompts[0])


def test_a_long_conversation_costs_what_its_text_costs(tmp_path, tokenizer, keyring):
    """200 turns: quadratic work would be a hundred times that of 2 turns a conversation."""
    seconds = []
    for turns, count in ((2, 100), (200, 1)):
        records = [
            {"messages": one} for one in _conversations(np.random.default_rng(1), turns, count)
        ]
        path = _lines(tmp_path / f"{turns}.jsonl", records)
        read_positions([path], tokenizer, keyring.public)
        started = time.process_time()
        read_positions([path], tokenizer, keyring.public)
        seconds.append(time.process_time() - started)
    assert seconds[1] < 10 * seconds[0] + 1
