"""Every weight rule on every suspect of the fixtures: which one keeps most of the evidence?

    python -m benchmarks.lab.evaluate [--output benchmarks/results/lab.json]

Needs fixtures/ only; adds what the training stages measured if their work folder is there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.lab.stage1 import WORK
from benchmarks.lab.stage2 import FIXTURES
from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.weigh import REFERENCE_RULE, RULES
from provenance.keys.keyring import Keyring
from provenance.keys.tokenizer import load_tokenizer
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.suspect.access.outputs import observe, read_positions
from provenance.suspect.models.ngram import NgramReference
from provenance.suspect.observations import add_expectations

REFERENCE_TEXT = ("suspects/base.jsonl.gz", "innocents/unmarked-teacher.jsonl.gz")
"""Unmarked text for the k-gram reference; never the suspect's own outputs."""


def evaluate(fixtures: Path, folder: Path) -> list[dict[str, Any]]:
    """One row per suspect and rule."""
    shutil.copytree(fixtures / "keys", folder / "keys")
    (folder / "keys/master.key").chmod(0o600)
    public = Keyring.load(folder / "keys")
    keyring = public.unlock(folder / "keys")
    tokenizer = load_tokenizer(folder / "keys/tokenizer.json", public)
    build_index([fixtures / "served.parquet"], folder / "index", keyring)
    catalogue = json.loads((fixtures / "suspects.json").read_text())
    rows = []
    with Index.open(folder / "index", public) as index:
        for suspect in catalogue["suspects"]:
            observations = observe([fixtures / suspect["outputs"]], tokenizer, public)
            others = [name for name in REFERENCE_TEXT if name != suspect["outputs"]]
            text = read_positions([fixtures / name for name in others], tokenizer, public)
            ngrams = NgramReference(text, public.vocabulary_size, public.context_width)
            for rule in RULES:
                if rule == REFERENCE_RULE:
                    observations = add_expectations(observations, ngrams.expect(observations))
                verdict = check_outputs(observations, index, keyring, CheckSettings(rule=rule))
                rows.append(
                    {
                        "suspect": suspect["name"],
                        "rule": rule,
                        "reference": others if rule == REFERENCE_RULE else [],
                        "log10_p": round(verdict.log10_p, 2),
                        "z": {h.name: round(h.tail.z, 2) for h in verdict.hypotheses},
                        "coins_of_global_key": verdict.hypotheses[0].tail.coins,
                        "controls_passed": verdict.controls_passed,
                        "controls": {c.name: c.detail for c in verdict.controls},
                        "attributed": verdict.attributed,
                        "tokens": observations.tokens_read,
                        "positions": observations.positions,
                    }
                )
                print(json.dumps({k: v for k, v in rows[-1].items() if k != "controls"}))
    return rows


def main() -> None:
    """Evaluate and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(__file__).parents[1] / "results/lab.json"
    parser.add_argument("--output", type=Path, default=default)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = evaluate(FIXTURES, Path(folder))
    # what the stages measured stays as it was where their work folder is not at hand
    output = arguments.output
    before = json.loads(output.read_text()) if output.exists() else {}
    result: dict[str, Any] = {"command": "python -m benchmarks.lab.evaluate", "suspects": rows}
    for name, path in (
        *((stage, WORK / f"{stage}.json") for stage in ("stage1", "stage2")),
        ("corpus", WORK / "corpus.json"),
    ):
        if path.exists():
            result[name] = json.loads(path.read_text())
        elif name in before:
            result[name] = before[name]
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
