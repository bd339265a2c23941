"""A bundle of somebody else's mark: planned, disclosed, verified step by step, and broken."""

import contextlib
import gzip
import json
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from provenance.check.pairs import read_shared_pairs, write_pairs
from provenance.check.plan import FOREIGN_CONTROLS, Plan
from provenance.check.score import WeightedPairs
from provenance.evidence.bundle import make_report
from provenance.evidence.manifest import write_manifest
from provenance.evidence.signature import create_signing_key, sign_bundle
from provenance.marks.sharing import MAXIMUM_WEIGHT
from provenance.storage.files import interchange_json
from tests.evidence.foreign_lab import OUTPUTS, make_place
from tests.world.authority import Authority

SCHEMES = ("hf-selfhash", "hf-synthid")
"""Coins that many windows share by design; contexts of four tokens, which no packed name holds."""
ALL_STEPS = set(range(1, 18))
"""But that on the register: these checks were made in no case."""
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module", params=SCHEMES)
def place(request, tmp_path_factory):
    made = make_place(tmp_path_factory.mktemp(request.param), request.param)
    create_signing_key(made.folder / "signing.key")
    yield made
    made.world.index.close()


@pytest.fixture(scope="module")
def sealed(place, tmp_path_factory):
    """folder/plan.json with its answer, folder/bundle (disclosed) and folder/closed (not)."""
    from typer.testing import CliRunner

    from provenance.commands.app import app

    folder = tmp_path_factory.mktemp("sealed")

    def call(*words):
        found = CliRunner().invoke(app, list(map(str, words)))
        assert found.exit_code in (0, 1), found.output
        return found.exit_code

    options = ("--suspect", "a Markov chain", "--outputs", OUTPUTS, "--placebo-keys", 50)
    plan = folder / "plan.json"
    call("plan", "new", plan, *place.scheme, *place.index, *options, "--innocents", 1)
    call("plan", "commit", plan)
    authority = Authority(folder / "authority")
    authority.answer(plan.with_suffix(".tsq"), plan.with_suffix(".tsr"))
    check = ("check", place.folder / "guilty.jsonl", *place.scheme, *place.index, "--plan", plan)
    check = (*check, "--innocent", place.folder / "stranger.jsonl")
    for name, more in (("bundle", ("--disclose", "all")), ("closed", ())):
        assert call(*check, "-o", folder / name, *more) == 1
        sign_bundle(folder / name, place.folder / "signing.key")
    return folder


@pytest.fixture
def bundle(sealed, tmp_path):
    return shutil.copytree(sealed / "bundle", tmp_path / "bundle")


@pytest.fixture
def closed(sealed, tmp_path):
    return shutil.copytree(sealed / "closed", tmp_path / "closed")


def _seal(place, bundle):
    """List, draw and sign again, as the signer could."""
    old = json.loads((bundle / "manifest.json").read_text())
    with contextlib.suppress(Exception):  # what cannot be drawn keeps its report
        made = make_report(bundle, Plan.load(bundle / "plan.json"), old["created"])
        (bundle / "report.html").write_bytes(made)
    write_manifest(bundle, old["created"], pairs=old["pairs"])
    sign_bundle(bundle, place.folder / "signing.key")


def _steps(run, bundle, *options):
    code, out, err = run("verify", bundle, "--json", *options)
    assert err == ""
    steps = json.loads(out)["steps"]
    assert code == (1 if any(step["status"] == "failed" for step in steps) else 0)
    return {step["number"]: step for step in steps}


def _failures(run, bundle):
    return {n: s["file"] for n, s in _steps(run, bundle).items() if s["status"] == "failed"}


def test_every_step_is_reached_as_for_an_own_keyring(run, place, sealed, bundle):
    roots = ("--trust", sealed / "authority/roots.pem")
    key = ("--public-key", place.folder / "signing.key.pub.pem")
    found = _steps(run, bundle, *roots, *key)
    assert {number for number, step in found.items() if step["status"] == "held"} == ALL_STEPS
    assert "one key marks every context" in found[10]["detail"]
    assert "repeated: placebo keys (global)" in found[14]["detail"]
    assert "as stated" not in found[13]["detail"]


def test_without_the_key_its_coins_are_not_claimed(run, place, sealed, closed):
    roots = ("--trust", sealed / "authority/roots.pem")
    found = _steps(run, closed, *roots)
    open_steps = {n for n, step in found.items() if step["status"] == "not possible"}
    assert open_steps == {8, 11, 14, 18}
    assert {n for n, step in found.items() if step["status"] == "held"} == ALL_STEPS - open_steps
    assert "the law of a score is taken as stated" in found[13]["detail"]


