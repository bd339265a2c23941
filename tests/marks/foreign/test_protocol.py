"""What holds for every foreign scheme: units, laws, placebo keys, secrets, refusals."""

import dataclasses
import json

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.marks.foreign import FOREIGN_SCHEMES, ForeignScheme, make_foreign
from provenance.marks.foreign.scheme import hash_units, pack_units
from tests.marks.foreign.lab import SMALL, VOCABULARY, random_pairs, small

NAMES = list(FOREIGN_SCHEMES)
SCHEMES = {name: small(name) for name in NAMES}
KEY_FIELDS = {"hashing_key", "keys", "key", "hash_key", "seed", "secret_key", "watermark_key"}


def key_of(scheme):
    return getattr(scheme, "keys", None) or scheme.key


def split(name):
    """(configuration without its key, the field, the key as it stands there, as a secret)."""
    config = dict(SMALL[name])
    (field,) = KEY_FIELDS & set(config)
    key = config.pop(field)
    return config, field, key, int(key, 16) if isinstance(key, str) else key


@pytest.mark.parametrize("name", NAMES)
def test_every_scheme_keeps_the_protocol(name):
    scheme = SCHEMES[name]
    assert isinstance(scheme, ForeignScheme)
    assert scheme.name == name
    assert scheme.padding is None or 0 <= scheme.padding < 1 << 32
    json.dumps(dict(scheme.parameters))
    contexts, tokens = random_pairs(scheme, 300, 1)
    units, scores = scheme.units(contexts, tokens), scheme.score(contexts, tokens)
    usable = scheme.usable(contexts, tokens)
    assert (units.dtype, scores.dtype, usable.dtype) == (np.int64, np.int64, np.bool_)
    assert units.shape == scores.shape == usable.shape == (300,)
    assert scores.min() >= 0
    assert scores.max() < len(scheme.null_law.masses)
    with pytest.raises(dataclasses.FrozenInstanceError):
        scheme.key = 1


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(seed=st.integers(0, 2**32), name=st.sampled_from(NAMES), few=st.integers(1, 30))
def test_pairs_of_one_unit_have_one_score(seed, name, few):
    """Small alphabets and far ones (t + 2**16, + 8191): whatever collides, collides completely."""
    scheme = SCHEMES[name]
    rng = np.random.default_rng(seed)
    alphabet = rng.integers(0, VOCABULARY, few, dtype=np.uint32)
    if getattr(scheme, "vocabulary_size", None) is None:
        alphabet = np.concatenate((alphabet, alphabet + np.uint32(1 << 16), alphabet + 8191))
    contexts = rng.choice(alphabet.astype(np.uint32), (400, scheme.width))
    tokens = rng.choice(alphabet.astype(np.uint32), 400)
    units, scores = scheme.units(contexts, tokens), scheme.score(contexts, tokens)
    order = np.argsort(units, kind="stable")
    same = np.diff(units[order]) == 0
    assert (np.diff(scores[order])[same] == 0).all()


@pytest.mark.parametrize("name", NAMES)
def test_score_does_not_depend_on_company_or_order(name):
    scheme = SCHEMES[name]
    contexts, tokens = random_pairs(scheme, 200, 2, vocabulary=12)
    together = scheme.score(contexts, tokens)
    order = np.random.default_rng(0).permutation(200)
    assert (scheme.score(contexts[order], tokens[order]) == together[order]).all()
    alone = [int(scheme.score(contexts[i : i + 1], tokens[i : i + 1])[0]) for i in range(0, 200, 9)]
    assert alone == together[::9].tolist()
    assert scheme.score(contexts[:0], tokens[:0]).shape == (0,)
    assert scheme.units(contexts[:0], tokens[:0]).shape == (0,)


SLOW_KEYS = {
    "hf-selfhash": 50,
    "markllm-kgw": 1000,
    "markllm-unigram": 1000,
    "unigram": 1000,
    "markllm-exp-gumbel": 1000,
}


