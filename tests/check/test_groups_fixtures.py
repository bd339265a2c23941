"""The fixtures as if reseller-7 had been found afterwards: the figures of docs/groups.md."""

import shutil
from pathlib import Path

import pytest

import provenance as pv
from provenance.check.groups import weigh_groups
from provenance.check.score import open_coins
from provenance.keys.schedule import GLOBAL_KEY
from provenance.marks import as_mark
from provenance.served.group_index import GroupIndex
from provenance.stats.tables import ClassTable

FIXTURES = Path(__file__).parents[2] / "fixtures"
PAGE = FIXTURES.parent / "docs/groups.md"


@pytest.fixture(scope="module")
def opened(tmp_path_factory):
    """The mark, the index and the group."""
    folder = tmp_path_factory.mktemp("fixtures")
    shutil.copytree(FIXTURES / "keys", folder / "keys")
    (folder / "keys/master.key").chmod(0o600)
    keyring, log = pv.open_keyring(folder / "keys"), FIXTURES / "served.parquet"
    pv.build_index(log, folder / "index", keyring)
    made = pv.build_group(log, folder / "group", keyring, ["reseller-7"], "cohort")
    assert f"{made.exclusive:,} exclusive contexts of {made.reached:,}" in PAGE.read_text()
    with (
        pv.Index.open(folder / "index", keyring.public) as index,
        GroupIndex.open(folder / "group") as group,
    ):
        yield as_mark(keyring), index, group


@pytest.mark.parametrize(
    ("suspect", "least", "most"), [("student-reseller", 4.8, 5.4), ("student-unmarked", -1, 1)]
)
def test_the_students_of_the_fixtures(opened, suspect, least, most):
    mark, index, group = opened
    tokenizer = pv.load_tokenizer(FIXTURES / "keys/tokenizer.json", mark.public)
    observed = pv.observe([FIXTURES / f"suspects/{suspect}.jsonl.gz"], tokenizer, mark.public)
    found = []
    for pairs in weigh_groups(observed, index, {"g": group}, mark, "log-sqrt").values():
        coins = open_coins(pairs, mark.open(*GLOBAL_KEY))
        found.append(ClassTable.from_scores(coins.weights, coins.scores, mark.null_law))
    own, others = found
    assert least < own.z < most
    assert abs(others.z) < 1
    row = next(line for line in PAGE.read_text().splitlines() if line.startswith(f"| {suspect}"))
    assert f"{own.coins:,}, " in row
    assert f"{own.z:+.2f}" in row
    assert f"{others.z:+.2f}" in row
