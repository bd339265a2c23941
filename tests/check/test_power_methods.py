"""The peers' tests: printed numbers, hand counts, exact tails, and who holds under the null."""

import math

import mpmath
import numpy as np
import pytest
from scipy import stats

from provenance.coins.contexts import pack
from provenance.errors import UsageError
from provenance.marks.own import Green, Gumbel, Tournament
from tests.world.power.methods import (
    PeerResult,
    log10_mid_p,
    log10_normal_tail,
    log10_tail,
    run_pan,
    run_sander_closed,
    run_sander_open,
    run_textseal,
    unsafe_run_textseal_pair_filter,
)

GREEN = Green(0.25, 2.0)
LOW, HIGH = 0, 2**32 - 1  # a green word and a red one


def distinct_pairs(hits, count):
    """`count` different pairs, the first `hits` of them green."""
    contexts = np.arange(2 * count, dtype=np.uint32).reshape(count, 2)
    words = np.full(count, HIGH, dtype=np.uint32)
    words[:hits] = LOW
    return contexts, np.zeros(count, dtype=np.uint32), words


def arrays(contexts, tokens, words):
    return tuple(np.array(values, dtype=np.uint32) for values in (contexts, tokens, words))


def repeated_text(rng, count, contexts=400, tokens=40):
    """Zipf-like contexts (k = 1) and tokens: most pairs come back."""
    ranks = np.arange(1, contexts + 1) ** -1.2
    context = rng.choice(contexts, size=count, p=ranks / ranks.sum())
    token = np.minimum(rng.geometric(0.3, count) - 1, tokens - 1)
    return context.astype(np.uint32)[:, np.newaxis], token.astype(np.uint32)


def false_alarms(log10_ps, level):
    return int(np.count_nonzero(np.array(log10_ps) <= math.log10(level) + 1e-12))


def limit(trials, level):
    """More false alarms than this have probability below 1e-6 if the test holds."""
    return int(stats.binom.isf(1e-6, trials, level))


class TestPrintedNumbers:
    """facebookresearch/radioactive-watermark 9daaab4; hits are printed share times tokens."""

    @pytest.mark.parametrize(
        ("hits", "tokens", "printed"),
        [
            (932, 3805, 0.7697419186239844),  # output_open, first and last line and between
            (1857, 7510, 0.7116108359289122),
            (30597, 122512, 0.5821159782190959),
            (54096, 216292, 0.45535759392427766),
        ],
    )
    def test_open(self, hits, tokens, printed):
        contexts, predicted, words = distinct_pairs(hits, tokens)
        documents = np.zeros(tokens, dtype=np.int64)
        result = run_sander_open(contexts, predicted, words, documents, GREEN)
        assert (result.method, result.tokens) == ("sander-open", tokens)
        assert 10**result.log10_p == pytest.approx(printed, rel=1e-9)

    @pytest.mark.parametrize(
        ("hits", "tokens", "printed"),
        [
            (59, 201, -1.040590000906872),  # output_closed: share of the first 200, p of 201
            (121, 401, -1.966162137725982),
            (280, 1001, -1.763851841912007),
            (63648, 246001, -22.94432294030671),  # output_closed_supervised_0p05
            (64239, 248201, -23.580984595365482),
        ],
    )
    def test_closed(self, hits, tokens, printed):
        result = run_sander_closed(*distinct_pairs(hits, tokens), GREEN)
        assert result.tokens == tokens
        assert result.log10_p == pytest.approx(printed, abs=1e-9)
        expected = (hits - tokens / 4) / math.sqrt(tokens * 3 / 16)
        assert result.z == pytest.approx(expected, rel=1e-12)


