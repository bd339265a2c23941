"""The gate of `benchmarks.foreign.false_positives` in small, and what it catches."""

import numpy as np
import pytest

from provenance.marks.detection import detect_mark
from provenance.marks.foreign.mark import ForeignMark
from tests.world.calibration import binomial_limit
from tests.world.foreign import TESTED, random_scheme
from tests.world.originals import original_log10_p, recent_first
from tests.world.synthetic import WORDS, Teacher
from tests.world.texts import KINDS, make_text

KEYS = 5
EVERY_POSITION = {"hf-lefthash", "hf-selfhash", "lm-watermarking", "markllm-kgw", "markllm-exp"}


@pytest.fixture(scope="module")
def rates():
    """log10 p of ours and of the original's counting: per scheme, kind and key."""
    ids = Teacher.draw(0).sample(np.random.default_rng(0), 1, 6000)[0]
    found = {}
    for name in TESTED:
        for number in range(KEYS):
            rng = np.random.default_rng([number, 40])
            scheme = random_scheme(name, rng, WORDS)
            mark = ForeignMark(scheme, WORDS, "0" * 64)
            for kind in KINDS:
                text = make_text(kind, ids, rng)
                pair = detect_mark(text, mark).log10_p, original_log10_p(scheme, text)
                found[name, kind, number] = pair
    return found


@pytest.mark.parametrize("level", [0.05, 0.01, 0.001])
def test_unmarked_text_is_not_accused_however_hostile(rates, level):
    ours = np.array([ours for ours, _ in rates.values()])
    assert ours.size == len(TESTED) * KEYS * len(KINDS)
    assert (ours <= np.log10(level)).sum() <= binomial_limit(ours.size, level)


def test_counting_every_position_fails_the_same_gate(rates):
    for name in EVERY_POSITION:
        theirs = np.array([p for (scheme, *_), (_, p) in rates.items() if scheme == name])
        assert (theirs <= -3).sum() > binomial_limit(theirs.size, 1e-3), name


def test_the_mask_of_repeated_contexts_is_that_of_a_history_of_so_many():
    rng = np.random.default_rng(3)
    contexts = rng.integers(0, 3, (200, 2), dtype=np.uint32)
    rows = [tuple(row) for row in contexts.tolist()]
    for history in (1, 5, 1000):
        expected = [row not in rows[max(0, i - history) : i] for i, row in enumerate(rows)]
        assert recent_first(contexts, history).tolist() == expected
