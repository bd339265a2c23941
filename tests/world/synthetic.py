"""A synthetic world in which the whole pipeline runs in a second: a teacher, marked logs, suspects.

The teacher is a Markov chain of order 2 over 256 words: after every pair of words it has 12
candidates with Zipf weights. A word-level tokenizer makes text and token ids exact images of each
other, so suspects go through files, JSON and the real tokenizer like any other outputs.

Innocent suspects never see the log. The guilty one mixes the teacher with the counts of the log:
after context c it copies a logged continuation with probability n_c / (n_c + 3).
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer, models, pre_tokenizers

from provenance.embed.watermark import Watermark
from provenance.keys.keyring import SchemeSpecification, UnlockedKeyring, create_keyring
from provenance.keys.schedule import Schedule
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.served.writer import LogWriter

WORDS = 256
CANDIDATES = 12
LABELS = {"week": ["W1", "W2"], "capability": ["code", "prose"], "cohort": ["a", "b"]}
GUMBEL = SchemeSpecification("gumbel")
SHARES = {"global": 0.3, "week": 0.15, "capability": 0.15, "cohort": 0.1}

Ids = NDArray[np.uint32]


def save_tokenizer(path: Path) -> None:
    """A word-level tokenizer: id i is the word `w<i>`; text and ids are images of each other."""
    vocabulary = {f"w{i}": i for i in range(WORDS)}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="w0"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))


def decode(ids: Sequence[int] | Ids) -> str:
    return " ".join(f"w{i}" for i in ids)


@dataclass(frozen=True)
class Teacher:
    """candidates uint32 [V, V, 12] and probabilities float64 [V, V, 12] of each context."""

    candidates: Ids
    probabilities: NDArray[np.float64]

    @classmethod
    def draw(cls, seed: int) -> Teacher:
        rng = np.random.default_rng(seed)
        popularity = 1 / (np.arange(WORDS) + 3.0)
        scores = np.log(popularity) + rng.gumbel(size=(WORDS, WORDS, WORDS)).astype(np.float32)
        candidates = np.argpartition(-scores, CANDIDATES, axis=2)[:, :, :CANDIDATES]
        weights = 1 / (1 + rng.permuted(np.tile(np.arange(12.0), (WORDS, WORDS, 1)), axis=2))
        return cls(candidates.astype(np.uint32), weights / weights.sum(axis=2, keepdims=True))

    def sample(self, rng: np.random.Generator, responses: int, tokens: int) -> Ids:
        """Unmarked responses, uint32 [responses, tokens]."""
        ids = np.empty((responses, tokens), dtype=np.uint32)
        ids[:, :2] = rng.integers(0, 40, (responses, 2))
        for t in range(2, tokens):
            ids[:, t] = self.next(rng, ids[:, t - 2], ids[:, t - 1])
        return ids

    def next(self, rng: np.random.Generator, a: Ids, b: Ids) -> Ids:
        cumulative = np.cumsum(self.probabilities[a, b], axis=1)
        drawn = (rng.random((a.shape[0], 1)) > cumulative).sum(axis=1).clip(max=CANDIDATES - 1)
        return self.candidates[a, b, drawn]

    def dense(self, a: Ids, b: Ids) -> NDArray[np.float64]:
        """Probabilities over the whole vocabulary, float64 [n, V]."""
        rows = np.zeros((a.shape[0], WORDS))
        np.put_along_axis(rows, self.candidates[a, b].astype(np.int64), self.probabilities[a, b], 1)
        return rows


def serve(
    teacher: Teacher, watermark: Watermark, rng: np.random.Generator, responses: int, tokens: int
) -> tuple[Ids, list[dict[str, str]]]:
    """Marked responses with random labels, drawn through `Watermark` like in production."""
    labels = [
        {name: str(rng.choice(values)) for name, values in LABELS.items()} for _ in range(responses)
    ]
    ids = np.empty((responses, tokens), dtype=np.uint32)
    ids[:, :2] = rng.integers(0, 40, (responses, 2))
    prompts = watermark.read_prompts([()] * responses)
    for t in range(2, tokens):
        rows = teacher.dense(ids[:, t - 2], ids[:, t - 1])
        ids[:, t] = [
            draw.token for draw in watermark.draw_batch(labels, list(ids[:, :t]), rows, prompts)
        ]
    return ids, labels


@dataclass(frozen=True)
class World:
    """A keyring, its marked log on disk, and the index of it."""

    folder: Path
    keyring: UnlockedKeyring
    tokenizer: Tokenizer
    teacher: Teacher
    served: Ids
    labels: list[dict[str, str]]
    index: Index


@contextmanager
def seeded_secrets(seed: int) -> Iterator[None]:
    """Keyrings that are made inside are the same for the same seed: whoever runs it again sees the
    same figures, and a control that fails once in a thousand keyrings does not fail at random."""
    drawn = random.Random(seed)
    with (
        mock.patch("secrets.token_bytes", drawn.randbytes),
        mock.patch("secrets.token_hex", lambda size: drawn.randbytes(size).hex()),
    ):
        yield


def make_world(
    folder: Path,
    teacher: Teacher,
    seed: int,
    responses: int = 200,
    tokens: int = 80,
    scheme: SchemeSpecification = GUMBEL,
    shares: Mapping[str, float] = SHARES,
) -> World:
    """Serve marked responses under the keyring of this seed and index them."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    save_tokenizer(folder / "tokenizer.json")
    with seeded_secrets(seed):
        keyring = create_keyring(
            folder / "keys",
            folder / "tokenizer.json",
            WORDS,
            scheme,
            Schedule.from_shares(
                shares, {name: [*values, "unserved"] for name, values in LABELS.items()}
            ),
            reads_prompt=False,  # nothing here has a prompt, and the seeds keep their keys
        )
    watermark = Watermark(keyring, np.random.default_rng(seed + 1))
    served, labels = serve(teacher, watermark, rng, responses, tokens)
    with LogWriter(folder / "served.jsonl") as log:
        for i, (ids, own) in enumerate(zip(served, labels, strict=True)):
            log.write(
                response_id=f"r{i}",
                time="2026-01-01T00:00:00+00:00",
                labels=own,
                token_ids=ids.tolist(),
                text=decode(ids),
                marked=True,
                finish="length",
            )
    build_index([folder / "served.jsonl"], folder / "index", keyring, threads=1, control_share=1.0)
    return World(
        folder,
        keyring,
        Tokenizer.from_file(str(folder / "tokenizer.json")),
        teacher,
        served,
        labels,
        Index.open(folder / "index", keyring.public),
    )