class TestHandCounts:
    # (1 2) 5 three times, (1 2) 6 once, (3 4) 5 once
    CONTEXTS = ((1, 2), (1, 2), (1, 2), (3, 4), (1, 2))
    TOKENS = (5, 5, 6, 5, 5)
    WORDS = (LOW, LOW, HIGH, HIGH, LOW)

    def test_sander_closed_counts_each_pair_once(self):
        result = run_sander_closed(*arrays(self.CONTEXTS, self.TOKENS, self.WORDS), GREEN)
        expected = math.log10(1 - 0.75**3)
        assert result == PeerResult(
            "sander-closed", 3, pytest.approx(1 / 3), pytest.approx(expected)
        )

    def test_sander_closed_leaves_out_prompted_contexts(self):
        prompted = np.array([True, False, True, False, True])
        data = arrays(self.CONTEXTS, self.TOKENS, self.WORDS)
        result = run_sander_closed(*data, GREEN, prompted=prompted)
        assert result.tokens == 2
        assert prompted.tolist() == [True, False, True, False, True]

    def test_the_filter_is_on_contexts(self):
        served = pack(np.array([[1, 2], [9, 9]], dtype=np.uint32))
        data = arrays(self.CONTEXTS, self.TOKENS, self.WORDS)
        result = run_sander_closed(*data, GREEN, served=served)
        assert (result.method, result.tokens) == ("sander-closed-filtered", 2)

    def test_sander_open_scores_the_first_occurrence_of_a_context_in_a_document(self):
        data = arrays(self.CONTEXTS, self.TOKENS, self.WORDS)
        one = run_sander_open(*data, np.zeros(5, dtype=np.int64), GREEN)
        assert one.tokens == 2  # (1 2) 5 and (3 4) 5
        two = run_sander_open(*data, np.array([0, 0, 1, 1, 1]), GREEN)
        assert two.tokens == 3  # and (1 2) 6 from the second
        served = pack(np.array([[3, 4]], dtype=np.uint32))
        documents = np.array([0, 0, 1, 1, 1])
        assert run_sander_open(*data, documents, GREEN, served=served).tokens == 1

    def test_textseal_v1_and_v2(self):
        data = arrays(self.CONTEXTS, self.TOKENS, self.WORDS)
        assert run_textseal(*data, GREEN, dedup="v1").tokens == 2
        v2 = run_textseal(*data, GREEN)
        assert (v2.method, v2.tokens) == ("textseal-v2", 3)
        # P(X > 1) + P(X = 1) / 2, X ~ Binomial(3, 1/4)
        assert 10**v2.log10_p == pytest.approx((9 + 1) / 64 + 27 / 128)

    def test_the_pair_filter_is_on_pairs(self):
        data = arrays(self.CONTEXTS, self.TOKENS, self.WORDS)
        trained = pack(np.array([[1, 2], [3, 4]], dtype=np.uint32))
        tokens = np.array([5, 6], dtype=np.uint32)
        result = unsafe_run_textseal_pair_filter(*data, GREEN, trained, tokens)
        assert (result.method, result.tokens) == ("textseal-v2-pair-filter", 1)
        assert 10**result.log10_p == pytest.approx(0.125)

    def test_pan_counts_every_token(self):
        data = arrays(self.CONTEXTS, self.TOKENS, self.WORDS)
        result = run_pan(*data, GREEN, group=None)
        z = (3 - 5 / 4) / math.sqrt(5 * 3 / 16)
        assert (result.method, result.tokens) == ("pan-grouped-z", 5)
        assert result.z == pytest.approx(z)
        assert result.log10_p == pytest.approx(stats.norm.logsf(z) / math.log(10))

    def test_pan_reports_the_upper_median_p_and_drops_the_rest(self):
        hits = np.array([4, 3, 1, 0])  # of four groups of 4
        words = np.concatenate([[LOW] * h + [HIGH] * (4 - h) for h in hits] + [[LOW] * 3])
        contexts = np.zeros((19, 1), dtype=np.uint32)
        tokens = np.zeros(19, dtype=np.uint32)
        result = run_pan(contexts, tokens, words.astype(np.uint32), GREEN, group=4)
        assert result.tokens == 4
        assert result.z == pytest.approx(0)  # sorted p: 4, 3, 1, 0 hits; entry 2

    def test_pan_masks_recent_contexts_of_the_tournament_in_each_group(self):
        contexts = np.array([1, 2, 1, 3, 4, 1, 1, 1], dtype=np.uint32)[:, np.newaxis]
        tokens = np.zeros(8, dtype=np.uint32)
        words = np.full(8, HIGH, dtype=np.uint32)
        scheme = Tournament(4)

        def counted(**options):
            return run_pan(contexts, tokens, words, scheme, **options).tokens

        assert counted(group=None) == 4
        assert counted(group=None, history=2) == 5  # the 1 at position 5 stood 3 before
        assert counted(group=None, history=0) == 8
        assert counted(group=4) == 2  # groups of 3 and 2; their p: entry 1 is the larger
        result = run_pan(contexts, tokens, words, scheme, group=None)
        assert result.z == pytest.approx(0.5 * math.sqrt(4 * 4 * 4))


