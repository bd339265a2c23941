"""One suspect, every test: ours and the published ones, from text, logprobs and weights.

All tests of one suspect see the same outputs and read the same documents, and the same coins of the
`global` key. The peers know no slots: they are given the contexts of the marked slot only, which
favours them, since the other contexts carry no mark. False-positive rates are those of the same
test on a suspect that was trained on unmarked responses, under random keys.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from benchmarks.lab.models import load_model
from benchmarks.lab.stage1 import WORK as LAB
from provenance.check.score import WeightedPairs, score, weigh_observations
from provenance.check.weigh import DEFAULT_RULE, REFERENCE_RULE
from provenance.coins import words as coins
from provenance.coins.contexts import list_windows, pack_windows, unpack
from provenance.keys.keyring import Keyring
from provenance.keys.tokenizer import load_tokenizer
from provenance.marks.own import make_scheme
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.stats.null_distribution import NullDistribution
from provenance.stats.tables import ClassTable
from provenance.stats.tails import upper_tail
from provenance.suspect.access.documents import Documents
from provenance.suspect.access.outputs import count_positions, read_positions
from provenance.suspect.access.probabilities import (
    expect_with_model,
    observe_logprobs,
    observe_weights,
)
from provenance.suspect.models.language_model import LanguageModel
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.observations import Observations, add_expectations
from provenance.suspect.positions import Positions, join_ids
from tests.world.power import methods

KEYS = 300
"""Random keys of a false-positive rate."""
LEVEL = 0.01
LISTED = 20
GLOBAL = ("global", "")

Words = NDArray[np.uint32]
PeerTest = Callable[[Words], methods.PeerResult]


@dataclass(frozen=True)
class Record:
    """One test of one suspect. `false_positive_rate` is at level .01 over 300 random keys.

    `effective_coins` of our tests: what a response curve needs beside z (`response.py`).
    """

    world: str
    suspect: str
    share: float
    access: str
    method: str
    tokens: int
    log10_p: float
    z: float
    false_positive_rate: float | None = None
    null_sd: float | None = None
    effective_coins: float | None = None


class Bench:
    """A world, opened: keyring, index, and what every test of it needs."""

    def __init__(self, folder: Path, unmarked: Path, documents: int) -> None:
        self.folder, self.unmarked, self.documents = folder, unmarked, documents
        self.public = Keyring.load(folder / "keys")
        self.keyring = self.public.unlock(folder / "keys")
        self.tokenizer = load_tokenizer(folder / "keys/tokenizer.json", self.public)
        specification = self.public.scheme
        self.scheme = make_scheme(specification.name, specification.parameters)
        if not (folder / "index/manifest.json").exists():
            build_index([folder / "served.parquet"], folder / "index", self.keyring)
        self.index = Index.open(folder / "index", self.public)
        self.key = self.keyring.key(*GLOBAL)
        self.slot = self.keyring.schedule.names.index("global")
        self.cache = folder / "cache"

    @cached_property
    def base(self) -> LanguageModel:
        """The suspects' own base model."""
        return LanguageModel(LAB / "base", self.public, self.tokenizer)

    @cached_property
    def ngrams(self) -> NgramReference:
        """k-grams of an innocent's outputs: no model, no marked text."""
        text = read_positions(
            [self.unmarked / "innocent-text.jsonl.gz"], self.tokenizer, self.public
        )
        return NgramReference(text, self.public.vocabulary_size, self.public.context_width)

    def in_slot(self, contexts: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Contexts of the marked slot: bool [n]."""
        return self.keyring.slots_of(unpack(contexts, self.public.context_width)) == self.slot

    def to_documents(self, name: str) -> Documents:
        """Responses to read."""
        log = self.folder / f"{name}.parquet"
        return Documents([log], self.tokenizer, self.index, self.keyring, self.documents)


def write_reference_text(unmarked: Path) -> None:
    """The text of the k-gram reference: the teacher's unmarked fresh responses."""
    path = unmarked / "innocent-text.jsonl.gz"
    if not path.exists():
        rows = pq.read_table(unmarked / "fresh.parquet")["token_ids"].to_pylist()
        lines = [json.dumps({"prompt": "", "output_token_ids": ids}) + "\n" for ids in rows]
        path.write_bytes(gzip.compress("".join(lines).encode(), mtime=0))


@dataclass(frozen=True)
class Null:
    """Rate of p <= .01 and sd of z under random keys."""

    rate: float
    sd: float


def our_tests(bench: Bench, folder: Path, read: str) -> Iterator[tuple[str, str, Observations]]:
    """(access, method, observations) of every way in which we look at a suspect."""
    positions = read_positions([folder / "outputs.jsonl.gz"], bench.tokenizer, bench.public)
    counted = count_positions(positions)
    yield "text", "provenance", counted
    yield "text", "provenance-ngram", add_expectations(counted, bench.ngrams.expect(counted))
    expected = expect_with_model(
        bench.base, positions, bench.index, bench.keyring, cache=bench.cache
    )
    yield "text", "provenance-base", add_expectations(counted, expected)
    model = LanguageModel(folder, bench.public, bench.tokenizer)
    documents = bench.to_documents(read)
    yield "weights", "provenance", observe_weights(model, None, documents, cache=bench.cache)
    found = observe_weights(model, bench.base, documents, cache=bench.cache)
    yield "weights", "provenance-base", found
    with tempfile.TemporaryDirectory() as temporary:
        path = write_logprobs(bench, folder, documents, Path(temporary) / "logprobs.jsonl")
        listed = observe_logprobs(
            [path], bench.base, bench.tokenizer, bench.index, bench.keyring, cache=bench.cache
        )
    yield "logprobs", "provenance-base", listed


def weigh_global(bench: Bench, observations: Observations) -> WeightedPairs:
    """The weighted pairs of the global key."""
    plain = observations.sampled and not observations.reference
    rule = DEFAULT_RULE if plain else REFERENCE_RULE
    weighing = weigh_observations(observations, bench.index, bench.keyring, rule)
    return weighing.hypotheses[GLOBAL]


def null_of_ours(bench: Bench, pairs: WeightedPairs, name: str) -> Null:
    """The test under random keys."""
    table = score(pairs, bench.key, bench.scheme)
    statistics = np.array(
        [
            pairs.weights @ bench.scheme.score(coins.words(secret, pairs.contexts, pairs.tokens))
            for secret in random_secrets(name)
        ]
    )
    law = bench.scheme.null_law
    deviation = np.sqrt(law.variance * float(pairs.weights @ pairs.weights))
    z = (statistics - law.mean * float(pairs.weights.sum())) / deviation
    tail = NullDistribution.from_table(table).tail(statistics)
    return Null(float((tail <= LEVEL).mean()), float(z.std()))


def random_secrets(name: str) -> Iterator[bytes]:
    """Secrets of random keys, the same for the same name."""
    for i in range(KEYS):
        yield hashlib.sha256(f"{name}/{i}".encode()).digest()


@dataclass(frozen=True)
class Windows:
    """Every (context, token) of some texts inside the marked slot, repeats included, in order."""

    contexts: NDArray[np.int64]
    tokens: Words
    rows: NDArray[np.int64]
    prompted: NDArray[np.bool_]

    @classmethod
    def of(cls, bench: Bench, positions: Positions) -> Windows:
        """All windows of the outputs; `prompted` where the context stands in its own prompt."""
        width = bench.public.context_width
        ids, lengths = join_ids(positions.outputs)
        rows, starts = list_windows(ids, lengths, width, followed=True)
        packed = pack_windows(ids, starts, width)
        asked, asked_lengths = join_ids(positions.prompts)
        asked_rows, asked_starts = list_windows(asked, asked_lengths, width, followed=False)
        distinct, names = np.unique(
            np.concatenate([packed, pack_windows(asked, asked_starts, width)]), return_inverse=True
        )
        pairs = np.concatenate([rows, asked_rows]) * distinct.shape[0] + names
        prompted = np.isin(pairs[: rows.shape[0]], pairs[rows.shape[0] :])
        own = bench.in_slot(packed)
        return cls(packed[own], ids[starts + width][own], rows[own], prompted[own])


def peer_tests(bench: Bench, windows: Windows, served: NDArray[np.int64]) -> Mapping[str, PeerTest]:
    """The published tests of text outputs, as functions of the coins."""
    contexts = unpack(windows.contexts, bench.public.context_width)
    given = (contexts, windows.tokens)
    prompted = windows.prompted

    def pan(words: Words) -> methods.PeerResult:
        return methods.run_pan(*given, words, bench.scheme, group=None)

    return {
        "sander-closed": lambda words: methods.run_sander_closed(
            *given, words, bench.scheme, prompted=prompted
        ),
        "sander-closed-filtered": lambda words: methods.run_sander_closed(
            *given, words, bench.scheme, prompted=prompted, served=served
        ),
        "pan": pan,
        "textseal-v2": lambda words: methods.run_textseal(*given, words, bench.scheme),
    }


def reading_tests(bench: Bench, windows: Windows, served: NDArray[np.int64]) -> dict[str, PeerTest]:
    """The published tests of a model that reads; `windows.tokens` are its predictions."""
    given = (unpack(windows.contexts, bench.public.context_width), windows.tokens)
    return {
        "sander-open": lambda words: methods.run_sander_open(
            *given, words, windows.rows, bench.scheme
        ),
        "sander-open-filtered": lambda words: methods.run_sander_open(
            *given, words, windows.rows, bench.scheme, served=served
        ),
        "textseal-v1": lambda words: methods.run_textseal(*given, words, bench.scheme, dedup="v1"),
    }


def null_of_peer(bench: Bench, windows: Windows, test: PeerTest, name: str) -> Null:
    """A published test under random keys: its own p and its own z."""
    contexts = unpack(windows.contexts, bench.public.context_width)
    results = [
        test(coins.words(secret, contexts, windows.tokens)) for secret in random_secrets(name)
    ]
    rejected = [result.log10_p <= np.log10(LEVEL) for result in results]
    return Null(float(np.mean(rejected)), float(np.std([result.z for result in results])))


@torch.inference_mode()
def predict(folder: Path, documents: Documents) -> tuple[Positions, NDArray[np.float32]]:
    """Log-probabilities of a laboratory model at every token of the documents.

    Returns the documents (their prompts and outputs), and float32 [documents, tokens, V]: the lab's
    prompts and responses all have the same length.
    """
    torch.set_num_threads(1)
    model = load_model(folder)
    parts = [positions for positions, _ in documents]
    outputs = [ids for part in parts for ids in part.outputs]
    prompts = [ids for part in parts for ids in part.prompts]
    found = []
    for start in range(0, len(outputs), 32):
        rows = [
            np.concatenate([p, r]).astype(np.int64)
            for p, r in zip(prompts[start : start + 32], outputs[start : start + 32], strict=True)
        ]
        logits = model(input_ids=torch.from_numpy(np.stack(rows)), use_cache=False).logits
        length = outputs[0].shape[0]
        found.append(logits[:, -length - 1 : -1].log_softmax(-1).half().numpy())
    whole = Positions(
        outputs,
        prompts,
        *(np.empty(0, dtype=np.int64),) * 3,
        np.empty(0, dtype=np.uint32),
        0,
        0,
        0,
        {},
    )
    return whole, np.concatenate(found)


def read_predictions(bench: Bench, folder: Path, documents: Documents) -> Windows:
    """Windows of the documents with the suspect's most probable next token in place of theirs."""
    positions, logs = predict(folder, documents)
    width = bench.public.context_width
    best = logs.argmax(-1)
    ids, lengths = join_ids(positions.outputs)
    rows, starts = list_windows(ids, lengths, width, followed=True)
    begins = np.cumsum(lengths) - lengths
    contexts = pack_windows(ids, starts, width)
    tokens = best[rows, starts + width - begins[rows]].astype(np.uint32)
    own = bench.in_slot(contexts)
    return Windows(contexts[own], tokens[own], rows[own], np.zeros(int(own.sum()), dtype=bool))


def write_logprobs(bench: Bench, folder: Path, documents: Documents, path: Path) -> Path:
    """The twenty most probable tokens at every position, as an API would give them."""
    del bench
    positions, logs = predict(folder, documents)
    top = np.argpartition(logs, -LISTED, axis=-1)[..., -LISTED:]
    values = np.take_along_axis(logs, top, -1).astype(np.float64).clip(max=0)
    with path.open("w") as file:
        for i, (prompt, ids) in enumerate(zip(positions.prompts, positions.outputs, strict=True)):
            lists = np.stack([top[i].astype(np.float64), values[i].round(4)], -1).tolist()
            record = {
                "prompt_token_ids": prompt.tolist(),
                "output_token_ids": ids.tolist(),
                "top_logprobs": [[[int(t), v] for t, v in entry] for entry in lists],
                "finish": "length",
            }
            file.write(json.dumps(record) + "\n")
    return path


def measure(bench: Bench, folder: Path, share: float, read: str, null: bool) -> list[Record]:
    """Every test of one suspect; with `null` also its false-positive rates (an innocent)."""
    facts = {"world": bench.folder.name, "suspect": folder.name, "share": share}
    records = []

    def keep(
        access: str,
        method: str,
        result: methods.PeerResult,
        under: Null | None,
        effective_coins: float | None = None,
    ) -> None:
        records.append(
            Record(
                **facts,
                access=access,
                method=method,
                tokens=result.tokens,
                log10_p=round(result.log10_p, 3),
                z=round(result.z, 3),
                false_positive_rate=under.rate if under else None,
                null_sd=round(under.sd, 3) if under else None,
                effective_coins=None if effective_coins is None else round(effective_coins, 1),
            )
        )
        print(json.dumps(asdict(records[-1])), flush=True)

    for access, method, observations in our_tests(bench, folder, read):
        pairs = weigh_global(bench, observations)
        table: ClassTable = score(pairs, bench.key, bench.scheme)
        tail = upper_tail(table)
        result = methods.PeerResult(method, observations.positions, tail.z, tail.log10_p)
        under = null_of_ours(bench, pairs, method) if null else None
        keep(access, method, result, under, tail.effective_coins)
    served = all_served(bench)
    positions = read_positions([folder / "outputs.jsonl.gz"], bench.tokenizer, bench.public)
    for access, windows, make in (
        ("text", Windows.of(bench, positions), peer_tests),
        ("weights", read_predictions(bench, folder, bench.to_documents(read)), reading_tests),
    ):
        words = bench.key.words(
            unpack(windows.contexts, bench.public.context_width), windows.tokens
        )
        for method, test in make(bench, windows, served).items():
            under = null_of_peer(bench, windows, test, method) if null else None
            keep(access, method, test(words), under)
    return records


def measure_served(bench: Bench, folder: Path, share: float, documents: int) -> list[Record]:
    """The tests from weights once more, reading served responses: some were trained on."""
    served = replace(bench.to_documents("served"), limit=documents)
    model = LanguageModel(folder, bench.public, bench.tokenizer)
    observations = observe_weights(model, bench.base, served, cache=bench.cache)
    tail = upper_tail(score(weigh_global(bench, observations), bench.key, bench.scheme))
    results = [methods.PeerResult("provenance-base", observations.positions, tail.z, tail.log10_p)]
    windows = read_predictions(bench, folder, served)
    words = bench.key.words(unpack(windows.contexts, bench.public.context_width), windows.tokens)
    tests = reading_tests(bench, windows, all_served(bench))
    results += [tests[name](words) for name in ("sander-open", "sander-open-filtered")]
    facts = {"world": bench.folder.name, "suspect": folder.name, "share": share}
    return [
        Record(
            **facts,
            access="weights, served",
            method=result.method,
            tokens=result.tokens,
            log10_p=round(result.log10_p, 3),
            z=round(result.z, 3),
        )
        for result in results
    ]


def all_served(bench: Bench) -> NDArray[np.int64]:
    """Every context of the marked responses: the filter phi of the peers."""
    documents = Documents(
        [bench.folder / "served.parquet"], bench.tokenizer, bench.index, bench.keyring
    )
    parts = []
    for positions, _ in documents:
        ids, lengths = join_ids(positions.outputs)
        _, starts = list_windows(ids, lengths, bench.public.context_width, followed=True)
        parts.append(np.unique(pack_windows(ids, starts, bench.public.context_width)))
    return np.unique(np.concatenate(parts))
