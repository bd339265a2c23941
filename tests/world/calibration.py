"""False-positive rates of the whole closed check on innocent suspects, and the gate.

In full: `python -m benchmarks.calibration [--keyrings 500] [--reference none|ngram|wrong]`.

For every keyring: a fresh random master secret, marked responses drawn through `Watermark`, a log,
an index. Then one innocent suspect of each kind goes through files, tokenizer, observations,
weights, coins, tails and weighted Holm under the *true* keys. Kinds: see `world.innocent`.

The gate, with a stated false-alarm rate of 1e-4 for each line:

- rejections at .05, .01 and .001 are not above the exact binomial limit, for the p-value of the
  whole check and for the p-values of single keys (one key per check: those of one check share
  text, so the global key and one slot key are counted apart);
- the standard deviation of z over all keys is within 1 +- .02.

With `--access weights` the suspects are models that read the marked log, see `readers`. The four of
a keyring read the same contexts, so their p-values move together, and a count over all of them is
no binomial count: each kind is judged apart (the keyrings are independent), and its standard
deviation by the error that so many z have.

With `--reference ngram` the weights are residuals against k-grams of other unmarked text of the
teacher; with `wrong`, against k-grams (or the probabilities) of a teacher that speaks another
language; with `right`, against the teacher's own probabilities.

The test double must fail: outputs without deduplication (every occurrence of a pair is a coin of
its own); weights read at every occurrence of a context in a document.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from provenance.check.examine import try_keys
from provenance.check.score import WeightedPairs, score, weigh_observations
from provenance.check.weigh import DEFAULT_RULE, REFERENCE_RULE
from provenance.coins.contexts import unpack
from provenance.marks.own import make_scheme
from provenance.stats.tables import ClassTable
from provenance.suspect.access.documents import Documents
from provenance.suspect.access.outputs import observe, read_positions
from provenance.suspect.access.probabilities import observe_weights
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.observations import Observations, add_expectations
from tests.world.readers import EveryOccurrence, MarkovReader, innocent_readers
from tests.world.synthetic import Teacher, World, innocent, make_world, write_outputs

KINDS = ("ordinary", "templates", "repeats", "prompts")
LEVELS = (0.05, 0.01, 0.001)
FALSE_ALARM = 1e-4
REFERENCES = ("none", "ngram", "right", "wrong")
ACCESS = ("outputs", "weights")


@dataclass(frozen=True)
class Outcome:
    """One innocent suspect under one keyring."""

    kind: str
    check: float
    single: tuple[float, ...]
    z: tuple[float, ...]
    z_repeated: float


def run_keyring(seed: int, reference: str = "none", access: str = "outputs") -> list[Outcome]:
    """All kinds of suspects under one random keyring."""
    rng = np.random.default_rng([seed, 1])
    with tempfile.TemporaryDirectory() as folder:
        # long responses where models read them: there contexts come up again
        size = {"responses": 100} if access == "outputs" else {"responses": 16, "tokens": 600}
        world = make_world(Path(folder) / "w", _teacher(), seed, **size)
        if access == "outputs":
            return [
                judge(world, kind, observations, reference, access)
                for kind, observations in observe_text(world, reference, rng)
            ]
        return [
            judge(world, kind, observations, reference, access, double)
            for kind, observations, double in observe_readers(world, reference)
        ]


def observe_text(
    world: World, reference: str, rng: np.random.Generator
) -> Iterator[tuple[str, Observations]]:
    """Outputs of innocent suspects, through files and the tokenizer."""
    ngrams = None if reference == "none" else read_ngrams(world, reference, rng)
    for kind in KINDS:
        outputs, prompts = innocent(kind, world, rng)
        path = write_outputs(world.folder / f"{kind}.jsonl", outputs, prompts)
        observations = observe([path], world.tokenizer, world.keyring.public)
        if ngrams is not None:
            observations = add_expectations(observations, ngrams.expect(observations))
        yield kind, observations


def observe_readers(
    world: World, reference: str
) -> Iterator[tuple[str, Observations, Observations]]:
    """Probabilities of innocent suspects that read the whole marked log, and their doubles."""
    log = world.folder / "served.jsonl"
    expected = {
        "none": None,
        "right": MarkovReader("right", _teacher(), _teacher()),
        "wrong": MarkovReader("wrong", _teacher(99), _teacher(99)),
    }[reference]
    documents, every = (
        kind([log], world.tokenizer, world.index, world.keyring)
        for kind in (Documents, EveryOccurrence)
    )
    for reader in innocent_readers(_teacher(), _teacher(7)):
        observations = observe_weights(reader, expected, documents)
        yield reader.name, observations, observe_weights(reader, expected, every)


def judge(
    world: World,
    kind: str,
    observations: Observations,
    reference: str,
    access: str,
    double: Observations | None = None,
) -> Outcome:
    """The whole check of one suspect under the true keys, and the z of its double."""
    keyring = world.keyring
    scheme = make_scheme(keyring.public.scheme.name, keyring.public.scheme.parameters)
    from_text = reference == "none" and access == "outputs"
    rule = DEFAULT_RULE if from_text else REFERENCE_RULE
    weighing = weigh_observations(observations, world.index, keyring, rule)
    tables = {
        pair: score(pairs, keyring.key(*pair), scheme)
        for pair, pairs in weighing.hypotheses.items()
    }
    results = try_keys(tables, 1e-4)
    pairs, key = weighing.hypotheses["global", ""], keyring.key("global", "")
    if double is None:
        repeated = score_every_occurrence(pairs, observations, key, scheme)
    else:
        again = weigh_observations(double, world.index, keyring, rule)
        repeated = score(again.hypotheses["global", ""], key, scheme)
    return Outcome(
        kind,
        min(result.log10_adjusted for result in results),
        tuple(result.tail.log10_p for result in results),
        tuple(result.tail.z for result in results if result.tail.coins >= 30),
        repeated.z,
    )


def read_ngrams(world: World, reference: str, rng: np.random.Generator) -> NgramReference:
    """k-grams of unmarked text: the teacher's, or that of a teacher of another language."""
    teacher = _teacher() if reference == "ngram" else _teacher(99)
    path = write_outputs(world.folder / "reference.jsonl", list(teacher.sample(rng, 200, 80)))
    public = world.keyring.public
    positions = read_positions([path], world.tokenizer, public)
    return NgramReference(positions, public.vocabulary_size, public.context_width)


