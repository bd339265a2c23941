"""Reading a foreign scheme from the original's own configuration file, keys as secrets.

A key is taken from the configuration, from a private file or from a command, never from argv; a
configuration that holds one must be as private as a master key. No message shows a key.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from provenance.errors import DataError, UsageError
from provenance.keys.secrets import read_private_file, run_key_command
from provenance.keys.tokenizer import read_tokenizer
from provenance.marks.foreign import FOREIGN_SCHEMES, make_foreign
from provenance.marks.foreign.comments import blank_comments
from provenance.marks.foreign.mark import ForeignMark, Original
from provenance.marks.foreign.scheme import Secret
from provenance.storage.files import parse_json, read_bytes, sha256_of_file

_MAXIMUM_BYTES: Final = 1 << 20
_MAXIMUM_CONFIGURATION: Final = 1 << 23
"""Enough for a table of SynthID's written as a list."""


def read_foreign_mark(
    name: str,
    config: Path,
    tokenizer: Path,
    *,
    key_file: Path | None = None,
    key_command: str | None = None,
    vocabulary_size: int | None = None,
) -> ForeignMark:
    """The mark of a scheme, ready for `build_index`, `check_outputs` and `detect_mark`.

    Parameters
    ----------
    name : of `FOREIGN_SCHEMES`
    config : JSON file with the original's configuration object; comments are allowed
    tokenizer : tokenizer.json of the marked model; it is trusted, since nothing else names it
    key_file, key_command : where the key is if it was taken out of the configuration: a file of
        mode 0600, or a command that prints it; a whole number or a JSON list of them
    vocabulary_size : `vocab_size` of the marked model's config.json; needed where green lists are
        permutations of the vocabulary, else the tokenizer's size

    Raises
    ------
    KeyPermissionError (77) if a file that holds a key can be read by others;
    ConfigurationMismatchError (78) where the coins cannot be recomputed or two keys differ;
    UsageError, DataError, StorageError.
    """
    document = read_configuration(config)
    if name in FOREIGN_SCHEMES and holds_key(name, document):
        read_private_file(config, _MAXIMUM_CONFIGURATION)
    secret = _read_secret(key_file, key_command)
    scheme = make_foreign(name, document, secret, vocabulary_size)
    own = (
        vocabulary_size or document.get("vocab_size") or read_tokenizer(tokenizer).get_vocab_size()
    )
    whole = document if secret is None else {**document, scheme.key_field: secret}
    original = Original(whole, vocabulary_size)
    mark = ForeignMark(scheme, own, sha256_of_file(tokenizer), original)
    mark.public = replace(mark.public, tokenizer_copy=Path(tokenizer))
    return mark


def read_configuration(path: Path) -> dict[str, Any]:
    """The original's object: strict JSON but for comments. Raises StorageError, DataError."""
    try:
        text = read_bytes(path, _MAXIMUM_CONFIGURATION).decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: must be JSON in UTF-8; it is not. Convert it first.") from error
    document = parse_json(blank_comments(text), str(path))
    if not isinstance(document, dict):
        raise DataError(
            f"{path}: must be a JSON object; got {_kind(document)}. "
            "Pass the original's own configuration object."
        )
    return document


def _kind(value: object) -> str:
    """What a JSON value is called in JSON."""
    names = {list: "an array", str: "a string", bool: "true or false", type(None): "null"}
    return names.get(type(value), "a number")


def holds_key(name: str, config: Mapping[str, Any]) -> bool:
    """Whether a configuration of this scheme holds a key: in its field, or in a seeding's name."""
    scheme = FOREIGN_SCHEMES[name]
    fields = (scheme.key_field, *getattr(scheme, "more_key_fields", ()))
    if any(config.get(field) is not None for field in fields):
        return True
    seeding = config.get("seeding_scheme")
    return isinstance(seeding, str) and seeding.startswith("ff-") and seeding.count("-") == 4


def _read_secret(file: Path | None, command: str | None) -> Secret:
    if file is None and command is None:
        return None
    if file is not None and command is not None:
        raise UsageError(
            "only one of --scheme-key-file and --scheme-key-cmd may be given; both are."
        )
    if file is not None:
        origin, content = str(file), read_private_file(file, _MAXIMUM_BYTES)
    else:
        origin, content = "--scheme-key-cmd", run_key_command(command or "", "--scheme-key-cmd")
    try:
        value = parse_json(content, origin)
    except DataError:
        value = None  # the parser's message could quote the key
    numbers = value if isinstance(value, list) else [value]
    if not numbers or any(type(number) is not int for number in numbers):
        raise DataError(
            f"{origin}: must hold a whole number, or a JSON list of them; it does not. "
            "Write the key as the original has it."
        )
    return numbers if isinstance(value, list) else numbers[0]
