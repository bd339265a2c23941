"""A suspect's outputs (text) -> how often it put which token after which context.

Knows the served tokenizer and the format of outputs; knows no key, no index and no scheme.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.contexts import check_token_ids
from provenance.errors import DataError
from provenance.keys.keyring import Keyring
from provenance.lines import LineReader, check_distinct, hashes_of, read_json_lines
from provenance.suspect.observations import Observations, sum_pairs, totals_of_pairs
from provenance.suspect.positions import Chat, Positions, find_positions
from provenance.tokenizer import tokenise

__all__ = ["Output", "count_positions", "observe", "read_outputs", "read_positions", "read_prompt"]

_BATCH = 4096


@dataclass(frozen=True)
class Output:
    """One output and the texts of its prompt; `token_ids` wins over `text` if both are given.

    `chat` holds the roles of the texts, if the prompt was a chat.
    """

    origin: str
    prompt: tuple[str, ...]
    text: str | None
    token_ids: Sequence[int] | None
    chat: Chat | None = None


def read_outputs(lines: LineReader) -> Iterator[Output]:
    """Outputs of a JSONL file: `prompt` or `messages`, and `output` or `outputs`.

    `output` is a string, `outputs` a list of strings; `output_token_ids` (a list of ids of the
    served tokenizer) may stand instead. Raises DataError with file and line, StorageError.
    """
    for origin, record in read_json_lines(lines):
        if not isinstance(record, dict):
            raise DataError(f"{origin}: must be a JSON object; got {type(record).__name__}.")
        prompt = read_prompt(record, origin)
        chat = _read_chat(record, prompt)
        if "output_token_ids" in record:
            yield Output(origin, prompt, None, record["output_token_ids"], chat)
            continue
        texts = [record["output"]] if "output" in record else record.get("outputs")
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise DataError(
                f"{origin}: must have output (a string) or outputs (a list of strings); got "
                f"{sorted(record)}. See the README for the format."
            )
        for text in texts:
            yield Output(origin, prompt, text, None, chat)


def read_prompt(record: dict[str, Any], origin: str) -> tuple[str, ...]:
    """Texts of `prompt` or `messages`; none if there is neither. Raises DataError."""
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
    """Count N(c, t) over all outputs of the files; arguments and errors as `read_positions`."""
    return count_positions(read_positions(paths, tokenizer, keyring))


def count_positions(positions: Positions) -> Observations:
    """N(c, t): how often each (context, token) stands at the positions. Cost: one sort."""
    contexts, tokens, (counts,) = sum_pairs(
        positions.contexts, positions.tokens, np.ones(positions.contexts.shape[0])
    )
    visited, visits = np.unique(positions.contexts, return_counts=True)
    return Observations(
        contexts=contexts,
        tokens=tokens,
        masses=counts,
        totals=totals_of_pairs(contexts, visited, visits.astype(np.int64)),
        expected=np.zeros(contexts.shape[0]),
        sampled=True,
        positions=int(positions.contexts.shape[0]),
        outputs=len(positions.outputs),
        tokens_read=positions.tokens_read,
        short_outputs=positions.short_outputs,
        repeated=positions.repeated,
        prompted=positions.prompted,
        sha256=positions.sha256,
        wide=positions.wide,
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
    check_distinct(paths)
    readers = [LineReader(path) for path in paths]
    read = _tokenise(readers, tokenizer, keyring.vocabulary_size)
    width = keyring.context_width
    if all(ids.shape[0] <= width for ids in read.outputs):
        raise DataError(
            f"{', '.join(map(str, paths))}: at least one output must have more than {width} "
            f"tokens; got {len(read.outputs)} outputs without one. Collect longer outputs."
        )
    sha256 = hashes_of(readers)
    found = find_positions(read.outputs, read.prompts, read.prompt_rows, width, sha256)
    return replace(found, chats=read.chats if any(read.chats) else ())


def _read_chat(record: dict[str, Any], contents: tuple[str, ...]) -> Chat | None:
    """(role, content) of the messages, a user's where no role is given; None for a plain prompt."""
    if "prompt" in record or not contents:
        return None
    roles = [str(message.get("role", "user")) for message in record["messages"]]
    return tuple(zip(roles, contents, strict=True))


@dataclass
class _Read:
    """Ids and chat of every output; ids of every part of a prompt with the number of its output."""

    outputs: list[NDArray[np.uint32]]
    prompts: list[NDArray[np.uint32]]
    prompt_rows: list[int]
    chats: list[Chat | None]


def _tokenise(readers: Sequence[LineReader], tokenizer: Tokenizer, vocabulary_size: int) -> _Read:
    read = _Read([], [], [], [])
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
    read.chats += [output.chat for output in batch]
    read.outputs += [
        ids
        if output.token_ids is None
        else check_token_ids(output.token_ids, vocabulary_size, output.origin)
        for output, ids in zip(batch, encoded, strict=True)
    ]
