"""What README and docs show is what the program does."""

import io
import json
import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from contextlib import redirect_stdout
from pathlib import Path

import pytest
import typer.main

from provenance.commands.app import app

ROOT = Path(__file__).parents[1]
DOCUMENTS = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "SECURITY.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
FIXTURES = ROOT / "fixtures"


def _blocks(path: Path, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", path.read_text(), re.MULTILINE | re.DOTALL)


def _commands() -> list[tuple[str, list[str]]]:
    return [
        (path.name, shlex.split(line, comments=True)[1:])
        for path in DOCUMENTS
        for block in _blocks(path, "sh")
        for line in block.splitlines()
        if line.startswith("provenance ")
    ]


@pytest.mark.parametrize(("place", "words"), _commands(), ids=lambda value: str(value)[:60])
def test_documented_commands_and_options_exist(place, words):
    command = typer.main.get_command(app)
    while hasattr(command, "commands") and words and words[0] in command.commands:
        command, words = command.commands[words[0]], words[1:]
    is_group = hasattr(command, "commands") and not command.invoke_without_command
    assert not is_group, f"{place}: {words}"
    options = {name for parameter in command.params for name in parameter.opts}
    used = {word for word in words if word.startswith("-") and word != "-"}
    assert used <= options


def test_every_command_has_help_and_is_in_the_readme():
    text = (ROOT / "README.md").read_text()
    root = typer.main.get_command(app)
    for name, command in root.commands.items():
        assert command.help
        assert f"provenance {name}" in text or f"make {name}" in text
        for sub in getattr(command, "commands", {}).values():
            assert sub.help


def test_the_links_of_the_documents_lead_somewhere():
    for path in DOCUMENTS:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", path.read_text()):
            assert (path.parent / target).exists(), f"{path}: {target}"


def test_the_coin_of_the_docs_is_recomputed_with_stock_software():
    (block,) = _blocks(ROOT / "docs/how-it-works.md", "python")
    printed = io.StringIO()
    with redirect_stdout(printed):
        exec(compile(block, "how-it-works.md", "exec"), {})
    assert printed.getvalue().strip() == block.rsplit("# ", 1)[1].strip()


def test_the_first_example_of_the_readme_runs_as_printed(tmp_path):
    """Its keys are copied, since git does not keep their mode; its folders are the test's."""
    block = _blocks(ROOT / "README.md", "python")[0]
    shutil.copytree(FIXTURES / "keys", tmp_path / "keys")
    (tmp_path / "keys/master.key").chmod(0o600)
    block = block.replace("fixtures/keys", str(tmp_path / "keys"))
    block = block.replace("/tmp/provenance", str(tmp_path / "provenance"))
    done = subprocess.run(
        [sys.executable, "-c", block], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("EVIDENCE: consistent with training on marked responses")
    assert done.stdout.rstrip().endswith("False")
    assert done.stderr == ""


TWICE = """
import sys
sys.modules['torch'] = sys.modules['transformers'] = None
import provenance as pv
story = pv.tell_story(sys.argv[1])
pv.tell_story = lambda folder: story  # it takes a minute: both commands say the same one
from provenance.commands.app import main
for more in ([], ['--json']):
    sys.argv = ['provenance', 'demo', *more]
    try:
        main()
    except SystemExit as stopped:
        assert not stopped.code
    print(chr(12), flush=True)
"""


@pytest.fixture(scope="module")
def demo():
    """What `demo` and `demo --json` print in a process that forbids torch and transformers.

    (words, document, seconds of the processor).
    """
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", TWICE, str(FIXTURES)],
        capture_output=True,
        text=True,
        check=False,
        cwd="/",
        env={**os.environ, "COLUMNS": "100", "TERM": "dumb"},
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    words, document, _ = done.stdout.split(chr(12))
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return words, json.loads(document), seconds


def test_the_demo_finds_the_guilty_and_nobody_else(demo):
    _, document, seconds = demo
    assert seconds < 120  # of the processor; 60 on a quiet machine
    suspects = {one["name"]: one for one in document["suspects"]}
    assert len(suspects) >= 4
    for one in suspects.values():
        assert set(one) == {
            "name",
            "trained_on_marked",
            "log10_p",
            "controls_passed",
            "attributed",
        }
        assert one["controls_passed"] is True
        if one["trained_on_marked"]:
            assert one["log10_p"] < -4
        else:
            assert one["log10_p"] > -3
            assert one["attributed"] == {}
    assert suspects["student-all"]["log10_p"] < -12
    assert suspects["student-code"]["attributed"]["capability"] == ["code"]
    weeks = suspects["student-code"]["attributed"].get("week", [])
    assert set(weeks) <= {"2026-W17", "2026-W18", "2026-W19"}


def test_the_readme_shows_what_the_demo_prints(demo):
    printed = [line.rstrip() for line in demo[0].splitlines() if line.strip()]
    shown = [
        line
        for block in _blocks(ROOT / "README.md", "text")
        for line in block.splitlines()
        if line.strip()
    ]
    assert [line for line in shown if line in printed] == shown
    assert len(shown) >= 6


def test_the_fixtures_are_small_and_hold_no_other_secret():
    size = sum(path.stat().st_size for path in FIXTURES.rglob("*") if path.is_file())
    assert size < 20_000_000
    assert {path.name for path in (FIXTURES / "keys").iterdir() if path.name != ".lock"} == {
        "keyring.json",
        "master.key",
        "tokenizer.json",
    }


def test_the_citation_names_this_version():
    (stated,) = re.findall(r"^version: (.+)$", (ROOT / "CITATION.cff").read_text(), re.MULTILINE)
    (own,) = re.findall(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert stated == own
