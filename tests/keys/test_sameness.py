"""One tokenizer in other bytes is the same; another one never is, however little differs."""

import copy
import hashlib
import json
import shutil
from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

from provenance.errors import ConfigurationMismatchError, DataError
from provenance.keys.keyring import Keyring
from provenance.keys.sameness import PARTS, compare_tokenizers
from provenance.keys.tokenizer import load_tokenizer

TEXT = "def keyring(path):\n    return ' naïve 漢字  key' <end> import"


@pytest.fixture(scope="module")
def own(tokenizer_path):
    return json.loads(tokenizer_path.read_text())


@pytest.fixture(scope="module")
def public(keyring_folder):
    return Keyring.load(keyring_folder)


def _compare(document, own):
    return compare_tokenizers(json.dumps(document).encode(), json.dumps(own).encode(), "other")


def _model(**values):
    return lambda d: d["model"].update(values)


def _put(name, value):
    return lambda d: d.__setitem__(name, value)


def _without(*names):
    return lambda d: [d["model"].pop(name) for name in names]


TEMPLATE = {
    "type": "TemplateProcessing",
    "single": [{"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {},
}
FLAGS = ("dropout", "unk_token", "continuing_subword_prefix", "end_of_word_suffix", "fuse_unk")
BYTES = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}

SAME = {
    "nothing": lambda d: None,
    "post-processor": _put("post_processor", TEMPLATE),
    "truncation": _put(
        "truncation",
        {"direction": "Right", "max_length": 9, "strategy": "LongestFirst", "stride": 0},
    ),
    "padding": _put(
        "padding",
        {
            "strategy": {"Fixed": 64},
            "direction": "Left",
            "pad_to_multiple_of": None,
            "pad_id": 0,
            "pad_type_id": 0,
            "pad_token": "<pad>",
        },
    ),
    "no decoder": _put("decoder", None),
    "merges as strings": lambda d: d["model"].update(
        merges=[" ".join(pair) for pair in d["model"]["merges"]]
    ),
    "keys in another order": lambda d: d["model"].update(
        vocab=dict(reversed(list(d["model"]["vocab"].items())))
    ),
    "added tokens in another order": lambda d: d["added_tokens"].reverse(),
    "flags left out": _without(*FLAGS, "byte_fallback", "ignore_merges"),
    "type left out": _without("type"),
    "empty prefixes": _model(continuing_subword_prefix="", end_of_word_suffix=""),
    "dropout of nothing": _model(dropout=0.0),
    "offsets": _put("pre_tokenizer", {**BYTES, "trim_offsets": False}),
    "regex left out": _put("pre_tokenizer", {k: v for k, v in BYTES.items() if k != "use_regex"}),
    "a sequence of one": _put("pre_tokenizer", {"type": "Sequence", "pretokenizers": [BYTES]}),
    "an empty sequence": _put("normalizer", {"type": "Sequence", "normalizers": []}),
    "no version": lambda d: d.pop("version"),
}


@pytest.mark.parametrize("name", SAME)
def test_the_same_in_other_bytes(own, tmp_path, public, tokenizer, name):
    document = copy.deepcopy(own)
    SAME[name](document)
    assert _compare(document, own) == ()
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document, indent=3))
    public.check_tokenizer(path)
    # what is loaded is the copy, whatever else the other file says
    found = load_tokenizer(path, public)
    assert found.encode(TEXT).ids == tokenizer.encode(TEXT).ids
    # and the library agrees that the other file is the same tokenizer
    theirs = Tokenizer.from_str(json.dumps({"version": "1.0", **document}))
    theirs.no_padding()
    theirs.no_truncation()
    assert theirs.encode(TEXT, add_special_tokens=False).ids == tokenizer.encode(TEXT).ids


def _swap(vocabulary):
    one, two = list(vocabulary)[20:22]
    vocabulary[one], vocabulary[two] = vocabulary[two], vocabulary[one]


def _drop(items, number):
    del items[number]


