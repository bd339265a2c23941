"""What another machine needs of a mark to index a log: the slot of a context, no key that marks.

Knows marks; no log and no cluster.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from provenance.errors import UsageError
from provenance.keys.keyring import Keyring
from provenance.keys.marking import MarkingKeys
from provenance.keys.schedule import GLOBAL, SELECTOR_KEY, Schedule
from provenance.keys.selector import export_selector
from provenance.marks.base import Served
from provenance.marks.own.mark import KeyringMark


@dataclass(frozen=True)
class OneSlot:
    """The public half of a mark whose every context is `global`: somebody else's scheme."""

    public: Keyring

    @property
    def schedule(self) -> Schedule:
        """The public schedule."""
        return self.public.schedule

    @property
    def context_width(self) -> int:
        """Tokens of a context."""
        return self.public.context_width

    def slots_of_names(self, names: NDArray[np.int64]) -> NDArray[np.uint8]:
        """`global` for every context: uint8 [n]."""
        return np.full(names.shape, self.schedule.names.index(GLOBAL), dtype=np.uint8)


def export_slots(mark: Served) -> Served:
    """The same slots as the mark's, in an object that can be pickled and holds no key that marks.

    Of our own keyring it holds the selector's key, of somebody else's scheme nothing. Raises
    UsageError for a mark that cannot be reduced to that.
    """
    keyring = mark.keyring if isinstance(mark, KeyringMark) else mark
    if isinstance(keyring, MarkingKeys):
        return export_selector(keyring)
    schedule = mark.schedule
    if SELECTOR_KEY not in mark.public.commitments and schedule.slot(GLOBAL).share == 1:
        return OneSlot(replace(mark.public, commitments={}, tokenizer_copy=None))
    raise UsageError(
        f"a mark must be a keyring, or have one slot, to be indexed elsewhere; got {type(mark)}."
    )
