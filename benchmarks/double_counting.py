"""How often the placebo control sees pairs that are counted twice.

    python -m benchmarks.double_counting [--runs 100]

The weighted pairs of an innocent suspect (`fixtures/suspects/base`) under the global key, a random
share of which stands in the list twice: the coins of a pair are then counted as two. Writes
benchmarks/results/double-counting.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import tempfile
from pathlib import Path

import numpy as np

from provenance.check.controls import control_placebo
from provenance.check.inputs import describe_versions
from provenance.check.score import WeightedPairs, tabulate, weigh_observations
from provenance.keys.keyring import Keyring
from provenance.keys.tokenizer import load_tokenizer
from provenance.marks import as_mark
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.suspect.access.outputs import observe

FIXTURES = Path(__file__).parents[1] / "fixtures"
RESULT = Path(__file__).parent / "results/double-counting.json"
SHARES = (0.0, 0.1, 0.2, 0.4)
KEYS = 400


def repeat_some(pairs: WeightedPairs, share: float, rng: np.random.Generator) -> WeightedPairs:
    """The pairs, and a random share of them once more."""
    again = np.flatnonzero(rng.random(len(pairs)) < share)
    rows = np.concatenate([np.arange(len(pairs)), again])
    return WeightedPairs(pairs.contexts[rows], pairs.tokens[rows], pairs.weights[rows])


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--runs", type=int, default=100)
    arguments = parser.parse_args()
    public = Keyring.load(FIXTURES / "keys")
    keyring = public.unlock(FIXTURES / "keys")
    mark, tokenizer = as_mark(keyring), load_tokenizer(FIXTURES / "keys/tokenizer.json", public)
    observations = observe([FIXTURES / "suspects/base.jsonl.gz"], tokenizer, public)
    with tempfile.TemporaryDirectory() as folder:
        build_index([FIXTURES / "served.parquet"], folder, keyring)
        with Index.open(folder, public) as index:
            weighing = weigh_observations(observations, index, mark, "log-sqrt")
    pairs, key = weighing.hypotheses["global", ""], mark.open("global", "")
    failed = {}
    for share in SHARES:
        seen = 0
        for run in range(arguments.runs):
            rng = np.random.default_rng([run, round(100 * share)])
            double = repeat_some(pairs, share, rng)
            table = tabulate(double, key, mark.null_law)
            seen += not control_placebo(double, "global", table, mark, KEYS, rng.bytes(32)).passed
        failed[f"{share:g}"] = seen / arguments.runs
        print(f"share {share:g}: fails in {seen} of {arguments.runs}", flush=True)
    result = {
        "command": f"python -m benchmarks.double_counting --runs {arguments.runs}",
        "pairs": len(pairs),
        "placebo_keys": KEYS,
        "failed": failed,
        "versions": describe_versions(),
        "machine": platform.machine(),
    }
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
