"""What marking asks of a keyring, whoever holds its keys: the key host all, a worker some.

Knows not where a secret comes from, and not how a scheme uses a coin.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import unpack
from provenance.keys.schedule import SELECTOR_KEY, KeyName, Schedule

if TYPE_CHECKING:
    from provenance.keys.keyring import Key, Keyring


class KnownKeys(Protocol):
    """Which keys a process may ask for; with or without the keys themselves."""

    @property
    def public(self) -> Keyring:
        """The public half of the keyring."""

    def list_held(self) -> Collection[KeyName]:
        """Names of the keys that are held here."""

    def reread(self, path: Path) -> Self:
        """The same from where it was read, which may have more values now."""


class MarkingKeys(ABC):
    """A keyring with keys: gives those that it holds and assigns contexts to slots."""

    public: Keyring

    @property
    @abstractmethod
    def home(self) -> Path | None:
        """The folder or the file that they were read from, if that is known."""

    @abstractmethod
    def key(self, slot: str, value: str) -> Key:
        """The key of (slot, value), which opens its commitment; ConfigurationMismatchError else."""

    @abstractmethod
    def list_held(self) -> Collection[KeyName]:
        """Names of the keys that `key` can give."""

    @abstractmethod
    def reread(self, path: Path) -> Self:
        """The same from where it was read, which may have more values now. No key is forgotten."""

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be pickled: open it where it is needed")

    @property
    def schedule(self) -> Schedule:
        """The public schedule."""
        return self.public.schedule

    @property
    def context_width(self) -> int:
        """k, the number of tokens of a context."""
        return self.public.context_width

    @property
    def reads_prompt(self) -> bool:
        """Whether contexts that stand in the prompt are left unmarked."""
        return self.public.reads_prompt

    def slots_of(self, contexts: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Slot number of each context: word 0 of the selector's keystream, cut by the shares.

        Parameters: contexts uint32 [n, k]. Returns uint8 [n]. Cost: one coin a context.
        """
        selector = self.key(*SELECTOR_KEY)
        words = selector.words(contexts, np.zeros(contexts.shape[0], dtype=np.uint32))
        return self.schedule.assign(words)

    def slots_of_names(self, names: NDArray[np.int64]) -> NDArray[np.uint8]:
        """`slots_of` for packed contexts: int64 [n] -> uint8 [n]."""
        return self.slots_of(unpack(names, self.context_width))
