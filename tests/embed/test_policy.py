"""Which labels a caller gets: tables of three kinds, precedence, hot reload, what is refused."""

import hashlib
import logging
import re
import sqlite3
import threading
from contextlib import closing
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from provenance.embed import policy as policy_module
from provenance.embed.callers import CALLER_COLUMNS
from provenance.embed.policy import Decision, LabelPolicy, hash_api_key
from provenance.errors import DataError, StorageError, UsageError

SLOTS = ("week", "cohort")
KEYS = [hash_api_key(key) for key in ("sk-one", "sk-two", "sk-three")]
ROWS = {
    "api_key_sha256": KEYS,
    "cohort": ["trial", None, "a,b=c"],
    "payment": ["karte-7", "日本", None],
    "mark": [None, "never", "if-possible"],
}
EXPECTED = [
    Decision({"cohort": "trial"}, {"payment": "karte-7"}, "always", "api_key_sha256"),
    Decision({}, {"payment": "日本"}, "never", "api_key_sha256"),
    Decision({"cohort": "a,b=c"}, {}, "if-possible", "api_key_sha256"),
]


def _write(path, rows):
    """The table as the suffix says; a new file in the place of the old one."""
    new = path.with_suffix(".new")
    new.unlink(missing_ok=True)
    table = pa.table(rows)
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(table, new)
    elif path.suffix == ".csv":
        pyarrow.csv.write_csv(table, new)
    else:
        with closing(sqlite3.connect(new)) as database:
            database.execute(f"CREATE TABLE people ({', '.join(rows)})")
            marks = ", ".join("?" * len(rows))
            values = zip(*table.to_pydict().values(), strict=True)
            database.executemany(f"INSERT INTO people VALUES ({marks})", values)
            database.commit()
    return new.replace(path)


@pytest.fixture(params=["parquet", "csv", "db", "sqlite"])
def path(request, tmp_path):
    return tmp_path / f"callers.{request.param}"


def _decide(policy, **caller):
    return policy.decide(caller)


def test_every_form_of_table_says_the_same(path):
    policy = LabelPolicy.load(_write(path, ROWS), SLOTS)
    decided = [_decide(policy, api_key_sha256=key) for key in KEYS]
    assert decided == EXPECTED
    assert _decide(policy, api_key_sha256=hash_api_key("sk-other")) is None
    assert policy.decide({}) is None


def test_numbers_stay_as_they_were_written(path):
    rows = {"account": ["007", "8"], "cohort": ["01", "2026"]}
    policy = LabelPolicy.load(_write(path, rows), SLOTS)
    assert _decide(policy, account="007").labels == {"cohort": "01"}
    assert _decide(policy, account="7") is None


def test_integers_are_text_and_empty_is_no_label(path):
    rows = {"account": [1, 2], "cohort": [7, 8], "payment": ["", "x"]}
    policy = LabelPolicy.load(_write(path, rows), SLOTS)
    decision = _decide(policy, account="1")
    assert (decision.labels, decision.groups) == ({"cohort": "7"}, {"account": "1"})
    assert _decide(policy, account="2").groups == {"account": "2", "payment": "x"}


def test_the_row_that_says_most_decides_then_the_first_column(tmp_path):
    rows = {
        "api_key_sha256": [KEYS[0], None, None, None, None],
        "account": [None, "a", "a", None, "b"],
        "organisation": [None, None, "o", "o", None],
        "cohort": ["key", "account", "both", "organisation", "b"],
    }
    policy = LabelPolicy.load(_write(tmp_path / "t.parquet", rows), SLOTS)

    def cohort(**caller):
        decision = policy.decide(caller)
        return decision and decision.labels["cohort"]

    assert cohort(account="a", organisation="o") == "both"
    assert cohort(api_key_sha256=KEYS[0], account="a", organisation="o") == "both"
    assert cohort(api_key_sha256=KEYS[0], account="a") == "key"
    assert cohort(account="b", organisation="o") == "b"
    assert cohort(account="a") == "account"
    assert cohort(account="z", organisation="o") == "organisation"
    assert cohort(account="o") is None  # a name in another column is another caller
    assert cohort(account="") is None


def test_precedence_holds_against_a_plain_reading_of_the_sentence(tmp_path):
    """All tables of rows over two values a column, looked up for all callers."""
    import itertools

    values = [None, "x", "y"]
    combinations = [c for c in itertools.product(values, repeat=3) if any(c)]
    hashed = {None: None, "x": KEYS[0], "y": KEYS[1]}
    for step in (1, 2, 3, 5):
        rows = combinations[::step]
        columns = list(zip(*rows, strict=True))
        table = {
            "api_key_sha256": [hashed[value] for value in columns[0]],
            "account": list(columns[1]),
            "organisation": list(columns[2]),
            "number": [str(number) for number in range(len(rows))],
        }
        policy = LabelPolicy.load(_write(tmp_path / "t.parquet", table), ())
        for caller in itertools.product(values, repeat=3):
            fits = [
                (sum(v is not None for v in row), [v is not None for v in row], str(number))
                for number, row in enumerate(rows)
                if all(v is None or v == c for v, c in zip(row, caller, strict=True))
            ]
            named = dict(zip(CALLER_COLUMNS, (hashed[caller[0]], *caller[1:]), strict=True))
            decision = policy.decide({n: v for n, v in named.items() if v})
            expected = max(fits)[2] if fits else None
            assert (decision and decision.groups["number"]) == expected


