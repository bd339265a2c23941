"""What a folder's `provenance.toml` says once, so that no command need be told again.

    keys = "keys"                 # folder of the keyring
    index = "index"               # folder of the index
    reference = "base-model"      # none, ngram, or a model's folder
    cache = "passes"              # folder of a reading model's passes
    case = "."                    # folder of the case, in whose register checks are entered
    signing_key = "signing.key"   # file of the key that signs

or, in place of `keys`, somebody else's mark:

    scheme = "hf-synthid"
    scheme-config = "config.json"     # the original's configuration
    scheme-key-file = "synthid.key"   # its key, if it is not in there; mode 0600
    tokenizer = "tokenizer.json"      # of the served model
    vocabulary-size = "256000"        # if the scheme asks for it

The file is looked for in the folder and above it, as git looks for its own; paths are relative to
where it lies. It holds no secret: `keys` names a folder, `scheme-key-file` and `signing_key` a
file; and no command, since a folder that somebody sent must not run one.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Final

from provenance.errors import DataError, StorageError, say_briefly

FILE: Final = "provenance.toml"
_PATHS: Final = (
    *("keys", "index", "cache", "case", "signing_key"),
    *("scheme-config", "scheme-key-file", "tokenizer"),
)
_FOREIGN: Final = {
    "scheme": "scheme",
    "scheme-config": "config",
    "scheme-key-file": "key_file",
    "tokenizer": "tokenizer",
    "vocabulary-size": "vocabulary_size",
}
"""Of another mark: what the file calls it, and the parameter of `MarkChoice`."""

_NAMES: Final = ("keys", "index", "reference", "cache", "case", "signing_key", *_FOREIGN)
_NO_PATHS: Final = ("none", "ngram")


def read_defaults(folder: Path | str = ".") -> dict[str, str]:
    """The values of the nearest `provenance.toml` in a folder or above it, paths made absolute.

    By the names of the parameters that take them. Empty if there is none. Raises DataError if it is
    no TOML, or holds anything but strings of the names above, or two marks; StorageError if it
    cannot be read.
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
        if name not in _NAMES or not isinstance(value, str):
            raise DataError(
                f"{file}: must hold strings named {', '.join(_NAMES[:-1])} or {_NAMES[-1]}; got "
                f"{name!a}. Correct it."
            )
    if "keys" in found and "scheme" in found:
        raise DataError(f"{file}: must name one mark; it names keys and scheme. Leave one out.")
    return {
        _FOREIGN.get(name, name): str((file.parent / value).absolute())
        if name in _PATHS or (name == "reference" and value not in _NO_PATHS)
        else value
        for name, value in found.items()
    }
