from __future__ import annotations

import base64
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from provenance.coins import words as coins
from provenance.coins.contexts import pack
from provenance.keys.keyring import SchemeSpecification, UnlockedKeyring, create_keyring
from provenance.keys.schedule import Schedule
from provenance.served.control_sample import CONTROL_SHARE, control_words, is_sampled
from provenance.served.log import LogStatistics, read_log
from tests.conftest import train_tokenizer

SHARES = {"global": 0.3, "week": 0.2, "capability": 0.2}
VALUES = {"week": ["w1", "w2", "w3"], "capability": ["code", "chat"]}


@pytest.fixture(scope="session")
def tokenizer_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    text = ["the cat sat on the mat and the dog ran"] * 20
    path = tmp_path_factory.mktemp("tokenizer") / "tokenizer.json"
    return train_tokenizer(path, 300, text, [])


@pytest.fixture(scope="session")
def make_keyring(
    tmp_path_factory: pytest.TempPathFactory, tokenizer_path: Path
) -> Callable[..., UnlockedKeyring]:
    def make(width: int = 2, size: int = 300, shares: Any = None) -> UnlockedKeyring:
        return create_keyring(
            tmp_path_factory.mktemp("keys") / "k",
            tokenizer_path,
            size,
            SchemeSpecification("gumbel"),
            Schedule.from_shares(shares or SHARES, VALUES),
            width,
        )

    return make


@pytest.fixture(scope="session")
def keyring(make_keyring: Callable[..., UnlockedKeyring]) -> UnlockedKeyring:
    return make_keyring()


@pytest.fixture(scope="session")
def make_log() -> Callable[..., list[dict[str, Any]]]:
    """A random log over few tokens: repeats, prompts, conversations, unmarked, odd labels."""

    def make(seed: int, size: int, vocabulary: int = 9) -> list[dict[str, Any]]:
        rng = np.random.default_rng(seed)
        records: list[dict[str, Any]] = []
        for i in range(size):
            record: dict[str, Any] = {
                "response_id": f"r{i}",
                "marked": bool(rng.random() < 0.8),
                "labels": {},
                "token_ids": rng.integers(0, vocabulary, rng.integers(0, 25)).tolist(),
            }
            if rng.random() < 0.7:
                record["labels"]["week"] = ["w1", "w2", "w3", "unknown"][rng.integers(4)]
            if rng.random() < 0.7:
                record["labels"]["capability"] = ["code", "chat"][rng.integers(2)]
            record["labels"]["other"] = "x"
            if rng.random() < 0.5:
                record["prompt_token_ids"] = rng.integers(
                    0, vocabulary, rng.integers(0, 12)
                ).tolist()
            if rng.random() < 0.4:
                record["conversation_id"] = f"c{rng.integers(0, max(size // 5, 1))}"
            records.append(record)
        return records

    return make


@pytest.fixture(scope="session")
def oracle() -> Callable[..., dict[tuple[int, tuple[int, ...], int], int]]:
    """The index in 20 lines of Python: (slot, context, value) -> responses."""

    def count(
        records: list[dict[str, Any]],
        keyring: UnlockedKeyring,
        share: float = CONTROL_SHARE,
    ) -> dict[tuple[int, tuple[int, ...], int], int]:
        words = control_words(share)
        k, schedule = keyring.context_width, keyring.schedule
        selector = keyring.key("selector", "").reveal()
        counts: Counter[tuple[int, tuple[int, ...], int]] = Counter()
        met: set[Any] = set()
        for record in records:
            if record["response_id"] in met or not record["marked"]:
                continue
            met.add(record["response_id"])
            ids, prompt = record["token_ids"], record.get("prompt_token_ids") or []
            reached = {tuple(ids[i - k : i]) for i in range(k, len(ids))}
            drawn = reached
            if "drawn" in record:
                bits = base64.b64decode(record["drawn"])
                drawn = {
                    tuple(ids[i - k : i]) for i in range(k, len(ids)) if bits[i // 8] >> i % 8 & 1
                }
            contexts = reached - {tuple(prompt[i : i + k]) for i in range(len(prompt) - k + 1)}
            for context in contexts:
                word = int(coins.row(selector, np.array(context, dtype=np.uint32), 1)[0])
                slot = 0
                sampled = is_sampled(pack(np.array([context], dtype=np.uint32)), words)[0]
                while word >= schedule.slots[slot].share_words:
                    word -= schedule.slots[slot].share_words
                    slot += 1
                if (slot and context not in drawn) or not (slot or sampled):
                    continue
                value = 0
                if slot >= 2:
                    label = record["labels"].get(schedule.names[slot])
                    if label not in schedule.slots[slot].values:
                        continue
                    value = schedule.slots[slot].values.index(label)
                conversation = record.get("conversation_id")
                entry = (slot, context, value)
                if conversation is not None:
                    if (conversation, entry) in met:
                        continue
                    met.add((conversation, entry))
                counts[entry] += 1
        return dict(counts)

    return count


@pytest.fixture(scope="session")
def write_log() -> Callable[[Path, list[dict[str, Any]]], Path]:
    def write(path: Path, records: list[dict[str, Any]]) -> Path:
        path.write_text("".join(json.dumps(record) + "\n" for record in records))
        return path

    return write


@pytest.fixture(scope="session")
def read() -> Callable[..., tuple[list[dict[str, Any]], LogStatistics]]:
    """Rows and statistics of a log."""

    def read_all(
        *paths: Path, tokenizer: Any = None, batch_rows: int = 4096, size: int = 300
    ) -> tuple[list[dict[str, Any]], LogStatistics]:
        reader = read_log(paths, tokenizer=tokenizer, vocabulary_size=size, batch_rows=batch_rows)
        rows = [row for batch in reader for row in batch.to_pylist(maps_as_pydicts="strict")]
        return rows, reader.statistics

    return read_all
