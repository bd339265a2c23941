"""What can be seen of a real language model: every suspect, from weights and from text.

    python -m benchmarks.smollm.evaluate [--work DIR]

Needs what `python -m benchmarks.smollm` has made so far; suspects that are not there are left out.
From weights, the suspects read `fresh.jsonl`, marked responses to prompts that none of them was
trained on; who has another tokenizer may read unmarked responses only. From text, their answers to
other prompts and to the prompts of the served responses. The reference is none, the model that the
suspect was fine-tuned from, the student of unmarked responses, or k-grams of these. The published
tests see the same positions and coins: of the global slot, which favours them. Writes
benchmarks/results/smollm.json, one run per keyring: those of other work folders are kept.
"""

from __future__ import annotations

import argparse
import fcntl
import json
import platform
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.smollm import gemma, model, serve
from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.verdict import Verdict
from provenance.check.weigh import DEFAULT_RULE, REFERENCE_RULE
from provenance.coins.contexts import unpack
from provenance.keys.keyring import Keyring, UnlockedKeyring
from provenance.keys.tokenizer import load_tokenizer
from provenance.marks.own import make_scheme
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.storage.files import read_json, write_json
from provenance.suspect.access.documents import Documents
from provenance.suspect.access.outputs import count_positions, read_positions
from provenance.suspect.access.probabilities import expect_with_model, observe_weights
from provenance.suspect.models.language_model import LanguageModel
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.observations import Observations, add_expectations
from provenance.suspect.positions import Positions
from tests.world.power import methods

WORK = Path(__file__).parent / "work"
RESULTS = Path(__file__).parents[1] / "results/smollm.json"
SUSPECTS = (
    *("student-full", "student-mixed", "student-innocent", model.SERVED_MODEL),
    *("gemma-full", "gemma-innocent"),
)
OUTPUTS = {"outputs": "text, other prompts", "probes": "text, served prompts"}
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
        self.base = self.load(model.SERVED_MODEL)
        self.scheme = make_scheme(self.public.scheme.name, self.public.scheme.parameters)

    def logs(self) -> list[Path]:
        """The served log: two files, the second one may still be missing."""
        return [self.work / "served.jsonl", self.work / "served-2.jsonl"]

    def load(self, name: str) -> LanguageModel:
        """A model of the experiment."""
        return LanguageModel(self.work / name, self.public, self.tokenizer, other_tokenizer=True)

    @cached_property
    def ngrams(self) -> NgramReference:
        """k-grams of the served model's unmarked responses."""
        path = self.work / "unmarked-text.jsonl"
        tokenizer = model.load_tokenizer(self.work / model.SERVED_MODEL)
        serve.write_outputs(tokenizer, path, serve.read_set(self.work, "unmarked"), ids=True)
        text = read_positions([path], self.tokenizer, self.public)
        return NgramReference(text, self.public.vocabulary_size, self.public.context_width)

    def answers(self, name: str) -> Iterator[tuple[str, Positions]]:
        """(access, positions) of the suspect's outputs that are there."""
        for kind, access in OUTPUTS.items():
            path = self.work / f"{kind}-{name}.jsonl"
            if path.exists():
                yield access, read_positions([path], self.tokenizer, self.public)

    @property
    def unmarked(self) -> Documents:
        """What a model with another tokenizer may read: as many responses as `fresh` has."""
        paths = [self.work / "unmarked.jsonl"]
        return Documents(
            paths, self.tokenizer, self.index, self.keyring, limit=216, unmarked_only=True
        )

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
    cache, other = laboratory.cache, name.startswith("gemma")
    base = laboratory.load(gemma.BASE) if other else laboratory.base
    for access, positions in laboratory.answers(name):
        counted = count_positions(positions)
        yield access, "provenance", counted
        ngrams = laboratory.ngrams.expect(counted)
        yield access, "provenance-ngram", add_expectations(counted, ngrams)
        expected = expect_with_model(
            base, positions, laboratory.index, laboratory.keyring, cache=cache
        )
        yield access, "provenance-base", add_expectations(counted, expected)
    read = laboratory.load(name)
    if other:
        found = observe_weights(read, base, laboratory.unmarked, cache=cache)
        yield "weights, unmarked responses", "provenance-base", found
        return
    references = {"provenance": None}
    if name != model.SERVED_MODEL:
        references["provenance-base"] = base
    if name in ("student-full", "student-mixed"):
        references["provenance-student"] = laboratory.load("student-innocent")
    for method, reference in references.items():
        found = observe_weights(read, reference, laboratory.fresh, cache=cache)
        yield "weights", method, found


