"""Responses of a model to prompts, marked or not, on one thread; and the files that hold them."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.lab import models, sampling
from benchmarks.lab import stage1 as lab
from benchmarks.lab.stage2 import Responses, list_drawn, marked_draw
from benchmarks.lab.tokenizer import load_tokenizer
from provenance.embed.watermark import Watermark
from provenance.served.records import SCHEMA
from tests.world.power.settings import BATCH


@dataclass(frozen=True)
class Question:
    """Prompts for one model; with keys the responses are marked."""

    model: Path
    prompts: Sequence[str]
    seed: int
    keys: Path | None = None
    new_tokens: int = sampling.NEW_TOKENS


def load_prompts(start: int, count: int) -> list[str]:
    """`count` prompts of the laboratory from `start` on, in their fixed order."""
    prompts = [entry["prompt"] for entry in lab.load_prompts(lab.WORK)[start : start + count]]
    if len(prompts) != count:
        raise ValueError(f"prompts {start} to {start + count} must exist; got {len(prompts)}.")
    return prompts


def answer(question: Question) -> Responses:
    """One response to each prompt, in batches of BATCH; batch i has the seed 1000 seed + i."""
    ids = sampling.encode_prompts(load_tokenizer(lab.WORK), question.prompts)
    model = models.load_model(question.model)
    started, found = time.perf_counter(), []
    for index, batch in enumerate(ids.split(BATCH)):
        seed = 1000 * question.seed + index
        draw = sampling.random_draw(1.0, seed)
        if question.keys is not None:
            watermark = Watermark.load(question.keys, np.random.default_rng(seed))
            draw = marked_draw(watermark, [{}] * len(batch))
        found += sampling.generate(model, batch, question.new_tokens, draw).tolist()
    tokens = len(found) * question.new_tokens
    speed = tokens / (time.perf_counter() - started)
    kind = f"marked by {question.keys.parent.name}" if question.keys else "unmarked"
    print(f"{question.model.name} {kind}: {tokens:,} tokens, {speed:,.0f}/s", flush=True)
    return found


def write_log(path: Path, prompts: Sequence[str], responses: Responses, keys: Path | None) -> None:
    """A log in the format of a served one, written whole or not at all; no labels.

    With keys the responses were marked under them; every response is cut by its length.
    """
    drawn: Sequence[bytes | None] = [None] * len(responses)
    if keys is not None:
        drawn = list_drawn(keys, [{}] * len(responses), responses)
    prompt_ids = sampling.encode_prompts(load_tokenizer(lab.WORK), prompts).tolist()
    rows = [
        {
            "response_id": f"{path.stem}-{i:05d}",
            "time": f"2026-{4 + i % 2:02d}-{1 + i % 28:02d}T12:00:00Z",
            "labels": [],
            "token_ids": ids,
            "prompt_token_ids": prompt,
            "marked": keys is not None,
            "conversation_id": None,
            "drawn": bits,
            "finish": "length",
        }
        for i, (prompt, ids, bits) in enumerate(zip(prompt_ids, responses, drawn, strict=True))
    ]
    table = pa.Table.from_pylist(rows, schema=SCHEMA)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".making-") as folder:
        temporary = Path(folder) / path.name
        pq.write_table(table, temporary, compression="zstd", compression_level=12)
        temporary.replace(path)


def read_responses(path: Path) -> Responses:
    """The token ids of the responses of a log, in order."""
    ids: Responses = pq.read_table(path, columns=["token_ids"]).column(0).to_pylist()
    return ids


def read_documents(path: Path) -> Responses:
    """Prompt and response of each row of a log, as training documents."""
    table = pq.read_table(path, columns=["prompt_token_ids", "token_ids"]).to_pylist()
    return [row["prompt_token_ids"] + row["token_ids"] for row in table]
