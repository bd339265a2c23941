"""What a suspect was shown before it wrote: the prompt of a record, under whatever name it stands.

Every field of a record is mapped, or known to be harmless, or refused by name: a prompt that is
dropped without a word lets an innocent suspect's quotations count as its own choices. Knows names
and shapes of fields; knows no token and no key.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from provenance.errors import DataError
from provenance.suspect.letters import normalise
from provenance.suspect.positions import Chat
from provenance.suspect.quotations import UNITS

SHOWN: Final = (
    "tools",
    "functions",
    "tool_choice",
    "response_format",
    "system",
    "system_prompt",
    "system_message",
    "system_instruction",
    "developer",
    "instructions",
    "documents",
    "document",
    "passage",
    "passages",
    "article",
    "context",
    "contexts",
    "examples",
    "few_shot",
    "history",
    "conversation",
    "conversations",
    "chat",
    "chat_history",
    "dialog",
    "dialogue",
    "turns",
    "instruction",
    "input",
    "inputs",
    "question",
    "query",
    "request",
    "user",
    "user_prompt",
    "prompt",
    "prompts",
    "messages",
    "prefix",
    "prefill",
    "suffix",
    "tool_results",
    "shown",
)
"""Fields that hold what the suspect was shown, those that stand next to its answer last."""

NOT_SHOWN: Final = "not_shown"
"""The one field whose content nobody looks at: what the lab says was not shown."""

_IDS: Final = "prompt_token_ids"
_HARMLESS: Final = frozenset(
    re.findall(
        r"\w+",
        """
    id uuid key index idx number row line seed n model model_name model_id engine provider api
    endpoint base_url url object type kind usage finish_reason stop_reason stop_sequence
    finish_details created created_at timestamp time date datetime started ended duration latency
    temperature top_p top_k min_p max_tokens max_completion_tokens max_new_tokens
    frequency_penalty presence_penalty repetition_penalty service_tier system_fingerprint version
    revision hash sha256 md5 checksum fingerprint status cost price token_count num_tokens
    capability category task subset split lang language domain topic dataset file filename path
    session session_id conversation_id request_id response_id custom_id trace_id span_id user_id
    account organisation organization replica region labels label tags tag week cohort group
    quality score rating
        """,
    )
)
"""Fields that describe a record; their strings are short and on one line, or they are refused."""
_SHORT: Final = 128
_MOST_SHORT: Final = 1024
_ROLES: Final = ("role", "from", "author", "speaker", "sender")
_CONTENTS: Final = ("content", "value", "text", "parts", "message")
_ANSWERING: Final = frozenset(
    {"assistant", "model", "gpt", "bot", "ai", "chatgpt", "chatbot", "output", "response"}
)
_LABELS: Final = frozenset({"type", "id", "index", "object", "status", "tool_call_id", "call_id"})


@dataclass(frozen=True)
class Shown:
    """What a record says that the suspect was shown.

    Attributes
    ----------
    texts : everything, in the order of `SHOWN`; no empty ones
    token_ids : `prompt_token_ids`, unchecked; None without
    chat : roles and contents, if it was given as messages
    last_turns : the assistant's turn at the end of messages: the output itself if it is equal to it
        (`same_text`), else what the suspect was made to begin with
    """

    texts: tuple[str, ...]
    token_ids: Any = None
    chat: Chat | None = None
    last_turns: tuple[str, ...] = ()

    def before(self, outputs: Sequence[str]) -> tuple[tuple[str, ...], Chat | None]:
        """Texts and chat before these outputs: a last turn that is one of them is left out.

        Any other last turn was shown. Cost: one comparison a turn and output.
        """
        begun = tuple(
            turn for turn in self.last_turns if not any(same_text(turn, one) for one in outputs)
        )
        chat = self.chat
        if chat is not None:
            chat += tuple(("assistant", turn) for turn in begun)
        return self.texts + begun, chat


def same_text(one: str, other: str) -> bool:
    """Equal but for white space."""
    return one == other or one.split() == other.split()


def read_shown(
    record: Mapping[str, Any],
    origin: str,
    own: frozenset[str],
    answers: frozenset[str] = frozenset(),
) -> Shown:
    """What stands in a record beside the output.

    Parameters
    ----------
    record : a JSON object
    origin : file and line, for errors
    own : names of the output's fields, which the caller reads
    answers : names of fields that should hold the output once more, as text: last turns

    Raises
    ------
    DataError naming the field, for one that may hold a prompt and is not known, or one that is
    known and has another shape.
    """
    named: dict[str, list[Any]] = {}
    last: list[str] = []
    for name, value in record.items():
        if name in own or name == NOT_SHOWN or value is None:
            continue
        plain = name.casefold().strip().replace("-", "_").replace(" ", "_")
        if plain in answers:
            last += _gather(value)
        elif plain in SHOWN or plain == _IDS:
            named.setdefault(plain, []).append(value)
        else:
            _refuse_unknown(name, plain, value, origin)
    texts: list[str] = []
    chat: Chat = ()
    for name in SHOWN:
        for value in named.get(name, []):
            found = _read_field(name, value, origin)
            texts += found.texts
            last += found.last_turns
            chat += found.chat or ()
    ids = named.get(_IDS, [None])
    kept = tuple(dict.fromkeys(text for text in texts if text.strip()))
    whole = bool(chat) and {one for _, one in chat} >= set(kept)
    return Shown(kept, ids[0], chat if whole else None, tuple(one for one in last if one.strip()))


def _read_field(name: str, value: Any, origin: str) -> Shown:
    if isinstance(value, str) and name != "messages":
        return Shown((value,))
    if isinstance(value, list) and value and all(_is_message(one) for one in value):
        return _read_messages(value, f"{origin}: {name}")
    if name in ("prompt", "messages") and not (
        isinstance(value, list) and all(isinstance(one, str) for one in value) and name == "prompt"
    ):
        if value == []:
            return Shown(())
        shape = (
            "a list of objects with a content"
            if name == "messages"
            else ("a string, a list of strings or a list of messages")
        )
        raise DataError(f"{origin}: {name} must be {shape}; it is not. Repair the record.")
    if _holds_ids(value):
        raise DataError(
            f"{origin}: {name} must be text; it is a list of numbers. Give ids of the served "
            f"tokenizer as {_IDS}, or the text."
        )
    return Shown(tuple(_gather(value)))


def _is_message(value: Any) -> bool:
    return (
        isinstance(value, dict)
        and any(name in value for name in (*_ROLES, *_CONTENTS))
        and any(name not in _ROLES for name in value)
    )


def _read_messages(messages: Sequence[Mapping[str, Any]], origin: str) -> Shown:
    """Texts of every message, tool calls among them; an assistant's turn at the end apart."""
    texts: list[str] = []
    chat: list[tuple[str, str]] = []
    role, content, whole = "", "", False
    for message in messages:
        role = next((str(message[name]) for name in _ROLES if name in message), "user")
        said = [message[name] for name in _CONTENTS if message.get(name) is not None]
        if not all(isinstance(one, str | list | dict) for one in said):
            raise DataError(
                f"{origin} must have strings or lists of parts as content; they have others. "
                "Repair the record."
            )
        content = "\n".join(part for one in said for part in _gather(one))
        rest = {
            name: value
            for name, value in message.items()
            if name not in (*_ROLES, *_CONTENTS, *_LABELS) and value
        }
        texts += [content, *_gather(rest)] if rest else [content]
        chat.append((role, content))
        whole = not rest
    if role.casefold() in _ANSWERING and whole:
        return Shown(tuple(texts[:-1]), None, tuple(chat[:-1]), (content,))
    return Shown(tuple(texts), None, tuple(chat))