def score_every_occurrence(pairs: WeightedPairs, observations: Observations, key, scheme):  # type: ignore[no-untyped-def]
    """The test double: no deduplication, every occurrence of a pair counts as a new coin.

    The null law is the one that a peer without it assumes: independent coins of weight 1.
    """
    width = pairs.contexts.shape[1]
    order = {
        (tuple(context), token): count
        for context, token, count in zip(
            unpack(observations.contexts, width).tolist(),
            observations.tokens.tolist(),
            observations.masses.astype(int).tolist(),
            strict=True,
        )
    }
    counts = np.array(
        [
            order[tuple(context), token]
            for context, token in zip(pairs.contexts.tolist(), pairs.tokens.tolist(), strict=True)
        ],
        dtype=np.int64,
    )
    scores = np.repeat(scheme.score(key.words(pairs.contexts, pairs.tokens)), counts)
    return ClassTable.from_scores(np.ones(scores.shape[0], dtype=np.int64), scores, scheme.null_law)


@cache
def _teacher(seed: int = 0) -> Teacher:
    return Teacher.draw(seed)


def binomial_limit(n: int, level: float) -> int:
    """Most rejections among n that an exact test at FALSE_ALARM still accepts."""
    return int(stats.binom.isf(FALSE_ALARM, n, level))


def rates(log10_p: NDArray[np.float64]) -> dict[str, dict[str, float]]:
    """Observed rejections per level beside the limit."""
    found = {}
    for level in LEVELS:
        rejected = int((log10_p <= np.log10(level)).sum())
        limit = binomial_limit(log10_p.shape[0], level)
        found[str(level)] = {
            "rate": rejected / log10_p.shape[0],
            "rejected": rejected,
            "limit": limit,
            "passed": rejected <= limit,
        }
    return found


def summarise(outcomes: list[Outcome]) -> dict[str, object]:
    """The gate's figures for one kind of suspects, or for all."""
    z = np.concatenate([outcome.z for outcome in outcomes])
    repeated = np.array([outcome.z_repeated for outcome in outcomes])
    return {
        "suspects": len(outcomes),
        "check": rates(np.array([outcome.check for outcome in outcomes])),
        "global_key": rates(np.array([outcome.single[0] for outcome in outcomes])),
        "last_key": rates(np.array([outcome.single[-1] for outcome in outcomes])),
        "z": {"n": int(z.size), "mean": float(z.mean()), "sd": float(z.std())},
        "without_deduplication": {
            "sd": float(repeated.std()),
            "rate_at_0.001": float((stats.norm.sf(repeated) <= 1e-3).mean()),
        },
    }


def is_calibrated(summary: dict, tolerance: float = 0.02) -> bool:  # type: ignore[type-arg]
    """The gate itself; `tolerance`: how far the standard deviation of z may be from 1."""
    lines = [summary[name][str(level)]["passed"] for name in TESTS for level in LEVELS]
    return all(lines) and abs(summary["z"]["sd"] - 1) <= tolerance


def sd_tolerance(n: int) -> float:
    """How far from 1 the standard deviation of n normal z is with probability FALSE_ALARM."""
    return float(stats.norm.isf(FALSE_ALARM / 2) / np.sqrt(2 * n))


TESTS = ("check", "global_key", "last_key")


def double_fails(summary: dict) -> bool:  # type: ignore[type-arg]
    """The same gate on the double: it rejects too often."""
    limit = binomial_limit(summary["suspects"], 1e-3) / summary["suspects"]
    return bool(summary["without_deduplication"]["rate_at_0.001"] > limit)
