"""Is this very text marked, under which key, and where?

Direct detection needs no index and no suspect: the coins of the text's own (context, token) pairs
are scored under every key of the keyring. Each key is tried on the whole text and on a grid of
windows, so that a marked passage inside unmarked text is found; every look is paid for:

    p(key) = min(2 p(whole), 2 W min over W windows of p(window)),   then weighted Holm over keys.

A key that is far from being found reports Chernoff's bound of its p; the strongest one, and those
near alpha, get exact tails. Each coin is scored once, at its first occurrence: a repeated passage
adds no evidence. Several texts of one source can be pooled into one test, where a coin of any of
them counts once.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray

from provenance.errors import UsageError
from provenance.keys.keyring import UnlockedKeyring
from provenance.keys.schedule import KeyName, OfKey
from provenance.keys.tokenizer import as_token_ids
from provenance.marks import Mark, TextCoins, as_mark
from provenance.marks.alpha import family_weights
from provenance.stats.chernoff import bound_tails
from provenance.stats.families import weighted_holm
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable

_SHORTEST: Final = 64
_STRIDES: Final = 4
_EXACT_LOOKS: Final = 6
_CELLS: Final = 1 << 18
_CLOSE: Final = 0.2
"""How far in log10 a look's estimate may be above the best exact tail and still be tried."""

_MARGIN: Final = 1.0
"""How far in log10 a key's estimate may be above alpha and still get exact tails."""


@dataclass(frozen=True, slots=True)
class KeyDetection(OfKey):
    """One key on one text.

    Attributes
    ----------
    slot, value : which key
    coins : scored pairs of the whole text, n
    score : sum of their scores, S
    original_score : S as the mark's original adds it up (a Gumbel scheme's -ln(1 - u), unrounded);
        None where that is `score`
    log10_p : of this key, corrected for its windows; an upper bound, exact for the strongest key
        and for those that are or might be found, Chernoff's for the others
    log10_adjusted : corrected for all keys tried (weighted Holm)
    start, end : tokens of the strongest span, [start, end); the whole text if that is strongest
    """

    slot: str
    value: str
    coins: int
    log10_p: float
    log10_adjusted: float
    start: int
    end: int
    score: int = 0
    original_score: float | None = None

    def to_json(self) -> dict[str, Any]:
        """JSON-able form."""
        return {
            "slot": self.slot,
            "value": self.value,
            "coins": self.coins,
            "score": self.score,
            "original_score": self.original_score,
            "log10_p": self.log10_p,
            "log10_adjusted": self.log10_adjusted,
            "token_span": [self.start, self.end],
        }


@dataclass(frozen=True)
class Detection:
    """All keys on one text; `log10_p` is that of "no key of this keyring marked this text".

    Attributes
    ----------
    tokens : of the text, or of all pooled ones
    keys : all keys tried
    alpha : level of `marked`
    caveat : what makes the test weaker than its law says; "" if nothing does
    smallest_log10_p : what the p of a text with so many coins could be at the very least
    """

    tokens: int
    keys: tuple[KeyDetection, ...]
    alpha: float
    caveat: str = ""
    smallest_log10_p: float = 0.0

    @property
    def log10_p(self) -> float:
        """Smallest adjusted log10 p over the keys; 0 if nothing was scored."""
        return min((found.log10_adjusted for found in self.keys), default=0.0)

    @property
    def tested(self) -> bool:
        """True if a coin was scored; otherwise nothing is known of the text."""
        return any(found.coins for found in self.keys)

    @property
    def marked(self) -> bool:
        """True if the adjusted p is at most alpha."""
        return bool(self.log10_p <= np.log10(self.alpha))

    @property
    def too_short(self) -> bool:
        """True if no text with so few coins could be called marked, whatever it said."""
        return bool(self.smallest_log10_p > np.log10(self.alpha))

    @property
    def strongest(self) -> KeyDetection | None:
        """The key with the smallest adjusted p, of equal ones that with the most coins."""
        return min(self.keys, key=lambda found: (found.log10_adjusted, -found.coins), default=None)

    def to_json(self) -> dict[str, Any]:
        """JSON-able form: the text's p, its strongest key and all with an adjusted p <= alpha."""
        strongest = self.strongest
        return {
            "tokens": self.tokens,
            "marked": self.marked,
            "tested": self.tested,
            "too_short": self.too_short,
            "log10_p": self.log10_p,
            "alpha": self.alpha,
            "caveat": self.caveat,
            "keys_tried": len(self.keys),
            "strongest": None if strongest is None else strongest.to_json(),
            "keys": [
                found.to_json()
                for found in self.keys
                if found.log10_adjusted <= np.log10(self.alpha)
            ],
        }


