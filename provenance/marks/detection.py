"""Is this very text marked, under which key, and where?

Direct detection needs no index and no suspect: the coins of the text's own (context, token) pairs
are scored under every key of the keyring. Each key is tried on the whole text and on a grid of
windows, so that a marked passage inside unmarked text is found; every look is paid for:

    p(key) = min(2 p(whole), 2 W min over W windows of p(window)),   then weighted Holm over keys.

Each coin is scored once, at its first occurrence: a repeated passage adds no evidence. Several
texts of one source can be pooled into one test, where a coin of any of them counts once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.special import gammaincc, gammaln

from provenance.errors import UsageError
from provenance.keys.keyring import UnlockedKeyring
from provenance.keys.schedule import OfKey
from provenance.keys.tokenizer import as_token_ids
from provenance.marks import Mark, TextCoins, as_mark
from provenance.marks.alpha import family_weights
from provenance.stats.families import weighted_holm
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.tables import ClassTable

_SHORTEST: Final = 64
_STRIDES: Final = 4
_EXACT_WINDOWS: Final = 6
_LEAST: Final = 1e-250


@dataclass(frozen=True)
class KeyDetection(OfKey):
    """One key on one text.

    Attributes
    ----------
    slot, value : which key
    coins : scored pairs of the whole text, n
    score : sum of their scores, S
    original_score : S as the mark's original adds it up (a Gumbel scheme's -ln(1 - u), unrounded);
        None where that is `score`
    log10_p : of this key, corrected for its windows; exact upper bound
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
    Cost: one coin a token and key of its slot; about 10 exact tails a key.
    """
    mark = as_mark(keyring)
    ids = as_token_ids(token_ids, mark.public.vocabulary_size)
    tokens = int(ids.shape[0])
    return _detect(mark, list(mark.read(ids)), _make_windows(tokens), tokens, alpha)


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
    return _detect(mark, list(mark.read_pooled(read)), _make_windows(0), tokens, alpha)


def _detect(
    mark: Mark, read: list[TextCoins], windows: NDArray[np.int64], tokens: int, alpha: float
) -> Detection:
    law = mark.null_law
    found = _adjust([_try_key(coins, windows, law) for coins in read])
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


def _try_key(coins: TextCoins, windows: NDArray[np.int64], law: NullLaw) -> KeyDetection:
    """p of one key over the whole text and all windows.

    Only the windows that look strongest get an exact tail; leaving out the others can only make the
    reported p larger.
    """
    positions, scores = coins.positions, coins.scores
    whole = _log10_tail(scores, law)
    span = (int(positions[0]), int(positions[-1]) + 1) if positions.size else (0, 0)
    best = whole + np.log10(2) if len(windows) else whole
    if len(windows) and positions.size:
        sums = np.concatenate([[0], np.cumsum(scores)])
        first, last = np.searchsorted(positions, windows.T)
        counts, totals = last - first, sums[last] - sums[first]
        for i in _strongest(counts, totals, law):
            exact = _log10_tail(scores[first[i] : last[i]], law)
            paid = exact + np.log10(2 * len(windows))
            if paid < best:
                best, span = paid, (int(windows[i, 0]), int(windows[i, 1]))
    return KeyDetection(
        slot=coins.slot,
        value=coins.value,
        coins=int(scores.size),
        log10_p=float(min(best, 0.0)),
        log10_adjusted=0.0,
        start=span[0],
        end=span[1],
        score=int(scores.sum()),
        original_score=coins.original,
    )


def _strongest(
    counts: NDArray[np.int64], totals: NDArray[np.int64], law: NullLaw
) -> NDArray[np.int64]:
    """Windows in the order of a Gamma tail with the law's mean and variance; a few of them."""
    some = np.flatnonzero(counts > 0)
    shape = counts[some] * law.mean**2 / law.variance
    total = np.maximum(totals[some] * law.mean / law.variance, _LEAST)
    tail = np.maximum(gammaincc(shape, total), _LEAST)
    # beyond float64: the density times the leading term of Legendre's continued fraction
    beyond = shape * np.log(total) - total - gammaln(shape) - np.log(np.maximum(total - shape, 1))
    rough = np.where(tail > _LEAST, np.log(tail), beyond)
    return some[np.argsort(rough, kind="stable")[:_EXACT_WINDOWS]]


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
