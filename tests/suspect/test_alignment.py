"""Alignment of two tokenizers against slow oracles, over arbitrary text and real tokenizers."""

import json
import re
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.suspect.tokenizers.alignment import align, encode_text, place_tokens
from provenance.suspect.tokenizers.vocabularies import TokenTable, VocabularyMap, token_bytes

LAB = Path(__file__).parents[2] / "fixtures" / "keys" / "tokenizer.json"
TEXT = """The café in Zürich opens at eight; naïve guests ask “why?” and wait.
Der Schlüssel liegt unter der Fußmatte, die Straße ist leer, überall Nebel.
Le garçon a mangé une crêpe à l’étage ; ça suffit déjà, n’est-ce pas ?
Ключ лежит под ковриком, а туман накрыл улицу и старый дом.
鍵は玄関マットの下にあります。通りは霧に包まれている。
钥匙在门垫下面，街道空无一人，到处都是雾。
def read(path):\n    with open(path) as file:\n        return file.read().split()\n
The key is under the mat, the street is empty, and there is fog everywhere.
""".splitlines(keepends=True)
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
SPECIAL = ["<s>", "</s>", "<pad>"]


def token_ends(ids, table, text):
    return place_tokens(np.array(ids, dtype=np.uint32), table, encode_text(text))[0]


# ---- tokenizers of every family ----


def _trained(model, trainer, pre_tokenizer):
    tokenizer = Tokenizer(model)
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.train_from_iterator(TEXT * 3, trainer)
    return tokenizer


def _bos(tokenizer):
    """The tokenizer with its special tokens, and with <s> set before every text."""
    tokenizer.add_special_tokens(SPECIAL)
    identifier = tokenizer.token_to_id("<s>")
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", identifier)]
    )
    return tokenizer


def byte_level(size=420, prefix=False):
    pre = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, show_progress=False)
    tokenizer = _trained(models.BPE(), trainer, pre)
    tokenizer.decoder = decoders.ByteLevel()
    return _bos(tokenizer)


def unigram(fallback=True, pre=None):
    """SentencePiece Unigram: ▁ for the space, a dummy space before the text."""
    pre = pre or pre_tokenizers.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", show_progress=False)
    model = json.loads(_trained(models.Unigram(), trainer, pre).to_str())["model"]
    vocabulary = [("<unk>", 0.0)] + [(p, s) for p, s in model["vocab"] if p != "<unk>"]
    if fallback:
        vocabulary[1:1] = [(piece, 0.0) for piece in BYTES]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=fallback))
    tokenizer.pre_tokenizer = pre
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    return _bos(tokenizer)


def fallback_bpe(dummy):
    """BPE with byte tokens: Llama 2 (a dummy space before the text) or Gemma (none)."""
    trainer = trainers.BpeTrainer(vocab_size=400, show_progress=False)
    trained = _trained(models.BPE(), trainer, pre_tokenizers.Metaspace())
    model = json.loads(trained.to_str())["model"]
    pieces = ["<unk>", *BYTES, *model["vocab"], "▁▁", "▁▁▁▁"]
    merges = [("▁", "▁"), ("▁▁", "▁▁"), *(tuple(pair) for pair in model["merges"])]
    vocabulary = {piece: i for i, piece in enumerate(dict.fromkeys(pieces))}
    tokenizer = Tokenizer(
        models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    space = normalizers.Replace(" ", "▁")
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if dummy:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), space])
        tokenizer.decoder = decoders.Sequence([*steps, decoders.Strip(" ", 1, 0)])
    else:
        tokenizer.normalizer = space
        tokenizer.decoder = decoders.Sequence(steps)
        tokenizer.add_tokens([AddedToken("▁▁", normalized=False), AddedToken("\n\n")])
    return _bos(tokenizer)


