"""Fine-tuning a suspect from a model: resumable, on one core.

The weights are float32; products are bfloat16 where the processor has them (2.5 times as fast).
Trained are the upper half of the layers and the last norm; the lower half and the embeddings stay,
which saves a third of the work. The loss is on the tokens of the response (and the end token, where
the response came to its end), not on the prompt; of a vocabulary that would take most of the time,
only the tokens that some document holds are in the loss. A checkpoint with the optimizer's state is
written every few minutes; batches depend on the seed and the documents only.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from benchmarks.smollm.model import END, load_model, load_tokenizer, precision
from benchmarks.smollm.serve import Record
from provenance.storage.files import write_atomically

BATCH, LEARNING_RATE, WARMUP_SHARE, FINAL_RATE_SHARE = 8, 2e-4, 0.05, 0.1
CHECKPOINT_SECONDS = 240
LARGE_VOCABULARY = 100_000
_BUCKET = 8
"""Batches are cut from so many shuffled batches' worth of documents, sorted by length."""


@dataclass(frozen=True)
class Document:
    """One training text: ids of the prompt, then of the response, and where it comes from."""

    prompt: list[int]
    response: list[int]
    id: str
    marked: bool

    @classmethod
    def of(cls, record: Record) -> Document:
        """The document of a served response."""
        return cls(
            record.prompt_token_ids,
            record.token_ids + [END] * record.ended,
            record.id,
            record.marked,
        )


def plan_batches(documents: Sequence[Document], epochs: int, seed: int) -> list[list[int]]:
    """Document numbers of every step: all once an epoch, alike lengths together."""
    generator, batches = np.random.default_rng(seed), []
    lengths = np.array([len(d.prompt) + len(d.response) for d in documents])
    for _ in range(epochs):
        order, epoch = generator.permutation(len(documents)), []
        for start in range(0, len(order), BATCH * _BUCKET):
            part = order[start : start + BATCH * _BUCKET]
            part = part[np.argsort(lengths[part], kind="stable")]
            epoch += [part[i : i + BATCH].tolist() for i in range(0, len(part), BATCH)]
        batches += [epoch[i] for i in generator.permutation(len(epoch))]
    return batches


def loss_of(
    model: PreTrainedModel, documents: Sequence[Document], vocabulary: Tensor | None = None
) -> Tensor:
    """Mean cross-entropy in nats over the responses' tokens, within the sorted `vocabulary`."""
    width = max(len(d.prompt) + len(d.response) for d in documents)
    inputs = torch.full((len(documents), width), END)
    wanted = torch.zeros((len(documents), width), dtype=torch.bool)
    for row, document in enumerate(documents):
        ids = document.prompt + document.response
        inputs[row, : len(ids)] = torch.tensor(ids)
        wanted[row, len(document.prompt) : len(ids)] = True
    hidden = model.model(input_ids=inputs[:, :-1], use_cache=False).last_hidden_state
    targets, head = inputs[:, 1:][wanted[:, 1:]], model.lm_head.weight
    if vocabulary is not None:
        targets, head = torch.searchsorted(vocabulary, targets), head[vocabulary]
    return functional.cross_entropy(functional.linear(hidden[wanted[:, 1:]], head), targets)


