"""Making a keyring at the front door, and revealing one of its keys."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from provenance.case.doors import open_keyring
from provenance.errors import UsageError
from provenance.keys.keyring import SchemeSpecification, UnlockedKeyring, create_keyring, disclose
from provenance.keys.schedule import DEFAULT_SHARES, Schedule
from provenance.keys.tokenizer import read_tokenizer
from provenance.marks.own import make_scheme
from provenance.storage.files import as_path, parse_json, write_json

if TYPE_CHECKING:
    from pathlib import Path


def make_keyring(
    folder: Any,
    tokenizer: Any,
    *,
    scheme: str = "gumbel",
    parameters: Mapping[str, Any] | str = "{}",
    shares: Mapping[str, float] = DEFAULT_SHARES,
    values: Mapping[str, Sequence[str]] | None = None,
    vocabulary_size: int | None = None,
    context_width: int = 2,
    reads_prompt: bool = True,
) -> UnlockedKeyring:
    """Make a keyring: keyring.json (public), tokenizer.json and master.key (mode 0600).

    Parameters
    ----------
    folder : new; an existing keyring is never overwritten
    tokenizer : tokenizer.json of the served model
    scheme, parameters : gumbel, green or tournament; its parameters, a mapping or JSON
    shares : share of the contexts per slot, without `control`
    values : values per attribute slot that get a key; more can be added later
    vocabulary_size : rows of the model's output layer; None: of the tokenizer
    context_width : 1, 2 or 3 tokens
    reads_prompt : contexts that stand in the prompt are not marked, so that turns and retries of a
        conversation do not repeat each other; False: as keyrings of before

    Raises UsageError, DataError, StorageError, LockedError.
    """
    path = as_path(tokenizer, "the tokenizer")
    given = parse_json(parameters, "--parameters") if isinstance(parameters, str) else parameters
    if not isinstance(given, Mapping):
        raise UsageError('--parameters must be a JSON object. Example: {"layers": 4}')
    made = make_scheme(scheme, dict(given))
    return create_keyring(
        as_path(folder, "the keyring's folder"),
        path,
        max(read_tokenizer(path).get_vocab_size(), vocabulary_size or 0),
        SchemeSpecification(made.name, dict(made.parameters)),
        Schedule.from_shares(shares, values or {}),
        context_width,
        reads_prompt,
    )


def disclose_key(
    keyring: Any, slot: str, value: str = "", file: Path | str | None = None
) -> dict[str, Any]:
    """One derived key with its commitment, for an expert; no other key is revealed.

    Parameters: an unlocked keyring or its folder; which key; a file to write it to, mode 0600.
    Whoever holds it can forge this mark. Raises ConfigurationMismatchError, StorageError.
    """
    opened = keyring if isinstance(keyring, UnlockedKeyring) else open_keyring(keyring)
    shown = disclose(opened, slot, value)
    if file is not None:
        write_json(as_path(file, "the file"), shown, mode=0o600)
    return shown
