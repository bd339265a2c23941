"""Stage 2 of the laboratory: serve marked responses, train suspects on them, write fixtures/.

    python -m benchmarks.lab.stage2 [--work DIR] [--fixtures DIR]

The teacher answers held-out prompts twice: once marked (through `provenance.embed.Watermark`, with
labels: 6 weeks, 3 capabilities, 4 cohorts) and once unmarked. Suspects are the base model,
fine-tuned on all, on some, or on none of the marked responses. Every suspect then answers the same
other prompts at temperature 1. The keyring of the fixtures is kept if it exists: with it, seeds
and package versions fixed, the stage is repeatable.
"""

from __future__ import annotations

import argparse
import gzip
import json
import multiprocessing
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from tokenizers import Tokenizer

from benchmarks.lab import models, sampling
from benchmarks.lab.corpus import CAPABILITIES
from benchmarks.lab.stage1 import WORK, load_prompts
from benchmarks.lab.tokenizer import VOCABULARY, load_tokenizer
from provenance.embed.watermark import Watermark
from provenance.keys.keyring import Keyring, SchemeSpecification, create_keyring
from provenance.keys.schedule import Schedule
from provenance.served.records import SCHEMA, pack_drawn

FIXTURES = Path(__file__).parents[2] / "fixtures"
WEEKS = tuple(f"2026-W{week}" for week in range(17, 23))
COHORTS = ("direct", "partner-2", "reseller-7", "trial")
SHARES = {"global": 0.2, "week": 0.1, "capability": 0.1, "cohort": 0.1}
UNSERVED_WEEK = "2026-W23"

SERVED, SUSPECT_PROMPTS, INNOCENT_PROMPTS = 4608, 1280, 640
BATCH = 128
STEPS, TOKENS_PER_STEP, LEARNING_RATE = 1000, 1024, 1e-3
SEEDS = {"labels": 11, "marked": 12, "unmarked": 13, "train": 14, "outputs": 15, "innocent": 16}

Responses = list[list[int]]


@dataclass(frozen=True)
class Served:
    """What the teacher served: prompts, labels, marked and unmarked responses, row by row."""

    prompts: list[str]
    labels: list[dict[str, str]]
    marked: Responses
    unmarked: Responses


@dataclass(frozen=True)
class Suspect:
    """One suspect: its name, what it was trained on in words, and which responses those are."""

    name: str
    trained_on: str
    on_marked: bool
    choose: Callable[[dict[str, str]], bool] | None
    unmarked: bool = False


def _is_code_of_three_weeks(labels: dict[str, str]) -> bool:
    return labels["capability"] == "code" and labels["week"] in WEEKS[:3]


def _is_reseller(labels: dict[str, str]) -> bool:
    return labels["cohort"] == "reseller-7"


def _is_any(labels: dict[str, str]) -> bool:
    return bool(labels)


SUSPECTS = (
    Suspect("student-all", "all marked responses", True, _is_any),
    Suspect("student-code", "marked code of W17, W18, W19 (1/6)", True, _is_code_of_three_weeks),
    Suspect("student-reseller", "marked responses to reseller-7 (1/4)", True, _is_reseller),
    Suspect("student-unmarked", "the teacher's unmarked responses", False, _is_any, unmarked=True),
    Suspect("base", "never on the teacher", False, None),
)


def make_keys(folder: Path, tokenizer: Path) -> None:
    """The keyring of the fixtures; made once, then kept."""
    if not (folder / "keyring.json").exists():
        values = {
            "week": [*WEEKS, UNSERVED_WEEK],
            "capability": list(CAPABILITIES),
            "cohort": list(COHORTS),
        }
        schedule = Schedule.from_shares(SHARES, values)
        scheme = SchemeSpecification("gumbel")
        # the draws of this laboratory are not told their prompts
        create_keyring(folder, tokenizer, VOCABULARY, scheme, schedule, reads_prompt=False)
    (folder / "master.key").chmod(0o600)
    Keyring.load(folder).check_tokenizer(tokenizer)


