"""Would the tests notice? Changed lines of the modules on which a verdict rests, sampled.

python -m benchmarks.gates.mutants [--count 12] [--seed 0] [--modules NAME...] [--minutes M]

A mutant is one change of one expression: a comparison, an operator, a constant, a condition, a
returned value. It is killed if the module's own tests fail, or take ten times as long as without
it. Resumable: what was tried stands in `build/mutants.json`, and is not tried again.

Why not mutmut or cosmic-ray: both rewrite or import the tree in a way that meets numba kernels, the
entry points of this package and pytest's import mode importlib badly, and neither draws a sample of
given size by a seed. The operators are theirs; this is the hundred lines that are left.
"""

from __future__ import annotations

import argparse
import ast
import copy
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from benchmarks.gates.record import record

MODULES: Final = {
    "check/weigh": ["tests/check/test_weigh.py"],
    "check/score": ["tests/check/test_check.py"],
    "served/windows": ["tests/served/test_build.py", "tests/served/test_drawn.py"],
    "coins/contexts": ["tests/coins", "tests/served/test_build.py"],
    "stats/tails": ["tests/stats/test_tails.py", "tests/stats/test_corners.py"],
    "stats/families": ["tests/stats/test_families.py"],
    "evidence/verify/rebuild": [
        "tests/evidence/test_verify.py",
        "tests/evidence/test_must_fail.py",
    ],
    "keys/secrets": ["tests/keys"],
    "storage/files": ["tests/storage", "tests/gates/test_faults.py"],
}
"""Module and its own tests."""
EQUIVALENT: Final[dict[str, str]] = {}
"""Mutants that change nothing that could be observed, by their name, and why."""
_STORE: Final = Path("build/mutants.json")
_COMPARED: Final = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
_OPERATORS: Final = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult,
    ast.Div: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift,
    ast.RShift: ast.LShift, ast.Mod: ast.Mult,
}  # fmt: skip


def _mutate(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Changes of one node: what they are, and the node in its place."""
    other = copy.deepcopy(node)
    if isinstance(node, ast.Compare) and type(node.ops[0]) in _COMPARED:
        assert isinstance(other, ast.Compare)
        other.ops[0] = _COMPARED[type(node.ops[0])]()
        yield "comparison", other
    elif isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in _OPERATORS:
        assert isinstance(other, (ast.BinOp, ast.AugAssign))
        other.op = _OPERATORS[type(node.op)]()
        yield "operator", other
    elif isinstance(node, ast.BoolOp):
        assert isinstance(other, ast.BoolOp)
        other.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
        yield "and, or", other
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.Not, ast.USub, ast.Invert)):
        yield "sign or negation left out", node.operand
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float, bool):
        assert isinstance(other, ast.Constant)
        other.value = not node.value if isinstance(node.value, bool) else node.value + 1
        yield "constant", other
    elif isinstance(node, ast.If):
        assert isinstance(other, ast.If)
        other.test = ast.UnaryOp(ast.Not(), node.test)
        yield "condition turned round", other
    elif isinstance(node, ast.Return) and node.value is not None:
        yield "returns nothing", ast.Return(ast.Constant(None))


def list_mutants(text: str) -> list[tuple[str, str]]:
    """Name (line: what) and source of every mutant of a module; annotations and docstrings stay."""
    tree = ast.parse(text)
    found = []
    for place, node in enumerate(ast.walk(tree)):
        for what, changed in _mutate(node):
            mutant = ast.parse(text)
            target = next(n for i, n in enumerate(ast.walk(mutant)) if i == place)
            source = ast.unparse(ast.fix_missing_locations(_Put(target, changed).visit(mutant)))
            before = ast.unparse(node).split("\n")[0][:70]
            after = ast.unparse(ast.fix_missing_locations(changed)).split("\n")[0][:70]
            found.append((f"{getattr(node, 'lineno', 0)}: {what}: {before} -> {after}", source))
    return found


class _Put(ast.NodeTransformer):
    def __init__(self, target: ast.AST, changed: ast.AST) -> None:
        self.target, self.changed = target, changed

    def visit(self, node: ast.AST) -> Any:
        return self.changed if node is self.target else self.generic_visit(node)


def _run_tests(tree: Path, tests: list[str], seconds: float) -> tuple[bool, float]:
    """Whether they pass, and how long they took."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-n", "0", "-p", "no:cacheprovider"]
    begun = time.monotonic()
    environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(
            [*command, *tests], cwd=tree, env=environment, capture_output=True, timeout=seconds,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return False, seconds
    return done.returncode == 0, time.monotonic() - begun


def run(names: list[str], count: int, seed: int, minutes: float) -> dict[str, Any]:
    """Try what was not tried yet; all that is known."""
    store = json.loads(_STORE.read_text()) if _STORE.exists() else {}
    until = time.monotonic() + 60 * minutes
    with tempfile.TemporaryDirectory() as folder:
        tree = Path(folder) / "tree"
        ignore = shutil.ignore_patterns(".git", ".venv*", "build", "__pycache__", "results")
        shutil.copytree(Path.cwd(), tree, ignore=ignore)
        for name in names:
            path = tree / f"provenance/{name}.py"
            text = path.read_text()
            mutants = list_mutants(text)
            chosen = random.Random(f"{seed} {name}").sample(mutants, min(count, len(mutants)))
            known = store.setdefault(name, {})
            if all(label in known for label, _ in chosen):
                continue
            passed, seconds = _run_tests(tree, MODULES[name], 1800)
            if not passed:
                sys.exit(f"the tests of {name} fail without a mutant")
            for label, source in chosen:
                if label in known or time.monotonic() > until:
                    continue
                path.write_text(source)
                survives, _ = _run_tests(tree, MODULES[name], 10 * seconds + 30)
                path.write_text(text)
                known[label] = "survived" if survives else "killed"
                print(f"{name}: {label}: {known[label]}", flush=True)
                _STORE.parent.mkdir(exist_ok=True)
                _STORE.write_text(json.dumps(store, indent=1, sort_keys=True))
    return store


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--modules", nargs="*", default=list(MODULES))
    parser.add_argument("--minutes", type=float, default=600)
    asked = parser.parse_args()
    store = run(asked.modules, asked.count, asked.seed, asked.minutes)
    rows = {}
    for name, known in store.items():
        survived = [label for label, what in known.items() if what == "survived"]
        equivalent = {label: EQUIVALENT[label] for label in survived if label in EQUIVALENT}
        rows[name] = {
            "tried": len(known),
            "passed": len(known) - len(survived),
            "equivalent": equivalent,
            "survived": [label for label in survived if label not in equivalent],
        }
    tried = sum(row["tried"] - len(row["equivalent"]) for row in rows.values())
    killed = sum(row["passed"] for row in rows.values())
    found = {"tried": tried, "passed": killed, "seed": asked.seed, "modules": rows}
    record("mutants", "python -m benchmarks.gates.mutants", found)


if __name__ == "__main__":
    main()