def peers(laboratory: Laboratory, name: str) -> Iterator[tuple[str, str, methods.PeerResult]]:
    """(access, method, result) of the tests of Sander et al., same positions, marked slot."""
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

    if not name.startswith("gemma"):
        best = MostProbable(laboratory.work / name, laboratory.public, laboratory.tokenizer)
        readings = [
            best.read(positions, np.ones(positions.contexts.shape[0], dtype=bool))
            for positions, _ in laboratory.fresh
        ]
        contexts = np.concatenate([reading.contexts for reading in readings])
        tokens = np.concatenate([reading.tokens for reading in readings])
        for served in (False, True):
            method = f"sander-open{'-filtered' if served else ''}"
            yield "weights", method, run(contexts, tokens, served)
    for access, positions in laboratory.answers(name):
        for served in (False, True):
            method = f"sander-closed{'-filtered' if served else ''}"
            yield access, method, run(positions.contexts, positions.tokens, served)


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


def list_records(laboratory: Laboratory, name: str) -> Iterator[dict[str, Any]]:
    """What the results keep of every test of one suspect."""
    for access, method, observations in observe(laboratory, name):
        verdict = laboratory.check(observations)
        one = next(h for h in verdict.hypotheses if (h.slot, h.value) == GLOBAL)
        yield {
            "suspect": name,
            "access": access,
            "method": method,
            "positions": observations.positions,
            "tokens": observations.tokens_read,
            "z": round(one.tail.z, 3),
            "log10_p": round(one.tail.log10_p, 3),
            **describe(verdict),
        }
    for access, method, result in peers(laboratory, name):
        yield {
            "suspect": name,
            "access": access,
            "method": method,
            "positions": result.tokens,
            "z": round(result.z, 3),
            "log10_p": round(result.log10_p, 3),
        }


def add_record(laboratory: Laboratory, record: dict[str, Any]) -> None:
    """Put one record into the run of this keyring; another process may do so too."""
    with (laboratory.work / ".results.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = read_json(RESULTS)["runs"] if RESULTS.exists() else []
        keyring = laboratory.public.id
        kept = next((run["records"] for run in runs if run["keyring"] == keyring), [])
        test = ("suspect", "access", "method")
        kept = [old for old in kept if any(old[field] != record[field] for field in test)]
        packages = ("torch", "transformers", "numpy")
        run = {
            "keyring": keyring,
            "machine": f"{platform.machine()}, Python {platform.python_version()}, one thread",
            "versions": {package: version(package) for package in packages},
            "made": read_json(laboratory.work / "facts.json"),
            "records": [*kept, record],
        }
        runs = [old for old in runs if old["keyring"] != keyring] + [run]
        write_json(RESULTS, {"command": COMMAND, "runs": runs})


def main() -> None:
    """Evaluate what is there."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--suspects", nargs="+", choices=SUSPECTS, default=SUSPECTS)
    arguments = parser.parse_args()
    laboratory = Laboratory(arguments.work)
    for name in arguments.suspects:
        if (arguments.work / name / "config.json").exists():
            for record in list_records(laboratory, name):
                add_record(laboratory, record)
                print(json.dumps({k: v for k, v in record.items() if k != "keys"}), flush=True)


if __name__ == "__main__":
    main()
