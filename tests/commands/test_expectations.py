"""What people expect of a command line: short options, a file of defaults, quiet, no surprises."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

import provenance as pv
from provenance.errors import DataError

FIXTURES = Path(__file__).parents[2] / "fixtures"


@pytest.fixture
def ring(tmp_path):
    shutil.copytree(FIXTURES / "keys", tmp_path / "ring")
    (tmp_path / "ring/master.key").chmod(0o600)
    return tmp_path / "ring"


@pytest.mark.parametrize("command", [[], ["keys"], ["keys", "new"], ["check"], ["index", "build"]])
def test_every_command_knows_the_short_form_of_help(run, command):
    code, short, _ = run(*command, "-h")
    assert code == 0
    assert short == run(*command, "--help")[1]
    assert all(len(line) <= 80 for line in short.splitlines())


def test_a_shell_gets_its_completion(monkeypatch):
    environment = {
        **os.environ, "_PROVENANCE_COMPLETE": "complete_bash",
        "COMP_WORDS": "provenance ke", "COMP_CWORD": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "provenance"]
    monkeypatch.setattr(sys, "argv", command)
    found = subprocess.run(
        [str(Path(sys.executable).with_name("provenance"))],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "keys" in found.stdout.split()


def test_quiet_says_results_and_errors_only(run, ring):
    code, out, err = run("-q", "keys", "add-value", ring, "--slot", "week", "--value", "new")
    assert (code, out, err) == (0, "", "")
    code, _, err = run("-q", "keys", "show", ring / "missing")
    assert code == 74
    assert err.startswith("provenance: ")
    assert "Added" in run("keys", "add-value", ring, "--slot", "week", "--value", "newer")[2]


@pytest.mark.parametrize("value", ["[/x]", "[red]alarm", "a]b[", "\\[b]"])
def test_other_peoples_strings_are_never_markup(run, ring, value):
    code, _, err = run("keys", "add-value", ring, "--slot", "week", "--value", value)
    assert code == 0
    assert f"week={value}" in err
    assert value in run("keys", "show", ring)[1]


@pytest.mark.parametrize("variable", ["PROVENANCE_KEY_FILE", "PROVENANCE_KEY_CMD"])
def test_a_secret_in_the_place_of_a_name_is_never_shown(run, ring, monkeypatch, variable):
    secret = "00112233445566778899aabbccddeeff" * 2
    monkeypatch.setenv(variable, secret)
    code, out, err = run("keys", "add-value", ring, "--slot", "week", "--value", "y")
    assert code == 74
    assert variable in err
    assert secret[:16] not in out + err


@pytest.mark.parametrize("command", [["detect"], ["index", "build", "-o", "out"], ["check"]])
def test_a_pipe_is_refused_and_never_waited_for(run, ring, tmp_path, command):
    pipe = tmp_path / "pipe.jsonl"
    os.mkfifo(pipe)
    more = ["--index", tmp_path / "none"] if command == ["check"] else []
    code, _, err = run(*command, pipe, "--keys", ring, *more)
    assert code == 74
    assert len(err.splitlines()) == 1


def test_file_names_of_any_bytes_are_one_printable_line(run, ring, tmp_path):
    name = os.fsdecode(b"bad\xff\x1b[31m.jsonl")
    (tmp_path / name).write_bytes(b"{}\n")
    code, _, err = run("detect", tmp_path / name, "--keys", ring)
    assert code == 65
    assert len(err.splitlines()) == 1
    assert "\x1b" not in err


# --- provenance.toml ------------------------------------------------------------------------------


def test_defaults_are_found_upwards_and_options_win(run, ring, tmp_path, monkeypatch):
    (tmp_path / "provenance.toml").write_text('keys = "ring"\nindex = "index"\n')
    (tmp_path / "below/deep").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "below/deep")
    assert run("index", "build", FIXTURES / "served.parquet", "-o", tmp_path / "index")[0] == 0
    outputs = FIXTURES / "suspects/base.jsonl.gz"
    code, told, _ = run("check", outputs)
    named = run("check", outputs, "--keys", ring, "--index", tmp_path / "index")
    assert (code, told) == named[:2]
    assert code == 0
    code, _, err = run("check", outputs, "--keys", tmp_path / "other")
    assert code == 74
    assert "other" in err


def test_a_foreign_mark_takes_no_keyring_from_the_file(run, ring, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.jsonl").write_text('{"text": "a few words of nobody in particular"}\n')
    asked = ("detect", "text.jsonl", "--scheme", "no-such-mark")
    without = run(*asked)
    (tmp_path / "provenance.toml").write_text('keys = "ring"\n')
    assert run(*asked) == without
    assert "--scheme must come with" in without[2]


def test_paths_of_defaults_are_relative_to_their_file_and_words_are_no_paths(tmp_path):
    (tmp_path / "a").mkdir()
    assert pv.read_defaults(tmp_path) == {} or "provenance.toml" in str(tmp_path)
    (tmp_path / "provenance.toml").write_text(
        'keys = "k"\nreference = "ngram"\ncache = "/absolute/c"\n'
    )
    assert pv.read_defaults(tmp_path / "a") == {
        "keys": str(tmp_path / "k"),
        "reference": "ngram",
        "cache": "/absolute/c",
    }
    (tmp_path / "a/provenance.toml").write_text('reference = "models/base"\n')
    assert pv.read_defaults(tmp_path / "a") == {"reference": str(tmp_path / "a/models/base")}


@pytest.mark.parametrize(
    "content", [b"keys = 3\n", b'secret = "x"\n', b"keys = \n", b"\xff\xfe", b"[keys]\na = 1\n"]
)
def test_a_damaged_file_of_defaults_is_one_line(run, tmp_path, monkeypatch, content):
    (tmp_path / "provenance.toml").write_bytes(content)
    with pytest.raises(DataError, match=r"provenance\.toml"):
        pv.read_defaults(tmp_path)
    monkeypatch.chdir(tmp_path)
    code, _, err = run("keys", "show", "anywhere")
    assert code == 65
    assert len(err.splitlines()) == 1


# --- pipes ----------------------------------------------------------------------------------------


def _pipe(content, *command, **more):
    arguments = [sys.executable, "-m", "provenance", *map(str, command)]
    return subprocess.run(
        arguments, input=content, capture_output=True, check=False, env={**os.environ, **more}
    )


def test_outputs_may_come_from_a_pipe(tmp_path):
    file = tmp_path / "stdin.jsonl"
    file.write_text('{"prompt": "hello", "output": "one two three"}\n' * 3)
    piped = _pipe(file.read_bytes(), "outputs", "show", "-", "--json")
    named = _pipe(b"", "outputs", "show", file, "--json")
    assert piped.returncode == named.returncode == 0
    told = re.sub(rb'"/[^"]*stdin\.jsonl', b'"' + os.fsencode(file), piped.stdout)
    assert told == named.stdout
    assert not list(Path(tempfile.gettempdir()).glob("provenance-*/stdin.jsonl"))
    damaged = _pipe(b"{", "outputs", "show", "-")
    assert damaged.returncode == 65
    assert len(damaged.stderr.splitlines()) == 1


def test_lines_are_broken_for_a_terminal_only(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    file = Path("outputs.jsonl")  # a path is not broken, so a short one
    file.write_text(json.dumps({"prompt": "long " * 40, "output": "answer " * 40}) + "\n")
    whole = _pipe(b"", "outputs", "show", file, COLUMNS="").stdout.decode()
    broken = _pipe(b"", "outputs", "show", file, COLUMNS="60").stdout.decode()
    assert max(map(len, whole.splitlines())) > 120
    assert max(map(len, broken.splitlines())) <= 60
    assert whole.split() == broken.split()
