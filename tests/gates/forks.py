"""Many commands, each in a process of its own, without paying its imports each time.

A server process imports everything once and forks for every command, so that one costs
milliseconds. Where gcc is there the server carries `fault.c`, and a command may be told at which of
its calls to the disk something goes wrong. Memory is what a child takes beyond an idle one.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import pickle
import resource
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

ROOT: Final = Path(__file__).parents[2]
MODES: Final = {
    name: number
    for number, name in enumerate(
        ("off", "count", "kill", "EIO", "ENOSPC", "short write", "half write", "torn write")
    )
}
"""As in `fault.c`: `half write` is followed by a full disk, `torn write` by a kill."""
_ENOUGH: Final = 4 << 30
"""Bytes beyond the server's that a child may ask for; the machine must survive a failed gate."""


@dataclass(frozen=True)
class Fault:
    """What goes wrong at which call below which folder; `reads`: reading is counted as well."""

    mode: str
    number: int
    folder: Path
    reads: bool = False


@dataclass(frozen=True)
class Ended:
    """How a command ended: exit code, minus the signal if one ended it; seconds by the clock and
    of a processor; bytes beyond an idle child; calls that the shim counted."""

    code: int
    out: str
    err: str
    seconds: float
    processor: float
    memory: int
    calls: int


def build_shim(folder: Path) -> Path | None:
    """Compile `fault.c`; None without gcc."""
    gcc = shutil.which("gcc")
    if gcc is None:
        return None
    made = folder / "fault.so"
    command = [gcc, "-O2", "-shared", "-fPIC", "-o", str(made), str(ROOT / "tests/gates/fault.c")]
    subprocess.run([*command, "-ldl"], check=True, capture_output=True)
    return made


class Forks:
    """A running server; make it with `start_forks`."""

    def __init__(self, process: subprocess.Popen[str], has_shim: bool) -> None:
        self._process = process
        self.has_shim = has_shim
        self._idle = 0
        self._idle = self.call("nothing").memory

    def run(self, *arguments: Any, **options: Any) -> Ended:
        """Run one command of the command line; options as of `call`."""
        return self.call("command", *arguments, **options)

    def call(
        self,
        action: str,
        *arguments: Any,
        folder: Path | str | None = None,
        fault: Fault | None = None,
        seconds: float = 60,
        environment: Mapping[str, str] | None = None,
    ) -> Ended:
        """Have an action of `_ACTIONS`, or `module:function` called with the arguments as strings.

        Parameters: the current folder; what goes wrong; after how long it is killed (code -9);
        variables of its environment.
        """
        asked = {
            "action": action,
            "arguments": [os.fsencode(str(a)).decode("latin-1") for a in arguments],
            "folder": None if folder is None else str(folder),
            "seconds": seconds,
            "environment": dict(environment or {}),
            "fault": None
            if fault is None
            else [MODES[fault.mode], fault.number, str(fault.folder), fault.reads],
        }
        if fault is not None and not self.has_shim:
            raise RuntimeError("faults need gcc")
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(json.dumps(asked) + "\n")
        stdin.flush()
        answer = json.loads(stdout.readline())
        answer["memory"] = max(0, answer["memory"] - self._idle)
        return Ended(**answer)


