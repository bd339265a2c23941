"""Prompts of a collection, and the requests that they become.

An *item* is one output that is wanted: sample s of prompt p, named `p-s` (p from 1, s from 0). Its
name is the `custom_id` of batches. Knows the dialects of requests; no answer and no ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal

from provenance.errors import DataError, UsageError
from provenance.storage.files import canonical_json, parse_json, write_atomically
from provenance.storage.lines import LineReader, read_json_lines
from provenance.suspect.collect.settings import CollectSettings

PROMPTS_FILE: Final = "prompts.jsonl"
_SHOWN: Final = ("prompt", "messages")
_KEPT: Final = ("id", "labels", "capability", "category", "not_shown")
"""Fields that describe a prompt: they are handed on to the outputs, and asked of nobody."""
_LONGEST_ID: Final = 128
_TEMPLATE_TOKENS: Final = 64
"""Allowance for what a chat template adds, per message."""
_OUTPUT_DEFAULT: Final = 4096

Dialect = Literal["openai", "anthropic"]


@dataclass(frozen=True)
class Request:
    """One request: its item, its body, and hashes of the body and of what it shows.

    `bound` is the most tokens that it can read and write.
    """

    item: str
    body: Mapping[str, Any]
    body_sha256: str
    prompt_sha256: str
    bound: tuple[int, int]


@dataclass(frozen=True)
class Prompts:
    """The prompts of a collection, as they lie in its folder.

    records : checked, one a prompt; content : the file's bytes, canonical; sha256 : of these
    """

    records: Sequence[Mapping[str, Any]]
    content: bytes
    sha256: str

    @classmethod
    def read(cls, path: Path) -> Prompts:
        """Prompts of a JSONL file: `prompt` or `messages`, and perhaps `id`, `labels`, ...

        Raises DataError naming file and line, StorageError.
        """
        records = [_check(one, origin) for origin, one in read_json_lines(LineReader(path))]
        if not records:
            raise DataError(f"{path}: must hold at least one prompt; it is empty.")
        names = [one["id"] for one in records if "id" in one]
        if len(set(names)) < len(names):
            raise DataError(f"{path}: every id must be there once; one repeats. Rename it.")
        content = b"".join(canonical_json(one) + b"\n" for one in records)
        return cls(records, content, hashlib.sha256(content).hexdigest())

    def keep(self, folder: Path) -> None:
        """Write them into the folder of the collection. Raises StorageError."""
        write_atomically(folder / PROMPTS_FILE, self.content, 0o600)

    def shown(self, item: str) -> Mapping[str, Any]:
        """The record of an item's prompt. Raises DataError for an item that is none."""
        return self.records[self.split(item)[0] - 1]

    def split(self, item: str) -> tuple[int, int]:
        """Number of the prompt (from 1) and of the sample (from 0). Raises DataError."""
        first, _, second = item.partition("-")
        if not (first.isdecimal() and second.isdecimal() and item.isascii()):
            raise DataError(f"{item[:80]!r} must be an item of this collection; it is none.")
        prompt, sample = int(first), int(second)
        if not 1 <= prompt <= len(self.records) or item != f"{prompt}-{sample}":
            raise DataError(f"{item[:80]!r} must be an item of this collection; it is none.")
        return prompt, sample

    def items(self, samples: int) -> Iterator[str]:
        """All items: the first sample of every prompt, then the second, ..."""
        for sample in range(samples):
            for prompt in range(1, len(self.records) + 1):
                yield f"{prompt}-{sample}"

    def request(self, item: str, settings: CollectSettings, dialect: Dialect = "openai") -> Request:
        """What is asked for an item. Raises UsageError for what the dialect cannot ask."""
        record = self.shown(item)
        parameters = dict(settings.parameters)
        if type(seed := parameters.get("seed")) is int:
            parameters["seed"] = seed + self.split(item)[1]
        if dialect == "anthropic":
            body = _ask_anthropic(record, parameters, settings)
        else:
            body = _ask_openai(record, parameters, settings)
        shown = {name: record[name] for name in _SHOWN if name in record}
        # a token has at least one byte, whatever is in the body
        read = len(canonical_json(body)) + _TEMPLATE_TOKENS * (1 + len(body.get("messages", ())))
        return Request(
            item,
            body,
            hashlib.sha256(canonical_json(body)).hexdigest(),
            hashlib.sha256(canonical_json(shown)).hexdigest(),
            (read, settings.bound or _OUTPUT_DEFAULT),
        )


