"""What the mark costs a server: one step against transformers' own watermarks and softmax.

    OMP_NUM_THREADS=1 python -m benchmarks.serving [--work DIR] [--rounds N] [--pairs N]

Step: all that our logits processor adds to sampling from a tensor [batch, vocabulary], measured as
transformers calls it: ids and scores in, scores with one candidate out. `top_50` has 50 survivors a
row, `full` every token. The baselines get the same tensors in the same process: left-hash and
self-hash of `WatermarkingConfig`, `SynthIDTextWatermarkingConfig` with 30 keys, and softmax. They
take turns; a round is one call of each; medians over rounds, one thread. Model: `generate` of
transformers with SmolLM2-135M-Instruct, batch 8, with and without the mark, in turns; and detection
of marked responses of 300 tokens.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from benchmarks.serving.quality import WORK
from benchmarks.smollm.convert import PACKAGE, make_served_model
from benchmarks.smollm.model import END, SERVED_MODEL, VOCABULARY, load_model, load_tokenizer
from benchmarks.smollm.prompts import prompts_for
from provenance.embed.transformers import TransformersWatermark
from provenance.embed.watermark import Watermark
from provenance.keys.keyring import SchemeSpecification, create_keyring
from provenance.keys.schedule import Schedule
from provenance.marks.detection import detect_mark
from provenance.storage.files import write_json

RESULT = Path(__file__).parents[1] / "results" / "serving.json"
SIZES = (32_000, 151_936)
BATCHES = (1, 8, 32)
LENGTH = 128
"""Ids of a response when its step is timed."""
SHARES = {"ours": 0.2, "ours, share 1": 1.0}
SLOW = ("selfhash", "synthid")
"""Baselines that are called once to warm up and measured once: they take up to 14 s a call."""
DETECTED = 1e-6
Step = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def make_watermark(folder: Path, tokenizer: Path, size: int, share: float) -> Watermark:
    """A keyring of the default scheme."""
    specification, schedule = SchemeSpecification("gumbel"), Schedule.from_shares({"global": share})
    return Watermark(create_keyring(folder, tokenizer, size, specification, schedule))


def make_steps(
    folder: Path, tokenizer: Path, size: int, batch: int, device: str = "cpu"
) -> dict[str, Step]:
    """Every method, as the logits processor that transformers would build."""
    steps: dict[str, Step] = {}
    for name, share in SHARES.items():
        mark = make_watermark(folder / f"{name}-{size}-{batch}", tokenizer, size, share)
        inputs = {"input_ids": torch.zeros(batch, 1, dtype=torch.long)}
        arguments = TransformersWatermark(mark).generate_arguments(inputs, [{}] * batch)
        steps[name] = arguments["watermarking_config"].construct_processor(size, device)
    for scheme in ("lefthash", "selfhash"):
        width = 1 if scheme == "lefthash" else 4
        config = transformers.WatermarkingConfig(seeding_scheme=scheme, context_width=width)
        steps[scheme] = config.construct_processor(size, device)
    keys = list(range(1, 31))
    synthid = transformers.SynthIDTextWatermarkingConfig(keys=keys, ngram_len=5)
    steps["synthid"] = synthid.construct_processor(size, device)
    steps["softmax"] = lambda _ids, scores: torch.softmax(scores, dim=-1)
    return steps


def time_steps(
    steps: Mapping[str, Step], ids: torch.Tensor, scores: torch.Tensor, rounds: int
) -> dict[str, float]:
    """Median milliseconds of a call of each."""
    times: dict[str, list[float]] = {name: [] for name in steps}
    for number in range(-1, rounds):
        names = list(steps)
        turn = number % len(names)  # nobody always follows the same neighbour
        for name in names[turn:] + names[:turn]:
            step = steps[name]
            if number > 0 and name in SLOW:
                continue
            started = time.perf_counter()
            step(ids, scores)
            if number >= 0:
                times[name].append(1000 * (time.perf_counter() - started))
    return {name: round(float(np.median(found)), 4) for name, found in times.items()}


def measure_steps(folder: Path, tokenizer: Path, rounds: int) -> list[dict[str, Any]]:
    """One entry a vocabulary, batch and kind of tensor."""
    found = []
    for size in SIZES:
        for batch in BATCHES:
            generator = torch.Generator().manual_seed(size + batch)
            full = 3 * torch.randn(batch, size, generator=generator)
            top = full.topk(50)
            kept = torch.full_like(full, float("-inf")).scatter_(1, top.indices, top.values)
            ids = torch.randint(0, size, (batch, 1 + LENGTH), generator=generator)
            steps = make_steps(folder, tokenizer, size, batch)
            for kind, scores in (("full", full), ("top_50", kept)):
                # what SynthID and self-hash take does not depend on how many survive
                chosen = {
                    name: step for name, step in steps.items() if kind == "full" or name not in SLOW
                }
                milliseconds = time_steps(chosen, ids, scores, rounds)
                found.append({"vocabulary": size, "batch": batch, "scores": kind, **milliseconds})
                print(found[-1], flush=True)
    return found


def make_ratios(steps: list[dict[str, Any]]) -> dict[str, float]:
    """The largest ratio over sizes and batches, of the slower of our two shares.

    To left-hash over both kinds of tensors; to softmax with 50 survivors, and apart with all.
    """
    ratios = {}
    for name, baseline, kinds in (
        ("step_over_lefthash_max", "lefthash", ("full", "top_50")),
        ("step_over_lefthash_top_50_max", "lefthash", ("top_50",)),
        ("step_over_selfhash_max", "selfhash", ("full",)),
        ("step_over_synthid_max", "synthid", ("full",)),
        ("step_over_softmax_max", "softmax", ("top_50",)),
        ("step_over_softmax_full_vocabulary_max", "softmax", ("full",)),
    ):
        found = [
            max(entry[share] for share in SHARES) / entry[baseline]
            for entry in steps
            if entry["scores"] in kinds
        ]
        ratios[name] = round(max(found), 5)
    return ratios


def measure_generate(work: Path, folder: Path, rounds: int) -> dict[str, Any]:
    """transformers' `generate` with and without the mark, in turns: tokens a second."""
    model, tokenizer = load_model(work / SERVED_MODEL), load_tokenizer(work / SERVED_MODEL)
    tokenizer.padding_side = "left"
    path = work / SERVED_MODEL / "tokenizer.json"
    prompts = [prompt.messages() for prompt in prompts_for("ask")[:8]]
    inputs = tokenizer.apply_chat_template(
        prompts, add_generation_prompt=True, return_tensors="pt", padding=True, return_dict=True
    )
    options = {"max_new_tokens": 48, "min_new_tokens": 48, "top_k": 50, "pad_token_id": END}
    marked = TransformersWatermark(make_watermark(folder / "model", path, VOCABULARY, 0.2))
    times: dict[str, list[float]] = {"unmarked": [], "marked": []}
    for number in range(rounds + 1):
        order = list(times) if number % 2 else list(times)[::-1]
        for name in order:
            arguments = (
                marked.generate_arguments(inputs, [{}] * len(prompts), options)
                if name == "marked"
                else {**options, "do_sample": True}
            )
            started = time.process_time()
            model.generate(**inputs, **arguments)
            if number:
                times[name].append(time.process_time() - started)
    ratios = np.array(times["marked"]) / np.array(times["unmarked"])
    return {
        "batch": len(prompts),
        "new_tokens": options["max_new_tokens"],
        "processor_seconds": {k: [round(t, 3) for t in v] for k, v in times.items()},
        "slowdown_median_of_pairs": round(float(np.median(ratios)) - 1, 4),
        "slowdown_of_medians": round(
            float(np.median(times["marked"]) / np.median(times["unmarked"])) - 1, 4
        ),
    }