@pytest.mark.parametrize("name", NAMES)
def test_law_is_that_of_one_unit_over_random_keys(name):
    """One usable pair under 50 to 3,000 placebo keys: mean and variance within 5 sd."""
    scheme = SCHEMES[name]
    rng = np.random.default_rng(3)
    contexts, tokens = random_pairs(scheme, 1, 4)
    assert scheme.usable(contexts, tokens).all()
    n = SLOW_KEYS.get(name, 150 if name.startswith("textseal") else 3000)
    scores = np.array(
        [scheme.with_key(scheme.random_key(rng)).score(contexts, tokens)[0] for _ in range(n)]
    )
    law = scheme.null_law
    kurtosis = float(law.moments[2]) / law.variance**2
    assert _z(scores, law) < 5
    spread = 5 * np.sqrt(max(kurtosis - 1, 0) / n) + 25 / n  # the 1/n term: the mean is estimated
    assert abs(scores.var() / law.variance - 1) < spread


def _z(scores, law):
    return abs(scores.mean() - law.mean) / np.sqrt(law.variance / scores.size)


@pytest.mark.parametrize("name", NAMES)
def test_distinct_units_of_uniform_tokens_score_as_the_law_says(name):
    """20,000 different units under one key: mean and every level within 5 sd of the law."""
    scheme = SCHEMES[name]
    contexts, tokens = random_pairs(scheme, 20_000, 5)
    usable = scheme.usable(contexts, tokens)
    contexts, tokens = contexts[usable], tokens[usable]
    _, first = np.unique(scheme.units(contexts, tokens), return_index=True)
    scores = scheme.score(contexts[first], tokens[first])
    law = scheme.null_law
    counts = np.bincount(scores, minlength=len(law.masses))
    expected = law.probabilities * scores.size
    big = expected > 10
    assert _z(scores, law) < 5
    assert (np.abs(counts - expected)[big] < 5.5 * np.sqrt(expected[big])).all()


@pytest.mark.parametrize("name", NAMES)
def test_placebo_keys_do_not_follow_the_true_one(name):
    scheme = SCHEMES[name]
    rng = np.random.default_rng(6)
    contexts, tokens = random_pairs(scheme, 3000, 7)
    usable = scheme.usable(contexts, tokens)
    _, first = np.unique(scheme.units(contexts, tokens), return_index=True)
    first = first[usable[first]]
    own = scheme.score(contexts[first], tokens[first])
    keys = [scheme.random_key(rng) for _ in range(3)]
    assert len({str(key) for key in [*keys, key_of(scheme)]}) == 4
    for key in keys:
        other = scheme.with_key(key).score(contexts[first], tokens[first])
        if own.std() and other.std():
            assert abs(np.corrcoef(own, other)[0, 1]) < 5.5 / np.sqrt(first.size)


@pytest.mark.parametrize("name", NAMES)
def test_unusable_pairs_have_one_coin_under_all_keys(name):
    scheme = SCHEMES[name]
    rng = np.random.default_rng(8)
    contexts, tokens = random_pairs(scheme, 2000, 9, vocabulary=40)
    dead = ~scheme.usable(contexts, tokens)
    own = scheme.score(contexts[dead], tokens[dead])
    for _ in range(3):
        other = scheme.with_key(scheme.random_key(rng))
        again = ~other.usable(contexts, tokens)
        both = again & dead
        assert (other.score(contexts[both], tokens[both]) == own[again[dead]]).all()
    dying = {"hf-lefthash", "lm-watermarking", "markllm-exp", "markllm-ewd", "vllm-sbw"}
    assert dead.any() == (name in dying)


@pytest.mark.parametrize("name", NAMES)
def test_keys_are_never_shown(name):
    config, field, written, key = split(name)
    scheme = make_foreign(name, config, key, VOCABULARY)
    assert scheme == SCHEMES[name]
    shown = f"{scheme!r} {scheme} {dict(scheme.parameters)} {scheme.caveat}"
    for part in np.atleast_1d(key):
        assert not (part > 100 and str(part) in shown)
    wrong = [k + 1 for k in key] if isinstance(key, list) else 31337313
    for secret in (wrong, "31337313", 3.5, [31337313, "x"], -(1 << 70)):
        with pytest.raises((UsageError, ConfigurationMismatchError)) as caught:
            make_foreign(name, {**config, field: written}, secret, VOCABULARY)
        assert "31337313" not in str(caught.value)


