"""Two controls that see a log which was selected by its own coins, without an innocent model.

An index must count a context if and only if it was *reached* (docs/method.md, section 3). Where a
context is forgotten because of what was drawn after it, its coins were low for the tokens that
remain, and the contexts that are counted have coins that are high. Every innocent model shares the
second half, which looks like training. These controls look at the first half and at the token that
was lost:

1. *unserved contexts*: the suspect's pairs in contexts of a slot that the index does not have,
   under the true key. Null for innocent and guilty alike if the log is right; too low if contexts
   were forgotten because of their coins. A high value is no failure: it says that the index lacks
   responses that the suspect has learnt.
2. *end tokens*: what a reference expects of the tokens that end responses, in served contexts,
   under the true keys. Too low if contexts count only where the response went on.

Both are one-sided at .001. Knows what the weights of a check know, opens keys, computes tails.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.check.controls import LEVEL
from provenance.check.findings import Control
from provenance.check.score import WeightedPairs
from provenance.coins.contexts import unpack
from provenance.keys.schedule import CONTROL, GLOBAL_KEY, KeyName
from provenance.marks import Mark
from provenance.served.index import Index
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.tables import ClassTable
from provenance.suspect.observations import Expectations, Observations

UNSERVED: Final = "unserved contexts"
EXPECTED_UNSERVED: Final = "unserved contexts (reference)"
ENDS: Final = "end tokens"

_SCALE: Final = 4
_COUNT_CAP: Final = 16
_RESPONSES_CAP: Final = 1 << 10


@dataclass(frozen=True)
class SelectionPairs:
    """Weighted pairs of both controls, per (slot, value); no coin was looked at.

    unserved : of the suspect's choices, in contexts that the key never marked
    expected : of what the reference expected there; empty without a reference
    ends : of what the reference expected of end tokens, in contexts that the key marked
    """

    unserved: Mapping[KeyName, WeightedPairs]
    expected: Mapping[KeyName, WeightedPairs]
    ends: Mapping[KeyName, WeightedPairs]


def weigh_selection(observations: Observations, index: Index, mark: Mark) -> SelectionPairs:
    """Attach the weights of both controls.

    Parameters: as of `score.weigh_observations`. Unserved contexts are tested under
    the global key, or under all keys where there is none; end tokens under all keys. The weights
    are 4 ln(1 + N(c)) sqrt(N(c, t)) and 4 ln(1 + n(c)) sqrt(E(c, t)), N and E up to 16.

    Notes
    -----
    Cost: one coin of the selector and one look-up per distinct context.
    """
    contexts, rows = np.unique(observations.contexts, return_inverse=True)
    slots = mark.slots_of_names(contexts)
    unserved: dict[KeyName, WeightedPairs] = {}
    expected: dict[KeyName, WeightedPairs] = {}
    keys = index.keys_served(mark.schedule)
    tested = [GLOBAL_KEY] if GLOBAL_KEY in keys else keys
    for number, slot in enumerate(mark.schedule.slots):
        own = np.flatnonzero(slots == number)
        if slot.name == CONTROL or not own.size or not any(key[0] == slot.name for key in tested):
            continue
        matches = index.lookup(number, contexts[own])
        pairs = np.flatnonzero(slots[rows] == number)
        places = np.searchsorted(own, rows[pairs])
        for value, served in enumerate(index.values_served(number)):
            key = (slot.name, served.name)
            if key not in tested:
                continue
            part = matches.value == value
            counts = np.zeros(own.shape[0], dtype=np.int64)
            counts[matches.query[part]] = matches.responses[part]
            missing = pairs[counts[places] == 0]
            totals = observations.totals[missing]
            unserved[key] = _take(observations, mark, missing, observations.masses, totals)
            expected[key] = _take(observations, mark, missing, observations.expected, totals)
    return SelectionPairs(unserved, expected, _weigh_ends(observations, index, mark, keys))


def _weigh_ends(
    observations: Observations, index: Index, mark: Mark, keys: Sequence[KeyName]
) -> dict[KeyName, WeightedPairs]:
    """What the reference expected of end tokens in served contexts, per key."""
    masses = _find_ends(observations, index.manifest.end_tokens)
    slots = mark.slots_of_names(masses.contexts)
    ended: dict[KeyName, WeightedPairs] = {}
    for number, slot in enumerate(mark.schedule.slots):
        own = np.flatnonzero(slots == number)
        if slot.name == CONTROL or not own.size:
            continue
        matches = index.lookup(number, masses.contexts[own])
        for value, served in enumerate(index.values_served(number)):
            part = matches.value == value
            if (slot.name, served.name) in keys:
                pairs = own[matches.query[part]]
                ended[KeyName(slot.name, served.name)] = _weigh(
                    unpack(masses.contexts[pairs], mark.context_width),
                    masses.tokens[pairs],
                    masses.masses[pairs],
                    matches.responses[part].astype(np.int64),
                )
    return ended


def _find_ends(observations: Observations, end_tokens: Sequence[int]) -> Expectations:
    """The reference's mass on end tokens, at all positions at which the text could have ended.

    Where that is not known there is none: in texts that the suspect drew, positions before a kept
    token alone are those at which it did not end, which a student has learnt from the coins.
    """
    if observations.ends is not None:
        return observations.ends
    drawn_by_suspect = observations.sampled or observations.source.get("records_generated", 0)
    chosen = np.isin(observations.tokens, np.array(end_tokens, dtype=np.uint32))
    if drawn_by_suspect or observations.wide is not None:
        chosen[:] = False
    chosen &= observations.expected > 0
    parts = (observations.contexts[chosen], observations.tokens[chosen])
    return Expectations(*parts, observations.expected[chosen], {})


def control_selection(
    pairs: SelectionPairs,
    mark: Mark,
    reference: Mapping[str, Any],
    innocents: Mapping[str, SelectionPairs],
) -> list[Control]:
    """The controls that `name_selection` names, in its order.

    Parameters: of the suspect; the mark; `Observations.reference`; of innocent models by name.
    Opens the keys of the pairs. Cost: one coin a pair, and one or two tails a control.
    """
    sources = {
        UNSERVED: (pairs.unserved, "no context is unserved"),
        EXPECTED_UNSERVED: (pairs.expected, "nothing was expected there"),
        ENDS: (pairs.ends, "the log names no end token, or none was expected"),
    }
    for name, own in innocents.items():
        sources[_of_innocent(name)] = (own.unserved, "no context is unserved")
    return [
        _control_low(name, sources[name][0], mark, sources[name][1])
        for name in name_selection(reference, list(innocents))
    ]


def name_selection(reference: Mapping[str, Any], innocents: Sequence[str]) -> list[str]:
    """Controls of selection that a check has: a function of its inputs.

    A reference of k-grams says what it expected in every context, but nothing of end tokens, which
    its text does not hold; a reference model reads served contexts only, and knows how text ends.
    """
    named = [UNSERVED]
    if reference:
        named.append(EXPECTED_UNSERVED if reference.get("kind") == "ngram" else ENDS)
    return named + [_of_innocent(name) for name in sorted(innocents)]


def _of_innocent(name: str) -> str:
    return f"{UNSERVED} ({name})"


def _take(
    observations: Observations,
    mark: Mark,
    pairs: NDArray[np.int64],
    masses: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> WeightedPairs:
    """These pairs of the observations, weighted."""
    contexts = observations.context_ids(pairs, mark.context_width)
    return _weigh(contexts, observations.tokens[pairs], masses[pairs], counts)


def _weigh(
    contexts: NDArray[np.uint32],
    tokens: NDArray[np.uint32],
    masses: NDArray[np.float64],
    counts: NDArray[np.int64],
) -> WeightedPairs:
    """Pairs with the weight 4 ln(1 + count) sqrt(mass), where it is not 0."""
    real = _SCALE * np.log1p(np.minimum(counts, _RESPONSES_CAP))
    real = real * np.sqrt(np.minimum(masses, _COUNT_CAP))
    weights = np.rint(real).astype(np.int64)
    kept = weights != 0
    return WeightedPairs(contexts[kept], tokens[kept], weights[kept])


def _control_low(
    name: str, pairs: Mapping[KeyName, WeightedPairs], mark: Mark, nothing: str
) -> Control:
    """One-sided test that the scores of all these coins together are not too low."""
    opened = [mark.open(*key).open(p.contexts, p.tokens, p.weights) for key, p in pairs.items()]
    weights = _join([own for own, _ in opened])
    scores = _join([own for _, own in opened])
    if not weights.size:
        return Control(name, True, None, nothing)
    low = log10_upper_tail(ClassTable.from_scores(-weights, scores, mark.null_law))
    table = ClassTable.from_scores(weights, scores, mark.null_law)
    detail = (
        f"{len(opened)} keys, {weights.size} coins: z {table.z:+.2f}, log10 p of so low {low:.2f}"
    )
    if name.startswith(UNSERVED):  # a tail on few coins can take seconds: only where it is said
        high = log10_upper_tail(table)
        if high <= math.log10(LEVEL):
            detail += f"; high (log10 p {high:.2f}): the index looks incomplete"
    return Control(name, low > math.log10(LEVEL), min(0.0, low), detail)


def _join(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    return np.concatenate([*parts, np.empty(0, dtype=np.int64)])
