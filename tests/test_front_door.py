"""The public library: README's examples, guards at the door, types, and what may be imported."""

import logging
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import provenance as pv

ROOT = Path(__file__).parents[1]
HEAVY = (
    *("numpy", "scipy", "numba", "pyarrow", "duckdb", "torch", "transformers", "tokenizers"),
    *("matplotlib", "jinja2", "cryptography", "rich", "typer"),
)


def _one_line(error):
    text = str(error)
    assert "\n" not in text
    assert text.endswith(".") or text.endswith(")")
    return text


@pytest.mark.parametrize("given", [None, "", 3, b"keys", ["keys"], {"a": 1}])
def test_a_keyring_must_be_a_folder(given):
    with pytest.raises(pv.ProvenanceError) as caught:
        pv.open_keyring(given)
    assert "must be a path" in _one_line(caught.value)


@pytest.mark.parametrize("given", [None, 3, object(), "public"])
def test_a_locked_keyring_and_no_keyring_are_refused_in_one_line(given, keyring, tmp_path):
    wrong = keyring.public if given == "public" else given
    calls = [
        lambda: pv.open_case(wrong, tmp_path),
        lambda: pv.build_index(tmp_path, tmp_path / "index", wrong),
        lambda: pv.detect("text", wrong),
        lambda: pv.detect_mark(np.arange(9, dtype=np.uint32), wrong),
    ]
    for call in calls:
        with pytest.raises(ValueError, match=r"keyring must be|must be unlocked") as caught:
            call()
        _one_line(caught.value)


@pytest.mark.parametrize(
    "ids", [[5, 1, 7] * 40, np.array([5, 1, 7] * 40), np.array([5, 1, 7] * 40, dtype=np.int32)]
)
def test_any_integers_are_token_ids(ids, keyring):
    expected = pv.detect_mark(np.array([5, 1, 7] * 40, dtype=np.uint32), keyring)
    assert pv.detect(ids, keyring) == expected
    assert pv.detect_mark(ids, keyring) == expected


@pytest.mark.parametrize(
    "ids", [[-1, 2], [2**33], [1 << 70], [0.5, 1.0], [[1, 2]], {"a": 1}, [None], 7, b"ab", "text"]
)
def test_what_is_not_token_ids_is_refused_in_one_line(ids, keyring):
    with pytest.raises(ValueError, match="token ids must be") as caught:
        pv.detect_mark(ids, keyring)
    _one_line(caught.value)


def test_files_may_be_a_path_or_several(keyring, tmp_path):
    path = tmp_path / "outputs.jsonl"
    path.write_text('{"prompt": "a", "output": "some words"}\n')
    tokenizer = pv.load_tokenizer(keyring.public.tokenizer_copy, keyring.public)
    read = [
        pv.observe(given, tokenizer, keyring.public).sha256
        for given in (path, str(path), [path], (str(path),))
    ]
    assert all(one == read[0] for one in read)
    for wrong in (None, 3, b"x", [], [3], {"a": 1}):
        with pytest.raises(ValueError, match="outputs must be") as caught:
            pv.observe(wrong, tokenizer, keyring.public)
        _one_line(caught.value)


def test_importing_the_package_imports_nothing_heavy():
    code = f"import sys, provenance; print([m for m in {HEAVY!r} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_help_imports_nothing_heavy_but_its_own_parser():
    code = (
        "import sys\nsys.argv = ['provenance', '--help']\n"
        "from provenance.__main__ import main\n"
        "try:\n    main()\nexcept SystemExit:\n    pass\n"
        f"print([m for m in {HEAVY!r} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert set(eval(done.stdout.splitlines()[-1])) <= {"rich", "typer"}


def test_the_version_is_the_same_everywhere(tmp_path):
    shown = [
        subprocess.run([*command, "--version"], capture_output=True, text=True, check=True).stdout
        for command in ([sys.executable, "-m", "provenance"], [sys.executable, ROOT / "cli.py"])
    ]
    assert set(shown) == {f"provenance {pv.__version__}\n"}


def test_the_library_logs_to_its_own_logger_and_is_silent_by_default(capfd):
    logging.getLogger("provenance.case").warning("nobody configured a handler")
    assert capfd.readouterr().err == ""


def test_public_names_have_types(tmp_path):
    """mypy sees the real types of the lazy names, and refuses one that is not there."""
    code = (
        "from typing import assert_type\n"
        "from pathlib import Path\n"
        "import provenance as pv\n"
        "from provenance.keys.keyring import UnlockedKeyring\n"
        "from provenance.check.verdict import Verdict\n"
        "assert_type(pv.open_keyring('keys'), UnlockedKeyring)\n"
        "def check(case: pv.Case) -> None:\n"
        "    assert_type(case.check('outputs.jsonl'), Verdict)\n"
        "    assert_type(pv.detect('text', pv.open_keyring('keys')).marked, bool)\n"
        "assert_type(pv.__version__, str)\n"
    )
    (tmp_path / "right.py").write_text(code)
    (tmp_path / "wrong.py").write_text("import provenance as pv\npv.no_such_name\n")
    files = [str(tmp_path / name) for name in ("right.py", "wrong.py")]
    # with the settings of the repository, so that what `make lint` keeps is used again
    command = [sys.executable, "-m", "mypy", "--config-file", "pyproject.toml", *files]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    errors = [line for line in done.stdout.splitlines() if ": error: " in line]
    assert [Path(line.split(":")[0]).name for line in errors] == ["wrong.py"], done.stdout
    assert "no_such_name" in errors[0]


def test_the_list_of_types_is_the_list_of_names():
    text = (ROOT / "provenance/__init__.py").read_text()
    typed = dict(re.findall(r"from (provenance[\w.]*) import (\w+) as \2", text))
    names = {name for _, name in re.findall(r"from (provenance[\w.]*) import (\w+) as \2", text)}
    assert names | {"__version__"} == set(pv.__all__)
    assert typed
