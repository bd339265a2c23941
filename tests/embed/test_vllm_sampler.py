"""The processors inside vLLM's own sampler: what is drawn follows what vLLM would have drawn from.

Needs vLLM: its sampler is the reference. The final probabilities are those that vLLM itself reports
(`processed_logprobs`) for the same logits and parameters without the processor.
"""

import warnings

import numpy as np
import pytest
from scipy import stats

torch = pytest.importorskip("torch")
with warnings.catch_warnings():  # vLLM's own imports warn
    warnings.simplefilter("ignore")
    pytest.importorskip("vllm", reason="vLLM is not installed: docs/serving.md says how")
    from vllm import SamplingParams
    from vllm.v1.sample.logits_processor import BatchUpdate, LogitsProcessors
    from vllm.v1.sample.logits_processor.builtin import MinPLogitsProcessor
    from vllm.v1.sample.metadata import SamplingMetadata
    from vllm.v1.sample.ops.topk_topp_sampler import apply_top_k_top_p
    from vllm.v1.sample.sampler import Sampler

    from provenance.embed.vllm.v1 import WatermarkLogitsProcessor

from types import SimpleNamespace  # noqa: E402

from provenance.embed.device.torch_batch import scale_logits  # noqa: E402
from provenance.embed.vllm.requests import KEYRING_VARIABLE, LABELS_FIELD  # noqa: E402
from provenance.embed.watermark import Watermark  # noqa: E402
from provenance.keys.keyring import SchemeSpecification  # noqa: E402
from tests.conftest import make_keyring  # noqa: E402

ROWS = 2000
CPU = torch.device("cpu")
LIMITS = {
    "temperature": {"temperature": 0.7},
    "top-k": {"temperature": 0.9, "top_k": 7},
    "top-p": {"temperature": 1.3, "top_p": 0.8},
    "min-p": {"min_p": 0.1},
    "everything": {"temperature": 0.8, "top_k": 12, "top_p": 0.9, "min_p": 0.02},
    "penalties": {"presence_penalty": 0.9, "frequency_penalty": 0.4, "repetition_penalty": 1.3},
}


def _config(size):
    return SimpleNamespace(
        model_config=SimpleNamespace(
            get_vocab_size=lambda: size, logprobs_mode="raw_logprobs", seed=0, max_model_len=4096
        ),
        parallel_config=SimpleNamespace(tensor_parallel_size=1),
        scheduler_config=SimpleNamespace(max_num_seqs=ROWS),
    )


def _sample(parameters, logits, outputs, processors, mode="raw_logprobs", logprobs=None):
    """One step of vLLM's V1 sampler: the tokens, and all logprobs if asked for."""
    rows, size = logits.shape
    update = BatchUpdate(rows, [], [(i, p, [], outputs[i]) for i, p in enumerate(parameters)], [])
    for processor in processors:
        processor.update_state(update)

    def column(name, dtype=torch.float32):
        return torch.tensor([getattr(p, name) for p in parameters], dtype=dtype)

    k = column("top_k", torch.int32)
    greedy = column("temperature") < 1e-5
    penalties = {
        name: column(name[:-1].replace("penaltie", "penalty"))
        for name in ("frequency_penalties", "presence_penalties", "repetition_penalties")
    }
    metadata = SamplingMetadata(
        temperature=column("temperature"),
        all_greedy=bool(greedy.all()),
        all_random=not bool(greedy.any()),
        top_p=column("top_p"),
        top_k=torch.where(k > 0, k, size).to(torch.int32),
        generators={},
        max_num_logprobs=logprobs,
        no_penalties=not any(p.presence_penalty for p in parameters),
        prompt_token_ids=torch.full((rows, 1), size, dtype=torch.int64),
        output_token_ids=outputs,
        allowed_token_ids_mask=None,
        bad_words_token_ids={},
        logitsprocs=LogitsProcessors(processors),
        **penalties,
    )
    done = Sampler(mode)(logits.clone(), metadata)
    tokens = done.sampled_token_ids.squeeze(1).numpy()
    return tokens, None if logprobs is None else done.logprobs_tensors.logprobs


def _processors(size, marked=True):
    ours = [WatermarkLogitsProcessor(_config(size), CPU, False)] if marked else []
    return [MinPLogitsProcessor(_config(size), CPU, False), *ours]


