"""How an API spells tokens: read rightly or refused; and nothing is listed because it was drawn."""

import json
import math

import numpy as np
import pytest

from provenance.errors import DataError
from provenance.suspect.access.api_tokens import Speller, is_logprob
from provenance.suspect.access.listed import Listed, forget_chosen
from provenance.suspect.access.logprobs import read_logprobs
from provenance.suspect.access.probabilities import observe_logprobs
from provenance.suspect.gaps import say_gaps
from provenance.suspect.tokenizers.vocabularies import byte_alphabet, token_bytes

SIGNS = {byte: sign for sign, byte in byte_alphabet().items()}
WORDS = [b"def", b" key", b"ring", b"(", b"self", b"):", b"\n", b"   ", b" return", b" na", b"\xc3",
         b"\xaf", b"ve", b" path", b".", b" import", b" self"]  # fmt: skip
TEXT = b"".join(WORDS).decode()


def _plain(string):
    return {"token": string.decode("utf-8", "replace"), "bytes": list(string)}


def _without_bytes(string):
    return {"token": string.decode("utf-8", "replace"), "bytes": None}


def _pieces(string):
    return {"token": "".join(SIGNS[byte] for byte in string), "bytes": None}


def _echoed(string):
    piece = "".join(SIGNS[byte] for byte in string)
    return {"token": piece, "bytes": list(piece.encode())}


def _half(string):
    """The first space as a sign, the rest as text; and bytes where there was no space."""
    if not string.startswith(b" "):
        return _plain(string)
    return {"token": "Ġ" + string[1:].decode("utf-8", "replace"), "bytes": None}


def _signs(string):
    if string in (b"\n", b"\xc3", b"\xaf"):
        return {"token": f"<0x{string[0]:02X}>"}
    return {"token": string.decode("utf-8", "replace").replace(" ", "▁")}


def _stripped(string):
    return {"token": string.decode("utf-8", "replace").strip(" "), "bytes": None}


def _record(spell, strings=WORDS, others=(b" x", b"\n\n", b" self", b"q"), **more):
    """Every token listed with some others, as `spell` writes them."""
    content = [
        {
            **spell(string),
            "logprob": -0.7,
            "top_logprobs": [
                {**spell(one), "logprob": -0.7 - number}
                for number, one in enumerate(dict.fromkeys([string, *others]))
            ],
        }
        for string in strings
    ]
    return {"logprobs": {"content": content}, **more}


def _read(tmp_path, tokenizer, keyring, *records):
    path = tmp_path / "logprobs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    [part] = read_logprobs([path], tokenizer, keyring.public)
    return part


def _lists(part, row=0):
    return [
        None
        if one is None
        else dict(zip(one.ids.tolist(), one.masses.round(9).tolist(), strict=True))
        for one in part.lists[row]
    ]


def _assert_refused(tmp_path, tokenizer, keyring, said, *records):
    with pytest.raises(DataError) as raised:
        _read(tmp_path, tokenizer, keyring, *records)
    message = str(raised.value)
    assert said in message, message
    assert message.startswith(f"{tmp_path / 'logprobs.jsonl'}: line {len(records)}: ")
    assert len(message.splitlines()) == 1


# ---- spellings ----


@pytest.mark.parametrize("spell", [_pieces, _echoed, _half, _signs])
@pytest.mark.parametrize("answered", [False, True])
def test_every_spelling_reads_as_the_bytes_do(tmp_path, tokenizer, keyring, spell, answered):
    more = {"output": TEXT} if answered else {}
    expected = _read(tmp_path, tokenizer, keyring, _record(_plain))
    assert expected.positions.outputs[0].tolist() == tokenizer.encode(TEXT).ids
    assert sum(one is not None for one in expected.lists[0]) > 8
    found = _read(tmp_path, tokenizer, keyring, _record(spell, **more))
    assert found.positions.outputs[0].tolist() == expected.positions.outputs[0].tolist()
    assert _lists(found) == _lists(expected)


