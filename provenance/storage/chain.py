"""Records that are only ever appended: one line a fact, forced to the disk, chained by hashes.

A line is the canonical JSON of a record, and holds the SHA-256 of the line before it (without its
line break), so nobody can take out, change, repeat or move one and leave the rest as it is. What no
chain can show is an end that was cut off, or a whole file written anew: for that its *head*, the
hash of the last line, must be known from elsewhere. The verdict of a check states it.

What follows the last line break is no record: a killed process left it. The ledger of a collection
and the register of a case are such files. Knows lines and hashes; not what a record means.
"""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Final

from provenance.errors import DataError, StorageError, UsageError
from provenance.storage.files import canonical_json, open_file, parse_json, sync_folder

GENESIS: Final = "0" * 64
"""What the first record says of the line before it."""
MAXIMUM_RECORD: Final = 1 << 26
"""Bytes of one line."""
_BREAKS_NAMED: Final = 20


@dataclass(frozen=True)
class Link:
    """One line of a chain.

    Attributes
    ----------
    line, offset, length : where it stands, counted from 1, in bytes, without its line break
    digest : its hex SHA-256
    record : what it says; None if it is no record in canonical form
    """

    line: int
    offset: int
    length: int
    digest: str
    record: Mapping[str, Any] | None

    def bare(self) -> Link:
        """The same without what the record says beyond its place: for keeping many of them."""
        if self.record is None:
            return self
        place = {name: self.record[name] for name in ("n", "previous")}
        return replace(self, record=place)

    @property
    def number(self) -> int:
        """Its place by its own account; -1 if it is no record."""
        return -1 if self.record is None else int(self.record["n"])


class Chain:
    """Appends to the file of a folder whose lock the caller holds; use it in a `with` statement.

    Opening cuts off a line that does not end. `head` and `records` are those after the last append.

    Parameters: the file; what signs a record, if anything: from the canonical JSON of the record
    without its `signature` to that field. Raises DataError if the chain does not hold;
    StorageError.
    """

    def __init__(self, path: Path, sign: Callable[[bytes], str] | None = None) -> None:
        self.path, self._sign = path, sign
        self.head, self.records, self.bytes = GENESIS, 0, 0
        self._file: io.FileIO | None = None

    def __enter__(self) -> Chain:
        try:
            descriptor = os.open(
                self.path, os.O_CREAT | os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600
            )
            self._file = os.fdopen(descriptor, "r+b", buffering=0)
            sync_folder(self.path.parent)
        except OSError as error:
            self.__exit__()
            raise self._unwritable(error) from error
        return self

    def __exit__(self, *_: object) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def replay(self) -> Iterator[Link]:
        """What is there already, to the last record; then appending can begin."""
        for link in read_chain(self.path):
            self.head, self.records = link.digest, self.records + 1
            self.bytes = link.offset + link.length + 1
            yield link
        self._need().truncate(self.bytes)
        self._need().seek(self.bytes)

    def append(self, kind: str, *, force: bool = True, **fields: Any) -> Link:
        """Append one record; when this returns it survives the process, and the machine if forced.

        Raises StorageError if the disk refuses; then nothing of the record is left.
        """
        record = {**fields, "kind": kind, "n": self.records, "previous": self.head, "time": now()}
        if self._sign is not None:
            record["signature"] = self._sign(canonical_json(record))
        content = canonical_json(record)
        file, line = self._need(), memoryview(content + b"\n")
        if len(line) > MAXIMUM_RECORD:
            raise DataError(f"{self.path}: a record must be below {MAXIMUM_RECORD} bytes.")
        try:
            written = 0
            while written < len(line):
                written += file.write(line[written:]) or 0
            if force:
                os.fsync(file.fileno())
        except OSError as error:
            file.truncate(self.bytes)
            file.seek(self.bytes)
            raise self._unwritable(error) from error
        digest = hashlib.sha256(content).hexdigest()
        link = Link(self.records + 1, self.bytes, len(content), digest, record)
        self.head, self.records, self.bytes = digest, self.records + 1, self.bytes + len(line)
        return link

    def force(self) -> None:
        """Force to the disk what was appended without it. Raises StorageError."""
        try:
            os.fsync(self._need().fileno())
        except OSError as error:
            raise self._unwritable(error) from error

    def _need(self) -> io.FileIO:
        if self._file is None:
            raise UsageError("a Chain must be open. Use it in a with statement.")
        return self._file

    def _unwritable(self, error: OSError) -> StorageError:
        return StorageError(
            f"{self.path}: must be writable; got: {error.strerror}. Free some space and run again: "
            "what was recorded is kept."
        )


