"""Sequential checks, `plan enough` and `suspects` under somebody else's scheme, from the shell."""

import json
import shutil
from itertools import pairwise

import numpy as np
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from provenance.check.looks.revealed import Units
from provenance.check.weigh import MAXIMAL_WEIGHTS
from provenance.stats.mixture import log10_mixture, mixture_slopes
from provenance.stats.tables import ClassTable
from tests.evidence.foreign_lab import make_place
from tests.world.synthetic import WORDS, write_outputs

FAST = ("--placebo-keys", "50")
CODES = {"evidence": 1, "no evidence": 0, "inconclusive": 3}


@pytest.fixture(scope="module", params=["hf-synthid", "lm-watermarking"])
def place(request, tmp_path_factory):
    made = make_place(tmp_path_factory.mktemp(request.param), request.param)
    # more of the same suspect: the first batch again, and fresh text of a stranger
    shutil.copy(made.folder / "guilty-0.jsonl", made.folder / "again.jsonl")
    with (made.folder / "again.jsonl").open("a") as file:
        file.write("\n")
    yield made
    made.world.index.close()


def check(place, *more):
    return ("check", *more, *place.scheme, *place.index, *FAST)


def one_line(error):
    lines = [line for line in error.splitlines() if line.strip()]
    return len(lines) == 1 and lines[0].startswith("provenance: ")


def test_outputs_are_collected_until_the_evidence_suffices(run, place, tmp_path):
    state, looks = tmp_path / "state", []
    for i in range(4):
        batch = place.folder / f"guilty-{i}.jsonl"
        code, out, err = run(
            *check(place, batch, "--sequential", state, "-o", tmp_path / "report", "--json")
        )
        found = json.loads(out)
        assert code == CODES[found["conclusion"]], err
        looks.append(found)
    assert looks[-1]["found_evidence"]
    assert looks[-1]["controls_passed"]
    assert "no control slot" in looks[-1]["caveat"]
    assert [control["name"] for control in looks[-1]["controls"]] == ["placebo keys (global)"]
    assert all(a["log10_p"] >= b["log10_p"] for a, b in pairwise(looks))
    assert looks[-1]["looks"][3]["known"] > 0
    code, out, _ = run(*check(place, "--sequential", state))
    assert code == 1
    assert "EVIDENCE" in out
    assert "Caveat of this mark" in out
    before = {path.name: path.read_bytes() for path in state.iterdir()}
    code, out, _ = run(*check(place, place.folder / "again.jsonl", "--sequential", state, "--json"))
    again = json.loads(out)
    assert (again["looks"][4]["coins"], again["log10_e"]) == (0, looks[-1]["log10_e"])
    assert again["looks"][4]["known"] == looks[0]["looks"][0]["coins"]
    for name, content in before.items():
        assert name == "state.json" or (state / name).read_bytes() == content
    text = (state / "state.json").read_text() + json.dumps(looks)
    for number in place.key if isinstance(place.key, tuple) else [place.key]:
        assert len(str(number)) < 7 or str(number) not in text


def test_a_state_holds_what_recomputes_its_evidence(run, place, tmp_path):
    """From the files alone: sums of units, cut to the bound, no unit in two batches; then E."""
    state, scheme = tmp_path / "state", place.world.mark.scheme
    for i in range(2):
        run(*check(place, place.folder / f"guilty-{i}.jsonl", "--sequential", state))
    _, out, _ = run(*check(place, "--sequential", state, "--json"))
    report = json.loads(out)
    bound = report["maximal_weight"]
    assert bound == MAXIMAL_WEIGHTS["log-sqrt"]
    table, seen, shared = ClassTable(()), set(), 0
    for number in (1, 2):
        rows = pq.read_table(state / f"{number:04d}.parquet")
        contexts = np.column_stack(
            [rows[f"c{i + 1}"].to_numpy() for i in range(place.world.mark.context_width)]
        )
        tokens, unit = rows["token"].to_numpy(), rows["unit"].to_numpy()
        names = scheme.units(np.ascontiguousarray(contexts[:, -scheme.width :]), tokens)
        first = np.unique(unit, return_index=True)[1]
        assert (names == names[first][unit]).all()
        assert np.unique(names[first]).size == first.size
        assert not seen & set(names.tolist())
        seen |= set(names.tolist())
        shared += len(unit) - first.size
        sums = np.bincount(unit, weights=rows["weight"].to_numpy()).astype(np.int64)
        scores = np.array([one[0] for one in rows["scores"].to_pylist()])
        assert (scores == scores[first][unit]).all()
        part = ClassTable.from_scores(
            np.minimum(sums, bound), scores[first], place.world.mark.null_law
        )
        table = table.merge(part)
    assert shared > 0
    assert table.to_json() == report["hypotheses"][0]["table"]
    slopes = mixture_slopes(place.world.mark.null_law, bound)
    assert log10_mixture(table, slopes) == report["log10_e"]


