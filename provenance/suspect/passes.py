"""What a model said at many positions: kept in parts on disk, resumed, and summed up in bounds.

A pass is one reading of documents by one model. It is written part by part, each part (a few
hundred documents) atomically, into a folder named by the hash of everything that determines it: a
pass that was cut off goes on at the next part, and one that is complete costs nothing. Memory
holds one part; the sum over all parts is made by a database that spills to disk.

Knows packed contexts, tokens and masses; knows no model, no tokenizer and no key.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Protocol, TypeVar

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.errors import StorageError, say_briefly
from provenance.storage.database import open_database
from provenance.storage.files import canonical_json, lock_folder, write_json
from provenance.suspect.positions import Positions

_Chunk = TypeVar("_Chunk")

_MASSES: Final = pa.schema([("context", pa.int64()), ("token", pa.uint32()), ("mass", pa.int64())])
_UNIT: Final = 1 << 40
"""Masses are kept and summed as whole multiples of 2**-40: sums do not depend on their order."""
_VISITS: Final = pa.schema([("context", pa.int64()), ("visits", pa.int64())])
_TALLY: Final = b"provenance.tally"
_MEMORY: Final = "1GiB"
PART_DOCUMENTS: Final = 256
"""Documents of one part: what is lost at most when a pass is cut off."""
MAXIMUM_PAIRS: Final = 1 << 22
"""Pairs of a sum that are kept: those whose masses differ most."""

_SUM: Final = """
WITH p AS (SELECT context, token, sum(mass) AS mass FROM masses GROUP BY context, token),
     q AS (SELECT context, token, sum(mass) AS mass FROM expected GROUP BY context, token),
     v AS (SELECT context, CAST(sum(visits) AS BIGINT) AS visits FROM visited GROUP BY context),
     u AS (SELECT context, sum(visits) AS visits FROM read_by_reference GROUP BY context),
     pairs AS (
        SELECT coalesce(p.context, q.context) AS context, coalesce(p.token, q.token) AS token,
               coalesce(p.mass, 0)::DOUBLE / {unit} AS mass,
               coalesce(q.mass, 0)::DOUBLE / {unit} AS expected
        FROM p FULL JOIN q ON p.context = q.context AND p.token = q.token
     ),
     scaled AS (
        SELECT pairs.context, token, mass, v.visits AS total,
               CASE WHEN u.visits IS NULL THEN 0 WHEN u.visits = v.visits THEN expected
                    ELSE expected * v.visits / u.visits END AS expected
        FROM pairs JOIN v ON pairs.context = v.context
        LEFT JOIN u ON pairs.context = u.context
        WHERE NOT {referenced} OR u.visits IS NOT NULL
     )
