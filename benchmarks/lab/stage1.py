"""Stage 1 of the laboratory: corpus, tokenizer, prompts, the teacher and the base model.

    python -m benchmarks.lab.stage1 [--work DIR] [--steps N]

Writes corpus.json, corpus.jsonl, tokenizer.json, prompts.jsonl, teacher/, base/ and stage1.json
(what was measured) into the work directory, which is never committed. Finished parts are kept
when the stage is run again; delete the directory to start over.
"""

import argparse
import json
import multiprocessing
import time
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM

from benchmarks.lab import corpus, models, sampling
from benchmarks.lab.tokenizer import exact_prefix, load_tokenizer, train_tokenizer

WORK = Path(__file__).parent / "work"
STEPS, TOKENS_PER_STEP, LEARNING_RATE = 2600, 1024, 4e-3
SEEDS = {"teacher": 1, "base": 2}
HELD_OUT_DOCUMENTS = 200  # per capability, for the held-out NLL
MEASURED_PROMPTS = 64  # per capability, for the sampling entropy


def make_prompts(documents: list[corpus.Document], tokenizer: Tokenizer, path: Path) -> None:
    """Write the beginnings of the held-out documents in pseudo-random order, no prompt twice.

    The order comes from the middle of the digest: a full capability keeps its smallest digests
    only, and the end of the digest decided the split.
    """
    lines: dict[str, str] = {}
    for document in sorted(documents, key=lambda d: d.digest[16:48]):
        prompt = exact_prefix(tokenizer, document.text, sampling.PROMPT_TOKENS)
        if prompt is not None:
            lines.setdefault(prompt, document.capability)
    with path.open("w", encoding="utf-8") as out:
        out.writelines(
            json.dumps({"capability": capability, "prompt": prompt}) + "\n"
            for prompt, capability in lines.items()
        )


def load_prompts(work: Path = WORK, capability: str | None = None) -> list[dict[str, str]]:
    """Prompts in their fixed pseudo-random order, of all capabilities or of one."""
    with (work / "prompts.jsonl").open(encoding="utf-8") as lines:
        prompts = [json.loads(line) for line in lines]
    return [p for p in prompts if capability in (None, p["capability"])]


def prepare(work: Path) -> Tokenizer:
    """Corpus, tokenizer and prompts, built where they are missing."""
    if not (work / "corpus.json").exists() or not (work / "corpus.jsonl").exists():
        corpus.build(work)
    if not (work / "tokenizer.json").exists():
        teacher = corpus.load(work, "teacher")
        train_tokenizer(corpus.texts_by_digest(teacher)).save(str(work / "tokenizer.json"))
    tokenizer = load_tokenizer(work)
    if not (work / "prompts.jsonl").exists():
        make_prompts(corpus.load(work, "prompts"), tokenizer, work / "prompts.jsonl")
    return tokenizer


def train_half(half: str, work: Path, steps: int) -> None:
    """Train the model of one training half on one thread, unless it is there already."""
    if (work / half / "model.safetensors").exists():
        return
    tokenizer = load_tokenizer(work)
    texts = corpus.texts_by_digest(corpus.load(work, half))
    stream = models.pack(encoding.ids for encoding in tokenizer.encode_batch(texts))
    print(f"{half}: {len(texts):,} documents, {len(stream):,} tokens", flush=True)
    model = models.train(
        models.new_model(SEEDS[half]),
        stream,
        steps=steps,
        tokens_per_step=TOKENS_PER_STEP,
        learning_rate=LEARNING_RATE,
        seed=SEEDS[half],
        threads=1,
        label=half,
    )
    models.save_model(model, work / half, tokenizer)


def train_halves(work: Path, steps: int) -> None:
    """Train teacher and base side by side, one process each."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(len(SEEDS), mp_context=spawn) as pool:
        for done in [pool.submit(train_half, half, work, steps) for half in SEEDS]:
            done.result()


def measure(model: LlamaForCausalLM, work: Path, tokenizer: Tokenizer) -> dict[str, object]:
    """Held-out NLL, sampling entropy and a sample text per capability."""
    facts: dict[str, object] = {}
    for index, capability in enumerate(corpus.CAPABILITIES):
        held_out = corpus.load(work, "prompts", capability)[:HELD_OUT_DOCUMENTS]
        tokens = [e.ids for e in tokenizer.encode_batch([d.text for d in held_out])]
        prompts = [p["prompt"] for p in load_prompts(work, capability)[:MEASURED_PROMPTS]]
        responses = sampling.sample_unmarked(model, tokenizer, prompts, seed=index)
        prompt_ids = sampling.encode_prompts(tokenizer, prompts)
        facts[capability] = {
            "held_out_nll": round(models.nll(model, tokens), 3),
            "entropy": round(sampling.mean_entropy(model, prompt_ids, torch.tensor(responses)), 3),
            "sample": prompts[0] + " >>> " + tokenizer.decode(responses[0]),
        }
    return facts


def main() -> None:
    """Run the stage."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    started = time.perf_counter()
    tokenizer = prepare(arguments.work)
    facts: dict[str, object] = {}
    train_halves(arguments.work, arguments.steps)
    for half in SEEDS:
        facts[half] = measure(models.load_model(arguments.work / half), arguments.work, tokenizer)
    facts["seconds"] = round(time.perf_counter() - started)
    text = json.dumps(facts, indent=1)
    (arguments.work / "stage1.json").write_text(text + "\n")
    print(text)


if __name__ == "__main__":
    main()
