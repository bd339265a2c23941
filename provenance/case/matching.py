"""An excerpt of an index for some outputs, at the front door."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from provenance.case.doors import tokenizer_of
from provenance.case.indexing import EMBEDDED, choose_place, is_spark
from provenance.errors import UsageError
from provenance.keys.tokenizer import load_tokenizer
from provenance.served import excerpt
from provenance.storage.files import Paths, as_path, as_paths
from provenance.storage.shapes.requests import ReadAs
from provenance.suspect.access.outputs import read_positions

if TYPE_CHECKING:
    from collections.abc import Mapping

    from provenance.keys.keyring import Keyring
    from provenance.served.index_manifest import IndexManifest


def match_index(
    index: Any,
    outputs: Paths,
    folder: Any,
    public: Keyring,
    tokenizer: Any = None,
    *,
    force: bool = False,
    engine: str = EMBEDDED,
    master: str | None = None,
    read_as: Mapping[str, Any] | None = None,
) -> IndexManifest:
    """Take from an index what a check of these outputs looks up: an index for this check only.

    A check against the excerpt gives the verdict that the whole index gives, its hash included.
    Other outputs are refused there (DataError), so name all files of the check: the suspect's and
    the innocents'.

    Parameters
    ----------
    index : folder of the whole index, on a cluster mounted alike on every machine
    outputs : one file or folder of outputs, or several
    folder : where the excerpt goes
    public : the public half of the index's mark; no secret is needed
    tokenizer : tokenizer.json, None: the keyring's copy
    force : whether an earlier excerpt may be replaced
    engine, master : as of `build_index`
    read_as : how the files are read, as of `read_outputs`

    Raises UsageError, DataError, StorageError, ConfigurationMismatchError; see
    `provenance.served.excerpt.match_index`.
    """
    place, find = choose_place(folder, force=force), None
    whole = as_path(index, "the index")
    excerpt.load_whole(whole, place, public)  # before outputs are read, which takes longer
    files = as_paths(outputs, "outputs")
    if not files:
        raise UsageError("outputs must be at least one file; got none. Name the suspect's outputs.")
    if is_spark(engine, master):
        from provenance.served.spark import match_with_spark

        find = match_with_spark(master)
    opened = load_tokenizer(tokenizer_of(public, tokenizer), public)
    reading = ReadAs.make(**(read_as or {}))
    positions = read_positions(files, opened, public, reading)
    asked = [] if positions.asked is None else [positions.asked.contexts]
    contexts = np.concatenate([positions.contexts, *asked])
    return excerpt.match_index(whole, contexts, place, public, find)
