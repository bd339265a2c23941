"""The house: a module imports only from rows above it; optional stacks stay where they belong."""

import ast
from pathlib import Path

import pytest

import provenance

ROOT = Path(provenance.__file__).parent

# From the ground up. A module may import from rows above its own in this list, and inside a
# package from anywhere in the package.
ROWS = [
    "errors",
    "printable",
    "files",
    "engine",
    "kernels",
    "lines",
    "coins",
    "distinct",
    "contexts",
    "stats",
    "keys",
    "tokenizer",
    "families",
    "schemes",
    "marks",
    "detect",
    "served",
    "embed",
    "suspect",
    "inputs",
    "weigh",
    "scoring",
    "power",
    "verdict",
    "reservations",
    "plan",
    "twins",
    "controls",
    "selection",
    "conclusion",
    "check",
    "trajectory",
    "sequential",
    "correlations",
    "suspects",
    "evidence",
    "commands",
    "entry",
    "__main__",
]
VLLM = {"embed/vllm_v1.py", "embed/vllm_v2.py"}
TORCH = {
    "embed/torch_coins.py",
    "embed/torch_step.py",
    "embed/triton_coins.py",
    "embed/loading.py",
    "embed/transformers.py",
    "suspect/language_model.py",
    *VLLM,
}
OPTIONAL = {
    "torch": TORCH,
    "triton": {"embed/triton_coins.py"},
    "vllm": VLLM,
    "openai": set(),
    "pyspark": set(),
}
OPTIONAL["rfc3161_client"] = {"evidence/timestamp.py"}
TRANSFORMERS = {*TORCH, "commands/generate.py"}
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


def _row(path: Path) -> int:
    return ROWS.index(path.relative_to(ROOT).parts[0].removesuffix(".py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_upwards_only(path):
    if path == ROOT / "__init__.py":
        assert not any(name.startswith("provenance.") for name in _imports(path))
        return
    for name in _imports(path):
        parts = name.split(".")
        if parts[0] != "provenance":
            continue
        assert len(parts) > 1, f"{path} imports the package itself"
        row, own = ROWS.index(parts[1]), _row(path)
        assert row < own or (row == own and (ROOT / parts[1]).is_dir()), f"{path} imports {name}"


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_optional_stacks_are_imported_only_by_their_adapter(path):
    relative = str(path.relative_to(ROOT))
    for name in _imports(path):
        stack = name.split(".")[0]
        assert relative in OPTIONAL.get(stack, {relative}), f"{relative} imports {stack}"
        assert stack != "transformers" or relative in TRANSFORMERS


def test_coins_are_drawn_in_one_room_only():
    """Whoever needs randomness of a token goes through `coins` (or a Key, which does).

    `embed/torch_coins.py` and `embed/triton_coins.py` are the same function on an accelerator,
    tested to be bit-equal.
    """
    users = {
        str(path.relative_to(ROOT))
        for path in MODULES
        if "ChaCha20" in path.read_text() and path.name != "__init__.py"
    }
    assert users == {"coins.py", "embed/torch_coins.py", "embed/triton_coins.py"}


def test_weights_cannot_see_coins():
    """The module of the weight rules imports nothing that could open a key or score a word."""
    names = {name for name in _imports(ROOT / "weigh.py") if name.startswith("provenance")}
    assert names == {"provenance.errors"}


def test_no_function_is_longer_than_sixty_lines_and_no_file_than_four_hundred():
    for path in MODULES:
        text = path.read_text()
        assert text.count("\n") <= 400, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                body = node.body[1:] if ast.get_docstring(node) else node.body
                if body:
                    assert body[-1].end_lineno - body[0].lineno < 60, f"{path}: {node.name}"
