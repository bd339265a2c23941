"""Bundles that must not verify, through the command line: exit 1, and the step and file by name.

Three sorts: broken files; bundles that an insider with the signing key sealed again, so that only
the step on what the file says can find it; and bundles that are whole, but not what was expected.
"""

import contextlib
import gzip
import json
import os
import re
import shutil
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from provenance.check.pairs import read_pairs, write_pairs
from provenance.check.plan import Plan
from provenance.check.score import WeightedPairs
from provenance.evidence.bundle import make_report
from provenance.evidence.manifest import write_manifest
from provenance.evidence.signature import create_signing_key, sign_bundle
from provenance.evidence.timestamp import make_request
from provenance.storage.files import interchange_json
from tests.world.authority import Authority

FILES = [
    "verdict.json",
    "keyring.json",
    "plan.json",
    "plan.tsq",
    "plan.tsr",
    "manifest.json",
    "manifest.sig",
    "manifest.pub.pem",
    "pairs/000.csv.gz",
    "pairs/control.csv.gz",
    "pairs/pooled-002.csv.gz",
    "disclosed/000.json",
]
SEALS = {"manifest.json": 1, "manifest.sig": 2, "manifest.pub.pem": 2}


def _failures(run, bundle, *options):
    """{step: file} of what failed; the run must exit 1 and print nothing else."""
    code, out, err = run("verify", bundle, *options)
    assert code == 1, out + err
    assert err == ""
    lines = out.splitlines()
    assert lines[-1].startswith("NOT VERIFIED")
    assert len(lines) == 19
    found = re.findall(r"^ *(\d+) FAILED .*? \[([^\]]*)\]: .+$", out, re.MULTILINE)
    return {int(number): file for number, file in found}


def _seal(lab, bundle, created=None):
    """Draw, list and sign again, as the signer could."""
    old = json.loads((bundle / "manifest.json").read_text())
    with contextlib.suppress(Exception):  # what cannot be drawn keeps its report
        plan = Plan.load(bundle / "plan.json") if (bundle / "plan.json").exists() else None
        (bundle / "report.html").write_bytes(make_report(bundle, plan, created or old["created"]))
    write_manifest(bundle, created or old["created"], pairs=old["pairs"])
    sign_bundle(bundle, lab.signing_key)


