"""What an API said of some records, joined with the positions that count.

Knows listed probabilities and positions; knows no file, no tokenizer, no key and no index.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from provenance.suspect.access.listed import Listed
from provenance.suspect.passes import Reading
from provenance.suspect.positions import Positions


@dataclass(frozen=True)
class LogprobsPart:
    """Some records: their positions, and what the API said at each served token.

    lists : per record and served token, what was listed; None where the API's tokens are cut
        differently, or it said nothing
    aligned : bool [n] per record: whether a token of the API begins where the served one does
    generated : the API itself drew the texts; else they may have been given to it
    silent : records without an answer: refusals, and calls of tools
    """

    positions: Positions
    lists: Sequence[Sequence[Listed | None]]
    aligned: Sequence[NDArray[np.bool_]]
    generated: bool
    silent: int = 0

    @property
    def listed(self) -> NDArray[np.bool_]:
        """Positions with a list: bool [m]."""
        pairs = zip(self.positions.rows.tolist(), self.positions.offsets.tolist(), strict=True)
        return np.array(
            [self.lists[row][place] is not None for row, place in pairs], dtype=np.bool_
        )

    def read(self, wanted: NDArray[np.bool_]) -> Reading:
        """The listed probabilities at the wanted positions (bool [m])."""
        places, tokens, masses, read = [], [], [], []
        kept = listed = 0.0
        cut = 0
        for place in np.flatnonzero(wanted):
            row, offset = self.positions.rows[place], self.positions.offsets[place]
            found = self.lists[row][offset]
            if found is None:
                cut += not self.aligned[row][offset]
                continue
            places.append(np.full(found.ids.shape[0], self.positions.contexts[place]))
            tokens.append(found.ids)
            masses.append(found.masses)
            read.append(place)
            kept += float(found.masses.sum())
            listed += found.total
        return Reading(
            contexts=np.concatenate([np.empty(0, dtype=np.int64), *places]),
            tokens=np.concatenate([np.empty(0, dtype=np.uint32), *tokens]),
            masses=np.concatenate([np.empty(0), *masses]),
            visited=self.positions.contexts[np.array(read, dtype=np.int64)],
            tally={
                "positions": float(wanted.sum()),
                "positions_read": float(len(read)),
                "positions_cut": float(cut),
                "mass_kept": kept,
                "mass_listed": listed,
                "silent": float(self.silent),
                "generated": float(self.generated * len(self.positions.outputs)),
            },
        )
