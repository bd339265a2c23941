"""Reading served logs: files in, checked Arrow record batches out, one row per response.

A response counts once: the first record of a `response_id` wins, in the order of the files, and
later ones are counted and dropped. A later one with other ids or another text is no copy: it is
another response under a name that was given twice, and is counted as a conflict. Everything is
streamed. Knows the formats of the log and, where a record holds only text, a tokenizer; knows no
keys, and not which windows are marked.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.coins.contexts import MAXIMUM_VOCABULARY, check_token_ids
from provenance.errors import DataError, LockedError, StorageError, UsageError
from provenance.keys.tokenizer import prepare_tokenizer, tokenise
from provenance.served.identifiers import SeenNames, content_hashes, name_hashes
from provenance.served.json_lines import LOG_READERS, JsonLinesFile
from provenance.served.parquet_log import ParquetFile
from provenance.served.records import (
    READ,
    SCHEMA,
    WHOLE_FINISHES,
    RawBatch,
    list_array,
)
from provenance.served.rotation import LOG_ENDINGS, list_log_files
from provenance.served.writer import PART, is_being_written
from provenance.storage.files import plain_name
from provenance.storage.plugins import find_plugin

SHOWN_DUPLICATES = 5
_MAXIMUM_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class LogFile:
    """One file of a log: base name, hex SHA-256 of its bytes, number of records."""

    name: str
    sha256: str
    records: int


@dataclass
class LogStatistics:
    """What a reader has counted so far; it counts in one, and hands out copies.

    responses, marked : distinct responses, and those with a mark
    duplicates : records dropped because their response_id had been read before
    duplicate_ids : the first few of them
    conflicts, conflict_ids : those of the duplicates whose token ids (or text) are other ones: a
        response that is lost, perhaps because a client chose the id
    empty : responses without a single token (also counted as marked or unmarked)
    retokenised : responses whose ids come from their text
    marked_retokenised : marked ones of these
    unended : marked responses with ids that may lack the token that ended them: the record says
        neither which tokens were drawn nor that it was cut by its length
    ends : how often each token ended a marked response whose record says that an end token did
    tokens, marked_tokens : token ids of responses, without prompts
    torn : unfinished last lines of killed writers, left out
    files : files read to the end
    """

    responses: int = 0
    marked: int = 0
    duplicates: int = 0
    duplicate_ids: tuple[str, ...] = ()
    conflicts: int = 0
    conflict_ids: tuple[str, ...] = ()
    empty: int = 0
    retokenised: int = 0
    marked_retokenised: int = 0
    unended: int = 0
    ends: Counter[int] = field(default_factory=Counter)
    tokens: int = 0
    marked_tokens: int = 0
    torn: int = 0
    files: tuple[LogFile, ...] = ()

    @property
    def unmarked(self) -> int:
        """Distinct responses without a mark."""
        return self.responses - self.marked


class LogReader(Iterator[pa.RecordBatch]):
    """Iterator over the record batches (READ) of a log, see `read_log`."""

    def __init__(
        self,
        paths: Sequence[Path],
        tokenizer: Tokenizer | None,
        vocabulary_size: int,
        batch_rows: int,
    ) -> None:
        if not paths:
            raise UsageError("a log must have at least one file; got none. Name the files.")
        if not 1 <= batch_rows <= _MAXIMUM_BATCH_ROWS:
            raise UsageError(f"batch_rows must be 1 .. {_MAXIMUM_BATCH_ROWS}; got {batch_rows}.")
        if not 1 <= vocabulary_size <= MAXIMUM_VOCABULARY:
            raise UsageError(
                f"vocabulary size must be 1 .. {MAXIMUM_VOCABULARY}; got {vocabulary_size}."
            )
        self._tokenizer = None if tokenizer is None else prepare_tokenizer(tokenizer)
        self._vocabulary_size = vocabulary_size
        self._seen = SeenNames()
        self._counts = LogStatistics()
        named = list_log_files(paths)
        files = [self._open_file(path, vocabulary_size, batch_rows) for path in named]
        self._batches = self._read(files)

    def __next__(self) -> pa.RecordBatch:
        return next(self._batches)

    @property
    def statistics(self) -> LogStatistics:
        """Counts over what was read so far; complete when the iterator is exhausted."""
        return replace(self._counts, ends=Counter(self._counts.ends))

    def _open_file(
        self, path: Path, vocabulary_size: int, batch_rows: int
    ) -> JsonLinesFile | ParquetFile:
        return open_log_file(path, vocabulary_size, batch_rows)

    def _read(self, files: Sequence[JsonLinesFile | ParquetFile]) -> Iterator[pa.RecordBatch]:
        for file in files:
            records = 0
            for raw in file:
                records += raw.batch.num_rows
                batch = self._finish(raw)
                if batch.num_rows:
                    yield batch
            if isinstance(file, JsonLinesFile):
                self._counts.torn += file.torn
            if not records:
                refuse_empty(file.path)
            self._counts.files += (LogFile(plain_name(file.path.name), file.sha256, records),)

    def _finish(self, raw: RawBatch) -> pa.RecordBatch:
        """Drop duplicates, tokenise text, count."""
        rows, counts = self._select_new(raw), self._counts
        complete = rows.size == raw.batch.num_rows
        batch = raw.batch if complete else raw.batch.take(pa.array(rows))
        retokenised = batch.column("token_ids").is_null()
        ids = self._token_ids(batch, rows, raw)
        lengths = ids.value_lengths().to_numpy(zero_copy_only=False)
        marked = batch.column("marked").to_numpy(zero_copy_only=False)
        whole = _are_whole(batch, retokenised)
        self._count_ends(batch, ids, retokenised, whole)
        counts.responses += batch.num_rows
        counts.marked += int(marked.sum())
        counts.empty += int((lengths == 0).sum())
        counts.tokens += int(lengths.sum(dtype=np.int64))
        counts.marked_tokens += int(lengths[marked].sum(dtype=np.int64))
        columns = [
            ids if name == "token_ids" else batch.column(name).cast(SCHEMA.field(name).type)
            for name in SCHEMA.names
        ]
        return pa.RecordBatch.from_arrays([*columns, whole], schema=READ)

    def _select_new(self, raw: RawBatch) -> NDArray[np.int64]:
        """Rows of the records that are no duplicates; counts the others."""
        names = raw.batch.column("response_id").to_pylist()
        new, conflicting = self._seen.add(names, hash_contents(raw.batch))
        counts = self._counts
        dropped, conflicts = np.flatnonzero(~new), np.flatnonzero(conflicting)
        counts.duplicates += dropped.shape[0]
        counts.conflicts += conflicts.shape[0]
        counts.duplicate_ids = _show_more(counts.duplicate_ids, names, dropped)
        counts.conflict_ids = _show_more(counts.conflict_ids, names, conflicts)
        return np.flatnonzero(new)

    def _count_ends(
        self, batch: pa.RecordBatch, ids: pa.Array, retokenised: pa.Array, whole: pa.Array
    ) -> None:
        """What is known of how the marked responses of a batch ended."""
        counts, marked = self._counts, batch.column("marked")
        counts.marked_retokenised += pc.and_(marked, retokenised).true_count
        counts.unended += pc.and_(marked, pc.invert(pc.or_(whole, retokenised))).true_count
        ended = pc.equal(batch.column("finish").cast(pa.string()), "end")
        ended = pc.and_(pc.and_(marked, pc.fill_null(ended, False)), pc.invert(retokenised))
        own = ids.filter(pc.and_(ended, pc.greater(pc.list_value_length(ids), 0)))
        counts.ends.update(_last_ids(own).tolist())

    def _token_ids(self, batch: pa.RecordBatch, rows: NDArray[np.int64], raw: RawBatch) -> pa.Array:
        """The token_ids column without nulls: missing ids come from the text."""
        ids = batch.column("token_ids")
        missing = np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))
        if not missing.size:
            return ids
        first = raw.origin(int(rows[missing[0]]))
        if self._tokenizer is None:
            raise DataError(
                f"{first}: must hold token_ids, or a tokenizer must be given for its text; got "
                "text only. Pass the served model's tokenizer.json."
            )
        texts = batch.column("text").take(pa.array(missing)).to_pylist()
        parts: list[NDArray[np.uint32] | None] = [
            check_token_ids(part, self._vocabulary_size, raw.origin(int(rows[row])))
            for row, part in zip(missing, tokenise(self._tokenizer, texts, first), strict=True)
        ]
        self._counts.retokenised += len(parts)
        # All known ids, then all tokenised ones, then the order of the rows.
        places = np.arange(len(ids), dtype=np.int64)
        places[missing] = len(ids) + np.arange(len(parts))
        return pa.concat_arrays([ids, list_array(parts)]).take(pa.array(places))


def _show_more(
    shown: tuple[str, ...], names: Sequence[str], rows: NDArray[np.int64]
) -> tuple[str, ...]:
    """The names that are shown, and those of these rows as long as there are few."""
    return (*shown, *(names[i] for i in rows[: SHOWN_DUPLICATES - len(shown)]))


def read_log(
    paths: Sequence[Path],
    *,
    tokenizer: Tokenizer | None,
    vocabulary_size: int,
    batch_rows: int = 4096,
) -> LogReader:
    """Read a served log.

    Parameters
    ----------
    paths : files in order, each .jsonl, .jsonl.gz, .jsonl.zst, .parquet, or the .part that a killed
        writer left; a folder stands for its files, see `list_log_files`
    tokenizer : used where a record holds text and no token_ids; it must be the keyring's
    vocabulary_size : every token id must be below it
    batch_rows : at most so many responses per batch; a batch also ends at about 2**20 token ids

    Returns
    -------
    LogReader: an iterator of pa.RecordBatch with READ; `.statistics` holds the counts.

    Raises
    ------
    UsageError for the arguments. While iterating: DataError that names file and line (or row),
    StorageError for a file that cannot be read.

    Notes
    -----
    Memory: one batch, and 16 bytes per response for the check of duplicates (a hash; see
    `provenance.served.identifiers`). Cost: see `JsonLinesFile` and `ParquetFile`.
    """
    return LogReader(paths, tokenizer, vocabulary_size, batch_rows)


def hash_contents(batch: pa.RecordBatch) -> NDArray[np.int64]:
    """64-bit hash of the ids of each record, or of its text where it has no ids: int64 [n]."""
    ids = batch.column("token_ids")
    lengths = pc.fill_null(pc.list_value_length(ids), 0).to_numpy(zero_copy_only=False)
    values = ids.flatten().to_numpy(zero_copy_only=False).astype(np.uint32, copy=False)
    found = content_hashes(values, lengths.astype(np.int64))
    missing = np.flatnonzero(ids.is_null().to_numpy(zero_copy_only=False))
    if missing.size:
        found[missing] = name_hashes(batch.column("text").take(pa.array(missing)).to_pylist())
    return found


def _are_whole(batch: pa.RecordBatch, retokenised: pa.Array) -> pa.Array:
    """The column `whole` of READ: bool [n]."""
    finish = batch.column("finish").cast(pa.string())
    ended = pc.is_in(finish, value_set=pa.array(WHOLE_FINISHES, pa.string()))
    stated = pc.or_(pc.is_valid(batch.column("drawn")), ended)
    return pc.and_(stated, pc.invert(retokenised))


def _last_ids(lists: pa.Array) -> NDArray[np.uint32]:
    """The last id of each list; none is empty."""
    lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
    return np.asarray(lists.flatten().to_numpy(zero_copy_only=False)[np.cumsum(lengths) - 1])


def refuse_empty(path: Path) -> NoReturn:
    """Raise the DataError of a file without a record."""
    raise DataError(f"{path}: must hold at least one record; it is empty. Leave it out.")


def open_log_file(path: Path, vocabulary_size: int, batch_rows: int) -> JsonLinesFile | ParquetFile:
    """The reader that the ending of a file's name asks for."""
    if path.exists() and not path.is_file():
        raise StorageError(f"{path}: must be a regular file; it is not. Name the files of the log.")
    known = path.name.endswith(LOG_ENDINGS)
    if not known and find_plugin(LOG_READERS, path.suffix.removeprefix(".")) is None:
        raise DataError(
            f"{path}: must end in {', '.join(LOG_ENDINGS)}; it does not. Rename the file."
        )
    if path.suffix == ".parquet":
        return ParquetFile(path, vocabulary_size, batch_rows)
    if path.suffix == PART and path.exists() and is_being_written(path):
        raise LockedError(f"{path}: must not be read while it is written. Wait until it is closed.")
    return JsonLinesFile(path, vocabulary_size, batch_rows)