def test_a_state_that_was_changed_or_belongs_to_another_mark_is_refused(run, place, tmp_path):
    state, batch = tmp_path / "state", place.folder / "guilty-0.jsonl"
    run(*check(place, batch, "--sequential", state))
    other = (*place.under("other.json"), *place.index, *FAST)
    code, out, err = run("check", "--sequential", state, *other)
    assert (code, out, one_line(err)) == (78, "", True)
    code, _, err = run(*check(place, batch, "--sequential", state))
    assert (code, one_line(err)) == (65, True)
    for column in ("unit", "weight", "scores", "token"):
        broken = tmp_path / column
        shutil.copytree(state, broken)
        edit_state(broken, column)
        code, _, err = run(*check(place, "--sequential", broken))
        assert (code == 65) == one_line(err) == (column != "weight"), column
    for words in (
        check(place, batch, "--sequential", state, "--disclose", "all", "-o", tmp_path / "o"),
        check(place, batch, "--sequential", state, "--innocent", batch),
        check(place, batch, "--sequential", state, "--without-pairs", "-o", tmp_path / "o"),
    ):
        code, _, err = run(*words)
        assert (code, one_line(err)) == (2, True)


def edit_state(folder, column):
    """Change one row, and every hash that covers it: what only the key can notice.

    A weight is the exception, as in states of our own keyrings: the hash of state.json names it.
    """
    import hashlib

    import pyarrow as pa

    from provenance.storage.files import canonical_json

    path = folder / "0001.parquet"
    table = pq.read_table(path)
    values = table[column].to_pylist()
    if column == "scores":
        values[0] = [values[0][0] + 1] if values[0][0] == 0 else [values[0][0] - 1]
    elif column == "token":
        values = [(value + 1) % WORDS for value in values]
    else:
        values[-1] += 1
    field = table.schema.field(column)
    place = table.schema.names.index(column)
    table = table.set_column(place, field, pa.array(values, field.type))
    pq.write_table(table, path, compression="zstd")
    state = json.loads((folder / "state.json").read_text())
    state["batches"][0]["pairs_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    rest = {name: value for name, value in state.items() if name != "content_sha256"}
    state["content_sha256"] = hashlib.sha256(canonical_json(rest)).hexdigest()
    (folder / "state.json").write_bytes(canonical_json(state))


def test_a_sequential_plan_of_a_foreign_mark_is_followed(run, place, tmp_path):
    plan, state = tmp_path / "plan.json", tmp_path / "state"
    code, _, err = run(
        *("plan", "new", plan, *place.scheme, *place.index, "--suspect", "x", "--sequential"),
        *FAST,
    )
    assert code == 0, err
    batch = place.folder / "guilty-0.jsonl"
    code, out, err = run(*check(place, batch, "--sequential", state, "--plan", plan, "--json"))
    assert code == CODES[json.loads(out)["conclusion"]], err
    assert json.loads(out)["exploratory"] is False
    code, _, err = run(*check(place, batch, "--plan", plan))
    assert (code, one_line(err)) == (78, True)
    other = place.under("other.json")
    code, _, err = run("plan", "new", tmp_path / "p", *other, *place.index, "--suspect", "x")
    assert (code, one_line(err)) == (78, True)  # the index is of another key
    code, _, err = run("plan", "new", tmp_path / "p", *place.index, "--suspect", "x")
    assert (code, one_line(err)) == (2, True)


def test_enough_counts_coins_and_not_pairs(run, place, monkeypatch):
    from provenance.marks.foreign.mark import ForeignKey

    monkeypatch.setattr(ForeignKey, "score", None)  # no coin may be looked at
    words = ("plan", "enough", place.folder / "guilty.jsonl", *place.scheme, *place.index)
    code, out, err = run(*words, "--shift", "0.5", "--json")
    found = json.loads(out)
    assert (code, found["suffices"]) == (0, True), err
    (row,) = found["keys"]
    assert row["effective_coins"] <= row["coins"] < row["pairs"]
    assert json.loads(run(*words, "--shift", "0.01", "--json")[1])["suffices"] is False
    assert "MORE OUTPUTS" in run(*words, "--shift", "0.01")[1]


# --- suspects ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def reports(place, tmp_path_factory):
    """A guilty suspect in two halves, a stranger, a sequential report; all of one mark."""
    from typer.testing import CliRunner

    from provenance.commands.app import app

    folder = tmp_path_factory.mktemp("reports")
    outputs = place.folder
    halves = {"first": ("guilty-0", "guilty-1", "guilty-2"), "second": ("guilty-2", "guilty-3")}
    for name, parts in {**halves, "stranger": ("stranger",)}.items():
        files = [outputs / f"{part}.jsonl" for part in parts]
        words = check(place, *files, "-o", folder / name)
        assert CliRunner().invoke(app, list(map(str, words))).exit_code in CODES.values()
    words = check(place, outputs / "guilty.jsonl", "--sequential", folder / "state")
    words = (*words, "-o", folder / "sequential")
    assert CliRunner().invoke(app, list(map(str, words))).exit_code in CODES.values()
    return folder


def test_several_suspects_of_one_foreign_mark_are_judged_together(run, place, reports):
    names = ("first", "second", "stranger", "sequential")
    code, out, err = run("suspects", *(reports / name for name in names), "--json")
    assert err == ""
    family = json.loads(out)
    assert family["committed_keys"] == 1
    found = dict(zip(names, family["suspects"], strict=True))
    plain = json.loads((reports / "first/verdict.json").read_text())
    loss = found["first"]["log10_p"] - plain["hypotheses"][0]["log10_p"]
    assert 0 <= loss <= np.log10(4) + 1e-6
    assert found["first"]["accused"] == (found["first"]["log10_p"] <= -4)
    assert not found["stranger"]["accused"]
    assert found["sequential"]["log10_e"] == pytest.approx(
        json.loads((reports / "sequential/sequential.json").read_text())["log10_e"]
    )
    assert code == CODES[family["conclusion"]]
    assert (code == 1) == any(one["accused"] for one in found.values())
    both = {(one["first"], one["second"]): one for one in family["correlations"]}
    shared = both[str(reports / "first"), str(reports / "second")]
    # what is seen by common pairs: a coin that both have through other pairs stays unseen
    true = correlation(place, reports)
    assert 0.3 < true - 0.05 < shared["correlation"] < true + 1e-6


def correlation(place, reports):
    """By the key: over all coins that both suspects have, whichever pair shows it."""
    scheme, sides = place.world.mark.scheme, []
    for name in ("first", "second"):
        table = pyarrow.csv.read_csv(reports / name / "pairs/000.csv.gz")
        places = [n for n in table.column_names if n[0] == "c"][-scheme.width :]
        contexts = np.column_stack([table[n].to_numpy() for n in places]).astype(np.uint32)
        units = scheme.units(contexts, table["token"].to_numpy().astype(np.uint32))
        usable = table["unit"].to_numpy() > 0
        weights: dict[int, int] = {}
        for unit, weight in zip(units[usable].tolist(), table["weight"].to_pylist(), strict=False):
            weights[unit] = weights.get(unit, 0) + weight
        sides.append(weights)
    one, other = sides
    norm = np.sqrt(sum(w**2 for w in one.values()) * sum(w**2 for w in other.values()))
    return sum(w * other.get(unit, 0) for unit, w in one.items()) / norm


def edit_verdict(folder, change):
    path = folder / "first/verdict.json"
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))


