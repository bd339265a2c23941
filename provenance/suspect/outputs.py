"""A suspect's outputs (text) -> how often it put which token after which context.

Knows the served tokenizer; knows no key, no index and no scheme. A position counts if its context
stands there for the first time in this output (the generator draws repeats unmarked) and does not
stand in the eliciting prompt (a suspect that quotes its prompt has not learnt it).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.contexts import (
    check_token_ids,
    list_windows,
    pack_windows,
    select_first_unprompted,
)
from provenance.errors import DataError
from provenance.keys.keyring import Keyring
from provenance.lines import LineReader, read_json_lines
from provenance.tokenizer import tokenise

__all__ = [
    "Observations",
    "Positions",
    "count_positions",
    "observe",
    "read_outputs",
    "read_positions",
]

_BATCH = 4096


@dataclass(frozen=True)
class Observations:
    """Counts of a suspect's choices, each (context, token) once; sorted by context and token.

    Attributes
    ----------
    contexts : int64 [n], packed (`provenance.contexts.pack`)
    tokens : uint32 [n]
    counts : int64 [n], N(c, t): outputs that put t after their first c; 0 where only a reference
        expected the pair
    expected : float64 [n], mass that a reference model put there; 0 without a reference
    reference : what the reference was, for the verdict; empty without one
    outputs, tokens_read : how many outputs and tokens were read
    short_outputs : outputs of at most k tokens, which have no context
    repeated, prompted : positions left out because the context repeats or stands in the prompt
    sha256 : hex digest of each file read, by path as given
    """

    contexts: NDArray[np.int64]
    tokens: NDArray[np.uint32]
    counts: NDArray[np.int64]
    expected: NDArray[np.float64]
    outputs: int
    tokens_read: int
    short_outputs: int
    repeated: int
    prompted: int
    sha256: dict[str, str]
    reference: Mapping[str, Any] = field(default_factory=dict)

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


def read_outputs(lines: LineReader) -> Iterator[Output]:
    """Outputs of a JSONL file: `prompt` or `messages`, and `output` or `outputs`.

    `output` is a string, `outputs` a list of strings; `output_token_ids` (a list of ids of the
    served tokenizer) may stand instead. Raises DataError with file and line, StorageError.
    """
    for origin, record in read_json_lines(lines):
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


@dataclass(frozen=True)
class Positions:
    """Where a suspect's choices count, before they are counted.

    Attributes
    ----------
    outputs, prompts : uint32 [.] per output: ids of the output, and of its prompt (parts joined)
    rows, offsets : int64 [m], output number of each position, and its place in that output
    contexts, tokens : int64 [m] and uint32 [m], context and choice at each position
    repeated, prompted, sha256 : see `Observations`
    """

    outputs: Sequence[NDArray[np.uint32]]
    prompts: Sequence[NDArray[np.uint32]]
    rows: NDArray[np.int64]
    offsets: NDArray[np.int64]
    contexts: NDArray[np.int64]
    tokens: NDArray[np.uint32]
    short_outputs: int
    repeated: int
    prompted: int
    sha256: dict[str, str]


def observe(paths: Sequence[Path | str], tokenizer: Tokenizer, keyring: Keyring) -> Observations:
    """Count N(c, t) over all outputs of the files; arguments and errors as `read_positions`."""
    return count_positions(read_positions(paths, tokenizer, keyring))


def count_positions(positions: Positions) -> Observations:
    """N(c, t): how often each (context, token) stands at the positions. Cost: one sort."""
    contexts, tokens, counts = _count_pairs(positions.contexts, positions.tokens)
    return Observations(
        contexts=contexts,
        tokens=tokens,
        counts=counts,
        expected=np.zeros(contexts.shape[0]),
        outputs=len(positions.outputs),
        tokens_read=sum(ids.shape[0] for ids in positions.outputs),
        short_outputs=positions.short_outputs,
        repeated=positions.repeated,
        prompted=positions.prompted,
        sha256=positions.sha256,
    )


def read_positions(
    paths: Sequence[Path | str], tokenizer: Tokenizer, keyring: Keyring
) -> Positions:
    """Read outputs and find the positions that count.

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
    readers = [LineReader(path) for path in paths]
    read = _tokenise(readers, tokenizer, keyring.vocabulary_size)
    width = keyring.context_width
    ids, lengths = _flatten(read.outputs)
    rows, starts = list_windows(ids, lengths, width, followed=True)
    if not rows.size:
        raise DataError(
            f"{', '.join(map(str, paths))}: at least one output must have more than {width} "
            f"tokens; got {len(read.outputs)} outputs without one. Collect longer outputs."
        )
    packed, tokens = pack_windows(ids, starts, width), ids[starts + width]
    asked, asked_lengths = _flatten(read.prompts)
    parts, asked_starts = list_windows(asked, asked_lengths, width, followed=False)
    first, unprompted = select_first_unprompted(
        rows,
        packed,
        np.asarray(read.prompt_rows, dtype=np.int64)[parts],
        pack_windows(asked, asked_starts, width),
    )
    chosen = first & unprompted
    prompts: list[list[NDArray[np.uint32]]] = [[] for _ in read.outputs]
    for row, part in zip(read.prompt_rows, read.prompts, strict=True):
        prompts[row].append(part)
    begins = np.cumsum(lengths) - lengths
    return Positions(
        outputs=read.outputs,
        prompts=[_flatten(own)[0] for own in prompts],
        rows=rows[chosen],
        offsets=(starts + width - begins[rows])[chosen],
        contexts=packed[chosen],
        tokens=tokens[chosen],
        short_outputs=int((lengths <= width).sum()),
        repeated=int((~first).sum()),
        prompted=int((first & ~unprompted).sum()),
        sha256={str(reader.path): reader.sha256 for reader in readers},
    )


@dataclass
class _Read:
    """Ids of every output; ids of every part of a prompt with the number of its output."""

    outputs: list[NDArray[np.uint32]]
    prompts: list[NDArray[np.uint32]]
    prompt_rows: list[int]


def _tokenise(readers: Sequence[LineReader], tokenizer: Tokenizer, vocabulary_size: int) -> _Read:
    read = _Read([], [], [])
    batch: list[Output] = []
    for reader in readers:
        for output in read_outputs(reader):
            batch.append(output)
            if len(batch) == _BATCH:
                _tokenise_batch(batch, tokenizer, vocabulary_size, read)
                batch = []
    if batch:
        _tokenise_batch(batch, tokenizer, vocabulary_size, read)
    return read


def _tokenise_batch(
    batch: Sequence[Output], tokenizer: Tokenizer, vocabulary_size: int, read: _Read
) -> None:
    origin = batch[0].origin
    encoded = tokenise(tokenizer, [output.text or "" for output in batch], origin)
    parts = [
        (len(read.outputs) + i, part) for i, output in enumerate(batch) for part in output.prompt
    ]
    read.prompts += tokenise(tokenizer, [part for _, part in parts], origin)
    read.prompt_rows += [row for row, _ in parts]
    read.outputs += [
        ids
        if output.token_ids is None
        else check_token_ids(output.token_ids, vocabulary_size, output.origin)
        for output, ids in zip(batch, encoded, strict=True)
    ]


def _flatten(parts: Sequence[NDArray[np.uint32]]) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """All ids one after another, and the length of each part."""
    lengths = np.array([part.shape[0] for part in parts], dtype=np.int64)
    return np.concatenate([*parts, np.empty(0, dtype=np.uint32)]), lengths


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
