"""Which tokens of an output may be quoted from what the suspect was shown.

Who is shown a marked passage and repeats it has learnt nothing, in whatever form it repeats it. So
output and prompt are compared as normalised text (`letters`): twelve letters or digits in a row
that stand in any text of the prompt are a quotation, and so is each pair of context and token that
touches one. A function of texts alone; knows no key, index, coin or file.

There are two rules, because there are two kinds of draws:

- *in outputs* every draw was the suspect's own. A match may lie on both sides of a token. What is
  left out depends on what the suspect wrote, on nothing else: if it is innocent and its prompts do
  not carry the mark, that is independent of every coin. If they do carry it, the choices that are
  left out are those that agree with the prompt: what is left leans against the coins, never towards
  them.
- *in documents that are read* the coins themselves drew the text. A position may then be left out
  only by what stood before the draw at it, so a match counts from where it is complete.

Out of reach: base64, encryption, translation, and words inserted between all the others.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.coins.contexts import list_windows
from provenance.coins.distinct import first_positions
from provenance.errors import ConfigurationMismatchError
from provenance.suspect.letters import Letters, decode_escapes, decode_fully, normalise
from provenance.suspect.positions import extends
from provenance.suspect.tokenizers.vocabularies import TokenTable, token_bytes

UNITS: Final = 12
"""Normalised characters in a row that make a quotation."""
UNITS_BEFORE: Final = 8
"""The same, where only the text before a draw may be looked at: a quotation shows itself sooner."""
RULE: Final = f"normalised-{UNITS}-{UNITS_BEFORE}-v1"
"""Names the rule in a verdict; changes whenever a position could count that did not."""

_MOST_DIGITS: Final = 6
"""Digits between letters that are read as one passage: numbers of lines, not tables."""
_TAIL: Final = 64
"""Characters of the prompt's end that an output may continue."""
_CHUNK: Final = 1 << 21
"""Characters that are compared at once; memory is about 200 bytes a character."""
_FACTOR: Final = np.uint64(0x9E3779B97F4A7C15)
_FOUR = _FACTOR ** np.uint64(4)
_Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Spelled:
    """An output as text, and where its tokens stand in it.

    begins, ends : int64 [n], characters of each token; a character that several tokens share
    belongs to all of them. whole : int64 [n], characters that are complete after each token
    """

    text: str
    begins: NDArray[np.int64]
    ends: NDArray[np.int64]
    whole: NDArray[np.int64]

    @classmethod
    def of_offsets(cls, text: str, offsets: NDArray[np.int64]) -> Spelled:
        """From the offsets that a tokenizer gives beside the ids of this text: int64 [n, 2]."""
        return cls(text, offsets[:, 0], offsets[:, 1], offsets[:, 1])