@pytest.mark.parametrize("name", FILES)
def test_a_flipped_byte(run, bundle, name):
    content = bytearray((bundle / name).read_bytes())
    content[len(content) // 2] ^= 0x20
    (bundle / name).write_bytes(bytes(content))
    step = SEALS.get(name, 1)
    assert _failures(run, bundle)[step] in (name, "manifest.json", "manifest.sig")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file(run, bundle, name):
    (bundle / name).unlink()
    assert _failures(run, bundle)[SEALS.get(name, 1)] == name


@pytest.mark.parametrize("name", ["verdict.json", "manifest.sig", "pairs/000.csv.gz"])
@pytest.mark.parametrize("change", [lambda c: c[: len(c) // 2], lambda c: c + b"\n", lambda c: b""])
def test_a_file_of_another_length(run, bundle, name, change):
    (bundle / name).write_bytes(change((bundle / name).read_bytes()))
    assert _failures(run, bundle)[SEALS.get(name, 1)] == name


def _link(path, target):
    path.unlink(missing_ok=True)
    path.symlink_to(target)


def _link_folder(bundle):
    shutil.move(bundle / "pairs", bundle.parent / "elsewhere")
    (bundle / "pairs").symlink_to(bundle.parent / "elsewhere")


def _nest(bundle):
    (bundle / "pairs" / "deeper").mkdir()
    (bundle / "pairs" / "deeper" / "000.json").write_text("{}")


def _swap(bundle):
    shutil.move(bundle / "pairs/000.csv.gz", bundle / "aside")
    shutil.move(bundle / "pairs/001.csv.gz", bundle / "pairs/000.csv.gz")
    shutil.move(bundle / "aside", bundle / "pairs/001.csv.gz")


FOREIGN = {
    "an extra file": (lambda b: (b / "extra.json").write_text("{}"), "extra.json"),
    "an extra hidden file": (lambda b: (b / ".hidden").write_text(""), ".hidden"),
    "extra pairs": (lambda b: (b / "pairs/099.csv.gz").write_text(""), "pairs/099.csv.gz"),
    "content in the lock": (lambda b: (b / ".lock").write_text("x"), ".lock"),
    "a folder in a folder": (_nest, "pairs/deeper"),
    "a link in place of a file": (lambda b: _link(b / "plan.json", "/etc/hostname"), "plan.json"),
    "an extra link": (lambda b: _link(b / "other.json", "verdict.json"), "other.json"),
    "a link in place of a folder": (_link_folder, "pairs"),
    "a pipe": (lambda b: os.mkfifo(b / "pipe.json"), "pipe.json"),
    "two files swapped": (_swap, "pairs/000.csv.gz"),
}


@pytest.mark.parametrize("name", FOREIGN)
def test_something_that_is_not_a_file_of_the_bundle(run, bundle, name):
    change, file = FOREIGN[name]
    change(bundle)
    assert _failures(run, bundle)[1] == file


def _entry(**change):
    def edit(document):
        document["files"][0].update(change)

    return edit


MANIFESTS = {
    "a name that leads upwards": _entry(name="../verdict.json"),
    "an absolute name": _entry(name="/etc/passwd"),
    "a name with a backslash": _entry(name="pairs\\000.csv.gz"),
    "a name two folders deep": _entry(name="pairs/more/000.csv.gz"),
    "a hidden name": _entry(name=".lock"),
    "a name that is a number": _entry(name=7),
    "a name that is empty": _entry(name=""),
    "its own name": _entry(name="manifest.json"),
    "a size that is a float": _entry(size=425.5),
    "a negative size": _entry(size=-1),
    "a hash that is none": _entry(sha256="0" * 63),
    "a field more in an entry": _entry(mode="0600"),
    "a field more": lambda d: d.update(note="x"),
    "a field less": lambda d: d.pop("created"),
    "another version": lambda d: d.update(version=2),
    "a file twice": lambda d: d["files"].insert(0, d["files"][0]),
    "another order": lambda d: d["files"].reverse(),
    "a time that is none": lambda d: d.update(created="yesterday"),
    "files that are no list": lambda d: d.update(files={}),
}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_signed_manifest_that_is_none(run, lab, bundle, name):
    document = json.loads((bundle / "manifest.json").read_text())
    MANIFESTS[name](document)
    _sign_raw(lab, bundle, interchange_json(document))
    assert _failures(run, bundle) == {1: "manifest.json"}


def _sign_raw(lab, bundle, content):
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    private = Ed25519PrivateKey.from_private_bytes(lab.signing_key.read_bytes())
    (bundle / "manifest.json").write_bytes(content)
    (bundle / "manifest.sig").write_bytes(private.sign(content))


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace(b'"pairs":true', b'"pairs":true,"pairs":true'),
        lambda text: text.replace(b'"version":1', b'"version":NaN'),
        lambda text: text.replace(b'"version":1', b'"version":1e400'),
        lambda text: text.replace(b'"version":1', b'"version": 1'),
        lambda text: text + b"\n",
        lambda text: b"[" * 100_000,
        lambda text: b"\xff" + text,
        lambda text: b"null",
    ],
)
def test_a_signed_manifest_in_another_form(run, lab, bundle, change):
    _sign_raw(lab, bundle, change((bundle / "manifest.json").read_bytes()))
    assert _failures(run, bundle) == {1: "manifest.json"}


def _put(*path_and_value):
    *path, last, value = path_and_value

    def edit(document):
        for name in path:
            document = document[name]
        assert document[last] is not value
        document[last] = value

    return edit


def _add(*path_and_step):
    *path, last, step = path_and_step

    def edit(document):
        for name in path:
            document = document[name]
        document[last] += step

    return edit


def _lower(document, step):
    row = document["hypotheses"][0]
    row["log10_p"] = row["tail"]["log10_p"] = row["tail"]["log10_p"] + step


FIRST = ("hypotheses", 0)
TABLE = (*FIRST, "table")
VERDICTS = {
    "conclusion": (_put("conclusion", "no evidence"), 15),
    "conclusion that is none": (_put("conclusion", "guilty"), 3),
    "found_evidence": (_put("found_evidence", False), 15),
    "found_evidence as a number": (_put("found_evidence", 1), 15),
    "p of the whole check": (_add("log10_p", -1e-6), 15),
    "headline": (_put("headline", "week=W1"), 15),
    "controls_passed": (_put("controls_passed", False), 15),
    "attributed": (_put("attributed", {"week": ["W1"]}), 15),
    "power": (_put("power", {"shift": 1e-3}), 3),
    "exploratory": (_put("exploratory", True), 15),
    "alpha": (_put("alpha", 1e-3), 15),
    "alpha in the settings": (_put("inputs", "settings", "alpha", 1e-3), 6),
    "alpha beyond its domain": (_put("inputs", "settings", "alpha", 0.5), 3),
    "weight rule": (_put("weight_rule", "presence"), 15),
    "placebo keys": (_put("inputs", "settings", "placebo_keys", 60), 6),
    "p of a key": (lambda d: _lower(d, -1.0), 13),
    "p of a key in one of two places": (_add(*FIRST, "log10_p", -1.0), 3),
    "p of a key as a whole number": (_put(*FIRST, "log10_p", -30), 3),
    "adjusted p": (_add(*FIRST, "log10_adjusted", 1e-5), 13),
    "family weight": (_put(*FIRST, "family_weight", 0.9), 13),
    "rejected": (_put(*FIRST, "rejected", False), 13),
    "mean shift": (_add(*FIRST, "mean_shift", 1e-3), 15),
    "z": (_add(*FIRST, "tail", "z", 1e-3), 15),
    "cross-check": (_put(*FIRST, "tail", "log10_berry_esseen", None), 15),
    "coins": (_add(*FIRST, "tail", "coins", 1), 15),
    "hash of a table": (_put(*FIRST, "tail", "table_sha256", "0" * 64), 15),
    "total of a class": (_add(*TABLE, "classes", 0, "total", 1), 12),
    "count of a class": (_add(*TABLE, "classes", 0, "count", 1), 12),
    "weight of a class": (_add(*TABLE, "classes", -1, "weight", 1), 12),
    "total beyond its law": (_put(*TABLE, "classes", 0, "total", 10**12), 3),
    "count beyond 2**52": (_put(*TABLE, "classes", 0, "count", 10**30), 3),
    "count as a float": (_put(*TABLE, "classes", 0, "count", 1.5), 3),
    "law": (_add(*TABLE, "laws", 0, "masses", 0, 1), 12),
    "classes reordered": (lambda d: d["hypotheses"][0]["table"]["classes"].reverse(), 3),
    "a class dropped": (lambda d: d["hypotheses"][0]["table"]["classes"].pop(), 12),
    "a field of a table": (_put(*TABLE, "classes", {}), 3),
    "a key dropped": (lambda d: d["hypotheses"].pop(), 6),
    "a key twice": (lambda d: d["hypotheses"].append(d["hypotheses"][0]), 3),
    "keys reordered": (lambda d: d["hypotheses"].reverse(), 9),
    "a key that the keyring has not": (_put(*FIRST, "value", "W9"), 6),
    "a control dropped": (lambda d: d["controls"].pop(0), 14),
    "an innocent dropped": (lambda d: d["controls"].pop(), 14),
    "a control invented": (lambda d: d["controls"].append(d["controls"][-1]), 14),
    "controls reordered": (lambda d: d["controls"].reverse(), 14),
    "a control failed": (_put("controls", 0, "passed", False), 14),
    "a control's p": (_add("controls", 0, "log10_p", -0.01), 14),
    "a control's p above 1": (_put("controls", 3, "log10_p", 0.5), 14),
    "an innocent that should have failed": (_put("controls", 3, "log10_p", -4.0), 14),
    "a control's words": (_put("controls", 0, "detail", "all is well"), 14),
    "the control slot's p": (_add("controls", 1, "log10_p", -0.01), 14),
    "a share": (_add("shares", 0, "estimate", 0.01), 15),
    "a share's limit": (_add("shares", 0, "lower", -0.01), 15),
    "keyring id": (_put("keyring_id", "0" * 16), 7),
    "scheme": (_put("scheme", {"name": "green", "parameters": {}}), 7),
    "a commitment": (_put("commitments", "global", "0" * 64), 7),
    "tokenizer": (_put("inputs", "tokenizer_sha256", "0" * 64), 7),
    "index": (_put("inputs", "index_sha256", "0" * 64), 6),
    "outputs": (_put("inputs", "outputs", "outputs", 41), 6),
    "access": (_put("inputs", "outputs", "source", {"access": "weights"}), 6),
    "reference": (_put("inputs", "outputs", "reference", {"kind": "ngram", "sha256": {}}), 6),
    "an innocent's file": (_put("inputs", "innocents", {}), 6),
    "no plan": (_put("plan", None), 4),
    "another plan's hash": (_put("plan", "sha256", "0" * 64), 4),
    "another time of the plan": (_put("plan", "timestamp", "2020-01-01T00:00:00Z"), 5),
    "no time of the plan": (_put("plan", "timestamp", None), 5),
    "twins of another form": (_put("twins", {"alpha": 1}), 3),
    "schema": (_put("schema_version", 99), 3),
    "a field more": (lambda d: d.update(note="x"), 3),
    "a field less": (lambda d: d.pop("shares"), 3),
    "versions": (_put("versions", "provenance", "9.9"), 17),
    "versions that are none": (_put("versions", {}), 17),
}


PLACES = {
    *("verdict.json", "keyring.json", "manifest.json", "plan.json", "plan.tsr"),
    *("pairs", "pairs/000.csv.gz", "pairs/006.csv.gz"),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_a_sealed_verdict_that_says_what_its_numbers_do_not(run, lab, bundle, name):
    edit, step = VERDICTS[name]
    path = bundle / "verdict.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    _seal(lab, bundle)
    found = _failures(run, bundle)
    assert min(found) == step, found
    assert found[step] in PLACES


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace('"conclusion"', '"conclusion": "evidence", "conclusion"', 1),
        lambda text: re.sub(r'"alpha": [^,]+', '"alpha": NaN', text, count=1),
        lambda text: re.sub(r'"alpha": [^,]+', '"alpha": Infinity', text, count=1),
        lambda text: re.sub(r'"alpha": [^,]+', '"alpha": 1e400', text),
        lambda text: re.sub(r'"total": \d+', '"total": ' + "9" * 4000, text, count=1),
        lambda text: '{"a":' * 20_000,
        lambda text: "[]",
        lambda text: '"\\ud800"',
    ],
)
def test_a_sealed_verdict_that_is_no_strict_json(run, lab, bundle, change):
    path = bundle / "verdict.json"
    path.write_text(change(path.read_text()))
    _seal(lab, bundle)
    assert _failures(run, bundle) == {3: "verdict.json"}


KEYRINGS = {
    "shares": (lambda d: _shift(d), 10),
    "a commitment": (_put("slots", 1, "values", 0, "sha256", "0" * 64), 6),
    "a salt": (_put("slots", 1, "values", 0, "salt", "0" * 64), 6),
    "the selector": (_put("selector", "sha256", "0" * 64), 6),
    "its id": (_put("id", "0" * 16), 6),
    "its scheme": (_put("scheme", {"name": "green", "parameters": {}}), 6),
    "an unknown field": (lambda d: d.update(note="x"), 3),
    "another width": (_put("context_width", 3), 8),
    "a small vocabulary": (_put("vocabulary_size", 100), 9),
    "shares that do not sum to 1": (_put("slots", 0, "share_words", 5), 3),
}


def _shift(document):
    document["slots"][0]["share_words"] -= 10**9
    document["slots"][1]["share_words"] += 10**9


@pytest.mark.parametrize("name", KEYRINGS)
def test_a_sealed_keyring_that_is_another(run, lab, bundle, name):
    edit, step = KEYRINGS[name]
    path = bundle / "keyring.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    _seal(lab, bundle)
    assert min(_failures(run, bundle)) == step


def _edit_plan(**change):
    def edit(bundle):
        document = json.loads((bundle / "plan.json").read_text())
        document.update(change)
        (bundle / "plan.json").write_bytes(interchange_json(document))
        _follow(bundle)

    return edit


def _follow(bundle):
    """Let the verdict state the hash of the plan that lies there."""
    import hashlib

    document = json.loads((bundle / "verdict.json").read_text())
    digest = hashlib.sha256((bundle / "plan.json").read_bytes()).hexdigest()
    document["plan"]["sha256"] = digest
    (bundle / "verdict.json").write_text(json.dumps(document))


def _indent_plan(bundle):
    document = json.loads((bundle / "plan.json").read_text())
    (bundle / "plan.json").write_text(json.dumps(document, indent=1))
    _follow(bundle)


PLANS = {
    "another suspect": (_edit_plan(suspect="another"), {5}),
    "another alpha": (_edit_plan(alpha=1e-5), {5, 6}),
    "another rule": (_edit_plan(weight_rule="presence"), {5, 6}),
    "another stopping rule": (_edit_plan(stopping={"rule": "sequential"}), {5, 6}),
    "fewer outputs": (_edit_plan(stopping={"rule": "fixed", "outputs": 30}), {5, 6}),
    "more innocents": (_edit_plan(innocents=2), {5, 6}),
    "twins": (_edit_plan(twins=True), {5, 6}),
    "made later": (_edit_plan(created="2099-01-01T00:00:00Z"), {4}),
    "another form": (_indent_plan, {4}),
    "an unknown field": (_edit_plan(note="x"), {4}),
    "alpha beyond its domain": (_edit_plan(alpha=2), {4}),
    "a hash that was not followed": (
        lambda b: (b / "plan.json").write_bytes(
            (b / "plan.json").read_bytes().replace(b"Markov", b"markov")
        ),
        {4},
    ),
}


@pytest.mark.parametrize("name", PLANS)
def test_a_sealed_plan_that_is_another(run, lab, bundle, name):
    edit, steps = PLANS[name]
    edit(bundle)
    _seal(lab, bundle)
    found = _failures(run, bundle)
    assert set(found) & steps == steps
    assert {found[step] for step in steps} <= {"plan.json", "plan.tsr", "plan.tsq"}


def test_a_plan_that_was_timestamped_after_the_check(run, lab, bundle):
    document = json.loads((bundle / "plan.json").read_text())
    document["created"] = "2026-01-01T00:00:00Z"
    (bundle / "plan.json").write_bytes(interchange_json(document))
    _follow(bundle)
    (bundle / "plan.tsq").write_bytes(make_request((bundle / "plan.json").read_bytes()))
    lab.authority.answer(bundle / "plan.tsq", bundle / "plan.tsr")
    _seal(lab, bundle, created="2026-01-02T00:00:00Z")
    verdict = json.loads((bundle / "verdict.json").read_text())
    from provenance.evidence.bundle import gather_plan

    verdict["plan"]["timestamp"] = gather_plan(bundle / "plan.json").plan.timestamp
    (bundle / "verdict.json").write_text(json.dumps(verdict))
    _seal(lab, bundle)
    found = _failures(run, bundle, "--trust", lab.authority.roots)
    assert found == {5: "plan.tsr"}


RESPONSES = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-10]),
    "with bytes behind": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "empty": lambda path: path.write_bytes(b""),
    "no answer": lambda path: path.write_bytes(b"<html>sorry</html>"),
}


