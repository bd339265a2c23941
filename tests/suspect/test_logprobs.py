"""Logprobs of an API in three shapes, against the weights of the same model; hostile records."""

import json
import math

import numpy as np
import pytest

from provenance.check.reservations import list_reservations
from provenance.errors import DataError, StorageError
from provenance.suspect.access.documents import Documents
from provenance.suspect.access.logprobs import read_logprobs
from provenance.suspect.access.probabilities import observe_logprobs, observe_weights
from provenance.suspect.tokenizers.vocabularies import token_bytes
from tests.suspect.lab import (
    LEAST,
    SlowMasses,
    load_llama,
    quote,
    read_documents,
    slow_foreign_read,
    slow_rows,
    slow_served,
)

DOCUMENTS = 7
WIDTH = 2


def _write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture(scope="module")
def spoken(suspect_folder, log, tokenizer, keyring):
    """The first documents, and the suspect's probabilities before each token of the response."""
    model, size = load_llama(suspect_folder), keyring.public.vocabulary_size
    found = []
    for one in list(read_documents(log, tokenizer))[:DOCUMENTS]:
        rows = slow_rows(model, one.prompt + one.ids, size)
        before = rows[len(one.prompt) - 1 :] if one.prompt else np.vstack([rows[:1] * 0, rows])
        found.append((one, before[: len(one.ids)]))
    return found


def _pairs(row, least):
    """[id, logprob], most probable first, as an API would say it."""
    chosen = np.flatnonzero(row > least)
    return [[int(i), math.log(row[i])] for i in chosen[np.argsort(-row[chosen])]]


def _as_ids(spoken, least):
    for one, rows in spoken:
        yield {
            "prompt_token_ids": one.prompt,
            "output_token_ids": one.ids,
            "top_logprobs": [_pairs(row, least) for row in rows],
        }


def _as_vllm(spoken, least):
    for one, rows in spoken:
        lists = [
            {str(i): {"logprob": value, "rank": n} for n, (i, value) in enumerate(_pairs(r, least))}
            for r in rows
        ]
        prompt = [None, *[{"0": {"logprob": -0.5}}] * (len(one.prompt) - 1)]
        lists = prompt + lists if one.prompt else [None, *lists[1:]]
        yield {
            "prompt_token_ids": one.prompt + one.ids,
            "prompt_logprobs": lists,
            "response_start": len(one.prompt),
        }


def _as_content(spoken, least, spelled, tokenizer):
    def token(identifier, value):
        spelling = spelled[identifier] or b""
        return {
            "token": spelling.decode("utf-8", "replace"),
            "bytes": list(spelling),
            "logprob": value,
        }

    for one, rows in spoken:
        content = [
            {
                **token(i, math.log(max(row[i], 1e-9))),
                "top_logprobs": [token(*pair) for pair in _pairs(row, least)],
            }
            for i, row in zip(one.ids, rows, strict=True)
        ]
        yield {"prompt": tokenizer.decode(one.prompt), "logprobs": {"content": content}}


def _as_dict(observed):
    columns = (observed.contexts, observed.tokens, observed.masses, observed.totals)
    return {(c, t): (m, n) for c, t, m, n in zip(*(x.tolist() for x in columns), strict=True)}


@pytest.fixture(scope="module")
def from_weights(suspect_folder, log, tokenizer, index, keyring):
    from provenance.suspect.models.language_model import LanguageModel

    model = LanguageModel(suspect_folder, keyring.public, tokenizer)
    return observe_weights(model, None, Documents([log], tokenizer, index, keyring, DOCUMENTS))


def _read_as_drawn(spoken, tokenizer, log):
    """The same masses where no token quotes the prompt, by either rule; and how many positions."""
    served, found = slow_served(read_documents(log, tokenizer), WIDTH), SlowMasses()
    for one, rows in spoken:
        drawn = quote(tokenizer, one.prompt, one.ids, drawn=True)
        for place, context in one.positions(WIDTH):
            if context in served and not drawn[place]:
                found.add(context, rows[place])
    masses = {p: (mass, found.visits[p[0]]) for p, mass in found.masses.items()}
    return masses, sum(found.visits.values())