def test_nothing_but_the_disclosed_configuration_shows_the_key(run, place, sealed, bundle, closed):
    keys = list(map(str, place.key if isinstance(place.key, tuple) else [place.key]))
    said = " ".join(run("verify", bundle)[1:])
    (shown,) = (bundle / "disclosed").iterdir()
    assert shown.stat().st_mode & 0o777 == 0o600
    original = json.loads((place.folder / "config.json").read_text())
    assert json.loads(shown.read_text())["configuration"] == original
    for folder in (bundle, closed):
        for path in folder.rglob("*.json"):
            if path.parent.name != "disclosed":
                said += path.read_text()
    said += (sealed / "plan.json").read_text()
    for number in keys:
        assert len(number) < 7 or number not in said
    assert not (closed / "disclosed").exists()


def test_an_expert_adds_the_units_up_by_hand(place, bundle):
    """The CSV and the verdict alone: the statistic, the number of coins, and the class table."""
    head, *rows = gzip.decompress((bundle / "pairs/000.csv.gz").read_bytes()).decode().split()
    columns = head.split(",")
    assert columns[-4:] == ["token", "weight", "unit", "score"]
    weights: dict[int, int] = {}
    scores: dict[int, int] = {}
    for row in rows:
        *_, weight, unit, score = map(int, row.split(","))
        if unit:
            weights[unit] = weights.get(unit, 0) + weight
            assert scores.setdefault(unit, score) == score
    assert len(weights) < len(rows)  # coins are shared
    largest = max(map(abs, weights.values()))
    if largest > MAXIMUM_WEIGHT:
        weights = {u: round(w * (MAXIMUM_WEIGHT / largest)) for u, w in weights.items()}
    table = json.loads((bundle / "verdict.json").read_text())["hypotheses"][0]["table"]
    classes: dict[int, list[int]] = {}
    for unit, weight in weights.items():
        if weight:
            count, total = classes.setdefault(weight, [0, 0])
            classes[weight] = [count + 1, total + scores[unit]]
    assert classes == {c["weight"]: [c["count"], c["total"]] for c in table["classes"]}


def test_the_plan_names_the_mark_and_the_check_must_follow_it(run, place, sealed, tmp_path):
    document = json.loads((sealed / "plan.json").read_text())
    public = place.world.mark.public
    assert document["keyring_id"] == public.id
    assert document["scheme"] == public.scheme.to_json()
    assert document["tokenizer_sha256"] == public.tokenizer_sha256
    assert document["controls"] == list(FOREIGN_CONTROLS)
    assert document["keys"] == ["global"]
    (commitment,) = public.commitments.values()
    assert document["commitments"] == {"global": vars(commitment)}
    assert "plan" in run("plan", "show", sealed / "plan.json")[1]
    plan = ("--plan", sealed / "plan.json")
    outputs = place.folder / "guilty.jsonl"
    for words in (
        ("check", outputs, *place.under("other.json"), *place.index, *plan),
        ("check", outputs, *place.scheme, *place.index, *plan),  # its innocent is missing
        ("check", place.folder / "guilty-0.jsonl", *place.scheme, *place.index, *plan),
        ("check", outputs, *place.scheme, *place.index, *plan, "--sequential", tmp_path / "s"),
    ):
        code, out, err = run(*words)
        assert (code, out, err.count("\n")) == (78, "", 1), (words, err)


def test_the_script_for_own_schemes_says_what_it_cannot_and_repeats_the_rest(bundle, closed):
    for folder in (bundle, closed):
        done = subprocess.run(
            [sys.executable, ROOT / "docs/verify_without_us.py", folder],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stderr) == (3, "")
        assert "not possible: global: its coins and their law, of another library's" in done.stdout
        stated = json.loads((folder / "verdict.json").read_text())["hypotheses"][0]["log10_p"]
        assert f"ok  global: log10 p = {stated:.4f}"[:-1] in done.stdout
        assert done.stdout.splitlines()[-1].startswith("NOT POSSIBLE: 1 of the steps above")


@pytest.mark.parametrize("change", [{"tokenizer_sha256": "0" * 64}, {"keyring_id": "0" * 16}])
def test_a_sealed_plan_of_another_mark(run, place, closed, change):
    document = json.loads((closed / "plan.json").read_text()) | change
    (closed / "plan.json").write_bytes(interchange_json(document))
    verdict = json.loads((closed / "verdict.json").read_text())
    verdict["plan"]["sha256"] = Plan.load(closed / "plan.json").sha256
    (closed / "verdict.json").write_text(json.dumps(verdict))
    _seal(place, closed)
    found = _failures(run, closed)
    assert found[6] == "plan.json"
    assert min(found) == 5  # the authority saw another plan