def _gather(value: Any) -> Iterator[str]:
    """All text in a value: a string as it is; parts of a message; anything else as JSON too.

    JSON keeps what stands side by side together: numbers, names, arguments of a call.
    """
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _gather(one)
        if value and all(isinstance(one, str) for one in value):
            yield " ".join(value)
    elif isinstance(value, dict):
        if set(value) <= {*_CONTENTS, *_LABELS, *_ROLES, "annotations"}:
            for name in _CONTENTS:
                yield from _gather(value.get(name))
        else:
            yield json.dumps(value, ensure_ascii=False)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _holds_ids(value: Any) -> bool:
    """A list of integers, or lists of them: tokens of somebody's tokenizer."""
    if not isinstance(value, list) or not value:
        return False
    return all(_holds_ids(one) or (isinstance(one, int) and one is not True) for one in value)


def _refuse_unknown(name: str, plain: str, value: Any, origin: str) -> None:
    """Raise unless the field cannot hold a prompt: a name for something else, or too short."""
    if isinstance(value, dict) and plain not in _HARMLESS:
        for inner, one in value.items():
            if inner != NOT_SHOWN:
                _refuse_unknown(f"{name}.{inner}", inner.casefold(), one, origin)
        return
    strings = list(_strings(value))
    if plain in _HARMLESS or plain.endswith(("_id", "_at", "_sha256")):
        harmless = sum(map(len, strings)) <= _MOST_SHORT and all(
            len(one) <= _SHORT and "\n" not in one for one in strings
        )
    else:
        harmless = normalise(" ".join(strings)).codes.shape[0] < UNITS
    if not harmless or _count_integers(value) >= UNITS:
        raise DataError(
            f"{origin}: field {name} is not known and may be part of the prompt. Rename it "
            f"shown if the suspect saw it, {NOT_SHOWN} if it did not."
        )


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for one in value:
            yield from _strings(one)
    elif isinstance(value, dict):
        for name, one in value.items():
            yield name
            yield from _strings(one)


def _count_integers(value: Any) -> int:
    """Integers in lists: perhaps tokens."""
    if isinstance(value, list):
        return sum(
            1 if isinstance(one, int) and not isinstance(one, bool) else _count_integers(one)
            for one in value
        )
    if isinstance(value, dict):
        return sum(map(_count_integers, value.values()))
    return 0
