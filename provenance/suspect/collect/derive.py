"""From the ledger to files that a check reads: a pure function of ledger and prompts.

`outputs.jsonl` has one record an answer with text, in the order of the prompts; `logprobs.jsonl`
has the same with the logprobs, if some were asked for. Answers without text stay in the ledger.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

from provenance.errors import DataError, StorageError
from provenance.storage.files import canonical_json, open_atomically, parse_json
from provenance.storage.formats import LEDGER_FILE, OUTPUTS_FILE
from provenance.suspect.collect.answers import Answer, read_answer, read_batch_line, unpack_body
from provenance.suspect.collect.prompts import Prompts, chat_of, load_prompts
from provenance.suspect.collect.standing import Standing

LOGPROBS_FILE: Final = "logprobs.jsonl"
DERIVED: Final = (OUTPUTS_FILE, LOGPROBS_FILE)


def name_derived(standing: Standing) -> tuple[str, ...]:
    """The files that a collection has beside its ledger."""
    return DERIVED if standing.header["logprobs"] is not None else DERIVED[:1]


def write_derived(folder: Path, standing: Standing, prompts: Prompts) -> None:
    """Write them, whole or not at all. Raises StorageError, DataError."""
    for name in name_derived(standing):
        with open_atomically(folder / name, 0o600) as file:
            for line in derive_lines(folder, standing, prompts, name):
                file.write(line)


def derive_lines(folder: Path, standing: Standing, prompts: Prompts, name: str) -> Iterator[bytes]:
    """The lines of one of the files. Raises StorageError, DataError."""
    samples = standing.header["samples"]
    try:
        ledger = (folder / LEDGER_FILE).open("rb")
    except OSError as error:
        raise StorageError(f"{folder / LEDGER_FILE}: must be readable; it is not.") from error
    with ledger:
        for prompt in range(1, len(prompts.records) + 1):
            for item in (f"{prompt}-{sample}" for sample in range(samples)):
                if standing.outcomes.get(item) != "answer":
                    continue
                answer = _read_place(ledger, *standing.places[item])
                if name == OUTPUTS_FILE or answer.logprobs is not None:
                    yield canonical_json(_derive(standing, prompts, item, answer, name)) + b"\n"


def check_derived(folder: Path, standing: Standing, name: str, sha256: str) -> None:
    """Raise DataError unless the ledger gives a file of this name and hash."""
    prompts = load_prompts(folder, standing.header["prompts_sha256"])
    digest = hashlib.sha256()
    for line in derive_lines(folder, standing, prompts, name):
        digest.update(line)
    if digest.hexdigest() != sha256:
        raise DataError(
            f"{folder / name}: must be what the ledger beside it gives; it is not. Collect into "
            "the folder again: it writes the file anew. Or check a copy elsewhere."
        )


def _read_place(ledger: BinaryIO, offset: int, length: int) -> Answer:
    ledger.seek(offset)
    record = parse_json(ledger.read(length), LEDGER_FILE)
    body = unpack_body(record)
    if record.get("batch") is None:
        return read_answer(record["status"], body)
    return read_batch_line(parse_json(body, LEDGER_FILE))


def _derive(
    standing: Standing, prompts: Prompts, item: str, answer: Answer, name: str
) -> dict[str, Any]:
    record = prompts.shown(item)
    found: dict[str, Any] = {
        key: value for key, value in record.items() if key not in ("prompt", "messages")
    }
    found["custom_id"] = item
    if standing.header["endpoint"] == "completions":
        found["prompt"] = record["prompt"]
    else:
        found["messages"] = chat_of(record)
    found |= {"output": answer.text, "model": answer.model, "finish_reason": answer.finish}
    if name == LOGPROBS_FILE:
        found["logprobs"] = answer.logprobs
    return found
