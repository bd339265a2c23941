"""Text as a reader hears it: case-folded letters and digits, and where each stands in the text.

White space, punctuation, markup signs, combining marks and invisible characters are dropped; case,
width, ligatures and other compatibility forms are folded. Also undoes what programs do to a text on
its way (JSON, URL and mail escapes, HTML entities and tags, links of Markdown, terminal colours).
Knows characters only; knows no token, key or file.
"""

from __future__ import annotations

import html
import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

_ROUNDS: Final = 3
"""Escapes inside escapes that are undone: a tool call in a log has two layers."""
_LAST: Final = 0x110000

_ESCAPES: Final = re.compile(
    r"""(?x)
    (?P<pair>\\u[dD][89abAB][0-9a-fA-F]{2}\\u[dD][c-fC-F][0-9a-fA-F]{2})
    |\\(?:u(?P<four>[0-9a-fA-F]{4})|u\{(?P<braced>[0-9a-fA-F]{1,6})\}
        |U(?P<eight>[0-9a-fA-F]{8})|x(?P<two>[0-9a-fA-F]{2}))
    |\\(?P<sign>[\x00-\x7f])
    |(?P<percent>(?:%[0-9a-fA-F]{2})+)
    |(?P<mail>(?:=[0-9A-F]{2})+)
    |(?P<entity>&(?:\#[0-9]{1,7}|\#[xX][0-9a-fA-F]{1,6}|[A-Za-z][A-Za-z0-9]{1,31});?)
    |(?P<tag></?[A-Za-z][^<>]{0,500}>)
    |(?P<link>\]\([^()\s]{1,500}\))
    |(?P<colour>\x1b\[[0-9;?]{0,30}[A-Za-z])
    """
)
_HINTS: Final = re.compile(r"[\\%=&<\x1b]|\]\(")
_SPACES: Final = frozenset("abfnrtv0")
"""After a backslash: a control character."""


@dataclass(frozen=True)
class Letters:
    """Normalised characters of a text.

    Attributes
    ----------
    codes : uint32 [n], code points after folding; a sign that stands for a whole word or syllable
        counts two or three times
    begins, ends : int64 [n], the characters of the text that each comes from
    digits : bool [n], it is a digit or another number
    order : int64 [n], how many letters and digits stand before it
    """

    codes: NDArray[np.uint32]
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    digits: NDArray[np.bool_]
    order: NDArray[np.int64]

    def without_digits(self) -> Letters:
        """The letters alone: numbered lines and numbered lists read as plain ones."""
        kept = ~self.digits
        return Letters(
            self.codes[kept],
            self.begins[kept],
            self.ends[kept],
            self.digits[kept],
            self.order[kept],
        )


@dataclass(frozen=True)
class Decoded:
    """A text and, per character, the part of another text that it comes from: int64 [n] each."""

    text: str
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]


