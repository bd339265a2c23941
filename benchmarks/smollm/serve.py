"""Everything that is sampled: marked and unmarked service, fresh marked text, suspects' outputs.

A set of responses is sampled piece by piece (a batch of some 128 responses, minutes of one core).
A piece is a file `work/pieces/<set>-<number>.jsonl`, whole or absent, and depends on its seed, the
model and the keys only; so a killed run goes on where it was. Responses have their own place in a
set: (prompt, copy).
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

from benchmarks.smollm import decode
from benchmarks.smollm.model import (
    END,
    SERVED_MODEL,
    VOCABULARY,
    load_model,
    load_tokenizer,
    precision,
)
from benchmarks.smollm.prompts import CAPABILITIES, Prompt, prompts_for
from provenance.embed.rules import PromptContexts
from provenance.embed.watermark import Watermark
from provenance.keys.keyring import Keyring, SchemeSpecification, create_keyring
from provenance.keys.schedule import Schedule
from provenance.served.writer import LogWriter
from provenance.storage.files import write_atomically

SHARES = {"global": 0.2, "capability": 0.1, "week": 0.05, "cohort": 0.05}
WEEKS = ("2026-W17", "2026-W18", "2026-W19", "2026-W20")
UNSERVED_WEEK = "2026-W21"
COHORTS = ("direct", "partner-2", "reseller-7", "trial")


@dataclass(frozen=True)
class SampledSet:
    """A set of responses to sample.

    Attributes
    ----------
    use : which prompts are answered
    seed : of the labels, the order of the prompts and the draws
    marked : under the keyring, or plainly
    prompts, copies : prompts per piece, responses to each of them
    first_copy : number of the first of these responses
    new_tokens : at most so many tokens a response
    target : no further piece is begun once so many tokens are there (0: all pieces)
    """

    name: str
    use: str
    seed: int
    marked: bool
    prompts: int
    copies: int
    first_copy: int = 0
    new_tokens: int = 160
    target: int = 0


SERVED = SampledSet("served", "serve", 11, True, 32, 4)
SERVED_MORE = SampledSet("served-2", "serve", 15, True, 32, 4, first_copy=4, target=86_000)
FRESH = SampledSet("fresh", "fresh", 12, True, 36, 3)
UNMARKED = SampledSet("unmarked", "serve", 13, False, 64, 2)
OUTPUTS = SampledSet("outputs", "ask", 14, False, 48, 2, new_tokens=192)
PROBES = SampledSet("probes", "serve", 16, False, 96, 1)
"""The prompts of the served responses, put to a suspect."""


@dataclass(frozen=True)
class Record:
    """One sampled response as a line of a piece."""

    id: str
    prompt: str
    copy: int
    labels: dict[str, str]
    prompt_token_ids: list[int]
    token_ids: list[int]
    ended: bool
    marked: bool


def make_keys(work: Path) -> Path:
    """The keyring in `work/keys`: made once, then kept."""
    folder, tokenizer = work / "keys", work / SERVED_MODEL / "tokenizer.json"
    if not (folder / "keyring.json").exists():
        values = {
            "capability": list(CAPABILITIES),
            "week": [*WEEKS, UNSERVED_WEEK],
            "cohort": list(COHORTS),
        }
        schedule = Schedule.from_shares(SHARES, values)
        scheme = SchemeSpecification("gumbel")
        # the draws of this laboratory are not told their prompts
        create_keyring(folder, tokenizer, VOCABULARY, scheme, schedule, reads_prompt=False)
    Keyring.load(folder).check_tokenizer(tokenizer)
    return folder


def plain_draw(generator: np.random.Generator) -> decode.Draw:
    """Ordinary sampling by inversion, one uniform a token."""

    def draw(
        _rows: NDArray[np.int64],
        _tokens: NDArray[np.uint32],
        _candidates: NDArray[np.uint32],
        probabilities: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        cumulative = probabilities.cumsum(axis=1)
        targets = generator.random(len(probabilities)) * cumulative[:, -1]
        below = (cumulative <= targets[:, np.newaxis]).sum(axis=1)
        columns: NDArray[np.int64] = np.minimum(below, probabilities.shape[1] - 1)
        return columns

    return draw


def marked_draw(
    watermark: Watermark,
    labels: list[dict[str, str]],
    prompts: Sequence[PromptContexts] | None = None,
) -> decode.Draw:
    """The product's draw for each row; `labels` by row of the piece, and what its prompt holds."""

    def _draw(row: int, response: Any, ids: Any, chances: Any) -> int:
        prompt = None if prompts is None else prompts[row]
        return watermark.draw(labels[row], response, ids, chances, prompt).token

    def draw(
        rows: NDArray[np.int64],
        tokens: NDArray[np.uint32],
        candidates: NDArray[np.uint32],
        probabilities: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        chosen = [
            int(np.flatnonzero(ids == _draw(row, response, ids, chances))[0])
            for row, response, ids, chances in zip(
                rows, tokens, candidates, probabilities, strict=True
            )
        ]
        return np.array(chosen)

    return draw


@dataclass(frozen=True)
class Piece:
    """One piece of a set: its number and its prompts."""

    number: int
    prompts: list[Prompt]


def pieces_of(wanted: SampledSet) -> list[Piece]:
    """All pieces of a set; the prompts come in an order of its own."""
    prompts = prompts_for(wanted.use)
    order = np.random.default_rng([wanted.seed, 0]).permutation(len(prompts))
    mixed = [prompts[i] for i in order]
    cuts = range(0, len(mixed), wanted.prompts)
    return [Piece(n, mixed[i : i + wanted.prompts]) for n, i in enumerate(cuts)]


def draw_labels(prompt: Prompt, generator: np.random.Generator) -> dict[str, str]:
    """The labels of one request: week and cohort at random."""
    return {
        "capability": prompt.capability,
        "week": WEEKS[generator.integers(len(WEEKS))],
        "cohort": COHORTS[generator.integers(len(COHORTS))],
    }


class SamplesPieces(Protocol):
    """A model of any family that answers prompts."""

    work: Path

    def sample(self, wanted: SampledSet, piece: Piece) -> list[Record]:
        """The records of one piece."""


class Sampler:
    """Samples pieces with one model; the model is loaded when it is first needed."""

    def __init__(self, work: Path, model: str) -> None:
        self.work, self.model = work, model
        self._model: Any = None
        self._tokenizer: Any = None

    def sample(self, wanted: SampledSet, piece: Piece) -> list[Record]:
        """The records of one piece."""
        if self._model is None:
            self._model = load_model(self.work / self.model, getattr(torch, precision()))
            self._tokenizer = load_tokenizer(self.work / SERVED_MODEL)
        generator = np.random.default_rng([wanted.seed, 1_000, piece.number])
        rows = [(p, c) for p in piece.prompts for c in range(wanted.copies)]
        labels = [draw_labels(prompt, generator) for prompt, _ in rows]
        ids = [
            self._tokenizer.apply_chat_template(
                prompt.messages(), add_generation_prompt=True, return_dict=False
            )
            for prompt in piece.prompts
        ]
        draw = plain_draw(generator)
        watermark = Watermark.load(self.work / "keys", generator) if wanted.marked else None
        if watermark is not None:
            draw = marked_draw(watermark, labels)
        responses = decode.generate(self._model, ids, wanted.copies, wanted.new_tokens, draw)
        records = []
        for row, (response, (prompt, copy)) in enumerate(zip(responses, rows, strict=True)):
            tokens = np.array(whole_ids(response), dtype=np.uint32)
            marked = watermark is not None and watermark.marked_positions(labels[row], tokens).any()
            copy += wanted.first_copy
            records.append(
                Record(
                    id=f"{wanted.name}-{prompt.id}-{copy}",
                    prompt=prompt.id,
                    copy=copy,
                    labels=labels[row],
                    prompt_token_ids=list(ids[row // wanted.copies]),
                    token_ids=response.token_ids,
                    ended=response.ended,
                    marked=bool(marked),
                )
            )
        return records


def read_piece(path: Path) -> list[Record]:
    """The records of a piece that has been sampled."""
    return [Record(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines()]


def read_set(work: Path, name: str) -> list[Record]:
    """The records of all pieces of a set that have been sampled."""
    paths = sorted((work / "pieces").glob(f"{name}-???.jsonl"))
    return [record for path in paths for record in read_piece(path)]


def _sample_piece(sampler: SamplesPieces, wanted: SampledSet, piece: Piece, path: Path) -> None:
    """Sample one piece, note its time, and commit it."""
    started, busy = time.perf_counter(), time.process_time()
    found = sampler.sample(wanted, piece)
    lines = [json.dumps(asdict(record), separators=(",", ":")) + "\n" for record in found]
    facts: dict[str, Any] = {
        "piece": path.stem,
        "at": time.strftime("%H:%M:%S"),
        "tokens": sum(len(record.token_ids) for record in found),
        "seconds": round(time.perf_counter() - started),
        "processor_seconds": round(time.process_time() - busy),
    }
    path.parent.mkdir(exist_ok=True)
    with (sampler.work / "times.jsonl").open("a") as file:
        file.write(json.dumps(facts) + "\n")
    write_atomically(path, "".join(lines).encode())
    print(
        f"{facts['at']} {path.stem}: {facts['tokens']} tokens in {facts['seconds']} s "
        f"({facts['processor_seconds']} s of processor)",
        flush=True,
    )


def sample_set(sampler: SamplesPieces, wanted: SampledSet, name: str) -> list[Record]:
    """All records of a set, sampled where they are missing; `name` is that of the pieces' files."""
    work, tokens, records = sampler.work, 0, list[Record]()
    for piece in pieces_of(wanted):
        if wanted.target and tokens >= wanted.target:
            break
        path = work / "pieces" / f"{name}-{piece.number:03d}.jsonl"
        if not path.exists():
            _sample_piece(sampler, wanted, piece, path)
        records += read_piece(path)
        tokens = sum(len(r.token_ids) for r in records)
    return records


def served_time(week: str, place: int) -> str:
    """A time inside an ISO week."""
    year, number = week.split("-W")
    day = date.fromisocalendar(int(year), int(number), 1 + place % 7)
    return f"{day.isoformat()}T{place // 7 % 24:02d}:00:00Z"


def whole_ids(response: Record | decode.Response) -> list[int]:
    """All ids that were drawn: those of the text, and the end token."""
    return response.token_ids + [END] * response.ended


def write_log(path: Path, records: list[Record], keys: Path) -> None:
    """A served log of the product; every response is a conversation of its own."""
    if path.exists():
        return
    watermark = Watermark.load(keys)
    with LogWriter(path) as log:
        for place, record in enumerate(records):
            ids = np.array(whole_ids(record), dtype=np.uint32)
            log.write(
                record.id,
                labels=record.labels,
                marked=record.marked,
                token_ids=ids,
                drawn=watermark.marked_positions(record.labels, ids) if record.marked else None,
                finish="end" if record.ended else "length",
                time=served_time(record.labels["week"], place),
                prompt_token_ids=record.prompt_token_ids,
                conversation_id=f"conversation-{record.id}",
            )


def write_outputs(
    tokenizer: PreTrainedTokenizerBase, path: Path, records: list[Record], ids: bool
) -> None:
    """Outputs of a suspect as the product reads them, with ids beside the text if they are ours."""
    if path.exists():
        return
    messages = {p.id: p.messages() for use in ("ask", "serve") for p in prompts_for(use)}
    lines = [
        json.dumps(
            {
                "messages": messages[record.prompt],
                "output": tokenizer.decode(record.token_ids),
                **({"output_token_ids": record.token_ids} if ids else {}),
            },
            ensure_ascii=False,
        )
        for record in records
    ]
    write_atomically(path, ("\n".join(lines) + "\n").encode())


def facts_of(records: list[Record]) -> dict[str, Any]:
    """Counts for facts.json."""
    lengths = [len(record.token_ids) for record in records]
    return {
        "responses": len(records),
        "tokens": sum(lengths),
        "mean_tokens": round(sum(lengths) / len(records), 1),
        "ended": sum(record.ended for record in records),
        "marked": sum(record.marked for record in records),
        "prompts": len({record.prompt for record in records}),
    }
