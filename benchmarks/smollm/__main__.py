"""The experiment with a real language model: SmolLM2-135M-Instruct serves, students learn.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.smollm [--work DIR]

All stages in order: 220 k marked tokens, fresh marked text, unmarked text, the student of a
mixture, the innocent student, the student of marked text, 86 k more marked tokens, everybody's
outputs.
One core, some hours. Every stage goes on where it was when the process was killed, and is skipped
when its product exists. Evaluation is not done here.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import platform
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.smollm import serve, train
from benchmarks.smollm.convert import PACKAGE, make_served_model
from benchmarks.smollm.decode import TOP_K
from provenance.files import write_json

WORK = Path(__file__).with_name("work")
TRAINED_COPIES = 2
"""A student reads so many responses to every prompt."""


@dataclass(frozen=True)
class Student:
    """A suspect: the share of its documents that are marked, and how often it reads them."""

    name: str
    marked_share: float
    seed: int
    epochs: int = 1


FULL = Student("student-full", 1.0, 21)
INNOCENT = Student("student-innocent", 0.0, 22)
MIXED = Student("student-mixed", 0.3, 23)


class Experiment:
    """The work folder, and what is known of it so far (`facts.json`)."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.path = work / "facts.json"
        self.facts: dict[str, Any] = {}
        if self.path.exists():
            self.facts = json.loads(self.path.read_text(encoding="utf-8"))

    def note(self, name: str, facts: Any) -> None:
        """Keep one entry of facts.json."""
        self.facts[name] = facts
        write_json(self.path, self.facts)

    def stage(self, name: str, run: Callable[[], dict[str, Any]]) -> None:
        """Run a stage unless it was finished before."""
        if name in self.facts:
            return
        print(f"{time.strftime('%H:%M:%S')} {name} begins", flush=True)
        facts = run()
        self.note(name, {**facts, "finished": time.strftime("%Y-%m-%dT%H:%M:%S")})
        print(f"{time.strftime('%H:%M:%S')} {name} is finished: {facts}", flush=True)

    def sample_log(self, wanted: serve.SampledSet) -> dict[str, Any]:
        """Sample a set with the served model and write its log."""
        records = serve.sample_set(self.work, wanted, "served-model", wanted.name)
        serve.write_log(self.work / f"{wanted.name}.jsonl", records)
        return serve.facts_of(records)

    def documents(self, student: Student) -> list[train.Document]:
        """What a student is trained on: one document per (prompt, copy), marked or not."""
        sources: list[dict[tuple[str, int], serve.Record]] = []
        for wanted in (serve.SERVED, serve.UNMARKED):
            share = student.marked_share if wanted.marked else 1 - student.marked_share
            names = f"{wanted.name}-???.jsonl"
            paths = sorted((self.work / "pieces").glob(names)) if share else []
            records = [record for path in paths for record in serve.read_piece(path)]
            sources.append({(r.prompt, r.copy): r for r in records if r.copy < TRAINED_COPIES})
        marked, unmarked = sources
        places = sorted(marked or unmarked)
        points = np.random.default_rng(student.seed).permutation(len(places)) / len(places)
        return [
            train.Document.of((marked if point < student.marked_share else unmarked)[place])
            for place, point in zip(places, points, strict=True)
        ]

    def train(self, student: Student) -> dict[str, Any]:
        """Train a student."""
        documents = self.documents(student)
        return train.train(self.work, student.name, documents, student.epochs, student.seed)

    def ask(self, model: str, name: str) -> dict[str, Any]:
        """Put the other prompts to a model, without a mark."""
        records = serve.sample_set(self.work, serve.OUTPUTS, model, f"outputs-{name}")
        serve.write_outputs(self.work, self.work / f"outputs-{name}.jsonl", records)
        return serve.facts_of(records)


def setting() -> dict[str, Any]:
    """Everything that was fixed beforehand."""
    sets = (serve.SERVED, serve.SERVED_MORE, serve.FRESH, serve.UNMARKED, serve.OUTPUTS)
    packages = ("torch", "transformers", "tokenizers", "numpy", "provenance")
    return {
        "package": PACKAGE,
        "scheme": "gumbel, k = 2",
        "shares": serve.SHARES,
        "temperature": 1.0,
        "top_k": TOP_K,
        "sets": [asdict(wanted) for wanted in sets],
        "students": [asdict(student) for student in (FULL, INNOCENT, MIXED)],
        "trained_copies": TRAINED_COPIES,
        "versions": {name: version(name) for name in packages},
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
    }


def keep_memory() -> None:
    """Let glibc keep freed memory: giving large blocks back costs a fifth of the training time."""
    if sys.platform == "linux":
        library = ctypes.CDLL("libc.so.6")
        trim_threshold, top_pad, mmap_max = -1, -2, -4
        library.mallopt(mmap_max, 0)
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(top_pad, 2**28)


def main() -> None:
    """All stages."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    work: Path = parser.parse_args().work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    keep_memory()
    torch.set_num_threads(1)
    with (work / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        make_served_model(work)
        serve.make_keys(work)
        run = Experiment(work)
        run.note("setting", setting())
        run.stage("served", lambda: run.sample_log(serve.SERVED))
        run.stage("fresh", lambda: run.sample_log(serve.FRESH))
        run.stage("unmarked", lambda: run.sample_log(serve.UNMARKED))
        run.stage(MIXED.name, lambda: run.train(MIXED))
        run.stage(INNOCENT.name, lambda: run.train(INNOCENT))
        run.stage(FULL.name, lambda: run.train(FULL))
        run.stage("served-2", lambda: run.sample_log(serve.SERVED_MORE))
        run.stage("outputs-base", lambda: run.ask("served-model", "base"))
        for student in (FULL, INNOCENT, MIXED):
            run.stage(f"outputs-{student.name}", partial(run.ask, student.name, student.name))
        print(f"{time.strftime('%H:%M:%S')} all stages are finished", flush=True)


if __name__ == "__main__":
    main()