# --- sealed by an insider ------------------------------------------------------------------------


def _rewrite(change):
    def edit(bundle):
        document = json.loads((bundle / "keyring.json").read_text())
        width = document["context_width"]
        pairs, scores, units = read_shared_pairs(bundle, "pairs/000", width)
        arrays = [pairs.contexts, pairs.tokens, pairs.weights, scores, units]
        arrays = [array.copy() for array in arrays]
        arrays = change(*arrays) or arrays
        write_pairs(bundle, "pairs/000", WeightedPairs(*arrays[:3]), *arrays[3:])

    return edit


def _raise_weight(contexts, tokens, weights, scores, units):
    weights[0] += 1


def _raise_score(contexts, tokens, weights, scores, units):
    scores[units == units[np.argmin(scores)]] += 1


def _swap_scores(contexts, tokens, weights, scores, units):
    """The same table: two units of one weight exchange their scores."""
    first = np.unique(units, return_index=True)[1]
    sums = np.bincount(units, weights=weights)
    order = np.lexsort((scores[first], sums))
    for a, b in pairwise(order):
        if sums[a] == sums[b] and scores[first[a]] != scores[first[b]]:
            swapped = scores[first[b]], scores[first[a]]
            scores[units == a], scores[units == b] = swapped
            return
    raise AssertionError("no two such units")


def _split_unit(contexts, tokens, weights, scores, units):
    """Every pair of the fullest unit a coin of its own: the evidence counted several times."""
    rows = np.flatnonzero(units == np.bincount(units).argmax())
    assert rows.size > 1
    units[rows] = units.max() + 1 + np.arange(rows.size)


def _split_alike(contexts, tokens, weights, scores, units):
    """Pairs of two units of equal score and equal sums change places: the same table again."""
    sums = np.bincount(units, weights=weights)
    sizes = np.bincount(units)
    first = np.unique(units, return_index=True)[1]
    full = np.flatnonzero(sizes > 1)
    for a in full:
        for b in full[full > a]:
            one, two = np.flatnonzero(units == a), np.flatnonzero(units == b)
            both = np.isin(weights[one], weights[two])
            if scores[first[a]] == scores[first[b]] and both.any():
                left = one[np.flatnonzero(both)[0]]
                right = two[np.flatnonzero(weights[two] == weights[left])[0]]
                units[left], units[right] = b, a
                return
    raise AssertionError(f"no two such units among {sums.size}")


def _join_units(contexts, tokens, weights, scores, units):
    units[units == 1] = 0
    scores[units == 0] = scores[0]


def _leave_out(contexts, tokens, weights, scores, units):
    """A pair that counts is said to have no coin."""
    scores[units == 0] = 0
    units[units == 0] = -1


PAIRS = {
    "a weight": (_rewrite(_raise_weight), {12}),
    "a score": (_rewrite(_raise_score), {11, 12}),
    "two scores exchanged": (_rewrite(_swap_scores), {11}),
    "a unit split": (_rewrite(_split_unit), {11, 12}),
    "two pairs of other units": (_rewrite(_split_alike), {11}),
    "two units joined": (_rewrite(_join_units), {11, 12}),
    "a pair without coin": (_rewrite(_leave_out), {11, 12}),
    "a pair less": (_rewrite(lambda *arrays: [array[1:] for array in arrays]), {12}),
    "no pair": (_rewrite(lambda *arrays: [array[:0] for array in arrays]), {12}),
}


@pytest.mark.parametrize("name", PAIRS)
def test_sealed_pairs_that_are_others(run, place, bundle, closed, name):
    edit, steps = PAIRS[name]
    for folder in (bundle, closed):
        edit(folder)
        _seal(place, folder)
    found = _failures(run, bundle)
    assert steps <= set(found), found
    assert min(found) == min(steps)
    assert all(found[step] == "pairs/000.csv.gz" for step in steps)
    # without the key the sum is still held against the table, and nothing more is claimed
    assert set(_failures(run, closed)) == steps - {11}


def _text(change):
    def edit(bundle):
        path = bundle / "pairs/000.csv.gz"
        path.write_bytes(gzip.compress(change(gzip.decompress(path.read_bytes())), mtime=0))

    return edit


