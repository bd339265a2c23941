"""The keyring: one public file that fixes a watermark, and the secret that opens it.

`keyring.json` (public) holds the id, scheme, context width, tokenizer fingerprint, schedule and a
commitment SHA-256(salt || key) per key. With the 32-byte master secret a keyring is *unlocked* and
derives one 256-bit key per (slot, value):

    key(slot, value) = HKDF-SHA256(master, salt = "provenance-v1", info)         (RFC 5869)
    info = (id, scheme, k, slot, value) in UTF-8, each after its length as 4 bytes, big-endian

where scheme is the canonical JSON of its name and parameters. A keyring of version 2, under which
contexts that stand in the prompt are not marked, adds the text "prompt_contexts=unmarked" to info,
so that no file of version 1 opens its keys. Revealing one derived key reveals no other. Knows no
tokens beyond their ids, and not how a scheme uses a coin.
"""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, NoReturn

import numpy as np
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

from provenance.coins import words as coins
from provenance.coins.contexts import MAXIMUM_VOCABULARY
from provenance.errors import ConfigurationMismatchError, StorageError, UsageError
from provenance.keys.commitment import Commitment
from provenance.keys.marking import MarkingKeys
from provenance.keys.sameness import read_same
from provenance.keys.schedule import SELECTOR_KEY, KeyName, Schedule, Slot
from provenance.keys.secrets import read_master_secret
from provenance.storage.documents import refuse_malformed
from provenance.storage.files import (
    canonical_json,
    lock_folder,
    read_bytes,
    read_json,
    write_atomically,
    write_json,
)

KEYRING_FILE = "keyring.json"
MASTER_FILE = "master.key"
TOKENIZER_FILE = "tokenizer.json"
_FORMAT = "provenance-keyring"
_PROMPTS: Final = {1: None, 2: "unmarked"}
"""What each version says of contexts in the prompt. Readers of version 1 pass unknown fields over,
and would mark such contexts: so the version tells them to refuse."""
_HKDF_SALT = b"provenance-v1"


@dataclass(frozen=True)
class SchemeSpecification:
    """Name and parameters of a scheme, as the keyring fixes them."""

    name: str
    parameters: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """JSON form; also part of the derivation of every key."""
        return {"name": self.name, "parameters": dict(self.parameters)}


class Key:
    """One derived 256-bit key: prints as a fingerprint, has no arithmetic, cannot be pickled.

    Attributes: slot and value, names; fingerprint, 16 hex digits of SHA-256 of the key.
    """

    __slots__ = ("_secret", "fingerprint", "slot", "value")

    def __init__(self, secret: bytes, slot: str, value: str) -> None:
        self._secret = secret
        self.slot = slot
        self.value = value
        self.fingerprint = hashlib.sha256(b"fingerprint" + secret).hexdigest()[:16]

    def __repr__(self) -> str:
        return f"Key(slot={self.slot!r}, value={self.value!r}, fingerprint={self.fingerprint})"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Key cannot be pickled: pass the keyring's folder and unlock it there")

    def reveal(self) -> bytes:
        """The 32 secret bytes, for disclosure on purpose."""
        return self._secret

    def words(self, contexts: NDArray[np.uint32], tokens: NDArray[np.uint32]) -> NDArray[np.uint32]:
        """Coins of scattered pairs; see `provenance.coins.words.words`."""
        return coins.words(self._secret, contexts, tokens)

    def row(self, context: NDArray[np.uint32], vocabulary_size: int) -> NDArray[np.uint32]:
        """Coins of a whole vocabulary after one context; see `provenance.coins.words.row`."""
        return coins.row(self._secret, context, vocabulary_size)


