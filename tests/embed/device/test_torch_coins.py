"""Coins and draws in torch: the same bits and the same tokens as numpy, without touching a host."""

import random
from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from provenance.coins import words as coins  # noqa: E402
from provenance.embed.device import torch_coins  # noqa: E402
from provenance.errors import UsageError  # noqa: E402
from provenance.keys.schedule import Schedule  # noqa: E402
from provenance.marks.own.green import Green  # noqa: E402
from provenance.marks.own.gumbel import Gumbel  # noqa: E402
from provenance.marks.own.scheme import WORDS, draw_unmarked  # noqa: E402
from provenance.marks.own.tournament import Tournament  # noqa: E402
from tests.coins.test_coins import RFC_8439_A1  # noqa: E402
from tests.embed.device import DEVICE  # noqa: E402

SCHEMES = [Gumbel(), Green(), Green(0.5, 10.0), Tournament(4), Tournament(30)]
BITS = st.integers(0, WORDS - 1)
CUDA = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="needs a CUDA GPU; torch sees none on this machine"
)


def _unsigned(bits):
    return bits.cpu().numpy().view(np.uint32)


def _signed(words, device=DEVICE):
    return torch.from_numpy(np.ascontiguousarray(words).view(np.int32)).to(device)


def _case(seed, rows, m, width, largest=1 << 21):
    """Random keys, contexts and tokens: bytes [rows], uint32 [rows, width], uint32 [rows, m]."""
    rng = np.random.default_rng(seed)
    keys = [rng.bytes(32) for _ in range(rows)]
    contexts = rng.integers(0, largest, (rows, width), dtype=np.uint32)
    tokens = rng.integers(0, largest, (rows, m), dtype=np.uint32)
    tokens[0, :2] = 0, largest - 1
    return keys, contexts, tokens


def _expected(keys, contexts, tokens):
    """The CPU path row by row: uint32 [rows, m]."""
    return np.stack(
        [
            coins.words(key, np.tile(context, (ids.shape[0], 1)), ids)
            for key, context, ids in zip(keys, contexts, tokens, strict=True)
        ]
    )


def _tensors(keys, contexts, tokens, device=DEVICE):
    return (
        torch_coins.pack_keys(keys, device),
        torch_coins.pack_contexts(torch.from_numpy(contexts.astype(np.int64)).to(device)),
        torch.from_numpy(tokens.astype(np.int64)).to(device),
    )


# --- coins ------------------------------------------------------------------------------------


@pytest.mark.parametrize(("key", "counter", "nonce", "block"), RFC_8439_A1)
def test_words_and_row_equal_the_vectors_of_the_rfc(key, counter, nonce, block):
    context = np.frombuffer(nonce, dtype="<u4").astype(np.uint32)[None]
    expected = np.frombuffer(bytes.fromhex(block), dtype="<u4").tolist()
    tokens = np.arange(16 * counter, 16 * counter + 16)[None]
    keys, contexts, ids = _tensors([key], context, tokens)
    assert _unsigned(torch_coins.words(keys, contexts, ids))[0].tolist() == expected
    row = torch_coins.row(keys, contexts, 16 * counter + 16)
    assert _unsigned(row)[0, -16:].tolist() == expected


@pytest.mark.parametrize("width", [1, 2, 3])
def test_words_equal_the_cpu_path_for_thousands_of_random_triples(width):
    keys, contexts, tokens = _case(width, 40, 120, width)
    packed, nonces, ids = _tensors(keys, contexts, tokens)
    expected = _expected(keys, contexts, tokens)
    assert np.array_equal(_unsigned(torch_coins.words(packed, nonces, ids)), expected)
    assert np.array_equal(
        _unsigned(torch_coins.words(packed, nonces, ids.to(torch.int32))), expected
    )


