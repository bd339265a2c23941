"""Configurations as the originals write them: each is read, or refused with the reason."""

import base64
import json

import numpy as np
import pytest

from provenance.errors import ConfigurationMismatchError, UsageError
from provenance.marks.foreign import FOREIGN_SCHEMES, make_foreign
from provenance.marks.foreign.markllm_names import MARKLLM_READ, MARKLLM_REFUSED
from provenance.marks.foreign.seeding import rolling
from provenance.marks.foreign.synthid_text import _spread_law, _sums
from provenance.marks.foreign.torch_cpu import random_bits
from tests.marks.foreign.lab import VOCABULARY, random_pairs, small

GOOGLE = [654, 400, 836, 123, 340, 443, 597, 160, 57, 29, 590, 639, 13, 715, 468, 990]
GOOGLE += [966, 226, 324, 585, 118, 504, 421, 521, 129, 669, 732, 225, 90, 960]
LISTS = {"gamma": 0.5, "delta": 2.0, "hash_key": 15485863, "prefix_length": 1, "z_threshold": 4.0}

# MarkLLM's own files (config/*.json at 112fa74): what the originals write, unchanged
MARKLLM = {
    "KGW": {**LISTS, "f_scheme": "time", "window_scheme": "left"},
    "MorphMark": {
        **{name: value for name, value in LISTS.items() if name != "delta"},
        **{"type": "exp", "k_linear": 1.55, "k_exp": 1.30, "k_log": 2.15, "p_0": 0.15},
        **{"ewd": False, "delta_ewd": 1.25, "f_scheme": "time", "window_scheme": "left"},
    },
    "EWD": LISTS,
    "SWEET": {**LISTS, "entropy_threshold": 0.9},
    "IE": {
        **LISTS,
        "embedding_model_path": "princeton-nlp/sup-simcse-roberta-base",
        "entropy_tagger_path": "watermark/ie/model/",
        **{"entropy_threshold": 0.3, "start_entropy": 0.6, "interval": 0.3, "end_entropy": 1.5},
        "direction": "left",
    },
    "Unigram": {"gamma": 0.5, "delta": 2.0, "hash_key": 15485863, "z_threshold": 4.0},
    "EXP": {"prefix_length": 4, "hash_key": 15485863, "threshold": 1e-4, "sequence_length": 200},
    "EXPGumbel": {
        **{"prefix_length": 2, "eps": 1e-20, "threshold": 1e-4, "sequence_length": 200},
        **{"temperature": 0.7, "seed": 42},
    },
    "PF": {
        **{"ngram": 8, "seed": 0, "seeding": "hash", "salt_key": 35317, "payload": 0},
        "max_seq_len": 1024,
    },
    "SynthID": {
        **{"ngram_len": 5, "keys": GOOGLE, "sampling_table_size": 65536, "sampling_table_seed": 0},
        **{"watermark_mode": "non-distortionary", "num_leaves": 2, "context_history_size": 1024},
        **{"detector_type": "mean", "threshold": 0.52},
    },
    "Unbiased": {"type": "gamma", "n_grid": 10, "key": 42, "prefix_length": 5, "p_threshold": 5e-4},
    "DIP": {"gamma": 0.5, "alpha": 0.45, "key": 42, "prefix_length": 5, "z_threshold": 1.513},
    "TS": {**LISTS, "ckpt_path": "init.pth", "seeding_scheme": "simple_1"},
    "STEAL": {"prevctx_width": 1, "spoofer_strength": 4},
}


def file_of(name):
    return {"algorithm_name": name, **MARKLLM.get(name, {})}


def test_every_algorithm_of_markllm_is_read_or_refused_and_never_both():
    named = {*MARKLLM_READ, *MARKLLM_REFUSED}
    assert len(named) == 22  # the files of its config folder
    assert not MARKLLM_READ.keys() & MARKLLM_REFUSED.keys()
    assert set(MARKLLM_READ.values()) <= set(FOREIGN_SCHEMES)
    assert set(MARKLLM_READ) <= set(MARKLLM)


