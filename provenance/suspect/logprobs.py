"""Logprobs of an API: the most probable tokens at every position, instead of all of them.

Three shapes of a record, one per line (JSONL, also .gz and .zst):

- ids of the served tokenizer: `output_token_ids` and `top_logprobs`, for each of these tokens a
  list of [id, logprob]; optionally `prompt_token_ids`;
- vLLM: `prompt_token_ids` and `prompt_logprobs` (null, then {id: {"logprob": ...}}), and
  `response_start`, where in them the response that was read begins;
- OpenAI chat: `logprobs.content`, for each token `bytes` (or `token`) and `top_logprobs` of the
  same kind. The API's tokens may be those of any tokenizer.

What the model was shown before (`prompt`, `messages` and all others that `shown` knows) may stand
beside each of them.

Knows the served tokenizer; knows no key, no index and no scheme.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.contexts import check_token_ids
from provenance.errors import DataError
from provenance.keys.keyring import Keyring
from provenance.lines import LineReader, check_distinct, read_json_lines
from provenance.suspect.alignment import align
from provenance.suspect.passes import PART_DOCUMENTS, Reading
from provenance.suspect.positions import Positions, find_positions
from provenance.suspect.quotations import Speller, find_quotations
from provenance.suspect.shown import read_shown
from provenance.suspect.vocabularies import TokenTable, token_bytes
from provenance.tokenizer import tokenise

__all__ = ["LogprobsPart", "read_logprobs"]

_MOST_LISTED: Final = 1 << 12
_ROUNDING: Final = 1e-3
_LEAST_LOGPROB: Final = -1e6
_FIELDS: Final = frozenset(
    {"output_token_ids", "top_logprobs", "prompt_logprobs", "response_start", "logprobs"}
)
_MOST_SHOWN: Final = 1 << 40
_ANSWERS: Final = frozenset({"output", "text", "message", "response", "completion"})
"""Fields of an API's answer that hold its text once more."""


@dataclass(frozen=True)
class LogprobsPart:
    """Some records: their positions, and what the API said at each served token.

    lists : per record and served token, ids uint32 [.] and probabilities float64 [.]; None where
        the API's tokens are cut differently, or it said nothing
    generated : the API itself drew the texts; else they may have been given to it
    """

    positions: Positions
    lists: Sequence[Sequence[_List | None]]
    generated: bool

    @property
    def listed(self) -> NDArray[np.bool_]:
        """Positions with a list: bool [m]."""
        pairs = zip(self.positions.rows.tolist(), self.positions.offsets.tolist(), strict=True)
        return np.array(
            [self.lists[row][place] is not None for row, place in pairs], dtype=np.bool_
        )

    def read(self, wanted: NDArray[np.bool_]) -> Reading:
        """The listed probabilities at the wanted positions (bool [m])."""
        places, tokens, masses, read = [], [], [], []
        kept = 0.0
        for place in np.flatnonzero(wanted):
            row, offset = self.positions.rows[place], self.positions.offsets[place]
            found = self.lists[row][offset]
            if found is None:
                continue
            places.append(np.full(found[0].shape[0], self.positions.contexts[place]))
            tokens.append(found[0])
            masses.append(found[1])
            read.append(place)
            kept += float(found[1].sum())
        return Reading(
            contexts=np.concatenate([np.empty(0, dtype=np.int64), *places]),
            tokens=np.concatenate([np.empty(0, dtype=np.uint32), *tokens]),
            masses=np.concatenate([np.empty(0), *masses]),
            visited=self.positions.contexts[np.array(read, dtype=np.int64)],
            tally={
                "positions": float(wanted.sum()),
                "positions_read": float(len(read)),
                "mass_kept": kept,
            },
        )


_List = tuple[NDArray[np.uint32], NDArray[np.float64]]


@dataclass(frozen=True)
class _Record:
    """Served ids of one record, its prompt's parts and texts, and the list of every token."""

    ids: NDArray[np.uint32]
    prompt: Sequence[NDArray[np.uint32]]
    shown: tuple[str, ...]
    lists: Sequence[_List | None]
    generated: bool = False