@settings(max_examples=30, deadline=None)
@given(
    key=st.binary(min_size=32, max_size=32),
    context=st.lists(BITS, min_size=1, max_size=3),
    tokens=st.lists(BITS, min_size=1, max_size=20),
)
def test_any_32_bits_are_read_as_unsigned(key, context, tokens):
    """Also ids beyond every vocabulary, given as int64 or as int32 bit patterns."""
    contexts, ids = np.array([context], np.uint32), np.array([tokens], np.uint32)
    expected = _expected([key], contexts, ids)
    packed, nonces, wide = _tensors([key], contexts, ids)
    assert np.array_equal(_unsigned(torch_coins.words(packed, nonces, wide)), expected)
    assert np.array_equal(_unsigned(torch_coins.words(packed, nonces, _signed(ids))), expected)


@pytest.mark.parametrize("size", [1, 15, 16, 17, 400, 32_000])
def test_row_equals_openssl(size):
    keys, contexts, _ = _case(size, 3, 2, 2)
    packed, nonces, _ = _tensors(keys, contexts, np.zeros((3, 1)))
    expected = np.stack([coins.row(k, c, size) for k, c in zip(keys, contexts, strict=True)])
    assert np.array_equal(_unsigned(torch_coins.row(packed, nonces, size)), expected)


def test_rows_do_not_depend_on_their_neighbours_or_on_memory_layout():
    keys, contexts, tokens = _case(3, 6, 30, 2)
    packed, nonces, ids = _tensors(keys, contexts, tokens)
    whole = torch_coins.words(packed, nonces, ids)
    assert torch.equal(torch_coins.words(packed[2:3], nonces[2:3], ids[2:3]), whole[2:3])
    assert torch.equal(torch_coins.words(packed, nonces, ids.flip(1)), whole.flip(1))
    assert torch.equal(
        torch_coins.words(packed, nonces.t().contiguous().t(), ids.t().contiguous().t()), whole
    )
    assert torch_coins.words(packed[:0], nonces[:0], ids[:0]).shape == (0, 30)
    assert torch_coins.words(packed, nonces, ids[:, :0]).shape == (6, 0)


def test_slots_equal_the_keyrings(keyring):
    contexts = np.random.default_rng(5).integers(0, 400, (3000, 2), dtype=np.uint32)
    selector = torch_coins.pack_keys([keyring.key("selector", "").reveal()], DEVICE)
    ends = torch.from_numpy(keyring.schedule.ends.astype(np.int64)).to(DEVICE)
    nonces = torch_coins.pack_contexts(torch.from_numpy(contexts.astype(np.int64)).to(DEVICE))
    found = torch_coins.slots(selector, nonces, ends)
    assert np.array_equal(found.cpu().numpy(), keyring.slots_of(contexts))
    assert len(found.unique()) == len(keyring.schedule.slots)


# --- draws ------------------------------------------------------------------------------------


def _numpy_draws(scheme, probabilities, words, uniforms):
    rows = zip(probabilities.astype(np.float64), words, uniforms, strict=True)
    return np.array([scheme.draw(p, w, float(u)) for p, w, u in rows])


def _torch_draws(scheme, probabilities, words, uniforms, device=DEVICE):
    arguments = torch.from_numpy(probabilities), _signed(words), torch.from_numpy(uniforms)
    return torch_coins.choose(scheme.code, *(t.to(device) for t in arguments)).cpu().numpy()


def _softmax(logits):
    p = np.exp(logits - logits.max(axis=1, keepdims=True))
    return p / p.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
