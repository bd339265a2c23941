"""Kernels against torch's own operations: on a GPU, or on a CPU with TRITON_INTERPRET=1."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton", reason="Triton is not installed: it comes with torch's CUDA builds")

from provenance.embed.device import torch_batch, torch_coins, triton_coins  # noqa: E402
from provenance.embed.watermark import Watermark  # noqa: E402
from tests.conftest import make_keyring  # noqa: E402
from tests.embed.device import DEVICE  # noqa: E402

pytestmark = pytest.mark.skipif(
    not triton_coins.serves(torch.device(DEVICE)), reason="needs a GPU, or TRITON_INTERPRET=1"
)
WORDS = 1 << 32
INFINITY = float("inf")


@pytest.fixture
def without_kernels(monkeypatch):
    """A function that calls with torch's own operations."""

    def call(function, *arguments):
        with monkeypatch.context() as patched:
            patched.setattr(torch_coins, "kernels", None)
            return function(*arguments)

    return call


def _case(seed, rows, m, width):
    rng = np.random.default_rng(seed)
    return (
        torch_coins.pack_keys([rng.bytes(32) for _ in range(rows)], DEVICE),
        torch_coins.pack_contexts(torch.from_numpy(rng.integers(0, WORDS, (rows, width)))).to(
            DEVICE
        ),
        torch.from_numpy(rng.integers(0, WORDS, (rows, m))).to(DEVICE),
    )


@pytest.mark.parametrize(("rows", "m", "width"), [(1, 1, 1), (3, 64, 2), (5, 131, 3)])
def test_words_are_bit_equal(without_kernels, rows, m, width):
    keys, contexts, tokens = _case(m, rows, m, width)
    expected = without_kernels(torch_coins.words, keys, contexts, tokens)
    assert torch.equal(torch_coins.words(keys, contexts, tokens), expected)
    assert torch.equal(torch_coins.words(keys, contexts, tokens.int()), expected)
    across = tokens.t().contiguous().t()
    assert torch.equal(torch_coins.words(keys, contexts, across), expected)
    assert torch_coins.words(keys, contexts, tokens[:, :0]).shape == (rows, 0)


@pytest.mark.parametrize("size", [1, 16, 1023, 1024, 1025, 5000])
def test_rows_are_bit_equal(without_kernels, size):
    keys, contexts, _ = _case(size, 3, 1, 2)
    expected = without_kernels(torch_coins.row, keys, contexts, size)
    assert torch.equal(torch_coins.row(keys, contexts, size), expected)


@pytest.mark.parametrize("size", [5, 1024, 5000])
@pytest.mark.parametrize("kept", [1, 50, None])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_race_has_the_winner_of_the_scheme(size, kept, dtype):
    rows = 40 if DEVICE == "cuda" else 3
    keys, nonces, _ = _case(size, rows, 1, 2)
    generator = torch.Generator().manual_seed(size)
    scores = (4 * torch.randn(rows, size, generator=generator)).to(dtype).to(DEVICE)
    if kept is not None and kept < size:
        top = scores.topk(kept, dim=1)
        scores = torch.full_like(scores, -INFINITY).scatter(1, top.indices, top.values)
    coins = torch_coins.row(keys, nonces, size)
    zeros = torch.zeros(rows, dtype=torch.float64, device=DEVICE)
    expected = torch_coins.draw_gumbel(scores.double().softmax(1), coins, zeros)
    assert torch.equal(triton_coins.race(keys, nonces, scores), expected)
    across = scores.t().contiguous().t()
    assert torch.equal(triton_coins.race(keys, nonces, across), expected)
    assert torch.equal(triton_coins.race(keys, nonces, scores.double() - 1000), expected)


def test_a_row_that_is_no_distribution_has_no_winner():
    keys, nonces, _ = _case(0, 5, 1, 2)
    scores = torch.zeros(5, 3000, device=DEVICE)
    scores[0, 2999] = float("nan")
    scores[1, 1500] = INFINITY
    scores[2] = -INFINITY
    scores[3, :2999] = -INFINITY
    drawn = triton_coins.race(keys, nonces, scores).tolist()
    assert drawn[:4] == [-1, -1, -1, 2999]
    assert 0 <= drawn[4] < 3000


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_one_candidate_is_left(without_kernels, dtype):
    scores = torch.zeros(4, 2500, dtype=dtype, device=DEVICE)
    tokens = torch.tensor([0, 2499, -1, 1024], device=DEVICE)
    found = torch_batch.keep_only(scores, tokens)
    assert found.dtype == dtype
    finite = found.isfinite().nonzero().tolist()
    assert finite == [[0, 0], [1, 2499], [3, 1024]]
    assert found[2].isnan().all()
    assert torch.equal(
        found[[0, 1, 3]], without_kernels(torch_batch.keep_only, scores, tokens)[[0, 1, 3]]
    )


