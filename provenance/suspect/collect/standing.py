"""How a collection stands, by its ledger alone: what was asked, answered, spent, and is unknown.

The kinds of records, in the order in which they may come:

    collection   the header: facts that cannot change (record 0)
    started      a run begins (or `prepared`: the input file of a batch was written)
    asked        written before a request is sent
    answered     its answer with raw bytes; `failed`: none came; `unknown`: a killed run had asked
    imported     a file of results was taken in; the `answered` before it are its lines

Reads what it wrote, live and again: one path for both, so a resumed run stands where it stood.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from provenance.errors import DataError, say_briefly
from provenance.storage.chain import GENESIS, Link, read_chain
from provenance.storage.formats import LEDGER_FILE

FORMAT: Final = "provenance-collection"
VERSION: Final = 1


@dataclass
class Standing:
    """What the records so far add up to.

    Attributes
    ----------
    header : record 0
    head, records : hash of the last record, and how many there are
    waiting : items that were asked and have no answer yet, with their bounds
    outcomes : items that are settled, and how: answer, empty or error
    places : where the answer of an item stands: offset and length of its line
    tried : how often an item was asked
    counts : records of each kind, and answers of each outcome (`answer`, `empty`, `error`, ...)
    read, written : tokens as the API counted them
    unknown : tokens, at most, of requests that may have been paid and whose cost nobody knows
    models, fingerprints : names that the API gave, with how many answers
    imported : hashes of files of results that were taken in
    """

    header: Mapping[str, Any] = field(default_factory=dict)
    head: str = GENESIS
    records: int = 0
    waiting: dict[str, tuple[int, int]] = field(default_factory=dict)
    outcomes: dict[str, str] = field(default_factory=dict)
    places: dict[str, tuple[int, int]] = field(default_factory=dict)
    tried: Counter[str] = field(default_factory=Counter)
    counts: Counter[str] = field(default_factory=Counter)
    read: int = 0
    written: int = 0
    unknown: tuple[int, int] = (0, 0)
    models: Counter[str] = field(default_factory=Counter)
    fingerprints: Counter[str] = field(default_factory=Counter)
    imported: set[str] = field(default_factory=set)

    @classmethod
    def load(cls, folder: Path) -> Standing:
        """How the collection in a folder stands. Raises StorageError, DataError."""
        path = folder / LEDGER_FILE
        found = cls()
        for link in read_chain(path):
            found.take(link)
        if not found.header:
            raise DataError(f"{path}: must hold a header; it is empty. Collect into it again.")
        return found

    def take(self, link: Link) -> None:
        """One more record. Raises DataError if it cannot follow from those before."""
        record = link.record or {}
        kind = str(record.get("kind"))
        try:
            self._take(kind, record, link)
        except (KeyError, TypeError, ValueError) as error:
            raise DataError(
                f"{LEDGER_FILE}: line {link.line}: must be a record of kind {kind[:40]!r} that can "
                f"follow; it is not ({say_briefly(error)}). Run: provenance collect verify"
            ) from error
        self.counts[kind] += 1
        self.head, self.records = link.digest, self.records + 1

    def _take(self, kind: str, record: Mapping[str, Any], link: Link) -> None:
        if (kind == "collection") != (self.records == 0):
            raise ValueError("a header stands first, and nowhere else")
        if kind == "collection":
            if record["format"] != FORMAT or record["version"] != VERSION:
                raise ValueError("another format or version")
            self.header = record
        elif kind == "asked":
            item = str(record["item"])
            if item in self.waiting or item in self.outcomes:
                raise ValueError(f"item {item} was asked already")
            first, second = map(int, record["bound"])
            self.waiting[item] = (first, second)
            self.tried[item] += 1
        elif kind == "answered":
            self._answer(record, link)
        elif kind in ("failed", "unknown"):
            bound = self.waiting.pop(str(record["item"]))
            if kind == "unknown" or record["sent"]:
                self._lose(bound)
        elif kind == "imported":
            self.imported.add(str(record["sha256"]))
        elif kind not in ("started", "prepared"):
            raise ValueError("no such kind")

    def _answer(self, record: Mapping[str, Any], link: Link) -> None:
        """An answer of the API, to a request or by a batch."""
        item, outcome = str(record["item"]), str(record["outcome"])
        bound = self.waiting.pop(item) if record.get("batch") is None else (0, 0)
        if self.outcomes.get(item) in ("answer", "empty"):
            raise ValueError(f"item {item} was answered already")
        tokens = record["tokens"]
        if tokens is not None:
            self.read, self.written = self.read + tokens[0], self.written + tokens[1]
        elif outcome != "error":
            self._lose(bound)
        self.counts[outcome] += 1
        if record["settled"]:
            self.outcomes[item] = outcome
            self.places[item] = (link.offset, link.length)
            self.models.update([record["model"]] if record["model"] else [])
            found = record["system_fingerprint"]
            self.fingerprints.update([found] if found else [])

    def _lose(self, bound: tuple[int, int]) -> None:
        self.unknown = (self.unknown[0] + bound[0], self.unknown[1] + bound[1])

    @property
    def tokens(self) -> int:
        """Spent at most: as counted, and the bounds of what is unknown."""
        return self.read + self.written + sum(self.unknown)

    def count(self, outcome: str) -> int:
        """Items that are settled so."""
        return sum(1 for one in self.outcomes.values() if one == outcome)

    def facts(self) -> dict[str, Any]:
        """What a verdict says of a collection: its head, and what became of what was asked."""
        header = self.header
        return {
            "head": self.head,
            "records": self.records,
            "created": header["time"],
            "base_url": header["base_url"],
            "model": header["model"],
            "models": dict(sorted(self.models.items())),
            "fingerprints": dict(sorted(self.fingerprints.items())),
            "wanted": header["wanted"],
            "requests": self.counts["asked"],
            "answered": self.count("answer"),
            "without_text": self.count("empty"),
            "errors": self.count("error"),
            "unanswered": header["wanted"] - len(self.outcomes),
            "unknown": self.counts["unknown"],
            "tokens": [self.read, self.written],
            "tokens_unknown": list(self.unknown),
        }
