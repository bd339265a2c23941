"""Quotations of the prompt against a slow oracle, in every form that a prompt can take."""

import html
import json
import textwrap
import unicodedata
import urllib.parse

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

from provenance.coins.contexts import list_windows, pack_windows, select_first_unprompted
from provenance.keys.tokenizer import tokenise_placed
from provenance.suspect.letters import decode_escapes, decode_fully, normalise
from provenance.suspect.positions import join_ids
from provenance.suspect.quotations import Spelled, Speller, find_quotations
from provenance.suspect.tokenizers.vocabularies import token_bytes
from tests.suspect.slow_quotations import slow_before, slow_both, slow_letters

WIDTH = 2


def _spell(tokenizer, text):
    [(ids, offsets)] = tokenise_placed(tokenizer, [text], "test")
    return ids, offsets, Spelled.of_offsets(text, offsets)


def _find(tokenizer, text, shown, **how):
    """bool per token: left out; `shown`: texts."""
    how = {"drawn_by_suspect": True, **how}
    _, _, spelled = _spell(tokenizer, text)
    return find_quotations([spelled], [tuple(shown)], WIDTH, **how)[0]


# ---- letters ----


FOLDED = {
    "Straße": "strasse",
    "ﬁne ﬂow": "fineflow",
    "ＡＢＣ１２": "abc12",
    "caf\u00e9 cafe\u0301": "cafecafe",
    "zero\u200bwidth\u00adsoft": "zerowidthsoft",
    "ΣΊΣΥΦΟΣ σίσυφος": "σισυφοσσισυφοσ",
    "İstanbul ışık": "istanbulisik",
    "Łódź smørrebrød Æsir": "lodzsmorrebrodaesir",
    "x² ½": "x212",
    "٣٤ ३": "343",
    "漢字": "漢漢漢字字字",
    "ガ": "カカ",
    "한": "\u1112\u1161\u11ab",
    "\u2160\u2163": "iiv",
    "!?_-—\n\t ": "",
    "": "",
    "𝔣𝔞𝔫𝔠𝔶": "fancy",
}


@pytest.mark.parametrize("text", FOLDED)
def test_letters_are_folded(text):
    assert "".join(map(chr, normalise(text).codes)) == FOLDED[text]


@given(st.text(max_size=60))
def test_letters_equal_the_slow_ones(text):
    found = normalise(text)
    codes = zip(map(chr, found.codes), found.begins.tolist(), strict=True)
    assert list(codes) == slow_letters(text)
    assert (found.ends == found.begins + 1).all()
    for code, digit in zip(found.codes, found.digits, strict=True):
        assert unicodedata.category(chr(code))[0] == ("N" if digit else "L")


@given(st.text(alphabet="\\nu0d83e%&lt;=<b>]()\x1b[31m é", max_size=60))
def test_decoding_keeps_places(text):
    """Every character comes from a part of the text; parts are in order and inside."""
    for found in (decode_escapes(text), decode_fully(text)):
        assert len(found.text) == found.begins.shape[0] == found.ends.shape[0]
        assert (found.ends > found.begins).all()
        assert (np.diff(found.begins) >= 0).all()
        assert (np.diff(found.ends) >= 0).all()
        assert found.ends.max(initial=0) <= len(text)


@given(st.text(max_size=80))
def test_what_programs_escape_is_undone(text):
    plain = "".join(map(chr, normalise(decode_fully(text).text).codes))
    for escaped in (
        json.dumps(text),
        json.dumps(text, ensure_ascii=False),
        json.dumps(json.dumps(text)),
        urllib.parse.quote(text.encode("utf-8", "replace")) if text.isascii() else text,
        html.escape(text),
    ):
        if any(0xD800 <= ord(c) <= 0xDFFF for c in text):
            return
        if decode_fully(text).text != text:
            continue  # escapes of its own: undone at another depth
        assert "".join(map(chr, normalise(decode_fully(escaped).text).codes)) == plain


# ---- against the oracle ----


PIECES = st.sampled_from(
    [
        "return path", "the keyring ", "Keyring", "\n", "\\n", "> ", "12", "7. ", "naïve ", "漢字",
        "漢字漢字", "<b>", "</b>", "&amp;", "%20", "\\u00e9", "é", "self", "import ", ".", "```\n",
        "](http://x.y)", "emoji 😀 ", "ＦＵＬＬ ", "ſ", "e\u0301",
    ]
)  # fmt: skip
TEXTS = st.lists(PIECES, max_size=14).map("".join)
PROMPTS = st.lists(TEXTS, max_size=3).map(lambda texts: tuple(text for text in texts if text))


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, shown=PROMPTS, quoted=st.booleans(), width=st.integers(1, 3))
def test_outputs_equal_the_oracle(tokenizer, text, shown, quoted, width):
    text = text + shown[0][3:] if quoted and shown else text
    _, offsets, spelled = _spell(tokenizer, text)
    found = find_quotations([spelled], [shown], width, drawn_by_suspect=True)[0]
    assert found.tolist() == slow_both(text, offsets.tolist(), shown, width)


