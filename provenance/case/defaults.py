"""What a folder's `provenance.toml` says once, so that no command need be told again.

    keys = "keys"                 # folder of the keyring
    index = "index"               # folder of the index
    reference = "base-model"      # none, ngram, or a model's folder
    cache = "passes"              # folder of a reading model's passes
    case = "."                    # folder of the case, in whose register checks are entered
    signing_key = "signing.key"   # file of the key that signs

The file is looked for in the folder and above it, as git looks for its own; paths are relative to
where it lies. It holds no secret: `keys` names a folder, `signing_key` a file.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

from provenance.errors import DataError, StorageError, say_briefly

FILE: Final = "provenance.toml"
_PATHS: Final = ("keys", "index", "cache", "case", "signing_key")
_NO_PATHS: Final = ("none", "ngram")


def read_defaults(folder: Path | str = ".") -> dict[str, str]:
    """The values of the nearest `provenance.toml` in a folder or above it, paths made absolute.

    Empty if there is none. Raises DataError if it is no TOML, or holds anything but strings named
    keys, index, reference, cache, case and signing_key; StorageError if it cannot be read.
    """
    here = Path(folder).absolute()
    file = next((p / FILE for p in (here, *here.parents) if (p / FILE).is_file()), None)
    if file is None:
        return {}
    try:
        found = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(f"{file}: must be readable; got: {error.strerror}.") from error
    except ValueError as error:  # TOML's and Unicode's
        raise DataError(f"{file}: must be TOML; got: {say_briefly(error)}. Correct it.") from error
    for name, value in found.items():
        if name not in (*_PATHS, "reference") or not isinstance(value, str):
            raise DataError(
                f"{file}: must hold strings named keys, index, reference, cache, case or "
                f"signing_key; got {name!a}. Correct it."
            )
    return {
        name: value
        if name == "reference" and value in _NO_PATHS
        else str((file.parent / value).absolute())
        for name, value in found.items()
    }
