"""Keys of a process that runs for months: read again when their file has grown by a value.

`provenance keys add-value` must reach a service, and whatever logs for it, without a restart. Knows
files and keyrings; not who asks.
"""

from __future__ import annotations

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Generic, TypeVar

from provenance.errors import ConfigurationMismatchError
from provenance.keys.keyring import KEYRING_FILE, Keyring
from provenance.keys.marking import KnownKeys
from provenance.storage.files import Stamp, read_stamp

_log = logging.getLogger(__name__)

Keys = TypeVar("Keys", bound=KnownKeys)


class FollowedKeys(Generic[Keys]):
    """Keys, and where they were read. Safe to share among threads.

    Parameters: the keys; the keyring's folder or the worker's file; its `look_at` from before they
    were read, None if nobody looked.

    Attributes: known, the keys as they were read last.
    """

    def __init__(self, known: Keys, path: Path, stamp: Stamp | None = None) -> None:
        self.known, self.path = known, path
        self._stamp = stamp
        self._lock = threading.Lock()

    @staticmethod
    def look_at(path: Path) -> Stamp | None:
        """What changes when the keys do."""
        return read_stamp(path / KEYRING_FILE if path.is_dir() else path)

    def reread(self) -> bool:
        """Read the file if it has changed since it was read last; whether it had.

        Raises ConfigurationMismatchError if it is another keyring now, and what reading raises.
        Cost where it has not changed: one look at the file.
        """
        with self._lock:
            stamp = self.look_at(self.path)
            if stamp is None or stamp == self._stamp:
                return False
            found = self.known.reread(self.path)
            if not _extends(found.public, self.known.public):
                raise ConfigurationMismatchError(
                    f"{self.path}: the keyring of a running server may only grow by values; it is "
                    "another now. Restore it, or restart the server."
                )
            self._stamp, self.known = stamp, found
        _log.info("keyring %s was read again: it has new values", found.public.id)
        return True


def _extends(found: Keyring, known: Keyring) -> bool:
    """True if `found` is `known` with more values: no key and no share has changed."""
    shares = [[(s.name, s.share_words) for s in k.schedule.slots] for k in (found, known)]
    fixed = [replace(k, schedule=known.schedule, commitments={}) for k in (found, known)]
    kept = all(found.commitments.get(p) == made for p, made in known.commitments.items())
    return shares[0] == shares[1] and fixed[0] == fixed[1] and kept
