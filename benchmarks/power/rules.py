"""Which weight rule keeps most of the evidence, with a right and with a wrong reference?

    python -m benchmarks.power.rules [--world gumbel-k2-s20] [--suspect rho-1]

Needs worlds of `produce`. Every rule is a function of what a weight may know; all are rounded to
255 levels like the product's own. z of the global key from text and from weights, for four
references: the suspects' base model, the unmarked teacher (both "right"), a student trained on
unmarked responses, and a model of random weights (wrong). Writes benchmarks/results/rules.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.lab import models
from benchmarks.lab.stage1 import WORK as LAB
from benchmarks.lab.tokenizer import load_tokenizer
from benchmarks.power.measure import Bench, write_reference_text
from benchmarks.power.report import DOCUMENTS, RESULTS
from benchmarks.power.settings import WORK
from provenance.contexts import unpack
from provenance.files import read_json, write_json
from provenance.suspect.language_model import LanguageModel
from provenance.suspect.observations import Observations, add_expectations
from provenance.suspect.outputs import count_positions, read_positions
from provenance.suspect.probabilities import expect_with_model, observe_weights

Real = NDArray[np.float64]
LEVELS = 255


class Known:
    """What a rule may know, per pair; see `provenance.weigh.Choices`."""

    def __init__(self, observations: Observations, responses: Real, chosen: NDArray[np.int64]):
        self.mass, self.expected = observations.masses[chosen], observations.expected[chosen]
        self.total = observations.totals[chosen].astype(np.float64)
        self.log_n = np.log1p(np.minimum(responses, 1024))
        self.saturated = responses / (responses + 5)
        self.sampled = observations.sampled
        self.q = self.expected / self.total
        _, names = np.unique(observations.contexts[chosen], return_inverse=True)
        self.collision = np.bincount(names, weights=self.q**2)[names]

    def mean(self, prior: float = 10.0, clip: float = 0.4) -> Real:
        """Residual per position, clipped; the prior is for drawn tokens only."""
        prior = prior if self.sampled else 0.0
        return np.clip((self.mass - self.expected) / (self.total + prior), -clip, clip)


RULES: Mapping[str, Callable[[Known], Real]] = {
    "presence (indexed)": lambda k: (k.mass > 0).astype(np.float64),
    "no reference: ln(1+n) sqrt N": lambda k: k.log_n * np.sqrt(k.mass),
    "clip(N-E, 3) n/(n+5)": lambda k: np.clip(k.mass - k.expected, -3, 3) * k.saturated,
    "clip(N-E, 20) ln(1+n)": lambda k: np.clip(k.mass - k.expected, -20, 20) * k.log_n,
    "(N-E) ln(1+n), no clip": lambda k: (k.mass - k.expected) * k.log_n,
    "the rule": lambda k: k.mean() / np.sqrt(k.q + 0.01) * k.log_n * k.total**0.25,
    "- clip .2": lambda k: k.mean(clip=0.2) / np.sqrt(k.q + 0.01) * k.log_n * k.total**0.25,
    "- no clip": lambda k: k.mean(clip=1e9) / np.sqrt(k.q + 0.01) * k.log_n * k.total**0.25,
    "- prior 3": lambda k: k.mean(prior=3) / np.sqrt(k.q + 0.01) * k.log_n * k.total**0.25,
    "- prior 0": lambda k: k.mean(prior=0) / np.sqrt(k.q + 0.01) * k.log_n * k.total**0.25,
    "- without / sqrt(q + .01)": lambda k: k.mean() * k.log_n * k.total**0.25,
    "- sqrt(q + .1)": lambda k: k.mean() / np.sqrt(k.q + 0.1) * k.log_n * k.total**0.25,
    "- n/(n+5) for ln(1+n)": lambda k: k.mean() / np.sqrt(k.q + 0.01) * k.saturated * k.total**0.25,
    "- times (1-C)": lambda k: (
        k.mean() / np.sqrt(k.q + 0.01) * k.log_n * k.total**0.25 * (1 - k.collision)
    ),
    "- sqrt N(c)": lambda k: k.mean() / np.sqrt(k.q + 0.01) * k.log_n * np.sqrt(k.total),
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


def try_rules(bench: Bench, observations: Observations) -> dict[str, float]:
    """z of the global key under every rule."""
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
        weights = np.rint(real * (LEVELS / np.abs(real).max()))
        found[name] = round(float(weights @ scores / np.sqrt(weights @ weights)), 2)
    return found


def main() -> None:
    """Try every rule and add the rows to the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--world", default="gumbel-k2-s20")
    parser.add_argument("--suspect", default="rho-1")
    arguments = parser.parse_args()
    unmarked = WORK / "unmarked"
    write_reference_text(unmarked)
    bench = Bench(WORK / arguments.world, unmarked, DOCUMENTS.get(arguments.world, 128))
    suspect = WORK / arguments.world / arguments.suspect
    if not suspect.exists():
        suspect = unmarked / arguments.suspect
    references = {
        "base": LAB / "base",
        "teacher": LAB / "teacher",
        "student": unmarked / "innocent-power",
        "random": random_model(WORK / "random-model"),
    }
    path = RESULTS / "rules.json"
    rows = read_json(path)["rows"] if path.exists() else []
    for name, folder in references.items():
        for access, observations in observe(bench, suspect, folder):
            facts = {
                "world": arguments.world,
                "suspect": suspect.name,
                "access": access,
                "reference": name,
            }
            rows = [row for row in rows if any(row[key] != facts[key] for key in facts)]
            rows.append({**facts, "z": try_rules(bench, observations)})
            print(json.dumps(rows[-1]), flush=True)
            write_json(path, {"command": "python -m benchmarks.power.rules", "rows": rows})


if __name__ == "__main__":
    main()
