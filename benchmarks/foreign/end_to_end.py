"""End to end under somebody else's mark: transformers marks, a student learns, `check` finds it.

    python -m benchmarks.foreign.end_to_end [--models benchmarks/lab/work] [hf-lefthash hf-synthid]

1. The lab's teacher answers prompts through `model.generate(watermarking_config=...)` of
   transformers itself, with `WatermarkingConfig` (left-hash, bias 2, a random 31-bit key) or
   `SynthIDTextWatermarkingConfig` (10 random keys, n-grams of 3); and once more without a mark.
2. A student is the lab's base model, fine-tuned on the marked responses; its innocent twin is the
   same, fine-tuned on the unmarked responses to the same prompts, with the same seeds.
3. Both answer other prompts, unmarked.
4. The command line does the rest: `index build --scheme`, `check --scheme --reference BASE`.

Every step is kept in the work folder and not done again. Needs `make lab` first.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import SynthIDTextWatermarkingConfig, WatermarkingConfig

from benchmarks.lab import models, sampling
from benchmarks.lab.tokenizer import load_tokenizer

HERE = Path(__file__).parent
RESULTS = HERE.parent / "results/foreign.json"
SERVED, ASKED, BATCH = 768, 512, 64
STEPS, TOKENS_PER_STEP, LEARNING_RATE = 350, 1024, 1e-3
TWIN = "twin"
KEY, BIAS, RATIO = 1_848_266_933, 2.0, 0.25

Responses = list[list[int]]


def load_prompts(folder: Path, start: int, count: int) -> list[str]:
    """`count` prompts of the lab from `start` on."""
    with (folder / "prompts.jsonl").open(encoding="utf-8") as lines:
        return [json.loads(line)["prompt"] for line in lines][start : start + count]


def configuration(scheme: str) -> WatermarkingConfig | SynthIDTextWatermarkingConfig | None:
    """What the serving engineer wrote; None for the unmarked responses of the twin."""
    if scheme == "hf-lefthash":
        return WatermarkingConfig(
            greenlist_ratio=RATIO, bias=BIAS, hashing_key=KEY, seeding_scheme="lefthash"
        )
    if scheme == "hf-synthid":
        keys = np.random.default_rng(KEY).integers(0, 1 << 31, 10).tolist()
        return SynthIDTextWatermarkingConfig(ngram_len=3, keys=keys)
    return None


def serve(folder: Path, prompts: list[str], scheme: str) -> Responses:
    """Responses of the teacher by transformers' own `generate`, 160 tokens each."""
    model = models.load_model(folder / "teacher")
    found: Responses = []
    for number, batch in enumerate(encode(folder, prompts).split(BATCH)):
        torch.manual_seed(1000 * (scheme != TWIN) + number)
        ids = model.generate(
            batch,
            attention_mask=torch.ones_like(batch),
            do_sample=True,
            top_k=0,
            max_new_tokens=sampling.NEW_TOKENS,
            min_new_tokens=sampling.NEW_TOKENS,
            watermarking_config=configuration(scheme),
        )
        found += ids[:, batch.shape[1] :].tolist()
    return found


def encode(folder: Path, prompts: list[str]) -> torch.Tensor:
    return sampling.encode_prompts(load_tokenizer(folder), prompts)


def train(folder: Path, target: Path, documents: Responses, label: str) -> None:
    """Fine-tune the base model on the documents."""
    model = models.train(
        models.load_model(folder / "base"),
        models.pack(documents),
        steps=STEPS,
        tokens_per_step=TOKENS_PER_STEP,
        learning_rate=LEARNING_RATE,
        seed=11,
        threads=1,
        label=label,
    )
    models.save_model(model, target, load_tokenizer(folder))


def ask(folder: Path, suspect: Path, path: Path) -> None:
    """Unmarked answers to prompts that were not served, as users bring them."""
    prompts, tokenizer = load_prompts(folder, 4608, ASKED), load_tokenizer(folder)
    model, lines = models.load_model(suspect), []
    for number, batch in enumerate(encode(folder, prompts).split(BATCH)):
        ids = sampling.generate(
            model, batch, sampling.NEW_TOKENS, sampling.random_draw(1.0, 77 + number)
        )
        lines += [tokenizer.decode(row) for row in ids.tolist()]
    records = [
        json.dumps({"prompt": prompt, "output": text})
        for prompt, text in zip(prompts, lines, strict=True)
    ]
    path.write_text("\n".join(records) + "\n")


def write_log(folder: Path, path: Path, prompts: list[str], responses: Responses) -> None:
    """The served log as JSONL."""
    asked = encode(folder, prompts).tolist()
    records = [
        {
            "response_id": f"r{i}",
            "time": "2026-04-01T12:00:00Z",
            "labels": {},
            "token_ids": ids,
            "prompt_token_ids": prompt,
            "marked": True,
            "finish": "length",
        }
        for i, (ids, prompt) in enumerate(zip(responses, asked, strict=True))
    ]
    path.write_text("\n".join(json.dumps(record) for record in records) + "\n")