def _assert_close(found, expected, missing):
    """Equal but for probabilities below `missing` per position, which the model leaves out."""
    for pair in {*found, *expected}:
        one, two = found.get(pair, (0.0, 0)), expected.get(pair, (0.0, 0))
        places = max(one[1], two[1])
        assert one[0] == pytest.approx(two[0], rel=1e-3, abs=missing * places + 2.1e-3)
        assert 0 in (one[1], two[1]) or one[1] == two[1]
    same = [abs(found.get(p, (0,))[0] - expected[p][0]) < 1e-4 for p in expected]
    assert np.mean(same) > (0.99 if not missing else 0.8)


# ---- the three shapes ----


@pytest.mark.parametrize("shape", ["ids", "vllm", "content"])
def test_every_shape_equals_reading_the_weights(
    tmp_path, spoken, from_weights, tokenizer, index, keyring, log, shape
):
    records = {
        "ids": lambda: _as_ids(spoken, LEAST),
        "vllm": lambda: _as_vllm(spoken, LEAST),
        "content": lambda: _as_content(spoken, LEAST, token_bytes(tokenizer), tokenizer),
    }[shape]()
    path = _write(tmp_path / "logprobs.jsonl", records)
    observed = observe_logprobs([path], None, tokenizer, index, keyring)
    specials = {0, 1} if shape == "content" else set()
    whole, positions = _as_dict(from_weights), from_weights.positions
    if shape == "content":  # the API drew these texts itself: both rules of quotations hold
        whole, positions = _read_as_drawn(spoken, tokenizer, log)
    expected = {p: v for p, v in whole.items() if p[1] not in specials}
    _assert_close(_as_dict(observed), expected, 0)
    assert observed.positions == positions > 20
    assert observed.repeated == from_weights.repeated
    assert observed.prompted == from_weights.prompted > 0
    assert observed.outputs == DOCUMENTS
    assert observed.sampled is False
    assert observed.source["access"] == "logprobs"
    assert list(observed.sha256) == [path.name]


def test_all_tokens_of_the_vocabulary_listed(
    tmp_path, spoken, from_weights, tokenizer, index, keyring
):
    path = _write(tmp_path / "logprobs.jsonl", _as_ids(spoken[:4], 0.0))
    observed = observe_logprobs([path], None, tokenizer, index, keyring)
    assert observed.source["mass_kept"] == pytest.approx(1, abs=1e-5)
    size = keyring.public.vocabulary_size
    distinct, counts = np.unique(observed.contexts, return_counts=True)
    assert set(counts.tolist()) == {size}
    for context in distinct:
        own = observed.contexts == context
        assert observed.masses[own].sum() == pytest.approx(observed.totals[own][0], rel=1e-4)


def test_several_files_and_compression(tmp_path, spoken, tokenizer, index, keyring):
    import gzip

    records = list(_as_ids(spoken, LEAST))
    whole = _write(tmp_path / "whole.jsonl", records)
    one, two = _write(tmp_path / "one.jsonl", records[:3]), tmp_path / "two.jsonl.gz"
    two.write_bytes(gzip.compress(_write(tmp_path / "two.jsonl", records[3:]).read_bytes()))
    found = [
        _as_dict(observe_logprobs(paths, None, tokenizer, index, keyring))
        for paths in ([whole], [one, two])
    ]
    assert found[0].keys() == found[1].keys()
    assert all(found[0][p] == pytest.approx(found[1][p], rel=1e-12) for p in found[0])


def test_a_reference_reads_the_positions_of_the_file(
    tmp_path, spoken, suspect_folder, base_folder, log, tokenizer, index, keyring
):
    from provenance.suspect.models.language_model import LanguageModel

    reference = LanguageModel(base_folder, keyring.public, tokenizer)
    suspect = LanguageModel(suspect_folder, keyring.public, tokenizer)
    documents = Documents([log], tokenizer, index, keyring, DOCUMENTS)
    weights = observe_weights(suspect, reference, documents)
    path = _write(tmp_path / "logprobs.jsonl", _as_ids(spoken, LEAST))
    for cache in (None, tmp_path / "cache", tmp_path / "cache"):
        found = observe_logprobs([path], reference, tokenizer, index, keyring, cache=cache)
        columns = (found.contexts, found.tokens, found.expected)
        both = {(c, t): e for c, t, e in zip(*columns, strict=True)}
        for c, t, e in zip(weights.contexts, weights.tokens, weights.expected, strict=True):
            assert both.get((c, t), 0.0) == pytest.approx(e, rel=1e-6, abs=1e-9)
        assert found.reference["kind"] == "model"


