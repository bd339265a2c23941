"""Prompts that a suspect could be asked: from served logs, or files of prompts in any shape.

Of a log only what was fixed before the response is read: prompt and labels, and of a conversation
the first turn alone, since a later prompt holds what the coins drew. Answers in any file are not
looked at. Knows formats and a tokenizer; no key.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.keys.keyring import Keyring
from provenance.served.log import read_log
from provenance.storage.lines import peek_record
from provenance.storage.shapes.reading import RecordFiles
from provenance.suspect.access.outputs import OUTPUT_FIELDS
from provenance.suspect.collect.prompts import Prompts
from provenance.suspect.letters import normalise
from provenance.suspect.shown import read_shown

_LOG_FIELDS: Final = frozenset({"response_id", "token_ids", "drawn", "prompt_token_ids"})
_ANSWERING: Final = frozenset({"assistant", "model", "tool", "function"})
_LABELS: Final = ("capability", "category")
_SPARE: Final = 2
_FIRST_RECORD: Final = 1 << 20
"""Bytes in which the first record of a file must end, for its shape to be told."""


@dataclass
class Candidate:
    """A prompt, as `collect` asks it.

    asked : prompt or messages; key : its letters and digits, by which prompts are the same;
    labels : of its record; served : how many records show it
    """

    asked: dict[str, Any]
    key: str
    labels: Mapping[str, str] = field(default_factory=dict)
    served: int = 1

    @property
    def text(self) -> str:
        """What is asked, as one text."""
        if "prompt" in self.asked:
            return str(self.asked["prompt"])
        return "\n\n".join(_contents(self.asked["messages"]))


def key_of(texts: tuple[str, ...]) -> str:
    """Letters and digits of what is shown: equal for prompts that differ in white space or case."""
    return "".join(map(chr, normalise("\n".join(texts)).codes.tolist()))


class Candidates:
    """Distinct prompts, gathered file by file.

    Parameters
    ----------
    public, tokenizer : of the served model
    wanted : labels that a prompt must have
    most, seed : of more distinct prompts a part is kept, by a hash of seed and prompt

    Attributes: kept, by a hash; records, how many were read; left_out, how many of them were not
    taken, by the reason.
    """

    def __init__(
        self,
        public: Keyring,
        tokenizer: Tokenizer,
        wanted: Mapping[str, str],
        most: int,
        seed: int,
    ) -> None:
        self._public, self._tokenizer = public, tokenizer
        self._wanted, self._most, self._seed = wanted, most, seed
        self._special = _special_ids(tokenizer)
        self._bound = b"\xff" * 17
        self.kept: dict[bytes, Candidate] = {}
        self.records = 0
        self.left_out: Counter[str] = Counter()

    def read(self, path: Path) -> None:
        """All prompts of a served log, of a file of prompts, or of outputs in any shape.

        Raises DataError, StorageError.
        """
        if _is_log(path):
            self._read_log(path)
        elif _holds_prompts_only(path):
            for record in Prompts.read(path).records:
                asked = {n: record[n] for n in ("prompt", "messages") if n in record}
                self._take_record(asked, record)
        else:
            for origin, record in RecordFiles([path]):
                self._take_shown(record, origin)
        self._prune(self._most)

    def _read_log(self, path: Path) -> None:
        conversations: dict[str, tuple[int, str, dict[str, str]]] = {}
        reader = read_log(
            [path], tokenizer=self._tokenizer, vocabulary_size=self._public.vocabulary_size
        )
        for batch in reader:
            for conversation, prompt, labels in zip(
                batch.column("conversation_id").to_pylist(),
                self._decode(batch.column("prompt_token_ids")),
                map(dict, batch.column("labels").to_pylist()),
                strict=True,
            ):
                self.records += 1
                length, text = prompt
                if conversation is None:
                    self._take_text(text, labels)
                    continue
                before = conversations.get(conversation)
                self.left_out["later turn of a conversation"] += before is not None
                if before is None or length < before[0]:
                    conversations[conversation] = length, text, labels
        for _, text, labels in conversations.values():
            self._take_text(text, labels)

    def _decode(self, column: pa.Array) -> Iterator[tuple[int, str]]:
        """Length and text of each prompt; "" for none, or one that a chat template made."""
        ids: list[list[int] | None] = column.to_pylist()
        whole = [_strip(row or [], self._special) for row in ids]
        texts = self._tokenizer.decode_batch(whole, skip_special_tokens=False)
        for row, text in zip(ids, texts, strict=True):
            yield len(row or ()), text

    def _take_text(self, text: str, labels: Mapping[str, str]) -> None:
        self._take({"prompt": text}, (text,), labels)

    def _take_shown(self, record: Mapping[str, Any], origin: str) -> None:
        """The prompt of a record of our form; its answer is not looked at."""
        asked: dict[str, Any] = {}
        if isinstance(record.get("messages"), list):
            asked["messages"] = record["messages"]
        elif isinstance(record.get("prompt"), str):
            asked["prompt"] = record["prompt"]
        else:
            texts = read_shown(record, origin, OUTPUT_FIELDS).texts
            asked["prompt"] = "\n\n".join(texts)
        self._take_record(asked, record)

    def _take_record(self, asked: dict[str, Any], record: Mapping[str, Any]) -> None:
        self.records += 1
        labels = {
            name: value
            for name, value in dict(record.get("labels") or {}).items()
            if isinstance(value, str)
        }
        labels |= {n: record[n] for n in _LABELS if isinstance(record.get(n), str)}
        texts = (asked["prompt"],) if "prompt" in asked else _contents(asked["messages"])
        if any(_role(one) in _ANSWERING for one in asked.get("messages", ())):
            self.left_out["holds an answer of the model"] += 1
            return
        self._take(asked, texts, labels)

    def _take(
        self, asked: dict[str, Any], texts: tuple[str, ...], labels: Mapping[str, str]
    ) -> None:
        if any(labels.get(name) != value for name, value in self._wanted.items()):
            self.left_out["other labels"] += 1
            return
        key = key_of(texts)
        if not key:
            self.left_out["no prompt, or one that a chat template wrote"] += 1
            return
        name = hashlib.sha256(f"{self._seed}\n{key}".encode()).digest()[:16]
        if name > self._bound:
            self.left_out["beyond the number of candidates"] += 1
        elif name in self.kept:
            self.kept[name].served += 1
            self.left_out["shown before"] += 1
        else:
            self.kept[name] = Candidate(asked, key, labels)
            if len(self.kept) > _SPARE * self._most:
                self._prune(self._most)

    def _prune(self, most: int) -> None:
        """Keep the smallest hashes: the same prompts in whatever order the records come."""
        if len(self.kept) <= most:
            return
        names = sorted(self.kept)
        self._bound = names[most - 1]
        for name in names[most:]:
            self.left_out["beyond the number of candidates"] += self.kept.pop(name).served


def _is_log(path: Path) -> bool:
    """Whether a file is a served log of our own shape, or a folder of one."""
    if path.is_dir() or path.suffix in (".parquet", ".part"):
        return True
    first = peek_record(path, _FIRST_RECORD)
    return bool(_LOG_FIELDS & set(first)) and "marked" in first


def _holds_prompts_only(path: Path) -> bool:
    """Whether a file of JSON lines holds prompts as `collect` takes them, and no answer."""
    first = peek_record(path, _FIRST_RECORD)
    messages = first.get("messages")
    answered = isinstance(messages, list) and bool(messages) and _role(messages[-1]) in _ANSWERING
    known = {"prompt", "messages", "id", "labels", "capability", "category", "not_shown"}
    return bool({"prompt", "messages"} & set(first)) and set(first) <= known and not answered


def _role(message: Any) -> str:
    return str(message.get("role", "")).casefold() if isinstance(message, dict) else ""


def _contents(messages: Any) -> tuple[str, ...]:
    """Texts of messages."""
    return read_shown({"messages": messages}, "messages", frozenset()).texts


def _special_ids(tokenizer: Tokenizer) -> NDArray[np.int64]:
    added = tokenizer.get_added_tokens_decoder()
    return np.array(sorted(i for i, one in added.items() if one.special), dtype=np.int64)


def _strip(ids: list[int], special: NDArray[np.int64]) -> list[int]:
    """The ids without special ones at the beginning; none if others stand further on."""
    found = np.isin(ids, special)
    if found.any():
        first = int(np.argmin(found)) if not found.all() else len(ids)
        return [] if found[first:].any() else ids[first:]
    return ids
