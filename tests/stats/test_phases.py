"""The compiled sines: within their stated error, which the formula of before was not."""

import math

import mpmath
import numpy as np
import pytest

from provenance.stats.lattice import EPSILON
from provenance.stats.phases import add_logs, bound_blocks, list_sines


def _classes(levels, modulus, seed, classes=4):
    rng = np.random.default_rng(seed)
    offsets = np.arange(levels)[None, :] - rng.integers(0, levels, classes)[:, None]
    probabilities = rng.random((classes, levels))
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    return rng.integers(1, modulus, classes), np.full(classes, 100.0), offsets, probabilities


def _true_logs(weights, counts, offsets, probabilities, frequency, modulus):
    """ln |phi| and arg phi of the whole, to 40 digits."""
    log, angle = mpmath.mpf(0), mpmath.mpf(0)
    for weight, count, steps, masses in zip(weights, counts, offsets, probabilities, strict=True):
        phi = mpmath.mpf(1)
        for step, mass in zip(steps, masses, strict=True):
            phase = mpmath.mpf(int(weight) * int(frequency) * int(step) % modulus)
            phi += mpmath.mpf(float(mass)) * (mpmath.expjpi(2 * phase / modulus) - 1)
        log += mpmath.mpf(float(count)) * mpmath.log(abs(phi))
        angle += mpmath.mpf(float(count)) * mpmath.arg(phi)
    return log, angle


def _log_by_difference(weights, counts, offsets, probabilities, frequency, modulus):
    """The double: ln |phi| from |phi|^2 - 1 also where |phi| is near 0."""
    base = (weights * frequency % modulus)[:, None]
    half = (offsets * base + modulus // 2) % modulus - modulus // 2
    sine, cosine = np.sin(half * (math.pi / modulus)), np.cos(half * (math.pi / modulus))
    real = -2.0 * (probabilities * sine * sine).sum(axis=1)
    imaginary = 2.0 * (probabilities * sine * cosine).sum(axis=1)
    beyond = 2.0 * real + real * real + imaginary * imaginary
    return float(counts @ (0.5 * np.log(np.maximum(1.0 + beyond, 1e-300))))


@pytest.mark.parametrize(("levels", "modulus"), [(2, 1 << 16), (16, 1 << 20), (90, 1 << 30)])
def test_logs_and_angles_are_within_the_stated_error_and_those_of_before_were_not(levels, modulus):
    classes = _classes(levels, modulus, levels)
    rng = np.random.default_rng(3)
    frequencies = np.concatenate([np.arange(20), rng.integers(0, modulus // 2 + 1, 3000)])
    logs, angles, sizes = (np.zeros(frequencies.size) for _ in range(3))
    add_logs(*classes, frequencies, modulus, list_sines(modulus), logs, angles, sizes)
    bounds = EPSILON * (8.0 + levels / 8.0) * sizes
    smallest = np.argsort(logs)[:15]
    before = 0.0
    with mpmath.workdps(40):
        for place in [*range(20), *smallest.tolist(), *rng.integers(20, 3020, 15).tolist()]:
            log, angle = _true_logs(*classes, frequencies[place], modulus)
            allowed = bounds[place] + 1e-300
            assert abs(logs[place] - log) <= 0.2 * allowed
            assert abs(angles[place] - angle) <= 0.2 * allowed
            if place in smallest:
                fault = abs(_log_by_difference(*classes, frequencies[place], modulus) - log)
                before = max(before, float(fault) / allowed)
    assert before > 1.0 or levels < 90  # small |phi| are rare where levels are few


def test_blocks_are_kept_where_the_bound_is_below_the_limit_and_no_other():
    rng = np.random.default_rng(5)
    modulus, width = 1 << 24, 8
    weights, strengths = rng.integers(1, 1 << 18, 12), rng.random(12) * 20
    starts = rng.integers(0, modulus // 2 - width, 4000)
    kept = np.zeros(starts.size, dtype=np.bool_)
    bound_blocks(weights, strengths, starts, width, modulus, list_sines(2 * modulus), 40.0, kept)
    middle = 2 * starts + width - 1
    residue = weights[:, None] * middle[None, :] % (2 * modulus)
    distance = np.minimum(residue, 2 * modulus - residue) - (weights * (width - 1))[:, None]
    sine = np.sin(np.maximum(distance, 0) * (math.pi / (2 * modulus)))
    bound = strengths @ (sine * sine)
    assert 100 < kept.sum() < 3900
    clear = np.abs(bound - 40.0) > 1e-9
    assert np.array_equal(kept[clear], (bound < 40.0)[clear])
    for start in starts[~kept][:50]:  # and what is dropped is below everywhere in its block
        inside = start + np.arange(width)
        exact = strengths @ np.sin(math.pi * (weights[:, None] * inside % modulus) / modulus) ** 2
        assert exact.min() >= 40.0 - 1e-9