@settings(max_examples=300, deadline=None)
@given(text=TEXTS, shown=PROMPTS, quoted=st.booleans(), cut=st.integers(0, 40))
def test_documents_equal_the_oracle_and_never_look_ahead(tokenizer, text, shown, quoted, cut):
    text = text + shown[0][3:] if quoted and shown else text
    ids, _, _ = _spell(tokenizer, text)
    speller = Speller(tokenizer, 500)
    how = {"drawn_by_suspect": False}
    found = find_quotations([speller.spell(ids)], [shown], WIDTH, **how)[0]
    spelling = token_bytes(tokenizer)
    pieces = [spelling[i] or b"\xff" for i in ids.tolist()]
    assert found.tolist() == slow_before(pieces, shown, WIDTH)
    # what stands at the cut and behind it changes nothing before it, and not at it
    other = np.concatenate([ids[:cut], np.full(9, 7, dtype=np.uint32)])
    again = find_quotations([speller.spell(other)], [shown], WIDTH, **how)[0]
    assert again[: cut + 1].tolist()[: found.shape[0]] == found[: cut + 1].tolist()


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(TEXTS, PROMPTS), max_size=8), st.booleans())
def test_many_outputs_at_once_are_each_by_itself(tokenizer, pairs, drawn):
    spelled = [_spell(tokenizer, text)[2] for text, _ in pairs]
    shown = [texts for _, texts in pairs]
    together = find_quotations(spelled, shown, WIDTH, drawn_by_suspect=drawn)
    for one, own, texts in zip(together, spelled, shown, strict=True):
        alone = find_quotations([own], [texts], WIDTH, drawn_by_suspect=drawn)[0]
        assert one.tolist() == alone.tolist()


def test_parts_are_one_comparison(tokenizer, monkeypatch):
    texts = [f"number {i} of the outputs returns the keyring of path {i % 3}" for i in range(20)]
    shown = [(f"the outputs returns the KEYRING of path {i % 5}",) for i in range(20)]
    spelled = [_spell(tokenizer, text)[2] for text in texts]
    whole = find_quotations(spelled, shown, WIDTH, drawn_by_suspect=True)
    assert any(one.any() for one in whole)
    for size in (1, 150, 400):
        monkeypatch.setattr("provenance.suspect.quotations._CHUNK", size)
        parts = find_quotations(spelled, shown, WIDTH, drawn_by_suspect=True)
        assert [one.tolist() for one in parts] == [one.tolist() for one in whole]


@given(st.text(max_size=40))
def test_spelled_ids_stand_where_the_tokenizer_says(tokenizer, text):
    ids, offsets, _ = _spell(tokenizer, text)
    spelled = Speller(tokenizer, 400).spell(ids)
    assert spelled.text == text
    assert list(zip(spelled.begins, spelled.ends, strict=True)) == [tuple(o) for o in offsets]


def test_cut_characters_and_tokens_without_text(tokenizer):
    speller = Speller(tokenizer, 450)
    ids, _, _ = _spell(tokenizer, "漢字 😀")
    for cut in range(len(ids) + 1):
        spelled = speller.spell(np.concatenate([[0], ids[:cut], [430]]).astype(np.uint32))
        assert spelled.begins[0] == 0
        assert spelled.ends[-1] == len(spelled.text)
        assert (spelled.whole >= spelled.begins).all()
        shown = ("漢字漢字漢字漢字",)
        assert find_quotations([spelled], [shown], WIDTH, drawn_by_suspect=True)