@pytest.mark.parametrize(
    ("code", "change"),
    [
        (78, lambda d: d.update(keyring_id="0" * 16)),
        (78, lambda d: d["commitments"].update({"global": "0" * 64})),
        (78, lambda d: d["scheme"]["parameters"].update(x=1)),
        (65, lambda d: d["scheme"].update(name="nobodys")),
        (65, lambda d: d["hypotheses"][0].update(log10_p=-99.0)),
        (65, lambda d: d["hypotheses"][0]["table"]["classes"][0].update(weight=5000)),
        (65, lambda d: d["hypotheses"][0]["table"]["classes"][0].update(total=0)),
    ],
)
def test_verdicts_that_do_not_belong_together_are_refused(run, reports, tmp_path, code, change):
    copy = shutil.copytree(reports, tmp_path / "reports")
    edit_verdict(copy, change)
    found, out, err = run("suspects", copy / "stranger", copy / "first")
    assert (found, out, one_line(err)) == (code, "", True), err


def test_pairs_that_do_not_add_up_or_contradict_each_other_are_refused(run, reports, tmp_path):
    copy = shutil.copytree(reports, tmp_path / "reports")
    shutil.copy(copy / "second/pairs/000.csv.gz", copy / "first/pairs/000.csv.gz")
    found, _, err = run("suspects", copy / "first", copy / "second")
    assert (found, one_line(err)) == (65, True)


def test_batches_of_units_are_cut_to_the_declared_bound():
    """Sums beyond it are cut, in both directions; names keep all 64 bits of a unit."""
    from provenance.check.score import WeightedPairs
    from provenance.marks.sharing import group_pairs

    units = np.array([-1, -1, 5, 1 << 40, 5], dtype=np.int64)
    pairs = WeightedPairs(
        np.arange(5, dtype=np.uint32)[:, None],
        np.arange(5, dtype=np.uint32),
        np.array([90, 90, -90, 7, -90]),
    )
    found = Units.of_groups(pairs, group_pairs(units, np.ones(5, dtype=bool)), 111)
    assert found.weights.tolist() == [111, -111, 7]
    assert found.names.tolist() == [[0xFFFFFFFF, 0xFFFFFFFF], [0, 5], [256, 0]]
    assert found.pick(np.array([0, 2]))[0].tolist() == [0, 1, 3]
    assert found.pick(np.array([0, 2]))[1].tolist() == [0, 0, 1]


def test_an_innocent_may_be_looked_at_after_every_batch(run, place, tmp_path):
    rng = np.random.default_rng(3)
    for i in range(2):
        batch = tmp_path / f"{i}.jsonl"
        write_outputs(batch, list(place.world.teacher.sample(rng, 30, 60)))
        code, out, err = run(*check(place, batch, "--sequential", tmp_path / "state"))
        assert code in (0, 3), err
        assert "EVIDENCE:" not in out
