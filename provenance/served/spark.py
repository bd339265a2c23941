"""An index counted by Spark: the same `windows` on many machines, and the same table.

    parts of the log -> survey: faults, digests, duplicates
                     -> count: windows -> one shuffle by range of the table -> sums, sorted
                     -> files of ranges -> the driver's one table and manifest

Executors get the plan (no secret) and the slots (the selector's key, in the function that they
run); nothing else of a keyring. Knows Spark; what runs there is `provenance.served.spread`.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.errors import DataError, MissingExtraError, StorageError, UsageError, say_briefly
from provenance.keys.tokenizer import load_tokenizer
from provenance.marks import Served
from provenance.marks.slots import export_slots
from provenance.served.build import check_log, complete_manifest, refuse_conflicts, write_index
from provenance.served.control_sample import CONTROL_SHARE, control_words
from provenance.served.excerpt import Matching, list_groups_of
from provenance.served.index_manifest import IndexManifest
from provenance.served.log import SHOWN_DUPLICATES, LogFile, LogStatistics
from provenance.served.log_parts import list_parts, read_names
from provenance.served.seal import Seal
from provenance.served.spread import (
    AMOUNTS,
    COUNTED,
    FAULT,
    FILE,
    MATCHED,
    RECORD,
    SAMPLE,
    SURVEY,
    Plan,
    Ranges,
    count,
    match_part,
    raise_fault,
    read_amounts,
    survey,
)
from provenance.served.table import TABLE
from provenance.storage.files import plain_name

try:
    from py4j.protocol import Py4JError
    from pyspark.errors import PySparkException
    from pyspark.sql import Observation, SparkSession, Window
    from pyspark.sql import functions as F  # noqa: N812  # as everybody calls it
except ImportError as error:
    raise MissingExtraError(
        "counting an index with Spark must have pyspark; it is not installed.", "spark"
    ) from error

_RANGES_OF_PARTITION: Final = 4
_LEAST_RANGE: Final = 1 << 22
"""A range is of at least so many bytes of the log, and there are so many for each partition."""
_STAGE: Final = "spark"
_Part = Callable[[Plan, int, Served], Iterator[pa.RecordBatch]]
_Result = TypeVar("_Result")


def build_index_with_spark(
    logs: Sequence[Path | str],
    folder: Path | str,
    keyring: Served,
    tokenizer: Path | str | None = None,
    *,
    master: str | None = None,
    batch_rows: int = 4096,
    spill: Path | None = None,
    control_share: float = CONTROL_SHARE,
) -> IndexManifest:
    """`provenance.served.build.build_index` by a Spark cluster: the same rows and manifest.

    Parameters
    ----------
    logs, folder, keyring, tokenizer, batch_rows, control_share : as there. Logs are paths, or
        `file://`; they must be mounted alike on every machine
    master : URL of the cluster; None: that of the session that runs, or of spark-submit

    spill : where executors write their parts of the table, mounted alike on every machine; None:
        inside `folder`, which must be so then

    Raises
    ------
    As `build_index`; MissingExtraError without pyspark; StorageError if the cluster fails.

    Notes
    -----
    The log is read twice: first for faults and duplicates. See docs/spark.md for what a cluster
    needs and what it costs.
    """
    folder, public = Path(folder), keyring.public
    paths = [_local(path) for path in logs]
    content = None
    if tokenizer is not None:
        load_tokenizer(tokenizer, public)  # refuses another one here, and not on every machine
        content = public.read_tokenizer(tokenizer)
    words, slots = control_words(control_share), export_slots(keyring)
    plan = Plan(tuple(list_parts(paths)), batch_rows, control_share, content)
    if not plan.parts:
        raise UsageError("a log must have at least one file; got none. Name the files.")
    with _open_session(master) as session:
        job = _Job(session, plan, slots)
        return write_index(
            folder,
            public,
            job.count,
            lambda draft: complete_manifest(draft, job.statistics, job.without_value),
            control_words=words,
            spill=None if spill is None else spill.resolve(),
        )


def match_with_spark(master: str | None) -> Matching:
    """What finds the rows of an excerpt on a cluster, for `provenance.served.excerpt.match_index`.

    The folder of the index must be mounted alike on every machine; each reads row groups of the
    table, and verifies them. Raises as `build_index_with_spark`.
    """

    def find(path: Path, seal: Seal, contexts: NDArray[np.int64]) -> pa.Table:
        parts = list_groups_of(seal, contexts)
        if not parts:
            return TABLE.empty_table()
        with _open_session(master) as session:
            shared = session.sparkContext.broadcast((path.resolve(), seal, parts, contexts))

            def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
                for batch in batches:
                    for number in batch.column("id").to_pylist():
                        place, own, groups, wanted = shared.value
                        yield from match_part(place, own, groups[number], wanted)

            numbers = session.range(0, len(parts), numPartitions=len(parts))
            found = _run(numbers.mapInArrow(run, _types_of(MATCHED)).toArrow)
        for note in found.column("note").drop_null().to_pylist():
            raise_fault(note)
        order = [(name, "ascending") for name in ("slot", "context", "value")]
        return found.select(TABLE.names).cast(TABLE).sort_by(order)

    return find


def _local(path: Path | str) -> Path:
    """A path, or the path of a `file:` URL, absolute. Raises UsageError for another URL."""
    scheme, colon, rest = str(path).partition(":")
    if colon and scheme == "file":
        return Path("/" + rest.lstrip("/"))
    if colon and "/" not in scheme and rest.startswith("/"):
        raise UsageError(
            f"a log must be a path or a file:// URL; got {scheme}:{rest[:60]}. Mount it on every "
            "machine and name the path."
        )
    return Path(path).resolve()


@contextmanager
def _open_session(master: str | None) -> Iterator[Any]:
    """The session that runs, or one of our own, stopped at the end."""
    running = SparkSession.getActiveSession()
    if running is not None:
        if master not in (None, running.sparkContext.master):
            raise UsageError(
                f"master must be that of the session that runs, {running.sparkContext.master}; got "
                f"{master}. Stop the session, or leave the master out."
            )
        yield running
        return
    if (master or "local").startswith("local"):
        os.environ.setdefault("PYSPARK_PYTHON", sys.executable)
    builder = SparkSession.builder.appName("provenance index")
    builder = builder.config("spark.ui.showConsoleProgress", "false")
    session = _run(lambda: (builder if master is None else builder.master(master)).getOrCreate())
    try:
        session.sparkContext.setLogLevel("OFF")  # what fails is raised, in one line
        yield session
    finally:
        session.stop()


def _run(action: Callable[[], _Result]) -> _Result:
    """Turn what Spark raises into one line."""
    try:
        return action()
    except (PySparkException, Py4JError, RuntimeError) as error:
        raise StorageError(
            f"Spark must finish its work; got: {_explain(error)}. Look at the executors' logs, see "
            "docs/spark.md."
        ) from error


def _explain(error: BaseException) -> str:
    """The line of a failure of Spark that says most."""
    java = getattr(error, "java_exception", None)
    lines = str(java.getMessage() if java is not None else error).splitlines()
    named = [line for line in lines if "Error: " in line or "Exception: " in line]
    return say_briefly(RuntimeError((named or lines or [type(error).__name__])[-1].strip()))


@dataclass
class _Job:
    """One build: what is known of the log grows as it runs."""

    session: Any
    plan: Plan
    slots: Served

    def __post_init__(self) -> None:
        self.statistics = LogStatistics()
        self.without_value: NDArray[np.int64] = np.empty(0, dtype=np.int64)

    @contextmanager
    def count(self, place: Path) -> Iterator[Iterable[pa.RecordBatch]]:
        """The sorted rows of the table; the cluster leaves them below `place` first."""
        stage = place.resolve() / _STAGE
        shutil.rmtree(stage, ignore_errors=True)  # a killed run may have left it
        self._survey()
        yield self._count(stage)

    def _survey(self) -> None:
        """Faults, digests of the files, duplicates and their conflicts."""
        same = Window.partitionBy("kind", "name").orderBy("place")
        found = (
            self._map(survey, SURVEY)
            .withColumn("turn", F.row_number().over(same))
            .withColumn("known", F.first("content").over(same))
            .where((F.col("kind") != RECORD) | (F.col("turn") > 1))
            .withColumn("other", F.col("content") != F.col("known"))
            .select("kind", "place", "name", "note", "other")
        )
        table = _run(found.toArrow)
        kinds = {kind: table.filter(pc.equal(table.column("kind"), kind)) for kind in range(4)}
        if kinds[FAULT].num_rows:
            first = pc.sort_indices(kinds[FAULT], [("place", "ascending")])[0].as_py()
            raise_fault(kinds[FAULT].column("note")[first].as_py())
        self.statistics.files = self._list_files(kinds[FILE])
        self._note_duplicates(kinds[RECORD].sort_by("place"))
        refuse_conflicts(self.statistics)
        partitions = int(self.session.conf.get("spark.sql.shuffle.partitions"))
        size = sum(part.stamp[1] for part in self.plan.parts if part.is_first and part.stamp)
        wanted = min(_RANGES_OF_PARTITION * partitions, 1 + size // _LEAST_RANGE)
        slots = len(self.slots.schedule.slots)
        ranges = Ranges.of_sample(slots, kinds[SAMPLE], wanted)
        self.plan = replace(self.plan, ranges=ranges)

    def _list_files(self, rows: pa.Table) -> tuple[LogFile, ...]:
        records: dict[int, int] = {}
        digests: dict[int, str] = {}
        for row in rows.to_pylist():
            records[row["place"]] = records.get(row["place"], 0) + row["name"]
            if row["note"]:
                digests[row["place"]] = row["note"]
        names = {part.file: plain_name(part.path.name) for part in self.plan.parts}
        return tuple(LogFile(names[n], digests[n], records[n]) for n in sorted(names))

    def _note_duplicates(self, rows: pa.Table) -> None:
        places = rows.column("place").to_numpy()
        other = rows.column("other").to_numpy()
        self.plan = replace(self.plan, dropped=places)
        size, counts = self.slots.public.vocabulary_size, self.statistics
        counts.duplicates, counts.conflicts = places.shape[0], int(other.sum())
        for name, shown in (("duplicate_ids", places), ("conflict_ids", places[other])):
            few = shown[:SHOWN_DUPLICATES].tolist()
            setattr(counts, name, tuple(read_names(self.plan.parts, few, size)))

    def _count(self, stage: Path) -> Iterator[pa.RecordBatch]:
        """Count on the cluster, then stream what it wrote; every row that was written is read."""
        seen = Observation()
        written = (
            self._map(count, COUNTED)
            .repartition("range")
            .groupBy("range", "slot", "value", "context", "lineage")
            .agg(F.sum("n").alias("n"))
            .withColumn("n", F.expr("CASE WHEN lineage IS NULL THEN n ELSE 1 END"))
            .groupBy("range", "slot", "value", "context")
            .agg(F.sum("n").alias("n"))
            .sortWithinPartitions("range", "slot", "context", "value")
            .observe(seen, F.count(F.lit(1)).alias("rows"), F.sum("n").alias("n"))
        )
        _run(lambda: written.write.partitionBy("range").parquet(stage.as_uri()))
        totals = _run(lambda: seen.get)
        folders = {int(path.name.partition("=")[2]): path for path in stage.glob("range=*")}
        tables = [pq.read_table(path) for path in _files_of(folders.pop(AMOUNTS))]
        amounts = pa.concat_tables(tables)
        self.without_value = read_amounts(self.plan, self.slots, amounts, self.statistics)
        wanted = (
            totals["rows"] - amounts.num_rows,
            totals["n"] - pc.sum(amounts.column("n")).as_py(),
        )
        check_log(self.statistics, wanted[0], self.slots.public)
        files = [file for number in sorted(folders) for file in _files_of(folders[number])]
        return _read_ranges(files, wanted)

    def _map(self, function: _Part, schema: pa.Schema) -> Any:
        """Run a function on every part of the log, one task each."""
        number = len(self.plan.parts)
        shared = self.session.sparkContext.broadcast(self.plan)
        slots = self.slots

        def run(batches: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
            for batch in batches:
                for part in batch.column("id").to_pylist():
                    yield from function(shared.value, part, slots)

        parts = self.session.range(0, number, numPartitions=number)
        return parts.mapInArrow(run, _types_of(schema))


_SQL_TYPES: Final = {pa.int32(): "int", pa.int64(): "bigint", pa.string(): "string"}


def _types_of(schema: pa.Schema) -> str:
    """The schema in Spark's words."""
    return ", ".join(f"{field.name} {_SQL_TYPES[field.type]}" for field in schema)


def _files_of(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def _read_ranges(files: Sequence[Path], wanted: tuple[int, int]) -> Iterator[pa.RecordBatch]:
    """The rows of the files one after another, with the columns TABLE.

    Raises DataError for a count beyond 2**31, StorageError if other rows come than were written.
    """
    rows = total = 0
    for path in files:
        with pq.ParquetFile(path, page_checksum_verification=True) as file:
            for batch in file.iter_batches(1 << 17, columns=["slot", "value", "context", "n"]):
                rows += batch.num_rows
                total += pc.sum(batch.column("n")).as_py()
                columns = zip(batch.columns, TABLE.types, strict=True)
                try:
                    yield pa.RecordBatch.from_arrays(
                        [column.cast(kind) for column, kind in columns], schema=TABLE
                    )
                except pa.ArrowInvalid as error:
                    raise DataError(
                        "a context must be served in fewer than 2**31 responses; got: "
                        f"{say_briefly(error)}. Build one index per part of the log."
                    ) from error
    if (rows, total) != wanted:
        raise StorageError(
            f"the folder of the index must show here what the executors wrote there; {wanted[0]} "
            f"rows were written, and {rows} are to be seen. Mount it on every machine, with no "
            "delay."
        )
