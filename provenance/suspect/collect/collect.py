"""Collect outputs into a folder: a ledger, the prompts, and the files that a check reads.

::

    DIR/ledger.jsonl     every request and answer, chained by hashes; what the rest follows from
    DIR/prompts.jsonl    the prompts, whose hash the ledger's header states
    DIR/outputs.jsonl    answers with text, for `provenance check`; logprobs.jsonl if asked for
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from provenance.errors import (
    ConfigurationMismatchError,
    DataError,
    ProvenanceError,
    StorageError,
    UsageError,
    clean,
)
from provenance.storage.chain import Chain, find_breaks, read_links
from provenance.storage.files import (
    as_path,
    canonical_json,
    is_of_disk,
    lock_folder,
    sha256_of_file,
)
from provenance.storage.formats import LEDGER_FILE
from provenance.suspect.collect.derive import (
    DERIVED,
    check_derived,
    name_derived,
    write_derived,
)
from provenance.suspect.collect.prompts import PROMPTS_FILE, Prompts, load_prompts
from provenance.suspect.collect.result import Collection, Progress
from provenance.suspect.collect.settings import CollectSettings
from provenance.suspect.collect.standing import FORMAT, VERSION, Standing

API: Final = "api"
_SPENDABLE: Final = ("concurrency", "timeout", "retries", "max_tokens_total", "max_spend")


@dataclass
class OpenCollection:
    """A collection whose folder is locked."""

    folder: Path
    ledger: Chain
    standing: Standing
    prompts: Prompts

    def record(self, kind: str, *, force: bool = True, **fields: Any) -> None:
        """Append a record, and let it count. Raises StorageError."""
        self.standing.take(self.ledger.append(kind, force=force, **fields))

    def derive(self) -> tuple[str, ...]:
        """Write the files that follow from the ledger; their names."""
        write_derived(self.folder, self.standing, self.prompts)
        return name_derived(self.standing)


def collect_outputs(
    prompts: Any,
    folder: Any,
    settings: CollectSettings,
    progress: Progress = lambda *_: None,
) -> Collection:
    """Ask an API for the outputs of prompts that the folder does not hold yet.

    Parameters
    ----------
    prompts : JSONL with `prompt` or `messages`, and perhaps `id`
    folder : of the collection; one that was begun goes on
    settings : what to ask, and how
    progress : told after every item: what goes on, items settled, items wanted, what was spent

    Raises
    ------
    MissingExtraError without the SDK; UsageError, DataError; ConfigurationMismatchError if the
    folder was begun with other prompts or facts; LockedError, StorageError. What goes wrong at the
    API is no exception: it stands in the ledger.

    Notes
    -----
    Whatever happens, an answer that was recorded is never asked for again. Memory: the prompts, and
    one line an item.
    """
    from provenance.suspect.collect.client import Client, load_sdk
    from provenance.suspect.collect.run import Run

    if not settings.base_url:
        raise UsageError("--base-url must be the API's address; it is missing.")
    given = Prompts.read(as_path(prompts, "the prompts"))
    for item in given.items(1):
        given.request(item, settings)
    version = f"openai {load_sdk().__version__}"
    client = Client(settings)
    with open_collection(as_path(folder, "the folder"), given, settings, API) as found:
        facts = {name: getattr(settings, name) for name in _SPENDABLE}
        price = None if settings.price is None else list(settings.price)
        found.record("started", client=version, price=price, **facts)
        run = Run(found.ledger, found.standing, given, settings, progress)
        try:
            stopped = _wait_for(run.complete(client))
        finally:
            written = found.derive()
    standing = found.standing
    cost = settings.cost(
        standing.read + standing.unknown[0], standing.written + standing.unknown[1]
    )
    return Collection(found.folder, standing.facts(), cost, stopped, written)


def _wait_for(work: Coroutine[Any, Any, str]) -> str:
    """What the coroutine returns, also inside a running loop (a notebook): on a thread then."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()