@pytest.mark.parametrize("name", MARKLLM_READ)
def test_markllms_own_files_are_read_by_their_scheme_and_led_there_by_all_others(name):
    reader = MARKLLM_READ[name]
    scheme = make_foreign(reader, file_of(name), None, VOCABULARY)
    contexts, tokens = random_pairs(scheme, 20, 1)
    assert scheme.score(contexts, tokens).shape == (20,)
    for other in FOREIGN_SCHEMES:
        if other != reader:
            with pytest.raises(UsageError, match=f"Use the scheme {reader}"):
                make_foreign(other, file_of(name), None, VOCABULARY)


@pytest.mark.parametrize("name", MARKLLM_REFUSED)
@pytest.mark.parametrize("scheme", ["markllm-kgw", "lm-watermarking", "hf-synthid"])
def test_what_no_scheme_reads_is_refused_with_the_reason(name, scheme):
    with pytest.raises(ConfigurationMismatchError) as caught:
        make_foreign(scheme, file_of(name), None, VOCABULARY)
    assert f"got {name}: {MARKLLM_REFUSED[name]}" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["kgw", "Kirchenbauer", "", 7, None, ["KGW"]])
def test_an_algorithm_that_markllm_does_not_have_is_a_usage_error(name):
    with pytest.raises(UsageError, match="algorithm_name must be one of"):
        make_foreign("markllm-kgw", {**file_of("KGW"), "algorithm_name": name}, None, VOCABULARY)


@pytest.mark.parametrize("name", ["EWD", "SWEET", "IE"])
def test_ewd_sweet_and_ie_have_the_lists_of_simple_1(name):
    """Entropy decides where they mark, not what is green."""
    ours = make_foreign("markllm-ewd", file_of(name), None, VOCABULARY)
    config = {"seeding_scheme": "simple_1", "gamma": 0.5, "hash_key": 15485863}
    simple = make_foreign("lm-watermarking", config, None, VOCABULARY)
    contexts, tokens = random_pairs(ours, 500, 3)
    assert (ours.score(contexts, tokens) == simple.score(contexts, tokens)).all()
    assert (ours.usable(contexts, tokens) == simple.usable(contexts, tokens)).all()


def test_morphmark_has_the_lists_of_kgw_or_with_ewd_those_of_ewd():
    kgw = make_foreign("markllm-kgw", file_of("KGW"), None, VOCABULARY)
    assert make_foreign("markllm-kgw", file_of("MorphMark"), None, VOCABULARY) == kgw
    weighted = {**file_of("MorphMark"), "ewd": True}
    ewd = make_foreign("markllm-ewd", file_of("EWD"), None, VOCABULARY)
    assert make_foreign("markllm-ewd", weighted, None, VOCABULARY) == ewd
    with pytest.raises(UsageError, match="Use the scheme markllm-ewd"):
        make_foreign("markllm-kgw", weighted, None, VOCABULARY)
    selfish = {**file_of("MorphMark"), "window_scheme": "self"}
    with pytest.raises(ConfigurationMismatchError, match="does not implement"):
        make_foreign("markllm-kgw", selfish, None, VOCABULARY)


def test_unigrams_own_names_and_markllms_are_one_mask():
    own = {"fraction": 0.25, "strength": 2.0, "vocab_size": VOCABULARY, "watermark_key": 99}
    theirs = {"algorithm_name": "Unigram", "gamma": 0.25, "hash_key": 99}
    masks = [
        make_foreign("unigram", own).mask,
        make_foreign("markllm-unigram", theirs, None, VOCABULARY).mask,
    ]
    assert (masks[0] == masks[1]).all()


@pytest.mark.parametrize(
    ("called", "here"),
    [
        ("markllm-sweet", "markllm-ewd"),
        ("MarkLLM-SynthID", "hf-synthid"),
        ("sbw", "vllm-sbw"),
        ("synthid", "hf-synthid"),
    ],
)
def test_a_scheme_under_another_name_is_led_to_its_own(called, here):
    with pytest.raises(UsageError, match=f"Use {here}"):
        make_foreign(called, {})


# --- SynthID: with a table, without one, with a table that is given ------------------------------


