"""What a bounded rule costs: n(c) capped much lower, on the suspects of the fixtures.

    python -m benchmarks.innocents.bounded [--output benchmarks/results/bounded.json]

A weight that knows only whether a context was served (n capped at 1) is the one that no adaptive
traffic can bias at the context itself: the first time that a context is reached at all, none of
its coins has been used. Capping n at 3 or 15 lies between. z of the global key.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.lab.evaluate import REFERENCE_TEXT
from benchmarks.lab.stage2 import FIXTURES
from provenance.check.weigh import PairCounts, weigh, weigh_presence
from provenance.keys.keyring import Keyring, UnlockedKeyring
from provenance.keys.tokenizer import load_tokenizer
from provenance.marks.own import make_scheme
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.stats.tables import ClassTable
from provenance.suspect.access.outputs import observe, read_positions
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.observations import Observations, add_expectations
from tests.world.innocents.weighing import SATURATING

CAPS: Final = (1, 3, 15, 1 << 10)
_GLOBAL: Final = 1


def weigh_all(choices: PairCounts) -> Mapping[str, np.ndarray]:
    """Every rule on the same pairs; `residual` where a reference expected something."""
    found = {}
    if choices.expected.any():
        for cap in CAPS:
            capped = replace(choices, responses=np.minimum(choices.responses, cap))
            found[f"residual, n to {cap}"] = weigh(capped, "residual")
        return found
    found["presence"] = weigh_presence(choices)
    for name, rule in SATURATING.items():
        found[name] = rule(choices.masses, choices.responses)
    found["log-sqrt"] = weigh(choices, "log-sqrt")
    return found


def read_choices(
    observations: Observations, index: Index, keyring: UnlockedKeyring
) -> tuple[PairCounts, np.ndarray]:
    """Pairs in contexts that were served under the global key, and where they stand."""
    slots = keyring.slots_of_names(observations.contexts)
    own = np.flatnonzero(slots == _GLOBAL)
    matches = index.lookup(_GLOBAL, observations.contexts[own])
    n = np.zeros(own.size, dtype=np.int64)
    np.add.at(n, matches.query, matches.responses)
    pairs = own[n > 0]
    return (
        PairCounts(
            observations.masses[pairs],
            observations.totals[pairs],
            n[n > 0],
            observations.expected[pairs],
            observations.sampled,
        ),
        pairs,
    )


def measure(
    observations: Observations, index: Index, keyring: UnlockedKeyring
) -> dict[str, dict[str, float]]:
    """z, coins and effective coins of every rule."""
    scheme = make_scheme(keyring.public.scheme.name, keyring.public.scheme.parameters)
    choices, pairs = read_choices(observations, index, keyring)
    contexts = observations.context_ids(pairs, keyring.context_width)
    scores = scheme.score(keyring.key("global", "").words(contexts, observations.tokens[pairs]))
    found = {}
    for name, weights in weigh_all(choices).items():
        table = ClassTable.from_scores(weights, scores, scheme.null_law)
        found[name] = {
            "z": round(table.z, 2),
            "coins": table.coins,
            "effective_coins": round(table.effective_coins),
        }
    return found


def evaluate(fixtures: Path, folder: Path) -> list[dict[str, Any]]:
    """One row per suspect."""
    shutil.copytree(fixtures / "keys", folder / "keys")
    (folder / "keys/master.key").chmod(0o600)
    public = Keyring.load(folder / "keys")
    keyring = public.unlock(folder / "keys")
    tokenizer = load_tokenizer(folder / "keys/tokenizer.json", public)
    build_index([fixtures / "served.parquet"], folder / "index", keyring)
    rows = []
    with Index.open(folder / "index", public) as index:
        for suspect in json.loads((fixtures / "suspects.json").read_text())["suspects"]:
            observations = observe([fixtures / suspect["outputs"]], tokenizer, public)
            others = [name for name in REFERENCE_TEXT if name != suspect["outputs"]]
            text = read_positions([fixtures / name for name in others], tokenizer, public)
            ngrams = NgramReference(text, public.vocabulary_size, public.context_width)
            expected = add_expectations(observations, ngrams.expect(observations))
            rules = measure(observations, index, keyring) | measure(expected, index, keyring)
            rows.append({"suspect": suspect["name"], "rules": rules})
            print(suspect["name"], {name: one["z"] for name, one in rules.items()}, flush=True)
    return rows


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description="Bounded weight rules on the fixtures.")
    default = Path(__file__).parents[1] / "results/bounded.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = evaluate(FIXTURES, Path(folder))
    result = {"command": "python -m benchmarks.innocents.bounded", "suspects": rows}
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
