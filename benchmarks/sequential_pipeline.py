"""Sequential checks and families through the whole pipeline: false alarms, and how early they stop.

python -m benchmarks.sequential_pipeline [--keyrings 150] [--orders 20]

False alarms: for every keyring a fresh master secret, a marked log and an index; innocent suspects
of every hostile kind (`tests.world.synthetic.innocent`) bring their outputs in batches, through
files, tokenizer, observations, weights and `continue_check` under the *true* keys. A false alarm is
an E that is >= 1 / alpha after any batch.

Stopping: the guilty suspects of fixtures/, their outputs in random orders. Tokens until the
sequential check says evidence, for several sizes of batches, beside the tokens at which the plain
check of all outputs so far first has p <= alpha (not a valid test when it is repeated: the floor).

Families: e-BH and Holm over correlated suspects, of whom most are innocent.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import itertools
import json
import math
import shutil
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from tokenizers import Tokenizer

from provenance.check.examine import CheckSettings, try_keys
from provenance.check.looks.conclude import conclude
from provenance.check.looks.process import add_outputs, start
from provenance.check.looks.result import SequentialVerdict
from provenance.check.looks.revealed import SequentialCheck
from provenance.check.looks.state import continue_check
from provenance.check.score import score, weigh_observations
from provenance.check.weigh import DEFAULT_RULE
from provenance.keys.keyring import TOKENIZER_FILE, Keyring, UnlockedKeyring
from provenance.marks.own import Green, make_scheme
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.stats.evalues import e_bh
from provenance.stats.families import fieller_shares, weighted_holm
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.mixture import log10_mixture, mixture_slopes
from provenance.stats.tables import ClassTable
from provenance.suspect.access.outputs import observe
from provenance.suspect.observations import Observations
from tests.world.synthetic import Teacher, World, innocent, make_world, write_outputs

KINDS = ("ordinary", "templates", "repeats", "prompts")
LEVELS = (0.5, 0.2, 0.05, 0.01, 0.001)
FIXTURES = Path(__file__).parents[1] / "fixtures"
GUILTY = ("student-all", "student-code", "student-reseller")
ALPHA = 1e-4
MIXTURES = ((1.0, (1, 2, 5, 10), 60), (0.1, (20, 40, 160), 1280))
"""Share of outputs that are the suspect's, sizes of batches, outputs at most."""


def split_outputs(world: World, kind: str, seed: int, batches: int) -> list[Path]:
    """Files of one innocent suspect: its outputs in the order in which it gave them."""
    outputs, prompts = innocent(kind, world, np.random.default_rng([seed, 7]))
    files = []
    for number, rows in enumerate(np.array_split(np.arange(len(outputs)), batches)):
        own, asked = [outputs[i] for i in rows], [prompts[i] for i in rows]
        files.append(write_outputs(world.folder / f"{kind}-{number}.jsonl", own, asked))
    return files


def check_innocent(world: World, kind: str, seed: int, batches: int) -> SequentialVerdict:
    """A whole sequential check on disk under the true keys."""
    settings = CheckSettings(rule=DEFAULT_RULE, placebo_keys=50)
    state = world.folder / f"state-{kind}"
    check: SequentialCheck | None = None
    for path in split_outputs(world, kind, seed, batches):
        observations = observe([path], world.tokenizer, world.keyring.public)
        check, _ = continue_check(state, observations, world.index, world.keyring, settings)
    if check is None:
        raise ValueError("batches must be positive")
    return conclude(check, world.keyring)


def false_alarms(keyrings: int, batches: int = 3) -> dict[str, Any]:
    """Share of innocent suspects whose E is ever >= 1 / alpha, per level; controls that failed."""
    teacher = Teacher.draw(0)
    best: list[float] = []
    per_key: list[float] = []
    single: list[tuple[float, float]] = []
    failed = 0
    for seed in range(keyrings):
        with tempfile.TemporaryDirectory() as folder:
            world = make_world(Path(folder) / "w", teacher, 10_000 + seed, responses=100)
            for kind in KINDS:
                verdict = check_innocent(world, kind, seed, batches)
                best.append(-verdict.log10_p)
                per_key.append(max(-one.log10_p for one in verdict.hypotheses))
                failed += not verdict.controls_passed
                single += [
                    (one.table.z, log10_upper_tail(one.table))
                    for one in verdict.hypotheses
                    if one.name == "global" and one.table.coins
                ]
            world.index.close()
    runs = len(best)
    found = {
        "suspects": runs,
        "batches": batches,
        "controls_failed": failed,
        "global_z_mean": round(float(np.mean([z for z, _ in single])), 3),
        "global_z_sd": round(float(np.std([z for z, _ in single])), 3),
        "levels": [
            {
                "alpha": alpha,
                "ever_crossed": sum(value >= -math.log10(alpha) for value in best),
                "any_key_rejected": sum(value >= -math.log10(alpha) for value in per_key),
                "global_p_after_all_batches": sum(p <= math.log10(alpha) for _, p in single),
                "limit": int(stats.binom.ppf(1 - 1e-4, runs, alpha)),
            }
            for alpha in LEVELS
        ],
    }
    print(found, flush=True)
    return found


