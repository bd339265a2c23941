"""A language model of a table and an adapter around it, right by default; tests break one piece."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from provenance.embed.replay import Request
from provenance.embed.watermark import Watermark


class ToyAdapter:
    """Batched serving with left padding, as the stacks do it."""

    end_token = 1
    pad_token = 0
    new_tokens = 40
    prompts = ((5, 6, 7), (9, 8), (3, 4, 5, 6, 7, 8), (20, 21, 22, 23))

    def __init__(self, tokenizer: Path, vocabulary_size: int) -> None:
        self.tokenizer = tokenizer
        self.vocabulary_size = vocabulary_size
        rng = np.random.default_rng(0)
        logits = rng.normal(0, 1, (vocabulary_size, vocabulary_size))
        logits[:, 120:] -= 4.0
        logits[:, self.pad_token] = -np.inf
        table = np.exp(logits)
        table[:, self.end_token] = 0.03 * table.sum(axis=1)
        self.table = table / table.sum(axis=1, keepdims=True)

    def probabilities(
        self, prompt: Sequence[int], response: NDArray[np.uint32]
    ) -> NDArray[np.float64]:
        return self.table[[prompt[-1], *response]]

    def generate(
        self, keys: Path, requests: Sequence[Request], seed: int
    ) -> list[NDArray[np.uint32]]:
        watermark = self.load(keys, seed)
        width = max(len(request.prompt) for request in requests)
        ids = np.full((len(requests), width), self.pad_token, dtype=np.uint32)
        for row, request in enumerate(requests):
            ids[row, width - len(request.prompt) :] = request.prompt
        labels = [request.labels for request in requests]
        numbers = watermark.key_numbers(labels)
        self.read = watermark.read_prompts([request.prompt for request in requests])
        for _ in range(self.new_tokens):
            p = self.served(ids[:, -1])
            with np.errstate(divide="ignore"):
                scores = np.log(p).astype(np.float32)
            tokens = self.draw(watermark, numbers, ids[:, width:], scores, requests, ids)
            ids = np.concatenate([ids, tokens[:, np.newaxis].astype(np.uint32)], axis=1)
        return [self.cut(row) for row in ids[:, width:]]

    def load(self, keys: Path, seed: int) -> Watermark:
        return Watermark.load(keys, np.random.default_rng(seed))

    def served(self, last: NDArray[np.uint32]) -> NDArray[np.float64]:
        return self.table[last]

    def draw(self, watermark, numbers, responses, scores, requests, ids):
        return watermark.draw_scores(numbers, responses, scores, self.read)

    def cut(self, ids: NDArray[np.uint32]) -> NDArray[np.uint32]:
        ends = np.flatnonzero(ids == self.end_token)
        return ids[: ends[0] + 1] if ends.size else ids