def now() -> str:
    """The time, UTC, to the millisecond.

    >>> len(now())
    24
    """
    return datetime.now(UTC).isoformat(timespec="milliseconds").removesuffix("+00:00") + "Z"


def read_links(path: Path) -> Iterator[Link]:
    """Every line that ends, whatever it says. Raises StorageError; DataError for an endless one."""
    with io.BufferedReader(open_file(path)) as file:
        offset = line = 0
        while content := file.readline(MAXIMUM_RECORD + 1):
            line += 1
            if len(content) > MAXIMUM_RECORD:
                raise DataError(f"{path}: line {line}: must be below {MAXIMUM_RECORD} bytes.")
            if not content.endswith(b"\n"):
                return
            own = content[:-1]
            digest = hashlib.sha256(own).hexdigest()
            yield Link(line, offset, len(own), digest, _parse(own))
            offset += len(content)


def read_chain(path: Path) -> Iterator[Link]:
    """Every record in turn, its `record` never None. DataError where the chain does not hold."""
    previous, number = GENESIS, 0
    for link in read_links(path):
        record = link.record
        if record is None or record["previous"] != previous or record["n"] != number:
            raise DataError(
                f"{path}: line {link.line}: must follow from the line before; it does not. "
                "Somebody changed the file: find out who, or take your copy."
            )
        previous, number = link.digest, number + 1
        yield link


def find_breaks(links: Sequence[Link]) -> list[str]:
    """What was done to a chain, a sentence each; empty if its chain holds.

    Names records that were taken out, changed, repeated or moved. Cost: memory of all links.
    """
    present = {link.number for link in links}
    found: list[str] = []
    seen: set[int] = set()
    before: Link | None = None
    expected = 0
    for link in links:
        number = link.number
        if number < 0:
            found.append(f"line {link.line} is no record: it was changed or put in")
            before = None
            expected += expected not in present
            continue
        if number in seen:
            found.append(f"line {link.line}: record {number} stands there once more")
            continue
        seen.add(number)
        if number < expected:
            found.append(f"line {link.line}: record {number} is not in its place")
            continue
        if gone := [one for one in range(expected, number) if one not in present]:
            found.append(f"line {link.line}: {_name_range(gone)} was taken out before it")
        before = None if number > expected else before
        stated = str((link.record or {})["previous"])
        if before is not None and stated != before.digest:
            found.append(
                f"line {before.line}: record {before.number} was changed, or what line {link.line} "
                "says of it"
            )
        if number == 0 and stated != GENESIS:
            found.append(f"line {link.line}: record 0 was changed")
        before, expected = link, number + 1
    if len(found) > _BREAKS_NAMED:
        return [*found[:_BREAKS_NAMED], f"and {len(found) - _BREAKS_NAMED} more"]
    return found


def _name_range(numbers: Sequence[int]) -> str:
    if len(numbers) == 1:
        return f"record {numbers[0]}"
    return f"each of {len(numbers)} records, {numbers[0]} to {numbers[-1]},"


def _parse(content: bytes) -> Mapping[str, Any] | None:
    """The record of a line; None unless it is one in canonical form."""
    try:
        record = parse_json(content, "a record")
        if (
            isinstance(record, dict)
            and type(record.get("n")) is int
            and record["n"] >= 0
            and all(isinstance(record.get(name), str) for name in ("kind", "previous", "time"))
            and canonical_json(record) == content
        ):
            return record
    except (DataError, ValueError):
        pass
    return None