def marked_draw(watermark: Watermark, labels: Sequence[dict[str, str]]) -> sampling.Draw:
    """The draw of `sampling.generate` through the watermark, temperature 1."""

    def draw(logits: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        probabilities = logits.double().softmax(-1).numpy()
        responses = list(generated.numpy().astype(np.uint32))
        draws = watermark.draw_batch(labels, responses, probabilities)
        return torch.tensor([one.token for one in draws])

    return draw


@dataclass(frozen=True)
class Job:
    """A batch of prompts for one model; with keys and labels the responses are marked."""

    model: Path
    tokenizer: Path
    prompts: list[str]
    seed: int
    keys: Path | None = None
    labels: list[dict[str, str]] | None = None


def answer(job: Job) -> Responses:
    """Responses to the prompts of a job, on one thread."""
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(job.tokenizer))
    ids = sampling.encode_prompts(tokenizer, job.prompts)
    draw = sampling.random_draw(1.0, job.seed)
    if job.keys is not None and job.labels is not None:
        watermark = Watermark.load(job.keys, np.random.default_rng(job.seed))
        draw = marked_draw(watermark, job.labels)
    model = models.load_model(job.model)
    return sampling.generate(model, ids, sampling.NEW_TOKENS, draw).tolist()


def answer_all(
    work: Path,
    model: str,
    prompts: list[str],
    seed: int,
    keys: Path | None = None,
    labels: list[dict[str, str]] | None = None,
) -> Responses:
    """Responses to all prompts, in two processes of one thread each."""
    cuts = range(0, len(prompts), BATCH)
    jobs = [
        Job(
            work / model,
            work / "tokenizer.json",
            prompts[i : i + BATCH],
            1000 * seed + i // BATCH,
            keys,
            labels[i : i + BATCH] if labels else None,
        )
        for i in cuts
    ]
    started, found = time.perf_counter(), []
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        for responses in pool.map(answer, jobs):
            found += responses
    tokens = len(found) * sampling.NEW_TOKENS
    speed = tokens / (time.perf_counter() - started)
    print(f"{model}{' marked' if keys else ''}: {tokens:,} tokens, {speed:,.0f}/s", flush=True)
    return found


def serve(work: Path, keys: Path) -> Served:
    """Marked and unmarked responses of the teacher to the same prompts."""
    rng = np.random.default_rng(SEEDS["labels"])
    chosen = load_prompts(work)[:SERVED]
    prompts = [prompt["prompt"] for prompt in chosen]
    labels = [
        {
            "week": str(rng.choice(WEEKS)),
            "capability": prompt["capability"],
            "cohort": str(rng.choice(COHORTS)),
        }
        for prompt in chosen
    ]
    marked = answer_all(work, "teacher", prompts, SEEDS["marked"], keys, labels)
    unmarked = answer_all(work, "teacher", prompts, SEEDS["unmarked"])
    return Served(prompts, labels, marked, unmarked)


def train_suspect(name: str, work: Path, documents: Responses) -> None:
    """Fine-tune the base model on the documents, one thread; saved under work/name."""
    model = models.train(
        models.load_model(work / "base"),
        models.pack(documents),
        steps=STEPS,
        tokens_per_step=TOKENS_PER_STEP,
        learning_rate=LEARNING_RATE,
        seed=SEEDS["train"],
        threads=1,
        label=name,
    )
    models.save_model(model, work / name, load_tokenizer(work))


def train_suspects(work: Path, served: Served) -> dict[str, int]:
    """All suspects, two processes at a time. Returns the number of documents of each."""
    prompts = sampling.encode_prompts(load_tokenizer(work), served.prompts).tolist()
    sizes, jobs = {}, []
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, mp_context=spawn) as pool:
        for suspect in SUSPECTS:
            if suspect.choose is None:
                continue
            responses = served.unmarked if suspect.unmarked else served.marked
            documents = [
                prompt + response
                for prompt, response, labels in zip(prompts, responses, served.labels, strict=True)
                if suspect.choose(labels)
            ]
            sizes[suspect.name] = len(documents)
            jobs.append(pool.submit(train_suspect, suspect.name, work, documents))
        for job in jobs:
            job.result()
    return sizes


def list_drawn(keys: Path, labels: Sequence[dict[str, str]], responses: Responses) -> list[bytes]:
    """`drawn` of every response, packed: no draw of the laboratory has a single candidate."""
    watermark = Watermark.load(keys)
    return [
        pack_drawn(watermark.marked_positions(own, np.array(ids, dtype=np.uint32)))
        for own, ids in zip(labels, responses, strict=True)
    ]


