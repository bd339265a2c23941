"""The one tree of errors, and the exit code that each branch means.

::

    ProvenanceError
    ├── UsageError                  2   the call itself is wrong (also a ValueError)
    │   └── MissingExtraError       2   an optional stack is not installed
    ├── DataError                  65   the content of a file is wrong (also a ValueError)
    ├── NumericalContradictionError 70  two computations of one p-value disagree: never use it
    ├── StorageError               74   a file cannot be read or written
    ├── LockedError                75   somebody else is writing the same output
    ├── KeyPermissionError         77   a secret is exposed to other users
    ├── ConfigurationMismatchError 78   two inputs do not belong together (also a ValueError)
    └── VerificationError           1   a step of a bundle's verification failed

Every message is one line: what must hold, what was found, what to do next. Only the command line
prints them; the library raises. No message ever contains key material.
"""

from __future__ import annotations

from typing import Any, Final

DISTRIBUTION: Final = "provenance-watermark"
"""Name of this package on the package index, where `provenance` is another project."""


class ProvenanceError(Exception):
    """Root of everything that this package raises on purpose."""

    exit_code = 1


class UsageError(ProvenanceError, ValueError):
    """An argument is outside its documented domain."""

    exit_code = 2


class MissingExtraError(UsageError):
    """An optional stack is needed and does not import; the message names the extra with it.

    Parameters: what must hold and what was found; the extra that installs what is missing; what
    else could be done, if anything.
    """

    def __init__(self, found: str, extra: str, instead: str = "") -> None:
        self.extra = extra
        hint = f"Run: pip install '{DISTRIBUTION}[{extra}]'"
        super().__init__(f"{found} {hint}{', or ' + instead if instead else ''}.")


class DataError(ProvenanceError, ValueError):
    """A file was read, but what it says is malformed, empty or impossible."""

    exit_code = 65


class NumericalContradictionError(ProvenanceError):
    """Two computations of one tail contradict each other: a defect of this package, or memory."""

    exit_code = 70


class StorageError(ProvenanceError):
    """A file or folder is missing, unreadable or not writable."""

    exit_code = 74


class LockedError(ProvenanceError):
    """Another process holds the output that this one wants to write."""

    exit_code = 75


class KeyPermissionError(ProvenanceError):
    """A key file is readable by others, or is not a private regular file."""

    exit_code = 77


class ConfigurationMismatchError(ProvenanceError, ValueError):
    """Inputs made under different keyrings, tokenizers or schemes were mixed."""

    exit_code = 78


class VerificationError(ProvenanceError):
    """A bundle does not hold; `verification` has the steps and what each of them found."""

    def __init__(self, message: str, verification: Any) -> None:
        super().__init__(message)
        self.verification = verification


def clean(text: str) -> str:
    """One printable line: no terminal escapes, no line breaks, no marks that turn the direction.

    >>> clean("week\\x1b[31m\\u202e17")
    'week�[31m�17'
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def say_briefly(error: BaseException) -> str:
    """The first line of somebody else's error, at most 200 characters, for a sentence of ours.

    >>> say_briefly(ValueError("no such column\\nat line 7"))
    'no such column'
    """
    return str(error).strip().partition("\n")[0][:200] or type(error).__name__


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and end around an ellipsis, at most `length` characters.

    >>> shorten("outputs/suspect-7.jsonl", 11)
    'outpu…jsonl'
    """
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"