@pytest.mark.parametrize("name", NAMES)
def test_a_key_must_be_given(name):
    config, _, _, _ = split(name)
    if name == "lm-watermarking":
        assert "public" in make_foreign(name, config, None, VOCABULARY).caveat
        return
    with pytest.raises(UsageError, match="key must be given"):
        make_foreign(name, config, None, VOCABULARY)


@pytest.mark.parametrize("name", NAMES)
def test_unknown_fields_are_refused(name):
    with pytest.raises(UsageError, match="typo_field"):
        make_foreign(name, {**SMALL[name], "typo_field": 1}, None, VOCABULARY)


@pytest.mark.parametrize(
    "name",
    [
        "hf-lefthash",
        "hf-selfhash",
        "hf-synthid",
        "lm-watermarking",
        "markllm-kgw",
        "markllm-ewd",
        "markllm-pf",
    ],
)
def test_text_marked_on_a_gpu_is_refused_with_the_reason(name):
    for device in ("cuda", "cuda:1"):
        with pytest.raises(ConfigurationMismatchError) as caught:
            make_foreign(name, {**SMALL[name], "device": device}, None, VOCABULARY)
        said = str(caught.value)
        assert f"got {device}" in said
        assert "CUDA generator" in said
        assert "CPU's MT19937" in said
    assert make_foreign(name, {**SMALL[name], "device": "cpu"}, None, VOCABULARY) == SCHEMES[name]


@pytest.mark.parametrize(
    "name",
    [
        "vllm-gumbel",
        "vllm-sbw",
        "sglang-gumbel",
        "textseal-greenlist",
        "textseal-dual-key",
        "radioactive-greenlist",
        "markllm-exp",
        "markllm-exp-gumbel",
        "unigram",
        "synthid-text-2025",
    ],
)
def test_schemes_of_integers_or_of_a_cpu_generator_do_not_care_about_the_device(name):
    assert make_foreign(name, {**SMALL[name], "device": "cuda"}, None, VOCABULARY) == SCHEMES[name]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("hf-lefthash", {"greenlist_ratio": 0}),
        ("hf-lefthash", {"greenlist_ratio": 0.0001}),
        ("hf-lefthash", {"greenlist_ratio": True}),
        ("hf-lefthash", {"seeding_scheme": "selfhash"}),
        ("hf-lefthash", {"hashing_key": 1 << 64}),
        ("hf-selfhash", {"hashing_key": 1 << 63}),
        ("hf-selfhash", {"context_width": 0}),
        ("hf-synthid", {"sampling_table_size": 1000}),
        ("hf-synthid", {"sampling_table_size": 1 << 25}),
        ("hf-synthid", {"ngram_len": 1}),
        ("hf-synthid", {"keys": []}),
        ("hf-synthid", {"keys": [1 << 63]}),
        ("vllm-gumbel", {"algorithm": "sbw"}),
        ("vllm-gumbel", {"prf": "siphash"}),
        ("vllm-gumbel", {"key": -1}),
        ("vllm-dual-key-gumbel", {"alpha": 1.5}),
        ("lm-watermarking", {"seeding_scheme": "noncomm"}),
        ("lm-watermarking", {"seeding_scheme": "ff-minhash_prf-x-True"}),
        ("radioactive-greenlist", {"gamma": 1}),
        ("textseal-greenlist", {"gamma": 0.99999}),
        ("textseal-greenlist", {"ngram": 11}),
        ("textseal-gumbel", {"watermark_type": "greenlist"}),
        ("markllm-kgw", {"f_scheme": "max"}),
        ("markllm-kgw", {"algorithm_name": "SWEET"}),
        ("markllm-kgw", {"window_scheme": "right"}),
        ("markllm-exp", {"hash_key": 1 << 63}),
        ("markllm-ewd", {"hash_key": 1 << 63}),
        ("markllm-pf", {"payload": 500}),
        ("markllm-pf", {"ngram": None}),
        ("markllm-exp-gumbel", {"prefix_length": None}),
        ("synthid-text-2025", {"sampling_table_seed": 0}),
        ("synthid-text-2025", {"keys": [1] * 129}),
        ("synthid-text-2025", {"ngram_len": None}),
        ("vllm-sbw", {"algorithm": "gumbel"}),
        ("vllm-sbw", {"sbw_scheme": "minhash"}),
        ("vllm-sbw", {"sbw_gamma": 1e-12}),
        ("vllm-sbw", {"key": 1 << 63}),
        ("vllm-gumbel", {"algorithm": "red_green"}),
        ("vllm-gumbel", {"algorithm": ["gumbel"]}),
        ("sglang-gumbel", {"key": "0x"}),
        ("sglang-gumbel", {"key": "1" * 17}),
        ("sglang-gumbel", {"key": "12 4"}),
        ("sglang-gumbel", {"key": 1234}),
        ("sglang-gumbel", {"key_b": "g"}),
        ("sglang-gumbel", {"context_window": None}),
        ("sglang-gumbel", {"mixing_probability": 1}),
        ("textseal-dual-key", {"watermark_type": "gumbelmax"}),
        ("textseal-dual-key", {"mixing_alpha": 2}),
        ("textseal-dual-key", {"secret_key_b": 1 << 63}),
        ("textseal-gumbel", {"watermark_type": "textseal"}),
        ("unigram", {"fraction": None}),
        ("unigram", {"hash_key": 5}),
        ("radioactive-greenlist", {"gamma": None}),
        ("radioactive-greenlist", {"ngram": None}),
        ("radioactive-gumbel", {"ngram": None}),
    ],
)
def test_values_outside_their_domain_are_refused(name, change):
    with pytest.raises(UsageError):
        make_foreign(name, {**SMALL[name], **change}, None, VOCABULARY)


