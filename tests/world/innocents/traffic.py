"""Traffic: responses as a service draws them, compiled.

One call makes all responses of a log (or of a suspect): requests with retries or several
candidates, conversations of several turns, pasted passages. Contexts are marked by the rules of
`Watermark`: a context's first occurrence in a response, if the selector gives it to the slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from provenance.marks.own.draws import draw_gumbel
from tests.world.innocents.coins import is_marked, word
from tests.world.innocents.language import Language

_COPIED = 8
_MESSAGE = 4


@dataclass(frozen=True)
class Traffic:
    """How people use the service.

    Attributes
    ----------
    requests, longest : number of requests; most ids of a response, its first k and its end included
    attempts : responses of one request at most, all to the same prompt
    until : a response with more reward is accepted, and ends the attempts; minus infinity: the
        first one is, infinity: all attempts are made (best of n)
    rare : the reward of a response is how improbable its words are on average (an answer that
        surprises); else how probable
    turns : turns of a conversation at most; it goes on after a response with a reward of at most
        `going_on`. Half of the later responses begin with a passage of the one before, and every
        prompt holds all that was said, a passage of the last response, and four other words
    prompts : number of different beginnings of a response (recurring prompts); 0: all there are
    pasting : share of the requests whose prompt and response begin with a passage of an earlier
        response of the log; `liked`: of that one of four with the largest reward
    """

    requests: int
    longest: int = 40
    attempts: int = 1
    until: float = -np.inf
    rare: bool = False
    turns: int = 1
    going_on: float = np.inf
    prompts: int = 0
    pasting: float = 0.0
    liked: bool = False


@dataclass(frozen=True)
class Responses:
    """Many responses, one after another; responses of one request are neighbours, in order.

    Attributes
    ----------
    ids, lengths : int64 [n] with ends, and int64 [responses]
    drawn : bool [n], a coin of the key decided this draw
    requests : int64 [responses], number of the request or conversation
    prompts, prompt_lengths : int64 [p] and int64 [responses]
    rewards : float64 [responses], see `Traffic`
    """

    ids: NDArray[np.int64]
    lengths: NDArray[np.int64]
    drawn: NDArray[np.bool_]
    requests: NDArray[np.int64]
    prompts: NDArray[np.int64]
    prompt_lengths: NDArray[np.int64]
    rewards: NDArray[np.float64]

    @property
    def rows(self) -> NDArray[np.int64]:
        """The response of each id: int64 [n]."""
        return np.repeat(np.arange(self.lengths.size), self.lengths)


def serve(
    language: Language,
    traffic: Traffic,
    key: int | None,
    share: float,
    seed: int,
    beginnings: NDArray[np.int64] | None = None,
) -> Responses:
    """Draw all responses; `key` None: unmarked. The same seed gives the same responses.

    `beginnings`: int64 [requests, k], how each response begins; None: at random, see `Traffic`.

    Cost: about 40 ns a candidate at marked contexts, 20 ns elsewhere.
    """
    rng = np.random.default_rng([seed, 1])
    count = traffic.prompts or traffic.requests
    drawn = rng.integers(0, language.words, (count, language.width))
    beginnings = drawn if beginnings is None else beginnings
    if traffic.prompts:
        beginnings = beginnings[rng.integers(0, count, traffic.requests)]
    most = traffic.requests * traffic.attempts * traffic.turns
    turns = traffic.turns if traffic.turns > 1 or traffic.pasting else 0
    room = most * (traffic.longest + _COPIED)
    arrays = _Arrays.make(room, most, turns * room + 1)
    responses, ids, asked = _serve(
        *arrays.all,
        language.candidates,
        language.probabilities,
        language.words,
        language.stride,
        np.full(language.contexts, -1, dtype=np.int64),
        beginnings,
        0 if key is None else key,
        share,
        key is not None,
        int(rng.integers(2**31)),
        (traffic.longest, traffic.attempts, traffic.turns),
        (traffic.until, traffic.going_on, traffic.pasting, traffic.liked, traffic.rare),
    )
    return arrays.cut(responses, ids, asked)


@dataclass(frozen=True)
class _Arrays:
    """Room for the worst case; pages that are never written cost nothing."""

    all: tuple[NDArray[Any], ...]

    @classmethod
    def make(cls, room: int, most: int, asked: int) -> _Arrays:
        return cls(
            (
                np.empty(room, dtype=np.int64),
                np.empty(most, dtype=np.int64),
                np.empty(room, dtype=np.bool_),
                np.empty(most, dtype=np.int64),
                np.empty(asked, dtype=np.int64),
                np.empty(most, dtype=np.int64),
                np.empty(most, dtype=np.float64),
            )
        )

    def cut(self, responses: int, ids: int, asked: int) -> Responses:
        sizes = (ids, responses, ids, responses, asked, responses, responses)
        return Responses(*(part[:n].copy() for part, n in zip(self.all, sizes, strict=True)))


@njit(cache=True)
def _draw(candidates, q, words, state, key, context, marked):  # type: ignore[no-untyped-def]
    """The place of the drawn candidate; `words` is a buffer."""
    count = candidates.shape[1]
    if marked:
        for i in range(count):
            words[i] = word(key, context, candidates[state, i])
        return draw_gumbel(q[state], words)
    u = np.random.random()
    total = 0.0
    chosen = -1
    for i in range(count):
        if q[state, i] > 0:
            chosen = i
            total += q[state, i]
            if u < total:
                break
    return chosen


@njit(cache=True)
def _respond(  # type: ignore[no-untyped-def]
    ids, drawn, begin, given, candidates, q, size, stride, stamp, serial, key, share, mark, longest
):
    """Write one response from `begin`, of which `given` ids stand there already.

    Returns where it stops, and the mean log probability of what was drawn freely. A given id behind
    the first k was drawn too (a model that copies), by a coin if its context is marked.
    """
    words = np.empty(candidates.shape[1], np.uint32)
    wide = stamp.size > stride
    width = 2 if wide else 1
    total, free, at = 0.0, 0, begin + width
    for i in range(width):
        drawn[begin + i] = False
    while at - begin < longest:
        b = ids[at - 1]
        context = ids[at - 2] * stride + b if wide else b
        state = ids[at - 2] * size + b if wide else b
        coin = mark and stamp[context] != serial and is_marked(key, context, share)
        stamp[context] = serial
        drawn[at] = coin
        if at - begin >= given:
            place = _draw(candidates, q, words, state, key, context, coin)
            ids[at] = candidates[state, place]
            total += np.log(q[state, place])
            free += 1
        at += 1
        if ids[at - 1] == size:
            break
    return at, total / max(free, 1)


@njit(cache=True)
def _copy(ids, begin, source, stop, end):  # type: ignore[no-untyped-def]
    """Copy a passage of the response source .. stop to `begin`; returns how many ids."""
    if ids[stop - 1] == end:
        stop -= 1
    if stop - source <= _COPIED:
        return 0
    start = source + np.random.randint(stop - source - _COPIED)
    ids[begin : begin + _COPIED] = ids[start : start + _COPIED]
    return _COPIED


@njit(cache=True)
def _ask(prompts, asked, before, ids, source, stop, size):  # type: ignore[no-untyped-def]
    """Write the prompt of a next turn: what was asked and said before, a passage, other words."""
    begin = asked
    for part in range(asked - before, asked):
        prompts[asked + part - (begin - before)] = prompts[part]
    asked += before
    for i in range(source, stop):
        if ids[i] < size:
            prompts[asked] = ids[i]
            asked += 1
    start = source + np.random.randint(max(stop - source - _COPIED, 1))
    for i in range(start, min(start + _COPIED, stop)):
        if ids[i] < size:
            prompts[asked] = ids[i]
            asked += 1
    for _ in range(_MESSAGE):
        prompts[asked] = np.random.randint(size)
        asked += 1
    return asked


@njit(cache=True)
def _paste(ids, begin, lengths, rewards, responses, begins, liked, end):  # type: ignore[no-untyped-def]
    """Begin a response with a passage of an earlier one; returns how many ids."""
    if responses == 0:
        return 0
    best = np.random.randint(responses)
    for _ in range(3 if liked else 0):
        other = np.random.randint(responses)
        if rewards[other] > rewards[best]:
            best = other
    return _copy(ids, begin, begins[best], begins[best] + lengths[best], end)


@njit(cache=True)
def _serve(  # type: ignore[no-untyped-def]
    ids, lengths, drawn, requests, prompts, prompt_lengths, rewards,
    candidates, q, size, stride, stamp, beginnings, key, share, mark, seed, numbers, wishes,
):  # fmt: skip
    """All responses; returns how many, how many ids and how many ids of prompts."""
    longest, attempts, turns = numbers
    until, going_on, pasting, liked, rare = wishes
    np.random.seed(seed)
    begins = np.empty(lengths.size, np.int64)
    r, at, asked = 0, 0, 0
    for request in range(beginnings.shape[0]):
        before = 0
        for step in range(attempts * turns):
            given = 0
            if turns > 1 and step > 0:
                start = asked
                asked = _ask(prompts, asked, before, ids, begins[r - 1], at, size)
                before = asked - start
                if np.random.random() < 0.5:
                    given = _copy(ids, at, begins[r - 1], at, size)
            elif pasting > 0 and np.random.random() < pasting:
                given = _paste(ids, at, lengths, rewards, r, begins, liked, size)
                prompts[asked : asked + given] = ids[at : at + given]
                asked, before = asked + given, given
            if given == 0:
                for i in range(beginnings.shape[1]):
                    new = turns > 1 and step > 0
                    ids[at + i] = np.random.randint(size) if new else beginnings[request, i]
            stop, reward = _respond(
                ids, drawn, at, given, candidates, q, size, stride, stamp, r, key, share, mark,
                longest,
            )  # fmt: skip
            reward = -reward if rare else reward
            begins[r], lengths[r], rewards[r] = at, stop - at, reward
            requests[r], prompt_lengths[r] = request, before
            at, r = stop, r + 1
            if (turns > 1 and reward > going_on) or (turns == 1 and reward > until):
                break
    return r, at, asked
