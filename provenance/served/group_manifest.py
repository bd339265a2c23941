"""What a group of responses says about itself: of which log it is, who is in it, and its table.

Written last, so that a folder without it holds no group. Reads no tables and no logs.
"""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from provenance.errors import ConfigurationMismatchError
from provenance.served.index_manifest import IndexManifest, hash_document, hash_logs
from provenance.served.log import LogFile
from provenance.storage.documents import read_fields, refuse_malformed
from provenance.storage.files import read_json, write_json

GROUP_FILE: Final = "group.json"
_FORMAT: Final = "provenance-group"
_VERSION: Final = 1
_TABLE_NAME: Final = re.compile(r"group-[0-9a-f]{16}\.parquet")
_ADVICE: Final = "Build it again with: provenance index build --only"


@dataclass(frozen=True)
class GroupManifest:
    """Everything about a group but the rows of its table.

    keyring_id : of the mark
    field, list_sha256, values, values_met : the field or label that chose it, the hash of the list
        of values (`provenance.served.membership.hash_values`), how many there are, and how many of
        them have a response
    responses, marked_responses, tokens : of the group
    others : responses outside of it
    without_prompt, others_without_prompt : responses of the group, and others, whose record does
        not say what their prompt was: what these saw is not known
    reached, exclusive : contexts of the slot `global` that the group reached, and those of them
        that nobody else saw in a response or a prompt: as many coins can be scored for it at most
    logs : the files of the log with their SHA-256; those of the index that it is used with
    rows, content_sha256, table, table_sha256 : as of an index
    """

    keyring_id: str
    field: str
    list_sha256: str
    values: int
    values_met: int
    responses: int
    marked_responses: int
    tokens: int
    others: int
    without_prompt: int
    others_without_prompt: int
    reached: int
    exclusive: int
    logs: tuple[LogFile, ...]
    rows: int
    content_sha256: str
    table: str
    table_sha256: str

    @property
    def log_sha256(self) -> str:
        """Which log it is of; see `hash_logs`."""
        return hash_logs(self.logs)

    def __str__(self) -> str:
        """What the group has, before any key is opened; without a full stop."""
        unknown = (
            f"; what {self.others_without_prompt:,} of the others were shown is not known, and "
            "nothing can be attributed against them"
            if self.others_without_prompt
            else ""
        )
        return (
            f"{self.responses:,} responses by {self.field} ({self.values_met:,} of "
            f"{self.values:,} values met, list {self.list_sha256[:16]}), {self.others:,} others; "
            f"{self.exclusive:,} of {self.reached:,} contexts of the global key are exclusive"
            f"{unknown}"
        )

    @classmethod
    def load(cls, folder: Path) -> GroupManifest:
        """Read group.json. Raises StorageError if it is missing, DataError if malformed."""
        path = folder / GROUP_FILE
        document = read_json(path)
        with refuse_malformed(f"{path}: must be a group of version {_VERSION}", _ADVICE):
            if document["format"] != _FORMAT or document["version"] != _VERSION:
                raise ValueError("another format or version")
            if document["sha256"] != hash_document(document):
                raise ValueError("content that does not match its checksum")
            found = read_fields(cls, document["group"])
            if not _TABLE_NAME.fullmatch(found.table):
                raise ValueError("a table with an impossible name")
        return found

    def to_json(self) -> dict[str, Any]:
        """The document of group.json, with its checksum."""
        document = {"format": _FORMAT, "version": _VERSION, "group": asdict(self)}
        return {**document, "sha256": hash_document(document)}

    def write(self, folder: Path) -> None:
        """Write group.json atomically, mode 0600."""
        write_json(folder / GROUP_FILE, self.to_json(), mode=0o600)

    def check_index(self, index: IndexManifest, origin: str) -> None:
        """Raise ConfigurationMismatchError (78) unless the index is of the same mark and log."""
        if self.keyring_id != index.keyring_id:
            raise ConfigurationMismatchError(
                f"{origin}: must be a group of the mark of the index, {index.keyring_id}; it is of "
                f"{self.keyring_id}. Build it with the same keyring."
            )
        own, other = self.log_sha256, hash_logs(index.logs)
        if own != other:
            raise ConfigurationMismatchError(
                f"{origin}: must be of the log of the index ({other[:16]}..., {len(index.logs)} "
                f"files); it is of another one ({own[:16]}..., {len(self.logs)} files). Build "
                "index and group from the same, complete files."
            )
