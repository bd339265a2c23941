"""What an index says about itself: which keyring, which logs, which table, and all their hashes.

The manifest is written last and names the table by its hash, so a folder without a manifest holds
no index. Knows the public half of a keyring; does not read tables or logs.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from provenance.errors import ConfigurationMismatchError
from provenance.keys.keyring import Keyring
from provenance.keys.schedule import WORDS
from provenance.marks.own import SCHEMES
from provenance.served.log import LogFile
from provenance.served.seal import Seal
from provenance.storage.documents import read_fields, refuse_malformed
from provenance.storage.files import canonical_json, read_json, write_json

MANIFEST_FILE = "manifest.json"
_FORMAT = "provenance-index"
_VERSION = 3
_MOST_ENDS = 64
_LEAST_END = 0.01
_SHOWN = 80
_NEWER = (
    frozenset({"duplicate_ids", "marked_retokenised", "unended", "ends"}),
    frozenset({"control_words", "seal"}),
)
"""Fields that version 2 and version 3 added."""
_TABLE_NAME = re.compile(r"windows-[0-9a-f]{16}\.parquet")
_CONTEXTS_NAME = re.compile(r"contexts-[0-9a-f]{16}\.parquet")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class ServedValue:
    """One value of a slot: its name, distinct contexts served, and their total of responses."""

    name: str
    contexts: int
    responses: int


@dataclass(frozen=True)
class ServedSlot:
    """One slot as it was when the index was built; the number of a value is its position.

    `without_value`: marked responses that had no label (or one without a key) for this slot.
    """

    name: str
    share_words: int
    values: tuple[ServedValue, ...]
    without_value: int


@dataclass(frozen=True)
class Excerpt:
    """What an excerpt of an index holds, see `provenance.served.excerpt`.

    contexts : how many contexts it was made for; looking up another one is an error
    contexts_table, contexts_sha256 : the file that lists them
    rows, content_sha256 : of its own table; those of the manifest are of the whole index
    """

    contexts: int
    contexts_table: str
    contexts_sha256: str
    rows: int
    content_sha256: str

    def __post_init__(self) -> None:
        if not _CONTEXTS_NAME.fullmatch(self.contexts_table):
            raise ValueError("a file of contexts with an impossible name")


@dataclass(frozen=True)
class IndexManifest:
    """Everything about an index but its rows.

    keyring_id, scheme, context_width, tokenizer_sha256, vocabulary_size, slots : the keyring
    responses, marked_responses, duplicates, empty, retokenised, tokens, marked_tokens : the log,
        see `provenance.served.log.LogStatistics`
    marked_retokenised, unended : marked responses whose windows were selected by what was drawn in
        them: their ids come from text, or may lack the token that ended them. A check against an
        index with such responses cannot be evidence by itself (docs/method.md, section 3). An index
        of version 1 did not know: all its marked responses count as unended
    ends : how often each token ended a marked response whose record says that an end token did
    logs : the files of the log with their SHA-256
    control_words : share of the contexts of the slot `control` that are in the table, in 2**-32:
        see `provenance.served.control_sample`. Indexes before version 3 hold all of them
    seal : hashes of the pieces of the file, so that only what is read needs to be hashed; None of
        indexes before version 3
    rows, content_sha256 : the table's rows; the hash does not depend on how files were split,
        batched or ordered, nor on the Parquet writer
    table, table_sha256 : the Parquet file
    excerpt : None, or what the folder holds of the index that all the rest speaks of
    """

    keyring_id: str
    scheme: Mapping[str, Any]
    context_width: int
    tokenizer_sha256: str
    vocabulary_size: int
    slots: tuple[ServedSlot, ...]
    responses: int
    marked_responses: int
    duplicates: int
    empty: int
    retokenised: int
    tokens: int
    marked_tokens: int
    logs: tuple[LogFile, ...]
    rows: int
    content_sha256: str
    table: str
    table_sha256: str
    duplicate_ids: tuple[str, ...] = field(default=())
    marked_retokenised: int = 0
    unended: int = 0
    ends: Mapping[str, int] = field(default_factory=dict)
    control_words: int = WORDS
    seal: Seal | None = None
    excerpt: Excerpt | None = None

    @property
    def end_tokens(self) -> list[int]:
        """Tokens that end responses: those that ended at least one in a hundred, ascending.

        So which tokens these are does not hang on single draws.
        """
        least = _LEAST_END * sum(self.ends.values())
        return sorted(int(token) for token, count in self.ends.items() if count >= least)

    @classmethod
    def load(cls, folder: Path | str) -> IndexManifest:
        """Read manifest.json. Raises StorageError if it is missing, DataError if malformed."""
        path = Path(folder) / MANIFEST_FILE
        document = read_json(path)
        claim = f"{path}: must be the manifest of an index of version {_VERSION}"
        with refuse_malformed(claim, "Build it again with: provenance index build"):
            return cls.from_json(document)

    @classmethod
    def from_json(cls, document: Any) -> IndexManifest:
        """What `to_json` wrote, or a manifest of version 1 or 2. Raises what `MALFORMED` lists."""
        if document["format"] != _FORMAT or document["version"] not in range(1, _VERSION + 1):
            raise ValueError("another format or version")
        if document["sha256"] != hash_document(document):
            raise ValueError("content that does not match its checksum")
        index = document["index"]
        if document["version"] == 1:
            retokenised = min(index["retokenised"], index["marked_responses"])
            unended = index["marked_responses"] - retokenised
            index = {**index, "marked_retokenised": retokenised, "unended": unended}
        newer = frozenset[str]().union(*_NEWER[: document["version"] - 1])
        if missing := sorted(newer - set(index)):
            raise ValueError(f"missing fields {', '.join(missing)}")
        manifest = read_fields(cls, index)
        if not 0 < manifest.control_words <= WORDS:
            raise ValueError("an impossible share of control contexts")
        if not all(token.isdecimal() for token in manifest.ends):
            raise ValueError("ends that are no counts of tokens")
        if not _TABLE_NAME.fullmatch(manifest.table):
            raise ValueError("a table with an impossible name")
        if not _SHA256.fullmatch(manifest.table_sha256):
            raise ValueError("a table without a SHA-256")
        return manifest

    def to_json(self) -> dict[str, Any]:
        """The document of manifest.json, with its checksum."""
        index = asdict(self)
        if self.excerpt is None:
            del index["excerpt"]
        document = {"format": _FORMAT, "version": _VERSION, "index": index}
        return {**document, "sha256": hash_document(document)}

    def write(self, folder: Path) -> None:
        """Write manifest.json atomically, mode 0600: the commit point of the index."""
        write_json(folder / MANIFEST_FILE, self.to_json(), mode=0o600)

    def check_keyring(self, public: Keyring, origin: str) -> None:
        """Raise ConfigurationMismatchError (78) unless the index was built under this mark.

        `public` is the public half of a keyring or of another mark. What differs is named, the most
        telling first; where all else agrees it is the key. The keyring may have gained values
        since; a value never changes its position.
        """
        given = public.scheme.to_json()
        served = dict(self.scheme)
        parameters = served.get("parameters", {}), given["parameters"]
        pairs = [
            ("scheme", served.get("name"), given["name"]),
            *(
                (f"parameter {name}", *(side.get(name) for side in parameters))
                for name in sorted({*parameters[0], *parameters[1]})
            ),
            ("context width", self.context_width, public.context_width),
            ("tokenizer's sha256", self.tokenizer_sha256, public.tokenizer_sha256),
            ("vocabulary size", self.vocabulary_size, public.vocabulary_size),
            (
                "slots",
                [(slot.name, slot.share_words) for slot in self.slots],
                [(slot.name, slot.share_words) for slot in public.schedule.slots],
            ),
            ("keyring" if given["name"] in SCHEMES else "key", self.keyring_id, public.id),
        ]
        for own, slot in zip(self.slots, public.schedule.slots, strict=False):
            names = tuple(value.name for value in own.values)
            pairs.append((f"values of slot {own.name}", names, slot.values[: len(names)]))
        for what, found, wanted in pairs:
            if found != wanted:
                raise ConfigurationMismatchError(
                    f"{origin}: must be an index of the mark that was given; its {what} is "
                    f"{_shorten(found)}, that of the mark is {_shorten(wanted)}. Give the "
                    "keyring, or the scheme with its configuration, tokenizer and key, that the "
                    "log was served under."
                )


def _shorten(value: object) -> str:
    """The value for a message: a table of 8 KiB has no place in one line."""
    text = str(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}..."


def hash_logs(logs: Sequence[LogFile]) -> str:
    """Hex SHA-256 of which files a log has, with their records; not of their names and order.

    Two indexes, or an index and a group, are of one log if it is equal.
    """
    return hashlib.sha256(canonical_json(sorted([f.sha256, f.records] for f in logs))).hexdigest()


def hash_document(document: Mapping[str, Any]) -> str:
    """Hex SHA-256 of a document in canonical JSON, without its own field `sha256`."""
    rest = {name: value for name, value in document.items() if name != "sha256"}
    return hashlib.sha256(canonical_json(rest)).hexdigest()


def keep_ends(ends: Mapping[int, int]) -> dict[str, int]:
    """The most frequent of the tokens that ended responses, with their counts, as JSON has them."""
    often = sorted(ends.items(), key=lambda item: (-item[1], item[0]))[:_MOST_ENDS]
    return {str(token): count for token, count in often}