# ---- another tokenisation ----


def test_tokens_of_another_tokenizer_count_where_both_end(
    tmp_path, foreign_folder, foreign_tokenizer, log, tokenizer, index, keyring
):
    documents = list(read_documents(log, tokenizer))
    served, size = slow_served(documents, WIDTH), keyring.public.vocabulary_size
    chosen = [one for one in documents if not one.marked]
    model, spelled = load_llama(foreign_folder), token_bytes(foreign_tokenizer)
    records = []
    for one in chosen:
        one.prompt, one.quoted = [], [False] * len(one.ids)
        read = foreign_tokenizer.encode(tokenizer.decode(one.ids)).ids
        rows = slow_rows(model, read)[:, : len(spelled)]
        lists = [
            [{"bytes": list(spelled[i]), "logprob": v} for i, v in _pairs(row, 0.0)] for row in rows
        ]
        content = [
            {"bytes": list(spelled[i]), "top_logprobs": listed}
            for i, listed in zip(read, [[], *lists], strict=False)
        ]
        records.append({"logprobs": {"content": content}})
    path = _write(tmp_path / "logprobs.jsonl", records)
    observed = observe_logprobs([path], None, tokenizer, index, keyring)
    slow, _, _ = slow_foreign_read(
        foreign_folder, foreign_tokenizer, tokenizer, chosen, WIDTH, size, served
    )
    assert observed.positions == sum(slow.visits.values())
    for (context, _), (_, total) in _as_dict(observed).items():
        assert slow.visits[context] == total
    # the model renormalises what is kept, a list of an API does not: compare the shares
    for context in list(slow.visits)[:40]:
        own = {t: m for (c, t), (m, _) in _as_dict(observed).items() if c == context}
        if slow.visits[context] != 1:
            continue
        for (c, token), mass in slow.masses.items():
            if c == context:
                assert own[token] / sum(own.values()) == pytest.approx(mass, rel=1e-3)


def test_positions_that_cannot_be_read_are_reported(tmp_path, spoken, tokenizer, index, keyring):
    """Tokens of three bytes: almost no served token starts where one of them does."""
    records = []
    for one, _ in spoken:
        text = tokenizer.decode(one.ids).encode()
        cut = [text[i : i + 3] for i in range(0, len(text), 3)]
        content = [
            {"bytes": list(part), "top_logprobs": [{"bytes": list(part), "logprob": -0.1}]}
            for part in cut
        ]
        records.append({"logprobs": {"content": content}})
    path = _write(tmp_path / "logprobs.jsonl", records)
    observed = observe_logprobs([path], None, tokenizer, index, keyring)
    assert 0 < observed.source["positions_kept"] < 0.9


def test_characters_split_over_tokens(tmp_path, tokenizer, keyring):
    """Served ids come from the text, whatever the API's tokens are; one list per shared end."""
    text = "naïve 漢字 key 漢字"
    parts = [b"na", b"\xc3", b"\xaf", b"ve", b" ", b"\xe6", b"\xbc\xa2", "字".encode()]
    parts += [b" key", b" \xe6\xbc", b"\xa2", "字".encode()]
    assert b"".join(parts) == text.encode()
    content = [
        {"token": "?", "bytes": list(part), "top_logprobs": [{"bytes": [number], "logprob": -1}]}
        for number, part in enumerate(parts)
    ]
    path = _write(tmp_path / "split.jsonl", [{"logprobs": {"content": content}}])
    [part] = read_logprobs([path], tokenizer, keyring.public)
    ids = tokenizer.encode(text).ids
    assert part.positions.outputs[0].tolist() == ids
    begins = np.cumsum([0, *(len(token_bytes(tokenizer)[i]) for i in ids)])
    ends = np.cumsum([len(one) for one in parts]).tolist()
    for begin, found in zip(begins[:-1].tolist(), part.lists[0], strict=True):
        if begin not in ends:
            assert found is None
        else:
            # the list of the token behind the shared end
            number = ends.index(begin) + 1
            assert found[0].tolist() == [tokenizer_byte(tokenizer, number)]


