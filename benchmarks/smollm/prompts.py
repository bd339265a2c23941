"""The prompts of the experiment: 600 chat requests, a third for each of three capabilities.

`prompts.jsonl` comes from some fifty hand-written patterns, each crossed with its own list of
subjects, and is kept as it is. Three disjoint uses: `serve` (answered marked and unmarked, trained
on), `fresh` (answered marked, never trained on) and `ask` (put to every suspect).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

FILE = Path(__file__).with_name("prompts.jsonl")
CAPABILITIES = ("code", "reasoning", "conversation")


@dataclass(frozen=True)
class Prompt:
    """One request: a name that never changes, what it is used for, and its text."""

    id: str
    capability: str
    use: str
    text: str

    def messages(self) -> list[dict[str, str]]:
        """The chat that is put to a model."""
        return [{"role": "user", "content": self.text}]


def prompts_for(use: str) -> list[Prompt]:
    """The prompts of one use, in order: code, reasoning and conversation take turns."""
    lines = FILE.read_text(encoding="utf-8").splitlines()
    return [prompt for line in lines if (prompt := Prompt(**json.loads(line))).use == use]
