"""Which draws count: the rules of `provenance.served.windows`, compiled, and doubles with faults.

`tests/check/test_innocents.py` holds `count_served` to `windows` on the same responses, and the
positions to `find_positions`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numba import njit
from numpy.typing import NDArray

from tests.world.innocents.language import Language
from tests.world.innocents.traffic import Responses

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]


@dataclass(frozen=True)
class Draws:
    """Draws that count: int64 [m] each; `places` into the ids of the responses."""

    rows: Integers
    contexts: Integers
    tokens: Integers
    places: Integers


def find_marked(responses: Responses) -> Booleans:
    """Which responses are marked: any draw by a coin; bool [responses]."""
    hits = np.bincount(responses.rows, responses.drawn, minlength=responses.lengths.size)
    return np.asarray(hits > 0)


def list_draws(
    responses: Responses,
    language: Language,
    *,
    lineages: Integers | None = None,
    prompts: bool = False,
    every: bool = False,
) -> Draws:
    """Every context before an id of the response (its end too), once.

    Parameters
    ----------
    lineages : responses of one number count a context once together; None: each for itself
    prompts : the prompts are recorded, and contexts that stand there do not count
    every : the fault that every occurrence counts
    """
    numbers = np.arange(responses.lengths.size) if lineages is None else lineages
    asked = responses.prompts if prompts else np.empty(0, dtype=np.int64)
    asked_lengths = responses.prompt_lengths if prompts else np.zeros_like(responses.lengths)
    found = _list_draws(
        responses.ids,
        responses.lengths,
        numbers,
        asked,
        asked_lengths,
        language.width,
        language.stride,
        np.full((2, language.contexts), -1, dtype=np.int64),
        every,
    )
    return Draws(*found)


def count_contexts(draws: Draws, marked: Booleans, language: Language) -> Integers:
    """n(c): draws after each context in marked responses, int64 [contexts]."""
    contexts = draws.contexts[marked[draws.rows]]
    return np.bincount(contexts, minlength=language.contexts).astype(np.int64)


def count_served(
    responses: Responses,
    language: Language,
    *,
    conversations: bool = False,
    prompts: bool = False,
) -> Integers:
    """n(c) as the product counts it. With conversations a context counts once in each.

    A lineage counts what its marked responses drew, so unmarked ones are left out before.
    """
    marked = find_marked(responses)
    kept = responses if marked.all() else keep(responses, marked)
    lineages = kept.requests if conversations else None
    draws = list_draws(kept, language, lineages=lineages, prompts=prompts)
    return count_contexts(draws, np.ones(kept.lengths.size, dtype=np.bool_), language)


def keep(responses: Responses, kept: Booleans) -> Responses:
    """Only these responses (bool [responses])."""
    ids = np.repeat(kept, responses.lengths)
    asked = np.repeat(kept, responses.prompt_lengths)
    return Responses(
        responses.ids[ids],
        responses.lengths[kept],
        responses.drawn[ids],
        responses.requests[kept],
        responses.prompts[asked],
        responses.prompt_lengths[kept],
        responses.rewards[kept],
    )


def drop_ends(responses: Responses, language: Language) -> Responses:
    """The responses without their end tokens, as text has them."""
    kept = responses.ids != language.end
    ends = np.bincount(responses.rows, ~kept, minlength=responses.lengths.size).astype(np.int64)
    return replace(
        responses,
        ids=responses.ids[kept],
        drawn=responses.drawn[kept],
        lengths=responses.lengths - ends,
    )


def retokenise(responses: Responses, language: Language) -> Responses:
    """The responses as their text comes back: words with their partner behind them are merged."""
    ids, lengths, drawn = _merge(
        responses.ids, responses.lengths, responses.drawn, language.partners, language.words
    )
    return replace(responses, ids=ids, lengths=lengths, drawn=drawn)


@njit(cache=True)
def _name(ids, stop, width, stride):  # type: ignore[no-untyped-def]
    """The context that ends before `stop`."""
    return ids[stop - 2] * stride + ids[stop - 1] if width == 2 else ids[stop - 1]


@njit(cache=True)
def _list_draws(  # type: ignore[no-untyped-def]
    ids, lengths, lineages, prompts, prompt_lengths, width, stride, stamps, every
):
    out = np.empty((4, ids.size), np.int64)
    begin, asked, found = 0, 0, 0
    for row in range(lengths.size):
        for stop in range(asked + width, asked + prompt_lengths[row] + 1):
            stamps[1, _name(prompts, stop, width, stride)] = row
        for place in range(begin + width, begin + lengths[row]):
            context = _name(ids, place, width, stride)
            if not every and stamps[0, context] == lineages[row]:
                continue
            if stamps[1, context] == row:
                continue
            stamps[0, context] = lineages[row]
            out[0, found], out[1, found] = row, context
            out[2, found], out[3, found] = ids[place], place
            found += 1
        begin += lengths[row]
        asked += prompt_lengths[row]
    return out[0, :found], out[1, :found], out[2, :found], out[3, :found]


@njit(cache=True)
def _merge(ids, lengths, drawn, partners, words):  # type: ignore[no-untyped-def]
    out, marks, sizes = np.empty_like(ids), np.empty_like(drawn), np.empty_like(lengths)
    begin, at = 0, 0
    for row in range(lengths.size):
        first, stop, place = at, begin + lengths[row], begin
        while place < stop:
            here = ids[place]
            marks[at] = drawn[place]
            if here < words and place + 1 < stop and partners[here] == ids[place + 1]:
                marks[at] = marks[at] or drawn[place + 1]
                here = words + 1 + here
                place += 1
            out[at] = here
            at += 1
            place += 1
        sizes[row] = at - first
        begin = stop
    return out[:at], sizes, marks[:at]