@dataclass(frozen=True)
class Keyring:
    """The public half. `commitments` maps (slot, value) and (SELECTOR, "") to commitments;
    `tokenizer_copy` is where the keyring's own copy of tokenizer.json should be, if known.
    `reads_prompt`: contexts that stand in the prompt are not marked, rule 2 of `embed.rules`.
    """

    id: str
    scheme: SchemeSpecification
    context_width: int
    vocabulary_size: int
    tokenizer_sha256: str
    schedule: Schedule
    commitments: Mapping[KeyName, Commitment]
    reads_prompt: bool = False
    tokenizer_copy: Path | None = field(default=None, compare=False, repr=False)

    @classmethod
    def load(cls, folder: Path | str) -> Keyring:
        """Read `keyring.json` from a folder. Raises StorageError or DataError."""
        if Path(folder).is_file():
            raise StorageError(
                f"{folder}: must be the folder of a keyring; it is a file. A worker's file can "
                "only mark: a test needs every key of the schedule. Name the key host's folder."
            )
        path = Path(folder) / KEYRING_FILE
        document = read_json(path)
        claim = f"{path}: must be a keyring of version {' or '.join(map(str, _PROMPTS))}"
        with refuse_malformed(claim, "Make one with: provenance keys new DIR"):
            public = cls.from_json(document)
        return replace(public, tokenizer_copy=path.parent / TOKENIZER_FILE)

    @classmethod
    def from_json(cls, document: Any) -> Keyring:
        """What `to_json` wrote; fields that it does not write are passed over.

        Raises whatever `provenance.storage.documents.MALFORMED` lists.
        """
        prompts = document.get("prompt_contexts")
        if document["format"] != _FORMAT or _PROMPTS[document["version"]] != prompts:
            raise ValueError("another format or version, or contexts of the prompt of another")
        commitments: dict[KeyName, Commitment] = {}
        if document["selector"] is not None:
            commitments[SELECTOR_KEY] = Commitment.from_json(document["selector"])
        slots = []
        for entry in document["slots"]:
            name, items = str(entry["name"]), entry["values"]
            values = tuple(str(item["value"]) for item in items)
            slots.append(Slot(name, int(entry["share_words"]), values))
            for item in items:
                commitments[KeyName(name, str(item["value"]))] = Commitment.from_json(item)
        width, size = int(document["context_width"]), int(document["vocabulary_size"])
        own = document["selector"] is not None
        widths = range(1, coins.MAXIMUM_CONTEXT_WIDTH + 1) if own else range(256)
        if width not in widths or not 2 <= size <= MAXIMUM_VOCABULARY:
            raise ValueError("context_width or vocabulary_size out of range")
        scheme = document["scheme"]
        return cls(
            id=str(document["id"]),
            scheme=SchemeSpecification(str(scheme["name"]), dict(scheme["parameters"])),
            context_width=width,
            vocabulary_size=size,
            tokenizer_sha256=str(document["tokenizer_sha256"]),
            schedule=Schedule(tuple(slots)),
            commitments=commitments,
            reads_prompt=prompts is not None,
        )

    def to_json(self) -> dict[str, Any]:
        """JSON form, as stored in `keyring.json`; holds no secret. Other people's schemes have no
        selector and no key of the control slot: such a file opens no key.
        """
        selector = self.commitments.get(SELECTOR_KEY)
        return {
            "format": _FORMAT,
            "version": 2 if self.reads_prompt else 1,
            "id": self.id,
            "scheme": self.scheme.to_json(),
            "context_width": self.context_width,
            **({"prompt_contexts": _PROMPTS[2]} if self.reads_prompt else {}),
            "vocabulary_size": self.vocabulary_size,
            "tokenizer_sha256": self.tokenizer_sha256,
            "selector": vars(selector) if selector else None,
            "slots": [
                {
                    "name": slot.name,
                    "share_words": slot.share_words,
                    "values": [
                        {"value": value, **vars(self.commitments[KeyName(slot.name, value)])}
                        for value in slot.values
                        if (slot.name, value) in self.commitments
                    ],
                }
                for slot in self.schedule.slots
            ],
        }

    def unlock(self, folder: Path | str) -> UnlockedKeyring:
        """Open the keyring with the master secret of the environment or of `folder`/master.key.

        Raises ConfigurationMismatchError (78) if the secret is not this keyring's; see
        `provenance.keys.secrets.read_master_secret` for the rest.
        """
        return UnlockedKeyring(self, read_master_secret(Path(folder) / MASTER_FILE))

    def check_tokenizer(self, path: Path | str) -> None:
        """Raise ConfigurationMismatchError (78) unless `path` is the served tokenizer."""
        self.read_tokenizer(path)

    def is_tokenizer(self, path: Path | str) -> bool:
        """Whether `path` is the served tokenizer. Raises StorageError, DataError."""
        try:
            self.read_tokenizer(path)
        except ConfigurationMismatchError:
            return False
        return True

    def read_tokenizer(self, path: Path | str) -> bytes:
        """The tokenizer.json that the keyring fixed, if `path` is the same tokenizer.

        The same bytes; or, where the keyring's own copy is at hand, one that gives the same ids,
        see `provenance.keys.sameness.read_same`. Raises ConfigurationMismatchError (78), DataError,
        StorageError.
        """
        return read_same(path, self.tokenizer_sha256, self.tokenizer_copy, f"keyring {self.id}")


