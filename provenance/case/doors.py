"""What a caller may hand over at the front door, beside paths."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from provenance.errors import UsageError
from provenance.storage.files import as_path

if TYPE_CHECKING:
    from provenance.keys.keyring import Keyring, UnlockedKeyring
    from provenance.marks import Mark


def open_keyring(folder: Any) -> UnlockedKeyring:
    """The keyring in a folder, opened with its master secret.

    Raises StorageError, DataError, KeyPermissionError; ConfigurationMismatchError for another's
    secret. Cost: one key derivation.
    """
    from provenance.keys.keyring import Keyring

    path = as_path(folder, "the keyring's folder")
    return Keyring.load(path).unlock(path)


def as_open_mark(given: Any) -> Mark:
    """The mark under test, from an unlocked keyring, another mark or a keyring's folder."""
    from provenance.marks import as_mark

    return as_mark(open_keyring(given) if isinstance(given, (str, os.PathLike)) else given)


def tokenizer_of(public: Keyring, given: object) -> Path:
    """The file of the served tokenizer: as given, else the keyring's own copy."""
    if given is not None:
        return as_path(given, "the tokenizer")
    if public.tokenizer_copy is None:
        raise UsageError(
            "a tokenizer must be named; this mark has no copy of its own. Give tokenizer.json of "
            "the served model."
        )
    return public.tokenizer_copy
