"""How coins choose: every copy of a draw against its definition, written out in plain Python."""

import math

import numpy as np
import pytest

from provenance.marks.own.draws import choose, choose_by_race
from provenance.marks.own.green import Green
from provenance.marks.own.gumbel import Gumbel
from provenance.marks.own.tournament import Tournament

WORDS = 1 << 32
DRAWN = [Gumbel(), Green(0.25, 2.0), Green(0.5, 10.0), Tournament(4), Tournament(1)]


def _draw_plainly(scheme, p, words, uniform):
    """The definition of the scheme's draw, candidate by candidate."""
    p, words = [float(one) for one in p], [int(word) for word in words]
    if isinstance(scheme, Gumbel):
        arrivals = [
            -math.log((word + 0.5) / WORDS) / one if one > 0 else math.inf
            for one, word in zip(p, words, strict=True)
        ]
        return arrivals.index(min(arrivals))
    if isinstance(scheme, Green):
        factor = math.exp(scheme.delta)
        p = [
            one * factor if word < scheme.threshold else one
            for one, word in zip(p, words, strict=True)
        ]
    else:
        total = sum(p)
        p = [one / total for one in p]
        for layer in range(scheme.layers):
            g = [(word >> (31 - layer)) & 1 for word in words]
            mean = sum(one * bit for one, bit in zip(p, g, strict=True))
            p = [one * (1 + bit - mean) for one, bit in zip(p, g, strict=True)]
    target, cumulative = uniform * sum(p), 0.0
    for i, one in enumerate(p):
        cumulative += one
        if cumulative > target and one > 0:
            return i
    return max(i for i, one in enumerate(p) if one > 0)


def _make_cases():
    """(probabilities, words, uniform): random, and extreme words, ties, zeros, one candidate."""
    rng = np.random.default_rng(0)
    for m in (1, 2, 5, 33, 64, 200):
        for spread in (0.1, 1, 6):
            for _ in range(6):
                p = np.exp(spread * rng.standard_normal(m))
                p[rng.random(m) < 0.3] = 0
                p[rng.integers(m)] = 1.0
                yield p, rng.integers(0, WORDS, m, dtype=np.uint32), float(rng.random())
    for word in (0, 1, 1 << 30, 1 << 31, WORDS - 1):
        for p in ([1.0, 1.0, 1.0], [1e-9, 1.0, 0.0], [0.0, 0.0, 3.0]):
            for uniform in (0.0, 0.4, 1 - 2**-53):
                yield np.array(p), np.full(3, word, dtype=np.uint32), uniform
                yield np.array(p), np.array([word, 7, WORDS - 1], dtype=np.uint32), uniform


CASES = list(_make_cases())


@pytest.mark.parametrize("scheme", DRAWN, ids=repr)
def test_the_hosts_draws_are_the_definition(scheme):
    for p, words, uniform in CASES:
        expected = _draw_plainly(scheme, p, words, uniform)
        assert scheme.draw(p, words, uniform) == expected
        assert choose(*scheme.code, p.copy(), words, uniform) == expected


def test_the_draw_from_logits_is_that_of_gumbel():
    """`choose_by_race` reads float32 logits: the probabilities are theirs."""
    for p, words, _ in CASES:
        with np.errstate(divide="ignore"):
            scores = np.log(p).astype(np.float32)
        p = np.exp(scores.astype(np.float64))
        assert choose_by_race(scores, words) == _draw_plainly(Gumbel(), p, words, 0.0)


@pytest.mark.parametrize("scheme", DRAWN, ids=repr)
def test_torchs_draws_are_the_definition(scheme):
    torch = pytest.importorskip("torch")
    from provenance.embed.device.torch_coins import choose as choose_rows
    from tests.embed.device import DEVICE

    for p, words, uniform in CASES:
        drawn = choose_rows(
            scheme.code,
            torch.from_numpy(p[np.newaxis]).to(DEVICE),
            torch.from_numpy(words.view(np.int32)[np.newaxis]).to(DEVICE),
            torch.tensor([uniform], dtype=torch.float64, device=DEVICE),
        )
        assert int(drawn) == _draw_plainly(scheme, p, words, uniform)


def test_the_kernels_race_is_the_definition():
    """Its coins are its own: those of a key and a nonce."""
    torch = pytest.importorskip("torch")
    from provenance.embed.device import torch_coins
    from tests.embed.device import DEVICE

    if not torch_coins.has_kernels(torch.device(DEVICE)):
        pytest.skip("the kernels need a GPU, or TRITON_INTERPRET=1")
    rng = np.random.default_rng(1)
    for size in (1, 7, 64, 1200):
        keys = torch_coins.pack_keys([rng.bytes(32)], DEVICE)
        nonces = torch_coins.pack_contexts(torch.tensor([[3, 4]], device=DEVICE))
        words = torch_coins.row(keys, nonces, size).cpu().numpy().view(np.uint32)[0]
        scores = (3 * rng.standard_normal(size)).astype(np.float32)
        scores[rng.random(size) < 0.4] = -np.inf
        scores[rng.integers(size)] = 0.0
        drawn = torch_coins.kernels.race(keys, nonces, torch.from_numpy(scores[None]).to(DEVICE))
        p = np.exp(scores.astype(np.float64))
        assert int(drawn) == _draw_plainly(Gumbel(), p, words, 0.0)