def words():
    """The tokenizer of tests/world/synthetic.py."""
    tokenizer = Tokenizer(models.WordLevel({f"w{i}": i for i in range(256)}, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return tokenizer


def _normalised(tokenizer, normalizer):
    tokenizer.normalizer = normalizer
    return tokenizer


MAKERS = {
    "lab": lambda: Tokenizer.from_file(str(LAB)),
    "bytes": byte_level,
    "bytes-small": lambda: byte_level(300),
    "bytes-prefix": lambda: byte_level(350, prefix=True),
    "unigram": unigram,
    "llama2": lambda: fallback_bpe(True),
    "gemma": lambda: fallback_bpe(False),
}
LOSSY = {
    "lower": lambda: _normalised(byte_level(), normalizers.Lowercase()),
    "nfc": lambda: _normalised(byte_level(), normalizers.NFC()),
    "nfkc": lambda: _normalised(byte_level(), normalizers.NFKC()),
    "no-x": lambda: _normalised(byte_level(), normalizers.Replace("x", "")),
    "no-accents": lambda: _normalised(
        byte_level(), normalizers.Sequence([normalizers.NFD(), normalizers.StripAccents()])
    ),
    "one-space": lambda: _normalised(unigram(), normalizers.Replace(Regex(" {2,}"), " ")),
    "unknowns": lambda: unigram(fallback=False),
    "t5": lambda: unigram(
        fallback=False,
        pre=pre_tokenizers.Sequence([pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace()]),
    ),
}


class _Kit:
    """A tokenizer with its table."""

    def __init__(self, maker):
        self.tokenizer = maker()
        self.table = TokenTable.build(token_bytes(self.tokenizer))

    def encode(self, text, special=True):
        return self.tokenizer.encode(text, add_special_tokens=special).ids

    def spell(self, ids, gap=b""):
        return b"".join(self.table.strings[i] or gap for i in ids)


_KITS: dict[str, _Kit] = {}


def kit(name):
    if name not in _KITS:
        _KITS[name] = _Kit({**MAKERS, **LOSSY}[name])
    return _KITS[name]


# ---- texts ----

HARD = [
    *["é", "e\u0301", "ẹ\u0323\u0301", "ü", "Å", "\u212b", "ﬁ", "①", "Ａ", "…", "½", "가"],
    *["\u1100\u1161", "👩\u200d👩\u200d👧", "🇨🇭", "☃", "\ufe0f", "\u200b", "\u200d", "\u00ad"],
    *["\ufeff", "\u2028", "\u3000", "\u00a0", "\x00", "\x07", "\x7f", "\t", "\r", "\r\n", "\n"],
    *[
        "\n\n",
        " ",
        "  ",
        " " * 7,
        " " * 130,
        "鍵は",
        "钥匙",
        "x",
        "xx",
        "A",
        "ÀÉ",
        "<0x0A>",
        "<unk",
    ],
    *["The café", " the", "straße", "def read(path):", "w1 w2"],
]
AMBIGUOUS = ["<0x0A>", "▁", "▁the", "<s>", "</s>", "<pad>", "<s"]
SENTENCES = [line.strip() for line in TEXT if line.strip()]
free_text = st.one_of(st.text(), st.lists(st.sampled_from(HARD + SENTENCES)).map("".join))
exact_text = (
    st.tuples(free_text, free_text)
    .map("".join)
    .filter(lambda text: not re.search("▁|<s>|</s>|<pad>|<0x", text))
)
any_text = st.lists(st.sampled_from(HARD + AMBIGUOUS + SENTENCES * 2), max_size=12).map("".join)
cases = settings(max_examples=30, deadline=None)


# ---- oracles ----


def _slow_ends(strings, text):
    """Ends by adding up lengths, for tokens that reproduce the text or a space and the text."""
    spelled = b"".join(string or b"" for string in strings)
    end = len(text.encode()) - len(spelled)
    assert spelled == b" " * -end + text.encode()
    assert end in (0, -1)
    ends = []
    for string in strings:
        end += len(string or b"")
        ends.append(end)
    return ends


def _slow_rows(served, served_ends, suspect_ends):
    """The last suspect token that ends where the served token starts, straight from the words."""
    rows = []
    for string, end in zip(served, served_ends, strict=True):
        start = end - len(string or b"")
        known = string is not None and end >= 0 and start >= 0
        ending = [j for j, other in enumerate(suspect_ends) if known and other == start]
        rows.append(ending[-1] if ending else -1)
    return rows


def _assert_sound(own, text, ids, ends):
    """Tokens up to each placed one are the tokenizer's own reading of the text before its end."""
    content, spelled = text.encode(), own.spell(ids)
    exact = spelled in {content, b" " + content}
    bos = int(own.spell(ids[:1]) == b"")
    # T5 drops the spaces at the end of what it reads
    end = b" " if own is kit("t5") else b""
    for j in np.flatnonzero(ends >= 0).tolist():
        before, tokens = content[: ends[j]], ids[bos : j + 1]
        if exact:
            assert own.spell(tokens) in {before, b" " + before}
        else:
            read = own.spell(own.encode(before.decode())[bos:], b"\xff")
            assert read.rstrip(end) == own.spell(tokens, b"\xff").rstrip(end), (j, before)
    placed = ends[ends >= 0].tolist()
    assert all(a <= b for a, b in pairwise(placed))


# ---- bytes of tokens ----


@pytest.mark.parametrize("name", sorted({*MAKERS, *LOSSY} - {"unknowns", "t5"}))
@given(text=exact_text)
@settings(max_examples=15, deadline=None)
def test_tokens_spell_what_the_tokenizer_decodes(name, text):
    own = kit(name)
    ids = own.encode(text, special=False)
    decoded = own.tokenizer.decode(ids, skip_special_tokens=True)
    assert own.spell(ids).decode() in {decoded, " " + decoded}


def test_known_bytes_of_each_family():
    llama, gemma, lab = kit("llama2"), kit("gemma"), kit("lab")

    def spelled(own, piece):
        return own.table.strings[own.tokenizer.token_to_id(piece)]

    assert spelled(llama, "▁the") == spelled(kit("bytes"), "Ġthe") == b" the"
    assert spelled(llama, "<0x0A>") == b"\n"
    assert spelled(llama, "<0xFF>") == b"\xff"
    assert spelled(lab, "Ċ") == b"\n"
    assert spelled(lab, "Ã") == b"\xc3"
    # a run of spaces is an added token of Gemma that is not special
    assert spelled(gemma, "▁▁") == b"  "
    assert spelled(gemma, "\n\n") == b"\n\n"
    for own, piece in [(llama, "<unk>"), (llama, "<s>"), (gemma, "<pad>"), (lab, "<|end|>")]:
        assert spelled(own, piece) is None
    assert token_bytes(words())[:2] == [b" w0", b" w1"]
    # without byte fallback the name of a byte is a piece like any other
    piece = Tokenizer(models.BPE({"<0x0A>": 0}, []))
    piece.pre_tokenizer = pre_tokenizers.Metaspace()
    assert token_bytes(piece) == [b"<0x0A>"]


def test_every_byte_of_a_byte_level_tokenizer_is_known():
    single = sorted(string for string in kit("lab").table.strings if string and len(string) == 1)
    assert single == [bytes([byte]) for byte in range(256)]


def test_added_text_is_literal_and_holes_have_no_bytes():
    tokenizer = byte_level(300)
    tokenizer.add_tokens(["   ", "é▁", "<tool>"])
    strings = token_bytes(tokenizer)
    assert strings[-3:] == [b"   ", "é▁".encode(), b"<tool>"]
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary["☃"] = 999
    tokenizer = Tokenizer.from_str(json.dumps(content))
    # 999 is no sign of the byte alphabet; the ids before it do not exist
    assert token_bytes(tokenizer)[-3:] == [None, None, None]
    assert len(token_bytes(tokenizer)) == 1000


def _word_piece():
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.WordPiece()
    return tokenizer


def _bpe(pre, decoder=None, **options):
    tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, [], **options))
    tokenizer.pre_tokenizer = pre
    if decoder is not None:
        tokenizer.decoder = decoder
    return tokenizer


