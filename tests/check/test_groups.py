"""Groups chosen afterwards: who is named, who must not be, and what a check says of it."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest

import provenance as pv
from provenance.check.conclusion import make_verdict
from provenance.check.examine import try_family, try_keys
from provenance.check.findings import GroupKey
from provenance.check.plan import Plan
from provenance.coins.contexts import unpack
from provenance.errors import ConfigurationMismatchError, UsageError, VerificationError
from provenance.evidence.manifest import read_manifest, write_manifest
from provenance.keys.schedule import KeyName
from provenance.marks.alpha import family_weights
from provenance.served.group_build import list_seen
from provenance.served.records import list_array
from tests.check.test_innocents import Selector
from tests.world.groups import GroupWorld, list_anywhere, run_world
from tests.world.innocents.coins import marks_of
from tests.world.innocents.gate import judge
from tests.world.innocents.language import draw_language
from tests.world.innocents.traffic import Traffic, serve
from tests.world.synthetic import learn, write_outputs

SMALL = GroupWorld(words=160, outputs=800)

# ----------------------------------------------------------------------------- validity, in small


@pytest.mark.parametrize("width", [1, 2])
def test_the_fast_world_sees_what_the_product_sees(width):
    language = draw_language(3, 30, width)
    made = serve(language, Traffic(40, 12), 11, 0.3, 5)
    parts = np.split(made.ids.astype(np.uint32), np.cumsum(made.lengths)[:-1])
    seen = {}
    for prompt in (False, True):
        empty = [np.empty(0, dtype=np.uint32)] * len(parts)
        columns = [list_array(empty if prompt else parts), list_array(parts if prompt else empty)]
        batch = pa.RecordBatch.from_arrays(columns, names=["token_ids", "prompt_token_ids"])
        _, contexts = list_seen(batch, Selector(11, width, language.stride))
        seen[prompt] = np.unique(contexts)
    assert np.array_equal(seen[False], seen[True])
    ids = unpack(seen[False], width).astype(np.int64)
    ids = ids[(ids < language.words).all(axis=1)]  # after an end nothing is reached
    names = ids @ language.stride ** np.arange(width - 1, -1, -1)
    expected = np.flatnonzero(list_anywhere(made, language))
    assert np.array_equal(np.sort(names), expected[marks_of(11, expected, 0.3)])


def test_a_student_of_the_others_is_not_named_and_every_broken_condition_is_seen():
    """H0 of the group: guilty of everybody else. See benchmarks/groups.py for all worlds."""
    others = (("group", "log-sqrt"), ("group", "residual"), ("others", "log-sqrt"))
    rows = run_world(SMALL, (*others, ("lacking", "log-sqrt")), 30)
    assert [bool(judge(row)) for row in rows] == [False, False, True, True]
    assert rows[2]["mean_z"] > 8  # as guilty as can be, and only of those
    assert rows[3]["mean_z"] > 2
    quoting = replace(SMALL, quoting=0.3)
    rows = run_world(quoting, (("group", "log-sqrt"), ("by counts", "log-sqrt")), 20)
    assert [bool(judge(row)) for row in rows] == [False, True]
    innocent = replace(SMALL, guilty_of="nobody")
    rows = run_world(innocent, (("group", "log-sqrt"), ("overlapping", "log-sqrt")), 40)
    assert [bool(judge(row)) for row in rows] == [False, True]


# --------------------------------------------------------------------------------- the whole line


@pytest.fixture(scope="module")
def half(synthetic_world, tmp_path_factory):
    """A log in which an account got the first half, its index, the group, and two students."""
    world, folder = synthetic_world, tmp_path_factory.mktemp("groups")
    records = [
        {
            "response_id": f"r{i}",
            "marked": True,
            "labels": {**labels, "account": "a" if i < 100 else f"b{i % 7}"},
            "token_ids": ids.tolist(),
            "prompt_token_ids": [],
            "finish": "length",
        }
        for i, (ids, labels) in enumerate(zip(world.served, world.labels, strict=True))
    ]
    _write(folder / "log.jsonl", records)
    del records[-1]["prompt_token_ids"]
    _write(folder / "unknown.jsonl", records)
    for name in ("log", "unknown"):
        log = folder / f"{name}.jsonl"
        pv.build_index(log, folder / f"{name}-index", world.keyring)
        pv.build_group(log, folder / name, world.keyring, ["a"], "account")
    for name, served in (("guilty", world.served[:100]), ("other", world.served[100:])):
        outputs = learn(replace(world, served=served), np.random.default_rng(3), 250, 80)
        write_outputs(folder / f"{name}.jsonl", outputs)
    return folder


def _write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


@pytest.fixture(scope="module")
def case(half, synthetic_world):
    tokenizer = synthetic_world.folder / "tokenizer.json"
    keyring = synthetic_world.keyring
    with pv.open_case(keyring, half / "log-index", tokenizer=tokenizer) as opened:
        yield opened


@pytest.fixture(scope="module")
def verdict(case, half):
    return case.check(half / "guilty.jsonl", placebo_keys=60, groups={"campaign": half / "log"})


def test_the_group_is_named_and_the_others_are_not(verdict, half):
    assert verdict.conclusion == "evidence"
    assert verdict.found_groups == ("campaign",)
    own, others = verdict.groups
    assert own.found
    assert not others.rejected
    assert own.tail.z > 4 > abs(others.tail.z)
    facts = verdict.inputs["groups"]["campaign"]
    assert facts["exclusive"] >= facts["contexts_met"]["group"] > 0
    assert facts["coins"] == {"group": own.tail.coins, "others": others.tail.coins}
    assert "at least" in str(verdict).splitlines()[0]
    assert "group campaign" in str(verdict)
    assert "What these got and nobody else did: EVIDENCE" in str(verdict)
    assert "all but campaign" in str(verdict)
    read = pv.Verdict.from_json(json.loads(json.dumps(verdict.to_json())))
    assert read.groups == verdict.groups
    assert read.to_json() == verdict.to_json()


def test_who_learned_from_the_others_is_not_named_for_the_group(case, half):
    found = case.check(half / "other.jsonl", placebo_keys=60, groups={"campaign": half / "log"})
    own, others = found.groups
    assert others.found
    assert not own.rejected
    assert found.found_groups == ()
    assert found.log10_p < -10


def test_groups_take_their_part_of_alpha(verdict):
    assert sum(one.family_weight for one in (*verdict.hypotheses, *verdict.groups)) == (
        pytest.approx(1)
    )
    assert [one.family_weight for one in verdict.groups] == [0.125, 0.125]
    tables = {one.key: one.table for one in verdict.hypotheses}
    alone = try_keys(tables, verdict.alpha)
    assert alone == try_family(tables, {}, verdict.alpha)[0]
    many = {GroupKey(f"g{i}", "group"): verdict.groups[1].table for i in range(40)}
    groups = {verdict.groups[0].key: verdict.groups[0].table, **many}
    found = try_family(tables, groups, verdict.alpha)[1][0]
    assert found.log10_adjusted > verdict.groups[0].log10_adjusted  # every group that was tried
    assert family_weights([KeyName("global")]).tolist() == [1.0]
    assert family_weights([KeyName("week", "a")], 1).tolist() == [0.5, 0.5]


def test_nothing_is_attributed_where_a_prompt_of_the_others_is_not_known(
    half, synthetic_world, verdict
):
    tokenizer = synthetic_world.folder / "tokenizer.json"
    with pv.open_case(
        synthetic_world.keyring, half / "unknown-index", tokenizer=tokenizer
    ) as opened:
        found = opened.check(half / "guilty.jsonl", placebo_keys=60, groups={"c": half / "unknown"})
    assert found.conclusion == "evidence"  # of training on marked responses: not on which
    assert found.groups[0].rejected
    assert not found.groups[0].found
    assert found.found_groups == ()
    assert "1 responses of the others" in found.groups[0].doubt
    assert "not to be named" in str(found)


def test_what_is_held_against_evidence_is_held_against_naming_a_group(verdict, case):
    inputs = {**verdict.inputs, "index": {**verdict.inputs["index"], "unended": 3}}
    found = make_verdict(
        case.mark.public,
        verdict.hypotheses,
        verdict.controls,
        verdict.alpha,
        inputs,
        twins=None,
        plan=None,
        reservations=(),
        caveat="",
        versions={},
        groups=verdict.groups,
    )
    assert found.conclusion == "inconclusive"
    assert found.found_groups == ()
    assert found.groups[0].rejected
    assert "3 of the index's" in found.groups[0].doubt
    assert "no conclusion" in str(found)


def test_a_group_of_another_log_is_refused_before_a_key_is_opened(case, half):
    with pytest.raises(ConfigurationMismatchError, match="same, complete files"):
        case.check(half / "guilty.jsonl", groups={"campaign": half / "unknown"})
    for name in ("", "a b", "x" * 65, "é"):
        with pytest.raises(UsageError, match="name"):
            case.check(half / "guilty.jsonl", groups={name: half / "log"})
    with pytest.raises(UsageError, match="at most 100"):
        case.check(half / "guilty.jsonl", groups={f"g{i}": half / "log" for i in range(101)})


# -------------------------------------------------------------------------------- bundle and plan


@pytest.fixture(scope="module")
def bundle(verdict, half):
    verdict.save(half / "bundle", ["all"])
    return half / "bundle"


def test_the_bundle_is_verified_with_its_groups(bundle):
    assert pv.verify(bundle, unsigned=True).passed
    assert (bundle / "pairs/group-000.csv.gz").exists()
    page = (bundle / "report.html").read_text()
    assert "Groups of responses, chosen afterwards" in page
    assert "What these got and nobody else did" in page


def _fails(folder, tmp_path, change):
    """A copy of the bundle with another verdict, its manifest made anew: which step fails."""
    place = tmp_path / "changed"
    shutil.copytree(folder, place)
    path = place / "verdict.json"
    document = json.loads(path.read_text())
    change(document, place)
    path.write_text(json.dumps(document, indent=1, ensure_ascii=False, sort_keys=True) + "\n")
    manifest, _ = read_manifest(place)
    write_manifest(place, manifest.created, pairs=True)
    with pytest.raises(VerificationError) as error:
        pv.verify(place, unsigned=True)
    return [one.number for one in error.value.verification.failures]


def _leave_out(document, place):
    """As if the second test had never been made."""
    del document["groups"][1]
    (place / "pairs/group-001.csv.gz").unlink()


def _swap(document, place):
    """The pairs of one side in place of the other."""
    one, two = (place / f"pairs/group-00{i}.csv.gz" for i in (0, 1))
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)


def _same(document, place):
    """Contexts that are on both sides."""
    (place / "pairs/group-001.csv.gz").write_bytes((place / "pairs/group-000.csv.gz").read_bytes())


def _claim(document, _place):
    document["groups"][1].update(rejected=True, found=True)


@pytest.mark.parametrize(
    ("change", "step"), [(_leave_out, 13), (_swap, 12), (_same, 9), (_claim, 13)]
)
def test_a_bundle_with_other_groups_is_not_verified(bundle, tmp_path, change, step):
    assert step in _fails(bundle, tmp_path, change)


def test_a_plan_fixes_the_groups(case, half, synthetic_world, tmp_path):
    keyring, index = synthetic_world.keyring, half / "log-index"
    groups = {"campaign": half / "log"}
    common = {"outputs": [250], "placebo_keys": 60}
    plan = pv.make_plan(tmp_path / "p.json", keyring, index, "x", groups=groups, **common)
    assert Plan.load(tmp_path / "p.json") == plan
    assert set(plan.groups["campaign"]) == {"field", "list_sha256", "log_sha256", "content_sha256"}
    found = case.check(half / "guilty.jsonl", plan=tmp_path / "p.json", groups=groups)
    assert found.found_groups == ("campaign",)
    assert not found.exploratory
    with pytest.raises(ConfigurationMismatchError, match="groups: expected"):
        case.check(half / "guilty.jsonl", plan=tmp_path / "p.json")
    pv.make_plan(tmp_path / "q.json", keyring, index, "x", **common)
    with pytest.raises(ConfigurationMismatchError, match="groups: expected"):
        case.check(half / "guilty.jsonl", plan=tmp_path / "q.json", groups=groups)
    other = {"campaign": half / "unknown"}
    with pytest.raises(ConfigurationMismatchError, match="same, complete files"):
        pv.make_plan(tmp_path / "r.json", keyring, index, "x", groups=other, **common)
    assert not (tmp_path / "r.json").exists()
