"""Our own keyring as the mark under test: a coin for every pair, contexts shared out to slots."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import first_pairs, response_contexts
from provenance.errors import UsageError
from provenance.keys.keyring import Key, Keyring, UnlockedKeyring
from provenance.keys.schedule import Schedule
from provenance.keys.worker import WorkerKeys
from provenance.marks.base import Mark, OpenKey, TextCoins, scored_positions
from provenance.marks.own import Scheme, make_scheme
from provenance.stats.laws import NullLaw
from provenance.storage.files import name_of

Integers = NDArray[np.int64]
Tokens = NDArray[np.uint32]


@dataclass(frozen=True)
class SchemeKey:
    """A key of our own keyring and the scheme that scores its words."""

    key: Key
    scheme: Scheme

    @property
    def slot(self) -> str:
        return self.key.slot

    @property
    def value(self) -> str:
        return self.key.value

    def group(self, contexts: Tokens, tokens: Tokens) -> None:
        """Every pair has a coin of its own."""

    def score(self, contexts: Tokens, tokens: Tokens) -> Integers:
        """Of each pair's word. Cost: one coin a pair."""
        return self.scheme.score(self.key.words(contexts, tokens))

    def open(
        self, contexts: Tokens, tokens: Tokens, weights: Integers
    ) -> tuple[Integers, Integers]:
        """Every pair has a coin of its own. Cost: one coin a pair."""
        return weights, self.score(contexts, tokens)


class SchemePlacebos:
    """Placebo keys of one of our own schemes; needs no keyring."""

    def __init__(self, scheme: Scheme) -> None:
        self.scheme = scheme

    @property
    def null_law(self) -> NullLaw:
        return self.scheme.null_law

    def placebo(self, seed: bytes, number: int) -> OpenKey:
        """256 bits from the seed."""
        secret = hashlib.sha256(b"placebo" + seed + number.to_bytes(4, "big")).digest()
        return SchemeKey(Key(secret, "placebo", str(number)), self.scheme)


class KeyringMark(SchemePlacebos):
    """Our own keyring as the mark under test."""

    caveat = ""
    shares_coins = False

    def __init__(self, keyring: UnlockedKeyring) -> None:
        specification = keyring.public.scheme
        super().__init__(make_scheme(specification.name, specification.parameters))
        self.keyring = keyring

    @property
    def public(self) -> Keyring:
        return self.keyring.public

    @property
    def schedule(self) -> Schedule:
        return self.keyring.schedule

    @property
    def context_width(self) -> int:
        return self.keyring.context_width

    def slots_of_names(self, names: Integers) -> NDArray[np.uint8]:
        """See `UnlockedKeyring.slots_of_names`."""
        return self.keyring.slots_of_names(names)

    def open(self, slot: str, value: str) -> OpenKey:
        """See `UnlockedKeyring.key`."""
        return SchemeKey(self.keyring.key(slot, value), self.scheme)

    def read(self, token_ids: Tokens) -> Iterator[TextCoins]:
        """Each (context, token) once, under the keys of its context's slot.

        Cost: one coin of the selector a pair, and one a key of its slot.
        """
        return self.read_pooled([token_ids])

    def read_pooled(self, texts: Sequence[Tokens]) -> Iterator[TextCoins]:
        """Every key yields, also where a text is too short for any coin."""
        width = self.context_width
        pairs = [response_contexts(ids, width) for ids in texts]
        contexts = np.concatenate([contexts for contexts, _ in pairs])
        tokens = np.concatenate([tokens for _, tokens in pairs])
        positions = scored_positions([ids.shape[0] for ids in texts], width)
        kept = first_pairs(contexts, tokens)
        slots = self.keyring.slots_of(contexts[kept])
        for number, slot in enumerate(self.schedule.slots[1:], start=1):
            own = kept[slots == number]
            for value in slot.values:
                scores = self.scheme.score(
                    self.keyring.key(slot.name, value).words(contexts[own], tokens[own])
                )
                yield TextCoins(slot.name, value, positions[own], scores)


def as_mark(keyring: UnlockedKeyring | Mark) -> Mark:
    """The mark of our own unlocked keyring; other marks as they are. Raises UsageError else."""
    if isinstance(keyring, UnlockedKeyring):
        return KeyringMark(keyring)
    if isinstance(keyring, WorkerKeys):
        raise UsageError(
            "the keyring must be unlocked; got a worker's keys, which can only mark: a test needs "
            "every key of the schedule. Use provenance.open_keyring(DIR) on the key host."
        )
    if isinstance(keyring, Keyring):
        raise UsageError(
            "the keyring must be unlocked; got its public half. Use provenance.open_keyring(DIR)."
        )
    if not all(hasattr(keyring, name) for name in ("open", "null_law", "shares_coins")):
        raise UsageError(
            f"the keyring must be an unlocked keyring or another mark; got {name_of(keyring)}. "
            "Use provenance.open_keyring or provenance.read_foreign_mark."
        )
    return keyring