@pytest.mark.parametrize("name", RESPONSES)
def test_a_sealed_response_that_is_none(run, lab, bundle, name):
    RESPONSES[name](bundle / "plan.tsr")
    _seal(lab, bundle)
    assert _failures(run, bundle) == {5: "plan.tsr"}


def test_a_response_to_another_plan_and_one_of_another_authority(run, lab, bundle, tmp_path):
    other = Authority(tmp_path / "authority", "somebody else")
    assert _failures(run, bundle, "--trust", other.roots) == {5: "plan.tsr"}
    (tmp_path / "q").write_bytes(make_request(b"another plan"))
    lab.authority.answer(tmp_path / "q", bundle / "plan.tsr")
    _seal(lab, bundle)
    assert _failures(run, bundle) == {5: "plan.tsr"}
    (bundle / "plan.tsr").unlink()
    _seal(lab, bundle)
    assert _failures(run, bundle) == {5: "plan.tsr"}


def test_a_request_for_another_plan(run, lab, bundle):
    (bundle / "plan.tsq").write_bytes(make_request(b"another plan"))
    _seal(lab, bundle)
    assert _failures(run, bundle) == {5: "plan.tsq"}


def _edit_key(**change):
    def edit(bundle):
        path = bundle / "disclosed/001.json"
        document = json.loads(path.read_text())
        document.update(change)
        path.write_text(json.dumps(document))

    return edit


