"""Which weight rule keeps most of the evidence, with a right and with a wrong reference?

    python -m benchmarks.power.rules [--frontier]

Needs worlds of `produce`. Every rule is a function of what a weight may know; all are rounded to
255 levels like the product's own. z of the global key from text and from weights, of all suspects
of the power world (one key) for four references: the suspects' base model, the unmarked teacher
(both "right"), a student trained on unmarked responses, and a model of random weights (wrong). With
`--frontier` of the students of the 36 small worlds, each under a key of its own, for two: the base
model, and k-grams. Writes benchmarks/results/rules.json.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab import models
from benchmarks.lab.stage1 import WORK as LAB
from benchmarks.lab.tokenizer import load_tokenizer
from benchmarks.power.measure import Bench, write_reference_text
from benchmarks.power.report import DOCUMENTS, RESULTS
from provenance.check.weigh import DRAWN, PROBABILITIES
from provenance.coins.contexts import unpack
from provenance.storage.files import read_json, write_json
from provenance.suspect.access.outputs import count_positions, read_positions
from provenance.suspect.access.probabilities import expect_with_model, observe_weights
from provenance.suspect.models.language_model import LanguageModel
from provenance.suspect.observations import Observations, add_expectations
from tests.world.power.settings import WORK, frontier_worlds

Real = NDArray[np.float64]
LEVELS = 255
LEAST = 1e-6
"""A largest weight below it is rounding: the suspect is its own reference."""


class Known:
    """What a rule may know, per pair; see `provenance.check.weigh.PairCounts`."""

    def __init__(self, observations: Observations, responses: Real, chosen: NDArray[np.int64]):
        self.mass, self.expected = observations.masses[chosen], observations.expected[chosen]
        self.total = observations.totals[chosen].astype(np.float64)
        self.log_n = np.log1p(np.minimum(responses, 1024))
        self.saturated = responses / (responses + 5)
        self.sampled = observations.sampled
        self.q = self.expected / self.total
        _, names = np.unique(observations.contexts[chosen], return_inverse=True)
        self.collision = np.bincount(names, weights=self.q**2)[names]

    def weigh(
        self,
        *,
        prior: float | None = None,
        clip: float | None = None,
        addend: float | None = None,
        power: float = 0.5,
    ) -> Real:
        """`weigh_residual` with other constants."""
        own = DRAWN if self.sampled else PROBABILITIES
        prior = own.prior if prior is None or not self.sampled else prior
        clip = own.clip if clip is None else clip
        residual = (self.mass - self.expected) / (self.total + prior)
        scale = np.sqrt(self.q + (own.addend if addend is None else addend))
        return np.clip(residual, -clip, clip) / scale * self.log_n * self.total**power


RULES: Mapping[str, Callable[[Known], Real]] = {
    "presence (indexed)": lambda k: (k.mass > 0).astype(np.float64),
    "no reference: ln(1+n) sqrt N": lambda k: k.log_n * np.sqrt(k.mass),
    "clip(N-E, 3) n/(n+5)": lambda k: np.clip(k.mass - k.expected, -3, 3) * k.saturated,
    "clip(N-E, 20) ln(1+n) (0005)": lambda k: np.clip(k.mass - k.expected, -20, 20) * k.log_n,
    "(N-E) ln(1+n), no clip": lambda k: (k.mass - k.expected) * k.log_n,
    "the rule of 0006": lambda k: k.weigh(clip=0.4, addend=0.01, power=0.25),
    "the rule": lambda k: k.weigh(),
    "- half the clip": lambda k: k.weigh(clip=0.2 if k.sampled else 0.1),
    "- twice the clip": lambda k: k.weigh(clip=0.8 if k.sampled else 0.4),
    "- no clip": lambda k: k.weigh(clip=1e9),
    "- prior 3": lambda k: k.weigh(prior=3),
    "- prior 30": lambda k: k.weigh(prior=30),
    "- a = .003": lambda k: k.weigh(addend=0.003),
    "- a = .03": lambda k: k.weigh(addend=0.03),
    "- a = .3": lambda k: k.weigh(addend=0.3),
    "- n/(n+5) for ln(1+n)": lambda k: k.weigh() / k.log_n * k.saturated,
    "- times (1-C)": lambda k: k.weigh() * (1 - k.collision),
    "- N(c)^(1/4)": lambda k: k.weigh(power=0.25),
    "- N(c)^(3/4)": lambda k: k.weigh(power=0.75),
    "- N(c)": lambda k: k.weigh(power=1),
}


def random_model(folder: Path) -> Path:
    """A model of random weights: the worst reference that can be loaded."""
    if not folder.exists():
        models.save_model(models.new_model(99), folder, load_tokenizer(LAB))
    return folder


def observe(bench: Bench, suspect: Path, reference: Path) -> Iterator[tuple[str, Observations]]:
    """(access, observations) of a suspect with one reference."""
    model = LanguageModel(reference, bench.public, bench.tokenizer)
    positions = read_positions([suspect / "outputs.jsonl.gz"], bench.tokenizer, bench.public)
    expected = expect_with_model(model, positions, bench.index, bench.keyring, cache=bench.cache)
    yield "text", add_expectations(count_positions(positions), expected)
    own = LanguageModel(suspect, bench.public, bench.tokenizer)
    yield "weights", observe_weights(own, model, bench.to_documents("fresh"), cache=bench.cache)


def try_rules(bench: Bench, observations: Observations) -> dict[str, float | None]:
    """z of the global key under every rule; None if nothing weighs anything."""
    contexts, names = np.unique(observations.contexts, return_inverse=True)
    own = np.flatnonzero(bench.in_slot(contexts))
    matches = bench.index.lookup(bench.slot, contexts[own])
    responses = np.bincount(
        own[matches.query], weights=matches.responses, minlength=contexts.shape[0]
    )[names]
    chosen = np.flatnonzero(responses)
    known = Known(observations, responses[chosen], chosen)
    width = bench.public.context_width
    words = bench.key.words(
        unpack(observations.contexts[chosen], width), observations.tokens[chosen]
    )
    law = bench.scheme.null_law
    scores = (bench.scheme.score(words) - law.mean) / np.sqrt(law.variance)
    found = {}
    for name, rule in RULES.items():
        real = rule(known)
        weights = np.rint(real * (LEVELS / max(np.abs(real).max(), LEAST)))
        square = float(weights @ weights)
        found[name] = round(float(weights @ scores) / math.sqrt(square), 2) if square else None
    return found


COMMAND = "python -m benchmarks.power.rules && python -m benchmarks.power.rules --frontier"


def list_power(world: str) -> Iterator[tuple[str, str, str, dict[str, float | None]]]:
    """(suspect, access, reference, z by rule) of the suspects of a world, and of an innocent."""
    unmarked = WORK / "unmarked"
    bench = Bench(WORK / world, unmarked, DOCUMENTS.get(world, 128))
    references = {
        "base": LAB / "base",
        "teacher": LAB / "teacher",
        "student": unmarked / "innocent-power",
        "random": random_model(WORK / "random-model"),
    }
    suspects = sorted((WORK / world).glob("rho-*"), reverse=True)
    for suspect in (*suspects, unmarked / "innocent-power"):
        for name, folder in references.items():
            for access, observations in observe(bench, suspect, folder):
                yield suspect.name, access, name, try_rules(bench, observations)


def list_frontier(world: str) -> Iterator[tuple[str, str, str, dict[str, float | None]]]:
    """The same for the student of a small world."""
    bench = Bench(WORK / world, WORK / "unmarked", 128)
    suspect = WORK / world / "rho-1"
    for access, observations in observe(bench, suspect, LAB / "base"):
        yield suspect.name, access, "base", try_rules(bench, observations)
    positions = read_positions([suspect / "outputs.jsonl.gz"], bench.tokenizer, bench.public)
    counted = count_positions(positions)
    observations = add_expectations(counted, bench.ngrams.expect(counted))
    yield suspect.name, "text", "k-grams", try_rules(bench, observations)


def main() -> None:
    """Try every rule and add the rows to the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", default="gumbel-k2-s20")
    parser.add_argument("--frontier", action="store_true")
    arguments = parser.parse_args()
    write_reference_text(WORK / "unmarked")
    path = RESULTS / "rules.json"
    rows = read_json(path)["rows"] if path.exists() else []
    worlds = [world.name for world in frontier_worlds()] if arguments.frontier else []
    for world in worlds or [arguments.world]:
        found = (list_frontier if arguments.frontier else list_power)(world)
        for suspect, access, reference, z in found:
            facts = {"world": world, "suspect": suspect, "access": access, "reference": reference}
            rows = [row for row in rows if any(row[key] != facts[key] for key in facts)]
            rows.append({**facts, "z": z})
            print(json.dumps(rows[-1]), flush=True)
            write_json(path, {"command": COMMAND, "rows": rows})


if __name__ == "__main__":
    main()