class Speller:
    """Spells token ids as text, with any tokenizer. Parameters: the tokenizer, ids of the model."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._table: TokenTable | None = None

    def spell(self, ids: NDArray[np.uint32]) -> Spelled:
        """Text of the tokens; one without text is one sign that is no letter. Linear."""
        table = self._open()
        signs, widths = table.spell(ids), table.widths[ids]
        content = signs.tobytes()
        text = content.decode("utf-8", "surrogateescape")
        points = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
        lengths = 1 + (points > 0x7F) + (points > 0x7FF) + (points > 0xFFFF)
        lengths[(points >= 0xD800) & (points <= 0xDFFF)] = 1
        character = np.append(np.repeat(np.arange(points.shape[0]), lengths), points.shape[0])
        ends = np.cumsum(widths)
        return Spelled(text, character[ends - widths], character[ends - 1] + 1, character[ends])

    def _open(self) -> TokenTable:
        if self._table is None:
            try:
                strings = token_bytes(self._tokenizer)
            except ConfigurationMismatchError:
                strings = _list_pieces(self._tokenizer)
            size = max(self._size, len(strings))
            self._table = TokenTable.build(strings, size)
        return self._table


def _list_pieces(tokenizer: Tokenizer) -> list[bytes | None]:
    """Tokens of a tokenizer that does not spell texts byte by byte: their letters are right."""
    model: Any = tokenizer.model
    prefix = getattr(model, "continuing_subword_prefix", None) or ""
    suffix = getattr(model, "end_of_word_suffix", None) or ""
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    vocabulary = tokenizer.get_vocab()
    found: list[bytes | None] = [None] * (max(vocabulary.values(), default=-1) + 1)
    for piece, identifier in vocabulary.items():
        if identifier not in special:
            found[identifier] = piece.removeprefix(prefix).removesuffix(suffix).encode()
    return found


def find_quotations(
    outputs: Sequence[Spelled],
    shown: Sequence[tuple[str, ...]],
    width: int,
    *,
    drawn_by_suspect: bool,
    read_as_distribution: bool = False,
) -> list[_Mask]:
    """Per output and token: is the pair of this token and its context left out. bool [tokens].

    Parameters
    ----------
    outputs : texts with their tokens
    shown : per output all texts that the suspect was shown before it wrote; those right before the
        output last
    width : k, tokens of a context
    drawn_by_suspect : False for documents that were given to it, see the module
    read_as_distribution : whole distributions are looked at, not the drawn token alone: the rule
        for documents holds as well, since a token that was not drawn may still be a quotation

    Notes
    -----
    Cost: linear, about 2 microseconds per character of outputs and prompts (docs/validity.md);
    memory 200 bytes a character of 2 million characters at most, or of one prompt.
    """
    masks: list[_Mask] = [np.zeros(one.begins.shape[0], dtype=np.bool_) for one in outputs]
    for rows in _cut(outputs, shown):
        own = [outputs[row] for row in rows]
        texts = [shown[row] for row in rows]
        seen, distinct = _group(texts)
        known = _prepare(distinct)
        found = [np.zeros(one.begins.shape[0], dtype=np.bool_) for one in own]
        if drawn_by_suspect:
            tails = [prompt[-1][-_TAIL:] for prompt in texts]
            for mask, touched in zip(found, _touch(own, tails, seen, known), strict=True):
                mask |= leave_out(touched, width, with_token=True)
        if read_as_distribution or not drawn_by_suspect:
            for mask, ended in zip(found, _end(own, seen, known), strict=True):
                mask |= leave_out(ended, width, with_token=False)
        for row, mask in zip(rows, found, strict=True):
            masks[row] = mask
    return masks


def leave_out(marked: _Mask, width: int, *, with_token: bool) -> _Mask:
    """True where one of the `width` tokens before a token is marked, or the token itself.

    >>> leave_out(np.array([False, True, False, False, False]), 2, with_token=True).tolist()
    [False, True, True, True, False]
    """
    sums = np.concatenate([np.zeros(width + 1, dtype=np.int64), np.cumsum(marked)])
    count = marked.shape[0]
    last = sums[width + 1 :] if with_token else sums[width : width + count]
    return np.asarray(last > sums[:count], dtype=np.bool_)


def _cut(outputs: Sequence[Spelled], shown: Sequence[tuple[str, ...]]) -> Iterator[list[int]]:
    """Numbers of outputs that were shown something, in parts of about `_CHUNK` characters."""
    part: list[int] = []
    size = 0
    before: tuple[str, ...] = ()
    for row, texts in enumerate(shown):
        if not texts:
            continue
        more = len(outputs[row].text)
        if texts is not before:
            new = texts[len(before) :] if before and extends(texts, before) else texts
            more += sum(map(len, new))
        if part and size + more > _CHUNK:
            yield part
            part, size, more = [], 0, len(outputs[row].text) + sum(map(len, texts))
        part.append(row)
        size, before = size + more, texts
    if part:
        yield part


@dataclass(frozen=True)
class _Seen:
    """Which texts each output was shown: int64 [outputs], the first `counts` ones of `groups`."""

    groups: NDArray[np.int64]
    counts: NDArray[np.int64]


def _group(shown: Sequence[tuple[str, ...]]) -> tuple[_Seen, list[tuple[str, ...]]]:
    """The prompt of each output, and the distinct prompts: the turns of a conversation are one."""
    numbers: dict[tuple[str, ...], int] = {}
    distinct: list[tuple[str, ...]] = []
    for texts in shown:
        if texts in numbers:
            continue
        if distinct and extends(texts, distinct[-1]):
            distinct[-1] = texts
        else:
            distinct.append(texts)
        numbers[texts] = len(distinct) - 1
    groups = np.array([numbers[texts] for texts in shown], dtype=np.int64)
    return _Seen(groups, np.array(list(map(len, shown)), dtype=np.int64)), distinct


@dataclass(frozen=True)
class _Known:
    """Names of all letters in a row of the prompts, 12 and 8 of them: int64 [2, .].

    The second row is the number of the text in its prompt, which grows within each prompt.
    """

    long: NDArray[np.int64]
    short: NDArray[np.int64]


def _prepare(prompts: Sequence[tuple[str, ...]]) -> _Known:
    letters, groups, places = [], [], []
    for number, texts in enumerate(prompts):
        for place, text in enumerate(texts):
            forms = {text, decode_escapes(text).text, decode_fully(text).text}
            own = [form for one in sorted(forms) for form in _spell_both(normalise(one))]
            letters += own
            groups += [number] * len(own)
            places += [place] * len(own)
    rows, at = np.array(groups, dtype=np.int64), np.array(places, dtype=np.int64)
    found = [_name(letters, rows, units) for units in (UNITS, UNITS_BEFORE)]
    return _Known(*(np.stack([names, at[lines]]) for lines, _, names in found))


def _spell_both(letters: Letters) -> list[Letters]:
    """With digits and, if there are any, without."""
    return [letters, letters.without_digits()] if letters.digits.any() else [letters]


def _name(
    letters: Sequence[Letters], groups: NDArray[np.int64], units: int
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Every so many letters in a row: number of the text, place in all texts, and name.

    A name is a 64-bit hash of the letters and of the text's group: an accident leaves a position
    out, and has probability 1e-19 for each two.
    """
    lengths = np.array([one.codes.shape[0] for one in letters], dtype=np.int64)
    codes = np.concatenate([*(one.codes for one in letters), np.empty(0, dtype=np.uint32)])
    rows, starts = list_windows(codes, lengths, units, followed=False)
    order = np.concatenate([*(one.order for one in letters), np.empty(0, dtype=np.int64)])
    close = order[starts + units - 1] - order[starts] < units + _MOST_DIGITS
    rows, starts = rows[close], starts[close]
    if not starts.size:
        return rows, starts, starts
    mixed = (codes.astype(np.uint64) + np.uint64(1)) * np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(29)
    # a polynomial in _FACTOR: 2, then 4, then 8 letters, then the rest
    two = mixed[:-1] * _FACTOR + mixed[1:]
    four = two[:-2] * _FACTOR ** np.uint64(2) + two[2:]
    hashes = four[:-4] * _FOUR + four[4:]
    if units == UNITS:
        hashes = hashes[:-4] * _FOUR + four[8:]
    names = hashes[starts] ^ ((groups[rows].astype(np.uint64) + np.uint64(1)) * _FACTOR)
    return rows, starts, names.view(np.int64)


