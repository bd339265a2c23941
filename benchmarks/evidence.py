"""Make fixtures/evidence/<name>: a bundle that every later release must verify.

    python -m benchmarks.evidence NAME

The demo's suspect, its first outputs; planned, timestamped by an authority of our own, all keys
disclosed, signed. The keys are those of the demo, which are public; signing key and authority live
for one run. Never overwrites: an old bundle is evidence of what an old release wrote.
"""

from __future__ import annotations

import gzip
import json
import shutil
import sys
import tempfile
from contextlib import ExitStack, chdir
from pathlib import Path

from typer.testing import CliRunner

from provenance.commands.app import app
from tests.world.authority import Authority

FIXTURES = Path(__file__).parents[1] / "fixtures"
OUTPUTS = 24


def make(name: str) -> Path:
    """Write the bundle beside the public key of its signer and the root of its authority."""
    folder = FIXTURES / "evidence" / name
    if folder.exists():
        raise SystemExit(f"{folder}: must not exist yet; it does")
    with ExitStack() as stack:
        scratch = stack.enter_context(tempfile.TemporaryDirectory(prefix="provenance-evidence-"))
        stack.enter_context(chdir(scratch))  # names in the verdict are those of the command line
        here = Path()
        keys = shutil.copytree(FIXTURES / "keys", here / "keys")
        (keys / "master.key").chmod(0o600)
        _run("index", "build", FIXTURES / "served.parquet", "--keys", keys, "-o", here / "index")
        suspect = _cut(FIXTURES / "suspects/student-all.jsonl.gz", here / "student-all.jsonl")
        free = _cut(FIXTURES / "innocents/unmarked-teacher.jsonl.gz", here / "teacher.jsonl")
        common = ("--keys", keys, "--index", here / "index")
        plan = here / "plan.json"
        about = ("--suspect", "student-all of the demo", "--outputs", OUTPUTS, "--innocents", 1)
        _run("plan", "new", plan, *common, *about)
        _run("plan", "commit", plan)
        authority = Authority(here / "authority")
        answer = authority.answer(plan.with_suffix(".tsq"), here / "answer.tsr")
        _run("plan", "commit", plan, "--response", answer, "--trust", authority.roots)
        options = ("--plan", plan, "--innocent", free, "-o", here / "bundle", "--disclose", "all")
        _run("check", suspect, *common, *options, code=1)
        _run("evidence", "new-signing-key", here / "signer")
        _run("evidence", "sign", here / "bundle", "--signing-key", here / "signer")
        (here / "bundle/.lock").unlink()
        shutil.copytree(here / "bundle", folder)
        shutil.copy(here / "signer.pub.pem", folder.with_name(f"{name}.signer.pem"))
        shutil.copy(authority.roots, folder.with_name(f"{name}.authority.pem"))
    return folder


def _cut(path: Path, target: Path) -> Path:
    """The first outputs of a file, in plain JSONL."""
    with gzip.open(path, "rt") as file:
        lines = [line for _, line in zip(range(OUTPUTS), file, strict=False)]
    assert all(json.loads(line) for line in lines)
    target.write_text("".join(lines))
    return target


def _run(*arguments: object, code: int = 0) -> None:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    if result.exit_code != code:
        raise SystemExit(f"{arguments}: exit {result.exit_code}: {result.output}")


if __name__ == "__main__":
    print(make(sys.argv[1]))
