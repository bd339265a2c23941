"""The step on the device equals `Watermark` token by token, and marks the same rows."""

import json
from pathlib import Path

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from provenance.coins.words import words  # noqa: E402
from provenance.embed.device.torch_batch import (  # noqa: E402
    DevicePrompts,
    DeviceWatermark,
    last_contexts,
    scale_logits,
)
from provenance.embed.device.torch_coins import has_kernels, pack_keys  # noqa: E402
from provenance.embed.watermark import Watermark  # noqa: E402
from provenance.errors import UsageError  # noqa: E402
from provenance.keys.keyring import SchemeSpecification  # noqa: E402
from tests.conftest import make_keyring  # noqa: E402
from tests.embed.device import DEVICE  # noqa: E402
from tests.embed.vllm_fake import apply_top_k_top_p  # noqa: E402

ROWS, SIZE = 24, 300
WHOLE = has_kernels(torch.device(DEVICE))
"""Kernels look at the whole vocabulary, whatever `survivors` says."""
LABELS = [
    {},
    {"week": "2026-W17"},
    {"week": "2026-W18", "cohort": "a"},
    {"capability": "code"},
    {"elsewhere": "x"},
]
SCHEMES = [
    SchemeSpecification("gumbel"),
    SchemeSpecification("green", {"gamma": 0.25, "delta": 2.0}),
    SchemeSpecification("tournament", {"layers": 4}),
]


@pytest.fixture(scope="module")
def dense(tmp_path_factory, tokenizer_path):
    """Every context is marked under the global key."""
    folder = tmp_path_factory.mktemp("dense")
    return make_keyring(folder, tokenizer_path, shares={"global": 1.0}, values={})


def _batch(seed, longest=30):
    """Every other row has a short alphabet, which makes contexts repeat."""
    generator = np.random.default_rng(seed)
    lengths = generator.integers(0, longest + 1, ROWS)
    alphabet = np.where(np.arange(ROWS) % 2, 7, 200)[:, np.newaxis]
    responses = generator.integers(0, alphabet, (ROWS, longest)).astype(np.uint32)
    labels = [LABELS[i % len(LABELS)] for i in range(ROWS)]
    logits = torch.from_numpy(generator.normal(0, 3, (ROWS, SIZE)).astype(np.float32))
    logits[torch.from_numpy(generator.random((ROWS, SIZE)) < 0.5)] = float("-inf")
    return labels, responses, lengths, logits


