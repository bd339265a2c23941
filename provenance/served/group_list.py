"""Which groups a log has by a label, and how many contexts each of them could be attributed by.

Everything that a group needs is counted for all values at once: nothing is attributed here, and no
key but the selector's is used. Knows logs; no suspect.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from provenance.errors import DataError
from provenance.keys.schedule import GLOBAL
from provenance.keys.tokenizer import load_tokenizer
from provenance.marks import Served
from provenance.served.build import refuse_conflicts
from provenance.served.group_build import list_seen
from provenance.served.grouping import SIGHTS, group_sights
from provenance.served.identifiers import name_hashes
from provenance.served.log import LogReader, read_log
from provenance.served.membership import check_field, values_of
from provenance.served.windows import windows
from provenance.storage.database import check_memory_limit
from provenance.storage.printable import Page, Said

_SHOWN: Final = 50
_NOBODY: Final = 0


@dataclass(frozen=True)
class ListedGroup:
    """The responses with one value of a field.

    reached, exclusive : contexts of the slot `global` that they reached, and those of them that no
        response without this value, and no prompt of one, saw: the coins that can attribute
    """

    value: str
    responses: int
    marked_responses: int
    tokens: int
    reached: int
    exclusive: int


@dataclass(frozen=True)
class GroupList(Said):
    """All values of a field, most exclusive contexts first.

    without_value, without_prompt : responses without such a label, which are nobody's and exclude
        like all others; responses that do not say what their prompt was
    """

    field: str
    responses: int
    without_value: int
    without_prompt: int
    groups: tuple[ListedGroup, ...]

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return asdict(self)

    def say(self, width: int = 80) -> str:
        """In words, for a page of this width."""
        page = Page(width)
        page.say(
            f"{len(self.groups):,} values of {self.field} in {self.responses:,} responses; "
            f"{self.without_value:,} responses have none."
        )
        page.table(
            [self.field, "records", "marked", "tokens", "contexts", "coins"],
            [
                [
                    one.value,
                    *(f"{n:,}" for n in (one.responses, one.marked_responses, one.tokens)),
                    *(f"{n:,}" for n in (one.reached, one.exclusive)),
                ]
                for one in self.groups[:_SHOWN]
            ],
        )
        if len(self.groups) > _SHOWN:
            page.say(f"{len(self.groups) - _SHOWN:,} more with --json.")
        page.say(
            "contexts: of the global key, reached by the group. coins: those that nobody else saw, "
            "in a response or a prompt; a suspect meets a part of them."
        )
        if self.without_prompt:
            page.say(
                f"{self.without_prompt:,} responses do not say what their prompt was: what "
                "they saw is not known, and nothing can be attributed to a group against them."
            )
        return str(page)


def list_groups(
    logs: Sequence[Path],
    keyring: Served,
    field: str,
    tokenizer: Path | None = None,
    *,
    memory_limit: str = "512MiB",
    batch_rows: int = 4096,
) -> GroupList:
    """Size and exclusive contexts of every value of a label.

    Parameters: as of `provenance.served.group_build.build_group`, without a list: each value is a
    group. Raises as there.

    Notes
    -----
    One pass over the log and one database query that spills to the folder of temporary files. Cost:
    that of `build_group` for one group, whatever the number of groups; 16 bytes of spill per record
    and distinct context of the slot `global`, prompts included.
    """
    check_memory_limit(memory_limit)
    reader = read_log(
        list(logs),
        tokenizer=None if tokenizer is None else load_tokenizer(tokenizer, keyring.public),
        vocabulary_size=keyring.public.vocabulary_size,
        batch_rows=batch_rows,
    )
    counts = _Counts()
    found: dict[int, tuple[int, int]] = {}
    with tempfile.TemporaryDirectory(prefix="provenance-groups-") as scratch:
        stream = _stream(reader, keyring, check_field(field), counts)
        with group_sights(stream, Path(scratch) / "spill", memory_limit) as batches:
            for batch in batches:
                for row in batch.to_pylist():
                    found[row["group"]] = (row["reached"], row["exclusive"])
    refuse_conflicts(reader.statistics)
    if len(counts.numbers) == 1:
        raise DataError(
            f"{', '.join(log.name for log in reader.statistics.files[:3])}: must hold responses "
            f"with a {field}; none has one. Name another label with --field."
        )
    groups = []
    for name, number in counts.numbers.items():
        if name is not None:
            responses, marked, tokens = map(int, counts.rows[number])
            groups.append(ListedGroup(name, responses, marked, tokens, *found.get(number, (0, 0))))
    return GroupList(
        field,
        reader.statistics.responses,
        int(counts.rows[_NOBODY][0]),
        counts.without_prompt,
        tuple(sorted(groups, key=lambda one: (-one.exclusive, -one.responses, one.value))),
    )


class _Counts:
    """Numbers of the values, and responses, marked ones and tokens of each: int64 [values, 3]."""

    def __init__(self) -> None:
        self.numbers: dict[str | None, int] = {None: _NOBODY}
        self.rows = np.zeros((1, 3), dtype=np.int64)
        self.without_prompt = 0

    def add(self, batch: pa.RecordBatch, field: str) -> NDArray[np.int64]:
        """Count a batch; the number of each response's value, int64 [n]."""
        coded = values_of(batch, field).dictionary_encode(null_encoding="encode")
        names = coded.dictionary.to_pylist()
        for name in names:
            self.numbers.setdefault(name, len(self.numbers))
        numbers = np.array([self.numbers[name] for name in names], dtype=np.int64)
        own: NDArray[np.int64] = numbers[coded.indices.to_numpy(zero_copy_only=False)]
        more = len(self.numbers) - self.rows.shape[0]
        self.rows = np.concatenate([self.rows, np.zeros((more, 3), dtype=np.int64)])
        lengths = batch.column("token_ids").value_lengths().to_numpy(zero_copy_only=False)
        marked = batch.column("marked").to_numpy(zero_copy_only=False)
        for place, weights in enumerate((np.ones(own.shape[0]), marked, lengths)):
            self.rows[:, place] += np.bincount(
                own, weights=weights, minlength=self.rows.shape[0]
            ).astype(np.int64)
        self.without_prompt += batch.column("prompt_token_ids").null_count
        return own