def _word_level(pre):
    tokenizer = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    tokenizer.pre_tokenizer = pre
    return tokenizer


@pytest.mark.parametrize(
    "make",
    [
        _word_piece,
        lambda: _bpe(pre_tokenizers.Whitespace()),
        lambda: _bpe(pre_tokenizers.ByteLevel(), decoders.BPEDecoder()),
        lambda: _bpe(pre_tokenizers.ByteLevel(), end_of_word_suffix="</w>"),
        lambda: _bpe(pre_tokenizers.ByteLevel(), decoders.Metaspace()),
        lambda: _bpe(pre_tokenizers.Metaspace(), decoders.ByteLevel()),
        lambda: _bpe(pre_tokenizers.Metaspace(), continuing_subword_prefix="##"),
        lambda: _word_level(pre_tokenizers.Whitespace()),
        lambda: _normalised(words(), normalizers.Lowercase()),
    ],
)
def test_tokenizers_that_do_not_spell_the_text_are_refused(make):
    with pytest.raises(ConfigurationMismatchError, match=r"^the tokenizer must .*; got .*\. Test"):
        token_bytes(make())


# ---- ends and rows in texts that the tokens reproduce ----


@pytest.mark.parametrize("name", MAKERS)
@given(text=exact_text)
@cases
def test_ends_are_the_sums_of_lengths(name, text):
    own = kit(name)
    ids = own.encode(text)
    ends = token_ends(ids, own.table, text)
    # an added token in the middle makes a tokenizer set further spaces before its neighbours
    assert ends.tolist() == _slow_ends([own.table.strings[i] for i in ids], text)
    assert all(a <= b for a, b in pairwise(ends.tolist()))
    assert not text or ends[-1] == len(text.encode())


