"""What the mark costs on a GPU: one step, and `generate`, beside transformers' own watermarks.

    python -m benchmarks.serving.accelerator [--rounds N] [--pairs N]

Needs a CUDA GPU with Triton and no other work on it. Step: as in `benchmarks.serving`, the
processor that transformers would build, ids and scores on the GPU; `host` is our step on scores
copied to the host, as it runs without Triton. Times are medians over rounds: wall time from an idle
device until it is idle again (`latency`), and the host's time to queue the call (`queued`), which
is what a server pays while the device is busy with the model. `words` and `row`: the coins of 50
survivors a row and of the whole vocabulary, by Triton and by torch's own operations. Generate:
models of random weights in bfloat16 with the shapes of SmolLM2-135M and Llama-3.2-1B, marked and
not, in turns.
"""

from __future__ import annotations

import argparse
import platform
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch
import transformers

from benchmarks.serving import __main__ as serving
from provenance.embed import transformers as adapter
from provenance.embed.device import torch_coins
from provenance.embed.transformers import TransformersWatermark
from provenance.storage.files import write_json

RESULT = Path(__file__).parents[1] / "results" / "serving-cuda.json"
TOKENIZER = Path(__file__).parents[2] / "fixtures" / "keys" / "tokenizer.json"
DEVICE = "cuda"
BATCHES = (1, 8, 32, 128)
SHAPES: dict[str, dict[str, Any]] = {
    "SmolLM2-135M": {
        "vocab_size": 49_152,
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
    },
    "Llama-3.2-1B": {
        "vocab_size": 128_256,
        "hidden_size": 2048,
        "intermediate_size": 8192,
        "num_hidden_layers": 16,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
    },
}


def time_calls(calls: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, Any]:
    """Median milliseconds of each, in turns: {name: {"latency": .., "queued": ..}}."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(-2, rounds):
        names = list(calls)
        turn = number % len(names)  # nobody always follows the same neighbour
        for name in names[turn:] + names[:turn]:
            call = calls[name]
            if number > 0 and name in serving.SLOW:
                continue
            torch.cuda.synchronize()
            started = time.perf_counter()
            call()
            queued = time.perf_counter()
            torch.cuda.synchronize()
            if number >= 0:
                ended = time.perf_counter()
                times[name].append((1000 * (ended - started), 1000 * (queued - started)))
    medians = {name: np.median(found, axis=0) for name, found in times.items()}
    return {
        name: {"latency": round(float(m[0]), 4), "queued": round(float(m[1]), 4)}
        for name, m in medians.items()
    }


def measure_steps(folder: Path, rounds: int) -> list[dict[str, Any]]:
    """One entry a vocabulary, batch and kind of tensor."""
    found = []
    for size in serving.SIZES:
        for batch in BATCHES:
            generator = torch.Generator(DEVICE).manual_seed(size + batch)
            full = 3 * torch.randn(batch, size, generator=generator, device=DEVICE)
            top = full.topk(50)
            kept = torch.full_like(full, float("-inf")).scatter_(1, top.indices, top.values)
            ids = torch.randint(
                0, size, (batch, 1 + serving.LENGTH), generator=generator, device=DEVICE
            )
            steps = serving.make_steps(folder, TOKENIZER, size, batch, DEVICE)
            ours = steps["ours"]

            def on_host(ids: torch.Tensor, scores: torch.Tensor, ours: Any = ours) -> torch.Tensor:
                with mock.patch.object(adapter, "has_kernels", return_value=False):
                    return ours(ids, scores)

            steps["host"] = on_host
            for kind, scores in (("full", full), ("top_50", kept)):
                calls = {
                    name: lambda step=step, scores=scores, ids=ids: step(ids, scores)
                    for name, step in steps.items()
                    if kind == "full" or name not in serving.SLOW
                }
                entry = {"vocabulary": size, "batch": batch, "scores": kind}
                found.append({**entry, **time_calls(calls, rounds)})
                print(found[-1], flush=True)
    return found


def measure_coins(rounds: int) -> list[dict[str, Any]]:
    """Coins alone, by kernels and by torch's operations."""
    found = []
    rng = np.random.default_rng(0)
    for size in serving.SIZES:
        for batch in (1, 32):
            keys = torch_coins.pack_keys([rng.bytes(32) for _ in range(batch)], DEVICE)
            ids = torch.from_numpy(rng.integers(0, size, (batch, 50))).to(DEVICE)
            nonces = torch_coins.pack_contexts(ids[:, :2])

            def by_torch(function: Any, *arguments: Any) -> object:
                with mock.patch.object(torch_coins, "kernels", None):
                    return function(*arguments)

            words = (torch_coins.words, keys, nonces, ids)
            row = (torch_coins.row, keys, nonces, size)
            calls = {
                "words": lambda words=words: words[0](*words[1:]),
                "row": lambda row=row: row[0](*row[1:]),
                "words by torch": lambda words=words: by_torch(*words),
                "row by torch": lambda row=row: by_torch(*row),
            }
            found.append({"vocabulary": size, "batch": batch, **time_calls(calls, rounds)})
            print(found[-1], flush=True)
    return found


