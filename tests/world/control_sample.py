"""The control slot with a sample of its contexts: null for guilty suspects, under fresh keys.

Every keyring serves its own log, a student copies it, and the pairs in sampled control contexts are
scored under every key that marked something. The double, a sample that looks at a coin, must fail.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from provenance.check.score import open_coins, weigh_observations
from provenance.coins.contexts import unpack
from provenance.keys.keyring import UnlockedKeyring
from provenance.marks.own.mark import KeyringMark
from provenance.served.build import build_index
from provenance.served.index import Index
from provenance.stats.tables import ClassTable
from provenance.suspect.access.outputs import observe
from tests.world.synthetic import Teacher, learn, make_world, write_outputs

SHARES = {"global": 0.1, "week": 0.05, "capability": 0.02, "cohort": 0.02}
Sample = Callable[[NDArray[np.int64], int], NDArray[np.bool_]]


def sample_by_coin(teacher: Teacher, keyring: UnlockedKeyring) -> Sample:
    """The double: contexts whose likeliest token has a high coin under the global key."""
    key = keyring.key("global", "")

    def is_sampled(contexts: NDArray[np.int64], words: int) -> NDArray[np.bool_]:
        ids = unpack(contexts, 2)
        best = teacher.probabilities[ids[:, 0], ids[:, 1]].argmax(axis=1)
        tokens = teacher.candidates[ids[:, 0], ids[:, 1], best]
        return np.asarray(key.words(ids, tokens) >= np.uint32(2**32 - min(words, 2**32 - 1)))

    return is_sampled


def draw_control_z(
    folder: Path,
    seed: int,
    share: float,
    patch: Callable[[Sample], None] | None = None,
    responses: int = 120,
) -> tuple[list[float], int]:
    """z of the control slot under each served key for one keyring and its guilty student.

    Parameters: an empty folder; the seed of the keyring; the share of the index; what puts another
    sample into its place. Returns the z and how many coins the control has.
    """
    teacher = Teacher.draw(0)
    world = make_world(folder, teacher, seed, responses, 60, shares=SHARES)
    world.index.close()
    if patch is not None:
        patch(sample_by_coin(teacher, world.keyring))
    log, place = folder / "served.jsonl", folder / "sampled"
    build_index([log], place, world.keyring, threads=1, control_share=share)
    outputs = write_outputs(
        folder / "outputs.jsonl", learn(world, np.random.default_rng(seed), responses, 60)
    )
    observed = observe([outputs], world.tokenizer, world.keyring.public)
    mark = KeyringMark(world.keyring)
    with Index.open(place, world.keyring.public) as index:
        pairs = weigh_observations(observed, index, mark, "log-sqrt").control
        found = []
        for key in index.keys_served(mark.schedule):
            coins = open_coins(pairs, mark.open(*key))
            found.append(ClassTable.from_scores(coins.weights, coins.scores, mark.null_law).z)
    return found, len(pairs)
