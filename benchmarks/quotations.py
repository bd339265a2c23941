"""What leaving quotations of the prompt out costs an honest suspect, and what it is worth.

`python -m benchmarks.quotations` on fixtures/: the share of positions that models lose who quote
nothing on purpose; 300 outputs of an innocent model that repeat a marked passage of their prompt,
in ten forms, with this rule and with equal tokens alone; time per million characters. Results in
benchmarks/results/quotations.json, figures in docs/validity.md.
"""

from __future__ import annotations

import gzip
import html
import json
import re
import shutil
import tempfile
import textwrap
import time
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.check.examine import check_outputs
from provenance.keys.keyring import Keyring
from provenance.keys.tokenizer import load_tokenizer, tokenise_placed
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.suspect.access.documents import Documents
from provenance.suspect.access.outputs import observe
from provenance.suspect.quotations import RULE, Spelled, find_quotations

ROOT = Path(__file__).parents[1]
FIXTURES = ROOT / "fixtures"
RESULTS = ROOT / "benchmarks/results/quotations.json"
OUTPUTS = 300


def _wrap(text: str, width: int = 72) -> str:
    return textwrap.fill(text, width, break_long_words=False, break_on_hyphens=False)


def _quote(text: str) -> str:
    return "\n".join("> " + line for line in text.split("\n"))


def _number(text: str) -> str:
    return "\n".join(f"{i:6}\t{line}" for i, line in enumerate(text.split("\n"), 1))


FORMS: dict[str, Callable[[str], str]] = {
    "the same text": str,
    "wrapped at 72 columns": _wrap,
    "mail quote": _quote,
    "mail quote, wrapped": lambda text: _quote(_wrap(text, 70)),
    "JSON string": json.dumps,
    "white space collapsed": lambda text: re.sub(r"\s+", " ", text),
    "rendered, without ` * _ #": lambda text: re.sub(r"[`*_#]", "", text),
    "lower case": str.lower,
    "HTML": html.escape,
    "URL": urllib.parse.quote,
    "numbered lines": _number,
}


def _by_equal_tokens_alone(
    outputs: Sequence[Spelled], *_: Any, **__: Any
) -> list[NDArray[np.bool_]]:
    """The double: no text is compared."""
    return [np.zeros(one.begins.shape[0], dtype=np.bool_) for one in outputs]


class _Bench:
    """Keyring, tokenizer and index of the fixtures, in a folder of its own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        shutil.copytree(FIXTURES / "keys", folder / "keys")
        (folder / "keys/master.key").chmod(0o600)
        self.public = Keyring.load(folder / "keys")
        self.keyring = self.public.unlock(folder / "keys")
        self.tokenizer = load_tokenizer(folder / "keys/tokenizer.json", self.public)
        build_index([FIXTURES / "served.parquet"], folder / "index", self.keyring)
        self.index = Index.open(folder / "index", self.public)

    def cost(self) -> Iterator[dict[str, Any]]:
        """Positions that the fixtures lose, as outputs; and served responses, as documents."""
        for path in sorted(FIXTURES.glob("*/*.jsonl.gz")):
            found = observe([path], self.tokenizer, self.public)
            counted = found.positions + found.quoted
            yield {
                "name": path.name.removesuffix(".jsonl.gz"),
                "positions": found.positions,
                "quoted": found.quoted,
                "share": found.quoted / counted,
                "log10_p": check_outputs(found, self.index, self.keyring).log10_p,
            }
        served = [FIXTURES / "served.parquet"]
        documents = Documents(served, self.tokenizer, self.index, self.keyring)
        parts = [positions for positions, _ in documents]
        quoted = sum(part.quoted for part in parts)
        positions = sum(part.contexts.shape[0] for part in parts)
        prompts = sum(part.with_prompt for part in parts)
        yield {
            "name": "served responses, read",
            "positions": positions,
            "quoted": quoted,
            "share": quoted / max(positions + quoted, 1),
            "with_prompt": prompts,
        }

    def worth(self) -> Iterator[dict[str, Any]]:
        """Innocent outputs that repeat a marked passage of their prompt."""
        table = pq.read_table(FIXTURES / "served.parquet", columns=["token_ids", "marked"])
        rows = zip(table["token_ids"].to_pylist(), table["marked"].to_pylist(), strict=True)
        passages = [self.tokenizer.decode(ids) for ids, marked in rows if marked][:OUTPUTS]
        with gzip.open(FIXTURES / "suspects/base.jsonl.gz", "rt") as lines:
            own = [json.loads(line)["output"] for line in lines][:OUTPUTS]
        for name, form in FORMS.items():
            path = self.folder / "quoting.jsonl"
            with path.open("w") as file:
                for passage, text in zip(passages, own, strict=True):
                    record = {
                        "prompt": "Explain this:\n" + form(passage),
                        "output": f"You wrote:\n{passage}\n{text}",
                    }
                    file.write(json.dumps(record) + "\n")
            found = self._check(path)
            with patch("provenance.suspect.access.outputs.find_quotations", _by_equal_tokens_alone):
                double = self._check(path)
            yield {"form": name, "rule": found, "equal_tokens_alone": double}

    def _check(self, path: Path) -> dict[str, Any]:
        verdict = check_outputs(
            observe([path], self.tokenizer, self.public), self.index, self.keyring
        )
        prompts = [control.detail for control in verdict.controls if control.name == "prompts"]
        return {
            "log10_p": verdict.log10_p,
            "z": verdict.hypotheses[0].tail.z,
            "conclusion": verdict.conclusion,
            "prompts": prompts[0] if prompts else "",
        }

    def speed(self) -> dict[str, float]:
        """Seconds of CPU per million characters of outputs and prompts, both rules."""
        with gzip.open(FIXTURES / "suspects/base.jsonl.gz", "rt") as lines:
            records = [json.loads(line) for line in lines][:1000]
        texts = [record["output"] for record in records]
        placed = tokenise_placed(self.tokenizer, texts, "bench")
        outputs = [
            Spelled.of_offsets(text, offsets)
            for text, (_, offsets) in zip(texts, placed, strict=True)
        ]
        shown = [
            (text[::-1], record["prompt"]) for text, record in zip(texts, records, strict=True)
        ]
        characters = sum(len(one) for one in texts) + sum(len(one) for own in shown for one in own)
        width = self.public.context_width
        found = {}
        for name, drawn in (("outputs", True), ("documents", False)):
            find_quotations(outputs[:10], shown[:10], width, drawn_by_suspect=drawn)
            start = time.process_time()
            find_quotations(outputs, shown, width, drawn_by_suspect=drawn)
            found[name] = (time.process_time() - start) / characters * 1e6
        return found


def main() -> None:
    """Measure all of it and write the results."""
    with tempfile.TemporaryDirectory() as folder:
        bench = _Bench(Path(folder))
        report: dict[str, Any] = {"rule": RULE, "outputs": OUTPUTS}
        report["seconds_per_million_characters"] = bench.speed()
        print(report["seconds_per_million_characters"], flush=True)
        for name, rows in (("cost", bench.cost()), ("worth", bench.worth())):
            report[name] = []
            for row in rows:
                print(row, flush=True)
                report[name].append(row)
    RESULTS.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