def measure_detection(work: Path, folder: Path, responses: int) -> dict[str, Any]:
    """Full share, 300 tokens, temperature 1, top-k 50: how many have p below 1e-6?"""
    model, tokenizer = load_model(work / SERVED_MODEL), load_tokenizer(work / SERVED_MODEL)
    tokenizer.padding_side = "left"
    path = work / SERVED_MODEL / "tokenizer.json"
    watermark = make_watermark(folder / "detect", path, VOCABULARY, 1.0)
    adapter = TransformersWatermark(watermark)
    prompts = [prompt.messages() for prompt in prompts_for("ask")[:responses]]
    found: list[float] = []
    for start in range(0, responses, 16):
        inputs = tokenizer.apply_chat_template(
            prompts[start : start + 16],
            add_generation_prompt=True,
            return_tensors="pt",
            padding=True,
            return_dict=True,
        )
        options = {"max_new_tokens": 300, "min_new_tokens": 300, "top_k": 50, "pad_token_id": END}
        rows = inputs["input_ids"].shape[0]
        output = model.generate(
            **inputs, **adapter.generate_arguments(inputs, [{}] * rows, options)
        )
        ids = output[:, inputs["input_ids"].shape[1] :].numpy().astype(np.uint32)
        found += [detect_mark(row, watermark.keyring).log10_p for row in ids]
    return {
        "responses": responses,
        "tokens": 300,
        "share": 1.0,
        "p_below": DETECTED,
        "detected_share": round(float(np.mean(np.array(found) < np.log10(DETECTED))), 4),
        "log10_p": [round(p, 1) for p in sorted(found)],
    }


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--work", type=Path, default=WORK)
    parser.add_argument("--rounds", type=int, default=41)
    parser.add_argument("--pairs", type=int, default=4, help="of generate calls")
    parser.add_argument("--responses", type=int, default=16, help="to detect")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    make_served_model(arguments.work)
    tokenizer = arguments.work / SERVED_MODEL / "tokenizer.json"
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        steps = measure_steps(folder, tokenizer, arguments.rounds)
        generated = measure_generate(arguments.work, folder, arguments.pairs)
        print(generated, flush=True)
        detected = measure_detection(arguments.work, folder, arguments.responses)
        print(detected, flush=True)
    ratios = make_ratios(steps)
    ratios["generate_slowdown"] = generated["slowdown_median_of_pairs"]
    ratios["detected_share"] = detected["detected_share"]
    write_json(
        arguments.output,
        {
            "command": f"OMP_NUM_THREADS=1 python -m benchmarks.serving --rounds "
            f"{arguments.rounds} --pairs {arguments.pairs} --responses {arguments.responses}",
            "machine": {
                "processor": platform.processor() or platform.machine(),
                "threads": 1,
                "torch": torch.__version__,
                "transformers": version("transformers"),
                "model": PACKAGE,
            },
            "unit": "milliseconds a step",
            "steps": steps,
            "generate": generated,
            "detection": detected,
            "ratios": ratios,
        },
    )
    print(ratios)


if __name__ == "__main__":
    main()