TABLE_FREE = {"ngram_len": 5, "keys": GOOGLE, "context_history_size": 1024, "num_leaves": 2}


def test_a_configuration_without_table_fields_is_never_read_as_transformers():
    with pytest.raises(UsageError, match="synthid-text-2025"):
        make_foreign("hf-synthid", TABLE_FREE)
    assert make_foreign("synthid-text-2025", TABLE_FREE).ngram_len == 5
    for field in ("sampling_table_size", "sampling_table_seed"):
        table = {**TABLE_FREE, field: {"sampling_table_size": 65536}.get(field, 0)}
        assert make_foreign("hf-synthid", table).ngram_len == 5
        with pytest.raises(UsageError, match="Use the scheme hf-synthid"):
            make_foreign("synthid-text-2025", table)


def test_the_two_hashes_of_synthid_have_nothing_in_common():
    new = make_foreign("synthid-text-2025", TABLE_FREE)
    old = make_foreign("hf-synthid", {**TABLE_FREE, "sampling_table_seed": 0})
    contexts, tokens = random_pairs(new, 5000, 2, vocabulary=50_000)
    both = np.corrcoef(new.score(contexts, tokens), old.score(contexts, tokens))[0, 1]
    assert abs(both) < 5 / np.sqrt(5000)


def with_table(bits, **changes):
    config = {"ngram_len": 3, "keys": [5, 6, 7], "sampling_table_size": len(bits)}
    return {**config, "sampling_table": bits, **changes}


def base64_of(bits):
    return base64.b64encode(np.packbits(np.array(bits, dtype=np.uint8))).decode()


@pytest.mark.parametrize("size", [16, 1024, 65536])
@pytest.mark.parametrize("form", [list, base64_of])
def test_a_table_that_is_given_is_the_table(size, form):
    """That of the CPU as if it had been exported, then another."""
    drawn = random_bits(0, size)
    seeded = make_foreign(
        "hf-synthid", {"ngram_len": 3, "keys": [5, 6, 7], "sampling_table_size": size}
    )
    given = make_foreign(
        "hf-synthid", with_table(form(drawn.tolist())) | {"sampling_table_size": size}
    )
    pairs = random_pairs(seeded, 400, 4, vocabulary=5000)
    assert (given.score(*pairs) == seeded.score(*pairs)).all()
    assert given.null_law == seeded.null_law
    other = random_bits(1, size).tolist()
    config = {**with_table(form(other)), "sampling_table_size": size, "device": "cuda:0"}
    scheme = make_foreign("hf-synthid", config)  # a GPU made it, and that no longer matters
    assert scheme.table.tolist() == other
    assert (scheme.score(*pairs) != seeded.score(*pairs)).any()
    # the table is public and part of what fixes the mark
    assert scheme.parameters["sampling_table"] == base64_of(other)
    json.dumps(scheme.parameters)
    assert len(json.dumps(scheme.parameters)) < 12_000
    assert "sampling_table" not in seeded.parameters
    assert str(scheme).count("packed") == 0


FAIR = [0, 1] * 32


@pytest.mark.parametrize(
    "config",
    [
        with_table(FAIR, sampling_table_size=128),
        with_table([0] * 64),
        with_table([1] * 64),
        with_table([1] * 60 + [0] * 4),
        with_table([*FAIR[:63], 2]),
        with_table([*FAIR[:63], True]),
        with_table([*FAIR[:63], 1.0]),
        with_table([*FAIR[:63], "1"]),
        with_table([]),
        with_table({"0": 1}, sampling_table_size=64),
        with_table(FAIR[:-1]),
        with_table(FAIR) | {"sampling_table": 7},
        with_table(FAIR) | {"sampling_table": None},
        with_table("", sampling_table_size=64),
        with_table("not base64!", sampling_table_size=64),
        with_table(base64_of(FAIR) + "\n", sampling_table_size=64),
        with_table(base64_of(FAIR[:56]), sampling_table_size=64),
        with_table(base64.b64encode(bytes(FAIR)).decode(), sampling_table_size=64),
        with_table("ä" * 12, sampling_table_size=64),
        with_table(base64_of([1, 0, 1, 0, 1]), sampling_table_size=4),
    ],
)
def test_tables_that_cannot_be_the_original_are_refused(config):
    with pytest.raises(UsageError) as caught:
        make_foreign("hf-synthid", config)
    assert "\n" not in str(caught.value)


