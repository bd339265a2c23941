"""Schemes and readers of other distributions: used where named, tried first, never in our place."""

import json
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from types import SimpleNamespace

import numpy as np
import pytest

from provenance.errors import DataError, UsageError
from provenance.keys.keyring import SchemeSpecification
from provenance.marks.foreign import FOREIGN_SCHEMES, make_foreign
from provenance.marks.foreign.markllm import Unigram
from provenance.marks.own import SCHEMES, Green, Gumbel, make_scheme
from provenance.served.log import read_log
from provenance.storage import plugins
from provenance.suspect.access.outputs import observe
from tests.conftest import make_keyring


class Halves(Green):
    """Somebody's scheme: the green list of one half."""

    name = "acme-halves"


class Cheat(Halves):
    """Its scores are larger than its law says."""

    name = "acme-cheat"

    def score(self, words):
        return (words < self.threshold * 1.1).astype(np.int64)


class Peeking(Halves):
    """The score of a word depends on the words beside it."""

    name = "acme-peeking"

    def score(self, words):
        return super().score(np.roll(words, 1))


class OtherDraw(Halves):
    """What compiled code draws is not what `draw` draws."""

    name = "acme-other-draw"

    def draw(self, probabilities, words, uniform):
        return Gumbel().draw(probabilities, words, uniform)


class NoProtocol:
    """Not a scheme."""

    name = "acme-no-protocol"


class Raises(Halves):
    name = "acme-raises"

    def score(self, words):
        raise RuntimeError("out of\nluck")


@dataclass(frozen=True, kw_only=True)
class Theirs(Unigram):
    """Somebody's foreign scheme."""

    name = "acme-unigram"


@dataclass(frozen=True, kw_only=True)
class TheirCheat(Theirs):
    name = "acme-unigram-cheat"

    def score(self, contexts, tokens):
        return super().score(contexts, tokens) | (tokens % 10 == 0)


class Replaces(Cheat):
    name = "green"


def read_lines_of_text(path):
    """Somebody's outputs: one a line."""
    for line in path.read_text().splitlines():
        yield {"prompt": "", "output": line}


def read_ids(path):
    """Somebody's log: ids in hex, all marked."""
    for number, line in enumerate(path.read_text().splitlines()):
        if line == "?":
            raise KeyError("no ids here")
        ids = [int(part, 16) for part in line.split()]
        yield {"response_id": f"r{number}", "marked": True, "labels": {}, "token_ids": ids}


OFFERED = {
    "provenance.schemes": (
        *(Halves, Cheat, Peeking, OtherDraw, NoProtocol, Raises, Theirs, TheirCheat, Replaces),
    ),
    "provenance.log_readers": {"hex": read_ids},
    "provenance.output_readers": {"lines": read_lines_of_text, "jsonl": read_ids},
}


class Entry(SimpleNamespace):
    def load(self):
        if self.target is None:
            raise ImportError("no module named acme")
        return self.target


@pytest.fixture
def offers(monkeypatch):
    """The entry points that are installed, and how often they were asked for."""
    entries = [
        Entry(group="provenance.schemes", name=scheme.name, target=scheme, dist="acme")
        for scheme in OFFERED["provenance.schemes"]
    ]
    entries += [
        Entry(group=group, name=name, target=target, dist="acme")
        for group in ("provenance.log_readers", "provenance.output_readers")
        for name, target in OFFERED[group].items()
    ]
    entries.append(Entry(group="provenance.schemes", name="acme-broken", target=None, dist="acme"))
    for dist in ("acme", "other"):
        entries.append(
            Entry(group="provenance.schemes", name="acme-twice", target=Halves, dist=dist)
        )
    for entry in entries:
        entry.dist = SimpleNamespace(name=entry.dist)
    asked = []

    def entry_points(group, name):
        asked.append(name)
        return [entry for entry in entries if (entry.group, entry.name) == (group, name)]

    monkeypatch.setattr(plugins, "entry_points", entry_points)
    return asked


