"""The served model's tokenizer: read with its fingerprint checked first, and text -> token ids.

Re-tokenised text need not give the ids that were sampled; prefer logged ids where there are any.

A tokenizer file can hold a regular expression that crashes the reader or a normaliser that expands
one character into millions; so only the file whose SHA-256 the keyring fixed is ever loaded. The
same tokenizer in other bytes is recognised as JSON, and the keyring's own copy is loaded for it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.errors import ConfigurationMismatchError, DataError, UsageError, say_briefly
from provenance.keys.keyring import Keyring
from provenance.storage.files import name_of, read_bytes

_Result = TypeVar("_Result")
_PART: Final = 1 << 20
_SEARCHED: Final = 1 << 14
_LINE: Final = re.compile(r"\n(?=\S)")


def read_tokenizer(path: Path | str) -> Tokenizer:
    """A tokenizer.json without truncation and padding. Only for files of the lab itself.

    Raises StorageError if it cannot be read, DataError if it does not load.
    """
    content = read_bytes(path)
    return prepare_tokenizer(_guard(lambda: Tokenizer.from_buffer(content), f"{path}"))


def load_tokenizer(path: Path | str, keyring: Keyring) -> Tokenizer:
    """The served tokenizer, if the file is it; see `Keyring.read_tokenizer` for what is the same.

    What is loaded is the file whose hash the keyring fixed, and no other.

    Raises ConfigurationMismatchError (78) if it is another one or has more tokens than the keyring
    says; StorageError, DataError.
    """
    return parse_tokenizer(keyring.read_tokenizer(path), keyring, f"{path}")


def parse_tokenizer(content: bytes, keyring: Keyring, path: str) -> Tokenizer:
    """The served tokenizer from what `Keyring.read_tokenizer` gave; `path` is for messages.

    Raises as `load_tokenizer`.
    """
    tokenizer = prepare_tokenizer(_guard(lambda: Tokenizer.from_buffer(content), path))
    if tokenizer.get_vocab_size() > keyring.vocabulary_size:
        raise ConfigurationMismatchError(
            f"{path}: must have at most {keyring.vocabulary_size} tokens, the vocabulary size of "
            f"the mark; got {tokenizer.get_vocab_size()}. Pass the served model's tokenizer.json, "
            "or the vocab_size of its config.json."
        )
    return tokenizer


def prepare_tokenizer(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer without truncation and padding; the caller's object is not changed."""
    if tokenizer.truncation is None and tokenizer.padding is None:
        return tokenizer
    copy = Tokenizer.from_str(tokenizer.to_str())
    copy.no_truncation()
    copy.no_padding()
    return copy


def tokenise(tokenizer: Tokenizer, texts: Sequence[str], origin: str) -> list[NDArray[np.uint32]]:
    """Token ids of each text, without special tokens added.

    Returns one uint32 [n] per text. Raises DataError. Cost: about 1 M tokens per second and core.
    """
    encodings = _guard(
        lambda: tokenizer.encode_batch_fast(list(texts), add_special_tokens=False), origin
    )
    return [np.array(encoding.ids, dtype=np.uint32) for encoding in encodings]


def tokenise_placed(
    tokenizer: Tokenizer, texts: Sequence[str], origin: str
) -> list[tuple[NDArray[np.uint32], NDArray[np.int64]]]:
    """As `tokenise`, with the characters of each token: uint32 [n] and int64 [n, 2] per text.

    A token of a part of a character has the whole of it. Cost: twice that of `tokenise`.
    """
    encodings = _guard(
        lambda: tokenizer.encode_batch(list(texts), add_special_tokens=False), origin
    )
    return [
        (
            np.array(encoding.ids, dtype=np.uint32),
            np.array(encoding.offsets, dtype=np.int64).reshape(-1, 2),
        )
        for encoding in encodings
    ]


def tokenise_long(
    tokenizer: Tokenizer, text: str, origin: str
) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """Token ids of one text of any length, uint32 [n], and the characters of each, uint32 [n, 2].

    A text of more than 2**20 characters is read in parts that end where a line does, since the
    library holds some 200 bytes a token: where a part ends, tokens may differ from those of the
    whole. Raises DataError. Cost: twice that of `tokenise`; 12 bytes a token, and one part.
    """
    ids, spans = [], []
    for start, end in _cut(text):
        part = text[start:end]
        encoding = _guard(partial(tokenizer.encode, part, add_special_tokens=False), origin)
        ids.append(np.array(encoding.ids, dtype=np.uint32))
        spans.append(np.array(encoding.offsets, dtype=np.uint32).reshape(-1, 2) + np.uint32(start))
    return np.concatenate(ids), np.concatenate(spans)


def _cut(text: str) -> Iterator[tuple[int, int]]:
    """Where the parts of a text begin and end: before the first letter of a line, if there is one.

    There is at least one part, which may be empty.
    """
    start = 0
    while len(text) - start > _PART:
        end = start + _PART
        line = _LINE.search(text, end - _SEARCHED, end)
        end = line.start() + 1 if line else end
        yield start, end
        start = end
    yield start, len(text)


def _guard(action: Callable[[], _Result], origin: str) -> _Result:
    """Turn every failure of the tokenizers library into one DataError, its panics included.

    A panic of the Rust library is a BaseException that `except Exception` misses, and the library
    raises bare Exception for malformed files.
    """
    try:
        return action()
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = say_briefly(error)
        raise DataError(
            f"{origin}: must be readable by the tokenizer; got: {reason}. "
            "Use the served model's tokenizer.json."
        ) from error


def as_token_ids(given: object, vocabulary_size: int) -> NDArray[np.uint32]:
    """Token ids uint32 [n] from a list or an array of any integers. Raises UsageError.

    >>> as_token_ids([3, 1], 10)
    array([3, 1], dtype=uint32)
    """
    try:
        ids = np.asarray(given)
    except (ValueError, TypeError, OverflowError):
        ids = np.empty(0)
    if ids.size == 0 and ids.ndim == 1:
        return np.empty(0, dtype=np.uint32)
    if ids.ndim != 1 or ids.dtype.kind not in "iu":
        raise UsageError(
            f"token ids must be a list or an array of integers; got {name_of(given)}. "
            "Tokenise the text with the served tokenizer first."
        )
    lowest, highest = int(ids.min()), int(ids.max())
    if lowest < 0 or highest >= vocabulary_size:
        raise UsageError(
            f"token ids must be 0 .. {vocabulary_size - 1}; got {lowest} .. {highest}. "
            "Take the served model's tokenizer."
        )
    return ids.astype(np.uint32)
