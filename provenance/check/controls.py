"""The check of the check: what must look null even if the suspect is guilty.

Four controls, each at level 1e-3 after correction for the looks inside it:

1. *placebo keys*: 400 random keys through the same pairs and weights. Sees a wrong null law, pairs
   counted twice, correlated coins. Blind to a leak from the index to the true key.
2. *control slot*: contexts that are never marked, under every true key. Sees marks where there
   should be none, and a suspect whose text depends on the keys in another way.
3. *unserved values*: keys of values that are in the keyring but in no response of the index.
4. *prompts*: what the suspect was shown, under the true keys. Marked prompts say nothing of the
   suspect: it reports, it cannot fail. Quotations of prompts are left out of the test.
5. *innocent models*: outputs of models that cannot have been trained on the log, under the true
   keys. The only control that sees a leak from the index to the true key.

Other people's schemes mark every context under one key: they have the first and the last.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray

from provenance.check.findings import Control
from provenance.check.score import WeightedPairs, open_coins
from provenance.check.sentence import Sentence
from provenance.keys.schedule import KeyName, Schedule
from provenance.marks import OpenKey, Placebos
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.laws import NullLaw
from provenance.stats.null_distribution import NullDistribution
from provenance.stats.placebo import coarsen, placebo_test
from provenance.stats.tables import ClassTable

LEVEL: Final = 1e-3


def control_placebo(
    pairs: WeightedPairs,
    name: str,
    true_table: ClassTable,
    mark: Placebos,
    keys: int,
    seed: bytes,
    share: float = 1.0,
) -> Control:
    """Score the same weighted pairs under random keys and test that their z behave as under H0.

    Parameters
    ----------
    pairs, name, true_table : one hypothesis of the check: its pairs, name and true class table
    mark : draws the placebo keys, and knows the law of a score
    keys : number of placebo keys
    seed : makes the keys; a hash of the inputs, so that a check is a function of its inputs
    share : share of LEVEL that this look may spend, if the control is repeated after every batch

    Notes
    -----
    Cost: keys * pairs coins (400 keys on 100 k pairs: about 2 s on one core), and one null
    distribution. Where pairs share coins, every key has a null distribution of its own, of weights
    in few levels if its coins are few (`placebo.coarsen`): about .2 s a key.
    """
    title = f"placebo keys ({name})"
    if not true_table.coins:
        return Control(title, True, None, "nothing scored")
    uniforms = np.random.default_rng(np.frombuffer(seed, dtype=np.uint64)).random(keys)
    z, statistics = np.empty(keys), np.empty(keys, dtype=np.int64)
    nulls = {b"": NullDistribution.from_table(true_table)}
    groups: dict[bytes, list[int]] = {}
    for i in range(keys):
        weights, scores = mark.placebo(seed, i).open(pairs.contexts, pairs.tokens, pairs.weights)
        z[i], group = _z(weights, scores, mark.null_law), b""
        if weights is not pairs.weights:  # pairs that share coins share others under another key
            weights = coarsen(weights, len(mark.null_law.masses))
            group = np.sort(weights).tobytes()
            if group not in nulls:
                table = ClassTable.from_scores(weights, scores, mark.null_law)
                nulls[group] = NullDistribution.from_table(table)
        statistics[i] = weights @ scores
        groups.setdefault(group, []).append(i)
    shares = np.empty(keys)
    for group, own in groups.items():
        shares[own] = nulls[group].randomised_p(statistics[own], uniforms[own])
    result = placebo_test(
        z,
        shares,
        true_table.z,
        level=LEVEL * share,
    )
    smallest = 3 * min(result.chi_square_p, result.mean_p, result.ks_p) / share
    return Control(
        title,
        result.passed,
        min(0.0, math.log10(smallest)) if smallest > 0 else -300.0,
        Sentence(
            "{} keys: mean z {:+.3f}, sd {:.3f}, KS p {:.2g}; true key ranks p {:.3g}",
            *(keys, result.mean, result.standard_deviation, result.ks_p, result.rank_p),
        ),
        tuple(z.round(3).tolist()),
    )


def control_slot(pairs: WeightedPairs, keys: Sequence[OpenKey], law: NullLaw) -> Control:
    """Never-marked contexts under every key of the check.

    With nothing to test it passes without a p, and says what there was none of.
    """
    if not len(pairs):  # said without the keys: who repeats it may not have them all
        said = "0 pairs in contexts of the control slot were scored"
        return Control("control slot", True, None, f"nothing tested: {said}")
    if not keys:
        said = f"0 keys to try on {len(pairs)} pairs in contexts of the control slot"
        return Control("control slot", True, None, f"nothing tested: {said}")
    return _smallest("control slot", [(pairs, key) for key in keys], law)


def control_unserved(
    pooled: Mapping[str, WeightedPairs], keys: Sequence[OpenKey], law: NullLaw
) -> Control:
    """Keys that never marked a response, on the contexts of their slot.

    With nothing to test it passes without a p, and says why: no such key, or no pair to try it on.
    """
    tests = [(pooled[key.slot], key) for key in keys if len(pooled[key.slot])]
    if not tests:
        slots = ", ".join(dict.fromkeys(key.slot for key in keys))
        said = (
            f"{_count(keys)} of unserved values, but no pair in a context of {slots} was scored"
            if keys
            else "the keyring has no unserved value"
        )
        return Control("unserved values", True, None, f"nothing tested: {said}")
    return _smallest("unserved values", tests, law)


def list_unserved(schedule: Schedule, served: Collection[KeyName]) -> list[KeyName]:
    """(slot, value) of every attribute value that has a key but is not among the served ones."""
    return [
        KeyName(slot.name, value)
        for slot in schedule.slots[2:]
        for value in slot.values
        if (slot.name, value) not in served
    ]


def control_prompts(asked: Mapping[str, int], log10_p: float) -> Control:
    """Do the prompts themselves carry the mark: reported, and passed whatever is found.

    Parameters
    ----------
    asked : `texts` and `pairs`: how many distinct texts of prompts, and pairs in them
    log10_p : smallest adjusted p of the same check on those texts, under the true keys

    Notes
    -----
    Anybody may be asked about marked text, so this is no statement about the suspect. It says that
    its outputs have something to repeat: whoever doubts that all repetitions were left out asks
    again, with prompts that carry no mark.
    """
    many = f"{asked['texts']:,} texts, {asked['pairs']:,} pairs: "
    if log10_p > math.log10(LEVEL):
        return Control("prompts", True, None, f"{many}no mark found, log10 p {log10_p:.2f}")
    return Control(
        "prompts",
        True,
        None,
        f"{many}the prompts carry your mark: log10 p {log10_p:.2f}; outputs may repeat them, and "
        "what repeats them is left out",
    )


def control_innocents(names: Sequence[str], log10_p: Callable[[int], float]) -> list[Control]:
    """Run the same check on innocent outputs: `log10_p(i)` is the check's p of innocent i."""
    found = []
    for i, name in enumerate(names):
        value = min(0.0, log10_p(i) + math.log10(len(names)))
        found.append(
            Control(
                f"innocent {name}",
                value > math.log10(LEVEL),
                value,
                f"smallest adjusted log10 p {value:.2f} under the true keys",
            )
        )
    return found