def _find(names: NDArray[np.int64], known: NDArray[np.int64], counts: NDArray[np.int64]) -> _Mask:
    """Which names are known from the first `counts` texts of their prompt. Linear: by hashing."""
    if not names.size:
        return np.zeros(0, dtype=np.bool_)
    first = first_positions(np.concatenate([known[0], names]))[known.shape[1] :]
    found = first < known.shape[1]
    found[found] = known[1][first[found]] < counts[found]
    return np.asarray(found, dtype=np.bool_)


def _touch(
    outputs: Sequence[Spelled],
    tails: Sequence[str],
    seen: _Seen,
    known: _Known,
) -> list[_Mask]:
    """Tokens of each output that a quotation touches, the end of the prompt read before it."""
    letters, rows, plain = [], [], []
    for row, (output, tail) in enumerate(zip(outputs, tails, strict=True)):
        text = tail + output.text
        plain.append(normalise(text))
        own = _spell_both(plain[-1])
        decoded = decode_fully(text)
        if decoded.text != text:
            own += _spell_both(normalise(decoded))
        letters += own
        rows += [row] * len(own)
    owners = np.array(rows, dtype=np.int64)
    lines, starts, names = _name(letters, seen.groups[owners], UNITS)
    found = _find(names, known.long, seen.counts[owners[lines]])
    begins = np.concatenate([np.empty(0, dtype=np.int64), *(one.begins for one in letters)])
    ends = np.concatenate([np.empty(0, dtype=np.int64), *(one.ends for one in letters)])
    matched = owners[lines[found]]
    first, last = begins[starts[found]], ends[starts[found] + UNITS - 1]
    order = np.argsort(matched, kind="stable")
    cuts = np.searchsorted(matched[order], np.arange(len(outputs) + 1))
    touched = []
    for row, (output, tail) in enumerate(zip(outputs, tails, strict=True)):
        own_matches = order[cuts[row] : cuts[row + 1]]
        covered = _cover(
            first[own_matches] - len(tail), last[own_matches] - len(tail), len(output.text)
        )
        _spread(covered, plain[row], len(tail))
        touched.append(_meet(covered, output))
    return touched