def test_the_default_constants_and_the_clock(tmp_path):
    rows = {"account": ["a", "b"], "cohort": ["x", None], "replica": [None, "own"]}
    policy = LabelPolicy.load(
        _write(tmp_path / "t.csv", rows),
        SLOTS,
        default={"cohort": "unknown"},
        constants={"cohort": "none", "replica": "r1"},
        week="week",
        mark="if-possible",
    )
    before = f"{datetime.now(UTC):%G-W%V}"
    known, sparse, unknown = (_decide(policy, account=name) for name in "abc")
    weeks = {before, f"{datetime.now(UTC):%G-W%V}"}
    for decision, cohort in ((known, "x"), (sparse, "none"), (unknown, "unknown")):
        assert decision.labels["week"] in weeks
        assert decision.labels["cohort"] == cohort
        assert decision.mark == "if-possible"
    assert re.fullmatch(r"\d{4}-W\d{2}", known.labels["week"])
    assert sparse.groups == {"account": "b", "replica": "own"}
    assert unknown.groups == {"account": "c", "replica": "r1"}
    assert unknown.reason == "default"


def test_without_a_table_everybody_gets_the_constants():
    policy = LabelPolicy.load(None, SLOTS, constants={"cohort": "all"})
    assert policy.decide({}) == Decision({"cohort": "all"}, {}, "always", "default")
    assert not policy.has_changed()
    assert not policy.reload()


def test_the_key_and_its_hash_are_in_no_label(path):
    decision = _decide(LabelPolicy.load(_write(path, ROWS), ()), api_key_sha256=KEYS[0])
    assert KEYS[0] not in repr(decision)


