"""What can be seen of a real language model: every suspect, from weights and from text.

    python -m benchmarks.smollm.evaluate [--work DIR]

Needs what `python -m benchmarks.smollm` has made so far; suspects that are not there are left out.
The suspects read `fresh.jsonl`, marked responses to prompts that none of them was trained on; the
reference is the served model itself, from which all of them were fine-tuned. The published tests
see the same positions and coins: of the global slot, which favours them. Writes
benchmarks/results/smollm.json, one run per keyring: those of other work folders are kept.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.power import methods
from provenance.check import CheckSettings, check_outputs
from provenance.contexts import unpack
from provenance.files import read_json, write_json
from provenance.keys.keyring import Keyring, UnlockedKeyring
from provenance.schemes import make_scheme
from provenance.served.index import Index, build_index
from provenance.suspect.documents import Documents
from provenance.suspect.language_model import LanguageModel
from provenance.suspect.observations import Observations, add_expectations
from provenance.suspect.outputs import count_positions, read_positions
from provenance.suspect.probabilities import expect_with_model, observe_weights
from provenance.tokenizer import load_tokenizer
from provenance.verdict import Verdict
from provenance.weigh import DEFAULT_RULE, REFERENCE_RULE

WORK = Path(__file__).parent / "work"
RESULTS = Path(__file__).parents[1] / "results/smollm.json"
SUSPECTS = ("student-full", "student-mixed", "student-innocent", "served-model")
COMMAND = "python -m benchmarks.smollm && python -m benchmarks.smollm.evaluate"
GLOBAL = ("global", "")


class MostProbable(LanguageModel):
    """The reading mode of Sander et al.: the most probable token instead of the distribution."""

    def _map(self, probabilities: NDArray[np.float32]) -> tuple[NDArray[Any], float]:
        best = np.zeros_like(probabilities)
        best[np.arange(best.shape[0]), probabilities.argmax(axis=1)] = 1
        return best, float(best.shape[0])


@dataclass
class Laboratory:
    """The opened log of the experiment."""

    work: Path

    def __post_init__(self) -> None:
        self.public = Keyring.load(self.work / "keys")
        self.keyring: UnlockedKeyring = self.public.unlock(self.work / "keys")
        self.tokenizer = load_tokenizer(self.work / "keys/tokenizer.json", self.public)
        logs = [path for path in self.logs() if path.exists()]
        folder = self.work / f"index-{len(logs)}"
        if not (folder / "manifest.json").exists():
            build_index(logs, folder, self.keyring)
        self.index = Index.open(folder, self.public)
        self.cache = self.work / "cache"
        self.base = self.load("served-model")
        self.scheme = make_scheme(self.public.scheme.name, self.public.scheme.parameters)

    def logs(self) -> list[Path]:
        """The served log: two files, the second one may still be missing."""
        return [self.work / "served.jsonl", self.work / "served-2.jsonl"]

    def load(self, name: str) -> LanguageModel:
        """A model of the experiment."""
        return LanguageModel(self.work / name, self.public, self.tokenizer)

    @property
    def fresh(self) -> Documents:
        """What is read."""
        return Documents([self.work / "fresh.jsonl"], self.tokenizer, self.index, self.keyring)

    def check(self, observations: Observations) -> Verdict:
        """The whole check, with all keys and controls."""
        plain = observations.sampled and not observations.reference
        settings = CheckSettings(rule=DEFAULT_RULE if plain else REFERENCE_RULE)
        return check_outputs(observations, self.index, self.keyring, settings)


def observe(laboratory: Laboratory, name: str) -> Iterator[tuple[str, str, Observations]]:
    """(access, method, observations) of everything that is there of a suspect."""
    cache = laboratory.cache
    if (laboratory.work / "fresh.jsonl").exists():
        model = laboratory.load(name)
        yield "weights", "provenance", observe_weights(model, None, laboratory.fresh, cache=cache)
        if name != "served-model":
            found = observe_weights(model, laboratory.base, laboratory.fresh, cache=cache)
            yield "weights", "provenance-base", found
    outputs = laboratory.work / f"outputs-{name.replace('served-model', 'base')}.jsonl"
    if outputs.exists():
        positions = read_positions([outputs], laboratory.tokenizer, laboratory.public)
        counted = count_positions(positions)
        yield "text", "provenance", counted
        expected = expect_with_model(
            laboratory.base, positions, laboratory.index, laboratory.keyring, cache=cache
        )
        yield "text", "provenance-base", add_expectations(counted, expected)


def peers(laboratory: Laboratory, name: str) -> Iterator[tuple[str, methods.PeerResult]]:
    """The tests of Sander et al. on the same positions, in the marked slot."""
    slot = laboratory.keyring.schedule.names.index("global")
    key, width = laboratory.keyring.key(*GLOBAL), laboratory.public.context_width

    def run(contexts: NDArray[np.int64], tokens: NDArray[np.uint32], served: bool):  # type: ignore[no-untyped-def]
        unpacked = unpack(contexts, width)
        own = laboratory.keyring.slots_of(unpacked) == slot
        unpacked, tokens, contexts = unpacked[own], tokens[own], contexts[own]
        phi = None
        if served:
            known = laboratory.index.lookup(slot, np.unique(contexts)).query
            phi = np.unique(contexts)[np.unique(known)]
        words = key.words(unpacked, tokens)
        return methods.run_sander_closed(unpacked, tokens, words, laboratory.scheme, served=phi)

    if (laboratory.work / "fresh.jsonl").exists():
        model = MostProbable(laboratory.work / name, laboratory.public, laboratory.tokenizer)
        readings = [
            model.read(positions, np.ones(positions.contexts.shape[0], dtype=bool))
            for positions, _ in laboratory.fresh
        ]
        contexts = np.concatenate([reading.contexts for reading in readings])
        tokens = np.concatenate([reading.tokens for reading in readings])
        for served in (False, True):
            yield f"sander-open{'-filtered' if served else ''}", run(contexts, tokens, served)
    outputs = laboratory.work / f"outputs-{name.replace('served-model', 'base')}.jsonl"
    if outputs.exists():
        positions = read_positions([outputs], laboratory.tokenizer, laboratory.public)
        for served in (False, True):
            result = run(positions.contexts, positions.tokens, served)
            yield f"sander-closed{'-filtered' if served else ''}", result


def describe(verdict: Verdict) -> Mapping[str, Any]:
    """What the results keep of a verdict."""
    hypotheses = {
        h.name: {"z": round(h.tail.z, 2), "coins": h.tail.coins} for h in verdict.hypotheses
    }
    return {
        "log10_p_of_the_check": round(verdict.log10_p, 2),
        "conclusion": verdict.conclusion,
        "attributed": verdict.attributed,
        "keys": hypotheses,
        "controls": {control.name: control.passed for control in verdict.controls},
    }


def main() -> None:
    """Evaluate what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    arguments = parser.parse_args()
    started, laboratory, records = time.perf_counter(), Laboratory(arguments.work), []
    for name in SUSPECTS:
        if not (arguments.work / name / "config.json").exists():
            continue
        for access, method, observations in observe(laboratory, name):
            verdict = laboratory.check(observations)
            one = next(h for h in verdict.hypotheses if (h.slot, h.value) == GLOBAL)
            records.append(
                {
                    "suspect": name,
                    "access": access,
                    "method": method,
                    "positions": observations.positions,
                    "tokens": observations.tokens_read,
                    "z": round(one.tail.z, 3),
                    "log10_p": round(one.tail.log10_p, 3),
                    **describe(verdict),
                }
            )
            print(json.dumps({k: v for k, v in records[-1].items() if k != "keys"}), flush=True)
        for method, result in peers(laboratory, name):
            records.append(
                {
                    "suspect": name,
                    "access": "weights" if "open" in method else "text",
                    "method": method,
                    "positions": result.tokens,
                    "z": round(result.z, 3),
                    "log10_p": round(result.log10_p, 3),
                }
            )
            print(json.dumps(records[-1]), flush=True)
    run = {
        "keyring": laboratory.public.id,
        "machine": f"{platform.machine()}, Python {platform.python_version()}, one thread",
        "versions": {package: version(package) for package in ("torch", "transformers", "numpy")},
        "seconds": round(time.perf_counter() - started),
        "made": read_json(arguments.work / "facts.json"),
        "records": records,
    }
    earlier = read_json(RESULTS)["runs"] if RESULTS.exists() else []
    runs = [kept for kept in earlier if kept["keyring"] != run["keyring"]] + [run]
    write_json(RESULTS, {"command": COMMAND, "runs": runs})


if __name__ == "__main__":
    main()
