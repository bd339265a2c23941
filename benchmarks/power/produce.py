"""Make the worlds and the suspects of the power benchmark and of the frontier.

    python -m benchmarks.power.produce [--work DIR] [--workers N]

Needs the work folder of benchmarks.lab. Every artefact is written whole under its final name or not
at all, and kept when the command is run again. Keyrings are made afresh: another work folder holds
other keys.

    work/unmarked/                  responses.parquet, fresh.parquet, quality.json, facts.json
    work/unmarked/innocent-<size>/  a suspect trained on unmarked responses only, as below
    work/<world>/                   keys/, served.parquet, fresh.parquet, quality.json, facts.json
    work/<world>/rho-<rho>/         a suspect: model, tokenizer, outputs.jsonl.gz, facts.json

A facts.json names seeds, prompts (rows of the laboratory's prompts.jsonl), tokens, seconds; a
suspect's also its `marked_rows`: the rows of served.parquet that it was trained on.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.lab import models
from benchmarks.lab import stage1 as lab
from benchmarks.lab.stage2 import Responses, write_outputs
from benchmarks.lab.tokenizer import VOCABULARY, load_tokenizer
from benchmarks.power import quality
from benchmarks.power.sampling import (
    Question,
    answer,
    load_prompts,
    read_documents,
    read_responses,
    write_log,
)
from provenance.keys.keyring import create_keyring
from provenance.keys.schedule import Schedule
from provenance.storage.files import read_json, write_json
from tests.world.power import settings
from tests.world.power.settings import Innocent, Size, World, seed_of, suspect_name

UNMARKED = "unmarked"


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A temporary folder beside `folder` that takes its name when the block ends well."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".making-{folder.name}-"))
    try:
        yield temporary
        temporary.rename(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


class Stopwatch:
    """Seconds since it was made: on the wall, and of this process's share of a busy machine."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self, prefix: str = "") -> dict[str, float]:
        """seconds and cpu_seconds, as facts."""
        return {
            f"{prefix}seconds": round(time.perf_counter() - self._wall, 1),
            f"{prefix}cpu_seconds": round(time.process_time() - self._cpu, 1),
        }


def add_facts(path: Path, **facts: Any) -> None:
    """Merge facts into a facts.json."""
    write_json(path, {**(read_json(path) if path.exists() else {}), **facts})


def make_keys(folder: Path, world: World) -> None:
    """The keyring of a world: `global` with the world's share, the rest is `control`."""
    if folder.exists():
        return
    schedule = Schedule.from_shares({"global": world.share})
    with whole_folder(folder) as temporary:
        create_keyring(
            temporary,
            lab.WORK / "tokenizer.json",
            VOCABULARY,
            world.specification,
            schedule,
            world.context_width,
            reads_prompt=False,  # the laboratory's draws are not told their prompts
        )


def make_log(path: Path, start: int, count: int, keys: Path | None) -> None:
    """Responses of the teacher to `count` prompts from `start` on; how is told in facts.json."""
    if path.exists():
        return
    seed, watch = seed_of(path.parent.name, path.stem), Stopwatch()
    prompts = load_prompts(start, count)
    responses = answer(Question(lab.WORK / "teacher", prompts, seed, keys))
    write_log(path, prompts, responses, keys)
    facts = {
        "responses": count,
        "tokens": sum(map(len, responses)),
        "prompts": [start, start + count],
        "seed": seed,
        **watch.read(),
    }
    add_facts(path.parent / "facts.json", **{path.stem: facts})


def make_quality(folder: Path, log: str, keys: Path | None) -> None:
    """quality.json of a world, or of the unmarked teacher."""
    path, watch = folder / "quality.json", Stopwatch()
    if path.exists():
        return
    served, fresh = (read_responses(folder / name) for name in (log, "fresh.parquet"))
    record = quality.measure(served, fresh, keys, seed_of(folder.name, "repeats"))
    write_json(path, {**record, **watch.read()})


def mix(
    marked: Responses, unmarked: Responses, rho: float, seed: int
) -> tuple[Responses, list[int]]:
    """One document per prompt, a share rho of them the marked one, and the rows of those.

    Rows are drawn by a permutation of the seed: with one seed the sets of smaller rhos are parts
    of those of larger ones.
    """
    order = np.random.default_rng(seed).permutation(len(marked))
    chosen = set(order[: round(rho * len(marked))].tolist())
    pairs = zip(marked, unmarked, strict=True)
    return [m if i in chosen else u for i, (m, u) in enumerate(pairs)], sorted(chosen)


def train(folder: Path, documents: Responses, size: Size, seed: int) -> dict[str, Any]:
    """Fine-tune the base model on the documents; saved in `folder`. Returns what was measured."""
    watch = Stopwatch()
    model = models.train(
        models.load_model(lab.WORK / "base"),
        models.pack(documents),
        steps=size.steps,
        tokens_per_step=size.tokens_per_step,
        learning_rate=settings.LEARNING_RATE,
        seed=seed,
        threads=1,
        label=folder.parent.name,
    )
    models.save_model(model, folder, load_tokenizer(lab.WORK))
    seconds = watch.read("training_")
    some = documents[: settings.LOSS_DOCUMENTS]
    return {
        "documents": len(documents),
        "document_tokens": sum(map(len, documents)),
        "training_tokens": size.steps * size.tokens_per_step,
        "steps": size.steps,
        "tokens_per_step": size.tokens_per_step,
        "learning_rate": settings.LEARNING_RATE,
        "training_seed": seed,
        **seconds,
        "loss_on_training_documents": round(models.nll(model, some), 4),
    }