PAIRS = [("lab", "llama2"), ("llama2", "lab"), ("gemma", "bytes"), ("bytes-small", "bytes")]
PAIRS += [("unigram", "gemma"), ("bytes-prefix", "unigram"), ("bytes", "bytes-prefix")]


@pytest.mark.parametrize(("one", "other"), PAIRS)
@given(text=exact_text)
@cases
def test_rows_equal_a_slow_search(one, other, text):
    served, suspect = kit(one), kit(other)
    own, theirs = served.encode(text, special=False), suspect.encode(text)
    found = align(text, own, served.table, theirs, suspect.table)
    assert found.exact
    strings = [served.table.strings[i] for i in own]
    ends = _slow_ends(strings, text)
    rows = _slow_rows(strings, ends, _slow_ends([suspect.table.strings[i] for i in theirs], text))
    assert found.rows.tolist() == rows
    assert found.share == pytest.approx(np.mean(np.array(rows) >= 0) if rows else 0)
    content = text.encode()
    for string, end, row in zip(strings, ends, rows, strict=True):
        if row >= 0:
            read = suspect.spell(theirs[: row + 1])
            assert content[: end - len(string)] in {read, read[1:]}


@pytest.mark.parametrize("name", MAKERS)
@given(text=exact_text)
@settings(max_examples=15, deadline=None)
def test_one_tokenizer_on_both_sides_is_the_identity(name, text):
    own = kit(name)
    ids = own.encode(text)
    bos = int(own.spell(ids[:1]) == b"" and bool(ids))
    found = align(text, ids[bos:], own.table, ids, own.table)
    rows = np.arange(len(ids) - bos) + bos - 1
    # the first token may hold the space before the text, so no token ends where it starts
    assert found.rows.tolist()[1:] == rows.tolist()[1:]
    assert found.rows.tolist()[:1] in (rows.tolist()[:1], [-1])


def test_characters_cut_in_two_align_only_where_both_cut_them():
    cut = TokenTable.build([b"\xc3", b"\xa9", b"caf", b"!"])
    whole = TokenTable.build([None, b"ca", b"f\xc3", b"\xa9!", b"f", "é".encode(), b"!"])
    text = "café!"
    found = align(text, [2, 0, 1, 3], cut, [0, 1, 2, 3], whole)
    assert found.rows.tolist() == [0, -1, 2, -1]
    found = align(text, [2, 0, 1, 3], cut, [0, 1, 4, 5, 6], whole)
    assert found.rows.tolist() == [0, 2, -1, 3]
    assert found.share == 0.75
    assert token_ends([2, 0, 1, 3], cut, text).tolist() == [3, 4, 5, 6]
    found = align(text, [1, 2, 3], whole, [2, 0, 1, 3], cut)
    assert found.rows.tolist() == [-1, -1, 1]


