"""An excerpt of an index gives the verdict of the whole, or nothing."""

import json
import shutil

import numpy as np
import pyarrow.parquet as pq
import pytest

import provenance as pv
from provenance.coins.contexts import pack
from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.served import excerpt
from provenance.served.excerpt import list_groups_of, match_groups, match_index
from provenance.served.index import Index
from provenance.served.index_manifest import IndexManifest
from provenance.storage.files import read_json
from tests.world.synthetic import Teacher, innocent, learn, make_world, write_outputs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("match"), Teacher.draw(0), 1)
    rng = np.random.default_rng(5)
    write_outputs(made.folder / "guilty.jsonl", learn(made, rng, 60, 60))
    write_outputs(made.folder / "innocent.jsonl", *innocent("ordinary", made, rng, 100))
    write_outputs(made.folder / "other.jsonl", learn(made, rng, 60, 60))
    return made


@pytest.fixture(scope="module")
def small(world):
    """The excerpt for one suspect and one innocent."""
    outputs = [world.folder / name for name in ("guilty.jsonl", "innocent.jsonl")]
    place = world.folder / "small"
    pv.match_index(world.folder / "index", outputs, place, world.keyring.public)
    return place


def check(world, index, outputs="guilty.jsonl", **more):
    case = pv.open_case(world.keyring, index)
    return case.check(world.folder / outputs, placebo_keys=50, **more)


def test_the_verdict_is_that_of_the_whole_index(world, small):
    innocents = [world.folder / "innocent.jsonl"]
    whole = check(world, world.folder / "index", innocents=innocents)
    found = check(world, small, innocents=innocents)
    assert found.to_json() == whole.to_json()
    assert any(one.rejected for one in found.hypotheses)
    manifest, full = (IndexManifest.load(p) for p in (small, world.folder / "index"))
    assert manifest.content_sha256 == full.content_sha256
    assert manifest.slots == full.slots
    assert manifest.excerpt.rows < full.rows == manifest.rows


def test_other_outputs_are_refused_and_not_acquitted(run, world, small):
    """The double is an index that forgets what it was made for: fewer contexts look served."""
    code, out, err = run(
        *("check", world.folder / "other.jsonl", "--keys", world.folder / "keys"),
        *("--index", small, "--placebo-keys", "50"),
    )
    assert (code, out) == (65, "")
    assert "must be asked for the contexts only that it was made for" in " ".join(err.split())
    with Index.open(world.folder / "index", None) as whole, Index.open(small, None) as part:
        covered = part._covered
        asked = np.setdiff1d(whole_contexts(world), covered)[:50]
        part._covered = None
        assert whole.lookup(1, asked).query.size > 0 == part.lookup(1, asked).query.size
        part._covered = covered
        with pytest.raises(DataError, match="index match"):
            part.lookup(1, asked)
        assert part.lookup(1, asked[:0]).query.size == 0


def whole_contexts(world):
    """Contexts of the slot `global` in the index."""
    with Index.open(world.folder / "index", None) as index:
        name = index.manifest.table
    table = pq.read_table(world.folder / "index" / name)
    rows = table.column("slot").to_numpy() == 1
    return table.column("context").to_numpy()[rows]


def test_the_command_and_what_it_writes(run, world, tmp_path):
    place = tmp_path / "small"
    called = ("index", "match", world.folder / "index", world.folder / "guilty.jsonl")
    called += ("--keys", world.folder / "keys", "-o", place)
    code, out, err = run(*called)
    assert (code, out) == (0, "")
    assert "rows of" in err
    found, _ = pv.describe_index(place, verify=True)
    assert found["excerpt"]["rows"] == IndexManifest.load(place).excerpt.rows
    before = {path.name: path.read_bytes() for path in place.iterdir()}
    assert run(*called)[0] == 74  # it is there already
    assert run(*called, "--force")[0] == 0
    assert {path.name: path.read_bytes() for path in place.iterdir()} == before
    assert len(before) == 4
    other = ("index", "match", world.folder / "index", world.folder / "other.jsonl", *called[4:])
    assert run(*other, "--force")[0] == 0
    assert len(list(place.iterdir())) == 4  # the contexts of before are gone


def test_a_damaged_excerpt_is_noticed(world, small, tmp_path):
    public = world.keyring.public
    for name in (IndexManifest.load(small).excerpt.contexts_table, IndexManifest.load(small).table):
        shutil.copytree(small, tmp_path / name)
        content = bytearray((tmp_path / name / name).read_bytes())
        content[len(content) // 3] ^= 1
        (tmp_path / name / name).write_bytes(content)
        with pytest.raises(DataError):
            Index.open(tmp_path / name, public, "all")
        with pytest.raises(DataError):
            check(world, tmp_path / name)
    document = read_json(small / "manifest.json")
    document["index"]["excerpt"]["contexts_table"] = "../index/manifest.json"
    shutil.copytree(small, tmp_path / "led")
    (tmp_path / "led" / "manifest.json").write_text(json.dumps(document))
    with pytest.raises(DataError):
        Index.open(tmp_path / "led", public)


def test_what_no_excerpt_can_be_made_of(world, small, tmp_path):
    index, public = world.folder / "index", world.keyring.public
    some = whole_contexts(world)[:5]
    with pytest.raises(UsageError, match="must be a whole index"):
        match_index(small, some, tmp_path / "x", public)
    with pytest.raises(UsageError, match="another folder"):
        match_index(index, some, index, public)
    shutil.copytree(index, tmp_path / "own")
    with pytest.raises(ConfigurationMismatchError, match="must not hold an index"):
        match_index(index, some, tmp_path / "own", public)
    nowhere = pack(np.full((1, 2), public.vocabulary_size - 1, dtype=np.uint32))
    with pytest.raises(DataError, match="it holds none"):
        match_index(index, np.setdiff1d(nowhere, whole_contexts(world)), tmp_path / "x", public)
    with pytest.raises(DataError, match="must match its manifest"):
        pv.merge_indexes([small, index], tmp_path / "merged", public)
    with pytest.raises(UsageError, match="at least one file"):
        pv.match_index(index, [], tmp_path / "x", public)


def test_groups_that_cannot_hold_a_context_are_not_read(world, monkeypatch):
    whole = IndexManifest.load(world.folder / "index")
    path, some = world.folder / "index" / whole.table, whole_contexts(world)[:20]
    every = list(range(len(whole.seal.groups)))
    asked = np.unique(some)
    wanted = [number for part in list_groups_of(whole.seal, asked) for number in part]
    assert list_groups_of(whole.seal, asked[:0]) == []
    assert wanted
    full = match_groups(path, whole.seal, every, asked)
    assert match_groups(path, whole.seal, wanted, asked).equals(full)
    monkeypatch.setattr(excerpt, "_GROUPS_AT_ONCE", 1)
    parts = list_groups_of(whole.seal, asked)
    assert [len(part) for part in parts] == [1] * len(wanted)


def test_a_plan_is_followed_on_the_whole_index_only(run, world, small, tmp_path):
    """The double is a forged excerpt, which would state the planned hash as well."""
    plan, keys = tmp_path / "plan.json", ("--keys", world.folder / "keys")
    index = ("--index", world.folder / "index")
    made = run("plan", "new", plan, *keys, *index, "--suspect", "x", "--outputs", 60)
    assert made[0] == 0, made
    asked = ("check", world.folder / "guilty.jsonl", *keys, "--plan", plan)
    code, out, err = run(*asked, "--index", small)
    assert (code, out) == (78, "")
    assert "must be the whole index" in " ".join(err.split())
    assert run(*asked, *index)[0] == 1
