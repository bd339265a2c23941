"""Reading the served model's tokenizer.json, with its fingerprint checked first.

A tokenizer file can hold a regular expression that crashes the reader or a normaliser that expands
one character into millions; so only the file whose SHA-256 the keyring fixed is ever loaded.
"""

from __future__ import annotations

from pathlib import Path

from tokenizers import Tokenizer

from provenance.errors import ConfigurationMismatchError, DataError
from provenance.files import read_bytes
from provenance.keys.keyring import Keyring

__all__ = ["load_tokenizer", "read_tokenizer"]


def read_tokenizer(path: Path | str) -> Tokenizer:
    """A tokenizer.json without truncation and padding. Only for files of the lab itself.

    Raises StorageError if it cannot be read, DataError if it does not load.
    """
    content = read_bytes(path)
    try:
        tokenizer = Tokenizer.from_buffer(content)
    except Exception as error:
        raise DataError(
            f"{path}: must be a tokenizer.json; got: {error}. Pass the served model's file."
        ) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def load_tokenizer(path: Path | str, keyring: Keyring) -> Tokenizer:
    """The served tokenizer, after its fingerprint was compared with the keyring's.

    Raises ConfigurationMismatchError (78) if it is another one or has more tokens than the keyring
    says; StorageError, DataError.
    """
    keyring.check_tokenizer(path)
    tokenizer = read_tokenizer(path)
    if tokenizer.get_vocab_size() > keyring.vocabulary_size:
        raise ConfigurationMismatchError(
            f"{path}: must have at most {keyring.vocabulary_size} tokens, as the keyring says; got "
            f"{tokenizer.get_vocab_size()}. Pass the served model's tokenizer.json."
        )
    return tokenizer