@pytest.mark.parametrize(("m", "spread"), [(1, 1.0), (2, 1.0), (50, 2.0), (50, 40.0), (3000, 3.0)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_draws_equal_the_schemes_on_random_rows(scheme, m, spread, dtype):
    """Rounding decides at most one draw in 7e6; no bound for 30 layers (fixed seeds agree)."""
    rng = np.random.default_rng(m)
    p = _softmax(spread * rng.standard_normal((200, m))).astype(dtype)
    p[:, rng.random(m) < 0.2] *= rng.random() > 0.5  # some candidates are padding
    p[:, 0] += np.finfo(np.float32).tiny
    words = rng.integers(0, WORDS, (200, m), dtype=np.uint32)
    uniforms = rng.random(200)
    expected = _numpy_draws(scheme, p, words, uniforms)
    found = _torch_draws(scheme, p, words, uniforms)
    assert np.array_equal(found, expected)
    assert (p[np.arange(200), found] > 0).all()


EXTREME_PROBABILITIES = [
    [0.0, 1.0, 0.0, 0.0],
    [5e-324, 0.0, 0.0, 0.0],
    [5e-324, 5e-324, 0.0, 5e-324],
    [0.0, 1e-310, 5e-324, 0.0],
    [0.25, 0.25, 0.25, 0.25],
    [1.0, 1e-30, 0.0, 1e-300],
    [1e300, 1e300, 1e-300, 0.0],
    [1.0, 1.0 - 2**-53, 2**-53, 0.0],
]
EXTREME_WORDS = [
    [WORDS - 1] * 4,
    [WORDS - 1, WORDS - 2, 0, 1],
    [1 << 31, (1 << 31) - 1, (1 << 31) + 1, 0],
    [1 << 30, (1 << 30) - 1, 7, WORDS - 1],
]
EXTREME_UNIFORMS = [0.0, 2**-53, 0.1, 0.5 + 2**-53, 1 - 2**-53]


@pytest.mark.parametrize("scheme", SCHEMES, ids=repr)
def test_draws_equal_the_schemes_on_extreme_rows(scheme):
    cases = list(product(EXTREME_PROBABILITIES, EXTREME_WORDS, EXTREME_UNIFORMS))
    p = np.array([case[0] for case in cases])
    words = np.array([case[1] for case in cases], dtype=np.uint32)
    uniforms = np.array([case[2] for case in cases])
    expected = _numpy_draws(scheme, p, words, uniforms)
    assert np.array_equal(_torch_draws(scheme, p, words, uniforms), expected)


@settings(max_examples=60, deadline=None)
@given(data=st.data(), m=st.integers(1, 12), scheme=st.sampled_from(SCHEMES[:4]))
def test_draws_equal_the_schemes_or_the_uniform_lies_on_a_rounding(data, m, scheme):
    weight = st.floats(0, 1e6, allow_subnormal=True)
    p = np.array([data.draw(st.lists(weight, min_size=m, max_size=m).filter(any))])
    words = np.array([data.draw(st.lists(BITS, min_size=m, max_size=m))], dtype=np.uint32)
    uniform = data.draw(st.floats(0, 1, exclude_max=True))
    found = int(_torch_draws(scheme, p, words, np.array([uniform]))[0])
    assert p[0, found] > 0
    near = {uniform, max(uniform - 1e-11, 0.0), min(uniform + 1e-11, 1 - 2**-53)}
    allowed = {int(_numpy_draws(scheme, p, words, np.array([u]))[0]) for u in near}
    assert found in allowed
    ordinary = torch_coins.draw_unmarked(
        torch.from_numpy(p).to(DEVICE),
        torch.tensor([uniform], dtype=torch.float64, device=DEVICE),
    )
    assert int(ordinary[0]) == draw_unmarked(p[0], uniform)


def test_uniforms_are_exact_where_float32_would_not_be():
    """The largest word must not become u = 1, and neighbours must stay apart."""
    words = np.array([[WORDS - 1, WORDS - 2]] * 2, dtype=np.uint32)
    words[1] = words[1, ::-1]
    p = np.full((2, 2), 0.5, dtype=np.float32)
    assert _torch_draws(Gumbel(), p, words, np.zeros(2)).tolist() == [0, 1]


def test_a_scan_that_is_not_monotone_draws_no_candidate_of_probability_zero(monkeypatch):
    """A parallel scan may exceed the target one ulp early, on a candidate of weight 0."""
    scan = torch.tensor([[0.5, 0.5 + 2**-53, 0.5, 1.0]], dtype=torch.float64)
    monkeypatch.setattr(torch.Tensor, "cumsum", lambda self, dim: scan)
    weights = torch.tensor([[0.5, 0.0, 0.0, 0.5]], dtype=torch.float64)
    drawn = torch_coins._draw_rows(weights, torch.tensor([0.5], dtype=torch.float64))
    assert drawn.tolist() == [3]


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_unusable_probabilities_still_give_an_index_inside_the_row(value):
    """On the device nothing can be refused without waiting; an index outside would be worse."""
    p, words = np.full((3, 5), value), np.zeros((3, 5), dtype=np.uint32)
    for scheme in SCHEMES:
        drawn = _torch_draws(scheme, p, words, np.array([0.0, 0.5, 0.999]))
        assert ((drawn >= 0) & (drawn < 5)).all()


# --- a step: compiled, without a host, without a global generator -----------------------------


def _step(logits, keys, contexts, uniforms, selector, ends):
    """What an adapter does in one step: survivors, coins, a draw, and who is marked at all.

    Returns int64 [schemes, rows].
    """
    survivors = logits.topk(20, dim=1)
    p = survivors.values.double().softmax(dim=1)
    nonces = torch_coins.pack_contexts(contexts)
    coin = torch_coins.words(keys, nonces, survivors.indices)
    marked = torch_coins.slots(selector, nonces, ends) > 0
    ordinary = torch_coins.draw_unmarked(p, uniforms)
    tokens = []
    for scheme in SCHEMES[:4]:
        drawn = torch_coins.choose(scheme.code, p, coin, uniforms)
        index = torch.where(marked, drawn, ordinary)
        tokens.append(survivors.indices.gather(1, index.unsqueeze(1)).squeeze(1))
    return torch.stack(tokens)


def _step_arguments(rows=4, vocabulary=300):
    generator = torch.Generator().manual_seed(1)
    keys, contexts, _ = _case(11, rows, 2, 2, vocabulary)
    return (
        torch.randn((rows, vocabulary), generator=generator),
        torch_coins.pack_keys(keys),
        torch.from_numpy(contexts.astype(np.int64)),
        torch.rand(rows, generator=generator, dtype=torch.float64),
        torch_coins.pack_keys([bytes(range(32))]),
        torch.from_numpy(Schedule.from_shares({"global": 0.5}).ends.astype(np.int64)),
    )


class _NoHost(TorchDispatchMode):
    """Refuses what makes the host wait for a device, or moves data between the two."""

    FORBIDDEN = ("item", "_local_scalar_dense", "nonzero", "masked_select", "is_nonzero", "equal")

    def __init__(self, device):
        super().__init__()
        self.device = device

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in self.FORBIDDEN, f"{name} waits for the device"
        out = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                assert tensor.device.type == self.device, f"{name} leaves the device"
        return out


def test_a_step_asks_the_device_nothing_and_copies_nothing_to_the_host():
    """Meta tensors hold no data: whatever looked at a value would fail."""
    arguments = [tensor.to("meta") for tensor in _step_arguments()]
    with _NoHost("meta"):
        tokens = _step(*arguments)
        row = torch_coins.row(arguments[1], torch_coins.pack_contexts(arguments[2]), 1000)
    assert (tokens.device.type, tokens.dtype, tokens.shape) == ("meta", torch.int64, (4, 4))
    assert (row.device.type, row.dtype, row.shape) == ("meta", torch.int32, (4, 1000))
    with _NoHost("meta"), pytest.raises(AssertionError, match="waits"):
        torch.ones(2, device="meta").nonzero()


def test_no_global_generator_is_touched():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    _step(*_step_arguments())
    assert torch.equal(before[0], torch.get_rng_state())
    assert np.array_equal(before[1], np.random.get_state()[1])
    assert before[2] == random.getstate()


@pytest.fixture
def _compiler():
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore")  # dynamo's own deprecations
@pytest.mark.usefixtures("_compiler")
def test_a_compiled_step_is_one_graph_and_draws_the_same_tokens():
    """fullgraph=True: any question to the device, and any call into numpy, would break the graph.

    inductor needs a C++ compiler and minutes: benchmarks/torch_coins.py --compile inductor.
    """
    arguments = _step_arguments()
    compiled = torch.compile(_step, backend="aot_eager", fullgraph=True)
    assert torch.equal(compiled(*arguments), _step(*arguments))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("_compiler")
def test_compiled_words_and_rows_equal_the_cpu_paths_for_several_shapes():
    compiled = torch.compile(torch_coins.words, backend="eager", fullgraph=True)
    for rows, m, width in ((3, 20, 2), (1, 33, 1)):
        keys, contexts, tokens = _case(rows, rows, m, width)
        found = compiled(*_tensors(keys, contexts, tokens))
        assert np.array_equal(_unsigned(found), _expected(keys, contexts, tokens))
    row = torch.compile(torch_coins.row, backend="eager", fullgraph=True)
    packed, nonces, _ = _tensors(keys, contexts, tokens)
    assert np.array_equal(_unsigned(row(packed, nonces, 401))[0], coins.row(*keys, *contexts, 401))


@CUDA
@pytest.mark.filterwarnings("ignore")  # dynamo's own deprecations
@pytest.mark.usefixtures("_compiler")
@pytest.mark.parametrize(
    ("backend", "kernels"),
    [
        ("", True),
        ("", False),
        ("inductor", True),
        pytest.param("inductor", False, marks=pytest.mark.slow),  # minutes
    ],
)
def test_a_gpu_has_the_same_bits_and_draws_and_never_waits(monkeypatch, backend, kernels):
    """By Triton kernels, and by torch's own operations."""
    if not kernels:
        monkeypatch.setattr(torch_coins, "kernels", None)
    keys, contexts, tokens = _case(21, 40, 120, 2)
    step = torch.compile(_step, backend=backend, fullgraph=True) if backend else _step
    words = torch.compile(torch_coins.words, fullgraph=True) if backend else torch_coins.words
    on_device = _tensors(keys, contexts, tokens, "cuda")
    arguments = [tensor.to("cuda") for tensor in _step_arguments()]
    words(*on_device), step(*arguments)
    torch.cuda.set_sync_debug_mode("error")
    try:
        found, drawn = words(*on_device), step(*arguments)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert np.array_equal(_unsigned(found), _expected(keys, contexts, tokens))
    assert torch.equal(drawn.cpu(), _step(*_step_arguments()))


# --- what is refused --------------------------------------------------------------------------

_KEYS, _NONCES = torch.zeros((2, 8), dtype=torch.int32), torch.zeros((2, 3), dtype=torch.int32)
_TOKENS = torch.zeros((2, 5), dtype=torch.int64)
_HALVES, _UNIFORMS = torch.full((2, 5), 0.5), torch.zeros(2, dtype=torch.float64)
_COINS = _TOKENS.int()


@pytest.mark.parametrize(
    "call",
    [
        lambda: torch_coins.pack_keys([b"x" * 31]),
        lambda: torch_coins.pack_contexts(torch.zeros((2, 4), dtype=torch.int64)),
        lambda: torch_coins.words(_KEYS[:1], _NONCES, _TOKENS),
        lambda: torch_coins.words(_KEYS, _NONCES[:, :2], _TOKENS),
        lambda: torch_coins.words(_KEYS, _NONCES, _TOKENS.double()),
        lambda: torch_coins.row(_KEYS, _NONCES, 0),
        lambda: torch_coins.draw_gumbel(_HALVES, _TOKENS, _UNIFORMS),
        lambda: torch_coins.draw_gumbel(_HALVES[:, :0], _COINS[:, :0], _UNIFORMS),
        lambda: torch_coins.choose(Tournament(4).code, _HALVES, _COINS[:, :1], _UNIFORMS),
        lambda: torch_coins.draw_unmarked(_HALVES, _UNIFORMS.float()),
    ],
)
def test_arguments_outside_the_domain_are_refused_without_showing_a_key(call):
    with pytest.raises(UsageError) as caught:
        call()
    assert "xxxx" not in str(caught.value)
    assert "\n" not in str(caught.value)
