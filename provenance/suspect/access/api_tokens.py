"""How an API spells its tokens: which bytes each of them adds to the text.

An honest record says so in `bytes`. Others give text only, and some give what looks like text and
is none: raw pieces of a vocabulary (a space spelt U+0120 or U+2581, a newline <0x0A>), the number
of a token ("token_id:17"), or words without the space before them. Read as text these give contexts
that were never served, and a guilty suspect looks innocent. So one spelling is found for a whole
record, checked against its text where there is one, and what allows no reading is refused.

Knows strings and bytes; knows no tokenizer, no model and no key.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from provenance.errors import DataError
from provenance.suspect.tokenizers.vocabularies import byte_alphabet

Family = Literal["text", "bytes", "signs"]
"""Tokens as text; pieces of a byte-level vocabulary; pieces with U+2581 for the space."""

_ALPHABET: Final = byte_alphabet()
_BYTE_SIGNS: Final = {"\u0120", "\u010a"}
"""Space and newline of byte-level pieces."""
_SPACES: Final = set(" \t\n\r")
_SPACE_SIGN: Final = "\u2581"
_BYTE_TOKEN: Final = re.compile("<0x([0-9A-F]{2})>")
_NUMBER: Final = re.compile("token_id:(0|[1-9][0-9]{0,9})")
_CONTROL: Final = re.compile(r"[<\[].+[>\]]", re.DOTALL)
_UNREADABLE: Final = "\ufffd"
_ROUNDING: Final = 1e-3
_LEAST_LOGPROB: Final = -1e6
_SLACK: Final = 0.01
"""Nats by which two logprobs of one position may disagree: half-precision arithmetic."""
_WORDS: Final = 50
"""So many words in a record, drawn or listed, none of them after a space, are no text."""
_STOP: Final = 64
"""Characters of a stop string or control token that may follow the answer."""
_ADVICE: Final = (
    'Ask the API for bytes, or add the text of the answer as "output" (docs/formats.md)'
)


@dataclass(frozen=True)
class Spelled:
    """The tokens of one record.

    tokens : per token its bytes, None where the API did not say them; of `numbered` records its id
    listed : per token the same of every token of its list
    text : of the answer, None for numbered records without one
    numbered : the API gave ids of its vocabulary instead of text
    """

    tokens: Sequence[bytes | int | None]
    listed: Sequence[Sequence[bytes | int | None]]
    text: str | None
    numbered: bool


class Speller:
    """Reads the tokens of one file: a spelling that one record shows holds for all of them."""

    def __init__(self) -> None:
        self._family: Family | None = None

    def spell(self, content: Sequence[Any], record: Mapping[str, Any], origin: str) -> Spelled:
        """The tokens of `logprobs.content`, as bytes or as ids.

        Parameters: the list; the record with its `output` or `message`, if any, which the tokens
        must spell; the place for messages.

        Raises
        ------
        DataError naming the record if a token is malformed, the tokens do not spell the text, are
        spelt in no way that can be told, or a list lacks a token that belongs into it.
        """
        for token in content:
            if not isinstance(token, dict) or not isinstance(token.get("top_logprobs"), list):
                raise DataError(
                    f"{origin}: every token must have top_logprobs, a list; it has not. "
                    "Ask the API for top_logprobs."
                )
        answer = answer_of(record, origin)
        pairs = [_read(token, origin) for token in content]
        lists = [[_read(one, origin) for one in token["top_logprobs"]] for token in content]
        everything = [*pairs, *(pair for own in lists for pair in own)]
        _check_listed(content, pairs, lists, origin)
        numbered = [_number(pair) is not None for pair in everything]
        if any(numbered):
            return _numbers(pairs, lists, answer, all(numbered), origin)
        tokens: Sequence[bytes | None]
        for family in self._choose(everything, answer, origin):
            tokens = [_spell(pair, family) for pair in pairs]
            text = fit_text(tokens, record, origin)
            if text is not None:
                break
        else:
            raise DataError(
                f"{origin}: the tokens must spell the text of the answer; they do not. Give the "
                "answer and the tokens of one response, with bytes if the API has them."
            )
        self._family = self._family or (family if family != "text" else None)
        listed = [[_spell(pair, family) for pair in own] for own in lists]
        if answer is None:
            _check_spaces(tokens, listed, origin)
        else:
            tokens, text = _cut_control(tokens, text, answer)
        return Spelled(tokens, listed, text, False)

    def _choose(
        self, everything: Sequence[_Pair], answer: str | None, origin: str
    ) -> tuple[Family, ...]:
        """Spellings to try, the likeliest first; with a text there may be several."""
        unsaid = [text for text, spelled in everything if text is not None and spelled is None]
        # bytes that only repeat the string say nothing about it
        echoed = [
            text for text, spelled in everything if text is not None and _is_echo(text, spelled)
        ]
        found, sure = _family_of(unsaid or echoed)
        if found is not None and not sure:
            found = self._family or found
        if answer is not None:
            return (found, "text") if found in ("bytes", "signs") else ("text", "bytes", "signs")
        known = self._family
        if found is None or (known is not None and known != found):
            raise DataError(
                f"{origin}: tokens must be text, or all of them pieces of one vocabulary; they "
                f"are spelt in several ways, or differently than before. {_ADVICE}."
            )
        return (found,)


_Pair = tuple[str | None, bytes | None]
"""A token's string and its bytes, as far as the API gave them."""