def _shout(bundle):
    document = json.loads((bundle / "disclosed/001.json").read_text())
    _edit_key(key=document["key"].upper())(bundle)


KEYS = {
    "another key": _edit_key(key="5" * 64),
    "a key that is none": _edit_key(key="xyz"),
    "a key in capitals": _shout,
    "another salt": _edit_key(salt="5" * 64),
    "another commitment": _edit_key(commitment="5" * 64),
    "another keyring": _edit_key(keyring_id="0" * 16),
    "another width": _edit_key(context_width=3),
    "a slot that is none": _edit_key(slot="nothing"),
    "a slot that is a list": _edit_key(slot=[]),
    "an unknown field": _edit_key(note="x"),
    "no object": lambda b: (b / "disclosed/001.json").write_text("[]"),
    "the same key twice": lambda b: shutil.copy(b / "disclosed/000.json", b / "disclosed/001.json"),
}


@pytest.mark.parametrize("name", KEYS)
def test_a_sealed_key_that_is_not_the_committed_one(run, lab, bundle, name):
    KEYS[name](bundle)
    _seal(lab, bundle)
    assert _failures(run, bundle)[8] in ("disclosed/001.json", "disclosed")


def _rewrite(name, change):
    """Change the arrays of a file."""

    def edit(bundle):
        scored = not name.startswith(("pairs/control", "pairs/pooled"))
        pairs, scores = read_pairs(bundle, name, 2, scored=scored)
        arrays = [pairs.contexts.copy(), pairs.tokens.copy(), pairs.weights.copy()]
        arrays += [scores.copy()] if scored else []
        arrays = change(*arrays) or arrays
        write_pairs(bundle, name, WeightedPairs(*arrays[:3]), arrays[3] if scored else None)

    return edit


