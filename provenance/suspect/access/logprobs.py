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

In the first two the text may have been given to the API, and then perhaps a served response: which
of its positions there are hangs on what was drawn, unless it is whole, with the token that ended
it. So a record may say how the text ended (`finish`, as in a served log), that it was not served
marked (`marked`: false), or that the API drew it (`generated`: true). The others are counted.

Knows the served tokenizer; knows no key, no index and no scheme.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from tokenizers import Tokenizer

from provenance.coins.contexts import check_token_ids
from provenance.errors import DataError
from provenance.keys.keyring import Keyring
from provenance.keys.tokenizer import tokenise
from provenance.served.records import WHOLE_FINISHES
from provenance.storage.lines import LineReader, check_distinct, read_json_lines
from provenance.storage.shapes.containers import check_format
from provenance.suspect.access.api_tokens import Spelled, fit_text, is_logprob
from provenance.suspect.access.api_tokens import Speller as TokenSpeller
from provenance.suspect.access.listed import Listed, forget_chosen
from provenance.suspect.access.logprob_shapes import unfold_logprobs
from provenance.suspect.access.logprobs_part import LogprobsPart
from provenance.suspect.passes import PART_DOCUMENTS
from provenance.suspect.positions import find_positions
from provenance.suspect.quotations import Speller, find_quotations
from provenance.suspect.shown import read_shown
from provenance.suspect.tokenizers.alignment import align
from provenance.suspect.tokenizers.vocabularies import TokenTable, token_bytes

_MOST_LISTED: Final = 1 << 12
_ROUNDING: Final = 1e-3
_FIELDS: Final = frozenset(
    {
        *("output_token_ids", "top_logprobs", "prompt_logprobs", "response_start", "logprobs"),
        *("finish", "marked", "generated"),
    }
)
_MOST_SHOWN: Final = 1 << 40
_ANSWERS: Final = frozenset({"output", "text", "message", "response", "completion"})
"""Fields of an API's answer that hold its text once more."""


@dataclass(frozen=True)
class _Record:
    """Served ids of one record, its prompt's parts and texts, and the list of every token."""

    ids: NDArray[np.uint32]
    prompt: Sequence[NDArray[np.uint32]]
    shown: tuple[str, ...]
    lists: Sequence[Listed | None]
    aligned: NDArray[np.bool_]
    generated: bool = False
    silent: bool = False
    may_be_cut: bool = False

    @classmethod
    def given(
        cls,
        ids: NDArray[np.uint32],
        prompt: Sequence[NDArray[np.uint32]],
        shown: tuple[str, ...],
        lists: Sequence[Listed | None],
        record: Mapping[str, Any],
    ) -> _Record:
        """Of a text that may have been given to the API; every token has its place."""
        says_enough = (
            record.get("finish") in WHOLE_FINISHES
            or record.get("marked") is False
            or record.get("generated") is True
        )
        return cls(
            ids,
            prompt,
            shown,
            forget_chosen(lists, ids),
            np.ones(ids.shape[0], dtype=np.bool_),
            may_be_cut=not says_enough,
        )


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
        shapes.begin_file()
        check_format(Path(path))
        reader = LineReader(path)
        records = (
            shapes.read(one, origin)
            for origin, record in read_json_lines(reader)
            for one in unfold_logprobs(record, origin)
        )
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
            unknown = sum(record.may_be_cut for record in part)
            yield LogprobsPart(
                replace(positions, open_documents=unknown),
                [record.lists for record in part],
                [record.aligned for record in part],
                all(record.generated for record in part),
                sum(record.silent for record in part),
            )