def detect_mark(
    token_ids: ArrayLike, keyring: UnlockedKeyring | Mark, alpha: float = 1e-4
) -> Detection:
    """Test one text under every key of the keyring.

    Parameters
    ----------
    token_ids : integers [n], ids of the served tokenizer
    keyring : unlocked, or another mark (`provenance.marks.foreign.mark`)
    alpha : level of `Detection.marked`, after correction for windows and keys

    Returns
    -------
    Detection. H0: the text is independent of the keys' coins. Exact, whatever the text.

    Notes
    -----
    Cost: one coin a token and key of its slot; a few exact tails (a millisecond each) for the
    strongest key and each that is found.
    """
    mark = as_mark(keyring)
    ids = as_token_ids(token_ids, mark.public.vocabulary_size)
    tokens = int(ids.shape[0])
    return _detect(mark, mark.read(ids), _make_windows(tokens), tokens, alpha)


def detect_pooled(
    texts: Sequence[ArrayLike],
    keyring: UnlockedKeyring | Mark,
    alpha: float = 1e-4,
) -> Detection:
    """Test several texts together: one test of all their coins, each once; no windows.

    Many short texts of one source say together what none says alone. H0: *none* of the texts
    depends on the keys' coins. Parameters as for `detect_mark`; spans count through all texts.
    """
    mark = as_mark(keyring)
    if not texts:
        raise UsageError("at least one text must be given; got none. Nothing to pool.")
    read = [as_token_ids(ids, mark.public.vocabulary_size) for ids in texts]
    tokens = sum(int(ids.shape[0]) for ids in read)
    return _detect(mark, mark.read_pooled(read), _make_windows(0), tokens, alpha)


def _detect(
    mark: Mark, read: Iterable[TextCoins], windows: NDArray[np.int64], tokens: int, alpha: float
) -> Detection:
    law = mark.null_law
    looks = _look(read, windows, law)
    exact = _choose(looks, alpha)
    found = _adjust(
        [_try_key(each, windows, law, one) for each, one in zip(looks, exact, strict=True)]
    )
    # every coin at the highest score that the law allows: no text of these lengths says more
    highest = np.log10(law.masses[law.support[-1]] / law.total)
    best = _adjust([replace(key, log10_p=float(key.coins * highest)) for key in found])
    smallest = min((key.log10_adjusted for key in best), default=0.0)
    return Detection(tokens, found, alpha, mark.caveat, smallest)