def _rename_units(text):
    """Units 1 and 2 change names: the same coins, not in the one form."""
    head, *rows = text.splitlines()
    swap = {b"1": b"2", b"2": b"1"}
    split = [row.split(b",") for row in rows]
    for row in split:
        row[-2] = swap.get(row[-2], row[-2])
    return b"\n".join([head, *(b",".join(row) for row in split), b""])


def _give_two_scores(text):
    """One row of the fullest unit gets another score than the unit."""
    head, *rows = text.splitlines()
    split = [row.split(b",") for row in rows]
    units = [row[-2] for row in split]
    row = split[units.index(max(set(units) - {b"0"}, key=units.count))]
    row[-1] = b"%d" % (int(row[-1]) + 1)
    return b"\n".join([head, *(b",".join(row) for row in split), b""])


FORMS = {
    "units renamed": _text(_rename_units),
    "a unit's rows with two scores": _text(_give_two_scores),
    "no column of units": _text(lambda t: t.replace(b",unit,", b",u,", 1)),
    "pairs left out": lambda b: (b / "pairs/000.csv.gz").unlink(),
}


@pytest.mark.parametrize("name", FORMS)
def test_sealed_pairs_of_another_form(run, place, closed, name):
    FORMS[name](closed)
    _seal(place, closed)
    found = _failures(run, closed)
    assert min(found) == 9
    assert found[9].startswith("pairs/000")


def test_a_sealed_row_less_does_not_add_up(run, place, closed):
    _text(lambda t: t[: t.rindex(b"\n", 0, -1) + 1])(closed)
    _seal(place, closed)
    assert _failures(run, closed) == {12: "pairs/000.csv.gz"}


def _disclose(**change):
    def edit(bundle):
        path = bundle / "disclosed/000.json"
        document = json.loads(path.read_text())
        for name, value in change.items():
            document[name] = value(document[name]) if callable(value) else value
        path.write_text(json.dumps(document))

    return edit


def _other_key(config):
    name = next(n for n in ("keys", "hashing_key") if n in config)
    value = config[name]
    return {**config, name: [k + 1 for k in value] if name == "keys" else value + 2}


def _other_parameter(config):
    name = next(n for n in ("ngram_len", "greenlist_ratio") if n in config)
    return {**config, name: 4 if name == "ngram_len" else 0.5}


DISCLOSED = {
    "another key": _disclose(configuration=_other_key),
    "another parameter": _disclose(configuration=_other_parameter),
    "a typo in the configuration": _disclose(configuration=lambda c: {**c, "ngramlen": 3}),
    "a configuration without key": _disclose(
        configuration=lambda c: {n: v for n, v in c.items() if n not in ("keys", "hashing_key")}
    ),
    "a configuration that is none": _disclose(configuration=[]),
    "keys that are none": _disclose(
        configuration=lambda c: {n: "x" if "key" in n else v for n, v in c.items()}
    ),
    "a huge vocabulary": _disclose(vocabulary_size=1 << 40),
    "a vocabulary that is none": _disclose(vocabulary_size="256"),
    "another salt": _disclose(salt="5" * 64),
    "another commitment": _disclose(commitment="5" * 64),
    "another mark": _disclose(keyring_id="0" * 16),
    "another scheme": _disclose(scheme={"name": "vllm-gumbel", "parameters": {}}),
    "another slot": _disclose(slot="week"),
    "another format": _disclose(format="provenance-disclosed-key"),
    "no object": lambda b: (b / "disclosed/000.json").write_text("[]"),
    "a second key": lambda b: shutil.copy(b / "disclosed/000.json", b / "disclosed/001.json"),
}


@pytest.mark.parametrize("name", DISCLOSED)
def test_a_sealed_key_that_is_not_the_committed_one(run, place, bundle, name):
    DISCLOSED[name](bundle)
    _seal(place, bundle)
    found = _steps(run, bundle)
    assert found[8]["status"] == "failed"
    assert found[11]["status"] == "not possible"
    assert "malformed" not in found[8]["detail"]
    said = json.dumps(list(found.values()))
    for number in place.key if isinstance(place.key, tuple) else [place.key]:
        assert len(str(number)) < 7 or str(number) not in said


def _describe(*path_and_value):
    *path, last, value = path_and_value

    def edit(bundle):
        for file, inside in (("keyring.json", path), ("verdict.json", path)):
            document = json.loads((bundle / file).read_text())
            place = document
            for name in inside:
                place = place.get(name, {}) if isinstance(place, dict) else place[name]
            if isinstance(place, list) or last in place:
                place[last] = value
            (bundle / file).write_text(json.dumps(document))

    return edit


