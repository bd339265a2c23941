"""The command line from outside: the whole story, and one line with its exit code for bad input."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from provenance.embed.rules import find_marked
from provenance.served.writer import LogWriter
from provenance.storage.files import lock_folder
from tests.world.synthetic import Teacher, innocent, learn, make_world, write_outputs

FIXTURES = Path(__file__).parents[2] / "fixtures"

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    made = make_world(tmp_path_factory.mktemp("cli"), Teacher.draw(0), 1)
    rng = np.random.default_rng(5)
    write_outputs(made.folder / "guilty.jsonl", learn(made, rng, 200, 80))
    write_outputs(made.folder / "innocent.jsonl", *innocent("ordinary", made, rng, 600))
    write_outputs(made.folder / "few.jsonl", *innocent("ordinary", made, rng))
    return made


@pytest.fixture
def case(world, tmp_path):
    """A private copy of keys, log, index and outputs that a test may break."""
    for name in ("keys", "index"):
        shutil.copytree(world.folder / name, tmp_path / name)
    for name in ("served.jsonl", "guilty.jsonl", "innocent.jsonl", "few.jsonl", "tokenizer.json"):
        shutil.copy(world.folder / name, tmp_path / name)
    return tmp_path


def _check(case, outputs="guilty.jsonl", *more):
    return (
        "check",
        case / outputs,
        "--keys",
        case / "keys",
        "--index",
        case / "index",
        "--placebo-keys",
        "60",
        *more,
    )


def _one_line(error: str) -> bool:
    lines = [line for line in error.splitlines() if line.strip()]
    return len(lines) == 1 and lines[0].startswith("provenance: ")


def test_the_whole_story_from_keys_to_verdict(run, case):
    keys, index = case / "mine", case / "mine-index"
    code, _, err = run(
        "keys", "new", keys, "--tokenizer", case / "tokenizer.json", "--value", "week=W1"
    )
    assert code == 0
    assert "Keyring" in err
    assert run("keys", "add-value", keys, "--slot", "week", "--value", "W2")[0] == 0
    code, out, _ = run("keys", "show", keys, "--json")
    shown = json.loads(out)
    assert [slot["name"] for slot in shown["slots"]][:3] == ["control", "global", "week"]
    assert [v["value"] for v in shown["slots"][2]["values"]] == ["W1", "W2"]
    code, out, _ = run("keys", "show", keys)
    assert code == 0
    assert "W1, W2" in out
    code, out, _ = run("keys", "disclose", keys, "--slot", "week", "--value", "W1")
    assert len(bytes.fromhex(json.loads(out)["key"])) == 32
    code, _, _ = run("keys", "disclose", keys, "--slot", "global", "-o", case / "key.json")
    assert (case / "key.json").stat().st_mode & 0o777 == 0o600
    # the served log of the shared world, indexed under its own keyring
    code, _, err = run(
        "index", "build", case / "served.jsonl", "--keys", case / "keys", "-o", index
    )
    assert code == 0
    assert "200 marked responses" in err
    code, out, _ = run("index", "info", index, "--json")
    assert json.loads(out)["marked_responses"] == 200
    assert run("index", "info", index)[0] == 0
    report = case / "report"
    code, out, _ = run(*_check(case, "guilty.jsonl", "-o", report))
    assert code == 1
    assert out.startswith("EVIDENCE")
    verdict = json.loads((report / "verdict.json").read_text())
    assert verdict["conclusion"] == "evidence"
    assert verdict["log10_p"] < -30
    code, out, _ = run(
        *_check(case, "innocent.jsonl", "--json", "--innocent", case / "innocent.jsonl")
    )
    assert code == 0
    assert json.loads(out)["conclusion"] == "no evidence"


def test_a_reference_keeps_the_evidence_and_accuses_nobody(run, case):
    text = ("--reference", "ngram", "--reference-text", case / "innocent.jsonl")
    code, out, _ = run(*_check(case, "guilty.jsonl", "--json", *text))
    verdict = json.loads(out)
    assert code == 1
    assert verdict["log10_p"] < -20
    assert verdict["weight_rule"] == "residual"
    assert verdict["inputs"]["outputs"]["reference"]["kind"] == "ngram"
    other = ("--reference", "ngram", "--reference-text", case / "guilty.jsonl")
    code, out, _ = run(*_check(case, "innocent.jsonl", "--json", *other))
    assert code == 0
    assert json.loads(out)["conclusion"] == "no evidence"


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--reference", "ngram"], 2),
        (["--reference-text", "guilty.jsonl"], 2),
        (["--rule", "residual"], 2),
        (["--rule", "best"], 2),
        (["--reference", "no-such-folder"], 74),
        (["--reference", "ngram", "--reference-text", "missing.jsonl"], 74),
    ],
)
def test_impossible_references(run, case, more, expected):
    code, _, err = run(*_check(case, "guilty.jsonl", *more))
    assert code == expected, err
    assert _one_line(err), err


def test_a_failed_control_is_not_evidence_and_exits_3(run, case):
    code, out, _ = run(*_check(case, "guilty.jsonl", "--innocent", case / "guilty.jsonl"))
    assert code == 3
    assert out.startswith("INCONCLUSIVE")
    assert re.search(r"^- 1 of \d controls failed: innocent guilty\.jsonl\.$", out, re.MULTILINE)


def test_too_little_to_find_anything_exits_3_and_says_how_little(run, case):
    code, out, _ = run(*_check(case, "few.jsonl"))
    assert code == 3
    assert out.startswith("INCONCLUSIVE")
    assert "- too little data: " in out
    assert "coins of the global key" in out


def test_outputs_that_quote_their_prompts_exit_3_and_say_where_the_positions_went(run, case):
    records = [json.loads(line) for line in (case / "few.jsonl").read_text().splitlines()]
    lines = [json.dumps({"prompt": r["output"], "output": r["output"]}) for r in records]
    (case / "quoting.jsonl").write_text("\n".join(lines) + "\n")
    code, out, _ = run(*_check(case, "quoting.jsonl"))
    assert code == 3
    assert "of which 0 count" in out
    assert "left out because they stand in the prompt" in out
    assert "was served marked" not in out


def test_detect_finds_marked_text_in_files_and_standard_input(run, case, world, monkeypatch):
    text = case / "text.txt"
    text.write_text(" ".join(f"w{i}" for ids in world.served[:8] for i in ids))
    code, out, _ = run("detect", text, "--keys", case / "keys", "--json")
    assert code == 1
    assert json.loads(out)["texts"][0]["marked"] is True
    code, out, _ = run("detect", case / "few.jsonl", "--keys", case / "keys")
    assert code == 0
    assert "no mark found" in out
    (case / "short.txt").write_text("w1 w2")
    code, out, _ = run("detect", case / "short.txt", case / "few.jsonl", "--keys", case / "keys")
    assert code == 3
    assert "1 of 101 texts have no coin to score: not tested." in out
    code, out, _ = run("detect", case / "short.txt", text, "--keys", case / "keys", "--json")
    assert code == 1
    assert [one["tested"] for one in json.loads(out)["texts"]] == [False, True]
    assert json.loads(out)["conclusion"] == "evidence"
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", "detect", "-", "--keys", case / "keys"],
        input=text.read_bytes(),
        capture_output=True,
        check=False,
    )
    assert done.returncode == 1, done.stderr
    assert b"MARKED" in done.stdout


def test_cli_py_is_the_same_program():
    one = subprocess.run(
        [sys.executable, ROOT / "cli.py", "--help"], capture_output=True, text=True, check=True
    )
    two = subprocess.run(
        [Path(sys.executable).parent / "provenance", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert one.stdout.replace("cli.py", "provenance") == two.stdout
    for command in ("demo", "keys", "generate", "index", "check", "detect"):
        assert command in one.stdout


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check"], 2),
        (["nonsense"], 2),
        (["check", "--no-such-option"], 2),
        (["keys", "new"], 2),
    ],
)
def test_usage_errors_exit_2(run, arguments, code):
    assert run(*arguments)[0] == code


def _break_log(case, content):
    (case / "served.jsonl").write_bytes(content)


RECORD = (
    b'{"response_id": "a", "marked": true, "labels": {"week": "W1"}, "token_ids": [1,2,3,4,5]}\n'
)
BAD_LOGS = {
    "broken json": (b'{"response_id": ', 65),
    "second line broken": (RECORD + b"oops\n", 65),
    "not utf-8": (b'{"response_id": "\xff"}\n', 65),
    "empty": (b"", 65),
    "id beyond the vocabulary": (RECORD.replace(b"5]", b"99999]"), 65),
    "only unmarked responses": (RECORD.replace(b"true", b"false"), 65),
    "responses shorter than k": (RECORD.replace(b"[1,2,3,4,5]", b"[1]"), 65),
    "labels not a map": (RECORD.replace(b'{"week": "W1"}', b"[]"), 65),
    "no ids and no text": (RECORD.replace(b'"token_ids": [1,2,3,4,5]', b'"x": 1'), 65),
}


@pytest.mark.parametrize("name", BAD_LOGS)
def test_bad_logs(run, case, name):
    content, expected = BAD_LOGS[name]
    _break_log(case, content)
    out = case / "new-index"
    code, _, err = run("index", "build", case / "served.jsonl", "--keys", case / "keys", "-o", out)
    assert code == expected
    assert _one_line(err), err
    assert not (out / "manifest.json").exists()
    assert list(out.glob("*.parquet")) == []


BAD_OUTPUTS = {
    "broken json": b'{"prompt": "x", "output": ',
    "no output": b'{"prompt": "x"}\n',
    "empty": b"",
    "empty output": b'{"output": ""}\n',
    "shorter than k": b'{"output": "w1 w2"}\n',
    "escape codes": b'{"output": 3, "\\u001b[31m": 1}\n',
}


@pytest.mark.parametrize("name", BAD_OUTPUTS)
def test_bad_outputs(run, case, name):
    (case / "bad.jsonl").write_bytes(BAD_OUTPUTS[name])
    code, _, err = run(*_check(case, "bad.jsonl", "-o", case / "report"))
    assert code == 65
    assert _one_line(err), err
    assert "\x1b" not in err
    assert not (case / "report").exists()


def _missing_outputs(case):
    (case / "guilty.jsonl").unlink()


def _missing_index(case):
    shutil.rmtree(case / "index")


def _missing_keyring(case):
    (case / "keys" / "keyring.json").unlink()


def _missing_master(case):
    (case / "keys" / "master.key").unlink()


def _readable_master(case):
    (case / "keys" / "master.key").chmod(0o644)


def _short_master(case):
    (case / "keys" / "master.key").write_bytes(b"short")


def _other_master(case):
    (case / "keys" / "master.key").write_bytes(bytes(32))


def _other_tokenizer(case):
    path = case / "keys" / "tokenizer.json"
    path.write_text(path.read_text() + " ")


def _broken_keyring(case):
    (case / "keys" / "keyring.json").write_text("{")


def _other_keyring(case):
    path = case / "keys" / "keyring.json"
    document = json.loads(path.read_text())
    document["id"] = "0123456789abcdef"
    path.write_text(json.dumps(document))


def _no_manifest(case):
    (case / "index" / "manifest.json").unlink()


def _flipped_bit(case):
    path = next((case / "index").glob("*.parquet"))
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def _truncated_archive(case):
    packed = gzip.compress((case / "guilty.jsonl").read_bytes())
    (case / "guilty.jsonl").unlink()
    (case / "guilty.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    return "guilty.jsonl.gz"


BROKEN = {
    "missing outputs": (_missing_outputs, 74),
    "missing index": (_missing_index, 74),
    "index without its manifest": (_no_manifest, 74),
    "missing keyring": (_missing_keyring, 74),
    "missing master key": (_missing_master, 74),
    "master key that others can read": (_readable_master, 77),
    "master key too short": (_short_master, 65),
    "another master key": (_other_master, 78),
    "another tokenizer": (_other_tokenizer, 78),
    "broken keyring": (_broken_keyring, 65),
    "index of another keyring": (_other_keyring, 78),
    "flipped bit in the index": (_flipped_bit, 65),
    "truncated archive": (_truncated_archive, 65),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_inputs_of_a_check(run, case, name):
    breaker, expected = BROKEN[name]
    outputs = breaker(case) or "guilty.jsonl"
    code, out, err = run(*_check(case, outputs, "-o", case / "report"))
    assert code == expected, err
    assert _one_line(err), err
    assert out == ""
    assert not (case / "report").exists()


def test_a_locked_output_exits_75_and_keeps_what_is_there(run, case):
    report = case / "report"
    with lock_folder(report):
        code, _, err = run(*_check(case, "guilty.jsonl", "-o", report))
        assert code == 75
        assert _one_line(err)
        assert not (report / "verdict.json").exists()
        build = ("index", "build", case / "served.jsonl", "--keys", case / "keys", "-o", report)
        assert run(*build)[0] == 75


def test_an_unwritable_output_exits_74(run, case):
    (case / "file").write_text("x")
    code, _, err = run(*_check(case, "guilty.jsonl", "-o", case / "file"))
    assert code == 74
    assert _one_line(err)


@pytest.mark.parametrize(
    "more",
    [
        ["--scheme", "nonsense"],
        ["--parameters", "{"],
        ["--parameters", "[]"],
        ["--width", "9"],
        ["--slot", "global"],
        ["--slot", "global=lots"],
        ["--slot", "global=2"],
        ["--slot", "week=0.1"],
        ["--value", "plan=free"],
    ],
)
def test_impossible_keyrings(run, case, more):
    code, _, err = run("keys", "new", case / "new", "--tokenizer", case / "tokenizer.json", *more)
    assert code in (2, 65)
    assert _one_line(err), err
    assert not (case / "new" / "keyring.json").exists()
    assert not (case / "new" / "master.key").exists()


def test_a_defect_exits_70_without_traceback_and_never_1(run, case, monkeypatch):
    def broken(*_):
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr("provenance.check.examine.weigh_observations", broken)
    code, out, err = run(*_check(case))
    assert code == 70
    assert _one_line(err)
    assert "secret detail" not in err + out


def test_duplicate_responses_are_reported_and_counted_once(run, case):
    once = _build(run, case, "served.jsonl")[0]
    text = (case / "served.jsonl").read_text()
    (case / "served.jsonl").write_text(text + text)
    twice, err = _build(run, case, "served.jsonl")
    assert "200 duplicates counted once" in err
    assert once == twice


def _build(run, case, log) -> tuple[str, str]:
    """The hash of an index of this log, and what was said."""
    made = case / "made"
    words = ("index", "build", case / log, "--keys", case / "keys", "-o", made, "--force")
    code, _, err = run(*words)
    assert code == 0, err
    return json.loads((made / "manifest.json").read_text())["index"]["content_sha256"], err


def test_a_parquet_log_gives_the_same_index(run, case):
    records = [json.loads(line) for line in (case / "served.jsonl").read_text().splitlines()]
    for record in records:
        record["labels"] = json.dumps(record["labels"])
    keep = ("response_id", "marked", "labels", "token_ids", "time")
    rows = [{name: record[name] for name in keep} for record in records]
    pq.write_table(pa.Table.from_pylist(rows), case / "served.parquet")
    assert _build(run, case, "served.parquet")[0] == _build(run, case, "served.jsonl")[0]


def test_no_secret_reaches_any_output(run, case, world):
    """Canary: raw, hex, base64 and decimal forms of every key, in everything that is written."""
    import base64

    secrets = [(case / "keys" / "master.key").read_bytes()]
    secrets += [world.keyring.key(*pair).reveal() for pair in world.keyring.public.commitments]
    written = []
    for arguments in (
        ("keys", "show", case / "keys", "--json"),
        ("keys", "show", case / "keys"),
        _check(case, "guilty.jsonl", "-o", case / "report"),
        _check(case, "guilty.jsonl", "--json"),
        ("detect", case / "innocent.jsonl", "--keys", case / "keys", "--json"),
        ("index", "info", case / "index", "--json"),
    ):
        _, out, err = run(*arguments)
        written += [out.encode(), err.encode()]
    written += [path.read_bytes() for path in (case / "report").rglob("*") if path.is_file()]
    written += [path.read_bytes() for path in (case / "index").rglob("*") if path.is_file()]
    everything = b"\0".join(written)

    def leaks(text):
        return any(
            form in text
            for secret in secrets
            for form in (
                secret,
                secret.hex().encode(),
                base64.b64encode(secret)[:40],
                str(int.from_bytes(secret, "big")).encode(),
            )
        )

    assert not leaks(everything)
    assert leaks(everything + secrets[0].hex().encode()), "the search would see a planted leak"


def test_the_report_fits_eighty_columns(case):
    done = subprocess.run(
        [sys.executable, ROOT / "cli.py", *map(str, _check(case))],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "80", "TERM": "dumb"},
    )
    assert done.returncode == 1, done.stderr
    assert max(map(len, done.stdout.splitlines())) <= 80


def test_the_log_is_audited(run, case, world):
    """Old records have no bits: nothing can be said. With them every replica marks."""
    arguments = ("log", "audit", case / "served.jsonl", "--keys", case / "keys")
    code, out, _ = run(*arguments)
    assert code == 3
    assert out.startswith("LOG AUDIT inconclusive: all: no drawn bits")
    records = [json.loads(line) for line in (case / "served.jsonl").read_text().splitlines()]
    with LogWriter(case / "bits.jsonl") as log:
        for record in records:
            ids = np.array(record["token_ids"], dtype=np.uint32)
            bits = find_marked(world.keyring, record["labels"], ids)
            fields = {name: record[name] for name in ("response_id", "labels", "time")}
            log.write(**fields, marked=bool(bits.any()), token_ids=ids, drawn=bits)
    code, out, _ = run(*arguments[:2], case / "bits.jsonl", *arguments[3:])
    assert code == 0
    assert out.startswith("LOG AUDIT passed: every replica marks.")
    code, out, _ = run(*arguments[:2], case / "bits.jsonl", *arguments[3:], "--json")
    assert json.loads(out)["conclusion"] == "passed"


def test_a_label_without_a_key_is_said_when_the_index_is_built(run, case):
    lines = (case / "served.jsonl").read_text().replace('"week":"W2"', '"week":"w2"')
    (case / "odd.jsonl").write_text(lines)
    code, _, err = run(
        "index", "build", case / "odd.jsonl", "--keys", case / "keys", "-o", case / "i"
    )
    assert code == 0
    lost = lines.count('"week":"w2"')
    said = f"Of 200 marked responses so many have no label whose value has a key: week {lost}."
    assert said in " ".join(err.split())


def test_weeks_are_indexed_once_and_added_up(run, tmp_path):
    lines = [
        {"response_id": f"r{i}", "marked": True, "labels": {"week": "2026-W17"},
         "token_ids": [7 + (i * 31 + j * j) % 900 for j in range(40)], "finish": "length"}
        for i in range(60)
    ]  # fmt: skip
    keys = tmp_path / "keys"
    shutil.copytree(FIXTURES / "keys", keys)
    (keys / "master.key").chmod(0o600)
    for name, part in (("a", lines[:20]), ("b", lines[20:]), ("all", lines)):
        log = tmp_path / f"{name}.jsonl"
        log.write_text("".join(json.dumps(one) + "\n" for one in part))
        assert run("index", "build", log, "--keys", keys, "-o", tmp_path / name)[0] == 0
    (keys / "master.key").unlink()  # no secret is needed
    parts, merged = (tmp_path / "a", tmp_path / "b"), tmp_path / "merged"
    assert run("index", "merge", *parts, "--keys", keys, "-o", merged)[0] == 0
    told = [
        json.loads(run("index", "info", one, "--json")[1]) for one in (tmp_path / "all", merged)
    ]
    assert told[0]["content_sha256"] == told[1]["content_sha256"]
    for words, expected in (((*parts, "-o", merged), 74), ((parts[0], "-o", tmp_path / "x"), 2),
                            ((parts[0], parts[0], "-o", tmp_path / "x"), 65)):  # fmt: skip
        code, _, err = run("index", "merge", *words, "--keys", keys)
        assert (code, err.count("\n")) == (expected, 1), err