def test_text_whose_cut_characters_were_lost_keeps_the_rest(tmp_path, tokenizer, keyring):
    """A server that decodes each token by itself writes U+FFFD for a part of a character."""
    expected = _lists(_read(tmp_path, tokenizer, keyring, _record(_plain)))
    part = _read(tmp_path, tokenizer, keyring, _record(_without_bytes, output=TEXT))
    assert part.positions.outputs[0].tolist() == tokenizer.encode(TEXT).ids
    found = _lists(part)
    assert all(one is None or one == other for one, other in zip(found, expected, strict=True))
    assert any(one is not None for one in found)


def test_one_record_shows_how_a_file_is_spelt(tmp_path, tokenizer, keyring):
    """ "Ã©" alone could be text; after a record of pieces it is one."""
    short = _record(_pieces, ["é".encode(), b"a"], others=(b"b",))
    alone = _read(tmp_path, tokenizer, keyring, short)
    assert alone.positions.outputs[0].tolist() == tokenizer.encode("Ã©a").ids
    part = _read(tmp_path, tokenizer, keyring, _record(_pieces), short)
    assert part.positions.outputs[1].tolist() == tokenizer.encode("éa").ids
    answered = _read(tmp_path, tokenizer, keyring, {**short, "output": "éa"})
    assert answered.positions.outputs[0].tolist() == tokenizer.encode("éa").ids


def test_text_that_looks_like_pieces_is_text(tmp_path, tokenizer, keyring):
    """Maltese has the letter that spells a space; block elements have the other sign."""
    for strings in (["Il", "-Ġimgħa", " hija", " Ġdida"], ["load", " ▁▂▃", " ok"]):
        encoded = [string.encode() for string in strings]
        part = _read(tmp_path, tokenizer, keyring, _record(_without_bytes, encoded, (b" a",)))
        assert part.positions.outputs[0].tolist() == tokenizer.encode("".join(strings)).ids


def test_spellings_that_contradict_each_other_are_refused(tmp_path, tokenizer, keyring):
    mixed = _record(_pieces)
    for token, odd in zip(mixed["logprobs"]["content"], ["\tkey é", "漢Ġ"], strict=False):
        token["top_logprobs"][-1]["token"] = odd
    _assert_refused(tmp_path, tokenizer, keyring, "spelt in several ways", mixed)
    both = (_record(_pieces), _record(_without_bytes))
    _assert_refused(tmp_path, tokenizer, keyring, "differently than before", *both)


def test_words_without_their_space_are_refused(tmp_path, tokenizer, keyring):
    strings = [b" import", b" self", b" return", b"\n   "] * 20
    record = _record(_stripped, strings, (b" path", b" key"))
    _assert_refused(tmp_path, tokenizer, keyring, "space before them", record)
    _assert_refused(tmp_path, tokenizer, keyring, "must spell", {**record, "output": "import self"})
    # as many words with spaces, and as many without that say what they spell
    _read(tmp_path, tokenizer, keyring, _record(_without_bytes, strings, (b" path",)))
    together = [b"import", b"self", b"return"] * 20
    told = _record(_without_bytes, together, (b"path",), output="importselfreturn" * 20)
    _read(tmp_path, tokenizer, keyring, told)


def test_listed_tokens_without_their_space_are_refused(tmp_path, tokenizer, keyring):
    record = _record(_plain)
    for token in record["logprobs"]["content"]:
        for one in token["top_logprobs"]:
            one.update(_stripped(bytes(one["bytes"])))
    _assert_refused(tmp_path, tokenizer, keyring, "must be in its own top_logprobs", record)


# ---- a drawn token and its own list ----


def _with_own(value, listed):
    record = _record(_plain)
    token = record["logprobs"]["content"][4]  # "self", which begins where a served token does
    token["logprob"] = value
    token["top_logprobs"] = [{**_plain(one), "logprob": -1.0 - n} for n, one in enumerate(listed)]
    return record


