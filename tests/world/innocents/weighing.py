"""What is counted and how it is weighed: the sound ways, and the faults that a gate must see.

A recipe turns a log into n(c), a weighting turns pairs into integers. Weights of the rules are the
library's. The two controls of selection have weights of their own, given here as functions of the
same arrays.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from provenance.check.weigh import PairCounts, weigh
from tests.world.innocents.counting import (
    count_contexts,
    count_served,
    drop_ends,
    find_marked,
    keep,
    list_draws,
    retokenise,
)
from tests.world.innocents.suspects import Log, Shown

Integers = NDArray[np.int64]


def _reached(log: Log) -> Integers:
    """Every context at which a draw was made, in responses of which any draw was by a coin."""
    return count_served(log.responses, log.language)


def _by_request(log: Log) -> Integers:
    """All responses of a request (a conversation, retries) are one lineage."""
    return count_served(log.responses, log.language, conversations=True)


def _unprompted(log: Log) -> Integers:
    """Prompts are recorded: contexts that stand there do not count."""
    return count_served(log.responses, log.language, prompts=True)


SOUND: Final[Mapping[str, Callable[[Log], Integers]]] = {
    "reached": _reached,
    "by request": _by_request,
    "unprompted": _unprompted,
}


def _dropped(log: Log) -> Integers:
    """The end token is dropped, so the last window of a response counts only if text follows."""
    marked = find_marked(log.responses)
    draws = list_draws(drop_ends(log.responses, log.language), log.language)
    return count_contexts(draws, marked, log.language)


def _marked_late(log: Log) -> Integers:
    """Every window counts, but `marked` is decided when the end token has been dropped."""
    marked = find_marked(drop_ends(log.responses, log.language))
    return count_contexts(list_draws(log.responses, log.language), marked, log.language)


def _dropped_first(log: Log) -> Integers:
    """Both: what the product did until now."""
    return count_served(drop_ends(log.responses, log.language), log.language)


def _text_only(log: Log) -> Integers:
    """The log is kept as text and tokenised anew."""
    marked = find_marked(log.responses)
    draws = list_draws(retokenise(log.responses, log.language), log.language)
    return count_contexts(draws, marked, log.language)


def _fixed_windows(log: Log) -> Integers:
    """The log is kept as text; only windows count that no merge could move, whatever follows."""
    language = log.language
    draws = list_draws(retokenise(log.responses, language), language)
    last = draws.contexts % language.stride
    merged = last >= language.words
    safe = ~merged & (language.partners[np.where(merged, 0, last)] < 0)
    contexts = draws.contexts[safe & find_marked(log.responses)[draws.rows]]
    return np.bincount(contexts, minlength=language.contexts).astype(np.int64)


def _best(log: Log) -> Integers:
    """Of the candidates of a request only the best one is logged."""
    order = np.lexsort((log.responses.rewards, log.responses.requests))
    last = np.append(np.diff(log.responses.requests[order]) > 0, True)
    return _only(log, order[last])


def _last(log: Log) -> Integers:
    """Of the attempts of a request only the last one is logged."""
    requests = log.responses.requests
    return _only(log, np.flatnonzero(np.append(np.diff(requests) > 0, True)))


def _moderated(log: Log) -> Integers:
    """Whole responses below the median mean log probability are left out after generation."""
    rewards = log.responses.rewards
    return _only(log, np.flatnonzero(rewards >= np.median(rewards)))


def _only(log: Log, rows: Integers) -> Integers:
    kept = np.zeros(log.responses.lengths.size, dtype=np.bool_)
    kept[rows] = True
    return count_served(keep(log.responses, kept), log.language)


def _every(log: Log) -> Integers:
    """Every occurrence of a context counts, not the first one of a response."""
    draws = list_draws(log.responses, log.language, every=True)
    return count_contexts(draws, find_marked(log.responses), log.language)


FAULTS: Final[Mapping[str, Callable[[Log], Integers]]] = {
    "end dropped": _dropped,
    "marked decided late": _marked_late,
    "end dropped, then marked": _dropped_first,
    "text-only log": _text_only,
    "text-only log, fixed windows": _fixed_windows,
    "best only": _best,
    "last attempt only": _last,
    "moderated": _moderated,
    "every occurrence": _every,
}


@dataclass(frozen=True)
class Weighting:
    """A rule of the library, or a control. `low`: a low sum of scores is the alarm."""

    name: str
    low: bool = False

    def weigh(self, shown: Shown, n: Integers, log: Log, sampled: bool) -> Integers:
        """Weights of all pairs of contexts of the slot, int64 [m]; n(c) is given per pair."""
        if self.name == "unserved":
            return weigh_unserved(shown.masses, shown.totals, n)
        if self.name == "ends":
            return weigh_ends(shown.tokens, shown.expected, n, (log.language.end,))
        weights = np.zeros(n.size, dtype=np.int64)
        some = n > 0
        if self.name in SATURATING:
            weights[some] = SATURATING[self.name](shown.masses[some], n[some])
            return weights
        rule = self.name
        if rule == "pair counts":
            rule, (n, some) = "log-sqrt", _count_pairs(shown, log, n)
        if rule.startswith(CAPPED):
            rule, n = "residual", np.minimum(n, int(rule.removeprefix(CAPPED)))
        weights[some] = weigh(
            PairCounts(
                shown.masses[some], shown.totals[some], n[some], shown.expected[some], sampled
            ),
            rule,
        )
        return weights


def _count_pairs(shown: Shown, log: Log, n: Integers) -> tuple[Integers, NDArray[np.bool_]]:
    """The fault: how often the *pair* stood in the log, in place of its context."""
    language = log.language
    draws = list_draws(log.responses, language)
    codes, counts = np.unique(draws.contexts * language.ids + draws.tokens, return_counts=True)
    wanted = shown.contexts * language.ids + shown.tokens
    places = np.minimum(np.searchsorted(codes, wanted), codes.size - 1)
    found = np.where((codes[places] == wanted) & (n > 0), counts[places], 0)
    return found, found > 0


def weigh_unserved(masses: NDArray[np.float64], totals: Integers, n: Integers) -> Integers:
    """Control: round(4 sqrt(N) ln(1 + N(c))) in contexts of the slot that the log never reached.

    N up to 16 and N(c) up to 1,024, so at most 111. Parameters: float64, int64, int64 [m].
    """
    totals = np.minimum(totals, 1 << 10)
    real = 4 * np.sqrt(np.minimum(masses, 16)) * np.log1p(totals)
    return np.where(n == 0, np.rint(real), 0).astype(np.int64)


def weigh_ends(
    tokens: Integers, expected: NDArray[np.float64], n: Integers, ends: tuple[int, ...]
) -> Integers:
    """Control: round(4 ln(1 + n) sqrt(E)) of the reference alone, on (context, end) pairs.

    E up to 16 and n up to 1,024, so at most 111. Parameters: int64, float64, int64 [m]; end ids.
    """
    real = 4 * np.log1p(np.minimum(n, 1 << 10)) * np.sqrt(np.minimum(expected, 16))
    return np.where(np.isin(tokens, ends), np.rint(real), 0).astype(np.int64)


def _saturate(bound: int) -> Callable[[NDArray[np.float64], Integers], Integers]:
    """16 ln(1 + min(n, bound)) / ln(1 + bound) sqrt(N): log-sqrt with n capped much lower."""

    def rule(masses: NDArray[np.float64], n: Integers) -> Integers:
        share = np.log1p(np.minimum(n, bound)) / np.log1p(bound)
        return np.rint(16 * share * np.sqrt(np.minimum(masses, 16))).astype(np.int64)

    return rule


CAPPED: Final = "residual, n to "
"""The library's residual rule with n(c) capped at the number that follows."""
SATURATING: Final[Mapping[str, Callable[[NDArray[np.float64], Integers], Integers]]] = {
    "sqrt, served at all": _saturate(1),
    "log-sqrt to 3": _saturate(3),
    "log-sqrt to 15": _saturate(15),
}
