"""The contexts that an excerpt of an index was made for: a file of its own, hashed by the manifest.

Knows names of contexts; no table of rows.
"""

from __future__ import annotations

import hashlib
import io
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from provenance.errors import DataError, say_briefly
from provenance.storage.files import read_bytes, write_atomically

CONTEXTS_STEM: Final = "contexts"
_SCHEMA: Final = pa.schema([pa.field("context", pa.int64(), nullable=False)])


def write_contexts(folder: Path, contexts: NDArray[np.int64]) -> tuple[str, str]:
    """Write contexts, ascending; the name of the file and its hex SHA-256. Raises StorageError."""
    content = io.BytesIO()
    pq.write_table(
        pa.table([pa.array(contexts)], schema=_SCHEMA),
        content,
        compression="zstd",
        use_dictionary=False,
        column_encoding="DELTA_BINARY_PACKED",
    )
    sha256 = hashlib.sha256(content.getvalue()).hexdigest()
    name = f"{CONTEXTS_STEM}-{sha256[:16]}.parquet"
    write_atomically(folder / name, content.getvalue(), mode=0o600)
    return name, sha256


def read_contexts(path: Path, sha256: str) -> NDArray[np.int64]:
    """The contexts, int64 [n], ascending. Raises DataError if it is another file, StorageError."""
    content = read_bytes(path)
    if hashlib.sha256(content).hexdigest() != sha256:
        raise DataError(f"{path}: must match its manifest; it does not. Make the excerpt again.")
    try:
        table = pq.read_table(io.BytesIO(content), schema=_SCHEMA)
        found: NDArray[np.int64] = table.column("context").to_numpy()
    except (pa.ArrowException, OSError, ValueError) as error:
        raise DataError(
            f"{path}: must hold contexts; got: {say_briefly(error)}. Make the excerpt again."
        ) from error
    return found


def refuse_uncovered(covered: NDArray[np.int64], asked: NDArray[np.int64], folder: Path) -> None:
    """Raise DataError if a context is looked up that the excerpt was not made for."""
    if not asked.shape[0]:
        return
    places = np.minimum(np.searchsorted(covered, asked), max(covered.shape[0] - 1, 0))
    known = covered[places] == asked if covered.shape[0] else np.zeros(asked.shape, np.bool_)
    if not known.all():
        raise DataError(
            f"{folder}: an excerpt of an index must be asked for the contexts only that it was "
            f"made for; {np.unique(asked[~known]).shape[0]} others are looked up. Make it again "
            "with all files of the check: provenance index match"
        )