@pytest.mark.parametrize("value", [-0.1, -1.2, -1.9])
def test_a_token_that_its_list_should_hold_is_missed(tmp_path, tokenizer, keyring, value):
    record = _with_own(value, [b" x", b"q"])
    _assert_refused(tmp_path, tokenizer, keyring, "must be in its own top_logprobs", record)


@pytest.mark.parametrize("value", [-2.0, -2.0 + 1e-4, -7.5, -9999.0, -9999, None])
def test_a_token_below_its_list_is_not_added(tmp_path, tokenizer, keyring, value):
    """Its mass would be known because it was drawn; see the module `listed`."""
    part = _read(tmp_path, tokenizer, keyring, _with_own(value, [b" x", b"q"]))
    place = [(one is not None and len(one.ids) and one.total < 0.6) for one in part.lists[0]]
    [found] = [one for one, chosen in zip(part.lists[0], place, strict=True) if chosen]
    strings = token_bytes(tokenizer)
    assert b"self" not in {strings[i] for i in found.ids.tolist()}


@pytest.mark.parametrize("value", [0.5, "x", True, 10**400])
def test_a_drawn_tokens_logprob_that_is_none(tmp_path, tokenizer, keyring, value):
    record = _with_own(value, [b" x"])
    _assert_refused(tmp_path, tokenizer, keyring, "logprob must be a number", record)


def test_a_logprob_above_zero_by_rounding_is_one(tmp_path, tokenizer, keyring):
    assert is_logprob(1e-6)
    record = _record(_plain)
    token = record["logprobs"]["content"][4]
    token.update(logprob=1e-6, top_logprobs=[{**_plain(b"self"), "logprob": 1e-6}])
    _read(tmp_path, tokenizer, keyring, record)


# ---- numbers of tokens ----


def _numbered(ids, **more):
    def token(i):
        text = f"token_id:{i}"
        return {"token": text, "bytes": list(text.encode()), "logprob": -0.5}

    content = [
        {**token(i), "top_logprobs": [token(i), {**token(i + 1), "logprob": -3}]} for i in ids
    ]
    return {"logprobs": {"content": content}, **more}


def test_numbers_are_ids_where_the_text_shows_it(tmp_path, tokenizer, keyring):
    ids = tokenizer.encode(TEXT).ids
    for more in (
        {"output": TEXT},
        {"output": TEXT.strip() + "\n"},
        {"message": {"role": "assistant", "content": TEXT}},
        {"output_token_ids": ids},
    ):
        part = _read(tmp_path, tokenizer, keyring, _numbered(ids, **more))
        assert part.positions.outputs[0].tolist() == ids
        assert [one.ids.tolist() for one in part.lists[0]] == [[i, i + 1] for i in ids]
        assert part.generated
        assert all(aligned.all() for aligned in part.aligned)
    # the end token is drawn and no part of the text
    part = _read(tmp_path, tokenizer, keyring, _numbered([*ids, 1], output=TEXT))
    assert part.positions.outputs[0].tolist() == [*ids, 1]


def test_numbers_that_may_be_of_another_vocabulary_are_refused(tmp_path, tokenizer, keyring):
    ids = tokenizer.encode(TEXT).ids
    fixed = (tmp_path, tokenizer, keyring)
    _assert_refused(*fixed, "must come with the text", _numbered(ids))
    _assert_refused(*fixed, "must come with the text", _numbered(ids, output_token_ids=ids[:-1]))
    _assert_refused(*fixed, "another text", _numbered([i + 1 for i in ids], output=TEXT))
    _assert_refused(*fixed, "", _numbered([*ids, 10**6], output=TEXT))
    mixed = _numbered(ids, output=TEXT)
    mixed["logprobs"]["content"][3]["top_logprobs"][1]["token"] = " the"
    _assert_refused(*fixed, "either all tokens must be numbers", mixed)
    # one honest record does not vouch for the next
    _assert_refused(*fixed, "must come", _numbered(ids, output=TEXT), _numbered(ids))


# ---- the answer beside its tokens ----


