"""Whose mark it is: our own keyring, or somebody else's scheme and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from provenance.errors import UsageError

if TYPE_CHECKING:
    from provenance.keys.keyring import Keyring, UnlockedKeyring
    from provenance.marks import Mark


@dataclass(frozen=True)
class MarkChoice:
    """A keyring's folder, or a scheme with its configuration, key and tokenizer.

    Attributes
    ----------
    keys : folder of our keyring; or instead of it
    scheme, config : name of the scheme, and the original's own configuration file
    key_file, key_command : its key, if not in the configuration
    tokenizer : tokenizer.json of the served model; of a keyring the default is its own copy
    vocabulary_size : of the marked model's output layer, for a scheme
    """

    keys: Path | None = None
    scheme: str | None = None
    config: Path | None = None
    key_file: Path | None = None
    key_command: str | None = None
    tokenizer: Path | None = None
    vocabulary_size: int | None = None

    def __post_init__(self) -> None:
        if (self.keys is None) == (self.scheme is None):
            raise UsageError(
                "one of --keys and --scheme must be given; got "
                f"{'none' if self.keys is None else 'both'}. Say whose mark it is."
            )
        others = (self.config, self.key_file, self.key_command, self.vocabulary_size)
        if self.scheme is None and any(other is not None for other in others):
            raise UsageError(
                "--scheme-config, --scheme-key-file, --scheme-key-cmd and --vocabulary-size must "
                "come with --scheme; it is missing. Name the scheme, or leave them out."
            )
        if self.scheme is not None and (self.config is None or self.tokenizer is None):
            raise UsageError(
                "--scheme must come with --scheme-config and --tokenizer; one is missing. "
                "Give the original's configuration and the marked model's tokenizer.json."
            )

    def open(self, index: Path | None = None) -> UnlockedKeyring | Mark:
        """The mark with its key.

        The size of the vocabulary, if a scheme needs it and nobody gave it, is that of the index.
        Raises UsageError, DataError, StorageError, KeyPermissionError, ConfigurationMismatchError.
        """
        from provenance.keys.keyring import Keyring
        from provenance.marks.foreign.reading import read_foreign_mark
        from provenance.served.index_manifest import IndexManifest

        if self.scheme is None or self.config is None or self.tokenizer is None:
            folder = self.keys or Path()
            return Keyring.load(folder).unlock(folder)
        size = self.vocabulary_size
        if size is None and index is not None:
            size = IndexManifest.load(index).vocabulary_size
        return read_foreign_mark(
            self.scheme,
            self.config,
            self.tokenizer,
            key_file=self.key_file,
            key_command=self.key_command,
            vocabulary_size=size,
        )

    def describe(self, index: Path | None = None) -> Keyring:
        """The public half: of a keyring without its secret; of a scheme, its id fixes the key."""
        from provenance.keys.keyring import Keyring

        if self.scheme is not None:
            return self.open(index).public
        return Keyring.load(self.keys or Path())