def _z(weights: NDArray[np.int64], scores: NDArray[np.int64], law: NullLaw) -> float:
    reals = weights.astype(np.float64)  # squares of weights beyond 2**31 overflow int64
    deviation = math.sqrt(law.variance * float(reals @ reals))
    if deviation == 0:  # all of the pairs are the same under every key
        return 0.0
    return (int(weights @ scores) - law.mean * float(weights.sum())) / deviation


def _count(keys: Sequence[OpenKey]) -> str:
    return "1 key" if len(keys) == 1 else f"{len(keys)} keys"


def _smallest(name: str, tests: Sequence[tuple[WeightedPairs, OpenKey]], law: NullLaw) -> Control:
    """Bonferroni over tests that must all be null.

    Keys on the same coins share one null distribution, so p falls as the sum grows: only the key
    with the largest sum needs a tail. Where pairs share coins, every key has a tail of its own.
    """
    kept: dict[int, tuple[int, int, ClassTable]] = {}
    for place, (pairs, key) in enumerate(tests):
        coins = open_coins(pairs, key)
        number = id(pairs) if coins.numbers is None else -1 - place
        statistic = int(coins.weights @ coins.scores)
        if number not in kept or statistic > kept[number][0]:
            table = ClassTable.from_scores(coins.weights, coins.scores, law)
            kept[number] = statistic, place, table
    values = [log10_upper_tail(table) for _, _, table in kept.values()]
    smallest = int(np.argmin(values))
    _, best, _ = list(kept.values())[smallest]
    corrected = min(0.0, values[smallest] + math.log10(len(tests)))
    key = tests[best][1]
    return Control(
        name,
        corrected > math.log10(LEVEL),
        corrected,
        Sentence(
            "{} keys, {} coins: smallest log10 p {:.2f} ({})",
            *(len(tests), sum(len(pairs) for pairs, _ in tests), values[smallest]),
            str(KeyName(key.slot, key.value)),
        ),
    )
