"""Schemes: undistorted draws, and scores with exactly the claimed null law over all 2**32 words."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mpmath import mp
from scipy import stats

from provenance.coins import words as coins
from provenance.errors import UsageError
from provenance.marks.own import Green, Gumbel, Tournament, make_scheme
from provenance.marks.own import draws as compiled
from provenance.marks.own.scheme import draw_unmarked

ALL = [
    Gumbel(),
    Green(),
    Green(gamma=0.5, delta=1.0),
    Tournament(1),
    Tournament(4),
    Tournament(10),
]
UNDISTORTED = [Gumbel(), Tournament(4), Tournament(10)]
DISTRIBUTIONS = {
    "two": [0.7, 0.3],
    "skewed": [0.9, 0.05, 0.03, 0.015, 0.005],
    "flat": [1.0] * 12,
    "zipf": [1 / (i + 1) for i in range(40)],
    "with zeros": [0.0, 0.5, 0.0, 0.25, 0.25, 0.0],
}


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_null_law_counts_every_one_of_the_words(scheme):
    """The score is monotone or bit-wise, so 2**32 words are counted exactly from its structure."""
    masses = np.zeros(len(scheme.null_law.masses), dtype=np.int64)
    chunk = 1 << 24
    if isinstance(scheme, Tournament) and scheme.layers <= 24:
        # Only the first `layers` bits matter: enumerate them, each stands for 2**(32 - layers).
        heads = np.arange(1 << scheme.layers, dtype=np.uint32) << np.uint32(32 - scheme.layers)
        masses += np.bincount(scheme.score(heads), minlength=masses.size) << (32 - scheme.layers)
    else:
        # Piecewise constant: find every word at which the score changes by bisection.
        masses += _count_by_bisection(scheme, chunk, masses.size)
    assert masses.sum() == 1 << 32
    assert tuple(masses.tolist()) == scheme.null_law.masses


def _count_by_bisection(scheme, chunk, size):
    """Exact counts of a monotone score: jump positions by bisection over the words."""
    low_score = int(scheme.score(np.array([0], np.uint32))[0])
    high_score = int(scheme.score(np.array([2**32 - 1], np.uint32))[0])
    step = 1 if high_score >= low_score else -1
    counts = np.zeros(size, dtype=np.int64)
    start, score = 0, low_score
    while score != high_score:
        low, high = start, 2**32 - 1
        while low < high:
            middle = (low + high) // 2
            found = int(scheme.score(np.array([middle], np.uint32))[0])
            if (found - score) * step > 0:
                high = middle
            else:
                low = middle + 1
        counts[score] += low - start
        start, score = low, int(scheme.score(np.array([low], np.uint32))[0])
    counts[score] += 2**32 - start
    return counts


@pytest.mark.slow
@pytest.mark.parametrize("scheme", [Gumbel(), Green(), Tournament(4)], ids=str)
def test_null_law_by_brute_force_over_all_words(scheme):
    masses = np.zeros(len(scheme.null_law.masses), dtype=np.int64)
    chunk = 1 << 24
    for start in range(0, 1 << 32, chunk):
        words = np.arange(start, start + chunk, dtype=np.uint64).astype(np.uint32)
        masses += np.bincount(scheme.score(words), minlength=masses.size)
    assert tuple(masses.tolist()) == scheme.null_law.masses


@pytest.mark.parametrize("scheme", [Gumbel(), Green()], ids=str)
def test_score_is_monotone_on_a_dense_sample(scheme):
    words = np.sort(np.random.default_rng(0).integers(0, 2**32, 1 << 20, dtype=np.uint32))
    steps = np.diff(scheme.score(words))
    assert (steps >= 0).all() or (steps <= 0).all()


def test_gumbel_thresholds_equal_exact_arithmetic_and_are_dominated_by_the_exponential():
    """T_j = ceil(2**32 (1 - exp(-j/4))) to 50 digits; P(score >= j) <= exp(-j/4)."""
    mp.dps = 50
    masses = Gumbel().null_law.masses
    below = 0
    for j in range(1, len(masses)):
        below += masses[j - 1]
        assert below == int(mp.ceil(2**32 * (1 - mp.exp(mp.mpf(-j) / 4))))
        assert (2**32 - below) / mp.mpf(2**32) <= mp.exp(mp.mpf(-j) / 4)


def test_gumbel_score_keeps_the_information_of_the_continuous_one():
    rng = np.random.default_rng(0)
    words = rng.integers(0, 2**32, 1 << 20, dtype=np.uint32)
    continuous = -np.log1p(-(words + 0.5) / 2**32)
    assert np.corrcoef(continuous, Gumbel().score(words))[0, 1] > 0.997


@pytest.mark.parametrize("name", DISTRIBUTIONS)
@pytest.mark.parametrize("scheme", UNDISTORTED, ids=str)
def test_draws_over_random_keys_follow_the_models_probabilities(scheme, name):
    """Chi-square at 1e-6 a case; real coins of many keys, one context, as in serving."""
    probabilities = np.array(DISTRIBUTIONS[name])
    probabilities /= probabilities.sum()
    rng = np.random.default_rng(7)
    n = 10_000
    drawn = np.empty(n, dtype=np.int64)
    context = np.array([3, 4], dtype=np.uint32)
    for i in range(n):
        words = coins.row(rng.bytes(32), context, probabilities.shape[0])
        drawn[i] = scheme.draw(probabilities, words, rng.random())
    counts = np.bincount(drawn, minlength=probabilities.shape[0])
    possible = probabilities > 0
    assert counts[~possible].sum() == 0
    assert stats.chisquare(counts[possible], n * probabilities[possible]).pvalue > 1e-6


@pytest.mark.parametrize("scheme", UNDISTORTED, ids=str)
def test_the_chi_square_would_see_a_distortion(scheme):
    """The same test fails for probabilities that are 8 % off: it is not blind."""
    probabilities = np.array([0.5, 0.3, 0.2])
    rng = np.random.default_rng(8)
    drawn = [
        scheme.draw(probabilities, rng.integers(0, 2**32, 3, dtype=np.uint32), rng.random())
        for _ in range(20_000)
    ]
    off = np.array([0.46, 0.32, 0.22])
    assert stats.chisquare(np.bincount(drawn, minlength=3), 20_000 * off).pvalue < 1e-6


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_drawn_tokens_score_above_the_null_mean(scheme):
    probabilities = np.full(50, 0.02)
    rng = np.random.default_rng(9)
    scores = []
    for _ in range(2000):
        words = rng.integers(0, 2**32, 50, dtype=np.uint32)
        drawn = scheme.draw(probabilities, words, rng.random())
        scores.append(int(scheme.score(words[drawn : drawn + 1])[0]))
    law = scheme.null_law
    z = (np.mean(scores) - law.mean) / np.sqrt(law.variance / len(scores))
    assert z > 10


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_draw_accepts_unnormalised_probabilities_and_ignores_their_scale(scheme):
    rng = np.random.default_rng(10)
    for _ in range(50):
        probabilities = rng.random(20)
        words = rng.integers(0, 2**32, 20, dtype=np.uint32)
        uniform = rng.random()
        scaled = scheme.draw(probabilities * 3e-5, words, uniform)
        assert scheme.draw(probabilities, words, uniform) == scaled


@pytest.mark.parametrize("scheme", ALL, ids=str)
@pytest.mark.parametrize("word", [0, 2**31, 2**32 - 1])
def test_extreme_coins_never_draw_an_impossible_token(scheme, word):
    """u rounds to 1 in float32: -log(-log u) would be infinite there."""
    probabilities = np.array([0.0, 1e-300, 0.0, 1e-310])
    words = np.full(4, word, dtype=np.uint32)
    for uniform in (0.0, 0.5, 1 - 2**-53):
        assert probabilities[scheme.draw(probabilities, words, uniform)] > 0


def test_draw_unmarked_inverts_the_cumulative_sum():
    probabilities = np.array([0.25, 0.0, 0.5, 0.25])
    assert [draw_unmarked(probabilities, u) for u in (0.0, 0.2499, 0.25, 0.74, 0.75, 0.999)] == [
        0,
        0,
        2,
        2,
        3,
        3,
    ]


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("nonsense", {}),
        ("gumbel", {"layers": 3}),
        ("green", {"gamma": 0.0}),
        ("green", {"gamma": 1.0}),
        ("green", {"gamma": 1e-12}),
        ("green", {"delta": float("nan")}),
        ("green", {"delta": -1.0}),
        ("tournament", {"layers": 0}),
        ("tournament", {"layers": 33}),
        ("tournament", {"layers": 2.5}),
    ],
)
def test_bad_schemes_are_refused(name, parameters):
    with pytest.raises(UsageError):
        make_scheme(name, parameters)


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_bad_draws_are_refused(scheme):
    words = np.zeros(2, dtype=np.uint32)
    for bad in ([0.0, 0.0], [-1.0, 2.0], [np.nan, 1.0], [np.inf, 1.0], [1.0]):
        with pytest.raises(UsageError):
            scheme.draw(np.array(bad), words, 0.5)


@pytest.mark.parametrize("scheme", ALL, ids=str)
def test_a_scheme_is_rebuilt_from_its_name_and_parameters(scheme):
    assert make_scheme(scheme.name, scheme.parameters) == scheme


def _gumbel_in_numpy(p, words):
    with np.errstate(divide="ignore", over="ignore"):
        return int((-np.log((words.astype(np.float64) + 0.5) / 2**32) / p).argmin())


def _tournament_in_numpy(p, words, layers, uniform):
    p = p / p.sum()
    for layer in range(layers):
        g = ((words >> np.uint32(31 - layer)) & np.uint32(1)).astype(np.float64)
        p = p * (1 + g - g @ p)
    cumulative = np.cumsum(np.maximum(p, 0))
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))


def _green_in_numpy(p, words, scheme, uniform):
    cumulative = np.cumsum(np.where(words < scheme.threshold, np.exp(scheme.delta), 1.0) * p)
    return int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 50, 127, 128, 129, 1000, 5000]))
def test_the_race_equals_its_formula_at_any_spread_of_scores(seed, size):
    rng = np.random.default_rng(seed)
    scores = (rng.choice([0.1, 1.0, 30.0, 3000.0]) * rng.standard_normal(size)).astype(np.float32)
    scores = np.sort(scores) if seed % 2 else scores
    words = rng.integers(0, 2**32, size, dtype=np.uint32)
    values = scores - np.log(-np.log((words + 0.5) / 2.0**32))
    assert compiled.choose_by_race(scores, words) == int(np.argmax(values))


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32), st.sampled_from([1, 3, 50, 127, 128, 129, 1000, 5000]))
def test_compiled_draws_equal_the_formulas_in_numpy(seed, size):
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(size, 0.3))
    p[rng.random(size) < 0.3] = 0
    p[rng.integers(size)] += 0.01
    words = rng.integers(0, 2**32, size, dtype=np.uint32)
    uniform, green = rng.random(), Green(0.25, 2.0)
    kept = p.copy()
    assert Gumbel().draw(p, words, uniform) == _gumbel_in_numpy(p, words)
    assert green.draw(p, words, uniform) == _green_in_numpy(p, words, green, uniform)
    drawn = Tournament(4).draw(p, words, uniform)
    assert drawn == _tournament_in_numpy(p, words, 4, uniform)
    assert np.array_equal(p, kept)
    cumulative = np.cumsum(p)
    ordinary = int(np.searchsorted(cumulative, uniform * cumulative[-1], side="right"))
    assert draw_unmarked(p, uniform) == ordinary
    with np.errstate(divide="ignore"):
        scores = np.log(p).astype(np.float32)
    assert compiled.choose_by_race(scores, words) == _gumbel_in_numpy(
        np.exp(scores.astype(np.float64)), words
    )
    narrow = p.astype(np.float32)
    near = compiled.draw_plain_of_many(narrow, uniform)
    assert narrow[near] > 0
    before, after = cumulative[near] - p[near], cumulative[near]
    assert before - 1e-5 <= uniform * cumulative[-1] <= after + 1e-5


def test_the_race_sees_the_largest_words_and_skips_no_winner():
    """A winner that is far behind in score and ahead by its word alone: 1 - u down to 2**-33."""
    scores = np.zeros(1000, dtype=np.float32)
    scores[900] = -15.0
    words = np.full(1000, 2**31, dtype=np.uint32)
    words[900] = 2**32 - 1
    assert compiled.choose_by_race(scores, words) == 900
    scores[900] = -25.0
    assert compiled.choose_by_race(scores, words) == 0
    for ahead in (1.0, 3.0, 40.0):  # ahead of the best by more than its small word costs
        scores[900] = ahead
        words[900] = 2**30
        assert compiled.choose_by_race(scores, words) == 900
    scores[500] = np.nan
    assert compiled.choose_by_race(scores, words) == -1
    assert compiled.choose_by_race(np.full(3, -np.inf, dtype=np.float32), words[:3]) == -1


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 2**32 - 1) | st.integers(1, 31).map(lambda power: 2**power + 1),
    st.floats(-50, 50),
    st.integers(32, 63),
)
def test_the_race_misses_no_winner_by_a_hair(distance, level, place):
    """Whatever its word, also where the test's logarithm is exact: a lead of 2e-4 suffices."""
    words = np.full(64, 2**31, dtype=np.uint32)
    words[place] = 2**32 - distance
    gumbel = -np.log(-np.log((words.astype(np.float64) + 0.5) / 2.0**32))
    scores = np.full(64, level, dtype=np.float32)
    scores[32:] -= 30  # or another of its block would have it looked at
    scores[place] = level + gumbel[0] - gumbel[place] + 2e-4 + 3e-6 * abs(level)
    values = scores + gumbel
    assert values[place] > values[0]
    assert compiled.choose_by_race(scores, words) == place