def _text(change):
    """Change the text of the file."""

    def edit(bundle):
        path = bundle / "pairs/000.csv.gz"
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes())), mtime=0))

    return edit


def _raise_weight(contexts, tokens, weights, scores):
    weights[0] += 1


def _raise_score(contexts, tokens, weights, scores):
    scores[np.argmin(scores)] += 1


def _swap_scores(contexts, tokens, weights, scores):
    """The same table: two pairs of one weight exchange their scores."""
    order = np.lexsort((scores, weights))
    for a, b in pairwise(order):
        if weights[a] == weights[b] and scores[a] != scores[b]:
            scores[a], scores[b] = scores[b], scores[a]
            return


def _move(contexts, tokens, weights, *scores):
    """Twelve contexts: no keyring is likely to have them all in the right slot."""
    contexts[:12] = [(255, 254 - row) for row in range(12)]


def _reverse(text):
    head, *rows = text.splitlines(keepends=True)
    return head + b"".join(reversed(rows))


def _repeat(text):
    head, first, *rows = text.splitlines(keepends=True)
    return head + first + first + b"".join(rows)


def _change_parquet(change):
    """Pairs as bundles of 0.1.0 have them, in both forms, and then one of the files changed."""

    def edit(bundle):
        for path in (bundle / "pairs").glob("*.csv.gz"):
            table = pyarrow.csv.read_csv(path)
            places = [n for n in table.column_names if n not in ("weight", "score")]
            wide = {"weight": pa.int64(), "score": pa.int64()}
            fields = [
                pa.field(n, pa.uint32() if n in places else wide[n], nullable=False)
                for n in table.column_names
            ]
            file = path.with_name(path.name.replace(".csv.gz", ".parquet"))
            pq.write_table(table.cast(pa.schema(fields)), file)
        change(bundle / "pairs/000.parquet")

    return edit