def test_tokens_without_bytes_and_a_space_before_the_text():
    table = TokenTable.build([None, b" the", b" ", b"the", b" cat"])
    # two control tokens: the last one has read all of what stands before
    assert align("the cat", [3, 4], table, [0, 0, 3, 0, 4, 0], table).rows.tolist() == [1, 3]
    # the first token holds a space that is not in the text: nothing predicts "the" there
    found = align("the cat", [3, 4], table, [0, 1, 4], table)
    assert found.rows.tolist() == [-1, 1]
    assert token_ends([0, 1, 4], table, "the cat").tolist() == [-1, 3, 7]
    # a space of its own has ended before the text begins
    assert align("the cat", [3, 4], table, [0, 2, 3, 4], table).rows.tolist() == [1, 2]
    # a served token without bytes cannot be predicted by bytes
    assert align("the", [3, 0], table, [0, 3], table).rows.tolist() == [0, -1]


def test_nothing_to_align():
    table = TokenTable.build([None, b"a"])
    empty = align("", [], table, [], table)
    assert (empty.rows.tolist(), empty.share, empty.exact) == ([], 0.0, True)
    assert align("", [], table, [0], table).rows.tolist() == []
    assert align("aa", [1, 1], table, [], table).rows.tolist() == [-1, -1]
    assert align("a", [1, 1], table, [0, 1], table).rows.tolist() == [-1, -1]
    assert token_ends([], table, "a").tolist() == []


def test_bad_ids_and_bad_text():
    table = TokenTable.build([None, b"a"])
    with pytest.raises(DataError, match="suspect ids: token ids must be"):
        align("a", [1], table, [2], table)
    with pytest.raises(DataError, match="served ids: token ids must be"):
        align("a", [-1], table, [1], table)
    with pytest.raises(DataError, match=r"valid Unicode; got a lone surrogate at character 1\."):
        token_ends([1], table, "a\ud800")
    with pytest.raises(UsageError, match="at least the 2 ids"):
        TokenTable.build([None, b"a"], size=1)


# ---- texts that the tokens do not reproduce ----


@pytest.mark.parametrize("name", [*LOSSY, "llama2", "unigram", "bytes", "gemma"])
@given(text=any_text)
@cases
def test_no_token_is_misplaced_by_normalisation(name, text):
    own = kit(name)
    if name == "one-space":
        # two spaces and this sign give two spaces: bytes agree further than the reading does
        text = text.replace("▁", "")
    ids = own.encode(text)
    _assert_sound(own, text, ids, token_ends(ids, own.table, text))


@pytest.mark.parametrize("name", ["nfkc", "t5", "llama2"])
@given(text=any_text)
@cases
def test_no_row_is_misplaced_by_normalisation(name, text):
    served, suspect = kit("bytes"), kit(name)
    own, theirs = served.encode(text), suspect.encode(text)
    found = align(text, own, served.table, theirs, suspect.table)
    own_ends = token_ends(own, served.table, text)
    ends = token_ends(theirs, suspect.table, text)
    for i, row in enumerate(found.rows.tolist()):
        if row >= 0:
            assert own_ends[i] - len(served.table.strings[own[i]]) == ends[row]
    assert found.suspect_unplaced == int((ends < 0).sum())
    assert found.served_unplaced == int((own_ends < 0).sum())


BEFORE = "The key is under the mat, the street is empty"
AFTER = ", and there is fog everywhere; nobody waits."


@pytest.mark.parametrize(
    ("name", "middle"),
    [
        ("lower", " ABC"),
        ("nfc", " cafe\u0301"),
        ("nfkc", " ﬁ… ①"),
        ("no-x", " x"),
        ("one-space", "    "),
        ("unknowns", " ☃"),
        ("t5", "  \n\n"),
        ("llama2", " <s>"),
        ("llama2", " ▁"),
        ("bytes", " <s>"),
    ],
)
def test_tokens_on_both_sides_of_a_change_are_placed(name, middle):
    own = kit(name)
    # capitals of the model sentences are changes of their own for the lowercasing tokenizer
    text = (BEFORE + middle + AFTER).replace("The", "the" if name == "lower" else "The")
    ids = own.encode(text)
    ends = token_ends(ids, own.table, text)
    _assert_sound(own, text, ids, ends)
    start, stop = len(BEFORE), len((BEFORE + middle).encode())
    placed = ends[ends >= 0]
    assert own.spell(ids).strip() != text.encode()
    assert (placed <= start).sum() > 8
    assert (placed > stop).sum() > 8
    assert placed[-1] == len(text.encode())