class _Shapes:
    """The three shapes of a record."""

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self._tokenizer, self._size = tokenizer, size
        self._table: TokenTable | None = None
        self._ids: dict[bytes, int] = {}
        self._spelling = TokenSpeller()
        self._speller = Speller(tokenizer, size)

    def begin_file(self) -> None:
        """Forget how the tokens of the file before were spelt."""
        self._spelling = TokenSpeller()

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
        found = [self._some(entries, origin) for entries in lists]
        return _Record.given(ids, prompt, shown, found, record)

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
        return _Record.given(ids[start:], prompt, shown, found, record)

    def _read_content(self, record: Mapping[str, Any], origin: str) -> _Record:
        content = record["logprobs"].get("content")
        if content is None and _says_nothing(record):
            none = np.empty(0, dtype=np.uint32)
            prompt, shown = self._read_shown(record, none, _MOST_SHOWN, origin)
            unread = none.astype(np.bool_)
            return _Record(none, prompt, shown, [], unread, generated=True, silent=True)
        if not isinstance(content, list):
            raise DataError(
                f"{origin}: logprobs.content must be a list of tokens; it is not. "
                "Ask the API for logprobs."
            )
        spelled = self._spelling.spell(content, record, origin)
        if spelled.numbered:
            return self._read_numbers(content, spelled, record, origin)
        text = spelled.text or ""
        ids = tokenise(self._tokenizer, [text], origin)[0]
        theirs = TokenTable.build([_as_bytes(token) for token in spelled.tokens])
        rows = align(text, ids, self._served, np.arange(theirs.size), theirs).rows
        lists = [
            self._by_bytes(content[row + 1], spelled.listed[row + 1], origin)
            if 0 <= row < len(content) - 1
            else None
            for row in rows.tolist()
        ]
        prompt, shown = self._read_shown(record, ids, _MOST_SHOWN, origin)
        return _Record(ids, prompt, shown, lists, rows >= 0, generated=True)

    def _read_numbers(
        self,
        content: Sequence[Mapping[str, Any]],
        spelled: Spelled,
        record: Mapping[str, Any],
        origin: str,
    ) -> _Record:
        """Ids of the API's own vocabulary, if the record shows that it is the served one."""
        if spelled.text is None and record.get("output_token_ids") != list(spelled.tokens):
            raise DataError(
                f'{origin}: tokens that are numbers ("token_id:17") must come with the text of the '
                "answer, which shows whose they are; it is missing. Add it as output, or start the "
                "server without --return-tokens-as-token-ids."
            )
        numbers = [token for token in spelled.tokens if isinstance(token, int)]
        ids = check_token_ids(numbers, self._size, origin)
        strings = [self._served.strings[i] or b"" for i in ids.tolist()]
        if fit_text(strings, record, origin) is None:
            raise DataError(
                f'{origin}: numbers of tokens ("token_id:17") must be ids of the served tokenizer; '
                "they spell another text than that of the answer. Start the server without "
                "--return-tokens-as-token-ids."
            )
        lists = []
        for token, own in zip(content, spelled.listed, strict=True):
            values = [one.get("logprob") for one in token["top_logprobs"]]
            lists.append(self._some([list(pair) for pair in zip(own, values, strict=True)], origin))
        prompt, shown = self._read_shown(record, ids, _MOST_SHOWN, origin)
        aligned = np.ones(ids.shape[0], dtype=np.bool_)
        return _Record(ids, prompt, shown, lists, aligned, generated=True)

    @property
    def _served(self) -> TokenTable:
        if self._table is None:
            self._table = TokenTable.build(token_bytes(self._tokenizer), self._size)
            for identifier, string in enumerate(self._table.strings):
                if string is not None:
                    self._ids.setdefault(string, identifier)
        return self._table

    def _by_bytes(
        self, token: Mapping[str, Any], spelled: Sequence[bytes | int | None], origin: str
    ) -> Listed | None:
        """What is listed in place of a token, with the ids of the served tokens of these bytes."""
        values = [one.get("logprob") for one in token["top_logprobs"]]
        if not all(map(is_logprob, values)):
            raise _bad_logprobs(origin)
        if not values:
            return None
        pairs = zip(spelled, values, strict=True)
        shared = [[self._ids[key], value] for key, value in pairs if key in self._ids]
        found = self._list(shared, origin)
        return found._replace(total=float(np.exp(np.array(values, dtype=np.float64)).sum()))

    def _some(self, pairs: Any, origin: str) -> Listed | None:
        """As `_list`; None for an empty list: nothing was said there. Names each token once."""
        found = self._list(pairs, origin)
        if np.unique(found.ids).size < found.ids.size:
            raise DataError(
                f"{origin}: a list must name each token once; it names one twice. "
                "Repair the record."
            )
        return found if found.ids.size else None

    def _list(self, pairs: Any, origin: str) -> Listed:
        """Ids and probabilities of one list of [id, logprob]."""
        if (
            not isinstance(pairs, list)
            or len(pairs) > _MOST_LISTED
            or not all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
            or not all(is_logprob(value) for _, value in pairs)
        ):
            raise _bad_logprobs(origin)
        ids = check_token_ids([pair[0] for pair in pairs], self._size, origin)
        masses = np.exp(np.array([pair[1] for pair in pairs], dtype=np.float64))
        if masses.sum() > 1 + _ROUNDING:
            raise DataError(
                f"{origin}: the probabilities of one list must sum to at most 1; got "
                f"{masses.sum():.3f}. Name each token once."
            )
        return Listed(ids, masses, float(masses.sum()))


def _as_bytes(token: bytes | int | None) -> bytes | None:
    return token if isinstance(token, bytes) else None


def _says_nothing(record: Mapping[str, Any]) -> bool:
    """A refusal or a call of tools: the API says nothing of tokens there, and may."""
    message = record.get("message")
    told = message if isinstance(message, dict) else {}
    return bool(record["logprobs"].get("refusal") or told.get("refusal") or told.get("tool_calls"))


def _bad_logprobs(origin: str) -> DataError:
    return DataError(
        f"{origin}: logprobs must be lists of at most {_MOST_LISTED} pairs of id and logprob "
        "(at most 0); they are not. Repair the record."
    )


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