def tokenizer_byte(tokenizer, byte):
    return token_bytes(tokenizer).index(bytes([byte]))


def test_a_text_without_bytes_uses_the_token(tmp_path, tokenizer, keyring):
    content = [{"token": t, "top_logprobs": []} for t in ("def", " key", "ring")]
    path = _write(tmp_path / "plain.jsonl", [{"logprobs": {"content": content}}])
    [part] = read_logprobs([path], tokenizer, keyring.public)
    assert part.positions.outputs[0].tolist() == tokenizer.encode("def keyring").ids


# ---- hostile records ----

IDS = {
    "output_token_ids": [5, 6, 7, 8],
    "top_logprobs": [[], [], [[7, -0.1]], [[8, -0.1], [9, -4]]],
}
VLLM = {
    "prompt_token_ids": [5, 6, 7, 8],
    "prompt_logprobs": [None, *({str(i): {"logprob": -1}} for i in (6, 7, 8))],
    "response_start": 1,
}
TOKEN = {"bytes": [100], "top_logprobs": [{"bytes": [101], "logprob": -0.1}]}
LISTED = [[], [], [[7, -0.1]]]


def _lists(last):
    return {**IDS, "top_logprobs": [*LISTED, last]}


def _content(*tokens):
    return {"logprobs": {"content": [TOKEN, TOKEN, *tokens]}}