LEFT, RIGHT = "0123456789abcdefghij", "klmnopqrstuvwxyzABCD"


def _ends_of_signs(tokens, text):
    """Ends of tokens of one ASCII sign each; `None` is a token without bytes."""
    table = TokenTable.build([None, *(bytes([sign]) for sign in range(128))])
    ids = [0 if sign is None else ord(sign) + 1 for sign in tokens]
    return token_ends(ids, table, text).tolist()


def test_known_ends_around_a_change():
    left, right = list(range(1, 21)), list(range(1, 21))

    def behind(length):
        return [end + 20 + length for end in right]

    # two spaces read as one: it belongs to either side, so to none
    assert _ends_of_signs(LEFT + " " + RIGHT, LEFT + "  " + RIGHT) == [*left, -1, *behind(2)]
    # one space read as two: both claim it
    found = _ends_of_signs(LEFT + "  " + RIGHT, LEFT + " " + RIGHT)
    assert found == [*left, -1, -1, *behind(1)]
    # an unknown sign, and the token before it, whose end it may have eaten into
    found = _ends_of_signs([*LEFT, None, *RIGHT], LEFT + "☃" + RIGHT)
    assert found == [*left[:-1], -1, -1, *behind(3)]
    # an unknown sign may hide anything: what follows it is not counted on from what is before it
    assert _ends_of_signs([*LEFT, None, *"<s"], LEFT + "<s><s") == [*left[:-1], -1, -1, -1, -1]
    # twice in the text and once in the tokens, or the other way round: which of them is open
    assert set(_ends_of_signs([*LEFT, None], LEFT + LEFT)) == {-1}
    assert set(_ends_of_signs(LEFT + LEFT, LEFT + "☃")) == {-1}
    # where one twin stands where the text agrees on, it is known, and hides nothing in between
    found = _ends_of_signs(LEFT + RIGHT + LEFT, LEFT + RIGHT + "☃")
    assert found == [*left, *behind(0), *[-1] * 20]
    # what stands in another order is not placed
    assert set(_ends_of_signs(RIGHT + LEFT, LEFT + RIGHT)) == {-1}
    # a character is not cut: its first two bytes agree, its third does not
    table = TokenTable.build([LEFT.encode(), b"\xe2\x98", b"\x84", b"\x83", RIGHT.encode()])
    assert token_ends([0, 1, 2, 4], table, LEFT + "☃" + RIGHT).tolist() == [20, -1, -1, 43]
    # fifteen bytes are too few, sixteen are enough
    assert set(_ends_of_signs("!" + LEFT[:15], "?" + LEFT[:15])) == {-1}
    assert _ends_of_signs("!" + LEFT[:16], "?" + LEFT[:16]) == [-1, *range(2, 18)]


def test_repeated_stretches_are_not_guessed():
    """A control token read out of the text, and what follows it repeated before and behind."""
    own = kit("bytes")
    for text in (
        "<s><s",
        "<s>" + "<s and so on, and so on, and so on",
        "ab" * 40 + "<s>" + "ab" * 40,
    ):
        ids = own.encode(text)
        _assert_sound(own, text, ids, token_ends(ids, own.table, text))
    table = TokenTable.build([None, b"ab"])
    assert set(token_ends([1] * 30, table, "ab" * 40).tolist()) == {-1}


# ---- masses ----


def _random_table(rng, size):
    choices = [
        None,
        b"",
        b"a",
        b"b",
        b"c",
        b" a",
        "é".encode(),
        b"\xc3",
        b"\xa9",
        b"ab",
        b"abc",
        b"x",
    ]
    return TokenTable.build([choices[i] for i in rng.integers(0, len(choices), size)])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("seed", range(20))