def write_outputs(path: Path, outputs: Sequence[Ids], prompts: Sequence[str] | None = None) -> Path:
    """Outputs of a suspect as the JSONL that users bring."""
    prompts = prompts or [""] * len(outputs)
    lines = [
        json.dumps({"prompt": prompt, "output": decode(ids)})
        for prompt, ids in zip(prompts, outputs, strict=True)
    ]
    path.write_text("\n".join(lines) + "\n")
    return path


def learn(world: World, rng: np.random.Generator, responses: int, tokens: int) -> list[Ids]:
    """Outputs of a guilty suspect: copies logged continuations, else speaks like the teacher."""
    continuations: dict[tuple[int, int], list[int]] = {}
    for ids in world.served.tolist():
        for a, b, t in zip(ids, ids[1:], ids[2:], strict=False):
            continuations.setdefault((a, b), []).append(t)
    outputs = world.teacher.sample(rng, responses, tokens)
    for row in outputs:
        for t in range(2, tokens):
            known = continuations.get((int(row[t - 2]), int(row[t - 1])), [])
            if rng.random() < len(known) / (len(known) + 3):
                row[t] = known[rng.integers(len(known))]
            else:
                row[t] = world.teacher.next(rng, row[t - 2 : t - 1], row[t - 1 : t])[0]
    return list(outputs)


def innocent(
    kind: str, world: World, rng: np.random.Generator, documents: int = 100
) -> tuple[list[Ids], list[str]]:
    """Outputs and prompts of a suspect that never saw the log.

    ordinary : the teacher's own unmarked text: as similar to the log as innocent text can be
    templates : a few sentences with one changing word, over and over
    repeats : few documents, each loops and is given many times
    prompts : every prompt is marked text of the log, and the output quotes it before it goes on

    `documents` is the number of the ordinary ones; 600 are enough for a check to have power.
    """
    text = world.teacher.sample(rng, documents, 80)
    if kind == "ordinary":
        return list(text), [""] * len(text)
    if kind == "templates":
        frames = text[:4, :40]
        outputs = frames[rng.integers(0, 4, 150)].copy()
        outputs[np.arange(150), rng.integers(0, 40, 150)] = rng.integers(0, WORDS, 150)
        return list(outputs), [""] * 150
    if kind == "repeats":
        loops = [np.tile(row[:20], 4) for row in text[:10]]
        return [loops[i] for i in rng.integers(0, 10, 100)], [""] * 100
    if kind == "prompts":
        quoted = world.served[rng.integers(0, len(world.served), 100)][:, :40]
        outputs = [np.concatenate([q, t[:40]]) for q, t in zip(quoted, text, strict=True)]
        return outputs, [decode(q) for q in quoted]
    raise ValueError(kind)