def _cut(path):
    path.write_bytes(path.read_bytes()[:-9])


def _write_table(change):
    return lambda path: pq.write_table(change(pq.read_table(path)), path)


PAIRS = {
    "a weight": (_rewrite("pairs/000", _raise_weight), {12}),
    "a score": (_rewrite("pairs/000", _raise_score), {11, 12}),
    "two scores exchanged": (_rewrite("pairs/000", _swap_scores), {11}),
    "a pair less": (
        _rewrite("pairs/000", lambda *arrays: [array[1:] for array in arrays]),
        {12},
    ),
    "no pair": (_rewrite("pairs/000", lambda *arrays: [array[:0] for array in arrays]), {12}),
    "a context of another slot": (_rewrite("pairs/000", _move), {10}),
    "a context of another slot in the control": (_rewrite("pairs/control", _move), {10}),
    "half of the control": (
        _rewrite("pairs/control", lambda *arrays: [array[::2] for array in arrays]),
        {14},
    ),
    "half of the pooled": (
        _rewrite("pairs/pooled-002", lambda *arrays: [array[::2] for array in arrays]),
        {14},
    ),
    "rows reordered": (_text(_reverse), {9}),
    "a row twice": (_text(_repeat), {9}),
    "a row less": (_text(lambda t: t[: t.rindex(b"\n", 0, -1) + 1]), {12}),
    "no line break at the end": (_text(lambda t: t[:-1]), {9}),
    "another header": (_text(lambda t: t.replace(b"token", b"word", 1)), {9}),
    "a number with a sign": (_text(lambda t: t.replace(b"\n", b"\n+", 1)), {9}),
    "a number with a zero": (_text(lambda t: t.replace(b"\n", b"\n0", 1)), {9}),
    "a number in quotes": (_text(lambda t: re.sub(rb"\n(\d+)", rb'\n"\1"', t, count=1)), {9}),
    "a number that is none": (_text(lambda t: t.replace(b"\n", b"\nNaN", 1)), {9}),
    "a float": (_text(lambda t: re.sub(rb"\n(\d+)", rb"\n\1.5", t, count=1)), {9}),
    "a huge number": (_text(lambda t: t.replace(b"\n", b"\n99999999999", 1)), {9}),
    "a negative number": (_text(lambda t: t.replace(b"\n", b"\n-", 1)), {9}),
    "a row with a column more": (_text(lambda t: t[:-1] + b",1\n"), {9}),
    "an empty row": (_text(lambda t: t + b"\n"), {9}),
    "carriage returns": (_text(lambda t: t.replace(b"\n", b"\r\n")), {9}),
    "a bomb": (_text(lambda t: t + b"0" * (1 << 27)), {9}),
    "a second gzip member": (
        lambda b: (b / "pairs/000.csv.gz").write_bytes(
            (b / "pairs/000.csv.gz").read_bytes() + gzip.compress(b"1,2,3,4,5\n")
        ),
        {9},
    ),
    "a truncated gzip": (
        lambda b: (b / "pairs/000.csv.gz").write_bytes((b / "pairs/000.csv.gz").read_bytes()[:-9]),
        {9},
    ),
    "no gzip": (lambda b: (b / "pairs/000.csv.gz").write_bytes(b"c1,c2\n"), {9}),
    "a truncated Parquet": (_change_parquet(_cut), {9}),
    "no Parquet": (_change_parquet(lambda p: p.write_bytes(b"PAR1")), {9}),
    "a Parquet of fewer rows": (_change_parquet(_write_table(lambda t: t.slice(0, 10))), {9}),
    "a Parquet of fewer columns": (
        _change_parquet(_write_table(lambda t: t.drop_columns(["score"]))),
        {9},
    ),
    "the Parquet of another key": (
        _change_parquet(lambda p: shutil.copy(p.with_name("001.parquet"), p)),
        {9},
    ),
    "one Parquet less": (_change_parquet(lambda p: p.unlink()), {9}),
    "pairs without CSV": (_change_parquet(lambda p: p.with_name("000.csv.gz").unlink()), {9}),
    "pairs of a key too many": (
        lambda b: shutil.copy(b / "pairs/000.csv.gz", b / "pairs/099.csv.gz"),
        {9},
    ),
    "the control's pairs twice": (
        lambda b: [
            shutil.copy(b / f"pairs/control{s}", b / f"pairs/pooled-002{s}") for s in (".csv.gz",)
        ],
        {9},
    ),
}


