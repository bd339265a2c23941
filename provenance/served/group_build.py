"""Building a group of responses: what they reached, and what they and everybody else *saw*.

    log -> windows of the group, and contexts anywhere in a record -> counts -> table -> manifest

One pass over the whole log, since what is exclusive to a group is decided by the records outside of
it. A context counts as seen wherever it stands: at any place of a response, marked or not, of its
prompt, and across the border of the two. The table holds contexts of the slot `global` only, in the
form of an index's, with three values: in how many responses (conversations) of the group the
context was reached, in how many records of the group it was seen, and in how many others.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from provenance.coins.window_sets import find_window_sets
from provenance.errors import DataError, UsageError
from provenance.keys.schedule import GLOBAL
from provenance.keys.tokenizer import load_tokenizer
from provenance.marks import Served
from provenance.served.build import refuse_conflicts
from provenance.served.group_manifest import GROUP_FILE, GroupManifest
from provenance.served.grouping import group_windows
from provenance.served.log import LogFile, LogReader, read_log
from provenance.served.membership import check_field, hash_values, values_of
from provenance.served.table import TABLE, commit_table
from provenance.served.windows import WINDOWS, list_ids, windows
from provenance.storage.database import check_memory_limit
from provenance.storage.files import lock_folder

REACHED: Final = 0
"""Value of the table: responses (conversations) of the group that reached the context."""
SEEN: Final = 1
"""Records of the group in which the context stands anywhere."""
SEEN_BY_OTHERS: Final = 2
"""Records outside of the group in which it stands anywhere."""
VALUES: Final = 3


@dataclass
class _Counts:
    """Filled in while the log is read, and while the table is written."""

    responses: int = 0
    marked: int = 0
    tokens: int = 0
    others: int = 0
    without_prompt: int = 0
    others_without_prompt: int = 0
    reached: int = 0
    shared: int = 0
    met: set[str] = field(default_factory=set)


def build_group(
    logs: Sequence[Path],
    folder: Path,
    keyring: Served,
    only: Sequence[str],
    field: str = "response_id",
    tokenizer: Path | None = None,
    *,
    memory_limit: str = "512MiB",
    threads: int | None = None,
    batch_rows: int = 4096,
    spill: Path | None = None,
) -> GroupManifest:
    """Count what the responses of a group reached, and what they and the others saw.

    Parameters
    ----------
    logs : all files of the log, complete: what is missing of the *others* makes contexts look
        exclusive that are not
    folder : where the group goes; may hold an older group of the same mark, which is replaced
    keyring : the keyring that the responses were served under
    only, field : values of a label, or of `response_id`, `conversation_id` or `time`; a response
        belongs to the group if its value is one of them. Choose by metadata, never by looking at
        texts, lengths or the outputs of a suspect
    tokenizer, memory_limit, threads, batch_rows, spill : as of `build_index`

    Returns
    -------
    The manifest, as written.

    Raises
    ------
    As `build_index`; UsageError for fields that were not known before the draw; DataError if the
    group has no response, or everybody else has none.
    """
    public, chosen = keyring.public, tuple(dict.fromkeys(only))
    check_memory_limit(memory_limit)
    check_field(field)
    reader = read_log(
        list(logs),
        tokenizer=None if tokenizer is None else load_tokenizer(tokenizer, public),
        vocabulary_size=public.vocabulary_size,
        batch_rows=batch_rows,
    )
    counts = _Counts()
    stream = _stream(reader, keyring, chosen, field, counts)

    @contextmanager
    def group(place: Path) -> Iterator[Iterable[pa.RecordBatch]]:
        with group_windows(stream, place / "database", memory_limit, threads) as batches:
            yield _keep_seen(batches, counts)

    with lock_folder(folder):
        _refuse_another(folder, public.id)
        return commit_table(
            folder,
            "group",
            [0, VALUES],
            group,
            lambda audit, name, sha256: replace(
                _describe(counts, public.id, field, chosen, reader.statistics.files),
                rows=audit.rows,
                content_sha256=audit.content_sha256,
                table=name,
                table_sha256=sha256,
            ),
            spill=spill,
        )


def _describe(
    counts: _Counts, keyring_id: str, field: str, only: Sequence[str], logs: tuple[LogFile, ...]
) -> GroupManifest:
    """The manifest but for its table."""
    return GroupManifest(
        keyring_id=keyring_id,
        field=field,
        list_sha256=hash_values(only),
        values=len(only),
        values_met=len(counts.met),
        responses=counts.responses,
        marked_responses=counts.marked,
        tokens=counts.tokens,
        others=counts.others,
        without_prompt=counts.without_prompt,
        others_without_prompt=counts.others_without_prompt,
        reached=counts.reached,
        exclusive=counts.reached - counts.shared,
        logs=logs,
        rows=0,
        content_sha256="",
        table="",
        table_sha256="",
    )


def list_seen(
    batch: pa.RecordBatch, keyring: Served
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Contexts of the slot `global` that stand anywhere in a record, each once a record.

    Returns int64 [m] rows of the batch and int64 [m] packed contexts. Cost: a few passes over the
    tokens of prompts and responses, and one coin of the selector per distinct context.
    """
    ids, lengths = _join(batch.column("prompt_token_ids"), batch.column("token_ids"))
    sets = find_window_sets(ids, lengths, keyring.context_width, followed=False)
    kept = keyring.slots_of_names(sets.names) == keyring.schedule.names.index(GLOBAL)
    return sets.rows[kept], sets.names[kept]