def normalise(text: str | Decoded) -> Letters:
    """Letters and digits of a text, folded; positions are those in the text (or behind it).

    Compatibility forms (NFKD), case (full folding) and decimal digits of any script are folded.
    Everything that is not a letter or a number is dropped, combining marks among it. Of twelve
    normalised characters, a Chinese character makes three and a sign of a syllabary two: twelve
    letters of English are two or three words. Cost: about 40 ns a character.

    >>> "".join(map(chr, normalise("Fi\\u0301ne  \\ufb01-\\uff11!").codes))
    'finefi1'
    """
    plain = text if isinstance(text, str) else text.text
    points = np.frombuffer(plain.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    table = _table()
    table.learn(points)
    counts = table.counts[points].astype(np.int64)
    sources = np.repeat(np.arange(points.shape[0]), counts)
    firsts = np.repeat(table.starts[points] - (np.cumsum(counts) - counts), counts)
    places = firsts + np.arange(sources.shape[0])
    begins, ends = sources, sources + 1
    if isinstance(text, Decoded):
        begins, ends = text.begins[sources], text.ends[sources]
    order = np.arange(places.shape[0])
    return Letters(table.codes[places], begins, ends, table.digits[places], order)


_BARE: Final = {"ı": "i", "ø": "o", "ł": "l", "đ": "d", "ħ": "h", "ŧ": "t", "æ": "ae", "œ": "oe"}
"""Letters that Unicode does not take apart, as they are written where their sign is missing."""


_WORDS: Final = ((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0x17000, 0x18DFF), (0x20000, 0x3FFFF))
"""Signs that stand for words: Chinese and Tangut."""
_SYLLABLES: Final = (
    (0x1200, 0x139F),
    (0x2D80, 0x2DDF),
    (0x3005, 0x30FF),
    (0x31F0, 0x31FF),
    (0xA000, 0xA4CF),
    (0xAB00, 0xAB2F),
    (0x1AFF0, 0x1B16F),
)
"""Signs that stand for syllables: Ethiopic, kana, Yi."""


class _Table:
    """What each character folds to; filled as characters are met."""

    def __init__(self) -> None:
        self.counts = np.full(_LAST, -1, dtype=np.int8)
        self.starts = np.zeros(_LAST, dtype=np.int64)
        self.codes = np.empty(0, dtype=np.uint32)
        self.digits = np.empty(0, dtype=np.bool_)

    def learn(self, points: NDArray[np.uint32]) -> None:
        """Add the characters that are not known yet."""
        unknown = points[self.counts[points] < 0]
        if not unknown.size:
            return
        codes, digits = [self.codes], [self.digits]
        start = self.codes.shape[0]
        for point in np.unique(unknown).tolist():
            folded = _fold(chr(point))
            self.starts[point], self.counts[point] = start, len(folded)
            start += len(folded)
            codes.append(np.array([ord(sign) for sign in folded], dtype=np.uint32))
            numbers = [unicodedata.category(sign)[0] == "N" for sign in folded]
            digits.append(np.array(numbers, dtype=np.bool_))
        self.codes, self.digits = np.concatenate(codes), np.concatenate(digits)


@cache
def _table() -> _Table:
    return _Table()


def _fold(character: str) -> str:
    """One character -> its letters and digits, each as often as it counts."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", character).casefold())
    kept = []
    for sign in "".join(_BARE.get(sign, sign) for sign in folded):
        if unicodedata.category(sign)[0] not in "LN":
            continue
        digit = unicodedata.decimal(sign, None)
        kept.append((sign if digit is None else str(digit)) * _weigh(ord(sign)))
    return "".join(kept)


def _weigh(point: int) -> int:
    """How many letters of an alphabet a sign stands for; Hangul was taken apart by NFKD."""
    if any(low <= point <= high for low, high in _WORDS):
        return 3
    return 2 if any(low <= point <= high for low, high in _SYLLABLES) else 1


def decode_fully(text: str) -> Decoded:
    """`decode_escapes` until nothing changes, three times at most."""
    found = _identity(text)
    for _ in range(_ROUNDS):
        found, changed = _decode(found)
        if not changed:
            break
    return found


def decode_escapes(text: str) -> Decoded:
    r"""One layer of escapes undone, tags, targets of links and colours dropped.

    Whatever it gets wrong only adds a way to compare texts. Linear: every pattern is bounded.

    >>> decode_escapes(r"a\n<b>caf\u00e9</b> &amp; %C3%A9").text
    'a café & é'
    """
    return _decode(_identity(text))[0]


def _identity(text: str) -> Decoded:
    places = np.arange(len(text) + 1)
    return Decoded(text, places[:-1], places[1:])


def _decode(source: Decoded) -> tuple[Decoded, bool]:
    if not _HINTS.search(source.text):
        return source, False
    matches = list(_ESCAPES.finditer(source.text))
    if not matches:
        return source, False
    parts: list[str] = []
    begins: list[NDArray[np.int64]] = []
    ends: list[NDArray[np.int64]] = []
    done = 0
    for match in matches:
        start, stop = match.span()
        new = _replace(match)
        parts += [source.text[done:start], new]
        begins += [source.begins[done:start], np.full(len(new), source.begins[start])]
        ends += [source.ends[done:start], np.full(len(new), source.ends[stop - 1])]
        done = stop
    parts.append(source.text[done:])
    begins.append(source.begins[done:])
    ends.append(source.ends[done:])
    return Decoded("".join(parts), np.concatenate(begins), np.concatenate(ends)), True


def _replace(match: re.Match[str]) -> str:
    kind = str(match.lastgroup)
    return _REPLACEMENTS.get(kind, _nothing)(match.group(kind))


def _nothing(_: str) -> str:
    return ""


def _point(digits: str) -> str:
    number = int(digits, 16)
    return chr(number) if number < _LAST else ""


def _pair(escaped: str) -> str:
    high, low = int(escaped[2:6], 16), int(escaped[8:12], 16)
    return chr(0x10000 + ((high - 0xD800) << 10) + (low - 0xDC00))


def _sign(sign: str) -> str:
    return " " if sign in _SPACES else sign


def _octets(escaped: str) -> str:
    return bytes.fromhex(re.sub("[%=]", "", escaped)).decode("utf-8", "replace")


_REPLACEMENTS: Final[dict[str, Callable[[str], str]]] = {
    "pair": _pair,
    "four": _point,
    "braced": _point,
    "eight": _point,
    "two": _point,
    "sign": _sign,
    "percent": _octets,
    "mail": _octets,
    "entity": html.unescape,
}
