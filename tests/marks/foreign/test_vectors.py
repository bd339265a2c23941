"""Every coin equals the original's: fixtures/vectors/*.json, made by benchmarks/vectors/."""

import re

import numpy as np
import pytest

from provenance.marks.foreign import FOREIGN_SCHEMES, make_foreign
from provenance.marks.foreign.uniforms import exponential_score
from tests.marks.foreign.lab import FOLDER, build, padded_windows, read_vectors, windows

GREEN = [
    "hf-lefthash",
    "hf-selfhash",
    "lm-watermarking",
    "radioactive-greenlist",
    "textseal-greenlist",
    "markllm-kgw",
    "markllm-ewd",
    "markllm-unigram",
    "unigram",
]
ROWS = ["radioactive-gumbel", "markllm-exp", "markllm-exp-gumbel"]


BY_DEFINITION = {
    "lm-watermarking",
    "radioactive-greenlist",
    "radioactive-gumbel",
    "sglang-gumbel",
    "vllm-sbw",
}


def _cases(names):
    return [
        pytest.param(name, vector, id=f"{name}-{number}")
        for name in names
        for number, vector in enumerate(read_vectors(name)[1])
    ]


@pytest.mark.parametrize("name", FOREIGN_SCHEMES)
def test_every_scheme_has_three_keys_of_two_hundred_coins_and_a_header(name):
    header, vectors = read_vectors(name)
    assert all(header[field] for field in ("made_by", "version", "command"))
    made = [vector for vector in vectors if "coins" in vector]
    assert len({str(vector["config"]) for vector in made}) >= 3
    for vector in made:
        coins = vector["coins"]
        assert len(coins[0] if isinstance(coins[0], list) else coins) == 200


@pytest.mark.parametrize("name", FOREIGN_SCHEMES)
def test_vectors_that_no_original_made_say_so(name):
    """An original is named with its version or commit; a definition says that it is one."""
    header, _ = read_vectors(name)
    made_by = header["made_by"]
    by_definition = "not the original" in made_by
    assert by_definition == (name in BY_DEFINITION)
    named = re.search(r"\d+\.\d+\.\d+| at [0-9a-f]{7}", made_by) or "transformers'" in made_by
    assert by_definition or named


def test_no_vector_file_is_left_untested():
    assert {path.stem for path in FOLDER.glob("*.json")} == set(FOREIGN_SCHEMES)


@pytest.mark.parametrize(("name", "vector"), _cases(GREEN))
def test_green_lists(name, vector):
    scheme = build(name, vector)
    scores = scheme.score(*windows(scheme, vector["token_ids"]))
    assert "".join(map(str, scores.tolist())) == vector["coins"]


@pytest.mark.parametrize(("name", "vector"), _cases(ROWS))
def test_rows_of_uniforms(name, vector):
    scheme = build(name, vector)
    pairs = windows(scheme, vector["token_ids"])
    assert scheme.mantissas(*pairs).tolist() == vector["coins"]
    expected = exponential_score(np.array(vector["coins"]), 1 << 24)
    assert scheme.score(*pairs).tolist() == expected.tolist()


@pytest.mark.parametrize(("name", "vector"), _cases(["hf-synthid"]))
def test_synthid_layers(name, vector):
    scheme = build(name, vector)
    pairs = windows(scheme, vector["token_ids"])
    bits = np.array([list(map(int, row)) for row in vector["coins"]])
    assert (scheme.g_values(*pairs) == bits).all()
    residues = [key % scheme.sampling_table_size for key in scheme.keys]
    distinct = [residues.index(r) for r in dict.fromkeys(residues)]
    assert (scheme.score(*pairs) == bits[:, distinct].sum(axis=1)).all()


@pytest.mark.parametrize(("name", "vector"), _cases(["synthid-text-2025"]))
def test_synthid_text_layers_and_its_mask_of_repeated_contexts(name, vector):
    scheme = build(name, vector)
    contexts, tokens = windows(scheme, vector["token_ids"])
    bits = np.array([list(map(int, row)) for row in vector["coins"]])
    assert (scheme.g_values(contexts, tokens) == bits).all()
    distinct = [scheme.keys.index(key) for key in dict.fromkeys(scheme.keys)]
    assert (scheme.score(contexts, tokens) == bits[:, distinct].sum(axis=1)).all()
    # its mask looks at contexts before the token; those are the states of one and the same token
    states = scheme.units(contexts, np.zeros_like(tokens))
    first = np.zeros(tokens.shape, dtype=bool)
    first[np.unique(states, return_index=True)[1]] = True
    assert "".join(map(str, first.astype(int))) == vector["not_repeated"]


@pytest.mark.parametrize(("name", "vector"), _cases(["markllm-pf"]))
def test_permute_and_flip_scores_small_uniforms(name, vector):
    scheme = build(name, vector)
    pairs = windows(scheme, vector["token_ids"])
    coins = np.array(vector["coins"])
    assert scheme.mantissas(*pairs).tolist() == coins.tolist()
    assert (
        scheme.score(*pairs).tolist() == exponential_score((1 << 24) - 1 - coins, 1 << 24).tolist()
    )
    assert scheme.original_scores(*pairs) == pytest.approx(-np.log(coins / 2**24))


@pytest.mark.parametrize(("name", "vector"), _cases(["vllm-sbw"]))
def test_sbw(name, vector):
    scheme = build(name, vector)
    scores = scheme.score(*padded_windows(scheme, vector["token_ids"]))
    first = vector["config"]["context_width"] - scheme.width
    assert len(scores) == len(vector["coins"])
    # a window of -1 alone stands before the first tokens; the oldest plays no part under selfhash
    assert first == (vector["config"]["sbw_scheme"] == "selfhash")
    assert "".join(map(str, scores.tolist())) == vector["coins"]