def test_a_tokenizer_that_does_not_spell_is_read_by_its_letters():
    """WordPiece drops spaces and adds ##: the letters are there."""
    words = ["[UNK]", "un", "##aff", "##able", "keyring", "return", "of", "the"]
    tokenizer = Tokenizer(
        models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.decoder = decoders.WordPiece()
    text = "return of the unaffable keyring"
    ids = np.array(tokenizer.encode(text).ids, dtype=np.uint32)
    spelled = Speller(tokenizer, 8).spell(ids)
    assert spelled.text == "returnoftheunaffablekeyring"
    found = find_quotations([spelled], [("OF THE UNAFFABLE",)], 1, drawn_by_suspect=True)[0]
    assert found.tolist() == [False, True, True, True, True, True, True]


# ---- forms of a prompt ----


PASSAGE = (
    "def read_keyring(path):\n"
    '    """Return the *naïve* keyring of `path` & check it: x < 12."""\n'
    "    if not path.exists() and path != '':\n"
    "        return None\n"
    "    - [see the manual](https://keyring.example/manual?page=2) first\n"
)
FORMS = {
    "the same": lambda s: s,
    "wrapped": lambda s: textwrap.fill(s, 40, break_on_hyphens=False),
    "hyphenated": lambda s: s.replace("keyring", "key-\nring"),
    "mail": lambda s: "\n".join("> > " + line for line in s.split("\n")),
    "json": json.dumps,
    "json in json": lambda s: json.dumps({"arguments": json.dumps({"text": s})}),
    "json, not ascii": lambda s: json.dumps(s, ensure_ascii=False),
    "indented": lambda s: textwrap.indent(s, "        "),
    "collapsed": lambda s: " ".join(s.split()),
    "no space at all": lambda s: "".join(s.split()),
    "rendered": lambda s: s.replace("*", "").replace("`", "").replace("_", ""),
    "rendered link": lambda s: s.replace(
        "[see the manual](https://keyring.example/manual?page=2)", "see the manual"
    ),
    "lower case": str.lower,
    "upper case": str.upper,
    "html": html.escape,
    "html tags": lambda s: "".join(f"<p class='x'>{html.escape(li)}</p>" for li in s.split("\n")),
    "url": urllib.parse.quote,
    "form": urllib.parse.quote_plus,
    "numbered lines": lambda s: "\n".join(
        f"{i:6}\t{line}" for i, line in enumerate(s.split("\n"), 1)
    ),
    "decomposed": lambda s: unicodedata.normalize("NFD", s),
    "full width": lambda s: "".join(chr(ord(c) + 0xFEE0) if "!" <= c <= "~" else c for c in s),
    "zero width": lambda s: "\u200b".join(s),
    "no accents": lambda s: s.replace("ï", "i"),
    "python": repr,
    "quoted-printable": lambda s: s.replace("ï", "=C3=AF").replace("\n", "=0A=\n"),
    "coloured": lambda s: s.replace("return", "\x1b[1;31mreturn\x1b[0m"),
}

WRAPPED = {"rendered link", "html tags", "json in json", "numbered lines", "quoted-printable"}
"""Forms with something beside the passage: a tag, a number or an address that was not shown."""


@pytest.mark.parametrize("turned", ["prompt", "output"])
@pytest.mark.parametrize("form", FORMS)
def test_a_passage_is_left_out_whatever_form_the_prompt_gave_it(tokenizer, form, turned):
    """All of it, and nothing of what the suspect wrote around it."""
    own = "My very own words come first, with no passage of anybody.\n"
    after = "\nAnd these again belong to me alone, nobody wrote any of them."
    quoted = PASSAGE
    shown = FORMS[form](PASSAGE)
    if turned == "output":
        shown, quoted = quoted, shown
    text = own + quoted + after
    _, offsets, _ = _spell(tokenizer, text)
    found = _find(tokenizer, text, ["Explain this:\n" + shown])
    begins, ends = offsets.T
    inside = (begins >= len(own)) & (ends <= len(own) + len(quoted))
    if form in WRAPPED:
        assert found[inside].mean() > 0.6
    else:
        assert found[inside].all(), [text[b:e] for b, e in offsets[inside & ~found]]
    outside = (ends <= len(own) - 3) | (begins > len(own) + len(quoted) + 20)
    assert not found[outside].any()


def _left_out_by_tokens_alone(tokenizer, text, shown):
    """The double: contexts that stand in the prompt token for token, as the rule once was."""
    output = _spell(tokenizer, text)[0]
    parts = [_spell(tokenizer, one)[0] for one in shown]
    asked, lengths = join_ids(parts)
    rows, starts = list_windows(output, np.array([output.shape[0]]), WIDTH, followed=True)
    _, prompt_starts = list_windows(asked, lengths, WIDTH, followed=False)
    _, unprompted = select_first_unprompted(
        rows,
        pack_windows(output, starts, WIDTH),
        rows,
        np.zeros_like(prompt_starts),
        pack_windows(asked, prompt_starts, WIDTH),
    )
    found = np.zeros(output.shape[0], dtype=np.bool_)
    found[starts + WIDTH] = ~unprompted
    return found


@pytest.mark.parametrize("form", ["wrapped", "json", "rendered", "upper case", "html", "url"])
def test_the_rule_of_equal_tokens_alone_fails(tokenizer, form):
    shown = FORMS[form](PASSAGE)
    assert not _left_out_by_tokens_alone(tokenizer, PASSAGE, [shown])[WIDTH:].all()
    assert _find(tokenizer, PASSAGE, [shown])[WIDTH:].all()


LANGUAGES = {
    "chinese": ("今天天气很好，我们去公园。", "天气很好我们", "天气"),
    "japanese": ("サーバーがこたえを返しました。", "サーバーがこたえを", "サーバ"),
    "korean": ("한국어로 대답해 주세요", "대답해 주세요", "대답"),
    "russian": ("Верни мне этот ключ, пожалуйста", "ЭТОТ КЛЮЧ, ПОЖАЛУЙСТА", "этот"),
    "arabic": ("أعد لي هذا المفتاح من فضلك", "هذا المفتاح من فضلك", "هذا"),
    "hindi": ("कृपया मुझे वह चाबी लौटा दो जल्दी", "मुझे वह चाबी लौटा दो जल्दी", "चाबी"),
    "thai": ("กรุณาคืนกุญแจดอกนั้นให้ฉัน", "คืนกุญแจดอกนั้นให้ฉัน", "กุญ"),
    "turkish": ("İSTANBUL IŞIKLARI ÇOK GÜZEL", "istanbul ışıkları çok güzel", "çok"),
}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_with_other_letters(tokenizer, language):
    """Four Chinese characters are a passage; two are a word."""
    prompt, quoted, word = LANGUAGES[language]
    assert _find(tokenizer, quoted, [prompt])[WIDTH:].mean() > 0.7
    assert not _find(tokenizer, f"{word} keyring", [prompt]).any()


# ---- edges ----


def test_short_prompts_protect_nothing_and_harm_nothing(tokenizer):
    for shown in ([], ["Hi"], ["return"], ["  \n"], ["?!"]):
        assert not _find(tokenizer, "Hi, return the keyring of this path", shown).any()
    for text in ("", " ", "x"):
        assert _find(tokenizer, text, ["return the keyring of this path"]).shape[0] <= 2


def test_an_output_that_goes_on_where_the_prompt_was_cut(tokenizer):
    """Cut inside a word: nothing is quoted unless the whole stands in the prompt already."""
    assert not _find(tokenizer, "ring of the path", ["Return the key"]).any()
    again = ["The keyring of Ali is on the table. Return the keyr"]
    assert _find(tokenizer, "ing of Ali, now", again)[:4].all()
    assert not _find(tokenizer, "ing, Bob, now", again).any()


def test_tables_of_numbers_are_told_apart(tokenizer):
    """Without its digits, every table of short names is like every other."""
    one, other = (
        " ".join(f"x{n} y{n * 7} z{n + 13}" for n in range(100 + start, 120 + start))
        for start in (0, 300)
    )
    assert not _find(tokenizer, other, [one]).any()
    assert _find(tokenizer, one.replace(" ", "\n"), [one])[WIDTH:].all()


def test_texts_of_one_prompt_are_not_read_as_one(tokenizer):
    assert not _find(tokenizer, "return the keyring", ["return the", "keyring"]).any()
    assert _find(tokenizer, "return the keyring", ["x", "return the keyring", "y"])[WIDTH:].all()


def test_a_prompt_protects_its_own_output_only(tokenizer):
    text = "the keyring of this path is returned"
    _, _, spelled = _spell(tokenizer, text)
    own, other, none = find_quotations(
        [spelled] * 3,
        [(text,), ("something else entirely, at length",), ()],
        WIDTH,
        drawn_by_suspect=True,
    )
    assert own.all()
    assert not other.any()
    assert not none.any()


def test_a_megabyte_of_many_turns(tokenizer):
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), 5)) for _ in range(5000)]
    turns = [" ".join(rng.choice(words, 400)) for _ in range(420)]
    assert sum(map(len, turns)) > 1_000_000
    text = "My own words: " + turns[300][600:700].upper() + " zzz qqq vvv"
    found = _find(tokenizer, text, turns)
    assert 10 < found.sum() < found.shape[0] - 5


def test_endless_escapes_take_linear_time(tokenizer):
    """Nothing here may take minutes: patterns that could backtrack, and only escapes."""
    for piece in ("<a", "\\u00e9", "&amp", "%C3%A9", "](", "\x1b[", "&lt;", "=E9", "\\\\"):
        assert decode_fully(piece * 60_000).text is not None
    text = "<a " * 20_000 + "return the keyring of this path"
    assert _find(tokenizer, text, ["return the keyring of this path"]).any()


def test_distributions_look_at_what_stood_before_too(tokenizer):
    """The drawn token left the quotation; the one that was not drawn would have gone on."""
    shown = ["The keyring of Ali is on the table"]
    text = "The keyring zz of"
    alone = _find(tokenizer, text, shown)
    both = _find(tokenizer, text, shown, read_as_distribution=True)
    assert not alone.any()
    assert both.any()
