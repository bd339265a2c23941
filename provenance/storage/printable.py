"""Text of other people, made safe to show: one line, without control characters.

Knows nothing of terminals or HTML; whoever prints into a markup escapes as well.
"""

from __future__ import annotations


def clean(text: str) -> str:
    """One printable line: no terminal escapes, no line breaks, no marks that turn the direction.

    >>> clean("week\\x1b[31m\\u202e17")
    'week�[31m�17'
    """
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)


def shorten(text: str, length: int) -> str:
    """The text, or its beginning and end around an ellipsis, at most `length` characters.

    >>> shorten("outputs/suspect-7.jsonl", 11)
    'outpu…jsonl'
    """
    if len(text) <= length:
        return text
    head = length // 2
    return f"{text[:head]}…{text[len(text) - (length - head - 1) :]}"
