"""The calibration gate in small; `make bench-calibration` runs it on 2,000 innocent suspects."""

import copy

import pytest

from tests.world.calibration import (
    KINDS,
    LEVELS,
    TESTS,
    double_fails,
    is_calibrated,
    run_keyring,
    sd_tolerance,
    summarise,
)


@pytest.fixture(scope="module")
def outcomes():
    return [outcome for seed in range(900, 910) for outcome in run_keyring(seed)]


def test_innocent_suspects_of_every_kind_stay_inside_the_binomial_limits(outcomes):
    assert {outcome.kind for outcome in outcomes} == set(KINDS)
    summary = summarise(outcomes)
    for name in TESTS:
        for level in LEVELS:
            assert summary[name][str(level)]["passed"], (name, level, summary[name])
    # 40 suspects x 7 keys: the standard error of sd is .05 and more, since kinds share a key
    assert abs(summary["z"]["sd"] - 1) < 0.3


def test_without_deduplication_the_same_suspects_fail_the_gate(outcomes):
    assert double_fails(summarise(outcomes))


def test_the_gate_can_fail(outcomes):
    summary = summarise(outcomes)
    summary["z"]["sd"] = 1.0
    assert is_calibrated(summary)
    for name in TESTS:
        broken = copy.deepcopy(summary)
        broken[name]["0.01"]["passed"] = False
        assert not is_calibrated(broken)
    summary["z"]["sd"] = 1.03
    assert not is_calibrated(summary)
    # models that read are judged by the error of their own number of z: 3.89 / sqrt(2 n)
    assert sd_tolerance(4200) == pytest.approx(0.0425, abs=1e-4)
    assert is_calibrated(summary, sd_tolerance(4200))
    summary["z"]["sd"] = 1.05
    assert not is_calibrated(summary, sd_tolerance(4200))


@pytest.mark.parametrize("reference", ["ngram", "wrong"])
def test_residual_weights_stay_inside_the_limits_whatever_the_reference_says(reference):
    outcomes = [one for seed in range(950, 953) for one in run_keyring(seed, reference)]
    summary = summarise(outcomes)
    for name in TESTS:
        for level in LEVELS:
            assert summary[name][str(level)]["passed"], (name, level, summary[name])


def test_models_that_read_the_marked_log_stay_inside_the_limits_and_a_copier_needs_the_rule():
    """Read at every occurrence of a context, a copier bets on words that the coins chose."""
    outcomes = [one for seed in (970, 971) for one in run_keyring(seed, "right", "weights")]
    summary = summarise(outcomes)
    for name in TESTS:
        for level in LEVELS:
            assert summary[name][str(level)]["passed"], (name, level, summary[name])
    copiers = [one for one in outcomes if one.kind == "copier"]
    assert len(copiers) == 2
    assert sum(one.z_repeated - one.z[0] for one in copiers) > 2
