"""Texts of any length: read in parts, with the tokens of the whole but where a part ends."""

import numpy as np
import pytest

import provenance as pv
from provenance.keys import tokenizer as own
from provenance.keys.tokenizer import load_tokenizer, tokenise_long

KEYS = "fixtures/keys"


@pytest.fixture(scope="module")
def served():
    return load_tokenizer(f"{KEYS}/tokenizer.json", pv.Keyring.load(KEYS))


@pytest.mark.parametrize(
    "text",
    ["", "one", "a line\n  and one more\nand words\n" * 60, "no end of line " * 80, "\n" * 900],
)
def test_a_text_in_parts_has_the_tokens_of_the_whole(served, text, monkeypatch):
    whole = served.encode(text, add_special_tokens=False)
    ids, spans = tokenise_long(served, text, "text")
    assert ids.tolist() == whole.ids
    assert [tuple(span) for span in spans.tolist()] == whole.offsets
    monkeypatch.setattr(own, "_PART", 256)
    monkeypatch.setattr(own, "_SEARCHED", 128)
    ids, spans = tokenise_long(served, text, "text")
    assert served.decode(ids.tolist()) == served.decode(whole.ids)
    assert spans.shape == (len(ids), 2)
    assert spans.dtype == np.uint32
    covered = np.zeros(len(text), dtype=np.int64)
    for start, end in spans.tolist():
        covered[start:end] += 1
    assert np.all(covered == 1)
    if "words" in text:  # cut before the first letter of a line: nothing differs
        assert ids.tolist() == whole.ids
