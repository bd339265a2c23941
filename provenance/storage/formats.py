"""What a file is by its first bytes, in the words of people, and a folder by a file in it."""

from __future__ import annotations

from typing import Final

_MAGIC: Final = (
    (b"PAR1", "a Parquet file"),
    (b"PK\x03\x04", "a zip archive (or an Office file)"),
    (b"\x1f\x8b", "a gzip file"),
    (b"\x28\xb5\x2f\xfd", "a zstd file"),
    (b"BZh", "a bzip2 file"),
    (b"\xfd7zXZ\x00", "an xz file"),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive"),
    (b"%PDF", "a PDF"),
    (b"SQLite format 3", "an SQLite database"),
    (b"ARROW1", "an Arrow file"),
    (b"\x89HDF", "an HDF5 file"),
    (b"\xff\xfe", "text in UTF-16"),
    (b"\xfe\xff", "text in UTF-16"),
    (b"\x80\x04", "a Python pickle"),
)
LEDGER_FILE: Final = "ledger.jsonl"
OUTPUTS_FILE: Final = "outputs.jsonl"
"""A folder with such a ledger is a collection, and these are its outputs."""
_TAR: Final = 257
FORMAT_BYTES: Final = _TAR + 8
"""So many first bytes tell."""
_TAR_ARCHIVE: Final = "a tar archive"
_ENDINGS: Final = {"a Parquet file": ".parquet", "a gzip file": ".gz", "a zstd file": ".zst"}


def name_format(start: bytes) -> str | None:
    """The format that these first bytes of a file belong to; None: perhaps text in UTF-8.

    >>> name_format(b"PAR1...")
    'a Parquet file'
    """
    for magic, name in _MAGIC:
        if start.startswith(magic):
            return name
    return _TAR_ARCHIVE if start[_TAR : _TAR + 5] == b"ustar" else None


def has_suffix(name: str) -> bool:
    """Whether another name would make a file of this format readable, or it is to be converted."""
    return name != _TAR_ARCHIVE


def advise(name: str) -> str:
    """What to do with a file of this format."""
    if "archive" in name:
        return "Unpack it, and name the folder"
    if name in _ENDINGS:
        return f"Let its name end in {_ENDINGS[name]}"
    return "Convert it to JSON lines in UTF-8"