class TestTails:
    def test_binomial(self):
        for scheme, trials, p in ((GREEN, 300, 0.25), (Tournament(3), 900, 0.5)):
            for x in (0, 1, trials // 3, trials):
                exact = stats.binom.sf(x - 1, trials, p)
                assert 10 ** log10_tail(x, 300, scheme) == pytest.approx(exact, rel=1e-9)
                mid = stats.binom.sf(x, trials, p) + stats.binom.pmf(x, trials, p) / 2
                assert 10 ** log10_mid_p(x, 300, scheme) == pytest.approx(mid, rel=1e-9)

    def test_gamma(self):
        for total in (0.5, 250.0, 420.0):
            exact = stats.gamma.sf(total, 300)
            assert 10 ** log10_tail(total, 300, Gumbel()) == pytest.approx(exact, rel=1e-9)
            assert log10_mid_p(total, 300, Gumbel()) == log10_tail(total, 300, Gumbel())

    def test_far_below_the_clamp_of_the_originals(self):
        with mpmath.workdps(50):
            gamma = mpmath.log10(mpmath.gammainc(2000, 9000, regularized=True))
            normal = mpmath.log10(mpmath.erfc(346 / mpmath.sqrt(2)) / 2)
        assert log10_tail(9000.0, 2000, Gumbel()) == pytest.approx(float(gamma), rel=1e-10)
        # Pan et al. print p-values down to 6.24e-25979
        assert log10_normal_tail(346.0) == pytest.approx(float(normal), rel=1e-12)
        assert log10_normal_tail(346.0) < -25979
        assert log10_tail(4000, 4000, GREEN) == pytest.approx(4000 * math.log10(0.25))
        assert log10_mid_p(4000, 4000, GREEN) == pytest.approx(4000 * math.log10(0.25) - 0.30103)

    def test_normal(self):
        for z in (-3.0, 0.0, 5.0):
            assert 10 ** log10_normal_tail(z) == pytest.approx(stats.norm.sf(z), rel=1e-12)

    def test_the_gumbel_score_is_continuous(self):
        words = np.array([0, 2**31, HIGH], dtype=np.uint32)
        contexts = np.arange(3, dtype=np.uint32)[:, np.newaxis]
        result = run_sander_closed(contexts, words * 0, words, Gumbel())
        total = -sum(math.log1p(-(int(w) + 0.5) / 2**32) for w in words)
        assert result.z == pytest.approx((total - 3) / math.sqrt(3))
        assert 10**result.log10_p == pytest.approx(stats.gamma.sf(total, 3), rel=1e-9)

    def test_without_tokens_nothing_is_shown(self):
        empty = np.empty((0, 2), dtype=np.uint32), np.empty(0, np.uint32), np.empty(0, np.uint32)
        for scheme in (GREEN, Gumbel(), Tournament(2)):
            for result in (run_sander_closed(*empty, scheme), run_textseal(*empty, scheme)):
                assert (result.tokens, result.z, result.log10_p) == (0, 0.0, 0.0)
            with pytest.raises(UsageError, match="group"):
                run_pan(*empty, scheme, group=None)

    def test_exact_size(self):
        """Over all outcomes of 20 coins: the tail holds at every level, mid-p does not."""
        mass = stats.binom.pmf(np.arange(21), 20, 0.25)
        for pvalue, holds in ((log10_tail, True), (log10_mid_p, False)):
            p = np.array([10 ** pvalue(x, 20, GREEN) for x in range(21)])
            sizes = np.array([mass[p <= level * (1 + 1e-9)].sum() for level in p])
            assert bool(np.all(sizes <= p * (1 + 1e-9))) == holds


class TestNull:
    KEYS = 400

    @pytest.mark.parametrize("scheme", [GREEN, Gumbel(), Tournament(4)], ids=lambda s: s.name)
    def test_on_repeating_text_only_deduplication_holds(self, scheme):
        rng = np.random.default_rng(11)
        contexts, tokens = repeated_text(rng, 1200)
        distinct, names = np.unique(contexts[:, 0] * 64 + tokens, return_inverse=True)
        results = {"sander": [], "v1": [], "v2": [], "pan": []}
        for _ in range(self.KEYS):
            words = rng.integers(0, 2**32, distinct.shape[0], dtype=np.uint32)[names]
            data = contexts, tokens, words, scheme
            results["sander"].append(run_sander_closed(*data))
            results["v1"].append(run_textseal(*data, dedup="v1"))
            results["v2"].append(run_textseal(*data))
            results["pan"].append(run_pan(*data, group=None, history=0))
        ps = {name: [r.log10_p for r in found] for name, found in results.items()}
        for level in (0.1, 0.01, 0.001):
            assert false_alarms(ps["sander"], level) <= limit(self.KEYS, level)
        for name in ("sander", "v1", "v2"):
            z = np.array([r.z for r in results[name]])
            assert abs(z.std() - 1) < 0.18  # 5 standard errors
            assert abs(z.mean()) < 0.25
        assert np.std([r.z for r in results["pan"]]) > 2
        assert false_alarms(ps["pan"], 0.001) > 0.05 * self.KEYS

    def test_on_new_pairs_pan_is_near_its_level(self):
        rng = np.random.default_rng(12)
        contexts, tokens, _ = distinct_pairs(0, 2000)
        ps = []
        for _ in range(self.KEYS):
            words = rng.integers(0, 2**32, 2000, dtype=np.uint32)
            ps.append(run_pan(contexts, tokens, words, GREEN, group=None).log10_p)
        assert false_alarms(ps, 0.01) <= limit(self.KEYS, 0.015)

    def test_the_pair_filter_convicts_an_innocent_model(self):
        """Outputs are independent of the key; the marked data took the best of 4 coins."""
        rng = np.random.default_rng(13)
        vocabulary, filtered, by_context = 300, [], []
        for _ in range(60):
            table = rng.integers(0, 2**32, (vocabulary, vocabulary), dtype=np.uint32)
            served = rng.integers(0, vocabulary, 6000)
            offers = rng.integers(0, vocabulary, (6000, 4))
            best = table[served[:, np.newaxis], offers].argmax(axis=1)
            chosen = offers[np.arange(6000), best].astype(np.uint32)
            contexts = rng.integers(0, vocabulary, 4000).astype(np.uint32)
            tokens = rng.integers(0, vocabulary, 4000).astype(np.uint32)
            data = contexts[:, np.newaxis], tokens, table[contexts, tokens], Gumbel()
            trained = served.astype(np.int64)
            filtered.append(unsafe_run_textseal_pair_filter(*data, trained, chosen).log10_p)
            by_context.append(run_sander_closed(*data, served=trained).log10_p)
        assert max(filtered) < -6
        assert false_alarms(by_context, 0.01) <= limit(60, 0.01)


def read_marked_documents(rng, documents=25, length=50, vocabulary=30):
    """Marked documents (best of 3 coins), read by an innocent model that copies what it has seen.

    At a new context it predicts any token, without the key; at a context that it has seen in the
    document it predicts what followed there.
    """
    table = rng.integers(0, 2**32, (vocabulary, vocabulary), dtype=np.uint32)
    rows = []
    for document in range(documents):
        context, seen = int(rng.integers(vocabulary)), {}
        for _ in range(length):
            rows.append((document, context, seen.get(context, int(rng.integers(vocabulary)))))
            offers = rng.integers(0, vocabulary, 3)
            following = int(offers[table[context, offers].argmax()])
            seen[context] = following
            context = following
    document, contexts, tokens = np.array(rows).T
    words = table[contexts, tokens]
    return contexts.astype(np.uint32)[:, np.newaxis], tokens.astype(np.uint32), words, document


def test_reading_marked_text_needs_the_first_occurrence_rule():
    rng = np.random.default_rng(14)
    results = {"sander": [], "v1": [], "v2": []}
    for _ in range(30):
        contexts, tokens, words, documents = read_marked_documents(rng)
        data = contexts, tokens, words
        results["sander"].append(run_sander_open(*data, documents, Gumbel()))
        results["v1"].append(run_textseal(*data, Gumbel(), dedup="v1"))
        results["v2"].append(run_textseal(*data, Gumbel()))
    for name in ("sander", "v1"):
        assert false_alarms([r.log10_p for r in results[name]], 0.01) <= limit(30, 0.01)
    assert np.median([r.log10_p for r in results["v2"]]) < -2.5


def test_arguments_are_checked():
    contexts, tokens, words = distinct_pairs(2, 4)
    with pytest.raises(UsageError, match=r"\[n, k\]"):
        run_sander_closed(contexts, tokens[1:], words, GREEN)
    with pytest.raises(UsageError, match="v1 or v2"):
        run_textseal(contexts, tokens, words, GREEN, dedup="none")
    with pytest.raises(UsageError, match="at least 10000"):
        run_pan(contexts, tokens, words, GREEN)
    with pytest.raises(UsageError, match="at least 1 "):
        run_pan(contexts, tokens, words, GREEN, group=0)