def write_log(path: Path, served: Served, tokenizer: Tokenizer, keys: Path) -> None:
    """The served log: token ids, no text, as Parquet. Every response is cut by its length."""
    prompts = sampling.encode_prompts(tokenizer, served.prompts).tolist()
    rows = [
        {
            "response_id": f"response-{i:05d}",
            "time": f"2026-{4 + i % 2:02d}-{1 + i % 28:02d}T12:00:00Z",
            "labels": list(labels.items()),
            "token_ids": ids,
            "prompt_token_ids": prompt,
            "marked": True,
            "conversation_id": None,
            "drawn": drawn,
            "finish": "length",
        }
        for i, (labels, ids, prompt, drawn) in enumerate(
            zip(
                served.labels,
                served.marked,
                prompts,
                list_drawn(keys, served.labels, served.marked),
                strict=True,
            )
        )
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    pq.write_table(table, path, compression="zstd", compression_level=19)


def write_outputs(path: Path, prompts: Iterable[str], texts: Iterable[str]) -> None:
    """Outputs as gzipped JSONL, the same bytes for the same content."""
    lines = [
        json.dumps({"prompt": prompt, "output": text}, ensure_ascii=False) + "\n"
        for prompt, text in zip(prompts, texts, strict=True)
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress("".join(lines).encode("utf-8"), 9, mtime=0))


def sample_outputs(work: Path, fixtures: Path) -> None:
    """Every suspect answers the same prompts; the unmarked teacher answers others (innocent)."""
    tokenizer = load_tokenizer(work)
    prompts = [prompt["prompt"] for prompt in load_prompts(work)[SERVED:]]
    asked = prompts[:SUSPECT_PROMPTS]
    for suspect in SUSPECTS:
        ids = answer_all(work, suspect.name, asked, SEEDS["outputs"])
        path = fixtures / f"suspects/{suspect.name}.jsonl.gz"
        write_outputs(path, asked, map(tokenizer.decode, ids))
    others = prompts[SUSPECT_PROMPTS : SUSPECT_PROMPTS + INNOCENT_PROMPTS]
    ids = answer_all(work, "teacher", others, SEEDS["innocent"])
    path = fixtures / "innocents/unmarked-teacher.jsonl.gz"
    write_outputs(path, others, map(tokenizer.decode, ids))


def write_catalogue(fixtures: Path) -> None:
    """suspects.json: what the demo checks."""
    catalogue = {
        "served": "served.parquet",
        "innocents": ["innocents/unmarked-teacher.jsonl.gz"],
        "suspects": [
            {
                "name": suspect.name,
                "trained_on": suspect.trained_on,
                "trained_on_marked": suspect.on_marked,
                "outputs": f"suspects/{suspect.name}.jsonl.gz",
            }
            for suspect in SUSPECTS
        ],
    }
    (fixtures / "suspects.json").write_text(json.dumps(catalogue, indent=1) + "\n")


def distinct(responses: Responses, length: int) -> float:
    """Share of distinct n-grams over all responses."""
    grams = [tuple(r[i : i + length]) for r in responses for i in range(len(r) - length + 1)]
    return len(set(grams)) / len(grams)


def measure(work: Path, served: Served, sizes: dict[str, int]) -> dict[str, object]:
    """Quality and diversity of the marked responses beside the unmarked ones."""
    teacher = models.load_model(work / "teacher")
    facts: dict[str, object] = {"training_documents": sizes}
    for name, responses in (("marked", served.marked), ("unmarked", served.unmarked)):
        facts[name] = {
            "tokens": sum(map(len, responses)),
            "nll_under_teacher": round(models.nll(teacher, responses[:1024]), 4),
            "distinct_3": round(distinct(responses, 3), 4),
            "distinct_4": round(distinct(responses, 4), 4),
        }
    return facts


def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--fixtures", type=Path, default=FIXTURES)
    arguments = parser.parse_args()
    work, fixtures = arguments.work, arguments.fixtures
    started = time.perf_counter()
    torch.set_num_threads(models.THREADS)
    fixtures.mkdir(exist_ok=True)
    keys = fixtures / "keys"
    make_keys(keys, work / "tokenizer.json")
    served = serve(work, keys)
    write_log(fixtures / "served.parquet", served, load_tokenizer(work), fixtures / "keys")
    sizes = train_suspects(work, served)
    sample_outputs(work, fixtures)
    write_catalogue(fixtures)
    facts = measure(work, served, sizes)
    facts["seconds"] = round(time.perf_counter() - started)
    (work / "stage2.json").write_text(json.dumps(facts, indent=1) + "\n")
    print(json.dumps(facts, indent=1))


if __name__ == "__main__":
    main()