@contextmanager
def open_collection(
    folder: Path, prompts: Prompts | None, settings: CollectSettings | None, via: str
) -> Iterator[OpenCollection]:
    """The collection in a folder, locked: begun if it is empty, or as it stands.

    Parameters: folder; prompts and settings, None to take those of the folder; how it is asked: api
    or the format of a batch. What a killed run had asked is recorded as `unknown`.

    Raises LockedError, StorageError, DataError, ConfigurationMismatchError.
    """
    if prompts is None and not (folder / LEDGER_FILE).is_file():
        raise StorageError(f"{folder}: must be a collection; it has no {LEDGER_FILE}.")
    with lock_folder(folder):
        if not (folder / LEDGER_FILE).exists():
            _refuse_occupied(folder)
        with Chain(folder / LEDGER_FILE) as ledger:
            standing = Standing()
            for link in ledger.replay():
                standing.take(link)
            if settings is not None and prompts is not None:
                if not standing.records:
                    prompts.keep(folder)
                    standing.take(ledger.append("collection", **_header(prompts, settings, via)))
                _match(standing, prompts, settings, via)
            if not standing.records:
                raise DataError(f"{folder}: must be a collection; its ledger is empty.")
            kept = load_prompts(folder, standing.header["prompts_sha256"])
            for item in list(standing.waiting):
                standing.take(ledger.append("unknown", item=item, attempt=standing.tried[item]))
            yield OpenCollection(folder, ledger, standing, kept)


def verify_collection(folder: Any, head: str | None = None) -> Collection:
    """Recompute a collection's chain, and what follows from it.

    Parameters: the folder; the head that the ledger must have, as a verdict or a note states it.
    Returns the collection; its `breaks` name what was taken out, changed, repeated, moved, or does
    not follow. Raises StorageError. Changes nothing.
    """
    place = as_path(folder, "the folder")
    path = place / LEDGER_FILE
    links = [link.bare() for link in read_links(path)]
    breaks = find_breaks(links)
    if not links:
        breaks.append("the ledger is empty")
    elif head is not None and head not in {link.digest for link in links}:
        breaks.append(f"no record has the hash {clean(head)[:16]}..., the head that was stated")
    facts: dict[str, Any] = {"head": links[-1].digest if links else "", "records": len(links)}
    if not breaks:
        try:
            standing = Standing.load(place)
            facts = standing.facts()
            load_prompts(place, standing.header["prompts_sha256"])
            for name in name_derived(standing):
                if (place / name).exists():
                    check_derived(place, standing, name, sha256_of_file(place / name))
        except ProvenanceError as error:
            if is_of_disk(error):  # nothing is known of what stands there
                raise
            breaks.append(str(error))
    return Collection(place, facts, breaks=tuple(breaks))


def describe_collected(path: Path) -> dict[str, Any] | None:
    """What the ledger beside a file of outputs says of them; None for a file without one.

    Raises DataError if the chain does not hold, or does not give this file.
    """
    folder = path.parent
    if path.name not in DERIVED or not (folder / LEDGER_FILE).is_file():
        return None
    standing = Standing.load(folder)
    check_derived(folder, standing, path.name, sha256_of_file(path))
    return standing.facts()


def _header(prompts: Prompts, settings: CollectSettings, via: str) -> dict[str, Any]:
    from importlib.metadata import version

    from provenance.errors import DISTRIBUTION

    return {
        "format": FORMAT,
        "version": VERSION,
        "provenance": version(DISTRIBUTION),
        "via": via,
        "prompts_sha256": prompts.sha256,
        "prompts": len(prompts.records),
        "wanted": len(prompts.records) * settings.samples,
        **settings.facts(),
    }


def _match(standing: Standing, prompts: Prompts, settings: CollectSettings, via: str) -> None:
    """Raise ConfigurationMismatchError naming the first fact that is not the folder's."""
    header = standing.header
    asked = {"via": via, "prompts_sha256": prompts.sha256, **settings.facts()}
    for name, value in asked.items():
        if canonical_json(header[name]) != canonical_json(value):
            raise ConfigurationMismatchError(
                f"{name}: expected {clean(str(header[name]))[:80]}, with which the collection was "
                f"begun, found {clean(str(value))[:80]}. Choose another folder for another "
                "collection."
            )


def _refuse_occupied(folder: Path) -> None:
    """StorageError if a folder without a ledger holds what could be somebody else's."""
    for path in folder.iterdir():
        if path.name not in (".lock", PROMPTS_FILE) and not path.name.startswith(
            f".{PROMPTS_FILE}."
        ):
            raise StorageError(
                f"{folder}: must be empty or a collection; it holds {clean(path.name)[:80]}. "
                "Choose another folder."
            )
