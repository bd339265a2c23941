"""Exit codes from outside, in a child process: nothing but evidence (or a failed step) is 1."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from tests.world.synthetic import innocent, learn, write_outputs

ROOT = Path(__file__).parents[2]
PROGRAM = (sys.executable, "-m", "provenance")
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}


@dataclass(frozen=True)
class Place:
    """A world with suspects of every kind, a bundle and a plan."""

    folder: Path
    world: Path

    def check(self, name: str, *more: object) -> list[str]:
        keyed = ("--keys", self.world / "keys", "--index", self.world / "index")
        return list(map(str, ("check", self.folder / name, *keyed, "--placebo-keys", "50", *more)))


def _call(arguments, **options):
    options = {"capture_output": True, "check": False, "env": ENVIRONMENT} | options
    return subprocess.run([*PROGRAM, *map(str, arguments)], **options)


@pytest.fixture(scope="module")
def place(synthetic_world, tmp_path_factory):
    folder, rng = tmp_path_factory.mktemp("exit"), np.random.default_rng(5)
    write_outputs(folder / "guilty.jsonl", learn(synthetic_world, rng, 200, 80))
    write_outputs(folder / "innocent.jsonl", *innocent("ordinary", synthetic_world, rng, 600))
    write_outputs(folder / "few.jsonl", *innocent("ordinary", synthetic_world, rng))
    (folder / "blank.txt").write_text("w1")
    made = Place(folder, synthetic_world.folder)
    done = _call(made.check("guilty.jsonl", "-o", folder / "bundle"))
    assert done.returncode == 1, done.stderr
    plan = ("plan", "new", folder / "plan.json", "--keys", made.world / "keys", "--suspect", "x")
    done = _call([*plan, "--index", made.world / "index", "--outputs", 200])
    assert done.returncode == 0, done.stderr
    return made


def _commands(place: Place) -> dict[str, tuple[list[object], int]]:
    """Arguments of every command that needs no model, and the code that it has."""
    keys, index = place.world / "keys", place.world / "index"
    keyed, bundle = ("--keys", keys), place.folder / "bundle"
    enough = ["plan", "enough", place.folder / "few.jsonl", *keyed, "--index", index]
    return {
        "help": (["--help"], 0),
        "nothing": ([], 2),
        "usage": (["check", "--no-such-option"], 2),
        "keys show": (["keys", "show", keys], 0),
        "keys show --json": (["keys", "show", keys, "--json"], 0),
        "keys disclose": (["keys", "disclose", keys, "--slot", "global"], 0),
        "index info": (["index", "info", index], 0),
        "plan show": (["plan", "show", place.folder / "plan.json"], 0),
        "plan commit": (["plan", "commit", place.folder / "plan.json"], 0),
        "plan enough": ([*enough, "--shift", 0.1], 0),
        "check: evidence": (place.check("guilty.jsonl"), 1),
        "check: evidence, as json": (place.check("guilty.jsonl", "--json"), 1),
        "check: no evidence": (place.check("innocent.jsonl"), 0),
        "check: inconclusive": (place.check("few.jsonl"), 3),
        "check: missing": (place.check("missing.jsonl"), 74),
        "detect: not tested": (["detect", place.folder / "blank.txt", *keyed], 3),
        "suspects: evidence": (["suspects", bundle], 1),
        "verify: unsigned": (["verify", bundle, "--unsigned"], 0),
        "verify: fails": (["verify", bundle], 1),
    }


NAMES = [
    "help", "nothing", "usage", "keys show", "keys show --json", "keys disclose", "index info",
    "plan show", "plan commit", "plan enough", "check: evidence", "check: evidence, as json",
    "check: no evidence", "check: inconclusive", "check: missing", "detect: not tested",
    "suspects: evidence", "verify: unsigned", "verify: fails",
]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_reader_that_has_gone_changes_no_exit_code(place, name):
    """Both streams are pipes whose reading ends were closed before the start."""
    arguments, code = _commands(place)[name]
    ends = [os.pipe() for _ in range(2)]
    for reading, _ in ends:
        os.close(reading)
    try:
        done = _call(arguments, capture_output=False, stdout=ends[0][1], stderr=ends[1][1])
    finally:
        for _, writing in ends:
            os.close(writing)
    assert done.returncode == code


@pytest.mark.parametrize("name", ["help", "usage", "keys show --json", "check: no evidence"])
@pytest.mark.parametrize("closing", [">&-", "2>&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_streams_that_were_closed_before_the_start_change_no_exit_code(place, name, closing):
    arguments, code = _commands(place)[name]
    command = ["sh", "-c", f'exec "$@" {closing}', "sh", *PROGRAM, *map(str, arguments)]
    done = subprocess.run(command, env=ENVIRONMENT, check=False, capture_output=True)
    assert done.returncode == code


@pytest.mark.parametrize(
    ("name", "code"), [("innocent.jsonl", 0), ("guilty.jsonl", 1), ("few.jsonl", 3)]
)
def test_a_reader_that_leaves_after_the_first_line_stops_nothing(place, tmp_path, name, code):
    """`check ... | head -1`: the command finishes, and its files are whole."""
    arguments = place.check(name, "--json", "-o", tmp_path / "out")
    with subprocess.Popen(
        [*PROGRAM, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=ENVIRONMENT
    ) as child:
        assert child.stdout.readline() == b"{\n"
        child.stdout.close()
        words = child.stderr.read()
        assert child.wait() == code, words
    assert b"Traceback" not in words
    assert (tmp_path / "out/manifest.json").exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("name", ["help", "keys show --json", "check: evidence"])
def test_results_that_cannot_be_written_are_an_error(place, name):
    arguments, code = _commands(place)[name]
    with Path("/dev/full").open("wb") as full:
        done = _call(arguments, capture_output=False, stdout=full, stderr=subprocess.PIPE)
        assert done.returncode == 74
        (line,) = done.stderr.decode().splitlines()
        assert line.startswith("provenance: ")
        done = _call(arguments, capture_output=False, stdout=subprocess.DEVNULL, stderr=full)
        assert done.returncode == code


def test_another_encoding_of_the_terminal_changes_no_exit_code(place):
    text = (place.folder / "few.jsonl").read_bytes()
    name = "wörter-\udcff.jsonl"
    (place.folder / name).write_bytes(text)
    found = []
    for encoding in ("ascii", "utf-8", "latin-1"):
        environment = {**ENVIRONMENT, "PYTHONIOENCODING": encoding}
        done = _call(place.check(name, "--json"), env=environment)
        assert done.returncode == 3, done.stderr
        found.append(json.loads(done.stdout.decode(encoding)))
    assert found[0] == found[1] == found[2]


def test_an_interruption_exits_130_and_never_1():
    code = (
        "import sys, provenance.commands.app as app\n"
        "def stop(): raise KeyboardInterrupt\n"
        "app.app.command('stop')(stop)\n"
        "sys.argv = ['provenance', 'stop']\n"
        "app.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENVIRONMENT, check=False)
    assert done.returncode == 130


@pytest.fixture
def copied(tmp_path):
    """A copy of the package, for a test to break; returns the environment that runs it."""
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ROOT / "provenance", tmp_path / "lib/provenance", ignore=ignored)
    return {**ENVIRONMENT, "PYTHONPATH": str(tmp_path / "lib")}


BREAKS = {
    "a dependency is missing": ("coins/words.py", "import no_such_package\n"),
    "a dependency is broken": ("coins/words.py", "raise OSError('libfoo.so: wrong ELF class')\n"),
    "a syntax error": ("keys/schedule.py", "def ( :\n"),
    "an exit": ("keys/schedule.py", "raise SystemExit(1)\n"),
    "the app itself": ("commands/app.py", "1 / 0\n"),
    "a long message": ("coins/words.py", "raise ImportError('line one\\nline two')\n"),
}


@pytest.mark.parametrize("name", BREAKS)
@pytest.mark.parametrize("entry", ["module", "file", "script"])
def test_a_program_that_cannot_be_loaded_exits_70_in_one_line(copied, tmp_path, name, entry):
    file, line = BREAKS[name]
    path = tmp_path / "lib/provenance" / file
    path.write_text(line + path.read_text())
    script = "import sys; from provenance.__main__ import main; sys.exit(main())"
    command = {
        "module": ["-m", "provenance"],
        "file": [str(ROOT / "cli.py")],
        "script": ["-c", script],
    }[entry]
    if entry == "file":  # as in a clone: beside its package
        shutil.copy(ROOT / "cli.py", tmp_path / "lib/cli.py")
        command = [str(tmp_path / "lib/cli.py")]
    done = subprocess.run(
        [sys.executable, *command, "keys", "show", "nowhere"],
        env=copied,
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 70, done.stderr
    (said,) = done.stderr.splitlines()
    assert said.startswith("provenance: ")


def test_the_installed_script_starts_where_the_guard_stands():
    text = (ROOT / "pyproject.toml").read_text()
    assert 'provenance = "provenance.__main__:main"' in text
    source = (ROOT / "provenance/__main__.py").read_text()
    imports = [line for line in source.splitlines() if line.startswith(("import", "from"))]
    assert imports == [
        "from __future__ import annotations",
        "import sys",
        "from typing import NoReturn",
    ]


def test_without_a_place_for_a_cache_everything_works(copied, tmp_path, place):
    """A read-only package, no home that could be written: kernels are compiled anew."""
    lib = tmp_path / "lib"
    drop: list[str] = []
    if os.getuid() == 0:  # root writes anywhere, unless it gives that right up
        if shutil.which("setpriv") is None:
            pytest.skip("needs setpriv, or a user that is not root")
        drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
    for path in [lib, *lib.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    environment = {k: v for k, v in copied.items() if k != "NUMBA_CACHE_DIR"}
    environment |= {"HOME": "/proc/none", "XDG_CACHE_HOME": "/proc/none"}
    try:
        probe = [*drop, sys.executable, "-c", f"open({str(lib / 'probe')!r}, 'w')"]
        done = subprocess.run(probe, env=environment, check=False, capture_output=True)
        assert done.returncode == 1, "the copy must not be writable"
        told = []
        for arguments in (["--help"], place.check("few.jsonl", "-o", tmp_path / "out")):
            command = [*drop, *PROGRAM, *map(str, arguments)]
            done = subprocess.run(command, env=environment, check=False, capture_output=True)
            told.append((done.returncode, done.stderr))
    finally:
        for path in [lib, *lib.rglob("*")]:
            path.chmod(0o755)
    assert [code for code, _ in told] == [0, 3], told
    assert b"Traceback" not in told[1][1]
    assert b"atplotlib" not in told[1][1]
    assert not list(lib.rglob("*.nbi"))


def test_no_module_decides_about_the_cache_by_itself():
    for path in (ROOT / "provenance").rglob("*.py"):
        if path.name != "kernels.py":
            assert "cache=True" not in path.read_text(), path