@pytest.mark.parametrize("name", PAIRS)
def test_sealed_pairs_that_are_others(run, lab, bundle, name):
    edit, steps = PAIRS[name]
    edit(bundle)
    _seal(lab, bundle)
    found = _failures(run, bundle)
    assert steps <= set(found), found
    assert min(found) == min(steps)
    assert all(found[step].startswith("pairs") or step == 14 for step in steps)


def test_pairs_that_stand_twice_as_in_bundles_of_an_earlier_release(run, lab, bundle):
    _change_parquet(lambda path: None)(bundle)
    _seal(lab, bundle)
    code, out, _ = run("verify", bundle)
    assert code == 0, out


def test_pairs_that_the_manifest_says_are_left_out(run, lab, bundle):
    document = json.loads((bundle / "manifest.json").read_text())
    document["pairs"] = False
    _sign_raw(lab, bundle, interchange_json(document))
    assert set(_failures(run, bundle)) == {9}


def test_a_bundle_that_somebody_else_signed(run, lab, bundle, tmp_path):
    create_signing_key(tmp_path / "other")
    sign_bundle(bundle, tmp_path / "other")
    assert run("verify", bundle)[0] == 0  # says by whom, which is not who was expected:
    found = _failures(run, bundle, "--public-key", lab.public_key)
    assert found == {2: "manifest.pub.pem"}


def test_the_signature_of_another_bundle(run, lab, bundle):
    before = (bundle / "manifest.sig").read_bytes()
    _seal(lab, bundle, created="2026-01-01T00:00:00Z")
    (bundle / "manifest.sig").write_bytes(before)
    assert _failures(run, bundle)[2] == "manifest.sig"


def test_an_unsigned_bundle_and_an_absent_one(run, lab, bundle, tmp_path):
    (bundle / "manifest.sig").unlink()
    (bundle / "manifest.pub.pem").unlink()
    assert 2 in _failures(run, bundle)
    assert 2 in _failures(run, bundle, "--unsigned", "--public-key", lab.public_key)
    (tmp_path / "empty").mkdir()
    assert _failures(run, tmp_path / "empty")[1] == "manifest.json"
    assert run("verify", tmp_path / "absent")[0] == 74
    assert run("verify", bundle, "--public-key", bundle / "verdict.json")[0] == 65
    assert run("verify", bundle, "--trust", bundle / "verdict.json")[0] == 65