def _make_windows(tokens: int) -> NDArray[np.int64]:
    """Spans of 64, 128, ... tokens at a quarter of their length: int64 [windows, 2]."""
    spans = []
    length = _SHORTEST
    while length < tokens:
        starts = np.arange(0, tokens - length + length // _STRIDES, length // _STRIDES)
        spans.append(np.stack([starts, np.minimum(starts + length, tokens)], axis=1))
        length *= 2
    return np.concatenate(spans) if spans else np.empty((0, 2), dtype=np.int64)


@dataclass(frozen=True)
class _Looks:
    """The strongest looks of one key, before any exact tail; look 0 is the whole text.

    bound : the least of the bounds of all looks, log10 p paid for all of them
    chosen, first, last : int64 [m], looks by estimate, and which coins of the key are in each
    estimate, price : float64 [m], log10 p of each, paid; and what was paid
    """

    coins: TextCoins
    bound: float
    chosen: NDArray[np.int64]
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    estimate: NDArray[np.float64]
    price: NDArray[np.float64]


def _look(read: Iterable[TextCoins], windows: NDArray[np.int64], law: NullLaw) -> list[_Looks]:
    """All looks of all keys, bounded together where texts are short, key by key where not."""
    together = max(1, _CELLS // (1 + len(windows)))
    keys = iter(read)
    looks: list[_Looks] = []
    while some := list(islice(keys, together)):
        looks += _look_at(some, windows, law)
    return looks


def _look_at(read: Sequence[TextCoins], windows: NDArray[np.int64], law: NullLaw) -> list[_Looks]:
    first, last = (np.zeros((len(read), 1 + len(windows)), dtype=np.int64) for _ in range(2))
    totals = np.zeros_like(first)
    for row, coins in enumerate(read):
        last[row, 0] = coins.scores.size
        first[row, 1:], last[row, 1:] = np.searchsorted(coins.positions, windows.T)
        sums = np.concatenate([[0], np.cumsum(coins.scores)])
        totals[row] = sums[last[row]] - sums[first[row]]
    tails = bound_tails(law, (last - first).ravel(), totals.ravel())
    price = np.full(totals.shape[1], np.log10(2 * max(len(windows), 1)))
    price[0] = np.log10(2) if len(windows) else 0.0
    bounds = (tails.bound.reshape(totals.shape) + price).min(axis=1)
    estimates = tails.estimate.reshape(totals.shape) + price
    looks = []
    for row, coins in enumerate(read):
        some = np.argsort(estimates[row], kind="stable")[:_EXACT_LOOKS]
        ends, rank = (first[row, some], last[row, some]), estimates[row, some]
        looks.append(_Looks(coins, float(bounds[row]), some, *ends, rank, price[some]))
    return looks


def _choose(looks: Sequence[_Looks], alpha: float) -> list[bool]:
    """Which keys get exact tails: the strongest, and all that might be found.

    Any choice is valid, since the others report a bound: it decides only how close they come.
    """
    weights = family_weights([KeyName(one.coins.slot, one.coins.value) for one in looks])
    adjusted = np.array([one.estimate[0] for one in looks]) - np.log10(weights)
    chosen = adjusted <= np.log10(alpha) + _MARGIN
    if chosen.size:
        chosen[np.argmin(adjusted)] = True
    return [bool(one) for one in chosen]


def _try_key(looks: _Looks, windows: NDArray[np.int64], law: NullLaw, exact: bool) -> KeyDetection:
    """p of one key over the whole text and all windows.

    Only the looks that may be the strongest get an exact tail, and only where it matters; the
    bounds of the others can but make the reported p larger.
    """
    coins = looks.coins
    strongest, best = int(looks.chosen[0]), looks.bound
    if exact and coins.scores.size:
        best = np.inf
        for place, look in enumerate(looks.chosen):
            if looks.estimate[place] > best + _CLOSE:
                break
            tail = _log10_tail(coins.scores[looks.first[place] : looks.last[place]], law)
            if tail + looks.price[place] < best:
                strongest, best = int(look), tail + float(looks.price[place])
    start, end = 0, 0
    if strongest:
        start, end = map(int, windows[strongest - 1])
    elif coins.scores.size:
        start, end = int(coins.positions[0]), int(coins.positions[-1]) + 1
    return KeyDetection(
        slot=coins.slot,
        value=coins.value,
        coins=int(coins.scores.size),
        log10_p=float(min(best, 0.0)),
        log10_adjusted=0.0,
        start=start,
        end=end,
        score=int(coins.scores.sum()),
        original_score=coins.original,
    )


def _log10_tail(scores: NDArray[np.int64], law: NullLaw) -> float:
    ones = np.ones(scores.shape[0], dtype=np.int64)
    return log10_upper_tail(ClassTable.from_scores(ones, scores, law))


def _adjust(found: Sequence[KeyDetection]) -> tuple[KeyDetection, ...]:
    weights = family_weights([one.key for one in found])
    adjusted = weighted_holm(np.array([key.log10_p for key in found]), weights)
    return tuple(
        replace(key, log10_adjusted=float(value))
        for key, value in zip(found, adjusted, strict=True)
    )
