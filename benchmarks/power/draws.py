"""`Watermark.draw_batch` for dense batches, compiled: the same tokens at a third of the cost.

Slots, keys and coins are those of `Watermark`; only the arithmetic of a draw is compiled. A batch
takes the same uniforms from the same generator, so a draw differs from the product's only where two
candidates tie to the last bits of float64. `check` compares the two on real logits.

    python -m benchmarks.power.draws
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray

from benchmarks.lab import models, sampling
from benchmarks.lab import stage1 as lab
from benchmarks.lab.stage2 import marked_draw
from benchmarks.lab.tokenizer import VOCABULARY, load_tokenizer
from benchmarks.power.settings import BATCH, World, frontier_worlds
from provenance.embed.watermark import Draw, Labels, Watermark
from provenance.keys.keyring import create_keyring
from provenance.keys.schedule import Schedule
from provenance.schemes import Green, Gumbel, Tournament

CHECKED_TOKENS = 24


@njit(cache=True)
def _plain(p, uniform):  # type: ignore[no-untyped-def]
    """Index whose cumulative share first exceeds `uniform`."""
    total = 0.0
    for i in range(p.shape[0]):
        total += p[i]
    target, cumulative, last = uniform * total, 0.0, 0
    for i in range(p.shape[0]):
        cumulative += p[i]
        if p[i] > 0:
            last = i
        if cumulative > target:
            return i
    return last


@njit(cache=True)
def _gumbel(p, words):  # type: ignore[no-untyped-def]
    """argmin of -ln(u) / p. Since -ln(u) >= 1 - u, most candidates need no logarithm."""
    likely = int(np.argmax(p))
    best = -np.log((words[likely] + 0.5) / 4294967296.0) / p[likely]
    drawn = likely
    for i in range(p.shape[0]):
        u = (words[i] + 0.5) / 4294967296.0
        if p[i] > 0 and 1.0 - u <= best * p[i] * (1 + 1e-9):
            arrival = -np.log(u) / p[i]
            if arrival < best or (arrival == best and i < drawn):
                best, drawn = arrival, i
    return drawn


@njit(cache=True)
def _green(p, words, threshold, factor, uniform):  # type: ignore[no-untyped-def]
    """Ordinary draw from p * factor ** green; overwrites p."""
    for i in range(p.shape[0]):
        if words[i] < threshold:
            p[i] *= factor
    return _plain(p, uniform)


@njit(cache=True)
def _tournament(p, words, layers, uniform):  # type: ignore[no-untyped-def]
    """Ordinary draw after `layers` updates p (1 + g - sum g p); overwrites p."""
    total = 0.0
    for i in range(p.shape[0]):
        total += p[i]
    for i in range(p.shape[0]):
        p[i] /= total
    for layer in range(layers):
        bit = np.uint32(31 - layer)
        mean = 0.0
        for i in range(p.shape[0]):
            mean += p[i] * ((words[i] >> bit) & np.uint32(1))
        for i in range(p.shape[0]):
            p[i] *= 1.0 + ((words[i] >> bit) & np.uint32(1)) - mean
    for i in range(p.shape[0]):
        p[i] = max(p[i], 0.0)
    return _plain(p, uniform)


class CompiledWatermark(Watermark):
    """A watermark whose `draw_batch` is compiled; overwrites the probabilities it is given."""

    def draw_batch(
        self,
        labels: Sequence[Labels],
        responses: Sequence[NDArray[np.uint32]],
        probabilities: NDArray[np.float64],
    ) -> list[Draw]:
        """As `Watermark.draw_batch`, for probabilities over exactly the keyring's vocabulary."""
        if probabilities.shape != (len(labels), self.keyring.public.vocabulary_size):
            raise ValueError(f"probabilities must be rows x vocabulary; {probabilities.shape}")
        uniforms = self._generator.random(len(labels))
        draws = []
        for row, key in enumerate(self._keys(labels, responses)):
            p, uniform = probabilities[row], float(uniforms[row])
            if key is None:
                draws.append(Draw(int(_plain(p, uniform)), None))
                continue
            context = responses[row][-self.keyring.context_width :]
            words = key.row(context, p.shape[0])
            draws.append(Draw(self._choose(p, words, uniform), key))
        return draws

    def _choose(self, p: NDArray[np.float64], words: NDArray[np.uint32], uniform: float) -> int:
        scheme = self.scheme
        if isinstance(scheme, Gumbel):
            return int(_gumbel(p, words))
        if isinstance(scheme, Green):
            factor = float(np.exp(scheme.delta))
            return int(_green(p, words, np.uint32(scheme.threshold), factor, uniform))
        if isinstance(scheme, Tournament):
            return int(_tournament(p, words, scheme.layers, uniform))
        raise TypeError(f"no compiled draw of {scheme}")


def check(world: World, folder: Path) -> int:
    """Draws of one batch in which the compiled watermark and the product's differ."""
    keys = folder / world.name
    schedule = Schedule.from_shares({"global": world.share})
    tokenizer = lab.WORK / "tokenizer.json"
    create_keyring(keys, tokenizer, VOCABULARY, world.specification, schedule, world.context_width)
    prompts = [entry["prompt"] for entry in lab.load_prompts(lab.WORK)[-BATCH:]]
    ids = sampling.encode_prompts(load_tokenizer(lab.WORK), prompts)
    teacher = models.load_model(lab.WORK / "teacher")
    labels: list[dict[str, str]] = [{}] * BATCH
    product, compiled = (
        marked_draw(kind.load(keys, np.random.default_rng(1)), labels)
        for kind in (Watermark, CompiledWatermark)
    )
    differences = 0

    def draw(logits: torch.Tensor, generated: torch.Tensor) -> torch.Tensor:
        nonlocal differences
        tokens = product(logits, generated)
        differences += int((tokens != compiled(logits, generated)).sum())
        return tokens

    sampling.generate(teacher, ids, CHECKED_TOKENS, draw)
    return differences


def main() -> None:
    """Check every world of the frontier."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        for world in frontier_worlds():
            different = check(world, Path(folder))
            print(f"{world.name}: {different} of {BATCH * CHECKED_TOKENS} draws differ", flush=True)


if __name__ == "__main__":
    main()
