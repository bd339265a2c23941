"""The selector's key alone: it assigns contexts to slots and marks nothing.

This is what goes to machines that count an index. Whoever has it learns which contexts belong to
which slot, and no coin of any key; so it is still a secret. Unlike an unlocked keyring it can be
pickled, on purpose.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.keys.keyring import Key, Keyring
from provenance.keys.marking import MarkingKeys
from provenance.keys.schedule import SELECTOR_KEY, KeyName


class SelectorOnly(MarkingKeys):
    """A keyring with the key of its selector and no other. Prints no key.

    Of the public half it keeps the commitment of the selector only. Raises
    ConfigurationMismatchError if the key does not open it.
    """

    def __init__(self, public: Keyring, selector: bytes) -> None:
        commitment = public.commitments.get(SELECTOR_KEY)
        if commitment is None or not commitment.opens_to(selector):
            raise ConfigurationMismatchError(
                f"the selector's key must be that of keyring {public.id}; it does not open the "
                "commitment. Use the right keyring."
            )
        self.public = replace(public, commitments={SELECTOR_KEY: commitment}, tokenizer_copy=None)
        self._selector = Key(selector, *SELECTOR_KEY)

    def __repr__(self) -> str:
        return f"SelectorOnly(id={self.public.id!r})"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:  # type: ignore[override]
        return SelectorOnly, (self.public, self._selector.reveal())

    def key(self, slot: str, value: str) -> Key:
        """The selector's key; ConfigurationMismatchError for any other."""
        if (slot, value) != SELECTOR_KEY:
            raise ConfigurationMismatchError(
                f"{str(KeyName(slot, value))[:128]!a} must be asked of the keyring itself; here is "
                "the selector's key only. Open the keyring on the key host."
            )
        return self._selector

    def list_held(self) -> Collection[KeyName]:
        """The selector's."""
        return (SELECTOR_KEY,)

    @property
    def home(self) -> None:
        """It comes from no file."""

    def reread(self, path: Path) -> NoReturn:
        """Refuses: it comes from no file."""
        raise UsageError(
            f"{path}: a selector's key must be exported again; it has no file to be read from."
        )


def export_selector(keyring: MarkingKeys) -> SelectorOnly:
    """The selector's key of a keyring that holds it, and nothing else of the keyring's secrets."""
    return SelectorOnly(keyring.public, keyring.key(*SELECTOR_KEY).reveal())
