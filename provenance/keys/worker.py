"""Keys for one worker: those it marks with for some days, and neither the master secret nor others.

A worker's file holds the public keyring, the selector's key, the global one, the keys of the values
that were named, and when it expires; JSON, mode 0600. It can only mark: a test needs every key of
the schedule. The expiry guards against files that were forgotten. It does not stop a thief, who has
the keys whatever the file says; and a process that runs when it comes goes on marking, with a
warning, since a fleet that stopped at midnight would serve unmarked. No message of this module
contains any byte of a key, nor does an error hold on to the file's content.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from threading import Event
from typing import Any, Final

from provenance.errors import (
    ConfigurationMismatchError,
    DataError,
    KeyPermissionError,
    StorageError,
    UsageError,
)
from provenance.keys.keyring import Key, Keyring, UnlockedKeyring
from provenance.keys.marking import MarkingKeys
from provenance.keys.schedule import GLOBAL_KEY, SELECTOR_KEY, KeyName
from provenance.keys.secrets import read_private_file
from provenance.storage.documents import MALFORMED
from provenance.storage.files import canonical_json, parse_json, write_json

_log = logging.getLogger(__name__)

_FORMAT: Final = "provenance-worker-keys"
_VERSION: Final = 1
_MAXIMUM_BYTES: Final = 1 << 26


@dataclass(frozen=True, eq=False, repr=False)
class WorkerKeys(MarkingKeys):
    """Some keys of a keyring, which mark until they expire. Prints no key, cannot be pickled.

    Attributes: the public keyring; the time, UTC; the keys by name, with the selector's and the
    global one among them; the file, if it was read from one.
    """

    public: Keyring
    expires: datetime
    keys: Mapping[KeyName, Key]
    home: Path | None = None
    _has_warned: Event = field(default_factory=Event, init=False)

    def __repr__(self) -> str:
        names = ", ".join(str(name) for name in self.keys if name != SELECTOR_KEY)
        return f"WorkerKeys(id={self.public.id!r}, keys={names!r}, expires={self.expires:%F %T}Z)"

    def key(self, slot: str, value: str) -> Key:
        """The key of (slot, value); ConfigurationMismatchError if it was not exported."""
        name = KeyName(slot, value)
        if name not in self.keys:
            raise ConfigurationMismatchError(
                f"{str(name)[:128]!a} must be among the worker's keys of keyring "
                f"{self.public.id}; it is not. On the key host run: provenance keys export-worker"
            )
        return self.keys[name]

    def list_held(self) -> Collection[KeyName]:
        """Names of the keys that were exported. The log is told once if they have expired."""
        if datetime.now(UTC) >= self.expires and not self._has_warned.is_set():
            self._has_warned.set()
            _log.warning(
                "the worker's keys of keyring %s expired at %s; this process goes on marking with "
                "them and will not start again: export new ones and restart it",
                self.public.id,
                self.expires.isoformat(),
            )
        return self.keys.keys()

    def reread(self, path: Path) -> WorkerKeys:
        """What the file holds now, and the keys of before: responses under them may be running.

        The caller sees to it that it is a file of the same keyring. Raises what `load_worker` does.
        """
        found = load_worker(path)
        return replace(found, keys={**self.keys, **found.keys})

    def to_json(self) -> dict[str, Any]:
        """The content of the file, secrets included; `sha256` is of all the rest."""
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            "expires": self.expires.isoformat(),
            "keyring": self.public.to_json(),
            "keys": [{**n._asdict(), "key": key.reveal().hex()} for n, key in self.keys.items()],
        }
        return {**content, "sha256": hashlib.sha256(canonical_json(content)).hexdigest()}

    @classmethod
    def from_json(cls, document: Any) -> WorkerKeys:
        """What `to_json` wrote, and nothing else. Raises what `MALFORMED` lists, also for a key
        that does not open its commitment.
        """
        public, keys = Keyring.from_json(document["keyring"]), {}
        for item in document["keys"]:
            name, secret = KeyName(item["slot"], item["value"]), bytes.fromhex(item["key"])
            may_be = name in (SELECTOR_KEY, GLOBAL_KEY) or name.slot in public.schedule.attributes
            if not may_be or not public.commitments[name].opens_to(secret):
                raise ValueError("a key that is not of this keyring")
            keys[name] = Key(secret, *name)
        worker = cls(public, datetime.fromisoformat(document["expires"]).astimezone(UTC), keys)
        whole = canonical_json(worker.to_json()) == canonical_json(document)
        if not whole or not {SELECTOR_KEY, GLOBAL_KEY} <= set(keys):
            raise ValueError("other content than was written")
        return worker


@dataclass(frozen=True)
class HeldKeys:
    """Names of the keys of a keyring that can be asked for here, without the keys."""

    public: Keyring
    names: frozenset[KeyName]

    def list_held(self) -> Collection[KeyName]:
        """The names."""
        return self.names

    def reread(self, path: Path) -> HeldKeys:
        """What is there now, and the names of before. Raises what `read_public` does."""
        found = read_public(path)
        return replace(found, names=self.names | found.names)


def export_worker(
    keyring: UnlockedKeyring,
    values: Iterable[KeyName | str],
    *,
    expires: datetime,
    file: Path | str,
) -> WorkerKeys:
    """Write the keys that a worker marks with to a file, mode 0600.

    Parameters
    ----------
    keyring : unlocked with its master secret
    values : of attribute slots, as KeyName or text like "week=2026-W49"; `global` and the selector
        go along
    expires : with a time zone, in the future; from then on the file does not load
    file : new, or an earlier file of a worker, which is replaced as a whole

    Raises UsageError, StorageError; ConfigurationMismatchError for a value without a key.
    """
    if not isinstance(keyring, UnlockedKeyring):
        raise UsageError("keyring must be unlocked with its master secret. Use open_keyring(DIR).")
    if expires.tzinfo is None or expires <= datetime.now(UTC):
        raise UsageError(f"expires must be a time to come with a time zone; got {expires}.")
    named = [KeyName.parse(one) if isinstance(one, str) else KeyName(*one) for one in values]
    for name in named:
        if name.slot not in keyring.schedule.attributes:
            raise UsageError(
                f"values must be of an attribute slot; got {str(name)[:128]!a}. The global key "
                "goes along by itself. See: provenance keys show"
            )
    names = dict.fromkeys([SELECTOR_KEY, GLOBAL_KEY, *named])
    until = expires.astimezone(UTC).replace(microsecond=0)
    worker = WorkerKeys(keyring.public, until, {name: keyring.key(*name) for name in names})
    file = Path(file)
    if file.exists() and not _is_worker(file):
        raise StorageError(
            f"{file}: must be new, or an earlier file of a worker with mode 0600; it is another. "
            "Name another file."
        )
    write_json(file, worker.to_json(), mode=0o600)
    return worker


def load_worker(path: Path | str, now: datetime | None = None) -> WorkerKeys:
    """The keys of a worker's file, each checked against its commitment.

    Raises
    ------
    KeyPermissionError if it is a link or others can read it; StorageError; DataError in one line
    if it is not as it was written; ConfigurationMismatchError if it has expired (`now`, by default
    the clock's).
    """
    worker = _read_worker(Path(path))
    if worker is None:
        raise DataError(
            f"{path}: must be a worker's keys of version {_VERSION}, as they were written; it is "
            "damaged or another file. On the key host run: provenance keys export-worker"
        )
    if (now or datetime.now(UTC)) >= worker.expires:
        raise ConfigurationMismatchError(
            f"{path}: a worker's keys must not be expired; these expired at "
            f"{worker.expires.isoformat()}. On the key host run: provenance keys export-worker"
        )
    return replace(worker, home=Path(path))


def _read_worker(path: Path) -> WorkerKeys | None:
    """None if the file is not as it was written: an error would hold on to its content."""
    content = read_private_file(path, _MAXIMUM_BYTES, "Name the file that export-worker wrote.")
    try:
        return WorkerKeys.from_json(parse_json(content, ""))
    except MALFORMED:
        return None


def _is_worker(path: Path) -> bool:
    try:
        return _read_worker(path) is not None
    except (KeyPermissionError, StorageError):
        return False


def open_keys(path: Path | str) -> MarkingKeys:
    """What can mark: a keyring's folder with its master secret, or a worker's file.

    Raises what `Keyring.load` and `Keyring.unlock` raise, or `load_worker`.
    """
    return load_worker(path) if Path(path).is_file() else Keyring.load(path).unlock(path)


def read_public(path: Path | str, *, may_be_expired: bool = False) -> HeldKeys:
    """The public half of a keyring's folder, or of a worker's file, of which no key is kept.

    Raises what `Keyring.load` raises, or `load_worker`.
    """
    if Path(path).is_file():
        ever = datetime.min.replace(tzinfo=UTC)
        worker = load_worker(path, now=ever if may_be_expired else None)
        return HeldKeys(worker.public, frozenset(worker.keys))
    public = Keyring.load(path)
    return HeldKeys(public, frozenset(public.commitments))