@pytest.mark.parametrize(
    "more",
    [
        {"output": TEXT},
        {"output": " " + TEXT},
        {"output": TEXT.strip()},
        {"message": {"content": TEXT}},
        {"message": {"content": None}},
        {"message": {"content": "return", "reasoning_content": "..."}},
        {"message": {"content": "", "tool_calls": [{"id": "1"}]}},
        # a stop string was drawn and cut off
        {"output": TEXT[: -len(" import self")]},
    ],
)
def test_an_answer_that_its_tokens_spell(tmp_path, tokenizer, keyring, more):
    part = _read(tmp_path, tokenizer, keyring, _record(_plain, **more))
    assert part.positions.outputs[0].tolist() == tokenizer.encode(TEXT).ids


@pytest.mark.parametrize(
    "more",
    [
        {"output": TEXT + " more"},
        {"output": "something else"},
        {"output": TEXT[4:]},
        {"message": {"content": "absent", "reasoning_content": "..."}},
        {"output": TEXT.upper()},
    ],
)
def test_an_answer_that_its_tokens_do_not_spell(tmp_path, tokenizer, keyring, more):
    _assert_refused(tmp_path, tokenizer, keyring, "must spell", _record(_plain, **more))


@pytest.mark.parametrize("answer", [5, ["a"], {"text": "a"}])
def test_an_answer_that_is_no_text(tmp_path, tokenizer, keyring, answer):
    _assert_refused(tmp_path, tokenizer, keyring, "no string", _record(_plain, output=answer))


def test_the_name_of_a_control_token_is_no_text(tmp_path, tokenizer, keyring):
    record = _record(_plain, [*WORDS, b"<|im_end|>"], output=TEXT)
    record["logprobs"]["content"][-1]["top_logprobs"] = [{**_plain(b" x"), "logprob": -9.0}]
    part = _read(tmp_path, tokenizer, keyring, record)
    assert part.positions.outputs[0].tolist() == tokenizer.encode(TEXT).ids


SILENT = [
    {"logprobs": {"content": None, "refusal": [{"token": "I"}]}},
    {"logprobs": {"content": None}, "message": {"content": None, "refusal": "I cannot"}},
    {"logprobs": {"content": None}, "message": {"content": None, "tool_calls": [{"id": "1"}]}},
]


@pytest.mark.parametrize("silent", SILENT)
def test_a_record_without_an_answer_is_counted(tmp_path, tokenizer, keyring, silent):
    part = _read(tmp_path, tokenizer, keyring, _record(_plain), silent)
    assert part.silent == 1
    assert len(part.positions.outputs) == 2


# ---- what is listed must not depend on what was drawn ----


def _ranked(probabilities, count, chosen):
    """As vLLM lists prompt tokens: the most probable ones, and the one that stands there."""
    best = np.argsort(-probabilities)[:count]
    ids = best if chosen in best else np.append(best, chosen)
    return Listed(ids.astype(np.uint32), probabilities[ids], float(probabilities[ids].sum()))


@pytest.mark.parametrize("count", [1, 2, 5, 20])
def test_lists_are_the_same_whatever_was_drawn(count):
    """The double: what servers list tells which token the coins chose; what is kept does not."""
    rng = np.random.default_rng(3)
    rows = rng.dirichlet(np.full(60, 0.3), size=40)
    kept, raw = set(), set()
    for _ in range(30):
        ids = np.array([rng.choice(60, p=row) for row in rows], dtype=np.uint32)
        # some position holds its most probable token, as in any text
        ids[0] = rows[0].argmax()
        lists = [_ranked(row, count, token) for row, token in zip(rows, ids, strict=True)]
        raw.add(tuple(tuple(sorted(one.ids.tolist())) for one in lists))
        cleaned = forget_chosen(lists, ids)
        assert all(one is not None for one in cleaned[1:])
        kept.add(tuple(tuple(sorted(one.ids.tolist())) for one in cleaned))
    assert len(raw) > 20
    assert len(kept) == 1