def _join(prompts: pa.Array, answers: pa.Array) -> tuple[NDArray[np.uint32], NDArray[np.int64]]:
    """Ids of each prompt and its response as one list: uint32 [n]; and int64 [rows], how many."""
    parts = [list_ids(column) for column in (prompts, answers)]
    lengths = parts[0][1] + parts[1][1]
    begins = np.cumsum(lengths) - lengths
    joined = np.empty(int(lengths.sum()), dtype=np.uint32)
    for (ids, sizes), start in zip(parts, (begins, begins + parts[0][1]), strict=True):
        joined[np.arange(ids.shape[0]) + np.repeat(start - (np.cumsum(sizes) - sizes), sizes)] = ids
    return joined, lengths


def _stream(
    reader: LogReader, keyring: Served, only: Sequence[str], field: str, counts: _Counts
) -> Iterator[pa.RecordBatch]:
    """Rows of WINDOWS in which `value` says what is counted; see the module's docstring."""
    slot = keyring.schedule.names.index(GLOBAL)
    wanted = pa.array(only, pa.string())
    for batch in reader:
        values = values_of(batch, field)
        own = pc.is_in(values, value_set=wanted)
        mine = batch.filter(own)
        counts.met.update(pc.unique(values.filter(own)).to_pylist())
        counts.responses += mine.num_rows
        counts.marked += mine.column("marked").true_count
        counts.tokens += len(mine.column("token_ids").flatten())
        counts.others += batch.num_rows - mine.num_rows
        unknown = mine.column("prompt_token_ids").null_count
        counts.without_prompt += unknown
        counts.others_without_prompt += batch.column("prompt_token_ids").null_count - unknown
        reached = windows(mine, keyring)
        yield from reached.filter(pc.equal(reached.column("slot"), slot)).to_batches()
        rows, contexts = list_seen(batch, keyring)
        yield pa.RecordBatch.from_arrays(
            [
                pa.array(np.full(rows.shape[0], slot, dtype=np.uint8)),
                pa.array(
                    np.where(own.to_numpy(zero_copy_only=False)[rows], SEEN, SEEN_BY_OTHERS),
                    pa.uint32(),
                ),
                pa.array(contexts),
                pa.nulls(rows.shape[0], pa.int64()),
            ],
            schema=WINDOWS,
        )
    refuse_conflicts(reader.statistics)
    if not (counts.marked and counts.others):
        names = ", ".join(log.name for log in reader.statistics.files[:3])
        raise DataError(
            f"{names}: must hold marked responses of the group and responses of others; of "
            f"{reader.statistics.responses:,} responses {counts.responses:,} have a {field} of the "
            f"{len(only):,} that are listed, {counts.marked:,} of them marked. Check the list "
            "and --field."
        )


def _keep_seen(batches: Iterable[pa.RecordBatch], counts: _Counts) -> Iterator[pa.RecordBatch]:
    """Leave out what only the others saw; count contexts that were reached, and those shared.

    The rows of a context stand together, by value: of those that only others saw there is one.
    """
    before = (np.full(2, -1, dtype=np.int64), np.zeros(2, dtype=np.int64))
    for batch in batches:
        context = np.concatenate([before[0], batch.column("context").to_numpy()])
        value = np.concatenate([before[1], batch.column("value").to_numpy().astype(np.int64)])
        others = value[2:] == SEEN_BY_OTHERS
        known = (context[2:] == context[1:-1]) & (value[1:-1] == SEEN)
        shared = known & others & (context[2:] == context[:-2]) & (value[:-2] == REACHED)
        counts.reached += int((value[2:] == REACHED).sum())
        counts.shared += int(shared.sum())
        before = context[-2:], value[-2:]
        kept = batch.filter(pa.array(~others | known))
        if kept.num_rows:
            yield pa.RecordBatch.from_arrays(kept.columns, schema=TABLE)


def _refuse_another(folder: Path, keyring_id: str) -> None:
    """Raise UsageError if the folder holds the group of another mark."""
    if (folder / GROUP_FILE).exists() and GroupManifest.load(folder).keyring_id != keyring_id:
        raise UsageError(
            f"{folder}: must not hold the group of another keyring; it does. Choose another folder."
        )
