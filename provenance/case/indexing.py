"""Building an index at the front door, and what stands against checks with it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from provenance.case.doors import as_open_mark, tokenizer_of
from provenance.check.inputs import describe_log
from provenance.check.reservations import reserve_index
from provenance.errors import UsageError
from provenance.served import build
from provenance.served.index import Index
from provenance.storage.files import Paths, as_path, as_paths

if TYPE_CHECKING:
    from provenance.served.index_manifest import IndexManifest


def build_index(
    logs: Paths, folder: Any, keyring: Any, tokenizer: Any = None, **limits: Any
) -> IndexManifest:
    """Index the marked windows of served logs: see `provenance.served.build.build_index`.

    Parameters: files or folders of the log; where the index goes; an unlocked keyring, another mark
    or a keyring's folder; tokenizer.json, None: the keyring's copy; limits of memory and threads.
    """
    mark = as_open_mark(keyring)
    files = as_paths(logs, "the logs")
    if not files:
        raise UsageError("at least one log must be given; got none. Name the served log.")
    known = tokenizer is not None or mark.public.tokenizer_copy is not None
    path = tokenizer_of(mark.public, tokenizer) if known else None
    return build.build_index(files, as_path(folder, "the index"), mark, path, **limits)


def list_warnings(manifest: IndexManifest, keyring: Any = None) -> list[str]:
    """What stands against every check with an index, one sentence each.

    Parameters: the manifest; the mark, None if it is not known (then as for our own).
    """
    counts_weigh = keyring is None or not as_open_mark(keyring).shares_coins
    return [
        f"{one.reason}. No check against this index is evidence without an innocent model of the "
        "suspect's size (--innocent)."
        for one in reserve_index(describe_log(manifest, counts_weigh=counts_weigh))
    ]


def describe_index(folder: Any) -> tuple[dict[str, Any], list[str]]:
    """What an index holds, JSON-able, and its warnings; needs no secret. The index is verified."""
    with Index.open(as_path(folder, "the index"), None) as index:
        return index.info(), list_warnings(index.manifest)
