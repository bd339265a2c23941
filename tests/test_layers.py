"""The house: rooms, floors and halves; optional stacks stay where they belong."""

import ast
import re
import sys
from pathlib import Path

import pytest
import typer

import provenance
from provenance.commands.app import app

ROOT = Path(provenance.__file__).parent

# The floors, from the ground up. A module may import from floors below its own, and inside its own
# room from anywhere in the room. Rooms of one floor never import each other.
FLOORS = [
    {"errors"},
    {"storage"},
    {"stats", "coins"},
    {"keys"},
    {"marks"},
    {"served"},
    {"embed", "suspect"},
    {"check"},
    {"evidence"},
    {"case"},
    {"commands"},
]
"""`__main__` stands on the roof: it must load before anything of ours that could be broken."""
FLOOR = {room: number for number, rooms in enumerate([*FLOORS, {"__main__"}]) for room in rooms}
MARKING = {"embed"}
TESTING = {"suspect", "check", "evidence", "case"}
VLLM = {"embed/vllm/v1.py", "embed/vllm/v2.py"}
TORCH = {
    "embed/device/torch_coins.py",
    "embed/device/torch_batch.py",
    "embed/device/triton_coins.py",
    "served/model.py",
    "embed/transformers.py",
    "embed/transformers_config.py",
    "suspect/models/language_model.py",
    *VLLM,
}
OPTIONAL = {
    "torch": TORCH,
    "triton": {"embed/device/triton_coins.py"},
    "vllm": VLLM,
    "openai": {"suspect/collect/client.py"},
    "pyspark": {"served/spark.py"},
}
OPTIONAL["rfc3161_client"] = {"evidence/timestamp.py"}
OPTIONAL["prometheus_client"] = {"embed/metrics.py"}
TRANSFORMERS = TORCH
MODULES = sorted(path for path in ROOT.rglob("*.py"))


def _imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert node.level == 0, f"{path}: relative import"
            if node.module == "provenance":
                found |= {f"provenance.{alias.name}" for alias in node.names}
            else:
                found.add(node.module)
    return found


def _room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def _rooms_used(path: Path) -> set[str]:
    names = {tuple(name.split(".")) for name in _imports(path)}
    used = {name[1:2] for name in names if name[0] == "provenance"}
    assert () not in used or _room(path) == "commands", f"{path} imports the package itself"
    return {name[0] for name in used if name}


def test_the_house_has_at_most_twelve_rooms_and_ten_floors():
    entries = {path.name.removesuffix(".py") for path in ROOT.iterdir() if path.suffix == ".py"}
    assert entries == {"__init__", "__main__", "errors"}
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert rooms | {"errors", "__main__"} == set(FLOOR)
    assert len(rooms) <= 12
    assert len(FLOORS) <= 1 + 10  # errors.py is the ground that the rooms stand on


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_down_only(path):
    if path == ROOT / "__init__.py":
        return
    own = _room(path)
    for room in _rooms_used(path):
        assert room == own or FLOOR[room] < FLOOR[own], f"{path} imports {room}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_marking_and_testing_never_import_each_other(path):
    own = _room(path)
    for half, other in ((MARKING, TESTING), (TESTING, MARKING)):
        if own in half:
            assert not _rooms_used(path) & other


def test_commands_use_the_public_library_only():
    """Parse, call a public name, print: 55 lines a command (20 had 1,157 when this was a law)."""
    allowed = {"provenance", "provenance.errors", "typer", "rich"} | set(sys.stdlib_module_names)
    lines = 0
    for path in (ROOT / "commands").glob("*.py"):
        lines += path.read_text().count("\n")
        for name in _imports(path):
            top = name if name.startswith("provenance") else name.split(".")[0]
            assert top in allowed or top.startswith("provenance.commands"), f"{path}: {name}"
        assert "import_module" not in path.read_text(), path
        used = set(re.findall(r"\bpv\.(\w+)", path.read_text()))
        assert used <= set(provenance.__all__), path
    assert lines <= 55 * _count_commands(typer.main.get_command(app))


def _count_commands(command):
    below = getattr(command, "commands", None)
    if below is None:
        return 1
    return command.invoke_without_command + sum(map(_count_commands, below.values()))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_stacks_are_imported_only_by_their_adapter(path):
    relative = str(path.relative_to(ROOT))
    for name in _imports(path):
        stack = name.split(".")[0]
        assert relative in OPTIONAL.get(stack, {relative}), f"{relative} imports {stack}"
        assert stack != "transformers" or relative in TRANSFORMERS


def test_coins_are_drawn_in_one_room_only():
    """Whoever needs randomness of a token goes through `coins` (or a Key, which does).

    `torch_coins.py` and `triton_coins.py` of `embed/device/` are the same function on an
    accelerator, tested to be bit-equal.
    """
    users = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if "ChaCha20" in path.read_text() and path.name != "__init__.py"
    }
    device = {"embed/device/torch_coins.py", "embed/device/triton_coins.py"}
    assert users == {"coins/words.py", *device}


def test_weights_cannot_see_coins():
    """The module of the weight rules imports nothing that could open a key or score a word."""
    names = {name for name in _imports(ROOT / "check/weigh.py") if name.startswith("provenance")}
    assert names == {"provenance.errors"}


def test_tests_need_no_benchmark():
    """Benchmarks may use `tests.world`; never the other way round."""
    root = ROOT.parent
    for path in [root / "conftest.py", *sorted((root / "tests").rglob("*.py"))]:
        assert not {name for name in _imports(path) if name.split(".")[0] == "benchmarks"}, path


def test_no_function_is_longer_than_sixty_lines_and_no_file_than_four_hundred():
    for path in MODULES:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                length = node.end_lineno - node.lineno + 1
                if ast.get_docstring(node):
                    length -= node.body[0].end_lineno - node.body[0].lineno + 1
                assert length <= 60, f"{path}: {node.name}"