END = 1
OTHER = {
    "two ids swapped": (lambda d: _swap(d["model"]["vocab"]), "vocabulary"),
    "a token less": (lambda d: d["model"]["vocab"].popitem(), "vocabulary"),
    "a token more": (lambda d: d["model"]["vocab"].update(zzz=400), "vocabulary"),
    "an id as a float": (lambda d: d["model"]["vocab"].update({"!": 2.0}), "vocabulary"),
    "a vocabulary that is a list": (_model(vocab=[["a", -1.0]]), "vocabulary"),
    "merges in another order": (lambda d: d["model"]["merges"].reverse(), "merges"),
    "a merge less": (lambda d: _drop(d["model"]["merges"], 0), "merges"),
    "a merge of three": (lambda d: d["model"]["merges"].append("a b c"), "merges"),
    "no merges": (lambda d: d["model"].update(merges=[]), "merges"),
    "byte fallback": (_model(byte_fallback=True), "model"),
    "dropout": (_model(dropout=0.1), "model"),
    "unknown token": (_model(unk_token="<pad>"), "model"),
    "fused unknown": (_model(fuse_unk=True), "model"),
    "ignored merges": (_model(ignore_merges=True), "model"),
    "a prefix": (_model(continuing_subword_prefix="##"), "model"),
    "a suffix": (_model(end_of_word_suffix="</w>"), "model"),
    "a flag that nobody knows": (_model(reverse=True), "model"),
    "another version": (_put("version", "2.0"), "model"),
    "a part that nobody knows": (_put("postprocessor", {}), "model"),
    "another type": (_model(type="WordPiece"), "model"),
    "a normaliser": (_put("normalizer", {"type": "NFKC"}), "normaliser"),
    "another pre-tokeniser": (
        _put("pre_tokenizer", {**BYTES, "add_prefix_space": True}),
        "pre-tokeniser",
    ),
    "a pre-tokeniser without regex": (
        _put("pre_tokenizer", {**BYTES, "use_regex": False}),
        "pre-tokeniser",
    ),
    "no pre-tokeniser": (_put("pre_tokenizer", None), "pre-tokeniser"),
    "a digit step before": (
        _put(
            "pre_tokenizer",
            {
                "type": "Sequence",
                "pretokenizers": [{"type": "Digits", "individual_digits": True}, BYTES],
            },
        ),
        "pre-tokeniser",
    ),
    "an added token less": (lambda d: _drop(d["added_tokens"], END), "added tokens"),
    "no added tokens": (_put("added_tokens", []), "added tokens"),
    "an added token more": (
        lambda d: d["added_tokens"].append({**d["added_tokens"][0], "id": 400, "content": "<x>"}),
        "added tokens",
    ),
    "an added token under another id": (
        lambda d: d["added_tokens"][END].update(id=2),
        "added tokens",
    ),
    "an added token that is none": (
        lambda d: d["added_tokens"][END].update(special=False),
        "added tokens",
    ),
    "an added token that eats spaces": (
        lambda d: d["added_tokens"][END].update(lstrip=True),
        "added tokens",
    ),
}


@pytest.mark.parametrize("name", OTHER)
def test_another_tokenizer_is_named_by_what_differs(own, tmp_path, public, name):
    change, part = OTHER[name]
    document = copy.deepcopy(own)
    change(document)
    assert _compare(document, own) == (part,)
    path = tmp_path / "other.json"
    path.write_text(json.dumps(document))
    assert not public.is_tokenizer(path)
    with pytest.raises(ConfigurationMismatchError) as raised:
        public.check_tokenizer(path)
    message = str(raised.value)
    assert f"another {part}" in message
    assert "--other-tokenizer" in message
    assert len(message.splitlines()) == 1


MALFORMED = {
    "an empty object": "{}",
    "a list": "[]",
    "null": "null",
    "a model that is null": '{"model": null}',
    "a model that is text": '{"model": "BPE"}',
    "added tokens that are numbers": '{"model": {"vocab": {}}, "added_tokens": [1]}',
    "a step without a type": '{"model": {"vocab": {}}, "normalizer": {}}',
    "a sequence without steps": '{"model": {"vocab": {}}, "normalizer": {"type": "Sequence"}}',
    "a step that is a list": '{"model": {"vocab": {}}, "normalizer": {"type": []}}',
}


@pytest.mark.parametrize("name", MALFORMED)
def test_what_is_no_tokenizer_is_another_one(tmp_path, public, name):
    path = tmp_path / "other.json"
    path.write_text(MALFORMED[name])
    with pytest.raises(ConfigurationMismatchError):
        public.check_tokenizer(path)


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"\xff\xfe",
        b'{"model": NaN}',
        b'{"model": {}, "model": {}}',
        b"[" * 100_000,
        b'{"a":' * 5_000 + b"1" + b"}" * 5_000,
    ],
)
def test_hostile_files_are_refused_before_they_are_loaded(tmp_path, public, content, monkeypatch):
    monkeypatch.setattr("provenance.keys.tokenizer.Tokenizer", None)
    path = tmp_path / "other.json"
    path.write_bytes(content)
    with pytest.raises(DataError) as raised:
        load_tokenizer(path, public)
    assert len(str(raised.value).splitlines()) == 1


def test_steps_nested_as_deep_as_the_reader_allows(own, tmp_path, public):
    step = BYTES
    for _ in range(300):
        step = {"type": "Sequence", "pretokenizers": [step]}
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**own, "pre_tokenizer": step}))
    public.check_tokenizer(path)