class UnlockedKeyring(MarkingKeys):
    """A keyring with its master secret: derives every key and assigns contexts to slots."""

    def __init__(self, public: Keyring, master: bytes) -> None:
        self.public = public
        self._master = master
        self._cache: dict[KeyName, Key] = {}
        self.key(*SELECTOR_KEY)  # shows that the secret is this keyring's

    def __repr__(self) -> str:
        return f"UnlockedKeyring(id={self.public.id!r})"

    def key(self, slot: str, value: str) -> Key:
        """The key of (slot, value), checked against its commitment.

        Raises ConfigurationMismatchError if there is no such key or the master secret is another's.
        """
        found = self._cache.get(KeyName(slot, value))
        if found is not None:
            return found
        commitment = self.public.commitments.get(KeyName(slot, value))
        if commitment is None:
            raise ConfigurationMismatchError(
                f"{slot}={value} must have a key in keyring {self.public.id}; it has none. "
                "Add it with: provenance keys add-value"
            )
        secret = _derive(self._master, self.public, slot, value)
        if not commitment.opens_to(secret):
            raise ConfigurationMismatchError(
                f"the master secret must be that of keyring {self.public.id}; its key for "
                f"{slot}={value} does not open the commitment. Use the right master key."
            )
        key = Key(secret, slot, value)
        self._cache[KeyName(slot, value)] = key
        return key

    @property
    def home(self) -> Path | None:
        """The keyring's folder, if that is known."""
        copy = self.public.tokenizer_copy
        return None if copy is None else copy.parent

    def commit(self, slot: str, value: str) -> Commitment:
        """A fresh commitment to the key of (slot, value), which need not be in the keyring yet."""
        return Commitment.to_key(_derive(self._master, self.public, slot, value))

    def list_held(self) -> Collection[KeyName]:
        """Names of all keys of the keyring."""
        return self.public.commitments.keys()

    def reread(self, path: Path) -> UnlockedKeyring:
        """The folder's keyring under the secret that was read before. Raises what `unlock` does."""
        return UnlockedKeyring(Keyring.load(path), self._master)


