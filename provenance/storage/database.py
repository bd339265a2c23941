"""DuckDB in this process, cut off from the network, from extensions and from every other file.

For sorting and grouping of more rows than fit in memory: it spills to one folder. Knows nothing of
what the rows are.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Final

import duckdb

from provenance.errors import UsageError
from provenance.storage.files import plain_name

_MEMORY: Final = re.compile(r"[1-9][0-9]{0,5}(\.[0-9]+)?(MiB|GiB|MB|GB)")
_UNITS: Final = {"MiB": 1 << 20, "GiB": 1 << 30, "MB": 10**6, "GB": 10**9}
_MAXIMUM_THREADS: Final = 8


def check_memory_limit(memory_limit: str) -> None:
    """Raise UsageError unless it is a number and a unit, like 512MiB."""
    if not _MEMORY.fullmatch(memory_limit):
        raise UsageError(
            f"memory limit must be a number and MiB, GiB, MB or GB; got {memory_limit!r}. "
            "Use 512MiB."
        )


def parse_memory(memory_limit: str) -> int:
    """Bytes of a limit that `check_memory_limit` accepts.

    >>> parse_memory("512MiB") == 512 << 20
    True
    """
    check_memory_limit(memory_limit)
    unit = memory_limit.lstrip("0123456789.")
    return int(float(memory_limit.removesuffix(unit)) * _UNITS[unit])


def open_database(
    spill: Path, memory_limit: str, threads: int | None = None
) -> duckdb.DuckDBPyConnection:
    """A database in memory that can reach nothing but the spill folder, and prints nothing.

    Parameters: an existing folder for what does not fit; see `check_memory_limit`; threads, default
    one per core, at most 8. The caller closes it.
    """
    check_memory_limit(memory_limit)
    if (named := plain_name(str(spill))) != str(spill):
        raise UsageError(
            f"{named}: the name of a folder for results must be UTF-8. Choose another."
        )
    cores = len(os.sched_getaffinity(0))
    connection = duckdb.connect(
        ":memory:",
        config={
            "threads": threads or min(cores, _MAXIMUM_THREADS),
            "memory_limit": memory_limit,
            "temp_directory": str(spill),
            "autoinstall_known_extensions": False,
            "autoload_known_extensions": False,
            "allow_community_extensions": False,
            "python_enable_replacements": False,
        },
    )
    # a slow query would otherwise draw a bar on stdout, between the lines of --json
    connection.execute("SET enable_progress_bar = false")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection
