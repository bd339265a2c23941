"""RFC 3161 timestamps: when did an authority see this hash?

A request can be carried by hand to any authority; nothing here uses the network unless a URL is
given. Needs the `evidence` extra (rfc3161-client); the openssl command reads the same files.
"""

from __future__ import annotations

import hashlib
import urllib.error
import urllib.request
from dataclasses import dataclass
from datetime import UTC
from pathlib import Path
from typing import Any, Final

from cryptography import x509

from provenance.errors import DataError, MissingExtraError, StorageError, UsageError, say_briefly
from provenance.storage.files import read_bytes

_MAXIMUM_BYTES: Final = 1 << 20
_SECONDS: Final = 60
_SHA256: Final = x509.ObjectIdentifier("2.16.840.1.101.3.4.2.1")


@dataclass(frozen=True)
class Timestamp:
    """time : RFC 3339 in UTC, whole seconds; authority_checked : whether the chain was verified."""

    time: str
    authority_checked: bool


def make_request(content: bytes) -> bytes:
    """A DER request for the SHA-256 of `content`, with a nonce, asking for certificates."""
    client = _client()
    builder = client.TimestampRequestBuilder().data(content)
    return bytes(builder.hash_algorithm(client.HashAlgorithm.SHA256).build().as_bytes())


def read_timestamp(
    response: bytes, content: bytes, roots: tuple[x509.Certificate, ...], origin: str
) -> Timestamp:
    """What a DER response says of `content`.

    Parameters
    ----------
    response, content : the answer of an authority, and what was to be timestamped
    roots : certificates that are trusted; empty: the signature of the authority is not looked at
    origin : name of the response, for errors

    Raises
    ------
    DataError if the answer is no time-stamp response, is for other bytes, or is not signed under
    the roots at the time it names; MissingExtraError.
    """
    client = _client()
    try:
        answer = client.decode_timestamp_response(response)
        if answer.as_bytes() != response:
            raise ValueError("trailing bytes")
        information = answer.tst_info
        imprint = information.message_imprint
        if imprint.hash_algorithm != _SHA256:
            raise ValueError("another hash than SHA-256")
        if imprint.message != hashlib.sha256(content).digest():
            raise ValueError("the timestamp of other bytes")
        if roots:
            builder = client.VerifierBuilder()
            for root in roots:
                builder = builder.add_root_certificate(root)
            builder.build().verify_message(answer, content)
        time = information.gen_time.astimezone(UTC)
    except (ValueError, client.VerificationError) as error:
        raise DataError(
            f"{origin}: must be an RFC 3161 timestamp of this plan"
            f"{' under the given roots' if roots else ''}; got: {say_briefly(error)}. "
            "Ask the authority again."
        ) from error
    return Timestamp(time.strftime("%Y-%m-%dT%H:%M:%SZ"), bool(roots))


def read_roots(path: Path) -> tuple[x509.Certificate, ...]:
    """Trusted certificates from a PEM file. Raises DataError, StorageError."""
    try:
        return tuple(x509.load_pem_x509_certificates(read_bytes(path, _MAXIMUM_BYTES)))
    except ValueError as error:
        raise DataError(
            f"{path}: must hold certificates in PEM; it does not. Take the authority's root."
        ) from error


def ask_authority(url: str, request: bytes) -> bytes:
    """Send a request to an authority over HTTP(S); the answer, unverified. Raises StorageError."""
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"the URL of an authority must begin with http(s)://; got {url}.")
    asked = urllib.request.Request(
        url, data=request, headers={"Content-Type": "application/timestamp-query"}
    )
    try:
        with urllib.request.urlopen(asked, timeout=_SECONDS) as answer:
            return bytes(answer.read(_MAXIMUM_BYTES))
    except (urllib.error.URLError, TimeoutError, OSError) as error:
        raise StorageError(
            f"{url}: the authority must answer; got: {error}. "
            "Carry the request to it by hand, and give the answer with --response."
        ) from error


def _client() -> Any:
    try:
        import rfc3161_client
    except ImportError as error:
        raise MissingExtraError(
            "timestamps need rfc3161-client, which is not installed.",
            "evidence",
            "use the openssl ts command",
        ) from error
    return rfc3161_client
