"""Ed25519 signatures of a manifest (RFC 8032), in forms that the openssl command verifies.

The signing key is 32 bytes in a private file, handled like the master key. manifest.sig holds the
64 bytes of the signature, manifest.pub.pem the public key. Knows bytes; not what is signed.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
from pathlib import Path

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)

from provenance.errors import DataError, StorageError
from provenance.evidence.manifest import (
    MANIFEST_FILE,
    PUBLIC_KEY_FILE,
    SIGNATURE_FILE,
    check_files,
    read_manifest,
)
from provenance.evidence.steps import StepFailedError
from provenance.keys.secrets import SIGNING, read_private_file, read_secret
from provenance.storage.files import (
    lock_folder,
    name_of_leftover,
    read_bytes,
    write_atomically,
)

_MAXIMUM_BYTES = 1 << 16
_SEED_BYTES = 32


def create_signing_key(path: Path) -> Path:
    """Write a new signing key (mode 0600) and, beside it, its public key; returns that path.

    A key without a public one is what a killed run left, and is completed. Raises StorageError if
    both exist: a signing key is never overwritten; KeyPermissionError, DataError for a half of
    another kind.
    """
    public = path.with_name(path.name + ".pub.pem")
    if path.exists() or path.is_symlink():
        if public.exists():
            raise StorageError(f"{path}: must not exist yet; it does. Choose another name.")
        seed = read_private_file(path, _SEED_BYTES, "Choose another name.")
        if len(seed) != _SEED_BYTES:
            raise StorageError(f"{path}: must not exist yet; it does. Choose another name.")
    else:
        seed = secrets.token_bytes(_SEED_BYTES)
        write_atomically(path, seed, mode=0o600)
    write_atomically(public, _encode(Ed25519PrivateKey.from_private_bytes(seed).public_key()))
    return public


class Signer:
    """A signing key that is open, to sign line after line.

    Parameters: its file, unless PROVENANCE_SIGNING_KEY_FILE or PROVENANCE_SIGNING_KEY_CMD names
    one. Raises what `provenance.keys.secrets.read_secret` raises.
    """

    def __init__(self, key: Path | None) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(read_secret(key, SIGNING))

    def __repr__(self) -> str:
        """Without the key."""
        return f"<Signer {fingerprint(self._private.public_key())}>"

    @property
    def public_key(self) -> str:
        """The public key in PEM."""
        return _encode(self._private.public_key()).decode("ascii")

    def sign(self, content: bytes) -> str:
        """The signature in base64."""
        return base64.b64encode(self._private.sign(content)).decode("ascii")


def parse_public_key(content: bytes, name: str) -> Ed25519PublicKey:
    """A public key from PEM in the one form that is written here. Raises DataError."""
    try:
        key = load_pem_public_key(content)
        if not isinstance(key, Ed25519PublicKey) or _encode(key) != content:
            raise ValueError("another kind of key, or another form")
    except ValueError as error:
        raise DataError(
            f"{name}: must be an Ed25519 public key in PEM; it is not. Take the signer's .pub.pem."
        ) from error
    return key


def is_signed(key: Ed25519PublicKey, content: bytes, signature: str) -> bool:
    """Whether a signature in base64 is that of the content by the key."""
    try:
        key.verify(base64.b64decode(signature, validate=True), content)
    except (InvalidSignature, ValueError):
        return False
    return True


def sign_bundle(folder: Path, key: Path | None) -> str:
    """Sign the manifest of a bundle; returns the fingerprint of the public key.

    Parameters: the bundle; the file of the signing key, unless PROVENANCE_SIGNING_KEY_FILE or
    PROVENANCE_SIGNING_KEY_CMD names one. Raises DataError if the bundle is not whole, and what
    `provenance.keys.secrets.read_secret` raises.
    """
    private = Ed25519PrivateKey.from_private_bytes(read_secret(key, SIGNING))
    if not folder.is_dir():
        raise StorageError(f"{folder}: must be a folder; it is not. Name a bundle.")
    with lock_folder(folder):
        try:
            manifest, content = read_manifest(folder)
            check_files(folder, manifest)
        except StepFailedError as error:
            raise DataError(
                f"{folder / error.file}: {error}. Write the bundle anew: check -o"
            ) from error
        for path in folder.iterdir():
            if name_of_leftover(path.name) in (PUBLIC_KEY_FILE, SIGNATURE_FILE):
                path.unlink()
        write_atomically(folder / PUBLIC_KEY_FILE, _encode(private.public_key()))
        write_atomically(folder / SIGNATURE_FILE, private.sign(content))
    return fingerprint(private.public_key())


def read_public_key(path: Path, name: str) -> Ed25519PublicKey:
    """`parse_public_key` of a file. Raises DataError, StorageError."""
    return parse_public_key(read_bytes(path, _MAXIMUM_BYTES), name)


def verify_bytes(folder: Path, trusted: Ed25519PublicKey | None) -> str:
    """The signature of manifest.json by the bundle's key; returns that key's fingerprint.

    Raises StepFailedError: a file is missing, the signature is another's, or the key is not
    `trusted`.
    """
    for name in (MANIFEST_FILE, SIGNATURE_FILE, PUBLIC_KEY_FILE):
        if not (folder / name).is_file() or (folder / name).is_symlink():
            raise StepFailedError(name, "must be a file of the bundle; there is none")
    try:
        key = read_public_key(folder / PUBLIC_KEY_FILE, PUBLIC_KEY_FILE)
    except DataError as error:
        raise StepFailedError(PUBLIC_KEY_FILE, "must be an Ed25519 public key in PEM") from error
    if trusted is not None and _encode(trusted) != _encode(key):
        raise StepFailedError(
            PUBLIC_KEY_FILE,
            f"must be the expected key {fingerprint(trusted)}; it is {fingerprint(key)}",
        )
    try:
        key.verify(
            read_bytes(folder / SIGNATURE_FILE, _MAXIMUM_BYTES), read_bytes(folder / MANIFEST_FILE)
        )
    except (InvalidSignature, DataError) as error:
        raise StepFailedError(
            SIGNATURE_FILE, "must be the signature of manifest.json by manifest.pub.pem; it is not"
        ) from error
    return fingerprint(key)


def fingerprint(key: Ed25519PublicKey) -> str:
    """`sha256:` and 32 hex digits of the hash of the raw public key."""
    raw = key.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return f"sha256:{hashlib.sha256(raw).hexdigest()[:32]}"


def _encode(key: Ed25519PublicKey) -> bytes:
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
