"""Commitments: that a key was fixed before a test can be shown after it."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Commitment:
    """SHA-256(salt || key): shows later that the key was fixed when the keyring was written."""

    salt: str
    sha256: str

    @classmethod
    def to_key(cls, secret: bytes) -> Commitment:
        """Commit to a key under a fresh 32-byte salt."""
        salt = secrets.token_bytes(32)
        return cls(salt.hex(), hashlib.sha256(salt + secret).hexdigest())

    def opens_to(self, secret: bytes) -> bool:
        """True if this commitment was made to `secret`."""
        digest = hashlib.sha256(bytes.fromhex(self.salt) + secret).hexdigest()
        return hmac.compare_digest(digest, self.sha256)

    @classmethod
    def from_json(cls, item: Mapping[str, Any]) -> Commitment:
        """From its fields `salt` and `sha256`, hex. Raises KeyError, TypeError, ValueError."""
        commitment = cls(str(item["salt"]), str(item["sha256"]))
        if {len(bytes.fromhex(part)) for part in (commitment.salt, commitment.sha256)} != {32}:
            raise ValueError("a commitment that is not 32 bytes of salt and 32 of SHA-256")
        return commitment