def test_a_gpu_without_a_table_is_told_what_to_give():
    config = {**TABLE_FREE, "sampling_table_seed": 0, "device": "cuda"}
    with pytest.raises(ConfigurationMismatchError, match=r"sampling_table\.tolist\(\)"):
        make_foreign("hf-synthid", config)


# --- the law of the hash of 2025 -----------------------------------------------------------------


@pytest.mark.parametrize(
    "keys", [GOOGLE, list(range(30)), [(i * 7919 + 5) % 60000 for i in range(30)], [3, 4], [9]]
)
def test_the_law_spreads_at_least_as_far_as_the_layers_do(keys):
    """On other states than it was measured on; a binomial law is too narrow for Google's keys."""
    scheme = make_foreign("synthid-text-2025", {"ngram_len": 5, "keys": keys})
    states = np.random.default_rng(99).integers(-(1 << 63), 1 << 63, 1 << 19, dtype=np.int64)
    sums = np.empty(states.shape, dtype=np.int64)
    _sums(states, scheme.layers, sums)
    law = scheme.null_law
    assert sums.mean() == pytest.approx(law.mean, abs=5 * np.sqrt(law.variance / sums.size))
    assert sums.var() <= law.variance * 1.002
    assert law.variance < max(sums.var(), len(keys) / 4) * 1.05
    if keys == GOOGLE:
        assert sums.var() > len(keys) / 4 * 1.05


@pytest.mark.parametrize(("depth", "spread"), [(30, 64), (30, 70), (1, 65), (2, 128), (5, 200)])
def test_the_spread_law_is_symmetric_and_wide_enough(depth, spread):
    law = _spread_law(depth, spread)
    p = law.probabilities
    assert p == pytest.approx(p[::-1], rel=1e-9)
    assert law.mean == pytest.approx(depth / 2)
    wanted = depth / 4 * (spread / 64 if depth > 1 else 1)
    assert law.variance >= min(wanted, depth * (depth + 2) / 12) * (1 - 1e-12)


# --- keys that are one mark ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "field", "ngram"),
    [
        ("radioactive-greenlist", "seed", 1),
        ("radioactive-gumbel", "seed", 2),
        ("markllm-pf", "seed", 2),
        ("markllm-exp-gumbel", "seed", 2),
        ("markllm-ewd", "hash_key", 2),
        ("markllm-exp", "hash_key", 2),
        ("hf-lefthash", "hashing_key", 1),
    ],
)
def test_keys_that_agree_in_32_bits_are_one_mark_with_one_id(name, field, ngram):
    width = {"radioactive": "ngram", "markllm-pf": "ngram", "hf": "context_width"}
    window = next((width[part] for part in width if name.startswith(part)), "prefix_length")
    gamma = {"hf-lefthash": "greenlist_ratio"}.get(name, "gamma")
    config = {window: ngram, **({gamma: 0.25} if "green" in name or "ewd" in name else {})}
    low, high = (
        make_foreign(name, {**config, field: key}, None, VOCABULARY) for key in (77, 77 + (1 << 32))
    )
    assert low == high
    assert "k + 2**32" in low.caveat
    assert low != make_foreign(name, {**config, field: 78}, None, VOCABULARY)


def test_where_the_modulus_bites_such_keys_are_two_marks_and_nothing_says_otherwise():
    windows = np.random.default_rng(0).integers(0, 500, (200, 3), dtype=np.uint32)
    near, far = (rolling(key, 35317, windows) for key in (77, 77 + (1 << 32)))
    assert (near != far).any()
    config = {"ngram": 3, "gamma": 0.25}
    low, high = (
        make_foreign("radioactive-greenlist", {**config, "seed": key}, None, VOCABULARY)
        for key in (77, 77 + (1 << 32))
    )
    assert low != high
    assert low.caveat == ""


