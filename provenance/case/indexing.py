"""Served logs at the front door: auditing and indexing them, and what stands against an index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from provenance.case.doors import as_open_mark, tokenizer_of
from provenance.check.inputs import describe_log
from provenance.check.reservations import reserve_index
from provenance.errors import StorageError, UsageError
from provenance.served import audit, build, group_build, group_list
from provenance.served.group_index import refuse_foreign
from provenance.served.group_manifest import GROUP_FILE
from provenance.served.index import Index
from provenance.served.index_manifest import MANIFEST_FILE
from provenance.served.membership import parse_values
from provenance.storage.files import Paths, as_path, as_paths, read_bytes

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from provenance.keys.keyring import Keyring
    from provenance.marks import Mark
    from provenance.served.audit_result import LogAudit
    from provenance.served.group_list import GroupList
    from provenance.served.group_manifest import GroupManifest
    from provenance.served.index_manifest import IndexManifest


EMBEDDED: Final = "embedded"
SPARK: Final = "spark"
"""What counts an index: this process, or a cluster."""


def build_index(
    logs: Paths,
    folder: Any,
    keyring: Any,
    tokenizer: Any = None,
    *,
    force: bool = False,
    spill: Any = None,
    engine: str = EMBEDDED,
    master: str | None = None,
    **limits: Any,
) -> IndexManifest:
    """Index the marked windows of served logs: see `provenance.served.build.build_index`.

    Parameters: files or folders of the log; where the index goes; an unlocked keyring, another mark
    or a keyring's folder; tokenizer.json, None: the keyring's copy; whether an earlier index of the
    same keyring may be replaced; `embedded`, or `spark` and the URL of its master, which gives the
    same index (`provenance.served.spark.build_index_with_spark`); the folder for what does not fit
    into memory, None: inside the index's; limits of memory and threads. Raises StorageError if an
    index may not be replaced, MissingExtraError without pyspark.
    """
    files, mark, path = _open(logs, keyring, tokenizer)
    place, room = choose_place(folder, force=force), _spill(spill)
    if is_spark(engine, master):
        from provenance.served.spark import build_index_with_spark

        return build_index_with_spark(files, place, mark, path, master=master, spill=room, **limits)
    return build.build_index(files, place, mark, path, spill=room, **limits)


def is_spark(engine: str, master: str | None) -> bool:
    """Whether Spark counts. Raises UsageError for an engine that is none, or lacks its master."""
    if engine not in (EMBEDDED, SPARK) or (engine == EMBEDDED and master is not None):
        raise UsageError(
            f"engine must be {EMBEDDED}, or {SPARK} with a master; got {str(engine)[:40]!a}"
            f"{'' if master is None else ' with a master'}. Leave the master out, or take {SPARK}."
        )
    return engine == SPARK


def merge_indexes(
    indexes: Paths,
    folder: Any,
    public: Keyring,
    *,
    force: bool = False,
    spill: Any = None,
    **limits: Any,
) -> IndexManifest:
    """Add up indexes of disjoint logs; the same bytes as one index of all logs.

    Parameters: folders of two or more indexes; where the sum goes; the public half of their mark
    (no secret is needed); whether an index there may be replaced; the folder for what does not fit
    into memory; limits of memory and threads. See
    `provenance.served.build.merge_indexes` for what is refused.
    """
    place = choose_place(folder, force=force)
    folders = as_paths(indexes, "the indexes")
    return build.merge_indexes(folders, place, public, spill=_spill(spill), **limits)


def _spill(folder: Any) -> Path | None:
    return None if folder is None else as_path(folder, "the folder for spilling")


def choose_place(folder: Any, *, force: bool) -> Path:
    """The folder of an index to be written. Raises StorageError if one may not be replaced."""
    place = as_path(folder, "the index")
    if (place / MANIFEST_FILE).exists() and not force:
        raise StorageError(
            f"{place}: must not hold an index yet; it does, and verdicts may name it. Choose "
            "another folder, or replace it with --force."
        )
    return place


def build_group(
    logs: Paths,
    folder: Any,
    keyring: Any,
    only: Any,
    field: str = "response_id",
    tokenizer: Any = None,
    *,
    force: bool = False,
    spill: Any = None,
    **limits: Any,
) -> GroupManifest:
    """Count what a group of responses got and nobody else saw.

    Parameters: as of `build_index`; `only` is a file of values, one a line, or a list of them; see
    `provenance.served.group_build.build_group`. Whether an earlier group may be replaced; `spill`.
    """
    files, mark, path = _open(logs, keyring, tokenizer)
    refuse_foreign(mark.public)
    place = as_path(folder, "the group")
    if (place / MANIFEST_FILE).exists() or ((place / GROUP_FILE).exists() and not force):
        raise StorageError(
            f"{place}: must not hold an index or a group yet; it does, and plans may name it. "
            "Choose another folder, or replace a group with --force."
        )
    values = only if isinstance(only, (list, tuple, set, frozenset)) else _read_values(only)
    limits["spill"] = _spill(spill)
    return group_build.build_group(files, place, mark, sorted(values), field, path, **limits)


def list_groups(
    logs: Paths, keyring: Any, field: str, tokenizer: Any = None, **limits: Any
) -> GroupList:
    """Size and exclusive contexts of every value of a label.

    See `provenance.served.group_list.list_groups`; files and keyring as of `build_index`.
    """
    files, mark, path = _open(logs, keyring, tokenizer)
    refuse_foreign(mark.public)
    return group_list.list_groups(files, mark, field, path, **limits)


def _read_values(only: Any) -> tuple[str, ...]:
    path = as_path(only, "the list of values")
    return parse_values(read_bytes(path), str(path))


def audit_log(logs: Paths, keyring: Any, tokenizer: Any = None, **limits: Any) -> LogAudit:
    """Is every replica really marking? See `provenance.served.audit.audit_log`.

    Parameters: files or folders of the log; an unlocked keyring or its folder; tokenizer.json,
    None: the keyring's copy; alpha and the limit of memory.
    """
    return audit.audit_log(*_open(logs, keyring, tokenizer), **limits)


def _open(logs: Paths, keyring: Any, tokenizer: Any) -> tuple[Sequence[Path], Mark, Path | None]:
    """Files of a log, the mark, and the file of its tokenizer if there is one."""
    mark = as_open_mark(keyring)
    files = as_paths(logs, "the logs")
    if not files:
        raise UsageError("at least one log must be given; got none. Name the served log.")
    known = tokenizer is not None or mark.public.tokenizer_copy is not None
    return files, mark, tokenizer_of(mark.public, tokenizer) if known else None


def list_warnings(manifest: IndexManifest, keyring: Any = None) -> list[str]:
    """What stands against every check with an index, one sentence each.

    Parameters: the manifest; the mark, None if it is not known (then as for our own).
    """
    counts_weigh = keyring is None or not as_open_mark(keyring).shares_coins
    reserved = [
        f"{one.reason}. No check against this index is evidence without an innocent model of the "
        "suspect's size (--innocent)."
        for one in reserve_index(describe_log(manifest, counts_weigh=counts_weigh))
    ]
    lost = [f"{s.name} {s.without_value:,}" for s in manifest.slots if s.without_value]
    if lost:
        reserved.append(
            f"Of {manifest.marked_responses:,} marked responses so many have no label whose value "
            f"has a key: {', '.join(lost)}. Nothing of them counts under a key of that slot. "
            "Misspelt names and values: provenance log audit."
        )
    return reserved


def describe_index(folder: Any, *, verify: bool = False) -> tuple[dict[str, Any], list[str]]:
    """What an index holds, JSON-able, and its warnings; needs no secret.

    Parameters: the folder; whether every row is read and held against the manifest's hashes and
    counts, as somebody does who is handed an index.
    """
    with Index.open(as_path(folder, "the index"), None, "all" if verify else "used") as index:
        return index.info(), list_warnings(index.manifest)
