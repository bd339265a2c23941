"""Where the lines of `provenance` go in a server of vLLM, which configures its own logger only."""

from __future__ import annotations

import logging

_NAME = __name__.partition(".")[0]


def join_log_lines() -> None:
    """Let our lines go where vLLM's go, at its level, unless somebody has said where."""
    ours, theirs = logging.getLogger(_NAME), logging.getLogger("vllm")
    said = [*ours.handlers, *logging.getLogger().handlers]
    if all(isinstance(handler, logging.NullHandler) for handler in said):
        for handler in theirs.handlers:
            ours.addHandler(handler)
        if ours.level == logging.NOTSET:
            ours.setLevel(theirs.level)