@pytest.mark.parametrize(
    ("name", "config", "missing"),
    [
        ("radioactive-greenlist", {"seed": 1}, "gamma and ngram are missing"),
        ("radioactive-greenlist", {"seed": 1, "gamma": 0.25}, "ngram is missing"),
        ("radioactive-greenlist", {"seed": 1, "ngram": 2}, "gamma is missing"),
        ("radioactive-gumbel", {"seed": 1, "gamma": 0.25}, "ngram is missing"),
    ],
)
def test_what_fixes_a_coin_of_sander_et_al_is_not_guessed(name, config, missing):
    with pytest.raises(UsageError, match=missing):
        make_foreign(name, config, None, VOCABULARY)


# --- two keys ------------------------------------------------------------------------------------


def test_textseals_second_key_is_the_first_plus_12345_unless_it_is_given():
    base = {"secret_key": 42, "watermark_type": "textseal"}
    assert make_foreign("textseal-dual-key", base).keys == (42, 12387)
    assert make_foreign("textseal-dual-key", {**base, "secret_key_b": -1}).keys == (42, 12387)
    assert make_foreign("textseal-dual-key", {**base, "secret_key_b": 900}).keys == (42, 900)
    without = {"watermark_type": "textseal", "secret_key_b": 900}
    assert make_foreign("textseal-dual-key", without, 42).keys == (42, 900)
    assert make_foreign("textseal-dual-key", without, [42, 900]).keys == (42, 900)
    with pytest.raises(ConfigurationMismatchError, match="same key"):
        make_foreign("textseal-dual-key", without, [42, 901])


def test_textseals_share_is_that_of_the_first_key():
    base = {"secret_key": 42, "watermark_type": "textseal"}
    for alpha, weights in ((0.5, (1, 1)), (0.3, (3, 7)), (1.0, (1, 0)), (0, (0, 1))):
        scheme = make_foreign("textseal-dual-key", {**base, "mixing_alpha": alpha})
        assert scheme.weights == weights
        contexts, tokens = random_pairs(scheme, 20_000, 9, vocabulary=100_000)
        law, scores = scheme.null_law, scheme.score(contexts, tokens)
        assert scores.mean() == pytest.approx(law.mean, rel=0.03)


def test_textseal_keys_whose_coins_correlate_upwards_are_refused():
    base = {"secret_key": 42, "watermark_type": "textseal"}
    with pytest.raises(ConfigurationMismatchError, match="independent coins"):
        make_foreign("textseal-dual-key", {**base, "secret_key_b": 42})
    scheme = make_foreign("textseal-dual-key", base)
    contexts, tokens = random_pairs(scheme, 200_000, 5, vocabulary=100_000)
    first, second = (part.score(contexts, tokens) for part in scheme.parts)
    assert -0.03 < np.corrcoef(first, second)[0, 1] < 0.01
    for _ in range(3):
        a, b = scheme.random_key(np.random.default_rng(_))
        assert b - a == 12345


def test_a_whole_configuration_of_textseal_in_2026_is_read_by_its_type():
    config = {
        **{"secret_key": 42, "ngram": 1, "watermark_type": "gumbelmax", "method": "uniform"},
        **{"gamma": 0.5, "delta": 2.0, "alpha": 0.2, "depth": 30, "after_topp": True},
        **{"k_morphmark": 1.3, "p_0": 0.15, "chunk_size": 4, "num_drafts": 4},
        **{"base_watermark": "greenlist", "attenuation": "interpolate"},
        **{"attenuation_weight": 0.0, "backprop_on_nonzero": False, "scoring_method": "v2"},
        **{"secret_key_b": -1, "mixing_alpha": 0.5, "key_routing": False},
    }
    for kind, name in (
        ("gumbelmax", "textseal-gumbel"),
        ("greenlist", "textseal-greenlist"),
        ("textseal", "textseal-dual-key"),
    ):
        assert make_foreign(name, {**config, "watermark_type": kind}).name == name
        with pytest.raises(UsageError, match=f"Use the scheme {name}"):
            make_foreign("textseal-synthid", {**config, "watermark_type": kind})
    with pytest.raises(ConfigurationMismatchError, match="key_routing"):
        make_foreign(
            "textseal-greenlist", {**config, "watermark_type": "greenlist", "key_routing": True}
        )


