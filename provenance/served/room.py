"""How much room a log will need while it is indexed, before it is read. Knows names and footers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Final

import pyarrow as pa
import pyarrow.parquet as pq

from provenance.errors import DataError, StorageError, UsageError
from provenance.served.rotation import list_log_files

_BYTES_OF_ID: Final = 5
_EXPANSION: Final = 4
_SPILL_OF_TOKEN: Final = 0.6
_IDS: Final = "token_ids"


def estimate_tokens(paths: Sequence[Path]) -> int:
    """About how many token ids the responses of a log have; 0 for files that cannot be read.

    Exact for Parquet, whose footer says it; of JSONL from its size, five bytes an id.
    """
    try:
        return sum(map(_estimate, list_log_files(paths)))
    except (DataError, StorageError, UsageError):
        return 0  # who reads the log says what is wrong with it


def estimate_spill(paths: Sequence[Path], part_rows: int) -> int:
    """Bytes that the parts of a log will need; 0 if it is one part, which stays in memory."""
    tokens = estimate_tokens(paths)
    return 0 if tokens <= part_rows else int(tokens * _SPILL_OF_TOKEN)


def _estimate(path: Path) -> int:
    try:
        if path.suffix != ".parquet":
            size = path.stat().st_size // _BYTES_OF_ID
            return size * (_EXPANSION if path.suffix in (".gz", ".zst") else 1)
        metadata = pq.read_metadata(path)
        columns = [
            metadata.row_group(group).column(column)
            for group in range(metadata.num_row_groups)
            for column in range(metadata.num_columns)
        ]
        # a name that is no text raises when it is asked for
        return sum(c.num_values for c in columns if c.path_in_schema.partition(".")[0] == _IDS)
    except (OSError, pa.ArrowException, ValueError):
        return 0
