"""The e-process against the test with a fixed number of coins: false alarms, loss, early stopping.

python -m benchmarks.sequential [--runs 4000] [--output benchmarks/results/sequential.json]

Worlds: 100,000 green coins of weight 1 looked at 200 times; Gumbel scores; outputs in which coins
repeat, cut into batches. Everything that a verdict would report comes from `provenance.stats`; the
paths of the early-stopping table are evaluated by a vectorised formula that is compared with it.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp

from provenance.marks.own import Green, Gumbel
from provenance.stats.eprocess import EProcess, add_batch, start
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.mixture import GRID, log10_mixture
from provenance.stats.power import critical_value
from provenance.stats.score_class import ScoreClass
from provenance.stats.tables import ClassTable

COINS, LOOKS = 100_000, 200
GREEN, GUMBEL = Green().null_law, Gumbel().null_law


def one_class(law: NullLaw, coins: int, total: int) -> ClassTable:
    """Coins of weight 1."""
    return ClassTable((ScoreClass(1, law, coins, total),))


def path_evidence(totals: NDArray[np.int64], coins: NDArray[np.int64]) -> NDArray[np.float64]:
    """log10 E of green coins of weight 1 at every look: totals (runs, looks), coins (looks,)."""
    slopes = np.array(start(GREEN, 1, 1).slopes)
    cumulants = np.log1p(0.25 * np.expm1(slopes))
    evidence = np.empty(totals.shape)
    for look, count in enumerate(coins):
        terms = np.multiply.outer(totals[:, look], slopes) - count * cumulants
        evidence[:, look] = (logsumexp(terms, axis=1) - math.log(slopes.size)) / math.log(10)
    return evidence


def loss_at_the_end(rng: np.random.Generator, runs: int) -> list[dict[str, Any]]:
    """Mean loss of the mixture in orders of magnitude, all coins revealed at once."""
    rows = []
    slopes = start(GREEN, 1, 1).slopes
    for z in (3, 5, 7, 10):
        success = 0.25 + z * math.sqrt(3 / 16 / COINS)
        tables = [one_class(GREEN, COINS, int(t)) for t in rng.binomial(COINS, success, runs)]
        fixed = np.array([log10_upper_tail(table) for table in tables])
        evidence = np.array([log10_mixture(table, slopes) for table in tables])
        loss = fixed + evidence
        rows.append(
            {
                "z": z,
                "runs": runs,
                "mean_log10_p_fixed": round(float(fixed.mean()), 3),
                "mean_loss": round(float(-loss.mean()), 3),
                "standard_error": round(float(loss.std() / math.sqrt(runs)), 3),
            }
        )
        print(rows[-1], flush=True)
    return rows


def early_stopping(rng: np.random.Generator, runs: int) -> list[dict[str, Any]]:
    """P(reject) with all coins, P(ever reject) with 200 looks, and the share of coins used."""
    coins = np.arange(1, LOOKS + 1) * (COINS // LOOKS)
    rows = []
    for z in (0, 3, 5, 6, 7, 8, 10):
        success = 0.25 + z * math.sqrt(3 / 16 / COINS)
        number = 10 * runs if z == 0 else runs
        totals = rng.binomial(COINS // LOOKS, success, (number, LOOKS)).cumsum(axis=1)
        evidence = path_evidence(totals, coins)
        compare_with_product(evidence, totals, coins)
        for alpha in (1e-3, 1e-6):
            critical = critical_value(one_class(GREEN, COINS, 0), alpha)
            stopped = evidence >= -math.log10(alpha)
            ever = stopped.any(axis=1)
            shares = (stopped.argmax(axis=1)[ever] + 1) / LOOKS
            rows.append(
                {
                    "z": z,
                    "alpha": alpha,
                    "runs": number,
                    "rejects_fixed": float((totals[:, -1] >= critical).mean()),
                    "rejects_anytime": float(ever.mean()),
                    "median_share_of_data": round(float(np.median(shares)), 3)
                    if ever.mean() > 0.5
                    else None,
                }
            )
            print(rows[-1], flush=True)
    return rows


def compare_with_product(
    evidence: NDArray[np.float64], totals: NDArray[np.int64], coins: NDArray[np.int64]
) -> None:
    """The vectorised formula must be the product's at a few points of the paths."""
    slopes = start(GREEN, 1, 1).slopes
    for run, look in ((0, 0), (1, LOOKS // 2), (2, LOOKS - 1)):
        table = one_class(GREEN, int(coins[look]), int(totals[run, look]))
        if abs(log10_mixture(table, slopes) - evidence[run, look]) > 1e-6:
            raise RuntimeError(f"the formulas disagree at run {run}, look {look}")


def scaled_grid() -> list[dict[str, Any]]:
    """Loss for Gumbel scores (deviation 4) with slopes in units of the deviation, and without."""
    rows = []
    scaled = start(GUMBEL, 1, 1).slopes
    for coins in (10_000, 100_000, 1_000_000, 10_000_000):
        for z in (3, 5, 10):
            total = round(coins * GUMBEL.mean + z * math.sqrt(coins * GUMBEL.variance))
            table = one_class(GUMBEL, coins, total)
            fixed = -log10_upper_tail(table)
            rows.append(
                {
                    "coins": coins,
                    "z": z,
                    "log10_p_fixed": round(-fixed, 2),
                    "loss_scaled_by_deviation": round(fixed - log10_mixture(table, scaled), 2),
                    "loss_unscaled": round(fixed - log10_mixture(table, GRID), 2),
                }
            )
            print(rows[-1], flush=True)
    return rows


def collect(draws: NDArray[np.int64], scores: NDArray[np.int64], size: int) -> EProcess:
    """Run the e-process over draws cut into batches of `size`; weights min(count, 3)."""
    process = start(GREEN, 3, 1)
    for first in range(0, draws.size, size):
        coins, counts = np.unique(draws[first : first + size], return_counts=True)
        found = scores[coins]
        units = coins.astype(np.uint32)[:, None]
        process = add_batch(process, units, np.minimum(counts, 3), lambda rows, f=found: f[rows])
    return process


def repeats(rng: np.random.Generator, runs: int) -> list[dict[str, Any]]:
    """6,000 draws over 4,000 coins, Zipf; a green coin is drawn e^delta times as often."""
    rows = []
    base = 1.0 / np.arange(1, 4001) ** 0.5
    for delta in (0.0, 0.2, 0.3, 0.4):
        found: dict[str, list[float]] = {}
        for _ in range(runs):
            scores = (rng.random(4000) < 0.25).astype(np.int64)
            shares = base * np.exp(delta * scores)
            draws = rng.choice(4000, 6000, p=shares / shares.sum())
            coins, counts = np.unique(draws, return_counts=True)
            for name, weights in (
                ("fixed, presence", np.ones(coins.size, dtype=np.int64)),
                ("fixed, min(count, 3)", np.minimum(counts, 3)),
            ):
                table = ClassTable.from_scores(weights, scores[coins], GREEN)
                found.setdefault(name, []).append(-log10_upper_tail(table))
            frozen = ClassTable.from_scores(np.ones(coins.size, dtype=int), scores[coins], GREEN)
            evidence = log10_mixture(frozen, start(GREEN, 1, 1).slopes)
            found.setdefault("E, frozen at first sight", []).append(evidence)
            for size in (300, 1500, 3000, 6000):
                evidence = collect(draws, scores, size).log10_e
                found.setdefault(f"E, batches of {size}", []).append(evidence)
        means = {name: round(float(np.mean(values)), 2) for name, values in found.items()}
        rows.append({"delta": delta, "runs": runs, "mean_orders": means})
        print(rows[-1], flush=True)
    return rows


def false_alarms(rng: np.random.Generator, runs: int) -> list[dict[str, Any]]:
    """H0 through the API, as hostile as the rules allow.

    Eight batches of outputs with repeats; signs and sizes of the next weights depend on the coins
    revealed so far; the largest E over all batches decides.
    """
    rows = []
    for name, law, number in (("green", GREEN, runs), ("gumbel", GUMBEL, runs // 4)):
        cumulative = np.cumsum(law.probabilities)
        best = np.empty(number)
        for run in range(number):
            process = start(law, 5, 1)
            scores = np.minimum(np.searchsorted(cumulative, rng.random(400)), len(law.masses) - 1)
            for _ in range(8):
                coins, counts = np.unique(rng.zipf(1.3, 120) % 400, return_counts=True)
                sign = 1 if process.log10_e >= 0 else -1
                weights = sign * np.minimum(counts * (1 + (process.log10_e > 0.5)), 5)
                units, found = coins.astype(np.uint32)[:, None], scores[coins]
                process = add_batch(process, units, weights, lambda rows, f=found: f[rows])
            best[run] = -process.log10_p
        for alpha in (0.5, 0.2, 0.05, 0.01, 0.001):
            share = float((best >= -math.log10(alpha)).mean())
            rows.append({"law": name, "runs": number, "alpha": alpha, "ever_crossed": share})
            print(rows[-1], flush=True)
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=4000)
    default = Path(__file__).parent / "results/sequential.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    runs, started = arguments.runs, time.perf_counter()
    rng = np.random.default_rng(7)
    results = {
        "command": f"python -m benchmarks.sequential --runs {runs}",
        "coins": COINS,
        "looks": LOOKS,
        "false_alarms": false_alarms(rng, runs),
        "early_stopping": early_stopping(rng, runs),
        "loss_at_the_end": loss_at_the_end(rng, max(2, runs // 10)),
        "scaled_grid": scaled_grid(),
        "repeats": repeats(rng, max(2, runs // 80)),
    }
    results["seconds"] = round(time.perf_counter() - started)
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