def make(folder: Path, work: Path, name: str) -> None:
    """A student of this scheme, or the twin, and its answers; what is there already is kept."""
    prompts, own = load_prompts(folder, 0, SERVED), work / name
    own.mkdir(parents=True, exist_ok=True)
    responses = own / "responses.json"
    if not responses.exists():
        responses.write_text(json.dumps(serve(folder, prompts, name)))
        print(f"{name}: served", flush=True)
    found = json.loads(responses.read_text())
    if not (own / "model/config.json").exists():
        asked = encode(folder, prompts).tolist()
        documents = [prompt + ids for prompt, ids in zip(asked, found, strict=True)]
        train(folder, own / "model", documents, name)
    if not (own / "outputs.jsonl").exists():
        ask(folder, own / "model", own / "outputs.jsonl")
    if (marked := configuration(name)) is None:
        return
    write_log(folder, own / "served.jsonl", prompts, found)
    config = marked.to_dict()
    key = config.pop("hashing_key" if name == "hf-lefthash" else "keys")
    (own / "config.json").write_text(json.dumps(config))
    (own / "key").unlink(missing_ok=True)
    (own / "key").touch(mode=0o600)
    (own / "key").write_text(json.dumps(key))


def run(folder: Path, own: Path, *words: str) -> str:
    """One call of the command line; evidence exits 1, which is no failure here."""
    scheme = ["--scheme", own.name, "--scheme-config", str(own / "config.json")]
    scheme += ["--scheme-key-file", str(own / "key"), "--tokenizer"]
    scheme += [str(folder / "tokenizer.json"), "--vocabulary-size", "4096"]
    command = [sys.executable, "cli.py", *words, *scheme]
    done = subprocess.run(command, capture_output=True, text=True, cwd=HERE.parents[1])
    if done.returncode not in (0, 1):
        raise SystemExit(done.stderr)
    return done.stdout


def check(folder: Path, own: Path, name: str, reference: str, *more: str) -> dict[str, Any]:
    """The verdict on one suspect, without its class tables."""
    outputs = own.parent / (TWIN if name == TWIN else own.name) / "outputs.jsonl"
    words = ["check", str(outputs), "--index", str(own / "index"), "--json"]
    if reference == "base":
        words += ["--reference", str(folder / "base")]
    verdict = json.loads(run(folder, own, *words, *more))
    first = verdict["hypotheses"][0]
    return {
        "scheme": own.name,
        "suspect": name,
        "reference": reference,
        "conclusion": verdict["conclusion"],
        "log10_p": verdict["log10_p"],
        "z": first["tail"]["z"],
        "coins": first["tail"]["coins"],
        "controls": {c["name"].split("/")[-1]: c["detail"] for c in verdict["controls"]},
        "controls_passed": verdict["controls_passed"],
        "caveat": verdict["caveat"],
    }


def main() -> None:
    """Make, check, write the results."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--models", type=Path, default=HERE.parent / "lab/work")
    parser.add_argument("--work", type=Path, default=HERE / "work")
    parser.add_argument("--output", type=Path, default=RESULTS)
    parser.add_argument("schemes", nargs="*", default=["hf-lefthash"])
    arguments = parser.parse_args()
    folder, work = arguments.models.resolve(), arguments.work.resolve()
    make(folder, work, TWIN)
    checks: dict[str, list[dict[str, Any]]] = {}
    if arguments.output.exists():
        checks = json.loads(arguments.output.read_text())["checks"]
    for scheme in arguments.schemes:
        own = work / scheme
        make(folder, work, scheme)
        run(folder, own, "index", "build", str(own / "served.jsonl"), "-o", str(own / "index"))
        innocent = ("--innocent", str(work / TWIN / "outputs.jsonl"))
        checks[scheme] = []
        for reference in ("none", "base"):
            checks[scheme].append(check(folder, own, "student", reference, *innocent))
            checks[scheme].append(check(folder, own, TWIN, reference))
        result = {
            "command": "python -m benchmarks.foreign.end_to_end",
            "marked_by": "transformers' generate(watermarking_config=...)",
            "bias_of_hf_lefthash": BIAS,
            "served_tokens": SERVED * sampling.NEW_TOKENS,
            "training_tokens": STEPS * TOKENS_PER_STEP,
            "output_tokens": ASKED * sampling.NEW_TOKENS,
            "checks": checks,
        }
        arguments.output.write_text(json.dumps(result, indent=1) + "\n")
        for row in checks[scheme]:
            print({name: row[name] for name in ("scheme", "suspect", "reference", "log10_p", "z")})


if __name__ == "__main__":
    main()
