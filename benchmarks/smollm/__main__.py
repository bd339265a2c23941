"""The experiment with a real language model: SmolLM2-135M-Instruct serves, students learn.

    OMP_NUM_THREADS=1 OMP_WAIT_POLICY=PASSIVE python -m benchmarks.smollm [--work DIR]

All stages in order: 220 k marked tokens, fresh marked text, unmarked text, the student of a
mixture, the innocent student, the student of marked text, 86 k more marked tokens, everybody's
outputs; then students of another family, which is fine-tuned on the same responses as text.
One core, some hours; with `--family gemma` a second process makes the latter beside the former
(`--family smollm`), once the unmarked text is there. Every stage goes on where it was when the
process was killed, and is skipped when its product exists. Evaluation is not done here.
"""

from __future__ import annotations

import argparse
import ctypes
import fcntl
import json
import platform
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.smollm import gemma, serve, train
from benchmarks.smollm.convert import PACKAGE, make_served_model
from benchmarks.smollm.decode import TOP_K
from benchmarks.smollm.model import SERVED_MODEL, load_tokenizer
from provenance.errors import DISTRIBUTION
from provenance.storage.files import write_json

WORK = Path(__file__).with_name("work")


@dataclass(frozen=True)
class Student:
    """A suspect: the share of its documents that are marked, and how often it reads them.

    copies : it reads so many responses to every prompt
    base : folder of the model that it is fine-tuned from
    """

    name: str
    marked_share: float
    seed: int
    epochs: int = 1
    copies: int = 2
    base: str = SERVED_MODEL


FULL = Student("student-full", 1.0, 21)
INNOCENT = Student("student-innocent", 0.0, 22)
MIXED = Student("student-mixed", 0.3, 23)
STUDENTS = (MIXED, INNOCENT, FULL)
ASKED = (FULL, INNOCENT, MIXED)
GEMMA_FULL = Student("gemma-full", 1.0, 25, epochs=2, copies=4, base=gemma.BASE)
GEMMA_INNOCENT = Student("gemma-innocent", 0.0, 26, epochs=2, base=gemma.BASE)
GEMMA_STUDENTS = (GEMMA_FULL, GEMMA_INNOCENT)


class Experiment:
    """The work folder, and what is known of it so far (`facts.json`)."""

    def __init__(self, work: Path) -> None:
        self.work = work
        self.path = work / "facts.json"
        self.facts: dict[str, Any] = {}
        if self.path.exists():
            self.facts = json.loads(self.path.read_text(encoding="utf-8"))

    def note(self, name: str, facts: Any) -> None:
        """Keep one entry of facts.json, which another process may have written to."""
        with (self.work / ".facts.lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if self.path.exists():
                self.facts = json.loads(self.path.read_text(encoding="utf-8"))
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
        records = serve.sample_set(serve.Sampler(self.work, SERVED_MODEL), wanted, wanted.name)
        serve.write_log(self.work / f"{wanted.name}.jsonl", records, self.work / "keys")
        return serve.facts_of(records)

    def documents(self, student: Student) -> list[train.Document]:
        """What a student is trained on: one document per (prompt, copy), marked or not."""
        sources: list[dict[tuple[str, int], serve.Record]] = []
        for wanted in (serve.SERVED, serve.UNMARKED):
            share = student.marked_share if wanted.marked else 1 - student.marked_share
            records = serve.read_set(self.work, wanted.name) if share else []
            sources.append({(r.prompt, r.copy): r for r in records if r.copy < student.copies})
        marked, unmarked = sources
        places = sorted(marked or unmarked)
        points = np.random.default_rng(student.seed).permutation(len(places)) / len(places)
        read = train.Document.of if student.base != gemma.BASE else gemma.Rewriter(self.work)
        return [
            read((marked if point < student.marked_share else unmarked)[place])
            for place, point in zip(places, points, strict=True)
        ]

    def train(self, student: Student) -> dict[str, Any]:
        """Train a student."""
        documents = self.documents(student)
        return train.train(
            self.work, student.name, student.base, documents, student.epochs, student.seed
        )

    def ask(self, student: Student, wanted: serve.SampledSet) -> dict[str, Any]:
        """Put prompts to a student, without a mark."""
        foreign, name = student.base == gemma.BASE, f"{wanted.name}-{student.name}"
        sampler: serve.SamplesPieces = serve.Sampler(self.work, student.name)
        if foreign:
            sampler = gemma.Sampler(self.work, student.name, self.documents(student))
        tokenizer = load_tokenizer(self.work / (gemma.BASE if foreign else SERVED_MODEL))
        records = serve.sample_set(sampler, wanted, name)
        serve.write_outputs(tokenizer, self.work / f"{name}.jsonl", records, ids=not foreign)
        return serve.facts_of(records)

    def ask_all(self, students: Sequence[Student], *sets: serve.SampledSet) -> None:
        """Put these prompts to all of them."""
        for student in students:
            for wanted in sets:
                self.stage(f"{wanted.name}-{student.name}", partial(self.ask, student, wanted))

    def make_own_family(self) -> None:
        """The served model, its log, and the students that were fine-tuned from it."""
        self.stage("served", lambda: self.sample_log(serve.SERVED))
        self.stage("fresh", lambda: self.sample_log(serve.FRESH))
        self.stage("unmarked", lambda: self.sample_log(serve.UNMARKED))
        for student in STUDENTS:
            self.stage(student.name, partial(self.train, student))
        self.stage("served-2", lambda: self.sample_log(serve.SERVED_MORE))
        self.ask_all(ASKED, serve.OUTPUTS, serve.PROBES)

    def make_other_family(self) -> None:
        """The students that were fine-tuned from a model of another family."""
        gemma.make_base(self.work)
        for student in GEMMA_STUDENTS:
            self.stage(student.name, partial(self.train, student))
        self.ask_all(GEMMA_STUDENTS, serve.OUTPUTS)


def setting() -> dict[str, Any]:
    """Everything that was fixed beforehand."""
    sets = (
        *(serve.SERVED, serve.SERVED_MORE, serve.FRESH, serve.UNMARKED),
        *(serve.OUTPUTS, serve.PROBES),
    )
    packages = ("torch", "transformers", "tokenizers", "numpy", DISTRIBUTION)
    return {
        "packages": [PACKAGE, gemma.PACKAGE],
        "scheme": "gumbel, k = 2",
        "shares": serve.SHARES,
        "temperature": 1.0,
        "top_k": TOP_K,
        "sets": [asdict(wanted) for wanted in sets],
        "students": [asdict(student) for student in (*STUDENTS, *GEMMA_STUDENTS)],
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
    parser.add_argument("--family", choices=("smollm", "gemma"), help="only this one")
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    keep_memory()
    torch.set_num_threads(1)
    with ExitStack() as locks:
        for family in ("smollm", "gemma"):
            if arguments.family in (None, family):
                lock = locks.enter_context((work / f".{family}.lock").open("w"))
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        run = Experiment(work)
        if arguments.family != "gemma":
            make_served_model(work)
            serve.make_keys(work)
            run.note("setting", setting())
            run.make_own_family()
        if arguments.family != "smollm":
            run.make_other_family()
        print(f"{time.strftime('%H:%M:%S')} all stages are finished", flush=True)


if __name__ == "__main__":
    main()
