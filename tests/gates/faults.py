"""The first gate: every call to the disk fails once, and nothing is half written.

For each command that writes, and for each way in which a call fails, n = 1, 2, ... until the
command runs through. After each fault the output is as before or as after, the command has said so
in one line with the exit code of a disk (or was killed), and once more without a fault it ends as
if nothing had been: the same files with the same bytes, no other ones.
"""

from __future__ import annotations

import json
import random
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.gates.forks import Ended, Fault, Forks
from tests.gates.place import PROMPTS

MODES: Final = ("kill", "EIO", "ENOSPC", "short write", "half write", "torn write")
_KILLED: Final = -9
_REFUSED: Final = 74
_LONGEST: Final = 2000
_NEVER: Final = 1 << 40
"""A number beyond the last call: nothing fails, and all calls are counted."""
_CHECK: Final = ("--keys", "keys", "--index", "index", "--placebo-keys", "50")

Tree = Mapping[str, bytes]
"""Content of every file below a folder, by its name; without locks."""


@dataclass(frozen=True)
class Scenario:
    """A command that writes.

    Attributes
    ----------
    name : for people
    words : of the command; or an action of `Forks.call`, as `module:function`
    whole : of a tree, what counts as the output: None if there is none
    before : commands that are run first
    copies : files and folders of the world that it needs
    codes : exit codes that are a success
    is_random : what the second run writes after a kill differs from the first by new secrets; then
        `whole` is compared as it is, and trees only by their names
    """

    name: str
    words: tuple[str, ...]
    whole: Callable[[Tree], Any]
    copies: tuple[str, ...] = ()
    before: tuple[tuple[str, ...], ...] = ()
    codes: tuple[int, ...] = (0,)
    is_random: bool = False
    action: str = "command"
    again: tuple[int, ...] = (74, 2)
    """Codes of a second run where the first was whole."""


def _file(name: str) -> Callable[[Tree], Any]:
    return lambda tree: tree.get(name)


def _folder(place: str, last: str) -> Callable[[Tree], Any]:
    """A folder that means nothing without its last file."""

    def whole(tree: Tree) -> Any:
        own = {name: content for name, content in tree.items() if name.startswith(f"{place}/")}
        return own if f"{place}/{last}" in own else None

    return whole


def _nothing(_: Tree) -> None:
    return None


def _index(place: str) -> Callable[[Tree], Any]:
    """A manifest and the table that it names; other tables mean nothing."""

    def whole(tree: Tree) -> Any:
        manifest = tree.get(f"{place}/manifest.json") or tree.get(f"{place}/group.json")
        if manifest is None:
            return None
        named = sorted(set(re.findall(r"[a-z]+-[0-9a-f]{16}\.parquet", manifest.decode())))
        return manifest, [tree.get(f"{place}/{table}", "THE TABLE IS MISSING") for table in named]

    return whole


def _is_whole_ring(tree: Tree) -> Any:
    """A keyring's names: its secrets are new each time."""
    content = tree.get("ring/keyring.json")
    if content is None:
        return None
    document = json.loads(content)
    named = [(slot["name"], len(slot["values"])) for slot in document["slots"]]
    return named, tree["ring/tokenizer.json"], len(tree["ring/master.key"])


def _values(tree: Tree) -> Any:
    """A keyring means the same at any time: with the new value or without."""
    return tree["keys/keyring.json"]


def _is_signed(tree: Tree) -> Any:
    return tree.get("bundle/manifest.sig") and (
        tree["bundle/manifest.sig"],
        tree["bundle/manifest.pub.pem"],
    )


def _is_key_pair(tree: Tree) -> Any:
    return tree.get("signer.key.pub.pem") and len(tree["signer.key"])


def _is_case(tree: Tree) -> Any:
    register = tree.get("case/register.jsonl", b"")
    return (tree["case/provenance.toml"], register) if register.endswith(b"\n") else None


def _batches(tree: Tree) -> Any:
    """A sequential check: its state and the batches that it names."""
    content = tree.get("state/state.json")
    if content is None:
        return None
    count = len(json.loads(content)["batches"])
    return content, [tree.get(f"state/{n:04d}.parquet", "MISSING") for n in range(1, count + 1)]


