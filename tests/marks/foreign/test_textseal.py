"""TextSeal's linear hash: exact marginals, correlated keys and tokens, and what that costs."""

import numpy as np
import pytest

from provenance.marks.foreign import make_foreign
from provenance.marks.foreign.textseal import _value_masses
from tests.marks.foreign.lab import random_pairs, small


def test_masses_of_the_values_are_the_exact_residue_counts_of_signed_words():
    masses = _value_masses()
    assert masses.sum() == 1 << 64
    assert set(masses) == {(1 << 64) // 8191, (1 << 64) // 8191 + 1}
    small_words = np.bincount(np.arange(-(1 << 15), 1 << 15) % 8191, minlength=8191)
    half = 1 << 15
    formula = [(half - 1 - v) // 8191 - (-half - 1 - v) // 8191 for v in range(8191)]
    assert small_words.tolist() == formula


@pytest.mark.parametrize("gamma", [0.5, 0.25, 0.1, 1 / 3, 0.999])
def test_threshold_is_that_of_float32(gamma):
    torch = pytest.importorskip("torch")
    scheme = make_foreign(
        "textseal-greenlist", {"secret_key": 1, "watermark_type": "greenlist", "gamma": gamma}
    )
    green = (torch.arange(8191).float() / 8191) < gamma
    assert scheme.threshold == int(green.sum())
    assert bool(green[: scheme.threshold].all())


@pytest.mark.parametrize(("first", "second"), [(0, 76), (42, 118)])
def test_keys_that_correlate_are_seen(first, second):
    scheme = make_foreign(
        "textseal-greenlist", {"secret_key": first, "watermark_type": "greenlist"}
    )
    assert scheme.correlation(second) == pytest.approx(-0.3, abs=0.02)
    assert scheme.correlation(first) == pytest.approx(1)
    assert abs(scheme.correlation(second + 1)) < 0.03


def test_placebo_keys_are_never_those():
    class Forced:
        """Draws the correlated key first."""

        def __init__(self, keys):
            self.keys = list(keys)

        def integers(self, *_):
            return self.keys.pop(0)

    assert small("textseal-greenlist").random_key(Forced([118, 42, 1234567])) == 1234567


def test_tokens_743_apart_follow_each_other_and_the_caveat_says_what_to_do():
    scheme = small("textseal-greenlist")
    contexts, tokens = random_pairs(scheme, 20_000, 1, vocabulary=100_000)
    near = np.corrcoef(
        scheme.score(contexts, tokens), scheme.score(contexts, tokens + np.uint32(743))
    )[0, 1]
    assert near == pytest.approx(0.42, abs=0.03)
    assert "placebo" in scheme.caveat


def test_pairs_of_one_linear_form_are_one_unit():
    """A context token one higher by P2 / ... cannot happen below 2**31; equal sums can be built."""
    scheme = make_foreign("textseal-gumbel", {"secret_key": 5, "ngram": 2})
    # 10000247 * 10000019 == 10000019 * 10000247: swap multiples between the two places.
    contexts = np.array([[10000247, 0], [0, 10000019]], dtype=np.uint32)
    tokens = np.array([9, 9], dtype=np.uint32)
    units = scheme.units(contexts, tokens)
    assert units[0] == units[1]
    assert scheme.values(contexts, tokens).tolist() == [scheme.values(contexts, tokens)[0]] * 2


@pytest.mark.parametrize("depth", [1, 8, 30])
def test_law_of_the_layers_has_the_exact_mean_and_less_than_the_binomial_variance(depth):
    config = {"secret_key": 5, "watermark_type": "synthid", "depth": depth}
    law = make_foreign("textseal-synthid", config).null_law
    share = make_foreign("textseal-greenlist", {**config, "watermark_type": "greenlist"}).null_law
    assert law.mean == pytest.approx(depth * share.mean, abs=0.01)
    ratio = law.variance / (depth * share.variance)
    assert ratio == pytest.approx(1, abs=0.002) if depth == 1 else 0.85 < ratio < 1.02