def answer_of(record: Mapping[str, Any], origin: str) -> str | None:
    """The text of the answer, where the record has it: `output`, or `content` of `message`."""
    message = record.get("message")
    found = record.get("output")
    if found is None and isinstance(message, dict):
        found = message.get("content")
    if found is not None and not isinstance(found, str):
        raise DataError(
            f"{origin}: output (or message.content) must be the text of the answer; it is no "
            "string. Repair the record, or leave it out."
        )
    return found


def is_logprob(value: Any) -> bool:
    """A number that can be the logarithm of a probability."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, int):  # too long for a float, perhaps
        return _LEAST_LOGPROB <= value <= 0
    return not math.isnan(value) and value <= _ROUNDING


def _read(token: Any, origin: str) -> _Pair:
    """String and bytes of one token."""
    text = token.get("token") if isinstance(token, dict) else None
    spelled = token.get("bytes") if isinstance(token, dict) else None
    if (text is None and spelled is None) or not (text is None or isinstance(text, str)):
        raise _bad_token(origin)
    if spelled is None:
        return text, None
    if not isinstance(spelled, list) or not set(map(type, spelled)) <= {int}:
        raise _bad_token(origin)
    try:
        return text, bytes(spelled)
    except ValueError as error:
        raise _bad_token(origin) from error


def _bad_token(origin: str) -> DataError:
    return DataError(
        f"{origin}: a token must have bytes (0 .. 255) or token (a string); it has not. "
        "Repair the record."
    )


def _is_echo(text: str | None, spelled: bytes | None) -> bool:
    return text is not None and spelled == text.encode("utf-8", "replace")


def _number(pair: _Pair) -> int | None:
    """N of "token_id:N", where no bytes say anything else."""
    text, spelled = pair
    if text is None or not (spelled is None or _is_echo(text, spelled)):
        return None
    found = _NUMBER.fullmatch(text)
    return int(found[1]) if found else None


def _numbers(
    pairs: Sequence[_Pair],
    lists: Sequence[Sequence[_Pair]],
    answer: str | None,
    whole: bool,
    origin: str,
) -> Spelled:
    """A record of numbers; that they are ids of the served vocabulary is for the caller to see."""
    if not whole:
        raise DataError(
            f'{origin}: either all tokens must be numbers ("token_id:17") or none; some are. '
            "Start the server without --return-tokens-as-token-ids."
        )
    listed = [[_number(pair) for pair in own] for own in lists]
    return Spelled([_number(pair) for pair in pairs], listed, answer, True)


def _family_of(strings: Sequence[str]) -> tuple[Family | None, bool]:
    """How strings without bytes of their own are spelt (None: in several ways), and if it shows."""
    pieces = [text for text in strings if _BYTE_TOKEN.fullmatch(text)]
    plain = [text for text in strings if not _CONTROL.fullmatch(text)]
    signs = set("".join(plain))
    spaced = any(sign.isspace() for sign in signs)
    by_bytes, by_signs = bool(signs & _BYTE_SIGNS), _SPACE_SIGN in signs or bool(pieces)
    letters = signs - _SPACES
    # some servers spell only the first space of a token as a sign; ASCII is the same either way
    half = all(sign.isascii() or sign in _BYTE_SIGNS for sign in letters)
    begins = any(text[:1].isspace() for text in plain)
    if by_bytes and not begins and letters <= _ALPHABET.keys() and (half or not spaced):
        return "bytes", True
    if by_signs and " " not in signs:
        return "signs", True
    if by_bytes or by_signs:
        # letters and block elements of honest text, which has spaces before its words
        return ("text" if any(text.startswith(" ") for text in plain) else None), True
    return "text", spaced


def _spell(pair: _Pair, family: Family) -> bytes | None:
    """The bytes of one token; None where they are not known: characters that were cut."""
    text, spelled = pair
    if text is None or (spelled is not None and not _is_echo(text, spelled)):
        return spelled
    if _UNREADABLE in text:
        return None
    if family == "bytes" and _ALPHABET.keys() | _SPACES >= set(text):
        return bytes(_ALPHABET[sign] if sign in _ALPHABET else ord(sign) for sign in text)
    if family == "signs":
        if match := _BYTE_TOKEN.fullmatch(text):
            return bytes([int(match[1], 16)])
        if _CONTROL.fullmatch(text):
            return text.encode("utf-8", "replace")
        return text.replace(_SPACE_SIGN, " ").encode("utf-8", "replace")
    return text.encode("utf-8", "replace")


def _speaks_more(record: Mapping[str, Any]) -> bool:
    """Whether the API drew more than the answer: its reasoning, or calls of tools."""
    message = record.get("message")
    return isinstance(message, dict) and any(
        message.get(name) for name in ("reasoning", "reasoning_content", "tool_calls", "refusal")
    )


def fit_text(tokens: Sequence[bytes | None], record: Mapping[str, Any], origin: str) -> str | None:
    """The text that the tokens spell; None if it is not that of the record's answer.

    Space around it, a stop string or control token behind it, and, where the record has reasoning
    or calls of tools, what stands around it may differ. Where the API did not say some bytes
    (None), the answer is the text if it holds all others in their order.
    """
    answer, more = answer_of(record, origin), _speaks_more(record)
    if any(token is None for token in tokens):
        return _fit_around(tokens, answer)
    text = b"".join(token for token in tokens if token is not None).decode("utf-8", "ignore")
    if answer is None:
        return text
    said, wanted = text.strip(), answer.strip()
    follows = said.startswith(wanted) and len(said) - len(wanted) <= _STOP
    return text if said == wanted or follows or (more and wanted in said) else None


def _fit_around(tokens: Sequence[bytes | None], answer: str | None) -> str | None:
    """Where some bytes are not known: the answer, if it holds the known ones in their order."""
    whole = b"".join(_UNREADABLE.encode() if token is None else token for token in tokens)
    text = whole.decode("utf-8", "ignore")
    if answer is None:
        return text
    place = 0
    for part in text.strip().split(_UNREADABLE):
        found = answer.find(part.strip(), place)
        if found < 0:
            return None
        place = found + len(part.strip())
    return answer


def _cut_control(
    tokens: Sequence[bytes | None], text: str, answer: str
) -> tuple[Sequence[bytes | None], str]:
    """Without the name of the control token that ended the answer and is no part of its text."""
    last = (tokens[-1] or b"").decode("utf-8", "ignore") if tokens else ""
    if _CONTROL.fullmatch(last) and text.endswith(last) and not answer.rstrip().endswith(last):
        return tokens[:-1], text[: -len(last)]
    return tokens, text


def _check_listed(
    content: Sequence[Mapping[str, Any]],
    pairs: Sequence[_Pair],
    lists: Sequence[Sequence[_Pair]],
    origin: str,
) -> None:
    """A token that was drawn and is more probable than the last one listed must be listed."""
    for place, (token, pair, listed) in enumerate(zip(content, pairs, lists, strict=True)):
        own = token.get("logprob")
        values = [one.get("logprob") for one in token["top_logprobs"]]
        if own is not None and not is_logprob(own):
            raise DataError(
                f"{origin}: logprob must be a number of at most 0; it is not. Repair the record."
            )
        if own is None or not values or not all(map(is_logprob, values)):
            continue
        ends = place == len(pairs) - 1 and _CONTROL.fullmatch(pair[0] or "")
        if ends or _is_among(pair, listed) or own <= min(values) + _SLACK:
            continue
        raise DataError(
            f"{origin}: token {place + 1} has logprob {own:.4g}, so it must be in its own "
            f"top_logprobs, which go down to {min(values):.4g}; it is not. The lists belong to "
            f"other tokens, or spell them differently. {_ADVICE}."
        )


def _is_among(pair: _Pair, listed: Sequence[_Pair]) -> bool:
    """Whether a token of the same bytes, as the API gives them, is listed."""
    return _plain(pair) in map(_plain, listed)


def _plain(pair: _Pair) -> bytes:
    text, spelled = pair
    return (text or "").encode("utf-8", "replace") if spelled is None else spelled


def _check_spaces(
    tokens: Sequence[bytes | None], listed: Sequence[Sequence[bytes | None]], origin: str
) -> None:
    """Of so many words some begin with a space, unless the API took it away."""
    spelled = [token for own in (tokens, *listed) for token in own if token]
    words = sum(len(token) > 2 and token.isalpha() for token in spelled)  # of ASCII letters
    if words >= _WORDS and not any(token.startswith(b" ") for token in spelled):
        raise DataError(
            f"{origin}: tokens must be spelt with the space before them; of {words} words none "
            f"has one. {_ADVICE}."
        )
