"""z of an innocent suspect under fresh keys, by how the prompts were chosen that it is asked.

The fast world at its worst: a prompt fixes how an answer begins, answers are short, and eight of
ten contexts are marked, so that the answers of all who are asked go the same way for a while. The
log is drawn with the coins, one answer a prompt, counted, weighed and scored like a check.

    chosen        by the product's `Expected`, from unmarked answers
    random        any
    index counts  by the sum of ln(1 + n) over the contexts of the marked answer: not coin-free
    coins         by the mean score of the tokens of the marked answer: the fault at its largest
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from provenance.check.weigh import PairCounts, weigh
from provenance.suspect.expected import Expected
from provenance.suspect.positions import find_positions
from tests.world.innocents import gate
from tests.world.innocents.coins import marks_of
from tests.world.innocents.counting import count_served, list_draws
from tests.world.innocents.language import Language, draw_language
from tests.world.innocents.traffic import Responses, Traffic, serve

WORDS, PROMPTS, CHOSEN, LONGEST, SHARE, ANSWERS = 1500, 3000, 300, 5, 0.8, 4
WAYS = ("chosen", "random", "index counts", "coins")

Integers = NDArray[np.int64]


def run_keys(keys: int, first: int = 0) -> dict[str, list[float]]:
    """z of the innocent, a list of `keys` values a way; "n of coins" holds the coins of `random`.

    Cost: .04 CPU-seconds a key.
    """
    language = draw_language(1, WORDS, 1, candidates=3)
    rng = np.random.default_rng(0)
    beginnings = rng.integers(0, WORDS, (PROMPTS, 1))
    chosen = _best(_expect(_answer(language, beginnings, None, 999), language))
    asked = list_draws(_answer(language, beginnings, None, 12345), language)
    found: dict[str, list[float]] = {way: [] for way in (*WAYS, "n of coins")}
    for number in range(first, first + keys):
        key = int(np.random.default_rng([number, 5]).integers(2**62))
        log = serve(language, Traffic(PROMPTS, LONGEST), key, SHARE, number, beginnings)
        n, draws = count_served(log, language), list_draws(log, language)
        marked = marks_of(key, draws.contexts, SHARE)
        counts = np.where(marked, np.log1p(n[draws.contexts]), 0.0)
        scores = np.where(marked, gate.score(key, draws.contexts, draws.tokens), 0)
        total = np.maximum(np.bincount(draws.rows, marked, minlength=PROMPTS), 1)
        ways = {
            "chosen": chosen,
            "random": rng.permutation(PROMPTS)[:CHOSEN],
            "index counts": _best(np.bincount(draws.rows, counts, minlength=PROMPTS)),
            "coins": _best(np.bincount(draws.rows, scores, minlength=PROMPTS) / total),
        }
        for way, rows in ways.items():
            kept = np.isin(asked.rows // ANSWERS, rows)
            codes = asked.contexts[kept] * language.ids + asked.tokens[kept]
            pairs, masses = np.unique(codes, return_counts=True)
            contexts, tokens = np.divmod(pairs, language.ids)
            used = marks_of(key, contexts, SHARE) & (n[contexts] > 0)
            contexts, tokens, masses = contexts[used], tokens[used], masses[used]
            weights = weigh(
                PairCounts(
                    masses.astype(np.float64), masses, n[contexts], np.zeros(masses.shape[0])
                )
            )
            found[way].append(gate.z_of(weights, gate.score(key, contexts, tokens)))
            if way == "random":
                found["n of coins"].append(float(weights.shape[0]))
    return found


def _answer(language: Language, beginnings: Integers, key: int | None, seed: int) -> Responses:
    rows = np.repeat(beginnings, ANSWERS, axis=0)
    return serve(language, Traffic(len(rows), LONGEST), key, SHARE, seed, rows)


def _expect(responses: Responses, language: Language) -> NDArray[np.float64]:
    """Mean expected evidence of each prompt, as the product computes it from unmarked answers."""
    outputs = np.split(responses.ids.astype(np.uint32), np.cumsum(responses.lengths)[:-1])
    positions = find_positions(outputs, [], [], language.width, {})
    expected = Expected(positions, language.ids, language.width)
    return expected.visit_outputs(np.arange(len(outputs)) // ANSWERS, PROMPTS).mean()


def _best(values: NDArray[np.float64]) -> Integers:
    return np.argsort(-values, kind="stable")[:CHOSEN]