def test_a_changed_file_is_followed_and_looked_at_once_a_second(path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(policy_module.time, "monotonic", lambda: now[0])
    policy = LabelPolicy.load(_write(path, ROWS), SLOTS)
    assert not policy.has_changed()
    _write(path, {**ROWS, "cohort": ["new", None, None]})
    assert not policy.has_changed()
    assert _decide(policy, api_key_sha256=KEYS[0]).labels == {"cohort": "trial"}
    now[0] += 1.01
    assert policy.has_changed()
    assert policy.reload()
    assert _decide(policy, api_key_sha256=KEYS[0]).labels == {"cohort": "new"}
    now[0] += 1.01
    assert not policy.has_changed()


@pytest.mark.parametrize("damage", [b"", b"PAR1 no", b"\xff\xfe\x00", None, "duplicate", "week"])
def test_a_file_that_is_damaged_leaves_the_callers_of_before(path, monkeypatch, caplog, damage):
    now = [100.0]
    monkeypatch.setattr(policy_module.time, "monotonic", lambda: now[0])
    policy = LabelPolicy.load(_write(path, ROWS), SLOTS, week="week")
    if damage is None:
        path.unlink()
    elif damage == "duplicate":
        _write(path, {name: [*values, values[0]] for name, values in ROWS.items()})
    elif damage == "week":
        _write(path, {**ROWS, "week": ["2026-W01"] * 3})
    else:
        path.write_bytes(damage)
    caplog.clear()
    assert policy.has_changed()
    assert not policy.reload()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert "\n" not in record.getMessage()
    assert path.name in record.getMessage()
    assert _decide(policy, api_key_sha256=KEYS[0]).labels["cohort"] == "trial"
    now[0] += 1.01
    assert not policy.has_changed()  # not tried again before it changes
    now[0] += 1.01
    _write(path, {**ROWS, "cohort": ["mended", None, None]})
    assert policy.has_changed()
    assert policy.reload()
    assert _decide(policy, api_key_sha256=KEYS[0]).labels["cohort"] == "mended"


def test_a_reader_is_never_without_a_table(tmp_path):
    """A thread reloads while others decide; every answer is one of the two files'."""
    path = _write(tmp_path / "t.parquet", ROWS)
    policy = LabelPolicy.load(path, SLOTS)
    done = threading.Event()

    def reload():
        for number in range(30):
            _write(path, {**ROWS, "cohort": [f"n{number % 2}", None, None]})
            policy.reload()
        done.set()

    thread = threading.Thread(target=reload)
    thread.start()
    seen = set()
    while not done.is_set():
        seen.add(_decide(policy, api_key_sha256=KEYS[0]).labels["cohort"])
    thread.join()
    assert seen <= {"trial", "n0", "n1"}


@pytest.mark.parametrize(
    ("rows", "says"),
    [
        ({**ROWS, "api_key_sha256": [KEYS[0], KEYS[1], KEYS[0]]}, "rows 1 and 3"),
        ({**ROWS, "api_key_sha256": [KEYS[0], None, KEYS[1]]}, "row 2"),
        ({**ROWS, "api_key_sha256": [KEYS[0], KEYS[1], "sk-secret"]}, "row 3"),
        ({**ROWS, "api_key_sha256": [KEYS[0], KEYS[1], KEYS[2].upper()]}, "row 3"),
        ({**ROWS, "mark": ["always", "maybe", None]}, "row 2"),
        ({"cohort": ["a"]}, "api_key_sha256"),
        ({"account": ["a", "a"], "organisation": ["o", "o"]}, "rows 1 and 2"),
    ],
)
def test_a_table_that_cannot_be_right_is_refused_with_the_row(path, rows, says):
    with pytest.raises(DataError, match=says) as caught:
        LabelPolicy.load(_write(path, rows), SLOTS)
    assert "sk-secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_tables_of_other_kinds_are_refused_in_one_line(tmp_path):
    with pytest.raises(StorageError):
        LabelPolicy.load(tmp_path / "none.csv", SLOTS)
    for name in ("callers.json", "callers"):
        with pytest.raises(DataError, match="parquet"):
            LabelPolicy.load(tmp_path / name, SLOTS)
    for column in ([0.5], [b"a"], [True], [["a"]]):
        path = tmp_path / "t.parquet"
        pyarrow.parquet.write_table(pa.table({"account": ["a"], "cohort": column}), path)
        with pytest.raises(DataError, match="cohort"):
            LabelPolicy.load(path, SLOTS)
    (tmp_path / "t.csv").write_text("account,account\na,b\n")
    with pytest.raises(DataError, match="same name"):
        LabelPolicy.load(tmp_path / "t.csv", SLOTS)
    (tmp_path / "t.csv").write_text("account,x=y\na,b\n")
    with pytest.raises(DataError, match="x=y"):
        LabelPolicy.load(tmp_path / "t.csv", SLOTS)
    with closing(sqlite3.connect(tmp_path / "t.db")) as database:
        for name in ("one", "two"):
            database.execute(f"CREATE TABLE {name} (account)")
    with pytest.raises(DataError, match="callers"):
        LabelPolicy.load(tmp_path / "t.db", SLOTS)
    with closing(sqlite3.connect(tmp_path / "t.db")) as database:
        database.execute("CREATE TABLE callers (account, cohort)")
        database.execute("INSERT INTO callers VALUES ('a', 'x')")
        database.commit()
    policy = LabelPolicy.load(tmp_path / "t.db", SLOTS)
    assert _decide(policy, account="a").labels == {"cohort": "x"}


def test_dictionary_columns_and_empty_tables_are_read(tmp_path):
    table = pa.table({"account": pa.array(["a", "b"]).dictionary_encode(), "cohort": ["x", "y"]})
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    policy = LabelPolicy.load(tmp_path / "t.parquet", SLOTS)
    assert _decide(policy, account="b").labels == {"cohort": "y"}
    pyarrow.parquet.write_table(table.slice(0, 0), tmp_path / "t.parquet")
    assert _decide(LabelPolicy.load(tmp_path / "t.parquet", SLOTS), account="a") is None


def test_arguments_that_contradict_each_other_are_refused(tmp_path):
    path = _write(tmp_path / "t.csv", {"account": ["a"], "week": ["2026-W01"]})
    with pytest.raises(DataError, match="week"):
        LabelPolicy.load(path, SLOTS, week="week")
    for arguments in (
        {"week": "week", "constants": {"week": "x"}},
        {"mark": "perhaps"},
        {"constants": {"a=b": "x"}},
        {"constants": {"mark": "never"}},
        {"default": {"": "x"}},
    ):
        with pytest.raises(UsageError):
            LabelPolicy.load(None, SLOTS, **arguments)


def test_what_is_read_is_said_and_a_slot_that_nothing_fills_is_warned_of(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = {"account": ["a"], "cohrt": ["misspelt"]}
    LabelPolicy.load(_write(tmp_path / "t.csv", rows), SLOTS, week="week")
    told, warned = caplog.records
    assert "1 callers; slots: week; for groups: cohrt" in told.getMessage()
    assert warned.levelno == logging.WARNING
    assert "cohort" in warned.getMessage()


def test_the_hash_is_that_of_the_command_line():
    assert hash_api_key("sk-one") == hashlib.sha256(b"sk-one").hexdigest()


@pytest.mark.slow
def test_a_million_rows_load_in_seconds(tmp_path):
    import time

    keys = [hash_api_key(str(number)) for number in range(1_000_000)]
    cohorts = [f"c{number % 29}" for number in range(1_000_000)]
    path = _write(tmp_path / "t.parquet", {"api_key_sha256": keys, "cohort": cohorts})
    start = time.process_time()
    policy = LabelPolicy.load(path, SLOTS)
    assert time.process_time() - start < 10
    start = time.process_time()
    for key in keys[:10_000]:
        policy.decide({"api_key_sha256": key})
    assert time.process_time() - start < 2
