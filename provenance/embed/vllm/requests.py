"""What a vLLM request asks of the watermark, and the keyring of a server that runs for months.

A request is marked if its `extra_args` (over HTTP: `vllm_xargs`) hold its labels:

    {"provenance_labels": ["week=2026-W17", "capability=code"]}

One string a label, as on the command line. An empty list marks with the global key only; without
the field the request is served unmarked and is not logged. A list, since a value may itself contain
a comma. Beside it a gateway may say (`embed.vllm.gateway` does):

    "provenance_groups": ["account=a-17"]     names for groups, which are no slots; logged
    "provenance_request_id": "req-42"         what the client called the request; logged
    "provenance_conversation": "c-7"          equal for all turns of a conversation; logged
    "provenance_mark": "if-possible"          what to do with what cannot be marked

What cannot be marked exactly as asked is refused before it reaches the engine, and the client gets
HTTP 400: a label that names no slot or no key of the keyring, a misspelt field, greedy decoding (it
has no draw that coins could decide), and a decode that follows a given trace. With `if-possible`
(or `PROVENANCE_MARK=if-possible` for all requests) the latter two are served and logged as
unmarked; with `never` whatever is asked.

Knows the names of vLLM's sampling parameters; imports neither vLLM nor torch.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any, Final, Protocol, cast, get_args

import numpy as np

from provenance.embed.rules import MarkWish, check_labels
from provenance.embed.watermark import Watermark
from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.keys.following import FollowedKeys
from provenance.keys.keyring import Keyring
from provenance.keys.marking import KnownKeys, MarkingKeys
from provenance.keys.worker import open_keys, read_public
from provenance.served.records import Labels

_log = logging.getLogger(__name__)

LABELS_FIELD: Final = "provenance_labels"
"""The field of `vllm_xargs` / `extra_args` that asks for the mark."""
GROUPS_FIELD: Final = "provenance_groups"
REQUEST_FIELD: Final = "provenance_request_id"
CONVERSATION_FIELD: Final = "provenance_conversation"
MARK_FIELD: Final = "provenance_mark"
_FIELDS: Final = (LABELS_FIELD, GROUPS_FIELD, REQUEST_FIELD, CONVERSATION_FIELD, MARK_FIELD)

KEYRING_VARIABLE: Final = "PROVENANCE_KEYRING"
"""Environment variable: path of the keyring's folder or of a worker's file; holds no secret."""
MARK_VARIABLE: Final = "PROVENANCE_MARK"
"""Environment variable: `MARK_FIELD` of requests that have none; by default `always`."""

_OWN_PREFIX: Final = "provenance"
_GREEDY_BELOW: Final = 1e-5
"""vLLM decodes greedily below this temperature (`_SAMPLING_EPS` of vllm/sampling_params.py)."""


class RequestParameters(Protocol):
    """The part of `vllm.SamplingParams` that this module reads."""

    temperature: float
    extra_args: dict[str, Any] | None


@dataclass(frozen=True)
class Wish:
    """What a request asks of the watermark and of the log.

    labels : values of slots; groups : other names, for the log; request_id, conversation_id : as in
    `ServedResponse`; mark : see `MarkWish`
    """

    labels: Labels
    groups: Labels = field(default_factory=dict)
    request_id: str | None = None
    conversation_id: str | None = None
    mark: MarkWish = "always"


def parse_labels(extra_args: Mapping[str, Any] | None) -> dict[str, str] | None:
    """Labels of a request, or None if it does not ask for the mark. Raises as `parse_wish`.

    Examples
    --------
    >>> parse_labels({"provenance_labels": ["week=2026-W17", "cohort=a,b"]})
    {'week': '2026-W17', 'cohort': 'a,b'}
    >>> parse_labels({"provenance_labels": []})
    {}
    >>> parse_labels({"session_id": "x"}) is None
    True
    """
    wish = parse_wish(extra_args)
    return None if wish is None else dict(wish.labels)


def parse_wish(extra_args: Mapping[str, Any] | None) -> Wish | None:
    """What a request asks for, or None if it has none of the fields.

    Raises UsageError if labels or groups are not lists of `name=value` strings or name something
    twice, another field is no short string, fields stand without labels, or one is misspelt (any
    other that begins with `provenance`: the request would be silently unmarked).
    """
    fields = extra_args or {}
    own = {name: value for name, value in fields.items() if name.startswith(_OWN_PREFIX)}
    for name in own:
        if name not in _FIELDS:
            raise UsageError(
                f"the field of the labels must be {LABELS_FIELD}; got {name[:64]!r}. The other "
                f"fields are {', '.join(_FIELDS[1:])}."
            )
    if not own:
        return None
    mark = own.get(MARK_FIELD, os.environ.get(MARK_VARIABLE) or "always")
    if mark not in get_args(MarkWish):
        raise UsageError(
            f"{MARK_FIELD} must be one of {', '.join(get_args(MarkWish))}; got {mark!r:.40}. "
            "Correct it."
        )
    if LABELS_FIELD not in own and mark != "never":
        raise UsageError(f"{LABELS_FIELD} must stand beside {next(iter(own))}; it does not.")
    for name in (REQUEST_FIELD, CONVERSATION_FIELD):
        if not isinstance(own.get(name, "-"), str) or not 1 <= len(own.get(name, "-")) <= 1024:
            raise UsageError(f"{name} must be a string of 1 to 1,024 characters; it is not.")
    return Wish(
        labels=_parse_pairs(own, LABELS_FIELD),
        groups=_parse_pairs(own, GROUPS_FIELD),
        request_id=own.get(REQUEST_FIELD),
        conversation_id=own.get(CONVERSATION_FIELD),
        mark=mark,
    )


def _parse_pairs(fields: Mapping[str, Any], name: str) -> dict[str, str]:
    items = fields.get(name, [])
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise UsageError(
            f'{name} must be a list of strings like "week=2026-W17"; got '
            f"{type(items).__name__}. Send [] to mark with the global key only."
        )
    found: dict[str, str] = {}
    for item in items:
        label, equals, value = item.partition("=")
        if not (label and equals and value) or label in found:
            raise UsageError(
                f"each of {name} must be name=value with a name of its own; got "
                f"{item[:64]!a}. Correct the label."
            )
        found[label] = value
    return found


def why_unmarkable(parameters: RequestParameters) -> str | None:
    """What a request asks for that has no draw: greedy decoding, a given trace; None: nothing."""
    if not parameters.temperature >= _GREEDY_BELOW:
        return (
            f"temperature must be above 0 with {LABELS_FIELD}: greedy decoding carries no mark; "
            f"got {parameters.temperature}. Raise it, or leave {LABELS_FIELD} out."
        )
    if getattr(parameters, "trace_decode_token_ids", None) is not None:
        return (
            f"trace_decode_token_ids must be absent with {LABELS_FIELD}: a given trace is not "
            "drawn. Leave one of them out."
        )
    return None


def check_request(parameters: RequestParameters) -> Wish | None:
    """What a request asks for; None if it asks for nothing.

    Raises UsageError if it is malformed, or must be marked and cannot be (`why_unmarkable`). Labels
    are not looked up here.
    """
    wish = parse_wish(parameters.extra_args)
    reason = why_unmarkable(parameters)
    if wish is not None and wish.mark == "always" and reason is not None:
        raise UsageError(reason)
    return wish


def admit_request(parameters: RequestParameters) -> None:
    """Refuse a request that cannot be marked as asked: what `validate_params` of vLLM calls.

    Raises UsageError or ConfigurationMismatchError (ValueErrors, which vLLM answers with HTTP 400).
    Cost: a few dictionary look-ups; the keyring is read at the first request that asks for the
    mark, and again when a label is unknown and the file has changed.
    """
    wish = check_request(parameters)
    if wish is not None and wish.mark != "never":
        _public_keyring(named_folder()).check_labels(wish.labels, wish.groups)


@lru_cache(maxsize=4)
def _public_keyring(path: Path) -> PublicKeyring:
    return PublicKeyring(path)


def check_server(keyring: Keyring, vocabulary_size: int, logprobs_mode: str) -> None:
    """Raise ConfigurationMismatchError unless a server can carry the mark without saying where.

    Parameters: keyring of the served model; its number of logits, padding included; the engine's
    logprobs mode. `processed_*` is refused: where the mark decides, it shows probability 1, so that
    every client could read off which tokens are marked.
    """
    if vocabulary_size > keyring.vocabulary_size:
        raise ConfigurationMismatchError(
            f"the keyring's vocabulary must have at least the model's {vocabulary_size} tokens; "
            f"keyring {keyring.id} has {keyring.vocabulary_size}. "
            "Make it with: provenance keys new --vocabulary-size"
        )
    if logprobs_mode.startswith("processed"):
        raise ConfigurationMismatchError(
            f"logprobs mode must be raw_logprobs or raw_logits; got {logprobs_mode}, which shows "
            "clients the tokens that the mark decided. Drop --logprobs-mode."
        )


def make_generator(vllm_config: Any) -> np.random.Generator:
    """Fresh randomness: from the operating system, or the same on all ranks that draw in step."""
    alone = vllm_config.parallel_config.tensor_parallel_size == 1
    return np.random.default_rng(None if alone else vllm_config.model_config.seed)


def named_folder() -> Path:
    """Where the keys are, from the environment; UsageError if the variable is not set."""
    path = os.environ.get(KEYRING_VARIABLE)
    if not path:
        raise UsageError(
            f"{KEYRING_VARIABLE} must name the folder of a keyring, or a worker's file; it is not "
            f"set. Start the server with {KEYRING_VARIABLE}=DIR."
        )
    return Path(path)


class PublicKeyring:
    """The public half of a keyring, read again when a label is unknown and the file has changed.

    The process that admits requests needs no more than this, so it keeps no secret. Of a worker's
    file it admits the labels whose keys are in it.

    Raises, when made, what `provenance.keys.worker.read_public` raises.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        stamp = FollowedKeys.look_at(path)  # before: what is written while we read is read again
        self._followed: FollowedKeys[Any] = FollowedKeys(self._open(), path, stamp)

    @property
    def known(self) -> Any:
        """The keys, or their names, as they were read last."""
        return self._followed.known

    @property
    def keyring(self) -> Keyring:
        """The public half, as it was read last."""
        return cast("Keyring", self.known.public)

    def _open(self) -> KnownKeys:
        return read_public(self.path)

    def check_labels(self, labels: Labels, groups: Labels | None = None) -> None:
        """Raise ConfigurationMismatchError unless every label has a key.

        Stricter than `Watermark.check_labels`: a name without a slot is refused as well, since a
        server cannot tell it from a misspelt one; such names are for `groups`.
        """
        try:
            self._check(labels, groups or {})
        except ConfigurationMismatchError:
            if not self._followed.reread():
                raise
            self._check(labels, groups or {})

    def _check(self, labels: Labels, groups: Labels) -> None:
        check_labels(self.known, labels, names_may_be_unknown=False)
        check_labels(self.known, {**groups, **labels}, names_may_be_unknown=True)


class ServedWatermark(PublicKeyring):
    """The keyring with its keys, in the process that draws; follows new values.

    Parameters: folder of the keyring, whose master secret is read once, or a worker's file; fresh
    uniforms for schemes that need them, by default seeded by the operating system.
    """

    def __init__(self, path: Path, generator: np.random.Generator | None = None) -> None:
        super().__init__(path)
        self._generator = generator
        self.watermark = Watermark(self.known, generator)

    def __repr__(self) -> str:
        return f"ServedWatermark(id={self.keyring.id!r})"

    def follow(self, labels: Labels) -> None:
        """See to it that `watermark` has the keys of these labels, or else all that are there.

        Raises what `check_labels` raises.
        """
        try:
            self.check_labels(labels)
        finally:
            if self.watermark.keyring is not self.known:
                self.watermark = Watermark(self.known, self._generator)

    def _open(self) -> MarkingKeys:
        return open_keys(self.path)