@pytest.mark.parametrize(("name", "vector"), _cases(["sglang-gumbel"]))
def test_sglang_words(name, vector):
    scheme = build(name, vector)
    pairs = windows(scheme, vector["token_ids"])
    assert scheme.words(*pairs).tolist() == vector["coins"]
    assert (
        scheme.score(*pairs).tolist()
        == exponential_score(np.array(vector["coins"]), 1 << 32).tolist()
    )


@pytest.mark.parametrize(
    ("key", "context", "words"),
    [
        (
            "0123456789abcdef",
            [1, 2, 3, 4],
            [1293512163, 858402549, 2305555132, 2450309311, 227333036, 2684237202],
        ),
        (
            "fedcba9876543210",
            [4, 3, 2, 1],
            [221641642, 4015047244, 843143906, 1076944989, 3882127500, 2413234263],
        ),
    ],
)
def test_sglang_gives_the_known_answers_that_sglang_publishes(key, context, words):
    scheme = make_foreign("sglang-gumbel", {"key": key, "context_window": 4})
    tokens = np.array([0, 1, 17, 8191, 8192, 16396], dtype=np.uint32)
    contexts = np.tile(np.array(context, dtype=np.uint32), (6, 1))
    assert scheme.words(contexts, tokens).tolist() == words


@pytest.mark.parametrize(("name", "vector"), _cases(["textseal-dual-key"]))
def test_textseal_dual_key(name, vector):
    scheme = build(name, vector)
    pairs = windows(scheme, vector["token_ids"])
    for part, coins in zip(scheme.parts, vector["coins"], strict=True):
        assert part.values(*pairs).tolist() == coins
    scores = [exponential_score(np.array(coins), 8191) for coins in vector["coins"]]
    expected = sum(w * row for w, row in zip(scheme.weights, scores, strict=True))
    assert scheme.score(*pairs).tolist() == expected.tolist()
    share = scheme.mixing_alpha
    natural = [-np.log1p(-np.array(coins) / 8191) for coins in vector["coins"]]
    wanted = share * natural[0] + (1 - share) * natural[1]
    assert scheme.original_scores(*pairs) == pytest.approx(wanted)


@pytest.mark.parametrize(("name", "vector"), _cases(["textseal-gumbel"]))
def test_textseal_values(name, vector):
    scheme = build(name, vector)
    pairs = windows(scheme, vector["token_ids"])
    assert scheme.values(*pairs).tolist() == vector["coins"]
    assert scheme.score(*pairs).max() > 4


@pytest.mark.parametrize(("name", "vector"), _cases(["textseal-synthid"]))
def test_textseal_layers(name, vector):
    scheme = build(name, vector)
    assert scheme.score(*windows(scheme, vector["token_ids"])).tolist() == vector["coins"]


def _parts(scheme):
    return getattr(scheme, "derived", (scheme,))


@pytest.mark.parametrize(("name", "vector"), _cases(["vllm-gumbel", "vllm-dual-key-gumbel"]))
def test_vllm(name, vector):
    """Mantissas of every position; for served responses vLLM's own uniforms, score and count."""
    scheme = build(name, vector)
    contexts, tokens = padded_windows(scheme, vector["token_ids"])
    uniforms = [part.uniforms(contexts, tokens) for part in _parts(scheme)]
    if "coins" in vector:
        coins = vector["coins"] if len(uniforms) == 2 else [vector["coins"]]
        for found, expected in zip(uniforms, coins, strict=True):
            assert (np.rint(found.astype(float) * (2**24 + 1)) - 1).tolist() == expected
        scores = [exponential_score(np.array(row), 1 << 24) for row in coins]
        weights = getattr(scheme, "weights", (1,))
        expected = sum(w * row for w, row in zip(weights, scores, strict=True))
        assert (scheme.score(contexts, tokens) == expected).all()
        first, wanted = np.ones(tokens.shape, dtype=bool), vector["score"]
    else:
        first = np.zeros(tokens.shape, dtype=bool)
        first[np.unique(contexts, axis=0, return_index=True)[1]] = True
        wanted = vector["detector"]["score"]
        assert first.sum() == vector["detector"]["num_scored_tokens"]
        assert uniforms[0][:8].tolist() == vector["first_uniforms"]
    alpha = getattr(scheme, "alpha", 0.0)
    continuous = [-np.log1p(-found.astype(float)) for found in uniforms]
    total = (1 - alpha) * continuous[0] + alpha * continuous[-1]
    assert total[first].sum() == pytest.approx(wanted, rel=1e-12)


@pytest.mark.parametrize(
    ("name", "vector"),
    [
        case
        for case in _cases(["vllm-gumbel", "vllm-dual-key-gumbel"])
        if "served_by" in case.values[1]
    ],
)
def test_served_responses_score_high_and_unmarked_ones_do_not(name, vector):
    scheme = build(name, vector)
    contexts, tokens = padded_windows(scheme, vector["token_ids"])
    _, first = np.unique(scheme.units(contexts, tokens), return_index=True)
    scores = scheme.score(contexts, tokens)[first]
    law = scheme.null_law
    z = (scores.sum() - law.mean * first.size) / np.sqrt(law.variance * first.size)
    assert abs(z) < 5 if vector["served_by"].endswith("off") else z > 40
