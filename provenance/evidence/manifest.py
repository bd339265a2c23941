"""The manifest of a bundle: every file with its size and SHA-256. Written last: the commit point.

What is signed is the manifest, so a bundle is whole or it is refused. Knows files; not what they
mean.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import stat
from collections.abc import Collection, Iterator, Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Final

from provenance.check.filing import Filing
from provenance.errors import DISTRIBUTION, DataError
from provenance.evidence.steps import StepFailedError
from provenance.storage.documents import read_fields, refuse_malformed, take_stated
from provenance.storage.files import (
    interchange_json,
    name_of_leftover,
    parse_json,
    read_bytes,
    sha256_of_file,
    write_atomically,
)

MANIFEST_FILE: Final = "manifest.json"
SIGNATURE_FILE: Final = "manifest.sig"
PUBLIC_KEY_FILE: Final = "manifest.pub.pem"
_LOCK_FILE: Final = ".lock"
_UNLISTED: Final = frozenset({MANIFEST_FILE, SIGNATURE_FILE, PUBLIC_KEY_FILE, _LOCK_FILE})
_FORMAT: Final = "provenance-bundle"
_VERSION: Final = 1
_NAME: Final = re.compile(r"(?:[a-z]+/)?[A-Za-z0-9][A-Za-z0-9_-]*(?:\.[a-z0-9]+)+")
_HEX_256: Final = re.compile(r"[0-9a-f]{64}")
_TIME: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}Z")
_MAXIMUM_BYTES: Final = 1 << 24
_PACKAGES: Final = ("provenance", "numpy", "scipy", "pyarrow", "matplotlib", "jinja2")


@dataclass(frozen=True)
class Entry:
    """One file: its name relative to the folder, its size in bytes, its hex SHA-256."""

    name: str
    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a bundle holds.

    Attributes
    ----------
    files : every file but the manifest and its signature, by name
    created : when the bundle was written (RFC 3339, UTC), by the clock of its maker
    pairs : whether the scored pairs are in it
    environment : versions of what computed it
    filing : case number, suspect and author, if they were given
    """

    files: tuple[Entry, ...]
    created: str
    pairs: bool
    environment: Mapping[str, str]
    filing: Filing | None = None

    @property
    def names(self) -> frozenset[str]:
        """Names of all listed files."""
        return frozenset(entry.name for entry in self.files)

    def to_json(self) -> dict[str, Any]:
        """JSON form, as stored."""
        document = {
            "format": _FORMAT,
            "version": _VERSION,
            "created": self.created,
            "pairs": self.pairs,
            "environment": dict(self.environment),
            "files": [asdict(entry) for entry in self.files],
        }
        return document if self.filing is None else {**document, "filing": self.filing.to_json()}

    @classmethod
    def from_json(cls, document: object) -> Manifest:
        """What `to_json` wrote. Raises TypeError, ValueError."""
        stated = take_stated(document, frozenset({"format", "version"}))
        if document["format"] != _FORMAT or document["version"] != _VERSION:  # type: ignore[index]
            raise ValueError("another format or version")
        return read_fields(cls, stated)

    def __post_init__(self) -> None:
        """Raise ValueError unless every field is in its domain."""
        names = [entry.name for entry in self.files]
        for entry in self.files:
            if not _NAME.fullmatch(entry.name):
                raise ValueError(f"the name {entry.name!r}, which is not a plain relative path")
            if entry.name in _UNLISTED:
                raise ValueError(f"{entry.name}, which a manifest cannot list")
            if entry.size < 0 or not _HEX_256.fullmatch(entry.sha256):
                raise ValueError(f"a size or hash of {entry.name} that is none")
        if names != sorted(set(names)):
            raise ValueError("names that repeat or are not in order")
        if not _TIME.fullmatch(self.created):
            raise ValueError("created out of its domain")


