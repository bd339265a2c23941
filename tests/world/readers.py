"""Innocent models whose probabilities are known without a network: what reading weights is fed.

Each speaks a Markov chain of order 2 of its own and never saw the log. They read the *marked* log:
the hostile case, since the text in front of every position was chosen by the coins.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from provenance.coins.contexts import list_windows, pack_windows, unpack
from provenance.suspect.access.documents import Documents, find_served
from provenance.suspect.passes import Reading
from provenance.suspect.positions import Positions, join_ids
from tests.world.synthetic import WORDS, Teacher

LISTED = 20


@dataclass(frozen=True)
class MarkovReader:
    """Probabilities of a mixture of two teachers; `copying` of them go to a copied token.

    A copier is an induction head: where the context, or else its last word, stood before in the
    document, it bets on the word that followed it there. After a first occurrence of a context that
    word was chosen by the coin of another one; after a later occurrence, by the very coin that
    would be scored. `listed` keeps the most probable words only, as an API does.
    """

    name: str
    own: Teacher
    other: Teacher
    share: float = 0.0
    copying: float = 0.0
    listed: int = WORDS

    reads_other_tokens = False

    @property
    def description(self) -> Mapping[str, Any]:
        """Its name."""
        return {"kind": "markov", "name": self.name}

    def read(self, positions: Positions, wanted: NDArray[np.bool_]) -> Reading:
        """Its probabilities at the wanted positions."""
        chosen = np.flatnonzero(wanted)
        a, b = unpack(positions.contexts[chosen], 2).T
        rows = (1 - self.share) * self.own.dense(a, b) + self.share * self.other.dense(a, b)
        if self.copying:
            copied = self._copy(positions, chosen, np.stack([a, b], axis=1))
            some = copied >= 0
            rows[some] *= 1 - self.copying
            rows[np.flatnonzero(some), copied[some]] += self.copying
        if self.listed < WORDS:
            least = np.partition(rows, -self.listed, axis=1)[:, -self.listed]
            rows = np.where(rows >= least[:, np.newaxis], rows, 0)
        place, token = np.nonzero(rows > 0.002)
        contexts = positions.contexts[chosen]
        return Reading(
            contexts[place],
            token.astype(np.uint32),
            rows[place, token],
            contexts,
            {
                "positions": float(len(chosen)),
                "positions_read": float(len(chosen)),
                "mass_kept": float(len(chosen)),
            },
        )

    @staticmethod
    def _copy(
        positions: Positions, chosen: NDArray[np.int64], contexts: NDArray[np.uint32]
    ) -> NDArray[np.int64]:
        """The word after the latest earlier place of the context, or else of its last word.

        int64 [n], -1 where there is none.
        """
        found = np.full(chosen.shape[0], -1)
        for i, (place, (first, last)) in enumerate(zip(chosen, contexts, strict=True)):
            text = positions.outputs[positions.rows[place]][: positions.offsets[place]]
            ends = np.flatnonzero(text[:-1] == last)
            pairs = ends[(ends > 0) & (text[ends - 1] == first)]
            earlier = pairs if pairs.shape[0] else ends
            if earlier.shape[0]:
                found[i] = text[earlier[-1] + 1]
        return found


class EveryOccurrence(Documents):
    """The test double: every position counts, also the second and third of one context.

    At those a copier bets on the word that the coin of that very context chose before.
    """

    def __iter__(self) -> Iterator[tuple[Positions, NDArray[np.bool_]]]:
        width = self.keyring.context_width
        for batch in self._read():
            outputs = [row.values.to_numpy() for row in batch.column("token_ids")]
            prompts = [np.empty(0, dtype=np.uint32)] * len(outputs)
            ids, lengths = join_ids(outputs)
            rows, starts = list_windows(ids, lengths, width, followed=True)
            begins = np.cumsum(lengths) - lengths
            contexts, tokens = pack_windows(ids, starts, width), ids[starts + width]
            offsets = starts + width - begins[rows]
            positions = Positions(outputs, prompts, rows, offsets, contexts, tokens, 0, 0, 0, {})
            yield positions, find_served(contexts, self.index, self.keyring)


def innocent_readers(teacher: Teacher, stranger: Teacher) -> tuple[MarkovReader, ...]:
    """The suspects: related to the teacher, a stranger, a copier, and one seen through an API."""
    return (
        MarkovReader("related", teacher, stranger, 0.4),
        MarkovReader("stranger", stranger, teacher),
        MarkovReader("copier", teacher, stranger, 0.2, copying=0.9),
        MarkovReader("top-20", teacher, stranger, 0.4, listed=LISTED),
    )
