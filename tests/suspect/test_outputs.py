"""Observations against a slow dictionary, and what bad outputs get."""

import gzip
import json
from collections import Counter

import numpy as np
import pytest

from provenance.coins.contexts import unpack
from provenance.errors import ConfigurationMismatchError, DataError, StorageError
from provenance.keys.tokenizer import load_tokenizer
from provenance.suspect.access.outputs import observe
from tests.suspect.slow_quotations import slow_both


def _oracle(records, tokenizer, width):
    """N(c, t) with sets and tuples, straight from the definition."""
    counts = Counter()
    for prompts, text, ids in records:
        encoding = tokenizer.encode(text, add_special_tokens=False)
        shown = [prompt for prompt in prompts if prompt.strip()]
        quoted = slow_both(text, encoding.offsets, shown, width)
        prompted = set()
        for prompt in prompts:
            asked = tokenizer.encode(prompt, add_special_tokens=False).ids
            prompted |= {tuple(asked[i : i + width]) for i in range(len(asked) - width + 1)}
        seen = set()
        for i in range(width, len(ids)):
            context = tuple(ids[i - width : i])
            if context not in seen and context not in prompted and not quoted[i]:
                counts[context, ids[i]] += 1
            seen.add(context)
    return counts


def _as_counter(observations, width):
    contexts = unpack(observations.contexts, width).tolist()
    counts = observations.masses.astype(int).tolist()
    pairs = zip(contexts, observations.tokens.tolist(), counts, strict=True)
    return Counter({(tuple(c), t): n for c, t, n in pairs})


def _text(rng, n=60):
    return " ".join(rng.choice(["def", "keyring", "return", "path", "(", "ü", "\n", "self"], n))


def test_counts_equal_a_slow_dictionary(tmp_path, tokenizer, keyring):
    rng = np.random.default_rng(0)
    lines, records = [], []
    for i in range(80):
        texts = [_text(rng) for _ in range(1 + i % 3)]
        prompt = _text(rng, 12) if i % 2 else ""
        form = i % 4
        if form == 0:
            lines.append({"prompt": prompt, "outputs": texts})
        elif form == 1:
            texts = texts[:1]
            messages = [{"role": "user", "content": prompt}, {"role": "user", "content": "path ("}]
            lines.append({"messages": messages, "output": texts[0]})
        elif form == 2:
            texts = texts[:1]
            lines.append({"output": texts[0]})
        else:
            texts = texts[:1]
            ids = tokenizer.encode(texts[0], add_special_tokens=False).ids
            lines.append({"prompt": prompt, "output_token_ids": ids})
        prompts = {0: [prompt], 1: [prompt, "path ("], 2: [], 3: [prompt]}[form]
        records += [
            (prompts, text, tokenizer.encode(text, add_special_tokens=False).ids) for text in texts
        ]
    path = tmp_path / "o.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + "\n\n")
    found = observe([path], tokenizer, keyring.public)
    expected = _oracle(records, tokenizer, 2)
    assert _as_counter(found, 2) == expected
    assert found.outputs == len(records)
    assert found.tokens_read == sum(len(ids) for *_, ids in records)
    total = sum(max(len(ids) - 2, 0) for *_, ids in records)
    assert found.positions + found.repeated + found.prompted + found.quoted == total
    assert found.quoted > 0
    assert found.with_prompt == sum(any(p.strip() for p in prompts) for prompts, *_ in records)
    assert found.prompted > 0
    assert found.repeated > 0
    pairs = list(zip(found.contexts.tolist(), found.tokens.tolist(), strict=True))
    assert pairs == sorted(set(pairs))


def test_files_order_and_compression_change_nothing(tmp_path, tokenizer, keyring):
    rng = np.random.default_rng(1)
    lines = [json.dumps({"prompt": "x", "output": _text(rng)}) + "\n" for _ in range(40)]
    (tmp_path / "a.jsonl").write_text("".join(lines))
    (tmp_path / "b.jsonl").write_text("".join(lines[25:]))
    (tmp_path / "c.jsonl.gz").write_bytes(gzip.compress("".join(lines[:25]).encode()))
    whole = observe([tmp_path / "a.jsonl"], tokenizer, keyring.public)
    parts = observe([tmp_path / "b.jsonl", tmp_path / "c.jsonl.gz"], tokenizer, keyring.public)
    assert _as_counter(whole, 2) == _as_counter(parts, 2)
    assert len(parts.sha256) == 2
    assert all(len(digest) == 64 for digest in parts.sha256.values())


def test_a_quoted_prompt_is_not_counted(tmp_path, tokenizer, keyring):
    quoted = "return path keyring self def return ( path"
    path = tmp_path / "o.jsonl"
    path.write_text(json.dumps({"prompt": quoted, "output": quoted}) + "\n")
    found = observe([path], tokenizer, keyring.public)
    assert found.positions == 0
    assert found.prompted > 0


BAD = {
    "not json": "{",
    "not an object": "[]",
    "no output": '{"prompt": "x"}',
    "output not a string": '{"output": 3}',
    "outputs not a list": '{"outputs": "x"}',
    "outputs not strings": '{"outputs": ["a", null]}',
    "prompt not a string": '{"prompt": 1, "output": "some text here"}',
    "messages not a list": '{"messages": "hi", "output": "some text here"}',
    "message without content": '{"messages": [{"role": "user"}], "output": "some text"}',
    "ids not integers": '{"output_token_ids": [1.5, 2, 3, 4]}',
    "ids nested": '{"output_token_ids": [[1, 2, 3, 4]]}',
    "ids too large": '{"output_token_ids": [1, 2, 3, 4000000]}',
    "ids negative": '{"output_token_ids": [1, 2, 3, -4]}',
    "duplicate key": '{"output": "a b c d", "output": "e f g h"}',
    "NaN": '{"output": "a b c d", "score": NaN}',
    "lone surrogate": '{"output": "a b \\ud800 c d"}',
    "empty file": "",
    "empty output": '{"output": ""}',
    "shorter than k": '{"output": "("}',
}


@pytest.mark.parametrize("name", BAD)
def test_bad_outputs_are_one_line(tmp_path, tokenizer, keyring, name):
    path = tmp_path / "o.jsonl"
    path.write_text(BAD[name])
    with pytest.raises(DataError) as caught:
        observe([path], tokenizer, keyring.public)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_deep_json_and_wrong_bytes_and_missing_files(tmp_path, tokenizer, keyring):
    path = tmp_path / "o.jsonl"
    for content in (b"[" * 200_000, b'{"output": "\xff"}'):
        path.write_bytes(content)
        with pytest.raises(DataError):
            observe([path], tokenizer, keyring.public)
    with pytest.raises(StorageError):
        observe([tmp_path / "missing.jsonl"], tokenizer, keyring.public)
    with pytest.raises(DataError, match="must be strict JSON"):  # a folder stands for its files
        observe([tmp_path], tokenizer, keyring.public)


def test_only_the_keyrings_tokenizer_is_loaded(tmp_path, tokenizer_path, keyring):
    load_tokenizer(tokenizer_path, keyring.public)
    other = tmp_path / "tokenizer.json"
    other.write_text("{}")
    with pytest.raises(ConfigurationMismatchError):
        load_tokenizer(other, keyring.public)