HOSTILE = {
    "positive logprob": _lists([[8, 0.5]]),
    "probabilities above 1": _lists([[8, -0.1], [9, -0.1]]),
    "one token many times": _lists([[8, -0.1]] * 20),
    "bool logprob": _lists([[8, False]]),
    "string logprob": _lists([[8, "-1"]]),
    "null logprob": _lists([[8, None]]),
    "triples": _lists([[8, -1, 0]]),
    "objects": _lists([{"id": 8, "logprob": -1}]),
    "no list": _lists(5),
    "null list": _lists(None),
    "string list": _lists("ab"),
    "huge list": _lists([[8, -20.0]] * 5000),
    "id beyond the vocabulary": _lists([[400, -1]]),
    "negative id": _lists([[-1, -1]]),
    "float id": _lists([[8.0, -1]]),
    "string id": _lists([["8", -1]]),
    "list as id": _lists([[[8], -1], [[9], -1]]),
    "giant id": _lists([[10**400, -1]]),
    "bool ids only": _lists([[True, -1]]),
    "too few lists": {**IDS, "top_logprobs": LISTED},
    "too many lists": {**IDS, "top_logprobs": [*LISTED, [], []]},
    "lists are an object": {**IDS, "top_logprobs": {"0": []}},
    "output ids are text": {**IDS, "output_token_ids": "abcd"},
    "output ids are null": {**IDS, "output_token_ids": None},
    "output ids are floats": {**IDS, "output_token_ids": [5.0, 6, 7, 8]},
    "output id beyond the vocabulary": {**IDS, "output_token_ids": [5, 6, 7, 400]},
    "prompt id beyond the vocabulary": {**IDS, "prompt_token_ids": [2**32]},
    "prompt ids are text": {**IDS, "prompt_token_ids": "ab"},
    "vllm without ids": {k: v for k, v in VLLM.items() if k != "prompt_token_ids"},
    "vllm too few": {**VLLM, "prompt_logprobs": VLLM["prompt_logprobs"][:-1]},
    "vllm start behind": {**VLLM, "response_start": 5},
    "vllm start negative": {**VLLM, "response_start": -1},
    "vllm start is a bool": {**VLLM, "response_start": True},
    "vllm start is a float": {**VLLM, "response_start": 1.0},
    "vllm key is a word": {**VLLM, "prompt_logprobs": [None, None, None, {"x": {"logprob": -1}}]},
    "vllm key is negative": {**VLLM, "prompt_logprobs": [None] * 3 + [{"-3": {"logprob": -1}}]},
    "vllm value is a number": {**VLLM, "prompt_logprobs": [None] * 3 + [{"3": -1}]},
    "vllm entry is a list": {**VLLM, "prompt_logprobs": [None] * 3 + [[[3, -1]]]},
    "vllm positive": {**VLLM, "prompt_logprobs": [None] * 3 + [{"3": {"logprob": 2}}]},
    "content is null": {"logprobs": {"content": None}},
    "content is an object": {"logprobs": {"content": {}}},
    "content without top": _content({"bytes": [32]}, {"bytes": [32]}, TOKEN),
    "content token is null": _content(None),
    "content token is text": _content("a"),
    "content bytes too large": _content({"bytes": [256], "top_logprobs": []}),
    "content bytes negative": _content({"bytes": [-1], "top_logprobs": []}),
    "content bytes are text": _content({"bytes": "abc", "top_logprobs": []}),
    "content token without a name": _content({"top_logprobs": []}),
    "content listed is text": _content({**TOKEN, "top_logprobs": ["a"]}),
    "content positive": _content({**TOKEN, "top_logprobs": [{"bytes": [101], "logprob": 1}]}),
    "content no logprob": _content({**TOKEN, "top_logprobs": [{"bytes": [101]}]}),
    "prompt is a list of numbers": {**_content(TOKEN), "prompt": [1]},
    "an unknown text": {**_content(TOKEN), "thing": "a text that may have been the prompt"},
    "prompt ids of others": {**_content(TOKEN), "prompt_token_ids": [1, 2, 4000000]},
    "no shape": {"output": "text"},
    "a list": [1, 2],
    "a number": 3,
    "null": None,
    "logprobs is a list": {"logprobs": []},
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_records(tmp_path, tokenizer, keyring, name):
    _assert_refused(tmp_path, tokenizer, keyring, json.dumps(HOSTILE[name]))


def _assert_refused(tmp_path, tokenizer, keyring, line):
    path = tmp_path / "hostile.jsonl"
    path.write_text(json.dumps(IDS) + "\n" + line + "\n")
    with pytest.raises(DataError) as raised:
        list(read_logprobs([path], tokenizer, keyring.public))
    message = str(raised.value)
    assert message.startswith(f"{path}: line 2: "), message
    assert len(message.splitlines()) == 1
    assert len(message) < 500


@pytest.mark.parametrize("record", [IDS, VLLM, _content(TOKEN)])
def test_the_records_that_the_hostile_ones_are_made_of_are_fine(
    tmp_path, tokenizer, keyring, record
):
    path = _write(tmp_path / "fine.jsonl", [record])
    assert len(list(read_logprobs([path], tokenizer, keyring.public))) == 1


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_values_that_json_does_not_have(tmp_path, tokenizer, keyring, value):
    line = json.dumps(_lists([[8, "X"]])).replace('"X"', value)
    _assert_refused(tmp_path, tokenizer, keyring, line)


def test_a_logprob_that_reads_as_minus_infinity_is_probability_0(tmp_path, tokenizer, keyring):
    path = tmp_path / "zero.jsonl"
    path.write_text(json.dumps(_lists([[8, "X"], [9, -0.5]])).replace('"X"', "-1e999"))
    [part] = read_logprobs([path], tokenizer, keyring.public)
    assert part.lists[0][3][1].tolist() == [0.0, math.exp(-0.5)]


ODD = {
    "a bool among output ids": {**IDS, "output_token_ids": [5, True, 7, 8]},
    "a bool among listed ids": _lists([[8, -1], [True, -4]]),
    "a list among output ids": {**IDS, "output_token_ids": [5, [6], 7, 8]},
    "a list among listed ids": _lists([[[8], -1], [9, -4]]),
    "a list of an empty list as ids": {"output_token_ids": [[]], "top_logprobs": []},
    "a logprob of 400 digits": _lists([[8, -(10**400)]]),
    "the number of bytes instead of the bytes": _content({"bytes": 5, "top_logprobs": []}),
    "a huge number of bytes": _content({"bytes": 10**15, "top_logprobs": []}),
    "bytes that are a bool": _content({"bytes": True, "top_logprobs": []}),
    "an id twice in one vllm entry": {
        **VLLM,
        "prompt_logprobs": [None] * 3 + [{"3": {"logprob": -1}, " 3": {"logprob": -2}}],
    },
    "a bad logprob of a token that the served model lacks": _content(
        {"bytes": [32], "top_logprobs": [{"token": "zqzq", "logprob": "x"}]}, TOKEN
    ),
}


@pytest.mark.parametrize(
    "name",
    ODD,
)
def test_odd_records_are_refused(tmp_path, tokenizer, keyring, name):
    _assert_refused(tmp_path, tokenizer, keyring, json.dumps(ODD[name]))


def test_a_position_without_a_prediction_is_not_read(tmp_path, tokenizer, keyring):
    record = {
        **VLLM,
        "prompt_logprobs": [None, {"6": {"logprob": -1}}, {"7": {"logprob": -1}}, None],
    }
    path = _write(tmp_path / "null.jsonl", [record])
    [part] = read_logprobs([path], tokenizer, keyring.public)
    assert part.positions.offsets.tolist() == [2]
    assert part.listed.tolist() == [False]


def test_an_empty_file_and_a_missing_one(tmp_path, tokenizer, index, keyring):
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        observe_logprobs([tmp_path / "empty.jsonl"], None, tokenizer, index, keyring)
    with pytest.raises(StorageError):
        observe_logprobs([tmp_path / "missing.jsonl"], None, tokenizer, index, keyring)


TWICE = {
    "an id twice": _lists([[8, -1.0], [8, -3.0]]),
    "an id twice in another position": {**IDS, "top_logprobs": [[], [], [[7, -1], [7, -1]], []]},
}


@pytest.mark.parametrize("name", TWICE)
def test_a_list_that_names_a_token_twice_is_refused(tmp_path, tokenizer, keyring, name):
    _assert_refused(tmp_path, tokenizer, keyring, json.dumps(TWICE[name]))


def test_different_tokens_of_the_same_text_add_up(tmp_path, tokenizer, keyring):
    """Parts of characters look alike as text and are told apart by their bytes."""
    listed = [
        {"token": "\ufffd", "bytes": [0xC3], "logprob": -1.0},
        {"token": "\ufffd", "bytes": [0xE6], "logprob": -1.5},
    ]
    content = [{"token": t, "bytes": list(t.encode()), "top_logprobs": listed} for t in "abc"]
    path = _write(tmp_path / "parts.jsonl", [{"logprobs": {"content": content}}])
    [part] = read_logprobs([path], tokenizer, keyring.public)
    found = [one for one in part.lists[0] if one is not None]
    assert found
    expected = {tokenizer_byte(tokenizer, 0xC3), tokenizer_byte(tokenizer, 0xE6)}
    assert all(set(one.ids.tolist()) == expected for one in found)


@pytest.mark.parametrize(
    ("said", "counted"),
    [
        ({}, 4),
        ({"finish": "length"}, 0),
        ({"finish": "end"}, 0),
        ({"marked": False}, 0),
        ({"generated": True}, 0),
        ({"finish": "stop"}, 4),  # other people's logs leave the end token out
        ({"marked": True}, 4),
        ({"generated": "true"}, 4),
    ],
)
def test_a_given_text_that_may_lack_its_end_is_counted(
    tmp_path, tokenizer, spoken, index, keyring, said, counted
):
    """A served response without its end token is read only where the coins did not choose it."""
    records = [{**record, **said} for record in _as_ids(spoken[:4], 0.0)]
    path = _write(tmp_path / "logprobs.jsonl", records)
    observed = observe_logprobs([path], None, tokenizer, index, keyring)
    assert observed.source["open_documents"] == counted
    inputs = {"outputs": {"source": observed.source}}
    reserved = [one.against for one in list_reservations(inputs, [], 1e-4)]
    assert ("evidence" in reserved) == bool(counted)