def test_lists_of_the_drawn_token_alone_say_nothing(tmp_path, tokenizer, keyring):
    """vLLM with prompt_logprobs=0."""
    lists = [None, *({str(i): {"logprob": -2.0}} for i in (6, 7, 8, 9))]
    record = {"prompt_token_ids": [5, 6, 7, 8, 9], "prompt_logprobs": lists, "response_start": 1}
    assert not _read(tmp_path, tokenizer, keyring, record).listed.any()


def test_lists_above_a_probability_lose_what_lies_below_it():
    rng = np.random.default_rng(4)
    rows = rng.dirichlet(np.full(30, 0.4), size=50)
    ids = np.array([rng.choice(30) for _ in rows], dtype=np.uint32)
    lists = []
    for row, token in zip(rows, ids.tolist(), strict=True):
        chosen = np.flatnonzero((row > 0.02) | (np.arange(30) == token))
        lists.append(Listed(chosen.astype(np.uint32), row[chosen], float(row[chosen].sum())))
    for row, one in zip(rows, forget_chosen(lists, ids), strict=True):
        assert set(one.ids.tolist()) == set(np.flatnonzero(row > 0.02).tolist())


def test_the_double_shows_the_leak_and_the_cleaned_lists_do_not():
    """Coins choose the text; a model that knows no key reads it. Mean coin of what it lists."""
    rng = np.random.default_rng(5)
    rows = np.full((4000, 12), 1 / 12)
    coins = rng.random(rows.shape)
    ids = (np.log(coins) / rows).argmax(axis=1).astype(np.uint32)
    models = rng.dirichlet(np.ones(12), size=4000)
    lists = [_ranked(row, 3, token) for row, token in zip(models, ids, strict=True)]

    def mean(listed):
        return np.mean([coins[n, one.ids].mean() for n, one in enumerate(listed)])

    limit = 5 / math.sqrt(12 * 3 * 4000)
    assert mean(lists) > 0.5 + 5 * limit
    assert abs(mean(forget_chosen(lists, ids)) - 0.5) < limit


# ---- what was read, in the verdict ----


def _observe(tmp_path, tokenizer, index, keyring, *records):
    path = tmp_path / "logprobs.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return observe_logprobs([path], None, tokenizer, index, keyring).source


def test_counts_of_what_was_read(tmp_path, tokenizer, index, keyring):
    strings = [b"def", b" key", b"ring", b" return", b" path", b" import", b" self"] * 3
    record = _record(_plain, strings)
    found = _observe(tmp_path, tokenizer, index, keyring, record, record, SILENT[0])
    assert found["records"] == 3
    assert found["records_silent"] == 1
    assert found["positions"] > 0
    unread = found["positions_cut"] + found["positions_unlisted"]
    assert unread == found["positions"] * (1 - found["positions_kept"])
    assert 0 < found["mass_kept"] <= found["mass_listed"]
    assert any("1 of 3 records" in reason for reason in say_gaps(found))


WHOLE = {
    "access": "logprobs",
    **{"records": 100.0, "records_silent": 10.0, "positions": 1000.0, "positions_kept": 0.9},
    **{"positions_cut": 90.0, "positions_unlisted": 10.0, "mass_kept": 0.45, "mass_listed": 0.5},
}


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, None),
        ({"positions_kept": 0.899}, "of 1000 positions"),
        ({"mass_kept": 0.449}, "of the listed probability"),
        ({"records_silent": 11.0}, "11 of 100 records"),
        ({"positions_kept": 0.0, "mass_kept": 0.0, "mass_listed": 0.0}, "only 0% of 1000"),
        ({"access": "weights", "positions_kept": 0.1}, None),
    ],
)
def test_gaps_are_said(change, said):
    reasons = say_gaps({**WHOLE, **change})
    assert len(reasons) == (said is not None)
    assert said is None or said in reasons[0]


def test_other_ways_of_access_have_no_gaps():
    assert say_gaps({"access": "outputs"}) == ()


def test_speller_takes_no_tokens():
    assert Speller().spell([], {}, "here").text == ""