@contextmanager
def start_forks(warm: Sequence[Sequence[Any]] = (), place: Path | None = None) -> Iterator[Forks]:
    """A server, with the shim if there is gcc; `warm` are commands that it runs itself first, in a
    copy of `place`.
    """
    with tempfile.TemporaryDirectory(prefix="gates-") as folder:
        shim = build_shim(Path(folder))
        environment = {
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "OMP_NUM_THREADS": "1",
            "COLUMNS": "80",
            "NO_PROXY": "127.0.0.1",
            "PYTHONHASHSEED": "0",
            # glibc would keep an arena per thread, and what children take would depend on luck
            "MALLOC_ARENA_MAX": "2",
        }
        for name in ("PROVENANCE_KEY_FILE", "PROVENANCE_KEY_CMD", "OPENAI_API_KEY"):
            environment.pop(name, None)
        if shim is not None:
            environment["LD_PRELOAD"] = str(shim)
        with subprocess.Popen(
            [sys.executable, "-m", "tests.gates.forks", str(shim or ""), folder],
            cwd=ROOT,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as process:
            try:
                assert process.stdin is not None
                process.stdin.write(
                    json.dumps([str(place), [list(map(str, one)) for one in warm]]) + "\n"
                )
                process.stdin.flush()
                yield Forks(process, shim is not None)
            finally:
                process.kill()


# ---- the server ----------------------------------------------------------------------------------


def _serve(shim: str, folder: Path) -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    library = ctypes.CDLL(shim) if shim else None
    _import_everything()
    place, commands = json.loads(sys.stdin.readline())
    if commands:
        copy = shutil.copytree(place, folder / "place")
        os.chdir(copy)
        for command in commands:
            run_command(*command)
        os.chdir(ROOT)
    for line in sys.stdin:
        asked = json.loads(line)
        answer = _fork(asked, library, folder)
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


def _import_everything() -> None:
    import provenance

    for name in provenance.__all__:
        getattr(provenance, name)
    for name in (
        *(
            "provenance.commands.app",
            "duckdb",
            "pyarrow.parquet",
            "scipy.stats",
            "matplotlib.figure",
        ),
        *("jinja2", "openai"),
        *("tests.world.synthetic", "rich.table", "rich.progress"),
    ):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    for module, name in _DRAWN_ONCE:
        _remember(module, name)


_DRAWN_ONCE: Final = (
    ("provenance.evidence.report.page", "draw_placebo"),
    ("provenance.evidence.report.page", "draw_trajectory"),
    ("provenance.evidence.report.page", "load_template"),
)
"""Pictures are most of a check's seconds, and touch no disk: those that `warm` drew are kept."""


def _remember(module: str, name: str) -> None:
    home = importlib.import_module(module)
    function, made = getattr(home, name), {}

    def remembered(*arguments: Any, **named: Any) -> Any:
        key = pickle.dumps((arguments, named))
        if key not in made:
            made[key] = function(*arguments, **named)
        return made[key]

    setattr(home, name, remembered)


def _fork(asked: dict[str, Any], library: Any, folder: Path) -> dict[str, Any]:
    out, err = folder / "out", folder / "err"
    if library is not None and asked["fault"] is not None:
        mode, number, place, reads = asked["fault"]
        library.fault_arm(os.fsencode(place), mode, ctypes.c_long(number), int(reads))
    begun = time.monotonic()
    child = os.fork()
    if child == 0:
        _be_child(asked, out, err)
    if library is not None:
        calls = library.fault_calls
        calls.restype = ctypes.c_long
        # this process itself must meet nothing
        ctypes.c_int.in_dll(library, "fault_mode").value = 0
    status, usage = _wait(child, begun + asked["seconds"])
    return {
        "code": os.waitstatus_to_exitcode(status),
        "out": out.read_bytes()[: 1 << 22].decode("utf-8", "replace"),
        "err": err.read_bytes()[: 1 << 22].decode("utf-8", "replace"),
        "seconds": time.monotonic() - begun,
        "processor": usage.ru_utime + usage.ru_stime,
        "memory": usage.ru_maxrss << 10,
        "calls": 0 if library is None or asked["fault"] is None else int(library.fault_calls()),
    }


def _wait(child: int, until: float) -> tuple[int, Any]:
    descriptor = os.pidfd_open(child)
    try:
        with selectors.DefaultSelector() as selector:
            selector.register(descriptor, selectors.EVENT_READ)
            if not selector.select(max(0.0, until - time.monotonic())):
                os.kill(child, signal.SIGKILL)
    finally:
        os.close(descriptor)
    _, status, usage = os.wait4(child, 0)
    return status, usage


def _be_child(asked: dict[str, Any], out: Path, err: Path) -> None:
    code = 70
    try:
        for descriptor, path in ((1, out), (2, err)):
            opened = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
            os.dup2(opened, descriptor)
            os.close(opened)
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.environ.update(asked["environment"])
        if asked["folder"] is not None:
            os.chdir(asked["folder"])
        used = next(
            int(line.split()[1]) << 10
            for line in Path("/proc/self/status").read_text().splitlines()
            if line.startswith("VmData")
        )
        resource.setrlimit(resource.RLIMIT_DATA, (used + _ENOUGH, resource.RLIM_INFINITY))
        arguments = [
            a.encode("latin-1").decode("utf-8", "surrogateescape") for a in asked["arguments"]
        ]
        code = _act(asked["action"], arguments)
        sys.stdout.flush()
        sys.stderr.flush()
    except BaseException:  # noqa: BLE001
        import traceback

        traceback.print_exc()
        sys.stderr.flush()
        code = 99
    finally:
        os._exit(code)


def _act(action: str, arguments: list[str]) -> int:
    if action == "nothing":
        return 0
    if action == "command":
        return run_command(*arguments)
    module, _, name = action.partition(":")
    return int(getattr(importlib.import_module(module), name)(*arguments) or 0)


def run_command(*arguments: str) -> int:
    """One command; its secrets are drawn from its words."""
    from provenance.commands.app import main
    from tests.world.synthetic import seeded_secrets

    sys.argv = ["provenance", *arguments]
    with seeded_secrets(7):
        try:
            main()
        except SystemExit as stopped:
            return 0 if stopped.code is None else int(stopped.code)


if __name__ == "__main__":
    _serve(sys.argv[1], Path(sys.argv[2]))