def _cover(first: NDArray[np.int64], last: NDArray[np.int64], length: int) -> NDArray[np.bool_]:
    """Characters that lie in one of the spans: bool [length]."""
    steps = np.zeros(length + 1, dtype=np.int64)
    steps += np.bincount(np.clip(first, 0, length), minlength=length + 1)
    steps -= np.bincount(np.clip(last, 0, length), minlength=length + 1)
    return np.asarray(np.cumsum(steps)[:length] > 0, dtype=np.bool_)


def _spread(covered: _Mask, letters: Letters, shift: int) -> None:
    """Signs that are no letters belong to the quotation before or behind them: changes `covered`.

    A quotation cannot be told from its surroundings where there are no letters.
    """
    if not covered.any():
        return
    kept = letters.ends > shift
    begins, ends = letters.begins[kept] - shift, letters.ends[kept] - shift
    length = covered.shape[0]
    sides = np.concatenate([[False], covered, [False]])
    gap_begins = np.append(0, ends)
    gap_ends = np.append(begins, length)
    touched = sides[gap_begins] & (gap_begins > 0) | sides[np.minimum(gap_ends, length) + 1]
    touched &= gap_ends > gap_begins
    covered |= _cover(gap_begins[touched], gap_ends[touched], length)


def _meet(covered: _Mask, output: Spelled) -> _Mask:
    """Tokens with a covered character; one without characters, with a covered neighbour."""
    sums = np.append(0, np.cumsum(covered))
    empty = output.ends <= output.begins
    begins = np.maximum(output.begins - empty, 0)
    ends = np.minimum(np.maximum(output.ends, output.begins) + empty, covered.shape[0])
    return np.asarray(sums[ends] > sums[begins], dtype=np.bool_)


def _end(outputs: Sequence[Spelled], seen: _Seen, known: _Known) -> list[_Mask]:
    """Tokens of each output in which, or just before which, a quotation is complete.

    Escapes of the output stay as they are: whether one begins is not known before it ends.
    """
    letters = [_spell_both(normalise(output.text)) for output in outputs]
    flat = [one for own in letters for one in own]
    rows = np.array([row for row, own in enumerate(letters) for _ in own], dtype=np.int64)
    lines, starts, names = _name(flat, seen.groups[rows], UNITS_BEFORE)
    found = _find(names, known.short, seen.counts[rows[lines]])
    sizes = np.array([one.codes.shape[0] for one in flat], dtype=np.int64)
    ending = np.zeros(int(sizes.sum()), dtype=np.bool_)
    ending[starts[found] + UNITS_BEFORE - 1] = True
    masks = [np.zeros(output.begins.shape[0], dtype=np.bool_) for output in outputs]
    for number, part in enumerate(np.split(ending, np.cumsum(sizes)[:-1])):
        if part.any():
            row = int(rows[number])
            masks[row] |= _complete(part, flat[number].ends, outputs[row])
    return masks


def _complete(ending: _Mask, ends: NDArray[np.int64], output: Spelled) -> _Mask:
    """Tokens with an ending letter; one without letters looks at the last letter before it."""
    letters = np.searchsorted(ends, output.whole, side="right")
    before = np.append(0, letters[:-1])
    before -= (before == letters) & (before > 0)
    sums = np.append(0, np.cumsum(ending))
    return np.asarray(sums[letters] > sums[before], dtype=np.bool_)