def read_suspect(name: str) -> list[str]:
    """Lines of a suspect of the fixtures."""
    with gzip.open(FIXTURES / f"suspects/{name}.jsonl.gz", "rt") as file:
        return file.read().splitlines()


def observe_lines(
    lines: list[str], folder: Path, tokenizer: Tokenizer, public: Keyring
) -> Observations:
    """Some outputs, through a file of their own."""
    text = "\n".join(lines) + "\n"
    path = folder / f"{hashlib.sha256(text.encode()).hexdigest()}.jsonl"
    path.write_text(text)
    return observe([path], tokenizer, public)


def stop_sequentially(
    parts: Iterator[Observations], index: Index, keyring: UnlockedKeyring
) -> float:
    """Tokens until the family's E is >= 1 / ALPHA; infinite if it never is."""
    check = start(index, keyring, CheckSettings(alpha=ALPHA, rule=DEFAULT_RULE, placebo_keys=50))
    # controls are left out here: they do not decide when the evidence suffices
    check = replace(check, sheets=check.tested)
    tokens = 0
    for part in parts:
        check = add_outputs(check, part, index, keyring)
        tokens += part.tokens_read
        if conclude(check, keyring).log10_p <= math.log10(ALPHA):
            return tokens
    return math.inf


def stop_at_fixed(merged: Iterator[Observations], index: Index, keyring: UnlockedKeyring) -> float:
    """Tokens at which the plain check of all outputs so far first has p <= ALPHA."""
    scheme = make_scheme(keyring.public.scheme.name, keyring.public.scheme.parameters)
    for together in merged:
        weighing = weigh_observations(together, index, keyring, DEFAULT_RULE)
        tables = {
            key: score(pairs, keyring.key(*key), scheme)
            for key, pairs in weighing.hypotheses.items()
        }
        if min(one.log10_adjusted for one in try_keys(tables, ALPHA)) <= math.log10(ALPHA):
            return together.tokens_read
    return math.inf


def stopping(orders: int) -> list[dict[str, Any]]:
    """Tokens to evidence for the guilty suspects of the fixtures, as they are and diluted."""
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shutil.copytree(FIXTURES / "keys", folder / "keys")
        (folder / "keys/master.key").chmod(0o600)
        public = Keyring.load(folder / "keys")
        keyring = public.unlock(folder / "keys")
        tokenizer = Tokenizer.from_file(str(folder / "keys" / TOKENIZER_FILE))
        build_index([FIXTURES / "served.parquet"], folder / "index", keyring)

        def look(lines: list[str]) -> Observations:
            return observe_lines(lines, folder, tokenizer, public)

        with Index.open(folder / "index", public) as index:
            for name, (share, sizes, total) in itertools.product(GUILTY, MIXTURES):
                found: dict[str, list[float]] = {}
                for order in range(orders):
                    lines = mix_outputs(name, share, order)[:total]
                    for size in sizes:
                        parts = (look(lines[i : i + size]) for i in range(0, total, size))
                        used = stop_sequentially(parts, index, keyring)
                        found.setdefault(f"sequential, batches of {size} outputs", []).append(used)
                    merged = (look(lines[:i]) for i in range(sizes[0], total + 1, sizes[0]))
                    used = stop_at_fixed(merged, index, keyring)
                    found.setdefault("plain check, first p <= alpha", []).append(used)
                rows.append(
                    {
                        "suspect": name,
                        "share_of_its_outputs": share,
                        "orders": orders,
                        "median_tokens": {
                            key: float(np.median(values)) for key, values in found.items()
                        },
                    }
                )
                print(rows[-1], flush=True)
    return rows


def mix_outputs(name: str, share: float, order: int) -> list[str]:
    """Outputs of a suspect in random order, the others from `base`, which learnt nothing."""
    rng = np.random.default_rng([order, 3])
    own, other = read_suspect(name), read_suspect("base")
    chosen = rng.random(len(own)) < share
    lines = [one if mine else two for one, two, mine in zip(own, other, chosen, strict=True)]
    return [lines[i] for i in rng.permutation(len(lines))]