def _public(change):
    def edit(bundle):
        path = bundle / "keyring.json"
        document = json.loads(path.read_text())
        change(document)
        path.write_text(json.dumps(document))

    return edit


DESCRIPTIONS = {
    "another scheme in both": (_describe("scheme", "name", "vllm-gumbel"), {6, 7}),
    "another parameter in both": (_describe("scheme", "parameters", {"gamma": 0.9}), {6, 7}),
    "a scheme of our own in both": (_describe("scheme", "name", "gumbel"), {6, 7}),
    "another id": (_public(lambda d: d.update(id="0" * 16)), {6, 7}),
    "another salt": (
        _public(lambda d: d["slots"][1]["values"][0].update(salt="0" * 64)),
        {6, 7},
    ),
    "another vocabulary": (_public(lambda d: d.update(vocabulary_size=1000)), {7}),
    "a small vocabulary": (_public(lambda d: d.update(vocabulary_size=40)), {7, 9}),
    "another width": (_public(lambda d: d.update(context_width=2)), {8, 9}),
}


@pytest.mark.parametrize("name", DESCRIPTIONS)
def test_a_sealed_description_of_another_mark(run, place, bundle, name):
    edit, steps = DESCRIPTIONS[name]
    edit(bundle)
    _seal(place, bundle)
    found = _failures(run, bundle)
    assert steps <= set(found), found
    assert min(found) == min(steps)


def test_a_keyring_without_selector_is_no_foreign_mark(run, place, closed):
    """Everything that follows from the description follows, but our own scheme has a selector."""
    from provenance.keys.commitment import Commitment
    from provenance.keys.keyring import Keyring
    from provenance.marks.foreign.mark import derive_id, derive_salt

    for name in ("keyring.json", "verdict.json"):
        document = json.loads((closed / name).read_text())
        document["scheme"] = {"name": "gumbel", "parameters": {}}
        (closed / name).write_text(json.dumps(document))
    salt = derive_salt(Keyring.load(closed)).hex()
    document = json.loads((closed / "keyring.json").read_text())
    value = document["slots"][1]["values"][0]
    value["salt"] = salt
    document["id"] = derive_id(Commitment(salt, value["sha256"]))
    (closed / "keyring.json").write_text(json.dumps(document))
    verdict = json.loads((closed / "verdict.json").read_text())
    verdict["keyring_id"] = document["id"]
    (closed / "verdict.json").write_text(json.dumps(verdict))
    _seal(place, closed)
    found = _steps(run, closed)
    assert found[7]["status"] == "failed"
    assert "selector" in found[7]["detail"]


VERDICTS = {
    "the law": (
        lambda d: d["hypotheses"][0]["table"]["laws"][0]["masses"].__setitem__(0, 7),
        {12, 13},
    ),
    "the caveat": (lambda d: d.update(caveat=""), {15}),
    "a total": (
        lambda d: d["hypotheses"][0]["table"]["classes"][0].update(
            total=d["hypotheses"][0]["table"]["classes"][0]["total"] - 1
        ),
        {12, 13},
    ),
    "a placebo's z": (lambda d: d["controls"][0]["placebo_z"].__setitem__(0, 0.123), {14}),
    "the placebo's p": (lambda d: d["controls"][0].update(log10_p=-0.01), {14}),
    "the innocent dropped": (lambda d: d["controls"].pop(), {14}),
}


@pytest.mark.parametrize("name", VERDICTS)
def test_a_sealed_verdict_that_says_what_its_numbers_do_not(run, place, bundle, name):
    edit, steps = VERDICTS[name]
    path = bundle / "verdict.json"
    document = json.loads(path.read_text())
    edit(document)
    path.write_text(json.dumps(document))
    _seal(place, bundle)
    found = _failures(run, bundle)
    assert steps <= set(found), found
    assert min(found) == min(steps)


def test_only_the_marks_own_key_can_be_disclosed_and_only_on_request(run, place, tmp_path):
    check = ("check", place.folder / "guilty-0.jsonl", *place.scheme, *place.index)
    check = (*check, "--placebo-keys", 50)
    code, out, err = run(*check, "-o", tmp_path / "a", "--disclose", "selector")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert run(*check, "-o", tmp_path / "a", "--without-pairs")[0] in (0, 1, 3)
    assert not (tmp_path / "a/pairs").exists()
    assert not (tmp_path / "a/disclosed").exists()
    found = _steps(run, tmp_path / "a", "--unsigned")
    assert {n for n, step in found.items() if step["status"] == "held"} >= {1, 3, 7, 13, 15, 17}
    assert not any(step["status"] == "failed" for step in found.values())