def test_seedings_that_nobody_can_recompute_are_refused():
    with pytest.raises(ConfigurationMismatchError, match="global generator"):
        make_foreign(
            "radioactive-gumbel", {"seed": 1, "ngram": 2, "seeding": "additive"}, None, VOCABULARY
        )
    with pytest.raises(ConfigurationMismatchError, match="global generator"):
        make_foreign("markllm-pf", {"seed": 1, "ngram": 2, "seeding": "min"}, None, VOCABULARY)


def test_vocabulary_size_is_needed_and_must_agree():
    config = SMALL["hf-lefthash"]
    with pytest.raises(UsageError, match="vocabulary_size must be given"):
        make_foreign("hf-lefthash", config)
    with pytest.raises(ConfigurationMismatchError, match="agree"):
        make_foreign("hf-lefthash", {**config, "vocab_size": 501}, None, VOCABULARY)
    assert make_foreign("hf-lefthash", {**config, "vocab_size": 500}) == SCHEMES["hf-lefthash"]
    with pytest.raises(UsageError, match="must be one of"):
        make_foreign("nonsense", {})


@pytest.mark.parametrize("name", NAMES)
def test_windows_of_the_wrong_shape_are_refused(name):
    scheme = SCHEMES[name]
    contexts, tokens = random_pairs(scheme, 5, 1)
    wide = np.concatenate((contexts, contexts, tokens[:, None]), axis=1)
    for bad in ((wide, tokens), (contexts, tokens[:4]), (contexts.astype(np.int64), tokens)):
        for method in (scheme.units, scheme.score, scheme.usable):
            with pytest.raises(UsageError):
                method(*bad)
    if getattr(scheme, "vocabulary_size", None):
        with pytest.raises(UsageError, match="below the vocabulary_size"):
            scheme.score(contexts, tokens + np.uint32(VOCABULARY))


def test_units_are_exact_or_collide_like_random_words():
    seeds = np.array([0, 0, 1, 2**32 - 1], dtype=np.uint32)
    tokens = np.array([0, 2**31 - 1, 0, 5], dtype=np.uint32)
    assert pack_units(seeds, tokens).tolist() == [0, 2**31 - 1, 2**31, ((2**32 - 1) << 31) + 5]
    grid = np.stack(np.meshgrid(*[np.arange(60)] * 3), axis=-1).reshape(-1, 3).astype(np.uint32)
    assert np.unique(hash_units(grid[:, :2], grid[:, 2])).size == 60**3