def test_sglang_takes_keys_as_it_writes_them_or_as_numbers():
    base = {"context_window": 4}
    for key in ("ff", "0xFF", "0X00ff"):
        assert make_foreign("sglang-gumbel", {**base, "key": key}).keys == (255,)
    assert make_foreign("sglang-gumbel", base, 255).keys == (255,)
    dual = {**base, "key": "ff", "key_b": "1"}
    assert make_foreign("sglang-gumbel", dual).keys == (255, 1)
    assert make_foreign("sglang-gumbel", base, [255, 1]).keys == (255, 1)
    for secret in (254, [255, 2]):
        with pytest.raises(ConfigurationMismatchError, match="same key"):
            make_foreign("sglang-gumbel", dual, secret)
    with pytest.raises(UsageError, match="key must be given"):
        make_foreign("sglang-gumbel", {**base, "key_b": "1"})


def test_two_sglang_keys_split_the_contexts_and_leave_the_law_alone():
    dual = make_foreign(
        "sglang-gumbel",
        {"key": "ff", "key_b": "123456789", "context_window": 2, "mixing_probability": 0.25},
    )
    contexts, tokens = random_pairs(dual, 20_000, 8, vocabulary=100_000)
    parts = [dual.with_key(key).words(contexts, tokens) for key in dual.keys]
    found = dual.words(contexts, tokens)
    assert ((found == parts[0]) | (found == parts[1])).all()
    assert (found == parts[0]).mean() == pytest.approx(0.25, abs=0.02)
    # one context, one key: whatever the token
    same = np.repeat(contexts[:1], 50, axis=0)
    words = dual.words(same, tokens[:50])
    assert any((words == dual.with_key(key).words(same, tokens[:50])).all() for key in dual.keys)


def test_sbw_reads_what_the_sampler_marks_not_what_its_detector_hashes():
    """lefthash sums ids; equal sums share a list, and the oldest token counts."""
    scheme = make_foreign(
        "vllm-sbw", {"algorithm": "sbw", "key": 77, "sbw_scheme": "lefthash", "context_width": 2}
    )
    contexts = np.array([[3, 4], [4, 3], [7, 0], [0, 0]], dtype=np.uint32)
    tokens = np.full(4, 9, dtype=np.uint32)
    assert np.unique(scheme.units(contexts, tokens)).size == 2
    assert scheme.usable(contexts, tokens).tolist() == [True, True, True, False]
    assert scheme.shares_coins
    assert make_foreign("vllm-sbw", {"algorithm": "sbw", "key": 77}).width == 3
    alone = make_foreign("vllm-sbw", {"algorithm": "sbw", "key": 77, "context_width": 1})
    assert alone.width == 0


def test_vllms_whole_object_is_read_whatever_the_algorithm():
    """As a version with SBW writes it, the defaults of all algorithms beside each other."""
    config = {
        **{"key": 77, "alpha": 0.1, "context_width": None, "prf": "philox"},
        **{"deduplicate_contexts": "single_turn", "deduplicate_contexts_max_history": 8192},
        **{"allow_target_only_watermarking": False, "sbw_scheme": "selfhash"},
        **{"sbw_gamma": 0.5, "sbw_delta": 2.0},
    }
    for algorithm, name in (
        ("gumbel", "vllm-gumbel"),
        ("dual_key_gumbel", "vllm-dual-key-gumbel"),
        ("sbw", "vllm-sbw"),
    ):
        scheme = make_foreign(name, {**config, "algorithm": algorithm})
        assert scheme.context_width == 4


def test_a_device_that_is_null_is_one_that_nobody_named():
    config = {**MARKLLM["KGW"], "device": None}
    assert make_foreign("markllm-kgw", config, None, VOCABULARY)


def test_small_instances_are_what_the_protocol_tests_think():
    for name in FOREIGN_SCHEMES:
        assert small(name).name == name