SELECT * FROM (
    SELECT * FROM scaled
    ORDER BY abs(mass - expected) / sqrt(expected / total + 0.01) DESC, context, token
    LIMIT {limit}
)
ORDER BY context, token
"""


@dataclass(frozen=True)
class Reading:
    """What a model said in one part: pairs may repeat.

    contexts int64 [m], tokens uint32 [m], masses float64 [m]: probability of a token at a position;
    visited int64 [v]: the context of every position that was read, once per position;
    tally: numbers to add up over all parts, for the verdict.
    """

    contexts: NDArray[np.int64]
    tokens: NDArray[np.uint32]
    masses: NDArray[np.float64]
    visited: NDArray[np.int64]
    tally: Mapping[str, float]


class Reader(Protocol):
    """Whatever has probabilities of the next served token at positions of documents."""

    @property
    def description(self) -> Mapping[str, Any]:
        """Hashes of all that determines what it says."""

    @property
    def reads_other_tokens(self) -> bool:
        """Whether its positions depend on how another tokenizer cuts the text."""

    def read(self, positions: Positions, wanted: NDArray[np.bool_]) -> Reading:
        """What it says at the wanted positions (bool [m])."""


@dataclass(frozen=True)
class Pass:
    """A complete pass: its parts, its added-up tally, and what determined it."""

    parts: tuple[Path, ...]
    tally: Mapping[str, float]
    description: Mapping[str, Any]


@dataclass(frozen=True)
class Summed:
    """Masses over all parts, sorted: int64, uint32, float64, float64, int64, each [n]."""

    contexts: NDArray[np.int64]
    tokens: NDArray[np.uint32]
    masses: NDArray[np.float64]
    expected: NDArray[np.float64]
    totals: NDArray[np.int64]


@contextmanager
def run_pass(
    chunks: Iterable[_Chunk],
    read: Callable[[_Chunk], Reading],
    description: Mapping[str, Any],
    cache: Path | None,
    progress: Callable[[int], None] | None = None,
) -> Iterator[Pass]:
    """Read every chunk that is not in the cache yet, and hand out the complete pass.

    Parameters
    ----------
    chunks : in the same order and of the same content whenever `description` is the same
    read : what the model says about one chunk
    description : everything that determines the pass; its hash names the folder in the cache
    cache : folder to keep parts in; None keeps them for the time of the `with` block only
    progress : called with the number of chunks done

    Raises
    ------
    LockedError if another process works on the same pass; StorageError.

    Notes
    -----
    A part is a few bytes per (context, token) with a probability that matters. Without a cache the
    parts lie in the system's folder for temporary files.
    """
    with _open_folder(description, cache) as folder:
        parts, tally = [], dict[str, float]()
        for number, chunk in enumerate(chunks):
            part = folder / f"part-{number:06d}"
            if not (part / "masses.parquet").exists():
                _write(part, read(chunk))
            for name, value in _read_tally(part / "masses.parquet").items():
                tally[name] = tally.get(name, 0.0) + value
            parts.append(part)
            if progress is not None:
                progress(number + 1)
        yield Pass(tuple(parts), tally, description)


def sum_passes(suspect: Pass, reference: Pass | None, limit: int = MAXIMUM_PAIRS) -> Summed:
    """Add the parts up per (context, token), the suspect's beside the reference's.

    Expected masses are scaled to the positions at which the suspect was read, and contexts that the
    reference did not read are left out. Of more than `limit` pairs those are kept whose masses
    differ most. Memory: 1 GiB at most, and 36 bytes a pair kept.
    """
    nothing = reference or Pass((), {}, {})
    broken: list[Path] = []
    query = _SUM.format(limit=limit, unit=_UNIT, referenced="true" if reference else "false")
    with tempfile.TemporaryDirectory(prefix="provenance-") as spill:
        try:
            with open_database(Path(spill), _MEMORY) as database:
                for name, parts, file, schema in (
                    ("masses", suspect.parts, "masses", _MASSES),
                    ("expected", nothing.parts, "masses", _MASSES),
                    ("visited", suspect.parts, "visits", _VISITS),
                    ("read_by_reference", nothing.parts, "visits", _VISITS),
                ):
                    database.register(name, _stream(parts, file, schema, broken))
                table = database.sql(query).to_arrow_table()
        except (duckdb.Error, pa.ArrowException, OSError, StorageError) as error:
            if broken:
                raise _broken(broken[0]) from error
            raise StorageError(
                f"{spill}: the masses of a model must fit on this disk; got: "
                f"{say_briefly(error)}. Free some space."
            ) from error
    return Summed(
        table["context"].to_numpy(),
        table["token"].to_numpy().astype(np.uint32),
        table["mass"].to_numpy(),
        table["expected"].to_numpy().astype(np.float64),
        table["total"].to_numpy().astype(np.int64),
    )


@contextmanager
def _open_folder(description: Mapping[str, Any], cache: Path | None) -> Iterator[Path]:
    if cache is None:
        with tempfile.TemporaryDirectory(prefix="provenance-") as folder:
            yield Path(folder)
        return
    name = hashlib.sha256(canonical_json(dict(description))).hexdigest()[:32]
    with lock_folder(cache / name):
        write_json(cache / name / "pass.json", dict(description))
        yield cache / name


def _write(part: Path, reading: Reading) -> None:
    """Both tables of a part; the folder gets its name when both are on the disk."""
    partial = part.with_suffix(".partial")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        shutil.rmtree(part, ignore_errors=True)
        partial.mkdir(parents=True, mode=0o700)
        units = np.rint(reading.masses * _UNIT).astype(np.int64)
        masses = pa.table([reading.contexts, reading.tokens, units], schema=_MASSES)
        tally = json.dumps(dict(reading.tally)).encode()
        masses = masses.replace_schema_metadata({_TALLY: tally})
        pq.write_table(masses, partial / "masses.parquet", write_page_checksum=True)
        visited, visits = np.unique(reading.visited, return_counts=True)
        table = pa.table([visited, visits.astype(np.int64)], schema=_VISITS)
        pq.write_table(table, partial / "visits.parquet", write_page_checksum=True)
        partial.rename(part)
    except OSError as error:
        raise StorageError(
            f"{part}: must be writable; got: {error.strerror or error}. Free some space."
        ) from error


def _read_tally(path: Path) -> dict[str, float]:
    try:
        metadata = pq.read_schema(path).metadata or {}
        return {str(k): float(v) for k, v in json.loads(metadata[_TALLY]).items()}
    except (OSError, pa.ArrowException, KeyError, ValueError) as error:
        raise _broken(path.parent) from error


def _broken(part: Path) -> StorageError:
    return StorageError(
        f"{part}: must be a part of a pass; it is damaged. Delete this folder and run again."
    )


def _stream(
    parts: tuple[Path, ...], name: str, schema: pa.Schema, broken: list[Path]
) -> pa.RecordBatchReader:
    """All rows of all parts; a part that cannot be read is named in `broken`.

    The database turns every error of its input into one of its own.
    """

    def batches() -> Iterator[pa.RecordBatch]:
        for part in parts:
            try:
                with pq.ParquetFile(
                    part / f"{name}.parquet", page_checksum_verification=True
                ) as file:
                    yield from file.iter_batches(columns=schema.names)
            except (OSError, pa.ArrowException) as error:
                broken.append(part)
                raise _broken(part) from error

    plain = (batch.replace_schema_metadata(None) for batch in batches())
    return pa.RecordBatchReader.from_batches(schema, plain)