def test_masses_equal_a_slow_dictionary(seed, dtype):
    rng = np.random.default_rng(seed)
    suspect, served = _random_table(rng, rng.integers(1, 30)), _random_table(rng, 8)
    vocabulary = VocabularyMap.build(suspect, served)
    rows = rng.dirichlet(np.full(suspect.size + 3, 0.3), size=7).astype(dtype)
    masses, kept = vocabulary.map_masses(rows)
    for row, mass, share in zip(rows, masses, kept, strict=True):
        expected: dict[int, float] = {}
        for identifier, string in enumerate(suspect.strings):
            if string and string in served.strings:
                twin = served.strings.index(string)
                assert vocabulary.served_of[identifier] == twin
                expected[twin] = expected.get(twin, 0.0) + float(row[identifier])
            else:
                assert vocabulary.served_of[identifier] == -1
        assert share == pytest.approx(sum(expected.values()))
        total = sum(expected.values()) or 1.0
        assert mass.tolist() == pytest.approx([expected.get(t, 0.0) / total for t in range(8)])
        assert mass.sum() == pytest.approx(1.0 if share > 0 else 0.0)


def test_rows_without_shared_mass_are_zeros():
    suspect = TokenTable.build([b"a", b"z", None], size=4)
    vocabulary = VocabularyMap.build(suspect, TokenTable.build([b"b", b"a", b"a"]))
    assert (vocabulary.shared, vocabulary.reached) == (0.5, pytest.approx(1 / 3))
    masses, kept = vocabulary.map_masses(np.array([[0, 0.5, 0.5, 0], [0.25, 0.25, 0.25, 0.25]]))
    assert kept.tolist() == [0, 0.25]
    assert masses.tolist() == [[0, 0, 0], [0, 1, 0]]
    nothing = VocabularyMap.build(suspect, TokenTable.build([None]))
    masses, kept = nothing.map_masses(np.full((2, 4), 0.25))
    assert (masses.tolist(), kept.tolist(), nothing.shared) == ([[0], [0]], [0, 0], 0)
    assert nothing.map_masses(np.empty((0, 4)))[0].shape == (0, 1)


@pytest.mark.parametrize("name", MAKERS)
def test_one_vocabulary_maps_to_itself(name):
    table = kit(name).table
    vocabulary = VocabularyMap.build(table, table)
    known = np.array([string is not None for string in table.strings])
    strings = [string for string in table.strings if string]
    first = [table.strings.index(string) for string in strings]
    assert vocabulary.served_of[known].tolist() == first
    assert vocabulary.shared == 1
    assert vocabulary.reached == len(set(strings)) / len(strings)


def test_families_share_tokens():
    """▁the is Ġthe: most of a small SentencePiece vocabulary is in the lab's byte-level one."""
    for name in ("llama2", "gemma", "unigram", "bytes"):
        vocabulary = VocabularyMap.build(kit(name).table, kit("lab").table)
        assert vocabulary.shared > 0.5
    the = kit("llama2").tokenizer.token_to_id("▁the")
    vocabulary = VocabularyMap.build(kit("llama2").table, kit("lab").table)
    assert vocabulary.served_of[the] == kit("lab").tokenizer.token_to_id("Ġthe")


def test_what_no_probabilities_get():
    vocabulary = VocabularyMap.build(*[TokenTable.build([b"a", b"b"])] * 2)
    for bad in ([[0.5, -0.1]], [[np.nan, 0.5]], [[0.9, 0.9]], [[-3.0, -4.0]]):
        with pytest.raises(DataError, match=r"must be at least 0 and sum to at most 1; got .*\."):
            vocabulary.map_masses(np.array(bad))
    for shape in ((2,), (2, 1)):
        with pytest.raises(UsageError, match="V at least 2"):
            vocabulary.map_masses(np.zeros(shape))


# ---- cost ----


@pytest.mark.parametrize("change", ["", " <s>"])
def test_time_is_linear(change):
    served, suspect = kit("lab"), kit("llama2")
    rng = np.random.default_rng(0)

    def seconds(size):
        text = change.join([" ".join(map(str, rng.integers(0, 10**9, size)))] * 2)
        own, theirs = served.encode(text), suspect.encode(text)
        times = []
        for _ in range(3):
            start = time.process_time()
            found = align(text, own, served.table, theirs, suspect.table)
            times.append(time.process_time() - start)
        assert found.exact == (not change)
        assert found.share > 0.5 or change
        return min(times)

    small, large = seconds(3_000), seconds(12_000)
    assert large < 8 * small + 0.05