def chat_of(record: Mapping[str, Any]) -> list[Any]:
    """The messages of a record; its prompt is one of the user."""
    if "messages" in record:
        return list(record["messages"])
    return [{"role": "user", "content": record["prompt"]}]


def _ask_openai(
    record: Mapping[str, Any], parameters: Mapping[str, Any], settings: CollectSettings
) -> dict[str, Any]:
    body: dict[str, Any] = {"model": settings.model, **parameters}
    if settings.endpoint == "completions":
        if "prompt" not in record:
            raise UsageError("--endpoint completions must be asked prompts; one has messages.")
        body["prompt"] = record["prompt"]
        return body if settings.logprobs is None else {**body, "logprobs": settings.logprobs}
    body["messages"] = chat_of(record)
    if settings.logprobs is not None:
        body |= {"logprobs": True, "top_logprobs": settings.logprobs}
    return body


def _ask_anthropic(
    record: Mapping[str, Any], parameters: Mapping[str, Any], settings: CollectSettings
) -> dict[str, Any]:
    if settings.logprobs is not None or settings.endpoint != "chat" or "seed" in parameters:
        raise UsageError(
            "anthropic-batch must be chat without --logprobs and seed: that API has neither."
        )
    if not settings.bound or "max_completion_tokens" in parameters:
        raise UsageError("anthropic-batch must have a bound. Add: --option max_tokens=512")
    messages = chat_of(record)
    system = [one for one in messages if one["role"] in ("system", "developer")]
    if not all(isinstance(one["content"], str) for one in system):
        raise UsageError("anthropic-batch must have system messages of text; one has parts.")
    body: dict[str, Any] = {"model": settings.model, **parameters}
    if system:
        body["system"] = "\n\n".join(one["content"] for one in system)
    body["messages"] = [one for one in messages if one not in system]
    return body


def _check(given: Any, origin: str) -> dict[str, Any]:
    """The record without fields of null. Raises DataError."""
    if not isinstance(given, dict):
        raise DataError(f"{origin}: must be a JSON object; got {type(given).__name__}.")
    record: dict[str, Any] = {name: value for name, value in given.items() if value is not None}
    if len(set(_SHOWN) & set(record)) != 1:
        raise DataError(f"{origin}: must have prompt or messages, one of them. Repair the record.")
    if unknown := sorted(set(record) - {*_SHOWN, *_KEPT}):
        raise DataError(
            f"{origin}: field {unknown[0]} is not known and would not be asked. Put it into "
            "messages, or rename it not_shown."
        )
    if "prompt" in record and not (isinstance(record["prompt"], str) and record["prompt"]):
        raise DataError(f"{origin}: prompt must be a string; it is not. Or give messages.")
    if "messages" in record and not _are_messages(record["messages"]):
        raise DataError(
            f"{origin}: messages must be a list of objects with role and content; they are not."
        )
    name = record.get("id", "x")
    if isinstance(name, int) and not isinstance(name, bool):
        record["id"] = name = str(name)
    if not (isinstance(name, str) and 0 < len(name) <= _LONGEST_ID and name.isprintable()):
        raise DataError(f"{origin}: id must be a string of one line, at most {_LONGEST_ID} long.")
    return record


def _are_messages(value: Any) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(
            isinstance(one, dict)
            and isinstance(one.get("role"), str)
            and ("content" in one or "tool_calls" in one)
            for one in value
        )
    )


def load_prompts(folder: Path, sha256: str) -> Prompts:
    """The prompts in the folder of a collection, which must be those of its header.

    Raises StorageError, DataError.
    """
    path = folder / PROMPTS_FILE
    lines = list(LineReader(path))
    content = b"".join(line for _, line in lines)
    found = hashlib.sha256(content).hexdigest()
    if found != sha256:
        raise DataError(
            f"{path}: must have SHA-256 {sha256[:16]}..., which the ledger names; it has "
            f"{found[:16]}... Put the file back."
        )
    records = [parse_json(line, f"{path}: line {number}") for number, line in lines]
    return Prompts(records, content, found)
