"""What the commands of the gates work on: small, made once, of real files."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Final

import numpy as np

import provenance as pv
from provenance.served.writer import LogWriter
from tests.world.synthetic import WORDS, save_tokenizer, seeded_secrets

PROMPTS: Final = 6
_VALUES: Final = {"week": ["W1", "W2"]}


def make_place(folder: Path) -> Path:
    """A keyring, a log and its halves, their indexes, outputs, a bundle, a state, a collection."""
    folder.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(3)
    save_tokenizer(folder / "tokenizer.json")
    keys = folder / "keys"
    with seeded_secrets(3):
        shares = {"global": 0.4, "week": 0.3}
        pv.make_keyring(keys, folder / "tokenizer.json", shares=shares, values=_VALUES)
        pv.create_signing_key(folder / "signer")
    for name, numbers in (("half.jsonl", range(30)), ("rest.jsonl", range(30, 60))):
        _log(folder / name, numbers, generator)
    _log(folder / "served.parquet", range(60), np.random.default_rng(3))
    (folder / "accounts.txt").write_text("a1\na2\n")
    for name in ("half", "rest"):
        pv.build_index(folder / f"{name}.jsonl", folder / name, keys)
    pv.build_index(folder / "served.parquet", folder / "index", keys)
    for name in ("few.jsonl", "more.jsonl"):
        _outputs(folder / name, generator)
    with pv.open_case(keys, folder / "index") as case:
        case.check(folder / "few.jsonl", placebo_keys=50).save(folder / "bundle")
        case.look(folder / "state", folder / "few.jsonl", placebo_keys=50)
    public = pv.Keyring.load(keys)
    pv.make_plan(folder / "plan.json", public, folder / "index", "x", outputs=[20])
    pv.new_case(folder / "case", keys, "x")
    shutil.rmtree(folder / "case/bundle", ignore_errors=True)
    prompts = [{"id": f"p{n}", "prompt": f"Prompt number {n}."} for n in range(PROMPTS)]
    _lines(folder / "prompts.jsonl", prompts)
    settings = pv.CollectSettings.read(model="m")
    pv.prepare_batch(folder / "prompts.jsonl", folder / "out", settings, "openai-batch")
    results = [
        _result(line) for line in (folder / "out/batch-input.jsonl").read_text().splitlines()
    ]
    _lines(folder / "results.jsonl", results)
    return folder


def _log(path: Path, numbers: range, generator: np.random.Generator) -> None:
    with LogWriter(path) as log:
        for number in numbers:
            log.write(
                f"r{number}",
                time="2026-01-01T00:00:00+00:00",
                labels={"week": f"W{1 + number % 2}", "account": f"a{number % 5}"},
                token_ids=generator.integers(0, WORDS, 40).tolist(),
                prompt_token_ids=generator.integers(0, WORDS, 5).tolist(),
                marked=True,
                finish="length",
            )


def _outputs(path: Path, generator: np.random.Generator) -> None:
    rows = generator.integers(0, WORDS, (20, 40))
    _lines(path, [{"prompt": "", "output": " ".join(f"w{i}" for i in row)} for row in rows])


def _lines(path: Path, records: list[dict[str, object]]) -> None:
    path.write_text("".join(json.dumps(record) + "\n" for record in records))


def _result(line: str) -> dict[str, object]:
    name = json.loads(line)["custom_id"]
    message = {"role": "assistant", "content": f"An answer to {name}."}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    usage = {"prompt_tokens": 5, "completion_tokens": 6, "total_tokens": 11}
    body = {"id": name, "model": "m-1", "choices": [choice], "usage": usage}
    return {
        "id": name,
        "custom_id": name,
        "response": {"status_code": 200, "body": body},
        "error": None,
    }
