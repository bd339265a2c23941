"""Texts that no scheme marked: prose and code, and what breaks a detector that counts twice."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

KINDS = ("ordinary", "templates", "repeats", "prompts")
TOKENS = 100_000

Ids = NDArray[np.uint32]


def read_tokens(work: Path, tokens: int = TOKENS) -> tuple[Ids, int]:
    """The first so many tokens of the lab's corpus, and the size of its tokenizer.

    Half prose, half code; `make lab` builds the corpus from the text of pinned packages.
    """
    tokenizer = Tokenizer.from_file(str(work / "tokenizer.json"))
    found: dict[str, list[Ids]] = {"prose": [], "code": []}
    count = dict.fromkeys(found, 0)
    with (work / "corpus.jsonl").open(encoding="utf-8") as lines:
        for line in lines:
            document = json.loads(line)
            kind = document["capability"]
            if kind in found and count[kind] < tokens // 2:
                ids = np.array(tokenizer.encode(document["text"]).ids, dtype=np.uint32)
                found[kind].append(ids)
                count[kind] += ids.size
    ids = np.concatenate([np.concatenate(found[kind])[: tokens // 2] for kind in found])
    return ids, tokenizer.get_vocab_size()


def make_text(kind: str, ids: Ids, rng: np.random.Generator) -> Ids:
    """One text as long as `ids`, made of them.

    ordinary : the text itself
    templates : ten passages of 100 tokens over and over, one token changed each time
    repeats : loops of 50 tokens, each forty times
    prompts : the same prompt of 60 tokens before every passage of 40
    """
    size = ids.size
    if kind == "ordinary":
        return ids
    if kind == "templates":
        frames = ids[rng.integers(0, size - 100, 10)[:, None] + np.arange(100)]
        rows = frames[rng.integers(0, 10, size // 100)].copy()
        rows[np.arange(len(rows)), rng.integers(0, 100, len(rows))] = rng.choice(ids, len(rows))
        return rows.ravel()
    if kind == "repeats":
        loops = ids[rng.integers(0, size - 50, size // 2000)[:, None] + np.arange(50)]
        return np.tile(loops, (1, 40)).ravel()
    if kind == "prompts":
        prompt = np.tile(ids[:60], (size // 100, 1))
        rest = ids[rng.integers(0, size - 40, size // 100)[:, None] + np.arange(40)]
        return np.concatenate([prompt, rest], axis=1).ravel()
    raise ValueError(kind)