SCENARIOS: Final = (
    Scenario(
        "index build",
        ("index", "build", "served.parquet", "--keys", "keys", "-o", "made"),
        _index("made"),
        ("served.parquet", "keys"),
    ),
    Scenario(
        "index build --force",
        ("index", "build", "served.parquet", "--keys", "keys", "-o", "half", "--force"),
        _index("half"),
        ("served.parquet", "keys", "half"),
    ),
    Scenario(
        "index build --only",
        (
            *("index", "build", "served.parquet", "--keys", "keys", "-o", "made"),
            *("--only", "accounts.txt", "--field", "account"),
        ),
        _index("made"),
        ("served.parquet", "keys", "accounts.txt"),
    ),
    Scenario(
        "index merge",
        ("index", "merge", "half", "rest", "--keys", "keys", "-o", "made"),
        _index("made"),
        ("half", "rest", "keys"),
    ),
    Scenario(
        "check -o",
        ("check", "few.jsonl", *_CHECK, "-o", "bundle", "--disclose", "all"),
        _folder("bundle", "manifest.json"),
        ("few.jsonl", "keys", "index"),
        codes=(0, 3),
    ),
    Scenario(
        "check -o --force",
        ("check", "more.jsonl", *_CHECK, "-o", "bundle", "--force"),
        _folder("bundle", "manifest.json"),
        ("more.jsonl", "keys", "index", "bundle"),
        codes=(0, 3),
    ),
    Scenario(
        "check --sequential, first",
        ("check", "few.jsonl", *_CHECK, "--sequential", "state"),
        _batches,
        ("few.jsonl", "keys", "index"),
        codes=(0, 3),
        again=(65,),  # these outputs are in it already
    ),
    Scenario(
        "check --sequential, second",
        ("check", "more.jsonl", *_CHECK, "--sequential", "state"),
        _batches,
        ("more.jsonl", "keys", "index", "state"),
        codes=(0, 3),
        again=(65,),
    ),
    Scenario(
        "check in a case",
        ("check", "few.jsonl", *_CHECK, "-o", "bundle", "--case", "case"),
        lambda tree: "bundle/manifest.json" in tree or None,
        ("few.jsonl", "keys", "index", "case"),
        codes=(0, 3),
        is_random=True,  # a check that was begun and killed stays in the register
    ),
    Scenario(
        "keys new",
        ("keys", "new", "ring", "--tokenizer", "keys/tokenizer.json", "--value", "week=W1"),
        _is_whole_ring,
        ("keys",),
        is_random=True,
    ),
    Scenario(
        "keys add-value",
        ("keys", "add-value", "keys", "--slot", "week", "--value", "W9"),
        _values,
        ("keys",),
    ),
    Scenario(
        "keys export-worker",
        ("keys", "export-worker", "keys", "--value", "week=W1", "-o", "worker.json"),
        _file("worker.json"),
        ("keys",),
        again=(0,),
    ),
    Scenario(
        "keys disclose -o",
        ("keys", "disclose", "keys", "--slot", "global", "-o", "disclosed.json"),
        _file("disclosed.json"),
        ("keys",),
        again=(0, 74),
    ),
    Scenario(
        "plan new",
        (
            *("plan", "new", "made.json", "--keys", "keys", "--index", "index"),
            *("--suspect", "x", "--outputs", "20"),
        ),
        _file("made.json"),
        ("keys", "index"),
    ),
    Scenario(
        "plan commit",
        ("plan", "commit", "plan.json"),
        lambda tree: len(tree.get("plan.tsq", b"")) > 40 or None,
        ("plan.json",),
        is_random=True,  # a request has a nonce
        again=(0,),
    ),
    Scenario(
        "evidence new-signing-key",
        ("evidence", "new-signing-key", "signer.key"),
        _is_key_pair,
        is_random=True,
    ),
    Scenario(
        "evidence file",
        ("evidence", "file", "bundle", "--suspect", "x", "--case-number", "7"),
        lambda tree: {name: tree[name] for name in tree if name.startswith("bundle/")},
        ("bundle",),
        again=(0,),
    ),
    Scenario(
        "evidence sign",
        ("evidence", "sign", "bundle", "--signing-key", "signer"),
        _is_signed,
        ("bundle", "signer"),
        again=(0, 74),
    ),
    Scenario(
        "case new",
        ("case", "new", "case", "--keys", "keys", "--suspect", "x"),
        _is_case,
        ("keys",),
    ),
    Scenario(
        "collect prepare",
        (
            *("collect", "prepare", "--format", "openai-batch", "--model", "m"),
            *("--prompts", "prompts.jsonl", "-o", "out"),
        ),
        _file("out/batch-input.jsonl"),
        ("prompts.jsonl",),
        again=(0,),
    ),
    Scenario(
        "collect import",
        ("collect", "import", "results.jsonl", "out"),
        lambda tree: len(tree.get("out/outputs.jsonl", b"").splitlines()) or None,
        ("results.jsonl", "out"),
        is_random=True,  # the ledger says how often it was imported
        again=(0, 65, 74),
    ),
    Scenario(
        "suspects -o",
        ("suspects", "bundle", "-o", "page.html", "--force"),
        _file("page.html"),
        ("bundle",),
        codes=(0, 3),
        again=(0,),
    ),
)

