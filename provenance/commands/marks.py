"""Which mark a command is about: our own keyring, or somebody else's scheme and its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from provenance.errors import UsageError

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from provenance.keys.keyring import Keyring, UnlockedKeyring
    from provenance.marks import Mark

Keys = Annotated[Path | None, typer.Option(help="Folder of the keyring.")]
SchemeName = Annotated[
    str | None,
    typer.Option("--scheme", help="Instead of --keys: whose mark, like hf-synthid."),
]
SchemeConfig = Annotated[
    Path | None,
    typer.Option("--scheme-config", help="With --scheme: the original's configuration, JSON."),
]
SchemeKeyFile = Annotated[
    Path | None,
    typer.Option("--scheme-key-file", help="With --scheme: its key, if not in the configuration."),
]
SchemeKeyCommand = Annotated[
    str | None, typer.Option("--scheme-key-cmd", help="With --scheme: prints its key.")
]
TokenizerFile = Annotated[
    Path | None, typer.Option(help="tokenizer.json; default: the keyring's copy.")
]
VocabularySize = Annotated[
    int | None, typer.Option(help="With --scheme: vocab_size of the marked model's config.json.")
]


@dataclass(frozen=True)
class MarkChoice:
    """The options that say whose mark it is."""

    keys: Path | None
    scheme: str | None
    config: Path | None
    key_file: Path | None
    key_command: str | None
    tokenizer: Path | None
    vocabulary_size: int | None

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

    def open(self, vocabulary_size: int | None = None) -> UnlockedKeyring | Mark:
        """The mark with its key; `vocabulary_size` is used where the options give none."""
        if self.scheme is not None and self.config is not None and self.tokenizer is not None:
            from provenance.marks.foreign.reading import read_foreign_mark

            return read_foreign_mark(
                self.scheme,
                self.config,
                self.tokenizer,
                key_file=self.key_file,
                key_command=self.key_command,
                vocabulary_size=self.vocabulary_size or vocabulary_size,
            )
        from provenance.keys.keyring import Keyring

        folder = self.keys or Path()
        return Keyring.load(folder).unlock(folder)

    def describe(self, vocabulary_size: int | None = None) -> Keyring:
        """The public half: of a keyring without its secret; of a scheme, its id fixes the key."""
        if self.scheme is not None:
            return self.open(vocabulary_size).public
        from provenance.keys.keyring import Keyring

        return Keyring.load(self.keys or Path())

    @property
    def tokenizer_path(self) -> Path:
        """The option, else the keyring's copy."""
        from provenance.keys.keyring import TOKENIZER_FILE

        return self.tokenizer or (self.keys or Path()) / TOKENIZER_FILE

    def load_tokenizer(self, mark: UnlockedKeyring | Mark) -> Tokenizer:
        """The served tokenizer, checked against the mark."""
        from provenance.keys.tokenizer import load_tokenizer

        return load_tokenizer(self.tokenizer_path, mark.public)