def test_a_file_far_larger_than_the_tokenizer_is_not_parsed(own, tmp_path, public, monkeypatch):
    path = tmp_path / "other.json"
    path.write_text(json.dumps(own) + " " * (1 << 24))
    monkeypatch.setattr("provenance.keys.sameness.parse_json", None)
    with pytest.raises(ConfigurationMismatchError):
        public.check_tokenizer(path)


def test_an_unvouched_decoder_and_post_processor_are_never_loaded(own, tmp_path, public):
    """The same ids; what else the file says reaches no reader."""
    bad = {"type": "Replace", "pattern": {"Regex": "(" * 50}, "content": ""}
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**own, "decoder": bad, "post_processor": {"type": "Nonsense"}}))
    assert load_tokenizer(path, public).decode([40, 41])


# ---- which copy counts ----


def _resave(own, path):
    path.write_text(json.dumps({**own, "post_processor": TEMPLATE}))
    return path


def test_without_a_copy_only_the_same_bytes_count(own, tmp_path, keyring_folder, tokenizer_path):
    alone = tmp_path / "keys"
    alone.mkdir()
    shutil.copy(keyring_folder / "keyring.json", alone)
    public = Keyring.load(alone)
    public.check_tokenizer(tokenizer_path)
    with pytest.raises(ConfigurationMismatchError, match=r"copy .* --other-tokenizer"):
        public.check_tokenizer(_resave(own, tmp_path / "other.json"))


def test_a_copy_that_was_changed_does_not_count(own, tmp_path, keyring_folder):
    """Whoever swaps the copy must not make another tokenizer the served one."""
    swapped = tmp_path / "keys"
    swapped.mkdir()
    shutil.copy(keyring_folder / "keyring.json", swapped)
    document = copy.deepcopy(own)
    _swap(document["model"]["vocab"])
    (swapped / "tokenizer.json").write_text(json.dumps(document))
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**document, "post_processor": TEMPLATE}))
    public = Keyring.load(swapped)
    for tokenizer in (path, swapped / "tokenizer.json"):
        with pytest.raises(ConfigurationMismatchError):
            public.check_tokenizer(tokenizer)


def test_a_new_keyring_knows_its_copy(own, tmp_path, keyring):
    keyring.public.check_tokenizer(_resave(own, tmp_path / "other.json"))
    assert "copy" not in json.dumps(keyring.public.to_json())


def test_the_fixtures_tokenizer_saved_again(tmp_path):
    """A fine-tuning tool's own post-processor, as one such tool writes it."""
    folder = Path(__file__).parents[2] / "fixtures/keys"
    public = Keyring.load(folder)
    document = json.loads((folder / "tokenizer.json").read_text())
    path = _resave(document, tmp_path / "tokenizer.json")
    assert hashlib.sha256(path.read_bytes()).hexdigest() != public.tokenizer_sha256
    public.check_tokenizer(path)
    Tokenizer.from_file(str(folder / "tokenizer.json")).save(str(path), pretty=False)
    public.check_tokenizer(path)


# ---- other kinds of model ----


def _saved(tokenizer):
    return json.loads(tokenizer.to_str())


def test_unigram_and_sentencepiece_style():
    pieces = [("<unk>", 0.0), ("▁a", -1.5), ("b", -2.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, byte_fallback=False))
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    own = _saved(tokenizer)
    tokenizer.post_processor = processors.ByteLevel()
    assert _compare(_saved(tokenizer), own) == ()
    old = copy.deepcopy(own)
    old["pre_tokenizer"] = {"type": "Metaspace", "replacement": "▁", "add_prefix_space": True}
    assert _compare(old, own) == ()
    assert Tokenizer.from_str(json.dumps(old)).encode("a b").ids == tokenizer.encode("a b").ids
    old["pre_tokenizer"]["add_prefix_space"] = False
    assert _compare(old, own) == ("pre-tokeniser",)
    other = copy.deepcopy(own)
    other["model"]["vocab"][2][1] = -2.5
    assert _compare(other, own) == ("vocabulary",)
    other = copy.deepcopy(own)
    other["normalizer"]["normalizers"].reverse()
    assert _compare(other, own) == ("normaliser",)
    other = copy.deepcopy(own)
    other["model"]["unk_id"] = 1
    assert _compare(other, own) == ("model",)


def test_whole_words(synthetic_world):
    own = json.loads((synthetic_world.folder / "tokenizer.json").read_text())
    assert _compare({**own, "post_processor": TEMPLATE}, own) == ()
    other = copy.deepcopy(own)
    _swap(other["model"]["vocab"])
    assert _compare(other, own) == ("vocabulary",)


def test_every_part_has_a_name():
    assert compare_tokenizers(b"{}", b'{"model": {"vocab": {}}}', "x") == PARTS