READERS: Final = (
    Scenario("verify", ("verify", "bundle", "--unsigned"), _nothing, ("bundle",)),
    Scenario(
        "check",
        ("check", "few.jsonl", *_CHECK),
        _nothing,
        ("few.jsonl", "keys", "index"),
        codes=(0, 3),
    ),
    Scenario("index info", ("index", "info", "index"), _nothing, ("index",)),
    Scenario(
        "log audit",
        ("log", "audit", "served.parquet", "half.jsonl", "--keys", "keys"),
        _nothing,
        ("served.parquet", "half.jsonl", "keys"),
        codes=(0, 1, 3),
    ),
    Scenario("plan show", ("plan", "show", "plan.json"), _nothing, ("plan.json",)),
    Scenario("case show", ("case", "show", "case"), _nothing, ("case",)),
    Scenario("collect verify", ("collect", "verify", "out"), _nothing, ("out",), codes=(0, 3)),
    Scenario("outputs show", ("outputs", "show", "few.jsonl"), _nothing, ("few.jsonl",)),
    Scenario("suspects", ("suspects", "bundle"), _nothing, ("bundle",), codes=(0, 3)),
    Scenario("detect", ("detect", "few.jsonl", "--keys", "keys"), _nothing, ("few.jsonl", "keys")),
)
"""Commands that only read: a disk that fails is no answer."""


def collecting(url: str) -> Scenario:
    """`provenance collect` of an API that answers there."""
    return Scenario(
        "collect",
        (
            *("collect", "--base-url", url, "--model", "tiny", "--prompts", "prompts.jsonl"),
            *("-o", "got", "--backoff", "0.01"),
        ),
        # what was answered before a fault is there already: whole is all of it
        lambda tree: (
            tree["got/outputs.jsonl"]
            if tree.get("got/outputs.jsonl", b"").count(b"\n") == PROMPTS
            else None
        ),
        ("prompts.jsonl",),
        is_random=True,  # the ledger says what was asked twice
        again=(0,),
    )


def write_carelessly(*words: str) -> int:
    """A double: the command with a file layer that writes in place."""
    from unittest import mock

    from tests.gates.forks import run_command

    def write_json(path: Path, value: object, mode: int = 0o644) -> None:
        path.write_text(json.dumps(value, indent=1))

    with mock.patch("provenance.keys.keyring.write_json", write_json):
        return run_command(*words)


def grow_log(folder: str, form: str) -> int:
    """A service: 40 responses into a log; it says on stdout which were acknowledged."""
    from provenance.errors import ProvenanceError
    from provenance.served.rotation import RotatingLog
    from provenance.served.writer import LogWriter

    place = Path(folder)
    log = RotatingLog(place, maximum_rows=15) if form == "folder" else LogWriter(place / form)
    code = 0
    try:
        with log:
            for number in range(40):
                name = f"r{number}"
                try:
                    write = LogWriter.write if isinstance(log, LogWriter) else _append
                    write(log, name, labels={"week": "W1"}, marked=True, token_ids=[number, 5, 6])
                    print(name, flush=True)
                except ProvenanceError as error:
                    code = error.exit_code
    except ProvenanceError as error:
        code = error.exit_code
    return code


def _append(log: Any, name: str, **fields: Any) -> None:
    from provenance.served.records import ServedResponse

    log.append(ServedResponse(name, **fields))