def write_manifest(
    folder: Path, created: str, *, pairs: bool, filing: Filing | None = None
) -> Manifest:
    """List and hash what lies in `folder`, and write manifest.json. Raises StorageError."""
    names = sorted(name for name, _ in _walk(folder) if name not in _UNLISTED)
    manifest = Manifest(
        tuple(
            Entry(name, (folder / name).stat().st_size, sha256_of_file(folder / name))
            for name in names
        ),
        created,
        pairs,
        describe_environment(),
        filing or None,
    )
    write_atomically(folder / MANIFEST_FILE, interchange_json(manifest.to_json()))
    return manifest


def read_manifest(folder: Path) -> tuple[Manifest, bytes]:
    """The manifest and its bytes. Raises StepFailedError unless it is one, in canonical form."""
    path = folder / MANIFEST_FILE
    if not path.is_file() or path.is_symlink():
        raise StepFailedError(MANIFEST_FILE, "must be a file of the bundle; there is none")
    content = read_bytes(path, _MAXIMUM_BYTES)
    try:
        document = parse_json(content, MANIFEST_FILE)
        with refuse_malformed("must be a manifest", "Write the bundle anew."):
            manifest = Manifest.from_json(document)
            if interchange_json(manifest.to_json()) != content:
                raise ValueError("not the canonical form (RFC 8785)")
    except DataError as error:
        raise StepFailedError(MANIFEST_FILE, str(error)) from error
    return manifest, content


def check_files(
    folder: Path, manifest: Manifest, passed_over: Collection[str] = frozenset()
) -> None:
    """Every listed file is there and unchanged, and nothing else is. Raises StepFailedError.

    Passed over is what a killed signing left of its files (`name_of_leftover`), and what is named.
    """
    found = {
        name: status
        for name, status in _walk(folder)
        if name_of_leftover(name) not in _UNLISTED and name not in passed_over
    }
    for name, status in sorted(found.items()):
        if not stat.S_ISREG(status.st_mode):
            raise StepFailedError(
                name, "must be a regular file; it is a link, a folder or a device"
            )
        if name == _LOCK_FILE and status.st_size:
            raise StepFailedError(name, "must be empty; it is not")
        if name not in _UNLISTED and name not in manifest.names:
            raise StepFailedError(name, "must be listed in the manifest; it is not")
    for entry in manifest.files:
        if entry.name not in found:
            raise StepFailedError(entry.name, "must be in the bundle; it is missing")
        if found[entry.name].st_size != entry.size:
            raise StepFailedError(
                entry.name,
                f"must have {entry.size} bytes; it has {found[entry.name].st_size}",
            )
        digest = sha256_of_file(folder / entry.name)
        if digest != entry.sha256:
            raise StepFailedError(
                entry.name, f"must have SHA-256 {entry.sha256[:16]}...; it has {digest[:16]}..."
            )


def hash_contents(folder: Path, without: str) -> str:
    """SHA-256 of all that a bundle holds but one file, and but manifest and signature.

    It is that of what `sha256sum` prints of these files in the order of their names: it can stand
    in that one file, the report, which names the bundle by it.
    """
    names = sorted(n for n, _ in _walk(folder) if name_of_leftover(n) is None and n != without)
    lines = [f"{sha256_of_file(folder / n)}  {n}\n" for n in names if n not in _UNLISTED]
    return hashlib.sha256("".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _walk(folder: Path, prefix: str = "") -> Iterator[tuple[str, os.stat_result]]:
    """Relative name and status of the files in a folder and in its folders; follows no link.

    A folder inside a folder of the bundle is yielded like a file, and refused like a device.
    """
    for entry in os.scandir(folder / prefix):
        name = f"{prefix}{entry.name}"
        if entry.is_dir(follow_symlinks=False) and not prefix:
            yield from _walk(folder, f"{name}/")
        else:
            yield name, entry.stat(follow_symlinks=False)


def describe_environment() -> dict[str, str]:
    """Versions of Python, the platform and the packages that decide what a bundle says."""
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in _PACKAGES:
        try:
            found[name] = version(DISTRIBUTION if name == "provenance" else name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found