@pytest.fixture
def outputs():
    """Distinct contexts, so that every row has coins of its own; the first ids are the same."""
    contexts = np.random.default_rng(0).permutation(400 * 400)[:ROWS]
    return [[5, 5, 6, int(c) // 400, int(c) % 400] for c in contexts]


@pytest.mark.parametrize("limits", LIMITS, ids=str)
@pytest.mark.parametrize("name", ["gumbel", "tournament"])
def test_drawn_tokens_follow_the_distribution_that_vllm_samples_from(
    tmp_path, tokenizer_path, monkeypatch, outputs, limits, name
):
    """Chi-square over 2,000 contexts at 1e-6. The penalised ids are the same in every row."""
    scheme = SchemeSpecification(name)
    ring = make_keyring(tmp_path, tokenizer_path, scheme, shares={"global": 1.0}, values={})
    monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path))
    size = ring.public.vocabulary_size
    one = torch.randn(1, size, generator=torch.Generator().manual_seed(1)) * 2.5
    one[0, [5, 6]] = one.max()  # what the penalties act on is likely
    logits = one.expand(ROWS, size)
    parameters = [SamplingParams(**LIMITS[limits], extra_args={LABELS_FIELD: []})] * ROWS
    fixed = [output[:3] for output in outputs]
    _, logprobs = _sample(
        parameters[:1], logits[:1], fixed[:1], _processors(size, marked=False),
        mode="processed_logprobs", logprobs=-1,
    )  # fmt: skip
    expected = logprobs[0].double().exp().numpy() * ROWS
    # the contexts differ in two more ids, whose penalties would differ: put them out of the race
    if "penalties" in limits:
        logits = logits.clone()
        for row, output in enumerate(outputs):
            logits[row, [i for i in output[3:] if i not in (5, 6)]] = float("-inf")
        expected = _expected_without(parameters, logits, outputs, size)
    tokens, _ = _sample(parameters, logits, outputs, _processors(size))
    observed = np.bincount(tokens, minlength=size)
    assert not observed[expected == 0].any()
    some = expected > 5
    pair = [np.append(x[some], x[~some].sum()) for x in (observed, expected)]
    kept = pair[1] > 0
    assert kept.sum() > 3
    scaled = pair[1][kept] * pair[0].sum() / pair[1].sum()
    assert stats.chisquare(pair[0][kept], scaled).pvalue > 1e-6


def _expected_without(parameters, logits, outputs, size):
    _, logprobs = _sample(
        parameters, logits, outputs, _processors(size, marked=False),
        mode="processed_logprobs", logprobs=-1,
    )  # fmt: skip
    return logprobs.double().exp().sum(dim=0).numpy()


def test_a_marked_row_beside_greedy_and_unlabelled_rows(tmp_path, tokenizer_path, monkeypatch):
    """Greedy rows take their maximum, marked ones the watermark's token; logprobs stay raw."""
    ring = make_keyring(tmp_path, tokenizer_path, shares={"global": 1.0}, values={})
    monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path))
    size = ring.public.vocabulary_size
    logits = torch.randn(30, size, generator=torch.Generator().manual_seed(2))
    kinds = [
        SamplingParams(temperature=0.0),
        SamplingParams(temperature=1.0, extra_args={LABELS_FIELD: []}),
        SamplingParams(temperature=1.0, seed=3),
    ]
    parameters = [kinds[i % 3] for i in range(30)]
    outputs = [[i, 2 * i, 3 * i] for i in range(30)]
    tokens, logprobs = _sample(parameters, logits, outputs, _processors(size), logprobs=-1)
    assert torch.equal(logprobs, logits.log_softmax(dim=-1))
    watermark = Watermark.load(tmp_path)
    everything = np.arange(size, dtype=np.uint32)
    for row in range(0, 30, 3):
        assert tokens[row] == int(logits[row].argmax())
        ids = np.array(outputs[row + 1], dtype=np.uint32)
        p = logits[row + 1].double().softmax(0).numpy()
        assert (
            tokens[row + 1]
            == watermark.draw({}, ids, everything, p, watermark.read_prompt([])).token
        )


@pytest.mark.parametrize("limits", ["temperature", "top-k", "top-p", "min-p", "everything"])
def test_the_v2_path_has_the_probabilities_of_vllms_sampler(limits):
    """Same support and, to 1e-6, the same probabilities as the V1 sampler's own operations."""
    generator = torch.Generator().manual_seed(4)
    logits = torch.randn(200, 500, generator=generator) * 3
    parameters = [SamplingParams(**LIMITS[limits])] * 200
    _, logprobs = _sample(
        parameters, logits, [[] for _ in parameters], _processors(500, marked=False),
        mode="processed_logprobs", logprobs=-1,
    )  # fmt: skip
    one = parameters[0]
    scaled = scale_logits(
        logits, torch.full((200,), one.temperature), torch.full((200,), one.min_p)
    )
    k = torch.full((200,), one.top_k or 500, dtype=torch.int32)
    final = apply_top_k_top_p(scaled, k, torch.full((200,), one.top_p)).double().softmax(dim=1)
    expected = logprobs.double().exp()
    assert torch.equal(final > 0, expected > 0)
    assert float((final - expected).abs().max()) < 1e-6
