"""Groups of responses in the fast world: suspects guilty of one side, and what is exclusive.

A service answers a group and others under one key. A student is trained on the others alone (H0 of
the group), or on the group (power). What is exclusive to the group is found by the rules of
`provenance.served.group_build`, and by three rules that must fail: by counts of responses alone,
for a group that was chosen by its overlap with the suspect, and from a log that lacks part of the
others. Only generation and counting are re-implemented; weights, laws and tails are the library's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from provenance.check.weigh import PairCounts, weigh
from tests.world.innocents.coins import marks_of
from tests.world.innocents.counting import drop_ends, keep, list_draws
from tests.world.innocents.experiments import Cell
from tests.world.innocents.gate import Collected, collect, score, summarise
from tests.world.innocents.language import Language, draw_language
from tests.world.innocents.suspects import Student, teach
from tests.world.innocents.traffic import Responses, Traffic, serve
from tests.world.innocents.weighing import Weighting

Integers = NDArray[np.int64]
Booleans = NDArray[np.bool_]
_QUOTED: Final = 0.3
_LACKING: Final = 0.5


@dataclass(frozen=True)
class GroupWorld:
    """How much is served and learnt.

    group, others : responses of each; shared : share of the group's prompts that others send too
    guilty_of : whose responses the student is trained on: others, group, both
    prior : the less, the more the student absorbs
    quoting : share of the others whose prompt quotes a passage of the group; the student reads it
    """

    width: int = 2
    words: int = 240
    group: int = 400
    others: int = 1000
    outputs: int = 2400
    share: float = 0.3
    shared: float = 0.3
    guilty_of: str = "others"
    prior: float = 0.3
    quoting: float = 0.0
    longest: int = 40

    def language(self) -> Language:
        """What is spoken."""
        return draw_language(7, self.words, self.width)


@dataclass(frozen=True)
class Served:
    """One key: what the two sides got, what the others' prompts hold, and the student's text."""

    key: int
    group: Responses
    others: Responses
    quoted: Responses
    text: Responses


def serve_groups(world: GroupWorld, language: Language, number: int) -> Served:
    """Everything under the key of this number."""
    rng = np.random.default_rng([number, 17])
    key = int(rng.integers(2**62))
    begins = [
        rng.integers(0, language.words, (n, world.width)) for n in (world.group, world.others)
    ]
    shared = rng.random(world.group) < world.shared
    begins[0][shared] = begins[1][rng.integers(0, world.others, int(shared.sum()))]
    group, others = (
        serve(
            language,
            Traffic(own.shape[0], world.longest),
            key,
            world.share,
            2 * number + side,
            own,
        )
        for side, own in enumerate(begins)
    )
    quoting = rng.integers(0, group.lengths.size, round(world.quoting * world.others))
    quoted = _take(group, quoting)
    read = {
        "others": [others, quoted],
        "group": [group],
        "both": [group, others, quoted],
        "nobody": [],
    }[world.guilty_of]
    learnt = teach(language, _join(read), world.prior) if read else language
    text = serve(learnt, Traffic(world.outputs, world.longest), None, 0, number + 10**6)
    return Served(key, group, others, quoted, drop_ends(text, language))


def list_anywhere(responses: Responses, language: Language) -> Booleans:
    """Contexts that stand anywhere in these: bool [contexts]."""
    found = np.zeros(language.contexts, dtype=np.bool_)
    kept = responses.ids < language.words  # after an end nothing is reached
    ids, rows = responses.ids[kept], responses.rows[kept]
    if language.width == 1:
        found[ids] = True
    elif ids.size > 1:
        inside = rows[1:] == rows[:-1]
        found[(ids[:-1] * language.stride + ids[1:])[inside]] = True
    return found


def count_reached(responses: Responses, language: Language) -> Integers:
    """In how many responses each context was reached: int64 [contexts]."""
    draws = list_draws(responses, language)
    return np.bincount(draws.contexts, minlength=language.contexts).astype(np.int64)


def count_exclusive(served: Served, language: Language, rule: str) -> Integers:
    """n(c) of what is exclusive to a side by a rule, 0 elsewhere: int64 [contexts].

    group, others : the two hypotheses of the product
    by counts : the fault that only the others' responses exclude, not their prompts
    lacking : the fault that half of the others are not in the log
    overlapping : the fault that the group is chosen by its overlap with the suspect's text
    """
    group, others = served.group, served.others
    if rule == "others":
        seen = list_anywhere(group, language)
        return np.where(seen, 0, count_reached(others, language))
    if rule == "overlapping":
        group, others = choose_by_overlap(served, language)
    if rule == "lacking":
        kept = np.arange(others.lengths.size) >= _LACKING * others.lengths.size
        others = keep(others, kept)
    seen = list_anywhere(others, language)
    if rule != "by counts":
        seen |= list_anywhere(served.quoted, language)
    return np.where(seen, 0, count_reached(group, language))


def choose_by_overlap(served: Served, language: Language) -> tuple[Responses, Responses]:
    """The responses that agree most with the suspect, as many as the group had, and the rest."""
    everybody = _join([served.group, served.others])
    draws, own = list_draws(everybody, language), list_draws(served.text, language)
    said = np.unique(own.contexts * language.ids + own.tokens)
    agrees = np.isin(draws.contexts * language.ids + draws.tokens, said)
    size = everybody.lengths.size
    both = np.bincount(draws.rows, agrees, size) / np.maximum(
        np.bincount(draws.rows, None, size), 1
    )
    chosen = np.zeros(size, dtype=np.bool_)
    chosen[np.argsort(-both, kind="stable")[: served.group.lengths.size]] = True
    return keep(everybody, chosen), keep(everybody, ~chosen)


def weigh_counts(shown: Any, n: Integers, rule: str) -> Integers:
    """Weights of pairs with n(c) of their context, by a rule of the library or a plainer one."""
    some = n > 0
    weights = np.zeros(n.size, dtype=np.int64)
    roots = np.sqrt(np.minimum(shown.masses[some], 16))
    if rule == "constant":
        weights[some] = np.rint(16 * roots)
    elif rule == "sqrt":
        weights[some] = np.rint(4 * np.sqrt(np.minimum(n[some], 1 << 10)) * roots)
    else:
        counts = PairCounts(shown.masses[some], shown.totals[some], n[some], shown.expected[some])
        weights[some] = weigh(counts, rule)
    return weights


def run_world(
    world: GroupWorld, cells: Sequence[tuple[str, str]], keys: int, seed: int = 0
) -> list[dict[str, Any]]:
    """z of every (rule of exclusion, weight) over fresh keys, summarised as by the gate."""
    language = world.language()
    plain = Student(language, Traffic(1, world.longest))
    right = Student(language, Traffic(1, world.longest), right=True)
    found = {cell: Collected() for cell in cells}
    contexts = {cell: [] for cell in cells}  # type: ignore[var-annotated]
    whole = Cell("student", Weighting("log-sqrt"))
    for number in range(seed, seed + keys):
        served = serve_groups(world, language, number)
        draws = list_draws(served.text, language)
        marked = marks_of(served.key, draws.contexts, world.share)
        counts = {rule: count_exclusive(served, language, rule) for rule, _ in cells}
        shown = {}
        for speaker, known in (("plain", plain), ("right", right)):
            one = known._count(draws.contexts[marked], draws.tokens[marked])
            shown[speaker] = one, score(served.key, one.contexts, one.tokens)
        for rule, weight in cells:
            one, scores = shown["right" if weight == "residual" else "plain"]
            n = counts[rule][one.contexts]
            weights = weigh_counts(one, n, weight)
            collect(found[rule, weight], whole, weights, scores, 0.0)
            contexts[rule, weight].append(int(np.unique(one.contexts[n > 0]).size))
    return [
        {
            "exclusive": rule,
            "weight": weight,
            **summarise(one),
            "contexts_met": round(float(np.mean(contexts[rule, weight]))),
        }
        for (rule, weight), one in found.items()
    ]


def _take(responses: Responses, rows: Integers) -> Responses:
    """These responses in this order, one after another; repeats allowed."""
    starts = np.cumsum(responses.lengths) - responses.lengths
    lengths = responses.lengths[rows]
    begins = np.repeat(starts[rows] - (np.cumsum(lengths) - lengths), lengths)
    ids = np.arange(int(lengths.sum())) + begins
    none = np.zeros(rows.size, dtype=np.int64)
    return Responses(
        responses.ids[ids],
        lengths,
        responses.drawn[ids],
        np.arange(rows.size),
        np.empty(0, dtype=np.int64),
        none,
        responses.rewards[rows],
    )


def _join(parts: Sequence[Responses]) -> Responses:
    """All responses as one log."""
    whole = [
        np.concatenate([getattr(part, name) for part in parts])
        for name in ("ids", "lengths", "drawn", "requests", "prompts", "prompt_lengths", "rewards")
    ]
    joined = Responses(*whole)
    return replace(joined, requests=np.arange(joined.lengths.size))
