"""z against the number of tokens: the same suspect with an eighth, a quarter, half, and all."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.power.measure import (
    Bench,
    Windows,
    all_served,
    peer_tests,
    read_predictions,
    reading_tests,
    weigh_global,
)
from provenance.check.score import score
from provenance.coins.contexts import unpack
from provenance.stats.tails import upper_tail
from provenance.suspect.access.outputs import count_positions, read_positions
from provenance.suspect.access.probabilities import expect_with_model, observe_weights
from provenance.suspect.models.language_model import LanguageModel
from provenance.suspect.observations import Observations, add_expectations
from provenance.suspect.positions import Positions, split_positions
from tests.world.power import methods

PARTS = (16, 8, 4, 2, 1)


@dataclass(frozen=True)
class Point:
    """One test with so many tokens of outputs, or of documents read."""

    world: str
    access: str
    method: str
    tokens: int
    z: float
    log10_p: float


def measure_curves(bench: Bench, folder: Path) -> Iterator[Point]:
    """All points of one suspect."""
    whole = read_positions([folder / "outputs.jsonl.gz"], bench.tokenizer, bench.public)
    served = all_served(bench)
    for part in PARTS:
        yield from _from_text(bench, whole, part, served)
        yield from _from_weights(bench, folder, part, served)


def _from_text(bench: Bench, whole: Positions, part: int, served) -> Iterator[Point]:  # type: ignore[no-untyped-def]
    size = len(whole.outputs) // part
    some = next(split_positions(whole, size))
    # named by its size: the passes over a part and over the whole must not share a cache
    some = replace(some, sha256={**whole.sha256, "part": str(size)})
    counted = count_positions(some)
    expected = expect_with_model(bench.base, some, bench.index, bench.keyring)
    for method, observations in (
        ("provenance", counted),
        ("provenance-ngram", add_expectations(counted, bench.ngrams.expect(counted))),
        ("provenance-base", add_expectations(counted, expected)),
    ):
        yield _ours(bench, "text", method, observations)
    windows = Windows.of(bench, some)
    yield _theirs(
        bench, "text", windows, peer_tests(bench, windows, served)["sander-closed-filtered"], some
    )


def _from_weights(bench: Bench, folder: Path, part: int, served) -> Iterator[Point]:  # type: ignore[no-untyped-def]
    documents = replace(bench.to_documents("fresh"), limit=bench.documents // part)
    model = LanguageModel(folder, bench.public, bench.tokenizer)
    yield _ours(bench, "weights", "provenance-base", observe_weights(model, bench.base, documents))
    windows = read_predictions(bench, folder, documents)
    test = reading_tests(bench, windows, served)["sander-open"]
    yield _theirs(
        bench, "weights", windows, test, next(iter(documents))[0], bench.documents // part
    )


def _ours(bench: Bench, access: str, method: str, observations: Observations) -> Point:
    tail = upper_tail(score(weigh_global(bench, observations), bench.key, bench.scheme))
    name = bench.folder.name
    return Point(name, access, method, observations.tokens_read, tail.z, tail.log10_p)


def _theirs(  # type: ignore[no-untyped-def]
    bench: Bench, access: str, windows: Windows, test, some: Positions, documents: int | None = None
) -> Point:
    words = bench.key.words(unpack(windows.contexts, bench.public.context_width), windows.tokens)
    result: methods.PeerResult = test(words)
    tokens = some.tokens_read
    if documents is not None:
        tokens = documents * some.outputs[0].shape[0]
    return Point(bench.folder.name, access, result.method, tokens, result.z, result.log10_p)