def measure_generate(folder: Path, shape: str, batch: int, pairs: int) -> dict[str, Any]:
    """Seconds of `generate` with top-k 50, marked and not, in turns."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**SHAPES[shape], bos_token_id=None, eos_token_id=None)
    with torch.device(DEVICE):
        model = transformers.LlamaForCausalLM(config).to(torch.bfloat16).eval()
    size = config.vocab_size
    mark = TransformersWatermark(
        serving.make_watermark(folder / f"{shape}-{batch}", TOKENIZER, size, 0.2)
    )
    ids = torch.randint(0, size, (batch, 32), device=DEVICE)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    options = {"max_new_tokens": 128, "top_k": 50, "pad_token_id": 0}
    times: dict[str, list[float]] = {"unmarked": [], "marked": []}
    for number in range(-1, pairs):
        for name in list(times) if number % 2 else list(times)[::-1]:
            arguments = (
                mark.generate_arguments(inputs, [{}] * batch, options)
                if name == "marked"
                else {**options, "do_sample": True}
            )
            torch.cuda.synchronize()
            started = time.perf_counter()
            output = model.generate(**inputs, **arguments)
            torch.cuda.synchronize()
            if number >= 0:
                times[name].append(time.perf_counter() - started)
            assert output.shape[1] == 32 + options["max_new_tokens"]
    ratios = np.array(times["marked"]) / np.array(times["unmarked"])
    return {
        "shape": shape,
        "batch": batch,
        "new_tokens": options["max_new_tokens"],
        "seconds": {name: [round(t, 4) for t in found] for name, found in times.items()},
        "milliseconds_a_step_unmarked": round(
            1000 * float(np.median(times["unmarked"])) / options["max_new_tokens"], 3
        ),
        "slowdown_median_of_pairs": round(float(np.median(ratios)) - 1, 4),
    }


def make_ratios(steps: list[dict[str, Any]], kind: str) -> dict[str, float]:
    """Largest and smallest ratio of `kind`, of the slower of our two shares, over each baseline."""
    ratios = {}
    for baseline, scores in (
        ("lefthash", ("full", "top_50")),
        ("selfhash", ("full",)),
        ("synthid", ("full",)),
        ("softmax", ("full", "top_50")),
        ("host", ("full", "top_50")),
    ):
        found = [
            max(entry[share][kind] for share in serving.SHARES) / entry[baseline][kind]
            for entry in steps
            if entry["scores"] in scores
        ]
        ratios[f"{kind}_over_{baseline}_max"] = round(max(found), 4)
        ratios[f"{kind}_over_{baseline}_min"] = round(min(found), 4)
    return ratios


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--pairs", type=int, default=5, help="of generate calls")
    parser.add_argument("--output", type=Path, default=RESULT)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, torch.inference_mode():
        folder = Path(name)
        coins = measure_coins(arguments.rounds)
        steps = measure_steps(folder, arguments.rounds)
        generated = []
        for shape, batch in (("SmolLM2-135M", 8), ("Llama-3.2-1B", 8), ("Llama-3.2-1B", 64)):
            generated.append(measure_generate(folder, shape, batch, arguments.pairs))
            print(generated[-1], flush=True)
    ratios = {**make_ratios(steps, "latency"), **make_ratios(steps, "queued")}
    ratios["generate_slowdown_max"] = max(run["slowdown_median_of_pairs"] for run in generated)
    write_json(
        arguments.output,
        {
            "command": f"python -m benchmarks.serving.accelerator --rounds {arguments.rounds} "
            f"--pairs {arguments.pairs}",
            "machine": {
                "device": torch.cuda.get_device_name(),
                "processor": platform.processor() or platform.machine(),
                "torch": torch.__version__,
                "triton": torch_coins.kernels.triton.__version__,
                "transformers": transformers.__version__,
            },
            "unit": "milliseconds a step",
            "coins": coins,
            "steps": steps,
            "generate": generated,
            "ratios": ratios,
        },
    )
    print(ratios)


if __name__ == "__main__":
    main()