def read_logprobs(
    paths: Sequence[Path | str], tokenizer: Tokenizer, keyring: Keyring
) -> Iterator[LogprobsPart]:
    """Records of the files in parts of 256.

    Parameters: JSONL files; the served tokenizer; the keyring for k and the vocabulary size.

    Raises
    ------
    DataError naming file and line for another shape, ids outside the vocabulary, or probabilities
    that are none; StorageError.

    Notes
    -----
    Memory: one part. Cost: parsing; about 20 microseconds a position.
    """
    shapes = _Shapes(tokenizer, keyring.vocabulary_size)
    check_distinct(paths)
    for path in paths:
        reader = LineReader(path)
        records = (shapes.read(record, origin) for origin, record in read_json_lines(reader))
        while part := list(islice(records, PART_DOCUMENTS)):
            prompts = [(row, ids) for row, record in enumerate(part) for ids in record.prompt]
            positions = find_positions(
                [record.ids for record in part],
                [ids for _, ids in prompts],
                [row for row, _ in prompts],
                keyring.context_width,
                {},
                shapes.find_quotations(part, keyring.context_width),
            )
            lists = [record.lists for record in part]
            yield LogprobsPart(positions, lists, all(record.generated for record in part))


class _Shapes:
    """The three shapes of a record."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._table: TokenTable | None = None
        self._ids: dict[bytes, int] = {}
        self._speller = Speller(tokenizer, size)

    def find_quotations(self, records: Sequence[_Record], width: int) -> list[NDArray[np.bool_]]:
        """Tokens that may be quoted: two rules, for texts that the API drew and for given ones."""
        spelled = [self._speller.spell(record.ids) for record in records]
        drawn, given = (
            find_quotations(
                spelled,
                [record.shown if record.generated is generated else () for record in records],
                width,
                drawn_by_suspect=generated,
                read_as_distribution=True,
            )
            for generated in (True, False)
        )
        return [one | other for one, other in zip(drawn, given, strict=True)]

    def _read_shown(
        self, record: Mapping[str, Any], ids: NDArray[np.uint32], start: int, origin: str
    ) -> tuple[list[NDArray[np.uint32]], tuple[str, ...]]:
        """Parts and texts of what stands before these ids; `start`: ids of `prompt_token_ids`."""
        shown = read_shown(record, origin, _FIELDS, _ANSWERS)
        texts, _ = shown.before([self._speller.spell(ids).text])
        parts = tokenise(self._tokenizer, list(texts), origin)
        if shown.token_ids is not None:
            asked = check_token_ids(shown.token_ids, self._size, origin)[:start]
            parts.append(asked)
            texts += (self._speller.spell(asked).text,)
        return parts, tuple(text for text in texts if text)

    def read(self, record: Any, origin: str) -> _Record:
        if isinstance(record, dict):
            if "top_logprobs" in record and "output_token_ids" in record:
                return self._read_ids(record, origin)
            if "prompt_logprobs" in record and "response_start" in record:
                return self._read_vllm(record, origin)
            if isinstance(record.get("logprobs"), dict):
                return self._read_content(record, origin)
        raise DataError(
            f"{origin}: must have output_token_ids and top_logprobs, prompt_logprobs and "
            "response_start, or logprobs.content; it has not. See docs/formats.md."
        )

    def _read_ids(self, record: Mapping[str, Any], origin: str) -> _Record:
        ids = check_token_ids(record["output_token_ids"], self._size, origin)
        lists = record["top_logprobs"]
        if not isinstance(lists, list) or len(lists) != ids.shape[0]:
            raise DataError(
                f"{origin}: top_logprobs must be a list with an entry for each of the "
                f"{ids.shape[0]} output tokens; it is not. Repair the record."
            )
        prompt, shown = self._read_shown(record, ids, _MOST_SHOWN, origin)
        return _Record(ids, prompt, shown, [self._some(entries, origin) for entries in lists])

    def _read_vllm(self, record: Mapping[str, Any], origin: str) -> _Record:
        ids = check_token_ids(record.get("prompt_token_ids", []), self._size, origin)
        start, lists = record["response_start"], record["prompt_logprobs"]
        if (
            not isinstance(lists, list)
            or len(lists) != ids.shape[0]
            or isinstance(start, bool)
            or not isinstance(start, int)
            or not 0 <= start <= ids.shape[0]
        ):
            raise DataError(
                f"{origin}: prompt_logprobs must have an entry for each of the {ids.shape[0]} "
                "prompt_token_ids, and response_start lie among them; they do not. "
                "Repair the record."
            )
        found = [self._some(_vllm_pairs(entry, origin), origin) for entry in lists[start:]]
        prompt, shown = self._read_shown(record, ids[start:], start, origin)
        return _Record(ids[start:], prompt, shown, found)

    def _read_content(self, record: Mapping[str, Any], origin: str) -> _Record:
        content = record["logprobs"].get("content")
        if not isinstance(content, list):
            raise DataError(
                f"{origin}: logprobs.content must be a list of tokens; it is not. "
                "Ask the API for logprobs."
            )
        strings = [_bytes_of(token, origin) for token in content]
        text = b"".join(strings).decode("utf-8", "ignore")
        ids = tokenise(self._tokenizer, [text], origin)[0]
        theirs = TokenTable.build(strings)
        rows = align(text, ids, self._served, np.arange(len(strings)), theirs).rows
        lists = [self._by_bytes(content[row + 1], origin) if row >= 0 else None for row in rows]
        prompt, shown = self._read_shown(record, ids, _MOST_SHOWN, origin)
        return _Record(ids, prompt, shown, lists, generated=True)

    @property
    def _served(self) -> TokenTable:
        if self._table is None:
            self._table = TokenTable.build(token_bytes(self._tokenizer), self._size)
            for identifier, string in enumerate(self._table.strings):
                if string is not None:
                    self._ids.setdefault(string, identifier)
        return self._table

    def _by_bytes(self, token: Mapping[str, Any], origin: str) -> _List | None:
        listed = token.get("top_logprobs")
        if not isinstance(listed, list):
            raise DataError(
                f"{origin}: every token must have top_logprobs, a list; it has not. "
                "Ask the API for top_logprobs."
            )
        pairs = [(_bytes_of(one, origin), one.get("logprob")) for one in listed]
        if not all(_is_logprob(value) for _, value in pairs):
            raise _bad_logprobs(origin)
        shared = [[self._ids[string], value] for string, value in pairs if string in self._ids]
        return self._list(shared, origin) if pairs else None

    def _some(self, pairs: Any, origin: str) -> _List | None:
        """As `_list`; None for an empty list: nothing was said there."""
        found = self._list(pairs, origin)
        return found if found[0].size else None

    def _list(self, pairs: Any, origin: str) -> _List:
        """Ids and probabilities of one list of [id, logprob]."""
        if (
            not isinstance(pairs, list)
            or len(pairs) > _MOST_LISTED
            or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
            or not all(_is_logprob(value) for _, value in pairs)
        ):
            raise _bad_logprobs(origin)
        ids = check_token_ids([pair[0] for pair in pairs], self._size, origin)
        masses = np.exp(np.array([pair[1] for pair in pairs], dtype=np.float64))
        if masses.sum() > 1 + _ROUNDING:
            raise DataError(
                f"{origin}: the probabilities of one list must sum to at most 1; got "
                f"{masses.sum():.3f}. Name each token once."
            )
        return ids, masses


def _bad_logprobs(origin: str) -> DataError:
    return DataError(
        f"{origin}: logprobs must be lists of at most {_MOST_LISTED} pairs of id and logprob "
        "(at most 0); they are not. Repair the record."
    )


def _is_logprob(value: Any) -> bool:
    """A number that can be the logarithm of a probability."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    if isinstance(value, int):  # too long for a float, perhaps
        return _LEAST_LOGPROB <= value <= 0
    return not math.isnan(value) and value <= _ROUNDING


def _vllm_pairs(entry: Any, origin: str) -> list[list[Any]]:
    """[id, logprob] of one entry; null (the first token has no prediction) is an empty list."""
    if entry is None:
        return []
    try:
        if not all(key.isascii() and key.isdecimal() and key == str(int(key)) for key in entry):
            raise ValueError
        return [[int(key), value["logprob"]] for key, value in entry.items()]
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"{origin}: prompt_logprobs must map ids to objects with a logprob; they do not. "
            "Repair the record."
        ) from error


def _bytes_of(token: Any, origin: str) -> bytes:
    """The bytes of a token as the API spells it."""
    try:
        spelled = token.get("bytes")
        if spelled is None:
            return str.encode(token["token"], "utf-8")
        if not isinstance(spelled, list) or not set(map(type, spelled)) <= {int}:
            raise TypeError
        return bytes(spelled)
    except (AttributeError, TypeError, ValueError, KeyError) as error:
        raise DataError(
            f"{origin}: a token must have bytes (0 .. 255) or token (a string); it has not. "
            "Repair the record."
        ) from error