def correlated_families(rng: np.random.Generator, runs: int) -> dict[str, Any]:
    """False discovery rate of e-BH and family-wise error of Holm under one key.

    Twenty suspects write from one pool of 3,000 units, so that they share pairs; two are guilty
    (their units have higher scores). Error rates are over keys: every run draws new coins.
    """
    suspects, guilty, pool, own = 20, 2, 3000, 1500
    law = Green().null_law
    slopes = mixture_slopes(law, 111)
    cumulative = np.cumsum(law.probabilities)
    levels = (0.5, 0.1, 0.01)
    proportions = dict.fromkeys(levels, 0.0)
    families = dict.fromkeys(levels, 0)
    discovered = dict.fromkeys(levels, 0)
    correlations: list[float] = []
    popularity = 1 / (np.arange(pool) + 300.0)
    for _ in range(runs):
        scores = np.minimum(np.searchsorted(cumulative, rng.random(pool)), len(law.masses) - 1)
        log10_e, log10_p, used = [], [], []
        for number in range(suspects):
            shares = popularity * np.exp(0.6 * scores if number < guilty else 0.0)
            draws = rng.choice(pool, own, p=shares / shares.sum())
            units, counts = np.unique(draws, return_counts=True)
            weights = np.minimum(np.rint(10 * np.sqrt(counts)).astype(np.int64), 111)
            table = ClassTable.from_scores(weights, scores[units], law)
            log10_e.append(log10_mixture(table, slopes))
            log10_p.append(log10_upper_tail(table))
            used.append((units, weights))
        correlations.append(_correlation(*used[-1], *used[-2]))
        bh = e_bh(log10_e)
        holm = weighted_holm(log10_p, np.full(suspects, 1 / suspects))
        for level in levels:
            named = bh <= math.log10(level)
            proportions[level] += named[guilty:].sum() / max(int(named.sum()), 1)
            discovered[level] += int(named[:guilty].sum())
            families[level] += bool((holm[guilty:] <= math.log10(level)).any())
    found = {
        "suspects": suspects,
        "guilty": guilty,
        "runs": runs,
        "mean_correlation_of_two_innocents": round(float(np.mean(correlations)), 3),
        "levels": [
            {
                "level": level,
                "false_discovery_rate_of_e_bh": round(float(proportions[level]) / runs, 4),
                "guilty_found_by_e_bh": round(discovered[level] / runs / guilty, 3),
                "family_wise_error_of_holm": round(families[level] / runs, 4),
            }
            for level in levels
        ],
    }
    print(found, flush=True)
    return found


def _correlation(
    a: NDArray[np.int64], x: NDArray[np.int64], b: NDArray[np.int64], y: NDArray[np.int64]
) -> float:
    _, left, right = np.intersect1d(a, b, return_indices=True)
    return float(x[left] @ y[right]) / math.sqrt(float(x @ x) * float(y @ y))


def share_intervals(rng: np.random.Generator, runs: int) -> list[dict[str, Any]]:
    """Fieller: simultaneous coverage and half-width, 52 values of which four have shares."""
    shares = np.zeros(52)
    shares[:4] = 0.4, 0.3, 0.2, 0.1
    rows = []
    for strength in (5.0, 10.0, 20.0, 40.0):
        covered, widths = 0, []
        rejected = np.zeros(4)
        for _ in range(runs):
            values = shares * strength + rng.standard_normal(52)
            found = fieller_shares(values, strength + rng.standard_normal(), 0.5, 0.5)
            covered += bool(((found.lower <= shares) & (shares <= found.upper)).all())
            widths.append(float((found.upper - found.lower)[:4].mean()) / 2)
            log10_p = stats.norm.logsf(values) / math.log(10)
            rejected += weighted_holm(log10_p, np.full(52, 1 / 52))[:4] <= -2
        rows.append(
            {
                "zeta": strength,
                "runs": runs,
                "coverage": covered / runs,
                "half_width": round(float(np.mean(widths)), 3),
                "holm_power_at_.01": (rejected / runs).round(3).tolist(),
            }
        )
        print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--keyrings", type=int, default=150)
    parser.add_argument("--orders", type=int, default=20)
    default = Path(__file__).parent / "results/sequential_pipeline.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    keyrings, orders, started = arguments.keyrings, arguments.orders, time.perf_counter()
    results = {
        "command": (
            f"python -m benchmarks.sequential_pipeline --keyrings {keyrings} --orders {orders}"
        ),
        "alpha": ALPHA,
        "stopping": stopping(orders),
        "share_intervals": share_intervals(np.random.default_rng(3), 4000),
        "correlated_families": correlated_families(np.random.default_rng(5), 400),
        "false_alarms": false_alarms(keyrings),
    }
    results["seconds"] = round(time.perf_counter() - started)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
