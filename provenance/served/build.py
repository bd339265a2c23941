"""Building an index from a served log, and merging indexes of disjoint logs.

    log -> windows -> parts of counts -> merged, sorted table -> manifest

A build replaces an index of the same keyring in one step (the manifest names the new table; readers
of the old one keep their open file), refuses a folder that holds the index of another keyring, and
leaves the folder as it was if anything fails. Same log, same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.keys.keyring import Keyring
from provenance.keys.tokenizer import load_tokenizer
from provenance.marks import Served
from provenance.served.control_sample import CONTROL_SHARE, control_words, thin_control
from provenance.served.counted_log import CountedLog, Sizes
from provenance.served.grouping import group_tables, group_windows
from provenance.served.index_manifest import (
    MANIFEST_FILE,
    IndexManifest,
    ServedSlot,
    ServedValue,
    keep_ends,
)
from provenance.served.log import LogReader, LogStatistics, read_log
from provenance.served.merging import add_tables
from provenance.served.packing import Packing
from provenance.served.room import estimate_spill
from provenance.served.table import Audit, Grouping, commit_table, read_table
from provenance.served.windows import label_numbers, windows
from provenance.storage.database import parse_memory
from provenance.storage.files import lock_folder


def build_index(
    logs: Sequence[Path | str],
    folder: Path | str,
    keyring: Served,
    tokenizer: Path | str | None = None,
    *,
    memory_limit: str = "512MiB",
    threads: int | None = None,
    batch_rows: int = 4096,
    spill: Path | None = None,
    control_share: float = CONTROL_SHARE,
) -> IndexManifest:
    """Index the marked windows of a served log.

    Parameters
    ----------
    logs : files of the log; every candidate that was generated, accepted or not, before any
        selection or filtering by quality (a filtered log accuses innocent models)
    folder : where the index goes; may hold an older index of the same keyring, which is replaced
    keyring : the keyring that the responses were served under
    tokenizer : tokenizer.json of the keyring; needed if some records hold text only
    memory_limit : for what is counted; the log is counted in parts that fit
    threads : default: the cores of the process
    batch_rows : responses per batch; changes nothing in the result
    spill : folder for parts, which need about 0.2 bytes a token; None: inside `folder`
    control_share : share of the contexts that are never marked which is kept, for one control of
        the check; see `provenance.served.control_sample`

    Returns
    -------
    The manifest, as written.

    Raises
    ------
    DataError for a malformed log, or one without a marked window; StorageError; LockedError if
    another build writes the same folder; ConfigurationMismatchError if the folder or the tokenizer
    belongs to another keyring; UsageError for the arguments.

    Notes
    -----
    Measured: docs/serving.md, `benchmarks/results/scale.json`.
    """
    folder, public = Path(folder), keyring.public
    memory = parse_memory(memory_limit)
    paths = [Path(path) for path in logs]
    opened = None if tokenizer is None else load_tokenizer(tokenizer, public)

    def open_log() -> LogReader:
        size = public.vocabulary_size
        return read_log(paths, tokenizer=opened, vocabulary_size=size, batch_rows=batch_rows)

    open_log()  # arguments are refused before a folder is made
    packing = Packing.of(public)
    if packing is None:
        return _build_with_database(
            open_log(), folder, keyring, control_share, (memory_limit, threads), spill
        )
    sizes = Sizes.of(memory, threads)
    log = CountedLog(open_log, keyring, packing, sizes, control_share, batch_rows)
    return write_index(
        folder,
        public,
        lambda place: log.count(place, lambda found, rows: check_log(found, rows, public)),
        lambda draft: complete_manifest(draft, log.statistics, log.without_value),
        control_words=control_words(control_share),
        spill=spill,
        need=estimate_spill(paths, sizes.part_rows),
    )


def _build_with_database(
    reader: LogReader,
    folder: Path,
    keyring: Served,
    control_share: float,
    limits: tuple[str, int | None],
    spill: Path | None,
) -> IndexManifest:
    """The same for a mark whose rows do not fit into 64 bits: DuckDB spills all windows."""
    without_value = np.zeros(len(keyring.schedule.slots), dtype=np.int64)
    stream = _windows_of(reader, keyring, without_value, control_share)
    return write_index(
        folder,
        keyring.public,
        lambda place: group_windows(stream, place / "database", *limits),
        lambda draft: complete_manifest(draft, reader.statistics, without_value),
        control_words=control_words(control_share),
        spill=spill,
    )


def merge_indexes(
    folders: Sequence[Path | str],
    out: Path | str,
    public: Keyring,
    *,
    memory_limit: str = "512MiB",
    threads: int | None = None,
    spill: Path | None = None,
) -> IndexManifest:
    """Add up indexes of disjoint logs of one keyring; equal to the index of all logs at once.

    If they keep different shares of the control contexts, the smallest is kept.

    Disjoint means: no response and no conversation in two of them. A log *file* that is in two of
    the indexes is refused (DataError); a response copied to another file cannot be seen here.

    Raises as `build_index`; UsageError if fewer than two folders are given.
    """
    if len(folders) < 2 or Path(out) in {Path(folder) for folder in folders}:
        raise UsageError("merge must have two or more indexes and another output folder.")
    manifests = []
    for folder in map(Path, folders):
        manifest = IndexManifest.load(folder)
        manifest.check_keyring(public, str(folder))
        audit = Audit([len(slot.values) for slot in manifest.slots], str(folder / manifest.table))
        read_table(folder / manifest.table, audit)
        if audit.content_sha256 != manifest.content_sha256:
            raise DataError(f"{folder / manifest.table}: must match its manifest. Build it again.")
        manifests.append(manifest)
    hashes = [log.sha256 for manifest in manifests for log in manifest.logs]
    if len(set(hashes)) != len(hashes):
        raise DataError(
            f"{out}: the indexes must be of disjoint logs; one log file is in two of them. "
            "Build one index from all log files."
        )
    tables = [
        Path(folder) / manifest.table for folder, manifest in zip(folders, manifests, strict=True)
    ]
    packing = Packing.of(public)
    words = min(manifest.control_words for manifest in manifests)

    @contextmanager
    def group(place: Path) -> Iterator[Iterable[pa.RecordBatch]]:
        adding = (
            group_tables(_rows_of(tables), place / "database", memory_limit, threads)
            if packing is None
            else add_tables(tables, packing)
        )
        with adding as batches:
            yield map(partial(thin_control, words=words), batches)

    return write_index(
        Path(out),
        public,
        group,
        lambda draft: _add_up(draft, manifests),
        control_words=words,
        spill=spill,
    )


def _windows_of(
    reader: LogReader, keyring: Served, without_value: NDArray[np.int64], control_share: float
) -> Iterator[pa.RecordBatch]:
    """Windows of every batch; counts marked responses without a value, per slot."""
    rows = 0
    for batch in reader:
        marked = batch.filter(batch.column("marked"))
        numbers = label_numbers(marked.column("labels"), keyring.schedule)
        without_value += (numbers < 0).sum(axis=1)
        for piece in windows(batch, keyring, control_share).to_batches():
            rows += piece.num_rows
            yield piece
    check_log(reader.statistics, rows, keyring.public)


def check_log(found: LogStatistics, rows: int, public: Keyring) -> None:
    """Raise DataError unless a log that was read has windows, and no conflicts."""
    refuse_conflicts(found)
    if not rows:
        raise DataError(
            f"{', '.join(log.name for log in found.files[:3])}: must hold marked responses longer "
            f"than {public.context_width} tokens; got {found.responses} responses, "
            f"{found.marked} of them marked, with {found.marked_tokens} tokens, none of them after "
            "a context of a key, or of the sample of the others. "
            'Set "marked": true on what was served with the mark, and index the whole log.'
        )


def refuse_conflicts(found: LogStatistics) -> None:
    """Raise DataError if an id names two responses: one of them would be lost."""
    if found.conflicts:
        shown = ", ".join(map(repr, dict.fromkeys(found.conflict_ids)))
        raise DataError(
            f"{', '.join(log.name for log in found.files[:3])}: a response_id must name one "
            f"response; {found.conflicts} records repeat one with other token ids (or another "
            f"text), for example {shown}. Give every response, every choice of a request too, an "
            "id of its own that no client can choose."
        )


def _rows_of(tables: Sequence[Path]) -> Iterator[pa.RecordBatch]:
    for path in tables:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            yield from file.iter_batches(1 << 17)


def write_index(
    folder: Path,
    public: Keyring,
    group: Grouping,
    finish: Callable[[IndexManifest], IndexManifest],
    *,
    control_words: int,
    spill: Path | None = None,
    need: int = 0,
) -> IndexManifest:
    """Write the table, then the manifest, under the folder's lock; see the module's docstring."""
    with lock_folder(folder):
        if (folder / MANIFEST_FILE).exists():
            try:
                IndexManifest.load(folder).check_keyring(public, str(folder))
            except ConfigurationMismatchError as error:
                raise ConfigurationMismatchError(
                    f"{folder}: must not hold the index of another keyring; it does. "
                    "Choose another folder."
                ) from error
        return commit_table(
            folder,
            "windows",
            [len(slot.values) for slot in public.schedule.slots],
            group,
            lambda audit, name, sha256: finish(_draft(public, audit, name, sha256, control_words)),
            spill=spill,
            need=need,
        )


def _draft(
    public: Keyring, audit: Audit, table: str, table_sha256: str, control_words: int
) -> IndexManifest:
    """The manifest but for what only the log knows."""
    slots = tuple(
        ServedSlot(
            slot.name,
            slot.share_words,
            tuple(
                ServedValue(name, int(audit.contexts[i][j]), int(audit.responses[i][j]))
                for j, name in enumerate(slot.values)
            ),
            without_value=0,
        )
        for i, slot in enumerate(public.schedule.slots)
    )
    return IndexManifest(
        keyring_id=public.id,
        scheme=public.scheme.to_json(),
        context_width=public.context_width,
        tokenizer_sha256=public.tokenizer_sha256,
        vocabulary_size=public.vocabulary_size,
        slots=slots,
        responses=0,
        marked_responses=0,
        duplicates=0,
        empty=0,
        retokenised=0,
        tokens=0,
        marked_tokens=0,
        logs=(),
        rows=audit.rows,
        content_sha256=audit.content_sha256,
        table=table,
        table_sha256=table_sha256,
        control_words=control_words,
        seal=audit.seal,
    )


def complete_manifest(
    draft: IndexManifest, found: LogStatistics, without_value: NDArray[np.int64]
) -> IndexManifest:
    """The manifest with what is known once the log was read; without_value int64 [slots]."""
    return replace(
        draft,
        responses=found.responses,
        marked_responses=found.marked,
        duplicates=found.duplicates,
        duplicate_ids=found.duplicate_ids,
        empty=found.empty,
        retokenised=found.retokenised,
        marked_retokenised=found.marked_retokenised,
        unended=found.unended,
        ends=keep_ends(found.ends),
        tokens=found.tokens,
        marked_tokens=found.marked_tokens,
        logs=found.files,
        slots=tuple(
            replace(slot, without_value=int(count))
            for slot, count in zip(draft.slots, without_value, strict=True)
        ),
    )


def _add_up(draft: IndexManifest, manifests: Sequence[IndexManifest]) -> IndexManifest:
    return replace(
        draft,
        responses=sum(m.responses for m in manifests),
        marked_responses=sum(m.marked_responses for m in manifests),
        duplicates=sum(m.duplicates for m in manifests),
        duplicate_ids=tuple(name for m in manifests for name in m.duplicate_ids)[:5],
        empty=sum(m.empty for m in manifests),
        retokenised=sum(m.retokenised for m in manifests),
        marked_retokenised=sum(m.marked_retokenised for m in manifests),
        unended=sum(m.unended for m in manifests),
        ends=keep_ends(sum((Counter(_ends_of(m)) for m in manifests), Counter())),
        tokens=sum(m.tokens for m in manifests),
        marked_tokens=sum(m.marked_tokens for m in manifests),
        logs=tuple(log for m in manifests for log in m.logs),
        slots=tuple(
            replace(slot, without_value=sum(m.slots[i].without_value for m in manifests))
            for i, slot in enumerate(draft.slots)
        ),
    )


def _ends_of(manifest: IndexManifest) -> dict[int, int]:
    return {int(token): count for token, count in manifest.ends.items()}
