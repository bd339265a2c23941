"""What a check and a detection ask of the mark under test, be it ours or somebody else's.

A mark opens keys; an open key turns weighted (context, token) pairs into coins, every coin once.
Our own schemes have a coin of their own for every pair. In other people's schemes many pairs share
one coin (`provenance.marks.foreign`); there the weights of the pairs of a coin are added up.

Knows keys and schemes; knows no files, no log, no suspect and no verdict.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from provenance.keys.keyring import Keyring
from provenance.keys.schedule import Schedule
from provenance.marks.sharing import Groups
from provenance.stats.laws import NullLaw

Integers = NDArray[np.int64]
Tokens = NDArray[np.uint32]


class Served(Protocol):
    """What reading a log or a suspect may know of a mark: the public half, and slots."""

    @property
    def public(self) -> Keyring:
        """Id, scheme, widths, tokenizer, schedule and commitments."""

    @property
    def schedule(self) -> Schedule:
        """The slots."""

    @property
    def context_width(self) -> int:
        """Tokens of a context."""

    def slots_of_names(self, names: Integers) -> NDArray[np.uint8]:
        """Slot number of each named context: int64 [n] -> uint8 [n]."""


class OpenKey(Protocol):
    """One key of a mark, or a placebo; `slot` and `value` say which."""

    @property
    def slot(self) -> str:
        """Name of the slot."""

    @property
    def value(self) -> str:
        """Name of the value."""

    def group(self, contexts: Tokens, tokens: Tokens) -> Groups | None:
        """Which pairs are one coin under this key; None if every pair has a coin of its own.

        Looks at no coin. Parameters: distinct pairs, uint32 [n, k] and uint32 [n].
        """

    def score(self, contexts: Tokens, tokens: Tokens) -> Integers:
        """Score of the coin of each pair: uint32 [n, k] and uint32 [n] -> int64 [n]."""

    def open(
        self, contexts: Tokens, tokens: Tokens, weights: Integers
    ) -> tuple[Integers, Integers]:
        """Weight and score of every coin that these pairs have under this key.

        Parameters: distinct pairs, uint32 [n, k] and uint32 [n], and their weights, int64 [n].
        Returns int64 [m] each, m <= n: no coin twice, none that is the same under every key.
        """


@dataclass(frozen=True)
class TextCoins:
    """The coins of one text, or of several together, under one key.

    slot, value : which key
    positions : int64 [m], ascending: the token at which each coin stands for the first time,
        counted through all texts
    scores : int64 [m]
    original : sum of the scores as the mark's original adds them up; None if that is the same
    """

    slot: str
    value: str
    positions: Integers
    scores: Integers
    original: float | None = None


def scored_positions(lengths: Sequence[int], skipped: int) -> Integers:
    """Positions in the texts put end to end, without the first `skipped` of each: int64.

    >>> scored_positions([3, 1, 4], 2).tolist()
    [2, 6, 7]
    """
    starts = np.cumsum([0, *lengths])
    parts = [
        np.arange(start + skipped, start + length, dtype=np.int64)
        for start, length in zip(starts[:-1], lengths, strict=True)
    ]
    return np.concatenate([np.empty(0, dtype=np.int64), *parts])


class Placebos(Protocol):
    """What the placebo control asks of a mark: random keys, and the law of a coin's score.

    Needs no secret, so that whoever has the pairs can repeat the control.
    """

    @property
    def null_law(self) -> NullLaw:
        """Of one coin's score."""

    def placebo(self, seed: bytes, number: int) -> OpenKey:
        """Random key `number` of the mark's own key space; a function of the seed."""


class Mark(Served, Placebos, Protocol):
    """The protocol.

    Where one coin serves many contexts (`shares_coins`), how often the *log* held a context depends
    on coins that are tested, and counts of the index must not weigh anything.
    """

    @property
    def caveat(self) -> str:
        """What makes the test weaker than its law says, or what controls are missing; or ""."""

    @property
    def shares_coins(self) -> bool:
        """Whether one coin serves many contexts."""

    def open(self, slot: str, value: str) -> OpenKey:
        """The key of (slot, value). Raises ConfigurationMismatchError if it has none."""

    def read(self, token_ids: Tokens) -> Iterator[TextCoins]:
        """The coins of one text under every key, in the order of the schedule."""

    def read_pooled(self, texts: Sequence[Tokens]) -> Iterator[TextCoins]:
        """The same of several texts: no window crosses into the next, no coin counts twice."""
