"""A foreign key, disclosed: the original's own object with its key, and how it is checked.

The file holds what the original library itself would take, so that whoever has that library can
recompute the coins without us. It opens the mark if scheme, parameters and key give the id and the
commitment that the mark's public description states.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from provenance.coins.contexts import MAXIMUM_VOCABULARY
from provenance.errors import DataError, UsageError
from provenance.keys.keyring import Keyring
from provenance.keys.schedule import GLOBAL, GLOBAL_KEY, SINGLE_VALUE
from provenance.marks.foreign import make_foreign
from provenance.marks.foreign.mark import ForeignMark, Original
from provenance.storage.files import canonical_json

_FORMAT: Final = "provenance-disclosed-scheme"


def disclose_foreign(mark: ForeignMark) -> dict[str, Any]:
    """All that an expert needs to recompute the coins of a foreign mark, as JSON, the key in it.

    Raises UsageError for a mark that was not read from a configuration.
    """
    if mark.original is None:
        raise UsageError(
            "a mark must be read from the original's configuration to be disclosed; this one was "
            "made in memory. Use provenance.read_foreign_mark."
        )
    commitment = mark.public.commitments[GLOBAL_KEY]
    return {
        "format": _FORMAT,
        "keyring_id": mark.public.id,
        "scheme": mark.public.scheme.to_json(),
        "context_width": mark.public.context_width,
        "slot": GLOBAL,
        "value": SINGLE_VALUE,
        "configuration": dict(mark.original.configuration),
        "vocabulary_size": mark.original.vocabulary_size,
        "salt": commitment.salt,
        "commitment": commitment.sha256,
    }


def open_disclosed(shown: Any, public: Keyring, origin: str) -> ForeignMark:
    """The mark of a disclosed object, if it is the one that `public` describes.

    Parameters: the parsed file; the mark's public description; the file's name for errors. Raises
    DataError unless it opens the commitment, and what `make_foreign` raises; shows no key.
    """
    size = shown.get("vocabulary_size") if isinstance(shown, Mapping) else None
    if (
        not isinstance(shown, Mapping)
        or not isinstance(shown.get("configuration"), Mapping)
        or not (size is None or (type(size) is int and 2 <= size <= MAXIMUM_VOCABULARY))
    ):
        raise DataError(
            f"{origin}: must be a disclosed scheme: a configuration, and a vocabulary_size of "
            f"2 .. {MAXIMUM_VOCABULARY} or null. It is not."
        )
    original = Original(shown["configuration"], size)
    scheme = make_foreign(public.scheme.name, original.configuration, None, size)
    mark = ForeignMark(scheme, public.vocabulary_size, public.tokenizer_sha256, original)
    if canonical_json(mark.public.to_json()) != canonical_json(public.to_json()):
        raise DataError(
            f"{origin}: its scheme, parameters and key must open the commitment of mark "
            f"{public.id}; they do not."
        )
    if canonical_json(dict(shown)) != canonical_json(disclose_foreign(mark)):
        raise DataError(f"{origin}: must have the fields of a disclosed scheme and no others.")
    return mark
