"""Slots: how the contexts of the served text are shared out among the keys.

A schedule cuts the 2**32 values of the selector's coin into consecutive intervals, one per slot.
Every context belongs to exactly one slot. `control` is never marked and takes what the others
leave; `global` has one key; an attribute slot has one key per value of that attribute.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from fractions import Fraction
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.storage.kernels import kernel

CONTROL: Final = "control"
GLOBAL: Final = "global"
SINGLE_VALUE: Final = ""
"""The value of a slot that has only one key (`control`, `global`)."""

WORDS: Final = 1 << 32
_ALIKE: Final = 0.75
"""Likeness from which on a label's name is taken for a misspelt slot; that of `Wek` and `week`."""


class KeyName(NamedTuple):
    """Which key of a keyring: its slot and value, wherever the two travel together.

    >>> str(KeyName("week", "2026-W17")), str(KeyName("global"))
    ('week=2026-W17', 'global')
    >>> KeyName.parse("week=2026-W17") == ("week", "2026-W17")
    True
    """

    slot: str
    value: str = SINGLE_VALUE

    def __str__(self) -> str:
        """How a key is called in words: `global`, or `week=2026-W17`."""
        return f"{self.slot}={self.value}" if self.value else self.slot

    @classmethod
    def parse(cls, text: str) -> KeyName:
        """The key that `text` is the name of in words."""
        slot, _, value = text.partition("=")
        return cls(slot, value)


class OfKey:
    """What is about one key: for classes that have its `slot` and `value` as fields."""

    __slots__ = ()

    slot: str
    value: str

    @property
    def key(self) -> KeyName:
        """Which key it is about."""
        return KeyName(self.slot, self.value)

    @property
    def name(self) -> str:
        """`global` or `week=2026-W17`."""
        return str(self.key)


GLOBAL_KEY: Final = KeyName(GLOBAL)
CONTROL_KEY: Final = KeyName(CONTROL)
SELECTOR: Final = "selector"
SELECTOR_KEY: Final = KeyName(SELECTOR)
"""Name of the key whose coins share out the contexts among the slots; it marks nothing."""


DEFAULT_SHARES: Final[Mapping[str, float]] = {
    GLOBAL: 0.1,
    "week": 0.04,
    "capability": 0.03,
    "cohort": 0.03,
}
"""A fifth of the contexts is marked, half of it under the global key."""

_MAXIMUM_SLOTS = 250


@dataclass(frozen=True)
class Slot:
    """A class of contexts: its share (in 2**-32) and the values that have a key of their own."""

    name: str
    share_words: int
    values: tuple[str, ...]

    @property
    def share(self) -> float:
        """Share of all contexts, 0 .. 1."""
        return self.share_words / WORDS