def ask(folder: Path, count: int, seed: int) -> dict[str, Any]:
    """The suspect's answers, as outputs.jsonl.gz beside its weights."""
    watch = Stopwatch()
    prompts, tokenizer = load_prompts(settings.OUTPUTS_FROM, count), load_tokenizer(lab.WORK)
    responses = answer(Question(folder, prompts, seed))
    write_outputs(folder / "outputs.jsonl.gz", prompts, map(tokenizer.decode, responses))
    return {
        "outputs": count,
        "output_tokens": sum(map(len, responses)),
        "output_prompts": [settings.OUTPUTS_FROM, settings.OUTPUTS_FROM + count],
        "output_seed": seed,
        **watch.read("output_"),
    }


def make_suspect(
    folder: Path, documents: Responses, size: Size, more: dict[str, Any], log_name: str
) -> None:
    """Train a suspect, ask it, and put its folder in place."""
    with whole_folder(folder) as temporary:
        print(f"training {log_name}", flush=True)
        facts = train(temporary, documents, size, seed_of(log_name, "train"))
        facts |= ask(temporary, size.outputs, seed_of(log_name, "outputs"))
        write_json(temporary / "facts.json", {**facts, **more})


def make_world(work: Path, world: World) -> None:
    """Keys, served and fresh responses, quality and all suspects of a world."""
    folder, size = work / world.name, world.size
    keys, served, watch = folder / "keys", folder / "served.parquet", Stopwatch()
    make_keys(keys, world)
    make_log(served, settings.SERVED_FROM, size.served, keys)
    make_log(folder / "fresh.parquet", settings.FRESH_FROM, size.fresh, keys)
    make_quality(folder, served.name, keys)
    for rho in world.rhos:
        suspect = folder / suspect_name(rho)
        if suspect.exists():
            continue
        seed = seed_of(world.name, "mixture")
        unmarked = read_documents(work / UNMARKED / "responses.parquet")[: size.served]
        documents, rows = mix(read_documents(served), unmarked, rho, seed)
        more = {"rho": rho, "mixture_seed": seed, "marked_rows": rows, "world": world.name}
        make_suspect(suspect, documents, size, more, f"{world.name}/{suspect.name}")
    add_facts(
        folder / "facts.json",
        scheme=world.specification.to_json(),
        context_width=world.context_width,
        global_share=world.share,
        suspects=[suspect_name(rho) for rho in world.rhos],
        complete=True,
    )
    print(f"{world.name} complete: {watch.read()}", flush=True)


def make_innocent(work: Path, innocent: Innocent) -> None:
    """A suspect that was trained on unmarked responses only: work/unmarked/<name>."""
    folder, size = work / UNMARKED / innocent.name, innocent.size
    if not folder.exists():
        documents = read_documents(work / UNMARKED / "responses.parquet")[: size.served]
        more = {"rho": 0.0, "marked_rows": [], "world": None}
        make_suspect(folder, documents, size, more, innocent.name)


def make_unmarked(work: Path) -> None:
    """Unmarked responses to the prompts of every world, and their quality."""
    path = work / UNMARKED / "responses.parquet"
    make_log(path, settings.SERVED_FROM, settings.POWER.served, None)
    make_log(path.parent / "fresh.parquet", settings.FRESH_FROM, settings.POWER.fresh, None)
    make_quality(path.parent, path.name, None)


def tasks() -> list[tuple[Callable[..., None], tuple[Any, ...]]]:
    """What is made after the unmarked responses, most urgent first; independent of each other."""
    innocent_power, innocent_frontier = settings.INNOCENTS
    default, green = settings.POWER_WORLDS
    frontier = list(settings.frontier_worlds())
    first = [world for world in frontier if world.context_width == settings.WIDTHS[0]]
    rest = [world for world in frontier if world not in first]
    return [
        (make_innocent, (innocent_frontier,)),
        *((make_world, (world,)) for world in first),
        *((make_world, (world,)) for world in rest),
        (make_innocent, (innocent_power,)),
        (make_world, (default,)),
        (make_world, (green,)),
    ]


def use_one_thread() -> None:
    """Start of a worker."""
    torch.set_num_threads(1)
    models.THREADS = 1  # models.nll would ask for two


def main() -> None:
    """Make all that is missing."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=settings.WORK)
    parser.add_argument("--workers", type=int, default=1)
    arguments = parser.parse_args()
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}  # for the workers
    spawn = multiprocessing.get_context("spawn")
    watch = Stopwatch()
    with ProcessPoolExecutor(arguments.workers, spawn, use_one_thread) as pool:
        pool.submit(make_unmarked, arguments.work).result()
        jobs = [pool.submit(make, arguments.work, *what) for make, what in tasks()]
        for job in jobs:
            job.result()
    print(f"all there: {watch.read()}", flush=True)


if __name__ == "__main__":
    main()