def _make_prompts(responses, lengths):
    """One a row: every third the row's own ids so far, else ids of its neighbour, or none."""
    sizes = np.where(np.arange(ROWS) % 3, lengths // 2, lengths)
    ids = np.where(np.arange(ROWS)[:, np.newaxis] % 3, np.roll(responses, 1, axis=0), responses)
    return [row[:size] for row, size in zip(ids, sizes, strict=True)]


def _on_device(prompts):
    padded = np.zeros((len(prompts), max(map(len, prompts))), dtype=np.int32)
    for row, ids in enumerate(prompts):
        padded[row, : len(ids)] = ids
    return DevicePrompts(
        torch.from_numpy(padded).to(DEVICE),
        torch.arange(len(prompts), device=DEVICE),
        torch.tensor([len(ids) for ids in prompts], device=DEVICE),
    )


def _draw(device, labels, responses, lengths, logits, seeds, survivors=None, prompts=None):
    prompts = [np.zeros(1)] * len(labels) if prompts is None else prompts
    numbers = np.stack([device.key_numbers(mapping) for mapping in labels])
    draw = device.draw(
        logits.to(DEVICE),
        torch.from_numpy(responses.astype(np.int32)).to(DEVICE),
        torch.from_numpy(lengths).to(DEVICE),
        torch.from_numpy(numbers).to(DEVICE),
        pack_keys(seeds, DEVICE),
        survivors,
        _on_device(prompts),
    )
    return draw.tokens.cpu().numpy(), draw.marked.cpu().numpy()


def _uniform(seed, position):
    """The two words of (seed, position) as Python integers."""
    context = np.full((2, 1), position, dtype=np.uint32)
    high, low = words(seed, context, np.array([0, 1], dtype=np.uint32)).tolist()
    return ((high << 21) | (low >> 11)) / 2**53


class _Fixed(np.random.Generator):
    def __init__(self, value):
        super().__init__(np.random.PCG64(0))
        self._value = value

    def random(self, size=None):
        return self._value if size is None else np.full(size, self._value)


@pytest.mark.parametrize("scheme", SCHEMES, ids=lambda scheme: scheme.name)
@pytest.mark.parametrize("survivors", [None, 200])
@pytest.mark.parametrize("width", [1, 2, 3])
def test_tokens_and_marks_equal_those_of_the_watermark(
    tmp_path, tokenizer_path, scheme, survivors, width
):
    shares = {"global": 0.4, "week": 0.2, "capability": 0.2, "cohort": 0.1}
    ring = make_keyring(tmp_path, tokenizer_path, scheme=scheme, width=width, shares=shares)
    device = DeviceWatermark(ring, DEVICE)
    compared = 0
    for seed in range(4):
        labels, responses, lengths, logits = _batch(seed)
        seeds = [bytes([row]) * 32 for row in range(ROWS)]
        prompts = _make_prompts(responses, lengths)
        tokens, marked = _draw(
            device, labels, responses, lengths, logits, seeds, survivors, prompts
        )
        for row in range(ROWS):
            response = responses[row, : lengths[row]]
            fixed = _Fixed(_uniform(seeds[row], int(lengths[row])))
            candidates = np.flatnonzero(np.isfinite(logits[row].numpy())).astype(np.uint32)
            if survivors is not None and not WHOLE:  # a uniform walks through them in this order
                candidates = logits[row].topk(len(candidates)).indices.numpy().astype(np.uint32)
            kept = logits[row].numpy()[candidates].astype(np.float64)
            watermark = Watermark(ring, fixed)
            prompt, p = watermark.read_prompt(prompts[row]), np.exp(kept - kept.max())
            draw = watermark.draw(labels[row], response, candidates, p, prompt)
            assert marked[row] == (draw.key is not None)
            if marked[row]:
                assert tokens[row] == draw.token
                compared += 1
    assert compared > 5


@settings(max_examples=60, deadline=None)
@given(
    st.integers(1, 3),
    st.lists(st.lists(st.integers(0, 2), max_size=12), min_size=1, max_size=6),
)
def test_contexts_and_repeats_against_plain_python(width, rows):
    longest = max(max(map(len, rows)), width + 1)
    padded = torch.tensor([row + [9] * (longest - len(row)) for row in rows])
    lengths = torch.tensor([len(row) for row in rows])
    contexts, fresh = last_contexts(padded, lengths, width)
    for i, row in enumerate(rows):
        if len(row) < width:
            assert not fresh[i]
            continue
        context = row[-width:]
        earlier = [row[j : j + width] for j in range(len(row) - width)]
        assert contexts[i].tolist() == context
        assert bool(fresh[i]) == (context not in earlier)


def test_without_the_prompts_nothing_is_drawn(dense, tmp_path, tokenizer_path):
    old = make_keyring(tmp_path, tokenizer_path, reads_prompt=False)
    _, responses, lengths, logits = _batch(0)
    tensors = [torch.from_numpy(part.astype(np.int64)) for part in (responses, lengths)]
    for ring in (dense, old):
        device = DeviceWatermark(ring, "cpu")
        numbers = np.stack([device.key_numbers({})] * ROWS)
        arguments = logits, *tensors, torch.from_numpy(numbers), pack_keys([bytes(32)] * ROWS)
        if ring is old:
            device.draw(*arguments)
        else:
            with pytest.raises(UsageError, match="prompts must be given"):
                device.draw(*arguments)


def test_rows_with_more_candidates_than_looked_at_are_left_alone(dense):
    """Dropping candidates would change the distribution, so the row is not drawn at all.

    Kernels drop none.
    """
    device = DeviceWatermark(dense, DEVICE)
    labels, responses, lengths, logits = _batch(0)
    seeds = [bytes(32)] * ROWS
    _, marked = _draw(device, labels, responses, lengths, logits, seeds, None)
    tokens, few = _draw(device, labels, responses, lengths, logits, seeds, 3)
    assert marked.any()
    if WHOLE:
        assert (few == marked).all()
    else:
        assert not few.any()
        assert (tokens == -1).all()


def test_a_row_without_a_distribution_is_left_to_the_sampler(dense):
    device = DeviceWatermark(dense, DEVICE)
    labels, responses, lengths, logits = _batch(0)
    seeds = [bytes(32)] * ROWS
    assert _draw(device, labels, responses, lengths, logits, seeds)[1].any()
    for value in (float("nan"), float("inf")):
        broken = logits.clone()
        broken[:, 5] = value
        assert not _draw(device, labels, responses, lengths, broken, seeds)[1].any()
    nothing = torch.full_like(logits, float("-inf"))
    assert not _draw(device, labels, responses, lengths, nothing, seeds)[1].any()


def test_requests_that_do_not_ask_have_no_key(keyring):
    device = DeviceWatermark(keyring, "cpu")
    assert (device.key_numbers(None) == -1).all()
    asked = device.key_numbers({"week": "1999-W01"})
    assert asked[keyring.schedule.names.index("global")] == 0
    assert asked[keyring.schedule.names.index("control")] == -1
    assert (asked >= 0).sum() == 1
    assert keyring.key("global", "").reveal().hex() not in repr(device)


def test_scaled_logits_against_the_definition():
    generator = np.random.default_rng(3)
    logits = generator.normal(0, 2, (5, 40)).astype(np.float32)
    temperature = np.array([0.5, 1, 1.5, 0.7, 1], dtype=np.float32)
    min_p = np.array([0, 0.1, 0.3, 1, 0], dtype=np.float32)
    found = scale_logits(*map(torch.from_numpy, (logits, temperature, min_p))).numpy()
    scaled = logits / temperature[:, None]
    p = np.exp(scaled.astype(np.float64))
    p /= p.sum(axis=1, keepdims=True)
    kept = p >= min_p[:, None].astype(np.float64) * p.max(axis=1, keepdims=True) * (1 - 1e-6)
    assert np.array_equal(np.isfinite(found), kept)
    assert np.array_equal(found[kept], scaled[kept])


def test_no_step_waits_for_the_device(keyring):
    """On meta tensors an operation that reads a value, or copies to the host, raises."""
    device = DeviceWatermark(keyring, "cpu")
    for name in ("_keys", "_selector", "_ends"):
        setattr(device, name, getattr(device, name).to("meta"))
    slots = len(keyring.schedule.slots)
    for survivors in (None, 50):
        draw = device.draw(
            torch.empty(4, SIZE, device="meta"),
            torch.empty(4, 20, dtype=torch.int32, device="meta"),
            torch.empty(4, dtype=torch.int64, device="meta"),
            torch.empty(4, slots, dtype=torch.int64, device="meta"),
            torch.empty(4, 8, dtype=torch.int32, device="meta"),
            survivors,
            DevicePrompts(
                torch.empty(9, 50, dtype=torch.int32, device="meta"),
                torch.empty(4, dtype=torch.int64, device="meta"),
                torch.empty(4, dtype=torch.int64, device="meta"),
            ),
        )
        assert draw.tokens.shape == draw.marked.shape == (4,)


VECTORS = Path(__file__).parents[3] / "fixtures" / "serving" / "vllm-final-probabilities.json"


@pytest.mark.parametrize("vector", json.loads(VECTORS.read_text())["vectors"], ids=str)
def test_final_probabilities_are_those_that_vllm_recorded(vector):
    """Temperature and min-p of the device step, top-k and top-p of the fake, against vLLM's own."""
    limits = vector["config"]
    logits = torch.tensor(vector["logits"], dtype=torch.float32)
    rows, size = logits.shape
    scaled = scale_logits(
        logits,
        torch.full((rows,), limits.get("temperature", 1.0)),
        torch.full((rows,), limits.get("min_p", 0.0)),
    )
    final = apply_top_k_top_p(
        scaled,
        torch.full((rows,), limits.get("top_k", size)),
        torch.full((rows,), limits.get("top_p", 1.0)),
    )
    found = final.double().softmax(dim=1)
    expected = torch.tensor(vector["probabilities"], dtype=torch.float64)
    assert torch.equal(found > 0, expected > 0)
    assert float((found - expected).abs().max()) < 1e-6
