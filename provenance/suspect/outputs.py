"""A suspect's outputs (text) -> how often it put which token after which context.

Knows the served tokenizer; knows no key, no index and no scheme. A position counts if its context
stands there for the first time in this output (the generator draws repeats unmarked) and does not
stand in the eliciting prompt (a suspect that quotes its prompt has not learnt it).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.contexts import batch_contexts, check_token_ids, select_first_unprompted
from provenance.errors import DataError
from provenance.files import read_json_lines, sha256_of_file
from provenance.keys.keyring import Keyring

__all__ = ["Observations", "observe", "read_outputs"]

_BATCH = 4096


@dataclass(frozen=True)
class Observations:
    """Counts of a suspect's choices, each (context, token) once; sorted by context and token.

    Attributes
    ----------
    contexts : int64 [n], packed (`provenance.contexts.pack`)
    tokens : uint32 [n]
    counts : int64 [n], N(c, t): outputs that put t after their first c
    outputs, tokens_read : how many outputs and tokens were read
    short_outputs : outputs of at most k tokens, which have no context
    repeated, prompted : positions left out because the context repeats or stands in the prompt
    sha256 : hex digest of each file read, by path as given
    """

    contexts: NDArray[np.int64]
    tokens: NDArray[np.uint32]
    counts: NDArray[np.int64]
    outputs: int
    tokens_read: int
    short_outputs: int
    repeated: int
    prompted: int
    sha256: dict[str, str]

    @property
    def positions(self) -> int:
        """Positions counted."""
        return int(self.counts.sum())


@dataclass(frozen=True)
class Output:
    """One output and the texts of its prompt; `token_ids` wins over `text` if both are given."""

    origin: str
    prompt: tuple[str, ...]
    text: str | None
    token_ids: Sequence[int] | None


def read_outputs(path: Path | str) -> Iterator[Output]:
    """Outputs of a JSONL file (.gz, .zst): `prompt` or `messages`, and `output` or `outputs`.

    `output` is a string, `outputs` a list of strings; `output_token_ids` (a list of ids of the
    served tokenizer) may stand instead. Raises DataError with file and line, StorageError.
    """
    for line, record in read_json_lines(path):
        origin = f"{path}:{line}"
        if not isinstance(record, dict):
            raise DataError(f"{origin}: must be a JSON object; got {type(record).__name__}.")
        prompt = _read_prompt(record, origin)
        if "output_token_ids" in record:
            yield Output(origin, prompt, None, record["output_token_ids"])
            continue
        texts = [record["output"]] if "output" in record else record.get("outputs")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{origin}: must have output (a string) or outputs (a list of strings); got "
                f"{sorted(record)}. See the README for the format."
            )
        for text in texts:
            yield Output(origin, prompt, text, None)


def _read_prompt(record: dict[str, Any], origin: str) -> tuple[str, ...]:
    if "prompt" in record:
        if not isinstance(record["prompt"], str):
            raise DataError(
                f"{origin}: prompt must be a string; it is not. Use messages for chats."
            )
        return (record["prompt"],)
    messages = record.get("messages", [])
    contents = [
        message.get("content") if isinstance(message, dict) else None
        for message in (messages if isinstance(messages, list) else [None])
    ]
    if not all(isinstance(content, str) for content in contents):
        raise DataError(
            f"{origin}: messages must be a list of objects with a string content; they are not. "
            "Repair the record."
        )
    return tuple(content for content in contents if isinstance(content, str))


def observe(paths: Sequence[Path | str], tokenizer: Tokenizer, keyring: Keyring) -> Observations:
    """Count N(c, t) over all outputs of the files.

    Parameters
    ----------
    paths : JSONL files of outputs
    tokenizer : the served tokenizer, see `provenance.tokenizer.load_tokenizer`
    keyring : for its context width and vocabulary size

    Raises
    ------
    DataError for a malformed record or if no output has more than k tokens; StorageError.

    Notes
    -----
    Cost: tokenising (about 1 M tokens per second and core) and sorting; memory about 100 bytes a
    token.
    """
    ids, prompts, prompt_rows = _tokenise(paths, tokenizer, keyring.vocabulary_size)
    width = keyring.context_width
    packed, tokens, rows = batch_contexts(*_flatten(ids), width)
    if not tokens.size:
        raise DataError(
            f"{', '.join(map(str, paths))}: at least one output must have more than {width} "
            f"tokens; got {len(ids)} outputs without one. Collect longer outputs."
        )
    prompt_packed, prompt_part = _prompt_windows(prompts, width)
    first, unprompted = select_first_unprompted(
        rows, packed, prompt_rows[prompt_part], prompt_packed
    )
    chosen = first & unprompted
    contexts, tokens, counts = _count_pairs(packed[chosen], tokens[chosen])
    return Observations(
        contexts=contexts,
        tokens=tokens,
        counts=counts,
        outputs=len(ids),
        tokens_read=sum(part.shape[0] for part in ids),
        short_outputs=sum(part.shape[0] <= width for part in ids),
        repeated=int((~first).sum()),
        prompted=int((first & ~unprompted).sum()),
        sha256={str(path): sha256_of_file(path) for path in paths},
    )


def _tokenise(
    paths: Sequence[Path | str], tokenizer: Tokenizer, vocabulary_size: int
) -> tuple[list[NDArray[np.uint32]], list[NDArray[np.uint32]], NDArray[np.int64]]:
    """Ids of every output; ids of every prompt part with the number of its output."""
    ids: list[NDArray[np.uint32]] = []
    prompts: list[NDArray[np.uint32]] = []
    prompt_rows: list[int] = []
    batch: list[Output] = []

    def flush() -> None:
        texts = [output.text or "" for output in batch]
        encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        parts = [(len(ids) + i, part) for i, output in enumerate(batch) for part in output.prompt]
        asked = tokenizer.encode_batch_fast([part for _, part in parts], add_special_tokens=False)
        prompts.extend(np.asarray(e.ids, dtype=np.uint32) for e in asked)
        prompt_rows.extend(row for row, _ in parts)
        for output, encoding in zip(batch, encoded, strict=True):
            own = encoding.ids if output.token_ids is None else output.token_ids
            ids.append(check_token_ids(own, vocabulary_size, output.origin))
        batch.clear()

    for path in paths:
        for output in read_outputs(path):
            batch.append(output)
            if len(batch) == _BATCH:
                flush()
    flush()
    return ids, prompts, np.asarray(prompt_rows, dtype=np.int64)


def _flatten(parts: Sequence[NDArray[np.uint32]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    lengths = np.array([part.shape[0] for part in parts], dtype=np.int64)
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    return np.concatenate([*parts, np.empty(0, dtype=np.uint32)]), offsets


def _prompt_windows(
    prompts: Sequence[NDArray[np.uint32]], width: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Every window of k ids of every prompt part, also the last, which has no token after it."""
    padded = [np.append(part, np.uint32(0)) for part in prompts]
    packed, _, rows = batch_contexts(*_flatten(padded), width)
    return packed, rows


def _count_pairs(
    packed: NDArray[np.int64], tokens: NDArray[np.uint32]
) -> tuple[NDArray[np.int64], NDArray[np.uint32], NDArray[np.int64]]:
    """Distinct (context, token) in ascending order, and how often each stood there."""
    order = np.lexsort((tokens, packed))
    packed, tokens = packed[order], tokens[order]
    starts = np.ones(packed.shape[0], dtype=np.bool_)
    starts[1:] = (packed[1:] != packed[:-1]) | (tokens[1:] != tokens[:-1])
    counts = np.diff(np.append(np.flatnonzero(starts), packed.shape[0]))
    return packed[starts], tokens[starts], counts.astype(np.int64)