def create_keyring(
    folder: Path | str,
    tokenizer: Path | str,
    vocabulary_size: int,
    scheme: SchemeSpecification,
    schedule: Schedule,
    context_width: int = 2,
    reads_prompt: bool = True,
) -> UnlockedKeyring:
    """Make a new keyring in `folder`: keyring.json, a copy of tokenizer.json, master.key (0600).

    `reads_prompt`: contexts that stand in the prompt are not marked; False: as before.

    The master secret is written only if the environment names none. An existing keyring is never
    overwritten. keyring.json is written last: without it the folder holds no keyring.

    Raises UsageError, StorageError, LockedError.
    """
    folder = Path(folder)
    if context_width not in (1, 2, 3):
        raise UsageError(f"context width must be 1, 2 or 3; got {context_width}. Use 2.")
    if not 2 <= vocabulary_size <= MAXIMUM_VOCABULARY:
        raise UsageError(
            f"vocabulary size must be 2 .. {MAXIMUM_VOCABULARY}; got {vocabulary_size}."
        )
    content = read_bytes(tokenizer)  # once: the copy is the file whose hash is stated
    fingerprint = hashlib.sha256(content).hexdigest()
    with lock_folder(folder):
        if (folder / KEYRING_FILE).exists():
            raise StorageError(
                f"{folder}: must not hold a keyring yet; it does. Choose another folder."
            )
        external = os.environ.get("PROVENANCE_KEY_CMD") or os.environ.get("PROVENANCE_KEY_FILE")
        # a secret without a keyring is one that a killed run made: no key of it is in use
        if external or (folder / MASTER_FILE).exists():
            master = read_master_secret(folder / MASTER_FILE)
        else:
            master = secrets.token_bytes(coins.KEY_BYTES)
            write_atomically(folder / MASTER_FILE, master, mode=0o600)
        public = Keyring(
            id=secrets.token_hex(8),
            scheme=scheme,
            context_width=context_width,
            vocabulary_size=vocabulary_size,
            tokenizer_sha256=fingerprint,
            schedule=schedule,
            commitments={},
            reads_prompt=reads_prompt,
            tokenizer_copy=folder / TOKENIZER_FILE,
        )
        named = [SELECTOR_KEY]
        named += [KeyName(slot.name, value) for slot in schedule.slots for value in slot.values]
        public = replace(
            public,
            commitments={key: Commitment.to_key(_derive(master, public, *key)) for key in named},
        )
        write_atomically(folder / TOKENIZER_FILE, content)
        write_json(folder / KEYRING_FILE, public.to_json())
    return UnlockedKeyring(public, master)


def add_value(folder: Path | str, slot: str, value: str) -> Keyring:
    """Add one value (a new week, say) to an attribute slot. No existing key changes.

    Raises UsageError if it exists, and what `Keyring.load` and `Keyring.unlock` raise.
    """
    folder = Path(folder)
    with lock_folder(folder):
        public = Keyring.load(folder)
        schedule = public.schedule.with_value(slot, value)
        commitment = public.unlock(folder).commit(slot, value)
        grown = replace(
            public,
            schedule=schedule,
            commitments={**public.commitments, KeyName(slot, value): commitment},
        )
        write_json(folder / KEYRING_FILE, grown.to_json())
    return grown


def disclose(keyring: UnlockedKeyring, slot: str, value: str) -> dict[str, Any]:
    """All that an expert needs to recompute the coins of one key, as JSON; holds no other key."""
    key = keyring.key(slot, value)
    commitment = keyring.public.commitments[KeyName(slot, value)]
    return {
        "format": "provenance-disclosed-key",
        "keyring_id": keyring.public.id,
        "scheme": keyring.public.scheme.to_json(),
        "context_width": keyring.context_width,
        "slot": slot,
        "value": value,
        "key": key.reveal().hex(),
        "salt": commitment.salt,
        "commitment": commitment.sha256,
    }


def _derive(master: bytes, public: Keyring, slot: str, value: str) -> bytes:
    """RFC 5869; the info string is injective, since every field carries its length."""
    fields = (
        public.id,
        canonical_json(public.scheme.to_json()).decode("ascii"),
        str(public.context_width),
        slot,
        value,
        *([f"prompt_contexts={_PROMPTS[2]}"] if public.reads_prompt else []),
    )
    encoded = [text.encode("utf-8") for text in fields]
    info = b"".join(len(part).to_bytes(4, "big") + part for part in encoded)
    return HKDF(SHA256(), coins.KEY_BYTES, salt=_HKDF_SALT, info=info).derive(master)