@dataclass(frozen=True)
class Schedule:
    """The slots in the order of their intervals; slot 0 is `control`, slot 1 is `global`."""

    slots: tuple[Slot, ...]

    def __post_init__(self) -> None:
        names = [slot.name for slot in self.slots]
        if names[:2] != [CONTROL, GLOBAL] or len(set(names)) != len(names):
            raise UsageError(
                f"a schedule must list {CONTROL}, {GLOBAL} and then attributes, each once; "
                f"got {names}. Repair the keyring."
            )
        if len(names) > _MAXIMUM_SLOTS:
            raise UsageError(f"a schedule must have at most {_MAXIMUM_SLOTS} slots; got more.")
        if sum(slot.share_words for slot in self.slots) != WORDS or any(
            slot.share_words < 0 for slot in self.slots
        ):
            raise UsageError("the shares of a schedule must be >= 0 and sum to 1. Adjust --slot.")
        for slot in self.slots:
            for value in slot.values:
                _check_value(slot.name, value)
            if len(set(slot.values)) != len(slot.values):
                raise UsageError(f"values of slot {slot.name} must differ; one is given twice.")

    def find_alike(self, name: str) -> str | None:
        """The attribute that a label's name may be meant for; None for a slot, or if none is alike.

        >>> Schedule.from_shares({"global": 0.1, "week": 0.1}).find_alike("Wek")
        'week'
        """
        near = get_close_matches(name.casefold(), self.attributes, 1, _ALIKE)
        return None if name in self.names or not near else near[0]

    @classmethod
    def from_shares(
        cls, shares: Mapping[str, float], values: Mapping[str, Sequence[str]] | None = None
    ) -> Schedule:
        """Build a schedule from the shares of the marked slots; `control` takes the rest.

        Parameters
        ----------
        shares : share of all contexts per slot, without `control`; `global` must be among them
        values : known values per attribute slot; more can be added later

        Raises
        ------
        UsageError if a share is not in [0, 1], they sum to more than 1, or a slot is unknown.

        Examples
        --------
        >>> [slot.name for slot in Schedule.from_shares({"global": 0.1, "week": 0.1}).slots]
        ['control', 'global', 'week']
        """
        values = values or {}
        if GLOBAL not in shares:
            raise UsageError(f"the slot {GLOBAL} must have a share; it is missing. Add it.")
        if unknown := (set(values) - set(shares)) | ({CONTROL} & set(shares)):
            raise UsageError(
                f"slots must be {GLOBAL} or attributes with a share; got {sorted(unknown)}. "
                f"The share of {CONTROL} is what the others leave."
            )
        marked = []
        for name in [GLOBAL, *(name for name in shares if name != GLOBAL)]:
            if not 0 <= shares[name] <= 1:
                raise UsageError(
                    f"the share of slot {name} must be in [0, 1]; got {shares[name]}. Adjust it."
                )
            words = round(Fraction(shares[name]) * WORDS)
            own = (SINGLE_VALUE,) if name == GLOBAL else tuple(values.get(name, ()))
            marked.append(Slot(name, words, own))
        rest = WORDS - sum(slot.share_words for slot in marked)
        return cls((Slot(CONTROL, rest, (SINGLE_VALUE,)), *marked))

    @property
    def names(self) -> tuple[str, ...]:
        """Slot names in order; the position of a name is the slot's number in an index."""
        return tuple(slot.name for slot in self.slots)

    @property
    def attributes(self) -> tuple[str, ...]:
        """Names of the attribute slots."""
        return self.names[2:]

    @property
    def marked_share(self) -> float:
        """Share of contexts that can carry a mark."""
        return 1 - self.slots[0].share

    @property
    def ends(self) -> NDArray[np.uint64]:
        """Where each slot's interval of the selector's words ends: uint64 [slots]."""
        return np.cumsum(np.array([slot.share_words for slot in self.slots], dtype=np.uint64))

    def slot(self, name: str) -> Slot:
        """The slot called `name`; ConfigurationMismatchError if there is none."""
        for slot in self.slots:
            if slot.name == name:
                return slot
        raise ConfigurationMismatchError(
            f"slot must be one of {', '.join(self.names)}; got {name}. See: provenance keys show"
        )

    def assign(self, words: NDArray[np.uint32]) -> NDArray[np.uint8]:
        """Slot number of each context from its selector coin: uint32 [n] -> uint8 [n]."""
        slots = np.empty(words.shape, dtype=np.uint8)
        _assign(words, self.ends, slots)
        return slots

    def with_value(self, name: str, value: str) -> Schedule:
        """The same schedule with one more value of an attribute slot."""
        slot = self.slot(name)
        if name in (CONTROL, GLOBAL):
            raise UsageError(f"slot must be an attribute; got {name}, which has exactly one key.")
        if value in slot.values:
            raise UsageError(f"value must be new to slot {name}; {value} already has a key.")
        grown = replace(slot, values=(*slot.values, value))
        return Schedule(tuple(grown if s.name == name else s for s in self.slots))


@kernel(nogil=True)
def _assign(words, ends, out):  # type: ignore[no-untyped-def]
    """How many intervals end at or before each word: slots are few, so they are counted."""
    for i in range(words.shape[0]):
        slot = np.uint8(0)
        for end in ends:
            slot += np.uint8(np.uint64(words[i]) >= end)
        out[i] = slot


def _check_value(slot: str, value: str) -> None:
    if slot in (CONTROL, GLOBAL):
        if value != SINGLE_VALUE:
            raise UsageError(f"slot {slot} must have no named values; got {value!r}. Remove it.")
    elif not 1 <= len(value) <= 128 or not value.isprintable() or value != value.strip():
        raise UsageError(
            f"values of slot {slot} must be 1 to 128 printable characters; got {value!r}. "
            "Rename the label."
        )
