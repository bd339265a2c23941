"""What an API listed at one position, freed of what was listed because it stood there.

**What is listed must not depend on what was drawn.** Servers add the token that stands at a
position to its list, however improbable it is (vLLM does so for every prompt token). Where the text
was given to the API, a served response above all, the coins of the key chose that token: its mass
would then be known exactly where the coin was high and taken for 0 everywhere else, and an innocent
model would lean towards the coins. So such an entry is forgotten. For the same reason the logprob
that an API gives of the token it drew is never added to a list that lacks it. Of a text that an
innocent API drew itself this would be safe, since its draws know no key; but a record cannot prove
who drew it, an API can carry the mark itself, and the mass gained is below that of the least token
listed.

Knows ids and probabilities; knows no tokenizer and no key.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Listed(NamedTuple):
    """Served ids uint32 [k] and their probabilities float64 [k]; all that was listed, with or
    without a served id, sums to `total`.
    """

    ids: NDArray[np.uint32]
    masses: NDArray[np.float64]
    total: float


def forget_chosen(lists: Sequence[Listed | None], ids: NDArray[np.uint32]) -> list[Listed | None]:
    """The lists without entries that are there only because their token stands at the position.

    Parameters
    ----------
    lists : of one text, one per token
    ids : the tokens that stand there, uint32 [n]

    Returns
    -------
    As many lists; None where nothing is left.

    Notes
    -----
    Only the least entry of a list can have been added. Lists of the n most probable tokens have n
    entries or, with an added one, n + 1: the least of a longer list goes. If all lists are equally
    long and the least entry of *every* one is the token that stands there, nothing shows that any
    of them was among the n, and all go. Lists of all tokens above a probability have any length:
    an added entry lies below every other entry of the text, and goes.

    Examples
    --------
    >>> import math
    >>> def listed(*pairs):
    ...     ids, masses = zip(*pairs)
    ...     return Listed(np.array(ids, dtype=np.uint32), np.array(masses), math.fsum(masses))
    >>> lists = [listed((5, .5), (6, .3), (9, .1)), listed((5, .6), (9, .2))]
    >>> [kept.ids.tolist() for kept in forget_chosen(lists, np.array([9, 9], dtype=np.uint32))]
    [[5, 6], [5, 9]]
    """
    present = [(one, int(token)) for one, token in zip(lists, ids, strict=True) if one is not None]
    if not present:
        return list(lists)
    sizes = [one.ids.shape[0] for one, _ in present]
    least = min(sizes)
    ranked = max(sizes) - least <= 1
    everywhere = max(sizes) == least and all(_is_least(*pair) for pair in present)
    floor = min((_least_other(*pair) for pair in present), default=1.0)

    def clean(one: Listed | None, token: int) -> Listed | None:
        if one is None or not _is_least(one, token):
            return one
        mass = float(one.masses[one.ids == token].sum())
        added = everywhere or one.ids.shape[0] > least if ranked else mass < floor
        if not added or mass == 0:
            return one
        kept = one.ids != token
        return Listed(one.ids[kept], one.masses[kept], one.total - mass) if kept.any() else None

    return [clean(one, token) for one, token in zip(lists, ids.tolist(), strict=True)]


def _is_least(one: Listed, token: int) -> bool:
    """Whether the token is listed, and every other entry is more probable."""
    own = one.ids == token
    return bool(own.any() and (one.masses[~own] > one.masses[own].min()).all())


def _least_other(one: Listed, token: int) -> float:
    """The least probability of any other token of the list."""
    return float(one.masses[one.ids != token].min(initial=1.0))
