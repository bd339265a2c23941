"""Offline batches: the file to hand in, and the results taken into the ledger by `custom_id`.

Knows the envelopes of OpenAI's and Anthropic's batches; asks nobody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any, Final, Literal

from provenance.errors import DataError, UsageError
from provenance.storage.files import (
    as_path,
    canonical_json,
    parse_json,
    write_atomically,
)
from provenance.storage.lines import LineReader
from provenance.suspect.collect.answers import pack_body, read_batch_line
from provenance.suspect.collect.collect import OpenCollection, open_collection
from provenance.suspect.collect.prompts import Prompts
from provenance.suspect.collect.result import Collection
from provenance.suspect.collect.settings import CollectSettings

Format = Literal["openai-batch", "anthropic-batch"]
FORMATS: Final = ("openai-batch", "anthropic-batch")
BATCH_FILE: Final = "batch-input.jsonl"
_PATHS: Final = {"chat": "/v1/chat/completions", "completions": "/v1/completions"}
_OPENAI: Final = FORMATS[0]


def prepare_batch(
    prompts: Any, folder: Any, settings: CollectSettings, batch_format: str
) -> Collection:
    """Write the input file of a batch for prompts into a new collection.

    Parameters
    ----------
    prompts, folder, settings : see `collect_outputs`; of the settings, what is asked counts
    batch_format : openai-batch, or anthropic-batch (a request a line; together they are the
        `requests` of its API)

    Returns
    -------
    The collection; its folder holds `batch-input.jsonl`, whose hash is in the ledger. Doing the
    same once more changes nothing.

    Raises
    ------
    UsageError, DataError, ConfigurationMismatchError, LockedError, StorageError.
    """
    if batch_format not in FORMATS:
        raise UsageError(f"--format must be {' or '.join(FORMATS)}; got {batch_format!r:.40}.")
    given = Prompts.read(as_path(prompts, "the prompts"))
    content = b"".join(_write_lines(given, settings, batch_format))
    place = as_path(folder, "the folder")
    with open_collection(place, given, settings, batch_format) as found:
        write_atomically(place / BATCH_FILE, content, 0o600)
        if not found.standing.counts["prepared"]:
            digest = hashlib.sha256(content).hexdigest()
            found.record("prepared", file=BATCH_FILE, sha256=digest)
    return Collection(place, found.standing.facts(), written=(BATCH_FILE,))


def import_batch(results: Any, folder: Any) -> Collection:
    """Take the results of a batch, or its errors, into the ledger of its collection.

    Parameters: the file (JSONL, gz, zst) as the API gave it; the folder of `prepare_batch`.
    Lines whose item was answered already are passed over: a file may be taken in twice. Returns the
    collection, with its files of outputs written.

    Raises DataError for a line that is no result of this collection: then nothing is taken in.
    """
    path, place = as_path(results, "the results"), as_path(folder, "the folder")
    with open_collection(place, None, None, "") as found:
        if found.standing.header["via"] not in FORMATS:
            raise UsageError(f"{place}: must be a collection of `collect prepare`; it is not.")
        reader = LineReader(path)
        lines = list(_read_results(reader, found))
        digest = reader.sha256
        for item, content, document in lines:
            _take(found, item, content, document, digest)
        if digest not in found.standing.imported:
            found.record("imported", sha256=digest, lines=len(lines))
        found.ledger.force()
        written = found.derive()
    return Collection(place, found.standing.facts(), written=written)


def _write_lines(prompts: Prompts, settings: CollectSettings, batch_format: str) -> Iterator[bytes]:
    for item in prompts.items(settings.samples):
        if batch_format == _OPENAI:
            body = prompts.request(item, settings).body
            url = _PATHS[settings.endpoint]
            line: dict[str, Any] = {"custom_id": item, "method": "POST", "url": url, "body": body}
        else:
            body = prompts.request(item, settings, "anthropic").body
            line = {"custom_id": item, "params": body}
        yield canonical_json(line) + b"\n"


def _read_results(reader: LineReader, found: OpenCollection) -> Iterator[tuple[str, bytes, Any]]:
    """Item, bytes and document of every line. Raises DataError naming the line."""
    seen: set[str] = set()
    for number, line in reader:
        if not line.strip():
            continue
        origin = f"{reader.path}: line {number}"
        document = parse_json(line, origin)
        item = document.get("custom_id") if isinstance(document, dict) else None
        try:
            sample = found.prompts.split(str(item))[1]
        except DataError as error:
            raise DataError(f"{origin}: custom_id {error}") from error
        if sample >= found.standing.header["samples"]:
            raise DataError(f"{origin}: custom_id {item} must be an item of this collection.")
        if item in seen:
            raise DataError(f"{origin}: custom_id {item} must be there once; it repeats.")
        seen.add(str(item))
        yield str(item), line.rstrip(b"\r\n"), document


def _take(found: OpenCollection, item: str, content: bytes, document: Any, batch: str) -> None:
    """One line of results, unless its item has an answer or the line was taken in before."""
    outcome = found.standing.outcomes.get(item)
    if outcome in ("answer", "empty") or (outcome and batch in found.standing.imported):
        return
    answer = read_batch_line(document)
    response = document.get("response") or {}
    status = response.get("status_code") if isinstance(response, dict) else None
    name = response.get("request_id") if isinstance(response, dict) else None
    found.record(
        "answered",
        force=False,
        item=item,
        batch=batch,
        status=status if type(status) is int else None,
        request_id=name if isinstance(name, str) else "",
        settled=True,
        **answer.facts(),
        **pack_body(content),
    )