def _stream(
    reader: LogReader, keyring: Served, field: str, counts: _Counts
) -> Iterator[pa.RecordBatch]:
    """Rows of SIGHTS: what each record saw, and what it reached."""
    slot = keyring.schedule.names.index(GLOBAL)
    for batch in reader:
        own = counts.add(batch, field)
        rows, contexts = list_seen(batch, keyring)
        yield _sights(contexts, own[rows], reached=False)
        part = windows(_name_lineages(batch, own), keyring)
        part = part.filter(pc.equal(part.column("slot"), slot))
        numbers = np.unique(own)
        hashes = name_hashes(map(str, numbers.tolist()))
        order = np.argsort(hashes)
        places = np.searchsorted(hashes[order], part.column("lineage").to_numpy())
        yield _sights(part.column("context").to_numpy(), numbers[order][places], reached=True)


def _name_lineages(batch: pa.RecordBatch, numbers: NDArray[np.int64]) -> pa.RecordBatch:
    """The batch, each response in a conversation that is named by its group: so a window tells."""
    place = batch.schema.get_field_index("conversation_id")
    columns = [
        pa.array(numbers).cast(pa.string()) if i == place else column
        for i, column in enumerate(batch.columns)
    ]
    return pa.RecordBatch.from_arrays(columns, schema=batch.schema)


def _sights(
    contexts: NDArray[np.int64], groups: NDArray[np.int64], *, reached: bool
) -> pa.RecordBatch:
    columns = [contexts, groups.astype(np.uint32), np.full(contexts.shape[0], int(reached))]
    return pa.RecordBatch.from_arrays([pa.array(one) for one in columns], schema=SIGHTS)