@pytest.mark.parametrize("width", [1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_keys_are_those_of_torchs_operations(tmp_path, tokenizer_path, width, dtype):
    """Repeats, short responses, padding, rows without a key; also a view into longer rows."""
    shares = {"global": 0.4, "week": 0.2, "capability": 0.2, "cohort": 0.1}
    ring = make_keyring(tmp_path, tokenizer_path, width=width, shares=shares)
    device = torch_batch.DeviceWatermark(ring, DEVICE)
    rng, rows, longest = np.random.default_rng(width), 60, 300
    ids = rng.integers(0, np.where(np.arange(rows) % 3, 90_000, 5)[:, None], (rows, longest))
    lengths = rng.integers(0, longest + 1, rows)
    lengths[:4] = 0, width - 1, width, longest
    labels = [None, {}, {"week": "2026-W17"}, {"week": "2026-W18", "cohort": "a"}]
    numbers = np.stack([device.key_numbers(labels[i % 4]) for i in range(rows)])
    wide = torch.from_numpy(np.concatenate([ids, ids], axis=1)).to(dtype).to(DEVICE)
    # a table of slots, as vLLM keeps it; longer than what is compared at a time, and a view of it
    table = np.zeros((rows + 3, 5100), dtype=np.int64)
    table[:, 1900 : 1900 + longest] = ids[np.arange(rows + 3) % rows]  # hold every context
    slots = rng.permutation(rows + 3)[:rows]
    slots[1::3] = np.arange(rows)[1::3]
    sizes = rng.integers(0, 5000, rows)
    sizes[1::3] = 5000  # so that the contexts of every third row stand there
    sizes[:4:3] = 0, width - 1
    prompts = torch_batch.DevicePrompts(
        torch.from_numpy(table).to(dtype).to(DEVICE)[:, :5000],
        torch.from_numpy(slots).to(DEVICE),
        torch.from_numpy(sizes).to(DEVICE),
    )
    arguments = (
        torch.from_numpy(lengths).to(DEVICE),
        torch.from_numpy(numbers).to(DEVICE),
        torch_coins.pack_keys([rng.bytes(32) for _ in range(rows)], DEVICE),
        prompts,
    )
    expected = device._find_keys(wide[:, :longest], *arguments, False)
    for responses in (wide[:, longest:], wide[:, :longest].contiguous(), wide.t().contiguous().t()):
        found = device._find_keys(responses[:, :longest], *arguments, True)
        for one, other in zip(found, expected, strict=True):
            assert torch.equal(one, other)
    assert 5 < int(expected[0].sum()) < rows - 5
    without = device._find_keys(wide[:, :longest], *arguments[:3], None, True)
    assert (without[0] & ~expected[0]).any()
    assert not (expected[0] & ~without[0]).any()


def test_draws_of_marked_rows_are_those_of_the_host(tmp_path, tokenizer_path):
    ring = make_keyring(tmp_path, tokenizer_path, shares={"global": 1.0}, values={})
    device, watermark = torch_batch.DeviceWatermark(ring, DEVICE), Watermark(ring)
    rng, rows, size = np.random.default_rng(5), 30, 300
    ids = rng.integers(0, 300, (rows, 20))
    scores = (3 * rng.normal(size=(rows, size))).astype(np.float32)
    draw = device.draw(
        torch.from_numpy(scores).to(DEVICE),
        torch.from_numpy(ids).to(DEVICE),
        torch.full((rows,), 20, device=DEVICE),
        torch.from_numpy(np.stack([device.key_numbers({})] * rows)).to(DEVICE),
        torch_coins.pack_keys([bytes(32)] * rows, DEVICE),
        prompts=torch_batch.DevicePrompts(
            torch.from_numpy(ids[:, 9:]).to(DEVICE),
            torch.arange(rows, device=DEVICE),
            torch.arange(rows, device=DEVICE) % 12,
        ),
    )
    assert draw.marked.any()
    for row in range(rows):
        p = np.exp(scores[row].astype(np.float64))
        prompt = watermark.read_prompt(ids[row, 9 : 9 + row % 12])
        response, everything = ids[row].astype(np.uint32), np.arange(size, dtype=np.uint32)
        host = watermark.draw({}, response, everything, p, prompt)
        assert bool(draw.marked[row]) == (host.key is not None)
        if host.key is not None:
            assert int(draw.tokens[row]) == host.token


def test_ordinary_draws_follow_the_distribution():
    """Coins of secret seeds: a chi-square at level 1e-6, of 4,000 rows on a GPU."""
    rows, p = 4000 if DEVICE == "cuda" else 200, np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    rng = np.random.default_rng(8)
    seeds = torch_coins.pack_keys([rng.bytes(32) for _ in range(rows)], DEVICE)
    nonces = torch_coins.pack_contexts(torch.full((rows, 1), 7)).to(DEVICE)
    scores = torch.full((rows, 400), -INFINITY, device=DEVICE)
    scores[:, 300:305] = torch.from_numpy(np.log(p)).float().to(DEVICE)
    counts = np.bincount(triton_coins.race(seeds, nonces, scores).cpu().numpy() - 300, minlength=5)
    assert ((counts - rows * p) ** 2 / (rows * p)).sum() < 33.4  # chi2.isf(1e-6, 4) = 33.38
