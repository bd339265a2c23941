"""What the machines of a cluster do with the parts of a log, and the rows that they hand on.

    survey: part -> names of its records, digests of files, faults, a sample of windows
    count:  part -> windows that count, and what was counted while reading, as rows beside them

A machine may die and its part be read again elsewhere, so nothing is counted on the side: all that
is known at the end comes from rows. Faults are rows too, since a task that raises is only tried
again. Knows Arrow and the log; no cluster and no key that marks.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.errors import (
    DISTRIBUTION,
    ConfigurationMismatchError,
    DataError,
    LockedError,
    ProvenanceError,
    StorageError,
    UsageError,
)
from provenance.keys.tokenizer import parse_tokenizer
from provenance.marks import Served
from provenance.served.excerpt import match_groups
from provenance.served.identifiers import name_hashes
from provenance.served.log import LogStatistics, hash_contents, refuse_empty
from provenance.served.log_parts import LogPart, PartReader
from provenance.served.seal import Seal
from provenance.served.windows import label_numbers, windows
from provenance.storage.files import sha256_of_file

SURVEY: Final = pa.schema(
    [
        pa.field("kind", pa.int32()),
        pa.field("place", pa.int64()),
        pa.field("name", pa.int64()),
        pa.field("content", pa.int64()),
        pa.field("note", pa.string()),
    ]
)
"""One row per RECORD (its place, hash of its name, hash of its content), per part of a FILE (its
number, records, -, SHA-256 if the part begins it), per FAULT (number of the part, -, -, what), and
per window of the SAMPLE (slot, context)."""
RECORD, FILE, FAULT, SAMPLE = range(4)

COUNTED: Final = pa.schema(
    [
        pa.field("range", pa.int32()),
        pa.field("slot", pa.int32()),
        pa.field("value", pa.int64()),
        pa.field("context", pa.int64()),
        pa.field("lineage", pa.int64()),
        pa.field("n", pa.int64()),
    ]
)
"""A window n times, in signed integers, with the range of the table that it belongs to; or, in
range and slot -1, an amount: what of (value), of which (context), how many (n)."""
AMOUNTS: Final = -1
_SUMS: Final = (
    *("responses", "marked", "empty", "retokenised", "marked_retokenised", "unended"),
    *("tokens", "marked_tokens"),
)
_ENDS, _WITHOUT_VALUE, _FAULTS = 100, 101, 102

_SAMPLED_RECORDS: Final = 256
_SAMPLED_WINDOWS: Final = 1 << 17
_NOTHING: Final = np.empty(0, dtype=np.int64)
_ERRORS: Final = {
    error.__name__: error
    for error in (DataError, StorageError, LockedError, ConfigurationMismatchError, UsageError)
}
_tokenizers: dict[str, Tokenizer] = {}


@dataclass(frozen=True)
class Ranges:
    """Where the sorted table is cut, so that every range can be counted by itself.

    bounds : per slot the first contexts of its ranges but the first one, int64, ascending
    """

    bounds: tuple[NDArray[np.int64], ...]

    @classmethod
    def of_sample(cls, slots: int, sample: pa.Table, count: int) -> Ranges:
        """Some `count` ranges of equal size, and at least one per slot; `sample` is of SURVEY."""
        slot, context = (sample.column(name).to_numpy() for name in ("place", "name"))
        step = max(1, slot.shape[0] // max(count, 1))
        found = [np.sort(context[slot == number])[step::step] for number in range(slots)]
        return cls(tuple(np.unique(part) for part in found))

    def find(self, slot: NDArray[np.uint8], context: NDArray[np.int64]) -> NDArray[np.int32]:
        """The range of each window; ranges are numbered in the order of the table."""
        found = np.empty(slot.shape, dtype=np.int32)
        before = 0
        for number, bounds in enumerate(self.bounds):
            rows = slot == number
            found[rows] = before + np.searchsorted(bounds, context[rows], side="right")
            before += bounds.shape[0] + 1
        return found


@dataclass(frozen=True)
class Plan:
    """What every machine needs but the slots: no secret is in it.

    parts : of the log, in its order
    batch_rows : responses per batch
    control_share : share of the control contexts that are kept
    tokenizer : content of the served tokenizer.json, None if no text is to be read
    dropped : int64, ascending: places of duplicates, once they are known
    ranges : of the table, once they are known
    version : of this package
    """

    parts: tuple[LogPart, ...]
    batch_rows: int
    control_share: float
    tokenizer: bytes | None
    dropped: NDArray[np.int64] = field(default_factory=lambda: _NOTHING)
    ranges: Ranges = field(default_factory=lambda: Ranges(()))
    version: str = field(default_factory=lambda: version(DISTRIBUTION))

    def check_version(self) -> None:
        """Raise ConfigurationMismatchError if another version of this package runs here."""
        if (found := version(DISTRIBUTION)) != self.version:
            raise ConfigurationMismatchError(
                f"every machine must have {DISTRIBUTION} {self.version}; one has {found}. "
                "Install the same version everywhere."
            )

    def read(self, part: LogPart, slots: Served, batch_rows: int | None = None) -> PartReader:
        """The reader of a part that leaves the duplicates out."""
        tokenizer, public = None, slots.public
        if self.tokenizer is not None:
            tokenizer = _tokenizers.get(public.tokenizer_sha256)
            if tokenizer is None:
                tokenizer = parse_tokenizer(self.tokenizer, public, "the tokenizer")
                _tokenizers[public.tokenizer_sha256] = tokenizer
        rows = batch_rows or self.batch_rows
        return PartReader(part, tokenizer, public.vocabulary_size, rows, self.dropped)


def survey(plan: Plan, number: int, slots: Served) -> Iterator[pa.RecordBatch]:
    """The rows SURVEY of one part; a fault ends them."""
    part = plan.parts[number]
    try:
        plan.check_version()
        yield from _survey(plan, part, slots)
    except ProvenanceError as error:
        yield _surveyed(FAULT, [number], note=[_note(error)])


def _survey(plan: Plan, part: LogPart, slots: Served) -> Iterator[pa.RecordBatch]:
    file, records = part.open(slots.public.vocabulary_size, plan.batch_rows), 0
    for raw in file:
        rows = raw.batch.num_rows
        names = name_hashes(raw.batch.column("response_id").to_pylist())
        places = part.place(raw.first - 1) + np.arange(rows)
        yield _surveyed(RECORD, places, names, hash_contents(raw.batch))
        records += rows
    if not records:
        refuse_empty(part.path)
    digest = file.sha256 or (sha256_of_file(part.path) if part.is_first else None)
    part.check_stamp()
    yield _surveyed(FILE, [part.file], [records], note=[digest])
    few = islice(plan.read(part, slots, _SAMPLED_RECORDS), 1)
    for table in (windows(batch, slots, plan.control_share) for batch in few):
        step = 1 + table.num_rows * len(plan.parts) // _SAMPLED_WINDOWS
        slot, context = (table.column(name).to_numpy()[::step] for name in ("slot", "context"))
        yield _surveyed(SAMPLE, slot.astype(np.int64), context)


def count(plan: Plan, number: int, slots: Served) -> Iterator[pa.RecordBatch]:
    """The rows COUNTED of one part; a fault ends them."""
    try:
        yield from _count(plan, plan.parts[number], slots)
    except ProvenanceError:
        yield _amounts([(_FAULTS, number, 1)])


def _count(plan: Plan, part: LogPart, slots: Served) -> Iterator[pa.RecordBatch]:
    without_value = np.zeros(len(slots.schedule.slots), dtype=np.int64)
    reader = plan.read(part, slots)
    for batch in iter(reader):
        marked = batch.filter(batch.column("marked"))
        without_value += (label_numbers(marked.column("labels"), slots.schedule) < 0).sum(axis=1)
        for piece in windows(batch, slots, plan.control_share).to_batches():
            slot, context = (piece.column(name).to_numpy() for name in ("slot", "context"))
            columns = [
                pa.array(plan.ranges.find(slot, context)),
                piece.column("slot").cast(pa.int32()),
                piece.column("value").cast(pa.int64()),
                piece.column("context"),
                piece.column("lineage"),
                pa.array(np.ones(piece.num_rows, dtype=np.int64)),
            ]
            yield pa.RecordBatch.from_arrays(columns, schema=COUNTED)
    found = reader.statistics
    amounts = [(code, 0, getattr(found, name)) for code, name in enumerate(_SUMS)]
    amounts += [(_ENDS, token, ended) for token, ended in found.ends.items()]
    amounts += [(_WITHOUT_VALUE, slot, int(some)) for slot, some in enumerate(without_value)]
    yield _amounts([amount for amount in amounts if amount[2]])


MATCHED: Final = pa.schema(
    [
        pa.field("slot", pa.int32()),
        pa.field("value", pa.int64()),
        pa.field("context", pa.int64()),
        pa.field("responses", pa.int64()),
        pa.field("note", pa.string()),
    ]
)
"""Rows of an index in signed integers; or nothing but the note of a fault."""


def match_part(
    path: Path, seal: Seal, numbers: Sequence[int], contexts: NDArray[np.int64]
) -> Iterator[pa.RecordBatch]:
    """The rows of `provenance.served.excerpt.match_groups`, columns MATCHED."""
    try:
        found = match_groups(path, seal, numbers, contexts)
    except ProvenanceError as error:
        columns = [pa.nulls(1, kind) for kind in MATCHED.types[:-1]]
        note = pa.array([_note(error)], pa.string())
        yield pa.RecordBatch.from_arrays([*columns, note], schema=MATCHED)
        return
    types = zip(found.columns, MATCHED.types, strict=False)
    columns = [column.cast(kind) for column, kind in types]
    notes = pa.nulls(found.num_rows, pa.string())
    yield from pa.Table.from_arrays([*columns, notes], schema=MATCHED).to_batches()


def _note(error: ProvenanceError) -> str:
    return f"{type(error).__name__}:{error}"


def raise_fault(note: str) -> None:
    """Raise the error that a fault of the survey names."""
    kind, _, message = note.partition(":")
    raise _ERRORS.get(kind, StorageError)(message)


def read_amounts(
    plan: Plan, slots: Served, table: pa.Table, statistics: LogStatistics
) -> NDArray[np.int64]:
    """Add what was counted to the statistics; returns responses without a value per slot.

    `table` holds value, context and n of the amounts. Raises the error of a part that failed.
    """
    without_value = np.zeros(len(slots.schedule.slots), dtype=np.int64)
    rows = zip(*(table.column(name).to_pylist() for name in ("value", "context", "n")), strict=True)
    faults = []
    for code, which, amount in rows:
        if code == _FAULTS:
            faults.append(which)
        elif code == _ENDS:
            statistics.ends[which] += amount
        elif code == _WITHOUT_VALUE:
            without_value[which] += amount
        else:
            setattr(statistics, _SUMS[code], getattr(statistics, _SUMS[code]) + amount)
    if faults:
        part = plan.parts[min(faults)]
        for _ in _count(plan, part, slots):  # raises what it raised there
            pass
        raise StorageError(
            f"{part.path}: must be the same file on every machine; one could not read it, and "
            "this one can. Mount the log everywhere."
        )
    return without_value


def _surveyed(
    kind: int,
    place: Sequence[int] | NDArray[np.int64],
    name: Any = None,
    content: Any = None,
    note: list[str | None] | None = None,
) -> pa.RecordBatch:
    size = len(place)
    zeros = np.zeros(size, dtype=np.int64)
    columns = [
        pa.array(np.full(size, kind, dtype=np.int32)),
        *(pa.array(zeros if part is None else part, pa.int64()) for part in (place, name, content)),
        pa.nulls(size, pa.string()) if note is None else pa.array(note, pa.string()),
    ]
    return pa.RecordBatch.from_arrays(columns, schema=SURVEY)


def _amounts(amounts: list[tuple[int, int, int]]) -> pa.RecordBatch:
    numbers = np.array(amounts, dtype=np.int64).reshape(-1, 3)
    nowhere = pa.array(np.full(numbers.shape[0], AMOUNTS, dtype=np.int32))
    value, context, n = (pa.array(numbers[:, column]) for column in range(3))
    lineage = pa.nulls(numbers.shape[0], pa.int64())
    return pa.RecordBatch.from_arrays(
        [nowhere, nowhere, value, context, lineage, n], schema=COUNTED
    )