LOGS: Final = ("log.jsonl", "log.parquet", "folder")
"""Logs of `grow_log`: of what was acknowledged nothing is lost, whatever fails."""


@dataclass
class Tally:
    """What was tried, and what did not hold: a sentence each."""

    tried: int = 0
    failures: list[str] = field(default_factory=list)


def read_tree(folder: Path) -> dict[str, bytes]:
    """All files but locks."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != ".lock"
    }


WARM: Final = (
    ("index", "build", "served.parquet", "--keys", "keys", "-o", "warm/index"),
    ("index", "merge", "half", "rest", "--keys", "keys", "-o", "warm/merged"),
    *(("check", f"{name}.jsonl", *_CHECK, "-o", f"warm/{name}") for name in ("few", "more")),
)
"""What a server of `Forks` runs first, in a copy of the world: compiled kernels, pictures."""


class Gate:
    """Runs scenarios in copies of a world, all under one path."""

    def __init__(self, forks: Forks, world: Path, place: Path) -> None:
        self.forks, self.world, self.place = forks, world, place

    def prepare(self, scenario: Scenario) -> Path:
        """A fresh folder with what the command needs."""
        work = self.place / "work"
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        for name in scenario.copies:
            source = self.world / name
            if source.is_dir():
                shutil.copytree(source, work / name)
            else:
                shutil.copy2(source, work / name)
        return work

    def act(
        self,
        scenario: Scenario,
        work: Path,
        mode: str = "count",
        number: int = 0,
        reads: bool = False,
    ) -> Ended:
        fault = Fault(mode, number, work, reads) if self.forks.has_shim else None
        return self.forks.call(scenario.action, *scenario.words, folder=work, fault=fault)

    def count(self, scenario: Scenario, mode: str) -> int:
        """Calls of an undisturbed run that this mode can meet."""
        work = self.prepare(scenario)
        return self.act(scenario, work, mode, _NEVER, mode == "EIO").calls

    def try_all(
        self,
        scenario: Scenario,
        modes: Sequence[str] = MODES,
        sample: int | None = None,
        seed: int = 0,
    ) -> Tally:
        """Every fault of these modes, or so many of each that are drawn."""
        tally = Tally()
        work = self.prepare(scenario)
        before = read_tree(work)
        ended = self.act(scenario, work, modes[0], _NEVER, modes[0] == "EIO")
        if ended.code not in scenario.codes:
            raise AssertionError(f"{scenario.name}: {ended.code}: {ended.err}{ended.out}")
        after = read_tree(work)
        for mode in modes:
            calls = ended.calls if mode == modes[0] else self.count(scenario, mode)
            numbers: Sequence[int] = range(1, calls + 1)
            if sample is not None:
                chance = random.Random(f"{seed} {scenario.name} {mode}")
                numbers = chance.sample(numbers, min(sample, len(numbers)))
            for number in numbers:
                tally.tried += 1
                for found in self._try(scenario, mode, number, before, after):
                    tally.failures.append(f"{scenario.name}: {mode} at call {number}: {found}")
        return tally

    def _try(
        self, scenario: Scenario, mode: str, number: int, before: Tree, after: Tree
    ) -> Iterator[str]:
        work = self.prepare(scenario)
        ended = self.act(scenario, work, mode, number, mode == "EIO")
        tree = read_tree(work)
        whole = [scenario.whole(one) for one in (tree, before, after)]
        is_after = whole[0] == whole[2]
        if not is_after and whole[0] != whole[1]:
            yield f"the output is neither as before nor as after (code {ended.code})"
        lost = [name for name in before if name not in tree and name in after]
        if lost:
            yield f"{lost} are gone"
        yield from _judge(scenario, mode, ended, is_after)
        second = self.act(scenario, work)
        allowed = {*scenario.codes, *scenario.again} if is_after else set(scenario.codes)
        if second.code not in allowed:
            yield f"then the second run ends with {second.code}: {second.err.strip()}"
        tree = read_tree(work)
        if scenario.whole(tree) != whole[2]:
            yield "after the second run the output is another"
        if set(tree) != set(after):
            yield f"after the second run there are other files: {sorted(set(tree) ^ set(after))}"
        elif not scenario.is_random and second.code in scenario.codes and tree != after:
            differ = [name for name in tree if tree[name] != after[name]]
            yield f"after the second run other bytes: {differ}"

    def try_reads(self, scenario: Scenario, sample: int | None = None, seed: int = 0) -> Tally:
        """EIO at every call that reads: the same answer as without it, or exit 74 and no answer."""
        tally = Tally()
        ended = self.act(scenario, self.prepare(scenario))
        if ended.code not in scenario.codes:
            raise AssertionError(f"{scenario.name}: {ended.code}: {ended.err}{ended.out}")
        numbers: Sequence[int] = range(1, self.count(scenario, "EIO") + 1)
        if sample is not None:
            chance = random.Random(f"{seed} {scenario.name} reads")
            numbers = chance.sample(numbers, min(sample, len(numbers)))
        work = self.prepare(scenario)
        for number in numbers:
            tally.tried += 1
            found = self.act(scenario, work, "EIO", number, True)
            same = (found.code, found.out) == (ended.code, ended.out)
            if not same and (found.code != _REFUSED or found.out):
                said = found.err.strip()[-200:] or found.out[-200:]
                tally.failures.append(
                    f"{scenario.name}: EIO at call {number}: it ends with {found.code}: {said}"
                )
        return tally

    def try_log(self, form: str, modes: Sequence[str], sample: int | None, seed: int) -> Tally:
        """Every fault of a service that logs: what `append` acknowledged is read back."""
        tally = Tally()
        folder = self.place / "work"
        for mode in modes:
            count = self._grow(form, mode, _NEVER).calls
            numbers: Sequence[int] = range(1, count + 1)
            if sample is not None:
                chance = random.Random(f"{seed} {form} {mode}")
                numbers = chance.sample(numbers, min(sample, count))
            for number in numbers:
                tally.tried += 1
                ended = self._grow(form, mode, number)
                said = ended.out.split()
                # a next writer of the same name recovers what a kill left
                recover = self.forks.call("tests.gates.faults:recover", folder, form)
                found = set(recover.out.split())
                where = f"{form}: {mode} at call {number}"
                if ended.code not in (0, _REFUSED, _KILLED):
                    tally.failures.append(f"{where}: code {ended.code}: {ended.err.strip()}")
                if lost := set(said) - found:
                    tally.failures.append(f"{where}: lost {sorted(lost)[:5]}")
                if recover.code != 0:
                    tally.failures.append(f"{where}: cannot be read: {recover.err.strip()}")
                if mode == "short write" and len(said) != 40:
                    tally.failures.append(f"{where}: only {len(said)} of 40")
        return tally

    def _grow(self, form: str, mode: str, number: int) -> Ended:
        folder = self.place / "work"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        fault = Fault(mode, number, folder)
        return self.forks.call("tests.gates.faults:grow_log", folder, form, fault=fault)


def recover(folder: str, form: str) -> int:
    """Print the names of all responses of a folder, after a next writer was there."""
    from provenance.served.log import read_log
    from provenance.served.writer import LogWriter

    place = Path(folder)
    if form != "folder" and not (place / form).exists():
        with LogWriter(place / form) as log:
            log.write("last", labels={}, marked=False, token_ids=[1])
    files = [
        path for path in place.iterdir() if path.stat().st_size and path.suffix != ".converted"
    ]
    if not files:
        return 0
    for batch in read_log([place], tokenizer=None, vocabulary_size=100):
        print(*batch.column("response_id").to_pylist())
    return 0


def _judge(scenario: Scenario, mode: str, ended: Ended, is_after: bool) -> Iterator[str]:
    """Whether the command said what it did."""
    if "Traceback" in ended.err:
        yield f"a traceback: {ended.err.strip()[-200:]}"
    if mode in ("kill", "torn write") and ended.code == _KILLED:
        return
    if ended.code in scenario.codes:
        if not is_after:
            yield f"it says {ended.code}, and the output is not there"
    elif ended.code != _REFUSED:
        yield f"it ends with {ended.code}: {ended.err.strip()[-200:]}"
    elif mode == "short write":
        yield f"a short write is no error: {ended.err.strip()[-200:]}"
    lines = [line for line in ended.err.splitlines() if line.startswith("provenance: ")]
    if ended.code == _REFUSED and (len(lines) != 1 or len(lines[0]) > _LONGEST):
        yield f"it does not say so in one line: {ended.err[-200:]!r}"
