"""Time of one step's coins and draw in torch, beside numpy's and beside a softmax of the logits.

python -m benchmarks.torch_coins [--device cpu] [--compile BACKEND] [--rounds 15]

Per vocabulary, batch and number of survivors: milliseconds (medians, one thread) of the draw on the
device (`torch`: words or row, then draw_gumbel), of the same draw by numpy row by row (`numpy`),
and of softmax over the whole vocabulary (`softmax`), and their ratios. Choosing the survivors is in
none of them. Not part of `make bench`: on a CPU it only shows that numpy is the right path there.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from provenance.coins import words as coins
from provenance.embed.device import torch_coins
from provenance.marks.own.gumbel import Gumbel

SIZES = (32_000, 151_936)
BATCHES = (1, 8, 32)
SURVIVORS = 50


def milliseconds(call: Callable[[], object], device: str, rounds: int) -> float:
    """Median of rounds; waits for the device after each."""
    call()
    seconds = []
    for _ in range(rounds):
        started = time.perf_counter()
        call()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - started)
    return 1000 * float(np.median(seconds))


def draw_scattered(
    keys: torch.Tensor,
    contexts: torch.Tensor,
    tokens: torch.Tensor,
    probabilities: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    """One step on survivors: -> index [rows]."""
    coin = torch_coins.words(keys, contexts, tokens)
    return torch_coins.draw_gumbel(probabilities, coin, uniforms)


def draw_whole(
    keys: torch.Tensor,
    contexts: torch.Tensor,
    tokens: torch.Tensor,
    probabilities: torch.Tensor,
    uniforms: torch.Tensor,
) -> torch.Tensor:
    """One step on the whole vocabulary: -> index [rows]."""
    coin = torch_coins.row(keys, contexts, tokens.shape[1])
    return torch_coins.draw_gumbel(probabilities, coin, uniforms)


def draw_by_numpy(
    keys: list[bytes],
    contexts: np.ndarray,
    tokens: np.ndarray,
    probabilities: np.ndarray,
    size: int,
) -> list[int]:
    """The same step as `Watermark` does it, row by row."""
    drawn = []
    for key, context, ids, p in zip(keys, contexts, tokens, probabilities, strict=True):
        if ids.shape[0] == size:
            coin = coins.row(key, context, size)
        else:
            coin = coins.words(key, np.tile(context, (ids.shape[0], 1)), ids)
        drawn.append(Gumbel().draw(p, coin, 0.0))
    return drawn


def measure(
    size: int, batch: int, survivors: int, device: str, backend: str, rounds: int
) -> dict[str, Any]:
    """One line of the table. Raises AssertionError if the two paths draw different tokens."""
    rng = np.random.default_rng(0)
    logits = torch.from_numpy(rng.standard_normal((batch, size)).astype(np.float32)).to(device)
    ids = torch.arange(size, device=device).expand(batch, size)
    kept, tokens = (logits, ids) if survivors == size else logits.topk(survivors, dim=1)
    probabilities = kept.double().softmax(dim=1)
    keys = [rng.bytes(32) for _ in range(batch)]
    contexts = rng.integers(0, size, (batch, 2), dtype=np.uint32)
    arguments = (
        torch_coins.pack_keys(keys, device),
        torch_coins.pack_contexts(torch.from_numpy(contexts.astype(np.int64)).to(device)),
        tokens,
        probabilities,
        torch.from_numpy(rng.random(batch)).to(device),
    )
    step = draw_whole if survivors == size else draw_scattered
    if backend:
        step = torch.compile(step, backend=backend, fullgraph=True, dynamic=False)
    host = tokens.cpu().numpy().astype(np.uint32), probabilities.cpu().numpy()
    assert step(*arguments).tolist() == draw_by_numpy(keys, contexts, *host, size)
    line: dict[str, Any] = {"vocabulary": size, "batch": batch, "survivors": survivors}
    line["torch_ms"] = milliseconds(lambda: step(*arguments), device, rounds)
    line["numpy_ms"] = milliseconds(
        lambda: draw_by_numpy(keys, contexts, *host, size), "cpu", rounds
    )
    line["softmax_ms"] = milliseconds(lambda: logits.softmax(dim=1), device, rounds)
    line["torch_over_numpy"] = line["torch_ms"] / line["numpy_ms"]
    line["torch_over_softmax"] = line["torch_ms"] / line["softmax_ms"]
    line["numpy_over_softmax"] = line["numpy_ms"] / line["softmax_ms"]
    return {name: round(value, 4) for name, value in line.items()}


def main() -> None:
    """Measure, print and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    default = Path(__file__).parent / "results/torch_coins.json"
    parser.add_argument("--output", type=Path, default=default)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--compile", default="", help="a torch.compile backend; default: eager")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    lines = []
    for size in SIZES:
        for batch in BATCHES:
            for survivors in (SURVIVORS, size):
                backend, rounds = arguments.compile, arguments.rounds
                line = measure(size, batch, survivors, arguments.device, backend, rounds)
                print(line, flush=True)
                lines.append(line)
    cuda = arguments.device.startswith("cuda")
    result = {
        "command": f"python -m benchmarks.torch_coins --device {arguments.device} "
        f"--compile '{arguments.compile}' --rounds {arguments.rounds}",
        "device": torch.cuda.get_device_name() if cuda else "cpu, 1 thread",
        "torch": torch.__version__,
        "steps": lines,
    }
    arguments.output.parent.mkdir(parents=True, exist_ok=True)
    arguments.output.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