def test_a_scheme_of_another_distribution_is_named_in_a_keyring(offers, tmp_path, tokenizer_path):
    assert "acme-halves" in SCHEMES
    assert "acme-halves" not in FOREIGN_SCHEMES
    scheme = make_scheme("acme-halves", {"gamma": 0.5})
    assert isinstance(scheme, Halves)
    keyring = make_keyring(
        tmp_path / "keys", tokenizer_path, SchemeSpecification(scheme.name, scheme.parameters)
    )
    assert keyring.public.scheme.name == "acme-halves"


def test_a_foreign_scheme_of_another_distribution_is_read_by_name(offers):
    assert "acme-unigram" in FOREIGN_SCHEMES
    assert "acme-unigram" not in SCHEMES
    config = {"fraction": 0.5, "watermark_key": 3}
    assert isinstance(make_foreign("acme-unigram", config, None, 1000), Theirs)
    with pytest.raises(UsageError, match=r"distribution acme .* do not follow its null law"):
        make_foreign("acme-unigram-cheat", config, None, 1000)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("acme-cheat", "scheme acme-cheat of the distribution acme .* do not follow its null law"),
        ("acme-peeking", "depends on more than the word"),
        ("acme-other-draw", "draw and code do not draw the same"),
        ("acme-no-protocol", "does not satisfy the protocol"),
        ("acme-raises", "plug-in acme-raises of the distribution acme .* RuntimeError: out of"),
        ("acme-broken", "the distribution acme must work; got: ImportError: no module named acme"),
        ("acme-twice", "must be offered by one distribution; got acme, other"),
        ("acme-unknown", "scheme must be one of gumbel, green, tournament; got acme-unknown"),
    ],
)
def test_a_scheme_that_cannot_be_trusted_is_refused_in_one_line(offers, name, message):
    with pytest.raises(UsageError, match=message) as caught:
        make_scheme(name, {})
    assert "\n" not in str(caught.value)


def test_no_plugin_replaces_what_is_built_in_or_is_looked_up_for_it(offers, tmp_path, keyring):
    assert type(make_scheme("green", {})) is Green
    outputs = tmp_path / "outputs.jsonl"
    outputs.write_text(json.dumps({"output": "the key is under the mat " * 4}) + "\n")
    tokenizer = _tokenizer(keyring)
    observe([outputs], tokenizer, keyring.public)
    assert offers == []


def test_outputs_and_logs_in_other_forms_are_read_and_checked_like_ours(offers, tmp_path, keyring):
    texts = ["the key is under the mat " * 4, "the street is empty and there is fog"]
    ours, theirs = tmp_path / "outputs.jsonl", tmp_path / "outputs.lines"
    ours.write_text("".join(json.dumps({"prompt": "", "output": t}) + "\n" for t in texts))
    theirs.write_text("\n".join(texts))
    tokenizer = _tokenizer(keyring)
    found = [observe([path], tokenizer, keyring.public) for path in (ours, theirs)]
    assert np.array_equal(found[0].contexts, found[1].contexts)
    assert np.array_equal(found[0].masses, found[1].masses)
    assert found[0].sha256 != found[1].sha256
    log = tmp_path / "served.hex"
    log.write_text("1 2 a\n3 4 5 6\n")
    (batch,) = _read(log)
    assert batch.column("token_ids").to_pylist() == [[1, 2, 10], [3, 4, 5, 6]]
    log.write_text("1 2 fff\n")
    with pytest.raises(DataError, match=r"served.hex: line 1: token_ids"):
        list(_read(log))
    log.write_text("?\n")
    with pytest.raises(UsageError, match="hex of the distribution acme must work; got: KeyError"):
        list(_read(log))
    other = tmp_path / "served.other"
    other.write_text("x")
    with pytest.raises(DataError, match=r"must end in \.jsonl"):
        _read(other)


def test_real_entry_points_are_read():
    assert plugins.find_plugin("provenance.schemes", "acme-halves") is None
    entry = EntryPoint("acme-halves", "tests.marks.test_plugins:Halves", "provenance.schemes")
    assert entry.load().name == "acme-halves"


def _read(log):
    return read_log([log], tokenizer=None, vocabulary_size=400)


def _tokenizer(keyring):
    from provenance.keys.tokenizer import load_tokenizer

    return load_tokenizer(keyring.public.tokenizer_copy, keyring.public)