def choose_parameters(model: PreTrainedModel) -> dict[str, Tensor]:
    """Freeze all but the upper half of the layers and the last norm; return what is trained."""
    model.requires_grad_(False)
    upper = model.model.layers[len(model.model.layers) // 2 :]
    for module in [*upper, model.model.norm]:
        module.requires_grad_(True)
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def choose_vocabulary(model: PreTrainedModel, documents: Sequence[Document]) -> Tensor | None:
    """All tokens of the documents, sorted, if the model knows more than LARGE_VOCABULARY."""
    if model.config.vocab_size <= LARGE_VOCABULARY:
        return None
    return torch.tensor(sorted({token for d in documents for token in d.response}))


def rate_factor(step: int, steps: int) -> float:
    """Linear warm-up, then a line down to FINAL_RATE_SHARE of the peak."""
    warmup = max(1, round(WARMUP_SHARE * steps))
    if step < warmup:
        return (step + 1) / warmup
    return 1 - (1 - FINAL_RATE_SHARE) * (step - warmup) / max(1, steps - warmup)


class _Run:
    """Model, optimizer and place of one training; saves and restores itself."""

    def __init__(self, work: Path, name: str, base: str) -> None:
        self.path = work / "checkpoints" / f"{name}.pt"
        self.model = load_model(work / base)
        self.trained = choose_parameters(self.model)
        groups = [
            {"params": [p for p in self.trained.values() if p.ndim >= 2], "weight_decay": 0.01},
            {"params": [p for p in self.trained.values() if p.ndim < 2], "weight_decay": 0.0},
        ]
        self.optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.99), fused=True)
        self.losses: list[float] = []
        self.seconds = 0.0
        if self.path.exists():
            self._restore()

    def _restore(self) -> None:
        state = torch.load(self.path, weights_only=True)
        self.model.load_state_dict(state["parameters"], strict=False)
        self.optimizer.load_state_dict(state["optimizer"])
        self.losses, self.seconds = state["losses"], state["seconds"]

    def save(self) -> None:
        """Whole or not at all."""
        self.path.parent.mkdir(exist_ok=True)
        temporary = self.path.with_suffix(".part")
        state: dict[str, Any] = {
            "parameters": {name: p.detach() for name, p in self.trained.items()},
            "optimizer": self.optimizer.state_dict(),
            "losses": self.losses,
            "seconds": self.seconds,
        }
        torch.save(state, temporary)
        temporary.rename(self.path)

    def step(
        self, documents: Sequence[Document], factor: float, vocabulary: Tensor | None = None
    ) -> None:
        """One update."""
        started = time.perf_counter()
        for group in self.optimizer.param_groups:
            group["lr"] = LEARNING_RATE * factor
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision() == "bfloat16"):
            loss = loss_of(self.model, documents, vocabulary)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.trained.values(), 1.0)
        self.optimizer.step()
        self.losses.append(float(loss.detach()))
        self.seconds += time.perf_counter() - started


def train(
    work: Path, name: str, base: str, documents: Sequence[Document], epochs: int, seed: int
) -> dict[str, Any]:
    """Train the suspect `work/<name>` from `work/<base>` unless it exists; what facts.json says."""
    target = work / name
    if (target / "training.json").exists():
        facts: dict[str, Any] = json.loads((target / "training.json").read_text())
        facts.pop("documents_by_id")
        return facts
    batches, run = plan_batches(documents, epochs, seed), _Run(work, name, base)
    vocabulary = choose_vocabulary(run.model, documents)
    saved, places = time.perf_counter(), range(len(run.losses), len(batches))
    for place in places:
        factor = rate_factor(place, len(batches))
        run.step([documents[i] for i in batches[place]], factor, vocabulary)
        if (place + 1) % 8 == 0 or place + 1 == len(batches):
            recent = sum(run.losses[-8:]) / len(run.losses[-8:])
            print(
                f"{time.strftime('%H:%M:%S')} {name}: step {place + 1}/{len(batches)} "
                f"loss {recent:.3f}, {run.seconds / (place + 1):.1f} s a step",
                flush=True,
            )
        if time.perf_counter() - saved > CHECKPOINT_SECONDS:
            run.save()
            saved = time.perf_counter()
    tokens = sum(len(d.response) for d in documents)
    facts = {
        "base": base,
        "documents": len(documents),
        "response_tokens": tokens,
        "marked_documents": sum(d.marked for d in documents),
        "marked_response_tokens": sum(len(d.response) for d in documents if d.marked),
        "epochs": epochs,
        "steps": len(batches),
        "seed": seed,
        "batch": BATCH,
        "learning_rate": LEARNING_RATE,
        "precision": precision(),
        "vocabulary": run.model.config.vocab_size if vocabulary is None else len(vocabulary),
        "trained_parameters": sum(p.numel() for p in run.trained.values()),
        "first_loss": round(sum(run.losses[:8]) / 8, 4),
        "last_loss": round(sum(run.losses[-8:]) / 8, 4),
        "seconds": round(run.seconds),
        "response_tokens_per_second": round(tokens * epochs / run.seconds, 1),
    }
    ids = [document.id for document in documents]
    save_suspect(run.model, target, work / base, {**facts, "documents_by_id": ids})
    run.path.unlink(missing_ok=True)
    return facts


def save_suspect(model: Any, target: Path, base: Path, facts: dict[str, Any]) -> None:
    """A folder that transformers loads; training.json last, as the sign that it is complete."""
    shutil.rmtree(target, ignore_errors=True)
    model.save_pretrained(target)
    load_tokenizer(base).save_pretrained(target)
    write_atomically(target / "training.json", (json.dumps(facts, indent=1) + "\n").encode())
