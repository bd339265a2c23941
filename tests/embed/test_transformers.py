"""The transformers adapter on a tiny real Llama: final probabilities, padding, batches, errors."""

import copy
import json
import logging
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from provenance.coins.contexts import response_contexts  # noqa: E402
from provenance.embed import conformance  # noqa: E402
from provenance.embed import transformers as adapter  # noqa: E402
from provenance.embed import transformers_config as adapter_module  # noqa: E402
from provenance.embed.rules import HOPELESS  # noqa: E402
from provenance.embed.sink import ResponseSink  # noqa: E402
from provenance.embed.transformers import (  # noqa: E402
    TransformersWatermark,
    generate_responses,
)
from provenance.embed.watermark import Watermark  # noqa: E402
from provenance.errors import ConfigurationMismatchError, ProvenanceError, UsageError  # noqa: E402
from provenance.keys.keyring import Keyring  # noqa: E402
from provenance.keys.worker import export_worker  # noqa: E402
from provenance.marks.detection import detect_mark  # noqa: E402
from provenance.served.records import ServedResponse  # noqa: E402
from tests.conftest import make_keyring  # noqa: E402
from tests.embed.device import DEVICE  # noqa: E402

PAD, END = 0, 1
WEEKS = ("2026-W17", "2026-W18")


def _make_model(size, seed, scale=1.0):
    """A tiny random Llama; `scale` sharpens its distributions."""
    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        vocab_size=size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    made = transformers.LlamaForCausalLM(config).eval()
    made.lm_head.weight.data *= scale
    return made


@pytest.fixture(scope="module")
def model(keyring):
    return _make_model(keyring.public.vocabulary_size, 0)


@pytest.fixture(scope="module")
def sharp_model(keyring):
    return _make_model(keyring.public.vocabulary_size, 0, 12.0)


@pytest.fixture(scope="module")
def fast_tokenizer(tokenizer_path):
    return transformers.PreTrainedTokenizerFast(
        tokenizer_file=str(tokenizer_path), pad_token="<pad>", eos_token="<end>"
    )


def _inputs(*rows):
    width = max(map(len, rows))
    ids = torch.tensor([[PAD] * (width - len(r)) + list(r) for r in rows])
    mask = torch.tensor([[0] * (width - len(r)) + [1] * len(r) for r in rows])
    return {"input_ids": ids, "attention_mask": mask}


def _generate(model, watermark, inputs, labels, **options):
    arguments = TransformersWatermark(watermark).generate_arguments(inputs, labels)
    options = {"max_new_tokens": 40, "pad_token_id": PAD, "top_k": 0, **options}
    output = model.generate(**inputs, **arguments, **options)
    return output[:, inputs["input_ids"].shape[1] :].numpy().astype(np.uint32)


def _z(watermark, labels, prompts, responses):
    """z of the key that each marked position should carry."""
    keyring, scores = watermark.keyring, []
    for mapping, prompt, ids in zip(labels, prompts, responses, strict=True):
        contexts, tokens = response_contexts(ids, keyring.context_width)
        marked = watermark.marked_positions(mapping, ids, prompt)[keyring.context_width :]
        for i in np.flatnonzero(marked):
            slot = keyring.schedule.names[keyring.slots_of(contexts[i : i + 1])[0]]
            key = keyring.key(slot, mapping.get(slot, ""))
            scores += watermark.scheme.score(
                key.words(contexts[i : i + 1], tokens[i : i + 1])
            ).tolist()
    law = watermark.scheme.null_law
    return (np.mean(scores) - law.mean) / np.sqrt(law.variance / len(scores)), len(scores)


def test_each_row_carries_the_mark_of_its_own_labels(keyring, model):
    watermark = Watermark(keyring, np.random.default_rng(1))
    prompts = [[5, 6, 7], [9], [3, 4, 5, 6, 7, 8], [20, 21]] * 3
    labels = [{"week": WEEKS[i % 2], "cohort": "ab"[i % 2]} for i in range(12)]
    responses = _generate(model, watermark, _inputs(*prompts), labels, eos_token_id=None)
    right, scored = _z(watermark, labels, prompts, responses)
    swapped = [{"week": WEEKS[1 - i % 2], "cohort": "ba"[i % 2]} for i in range(12)]
    assert scored > 100
    assert right > 10
    # under the other row's labels only the global key still scores
    wrong, _ = _z(watermark, swapped, prompts, responses)
    assert wrong < right - 3


def test_the_draw_acts_on_the_probabilities_after_temperature_top_k_and_top_p(keyring, model):
    """Only survivors of top-k/top-p are drawn, also at marked positions."""
    watermark = Watermark(keyring, np.random.default_rng(2))
    inputs = _inputs([5, 6, 7], [9, 9])
    labels = [{"week": WEEKS[0]}] * 2
    responses = _generate(
        model, watermark, inputs, labels, top_k=5, top_p=0.9, temperature=0.7, eos_token_id=None
    )
    for row in range(2):
        prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()].tolist()
        ids = [*prompt, *responses[row].tolist()]
        logits = model(torch.tensor([ids])).logits[0, len(prompt) - 1 : -1] / 0.7
        top = logits.topk(5, dim=-1).indices
        assert (top == torch.tensor(responses[row].astype(np.int64))[:, None]).any(dim=1).all()


def test_drawn_tokens_follow_the_models_distribution_over_keys(tmp_path, tokenizer_path, model):
    """Chi-square of the third token (the first that can be marked) over keyrings, at 1e-6."""
    from scipy import stats

    counts = np.zeros(model.config.vocab_size)
    expected = np.zeros(model.config.vocab_size)
    repeats, keyrings = 40, 15
    for i in range(keyrings):
        ring = make_keyring(tmp_path / str(i), tokenizer_path, shares={"global": 1.0}, values={})
        watermark = Watermark(ring, np.random.default_rng(i))
        inputs = _inputs(*[[5, 6, 7, 8]] * repeats)
        ids = _generate(
            model, watermark, inputs, [{}] * repeats, max_new_tokens=3, top_k=4, temperature=0.5
        )
        assert ids.shape == (repeats, 3)
        prefix = torch.tensor(ids[:, :2].astype(np.int64))
        logits = model(torch.cat([inputs["input_ids"], prefix], dim=1)).logits[:, -1] / 0.5
        top = logits.topk(4, dim=-1)
        rows = torch.zeros_like(logits).scatter_(1, top.indices, top.values.softmax(-1)).double()
        distinct = {tuple(row): j for j, row in enumerate(ids[:, :2].tolist())}
        for j in distinct.values():  # one draw per context: repeats share their coins
            expected += rows[j].detach().numpy()
            counts[ids[j, 2]] += 1
    some = expected > 5
    observed = np.append(counts[some], counts[~some].sum())
    wanted = np.append(expected[some], expected[~some].sum())
    wanted *= observed.sum() / wanted.sum()
    assert observed.sum() > 200
    assert stats.chisquare(observed, wanted).pvalue > 1e-6


def test_batch_neighbours_and_padding_change_nothing(keyring, model):
    """At marked positions the coins decide; at others the same uniforms are used."""
    fixed = {"eos_token_id": None, "max_new_tokens": 30}
    full = {"week": WEEKS[0], "capability": "code", "cohort": "a"}

    class Constant(np.random.Generator):
        def random(self, size=None):  # every row gets the same uniform
            value = super().random()
            return value if size is None else np.full(size, value)

    def run(*prompts):
        watermark = Watermark(keyring, Constant(np.random.PCG64(3)))
        return _generate(model, watermark, _inputs(*prompts), [full] * len(prompts), **fixed)

    alone = run([5, 6, 7])[0]
    together = run([5, 6, 7], [9], [3] * 11)[0]
    assert alone.tolist() == together.tolist()


def test_number_of_return_sequences_and_reuse_of_one_object(keyring, model):
    watermark = Watermark(keyring, np.random.default_rng(4))
    inputs = _inputs([5, 6, 7], [9, 8])
    labels = [{"week": WEEKS[0]}, {"week": WEEKS[1]}]
    responses = _generate(
        model, watermark, inputs, labels, num_return_sequences=3, eos_token_id=None
    )
    assert responses.shape[0] == 6
    prompts = [[5, 6, 7]] * 3 + [[9, 8]] * 3
    z, _ = _z(watermark, [labels[0]] * 3 + [labels[1]] * 3, prompts, responses)
    assert z > 5
    adapter = TransformersWatermark(watermark)
    for prompts in ([[5, 6, 7]], [[9], [8, 7]]):
        again = _inputs(*prompts)
        arguments = adapter.generate_arguments(again, [{}] * len(prompts))
        output = model.generate(**again, **arguments, max_new_tokens=8, pad_token_id=PAD)
        assert output.shape[0] == len(prompts)


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False},
        {"num_beams": 3},
        {"temperature": 0.0},
        {"cache_implementation": "paged"},
        {"penalty_alpha": 0.6},
        {"dola_layers": "high"},
        {"token_healing": True},
        {"assistant_ensemble_weight": 0.5},
        {"custom_generate": "somebody/repository"},
        {"watermarking_config": transformers.WatermarkingConfig()},
        {"generation_config": transformers.GenerationConfig(num_beams=2)},
    ],
    ids=lambda options: next(iter(options)),
)
def test_ways_of_decoding_that_cannot_be_marked_are_refused_in_one_line(keyring, options):
    adapter = TransformersWatermark(Watermark(keyring))
    with pytest.raises(UsageError, match="must not be asked for with a watermark") as refused:
        adapter.generate_arguments(_inputs([5, 6, 7]), [{}], options)
    assert "\n" not in str(refused.value)
    assert refused.value.exit_code == 2


def test_greedy_and_beams_of_the_models_own_defaults_or_beside_the_arguments_are_not_served(
    keyring, model
):
    """Never silently unmarked: the arguments win over defaults, and cannot be given twice."""
    watermark = Watermark(keyring, np.random.default_rng(7))
    inputs = _inputs([5, 6, 7])
    defaults = copy.deepcopy(model.generation_config)
    model.generation_config.num_beams, model.generation_config.do_sample = 4, False
    try:
        responses = _generate(model, watermark, inputs, [{}], eos_token_id=None)
    finally:
        model.generation_config = defaults
    assert _z(watermark, [{}], [[5, 6, 7]], responses)[0] > 3
    arguments = TransformersWatermark(watermark).generate_arguments(inputs, [{}])
    for twice in ({"num_beams": 3}, {"do_sample": False}):
        with pytest.raises(TypeError):
            model.generate(**inputs, **arguments, **twice)


def test_continuous_batching_is_refused_never_silently_unmarked(keyring, model):
    """transformers would drop a processor that says it does not support it, and warn."""
    model = copy.deepcopy(model)  # transformers 5.17 leaves its attention in another state
    inputs = _inputs([5, 6, 7])
    arguments = TransformersWatermark(Watermark(keyring)).generate_arguments(inputs, [{}])
    config = transformers.GenerationConfig(**arguments, max_new_tokens=4)
    with pytest.raises(UsageError, match="generate_batch"):
        model.generate_batch([[5, 6, 7]], generation_config=config)
    with pytest.raises(UsageError, match="generate_batch"):
        model.generate(**inputs, **arguments, cache_implementation="paged", max_new_tokens=4)


def test_an_encoder_decoder_model_is_refused(keyring):
    torch.manual_seed(0)
    size = keyring.public.vocabulary_size
    config = transformers.T5Config(
        vocab_size=size, d_model=16, d_ff=16, num_layers=1, num_heads=2, d_kv=8,
        decoder_start_token_id=PAD, pad_token_id=PAD,
    )  # fmt: skip
    t5 = transformers.T5ForConditionalGeneration(config).eval()
    inputs = _inputs([5, 6, 7])
    arguments = TransformersWatermark(Watermark(keyring)).generate_arguments(inputs, [{}])
    with pytest.raises(UsageError, match="Encoder-decoder"):
        t5.generate(**inputs, **arguments, max_new_tokens=4)


WARPERS = {
    "temperature": {"temperature": 0.5},
    "top_k": {"top_k": 7},
    "top_p": {"top_p": 0.6},
    "min_p": {"min_p": 0.4},
    "typical_p": {"typical_p": 0.4},
    "epsilon_cutoff": {"epsilon_cutoff": 0.004},
    "eta_cutoff": {"eta_cutoff": 0.02},
    "top_h": {"top_h": 0.4},
    "all": {"temperature": 0.8, "top_k": 60, "top_p": 0.9, "min_p": 0.1, "typical_p": 0.9},
}


@pytest.mark.parametrize("options", WARPERS.values(), ids=WARPERS)
def test_every_warper_acts_before_the_draw(keyring, sharp_model, options):
    """Each marked token is the one that the coins draw among transformers' own final scores."""
    watermark = Watermark(keyring, np.random.default_rng(8))
    inputs, labels = _inputs([5, 6, 7], [9, 9, 4, 8, 3]), [{"week": WEEKS[0]}] * 2
    options = {"top_k": 0, **options}
    responses = _generate(sharp_model, watermark, inputs, labels, eos_token_id=None, **options)
    plain = transformers.GenerationConfig(do_sample=True, eos_token_id=None, **options)
    plain._eos_token_tensor = None
    warpers = sharp_model._get_logits_processor(plain, device="cpu")
    checked = narrowed = 0
    for row, ids in enumerate(responses):
        prompt = inputs["input_ids"][row][inputs["attention_mask"][row].bool()]
        whole = torch.cat([prompt, torch.from_numpy(ids.astype(np.int64))])
        logits = sharp_model(whole[None]).logits[0, len(prompt) - 1 : -1].float()
        scores = warpers(None, logits)
        narrowed += int(torch.isinf(scores).sum())
        possible = scores.gather(1, torch.from_numpy(ids.astype(np.int64))[:, None])
        assert torch.isfinite(possible).all()
        for i in np.flatnonzero(watermark.marked_positions(labels[row], ids, prompt)):
            drawn = watermark.draw_scores(
                watermark.key_numbers(labels[:1]),
                ids[np.newaxis, :i],
                scores[i : i + 1].detach().numpy(),
                watermark.read_prompts([prompt]),
            )
            assert drawn[0] == ids[i]
            checked += 1
    assert checked > 8
    assert narrowed > 0 or list(options) == ["top_k", "temperature"]


def test_the_mark_is_the_last_processor_of_all(keyring, model):
    arguments = TransformersWatermark(Watermark(keyring)).generate_arguments(_inputs([5]), [{}])
    config = transformers.GenerationConfig(
        **arguments, temperature=0.5, top_k=5, top_p=0.9, min_p=0.1, typical_p=0.9,
        epsilon_cutoff=0.01, eta_cutoff=0.01, top_h=0.5, repetition_penalty=1.2,
    )  # fmt: skip
    config._eos_token_tensor = None
    processors = model._get_logits_processor(config, input_ids_seq_length=1, device="cpu")
    names = [type(p).__name__ for p in processors]
    assert names[-1] == "_WatermarkProcessor"
    assert len(names) == 10


class _Served:
    """The adapter as `conformance` wants it; a subclass changes how one batch is decoded."""

    end_token, new_tokens = END, 40
    prompts = ((5, 6, 7), (9, 8), (3, 4, 5, 6, 7, 8), (20, 21, 22, 23))
    options: dict = {"temperature": 0.7, "top_k": 40, "top_p": 0.98}  # noqa: RUF012

    def __init__(self, tokenizer, model):
        model = copy.deepcopy(model)
        model.lm_head.weight.data[END] *= 1.6  # ends a few per cent of all steps
        self.tokenizer, self.model = tokenizer, model
        self.vocabulary_size = model.config.vocab_size
        config = transformers.GenerationConfig(do_sample=True, **self.options)
        config._eos_token_tensor = None
        self.warpers = model._get_logits_processor(config, device="cpu")

    def generate(self, keys, requests, seed):
        watermark = Watermark.load(keys, np.random.default_rng(seed))
        return self.decode(watermark, requests)

    def decode(self, watermark, requests):
        inputs = _inputs(*(request.prompt for request in requests))
        labels = [request.labels for request in requests]
        options = {
            **self.options,
            "max_new_tokens": self.new_tokens,
            "eos_token_id": self.end_token,
            "pad_token_id": PAD,
        }
        return TransformersWatermark(watermark).generate(
            self.model, **inputs, labels=labels, **options
        )

    @torch.inference_mode()
    def probabilities(self, prompt, response):
        ids = torch.tensor([[*prompt, *response.tolist()]], device=self.model.device)
        logits = self.model(ids).logits[0, len(prompt) - 1 :].float()
        return self.warpers(None, logits).double().softmax(-1).cpu().numpy()


class _OneByOne(_Served):
    """Batches of one, as assisted decoding wants them; a seed of its own for each request."""

    extra: dict = {}  # noqa: RUF012

    def decode(self, watermark, requests):
        return [super(_OneByOne, self).decode(watermark, [request])[0] for request in requests]


class _Assisted(_OneByOne):
    def __init__(self, tokenizer, model):
        super().__init__(tokenizer, model)
        self.options = {**self.options, "assistant_model": _make_assistant(model)}


class _PromptLookup(_OneByOne):
    def __init__(self, tokenizer, model):
        super().__init__(tokenizer, model)
        self.options = {**self.options, "prompt_lookup_num_tokens": 3}


def _make_assistant(model):
    """Nearly the model: what it drafts is often accepted."""
    assistant = copy.deepcopy(model)
    torch.manual_seed(2)
    with torch.no_grad():
        assistant.lm_head.weight += 0.03 * torch.randn_like(assistant.lm_head.weight)
    return assistant


@pytest.mark.parametrize(
    "kind",
    [
        _Served,
        pytest.param(_Assisted, marks=pytest.mark.slow),
        _PromptLookup,
    ],
)
def test_conformance(kind, tokenizer_path, sharp_model, tmp_path):
    """Plain, with an assistant model (speculative decoding), and with prompt lookup."""
    report = conformance.check(kind(tokenizer_path, sharp_model), tmp_path)
    assert report.passed, str(report)


@pytest.fixture
def draws_on_device(monkeypatch):
    """The path for a GPU: by Triton's kernels where there is one, else torch's own operations."""
    monkeypatch.setattr(adapter_module, "has_kernels", lambda _device: True)


@pytest.mark.parametrize("kind", [_Served, pytest.param(_PromptLookup, marks=pytest.mark.slow)])
@pytest.mark.usefixtures("draws_on_device")
def test_conformance_of_draws_on_the_device(kind, tokenizer_path, sharp_model, tmp_path):
    model = copy.deepcopy(sharp_model).to(DEVICE)
    report = conformance.check(kind(tokenizer_path, model), tmp_path)
    assert report.passed, str(report)


@pytest.mark.usefixtures("draws_on_device")
def test_the_device_draws_the_marks_that_the_host_draws(keyring, model):
    """Same scores, same ids: equal wherever a key decides; one table of keys for all calls."""
    generator = np.random.default_rng(3)
    responses = torch.from_numpy(generator.integers(0, 60, (12, 30)))
    responses[::3, 9:] = responses[::3, :21]  # contexts that stood there before
    scores = 3 * torch.from_numpy(generator.normal(size=(12, keyring.public.vocabulary_size)))
    watermark = Watermark(keyring, generator)
    labels = [{"week": WEEKS[i % 2]} if i % 4 else {} for i in range(12)]
    adapter = TransformersWatermark(watermark)
    compared = 0
    for length in (0, 1, 2, 3, 17, 30):
        ids = torch.cat([torch.ones(12, 1, dtype=torch.long), responses[:, :length]], dim=1)
        arguments = adapter.generate_arguments({"input_ids": ids[:, :1]}, labels)
        processor = arguments["watermarking_config"].construct_processor(0, DEVICE)
        drawn = processor(ids.to(DEVICE), scores.float().to(DEVICE)).cpu()
        assert (drawn.isfinite().sum(dim=1) == 1).all()
        prompts = watermark.read_prompts(ids[:, :1].numpy())
        rows = [row.numpy().astype(np.uint32) for row in ids[:, 1:]]
        keys = watermark.next_keys(labels, rows, prompts)
        host = watermark.draw_scores(
            watermark.key_numbers(labels),
            ids[:, 1:].numpy().astype(np.uint32),
            scores.float().numpy(),
            prompts,
        )
        for row, key in enumerate(keys):
            if key is not None:
                assert int(drawn[row].argmax()) == host[row]
                compared += 1
    assert compared > 5
    assert len(adapter._tables) == 1


def _step_on_device(keyring, rows, size):
    """A processor, and the ids and flat scores of one step."""
    ids = torch.ones(rows, 6, dtype=torch.long, device=DEVICE)
    adapter = TransformersWatermark(Watermark(keyring))
    arguments = adapter.generate_arguments({"input_ids": ids[:, :1]}, [{}] * rows)
    processor = arguments["watermarking_config"].construct_processor(0, DEVICE)
    return processor, ids, torch.zeros(rows, size, device=DEVICE)


@pytest.mark.usefixtures("draws_on_device")
def test_scores_that_are_no_distribution_do_not_become_a_token_on_the_device(keyring):
    processor, ids, scores = _step_on_device(keyring, 2, keyring.public.vocabulary_size)
    scores[1, 5] = float("nan")
    drawn = processor(ids, scores)
    assert int(drawn[0].isfinite().sum()) == 1
    assert drawn[1].isnan().any()
    assert not drawn[1].isfinite().any()


@pytest.mark.usefixtures("draws_on_device")
def test_a_model_with_more_logits_than_the_keyring_has_tokens_is_refused_on_the_device(keyring):
    size = keyring.public.vocabulary_size + 1
    processor, ids, scores = _step_on_device(keyring, 1, size)
    with pytest.raises(ConfigurationMismatchError, match="--vocabulary-size"):
        processor(ids, scores)


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a CUDA GPU; torch sees none on this machine")
def test_a_step_on_a_gpu_never_makes_the_host_wait(keyring):
    processor, ids, scores = _step_on_device(keyring, 2, keyring.public.vocabulary_size)
    processor(ids, scores)  # copies the keys
    torch.cuda.set_sync_debug_mode("error")
    try:
        drawn = processor(ids, scores)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert (drawn.isfinite().sum(dim=1) == 1).all()


@pytest.mark.parametrize("helper", ["assistant_model", "prompt_lookup_num_tokens"])
def test_speculative_decoding_draws_the_same_marks(tmp_path, tokenizer_path, sharp_model, helper):
    """Full share: after the first tokens every first occurrence of a context is the coins' choice.

    With one uniform for all ordinary draws the whole response must equal that of plain decoding.
    """
    ring = make_keyring(tmp_path / "k", tokenizer_path, shares={"global": 1.0}, values={})
    value = _make_assistant(sharp_model) if helper == "assistant_model" else 3

    class Constant(np.random.Generator):
        def random(self, size=None):
            return np.full(size, 0.37)

    calls = 0
    forward = sharp_model.forward

    def counted(*arguments, **options):
        nonlocal calls
        calls += 1
        return forward(*arguments, **options)

    for prompt in ([5, 6, 7, 5, 6], [9, 9, 9, 9]):
        inputs = _inputs(prompt)
        run = [
            _generate(sharp_model, Watermark(ring, Constant(np.random.PCG64(0))), inputs, [{}],
                      eos_token_id=None, max_new_tokens=60, temperature=0.8)
        ]  # fmt: skip
        sharp_model.forward, calls = counted, 0
        try:
            run.append(
                _generate(sharp_model, Watermark(ring, Constant(np.random.PCG64(0))), inputs, [{}],
                          eos_token_id=None, max_new_tokens=60, temperature=0.8, **{helper: value})
            )  # fmt: skip
        finally:
            del sharp_model.forward
        assert run[0].tolist() == run[1].tolist()
        assert calls < 60 or helper != "assistant_model"  # drafts were accepted
        found = detect_mark(run[1][0], ring)
        assert found.log10_p < -6
        assert found.keys[0].name == "global"


def test_wrong_labels_and_right_padding_are_refused(keyring):
    adapter = TransformersWatermark(Watermark(keyring))
    inputs = _inputs([5, 6], [7, 8])
    with pytest.raises(UsageError):
        adapter.generate_arguments(inputs, [{}])
    with pytest.raises(ConfigurationMismatchError):
        adapter.generate_arguments(inputs, [{}, {"week": "1999-W01"}])
    inputs["attention_mask"][0, -1] = 0
    with pytest.raises(UsageError):
        adapter.generate_arguments(inputs, [{}, {}])


def test_the_config_shows_no_secret_and_copies_itself(keyring):
    arguments = TransformersWatermark(Watermark(keyring)).generate_arguments(_inputs([5]), [{}])
    config = arguments["watermarking_config"]
    assert copy.deepcopy(config) is config
    generation = transformers.GenerationConfig(watermarking_config=config, do_sample=True)
    for text in (repr(config), config.to_json_string(), str(dict(config)), str(generation)):
        assert keyring.key("global", "").reveal().hex() not in text
        assert "_master" not in text


def test_a_workers_file_marks_and_logs_like_the_keyring(keyring, keyring_folder, model, tmp_path):
    file, labels = tmp_path / "worker.key", {"week": WEEKS[0]}
    expires = datetime.now(UTC) + timedelta(days=1)
    worker = export_worker(keyring, [f"week={WEEKS[0]}"], expires=expires, file=file)
    options = {"max_new_tokens": 40, "top_k": 0, "pad_token_id": PAD}
    served = []
    for given in (keyring_folder, file, str(file), worker):
        marked = adapter.mark(given, seed=3)
        logged_by = given if isinstance(given, str) else marked.watermark
        with ResponseSink(logged_by, tmp_path / "log") as sink:
            (one,) = marked.generate(
                model, **_inputs([5, 6, 7]), labels=labels, sink=sink, **options
            )
        served.append((one.token_ids.tolist(), one.drawn.tolist()))
        assert keyring.key("global", "").reveal().hex() not in repr(marked) + repr(vars(marked))
    assert served[1:] == served[:1] * 3
    assert any(served[0][1])
    for wrong in ({"week": WEEKS[1]}, {"cohort": "a"}):
        for asked in (
            lambda wrong=wrong: marked.generate(model, **_inputs([5]), labels=wrong),
            lambda wrong=wrong: marked.generate_arguments(_inputs([5]), [wrong]),
        ):
            with pytest.raises(ConfigurationMismatchError, match="export-worker"):
                asked()


def test_no_global_torch_generator_decides_the_draw(keyring, model):
    def run(seed):
        torch.manual_seed(seed)
        watermark = Watermark(keyring, np.random.default_rng(5))
        return _generate(model, watermark, _inputs([5, 6]), [{}], eos_token_id=None).tolist()

    assert run(1) == run(2)


def test_generate_responses_stops_at_the_end_token_and_says_what_is_marked(
    keyring, model, fast_tokenizer
):
    watermark = Watermark(keyring, np.random.default_rng(6))
    prompts = ["import", "def make_keyring(", "return", "x"]
    labels = [{"week": WEEKS[i % 2]} for i in range(4)]
    found = list(
        generate_responses(
            model, fast_tokenizer, prompts, labels, watermark, batch_size=3, max_new_tokens=30
        )
    )
    for response, mapping, prompt in zip(found, labels, prompts, strict=True):
        assert response.labels == mapping
        ended = response.token_ids[-1] == END
        assert response.finish == ("end" if ended else "length")
        assert len(response.token_ids) == 30 or ended
        assert END not in response.token_ids[:-1]
        own = fast_tokenizer(prompt)["input_ids"]
        assert response.prompt_token_ids.tolist() == own
        drawn = watermark.marked_positions(mapping, response.token_ids, own)
        assert response.drawn.tolist() == drawn.tolist()
        assert response.marked == bool(drawn.any())
    assert {response.finish for response in found} <= {"end", "length"}
    with pytest.raises(UsageError):
        next(generate_responses(model, fast_tokenizer, prompts, labels, watermark, temperature=0.0))


def test_the_front_door_marks_logs_and_returns_what_was_served(keyring, model, tmp_path):
    """Labels once for all rows; prompt and padding are gone, the end token is not."""
    marked = adapter.mark(keyring, seed=3)
    labels = {"week": WEEKS[0]}
    inputs = _inputs([5, 6, 7], [9], [3, 4])
    with ResponseSink(marked.watermark, tmp_path / "a.jsonl") as sink:
        found = marked.generate(model, **inputs, labels=labels, sink=sink, max_new_tokens=30)
    again = adapter.mark(keyring, seed=3).generate(
        model, **inputs, labels=[labels] * 3, max_new_tokens=30
    )
    records = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    for response, other, record, prompt in zip(
        found, again, records, ([5, 6, 7], [9], [3, 4]), strict=True
    ):
        assert isinstance(response, ServedResponse)
        assert response.token_ids.tolist() == other.token_ids.tolist() == record["token_ids"]
        assert response.prompt_token_ids.tolist() == record["prompt_token_ids"] == prompt
        assert record["labels"] == labels
        assert (record["marked"], record["finish"]) == (response.marked, response.finish)
        assert response.token_ids.dtype == response.prompt_token_ids.dtype == np.uint32
        bits = marked.watermark.marked_positions(labels, response.token_ids, prompt)
        assert response.drawn.tolist() == bits.tolist()
        assert response.finish == ("end" if response.token_ids[-1] == END else "length")
        assert END not in response.token_ids[:-1]


@pytest.mark.parametrize("on_device", [False, True])
@pytest.mark.parametrize(
    "options",
    [{}, {"top_k": 1}, {"top_p": 1e-6}, {"temperature": 1e-3}, {"prompt_lookup_num_tokens": 3}],
)
def test_drawn_says_where_coins_had_a_choice(keyring, sharp_model, options, on_device, monkeypatch):
    """Against the model's probabilities, asked once more; the log's bits are these."""
    if on_device:
        monkeypatch.setattr(adapter_module, "has_kernels", lambda _device: True)
    marked, labels = adapter.mark(keyring, seed=3), {"week": WEEKS[0]}
    rows = [[5, 6, 7, 5, 6]] if "prompt_lookup_num_tokens" in options else [[5, 6, 7], [9], [3, 4]]
    given = {"max_new_tokens": 40, "eos_token_id": None, "top_k": 0, **options}
    found = marked.generate(sharp_model, **_inputs(*rows), labels=labels, **given)
    decided = 0
    for response, prompt in zip(found, rows, strict=True):
        rule = marked.watermark.marked_positions(labels, response.token_ids, prompt)
        ids = torch.tensor([[*prompt, *response.token_ids.tolist()]])
        with torch.no_grad():
            logits = sharp_model(ids).logits[0, len(prompt) - 1 : -1]
        ordered = (logits / given.get("temperature", 1.0)).sort(descending=True).values
        choice = (ordered[:, 0] - ordered[:, 1] < HOPELESS).numpy()
        single = given["top_k"] == 1 or "top_p" in given
        assert response.drawn.tolist() == (rule & choice & (not single)).tolist()
        decided += int(response.drawn.sum())
    if options in ({}, {"top_k": 1}, {"top_p": 1e-6}):
        assert bool(decided) == (not single)


def test_a_streamer_gets_the_tokens(keyring, model):
    class Streamer(transformers.generation.BaseStreamer):
        def __init__(self):
            self.ids = []

        def put(self, value):
            self.ids += value.flatten().tolist()

        def end(self):
            self.ended = True

    streamer = Streamer()
    (response,) = adapter.mark(keyring).generate(
        model, **_inputs([5, 6]), labels={}, max_new_tokens=20, streamer=streamer
    )
    assert streamer.ids == [5, 6, *response.token_ids.tolist()]
    assert streamer.ended


def test_end_tokens_are_those_of_the_call(keyring, model):
    """Of the options, of a configuration, or of the model; cut after the first of them."""
    inputs, ends = _inputs(*[[5, 6]] * 8), list(range(40))
    config = transformers.GenerationConfig(eos_token_id=ends, max_new_tokens=60)
    for options in (
        {"eos_token_id": ends, "max_new_tokens": 60},
        {"generation_config": config},
    ):
        found = adapter.mark(keyring, seed=1).generate(model, **inputs, labels={}, **options)
        assert sum(response.finish == "end" for response in found) >= 6
        for response in found:
            stops = np.flatnonzero(np.isin(response.token_ids, ends))
            assert stops.tolist() == ([len(response.token_ids) - 1] if len(stops) else [])
    (never,) = adapter.mark(keyring).generate(
        model, **_inputs([5]), labels={}, eos_token_id=None, max_new_tokens=50
    )
    assert (never.finish, len(never.token_ids)) == ("length", 50)
    (dictionary,) = adapter.mark(keyring).generate(
        model, **_inputs([5]), labels={}, max_new_tokens=5, return_dict_in_generate=True
    )
    assert 1 <= len(dictionary.token_ids) <= 5


@pytest.mark.parametrize(
    "kind", [torch.int64, torch.int32, torch.int16, torch.uint8, np.uint32, list]
)
def test_ids_of_any_integer_type(keyring, model, kind):
    rows = [[5, 6, 7], [8, 9, 10]]
    ids = rows if kind is list else np.array(rows, np.uint32) if kind is np.uint32 else None
    ids = torch.tensor(rows).to(kind) if ids is None else ids
    labels = [{"week": week} for week in WEEKS]
    found = adapter.mark(keyring, seed=2).generate(
        model, input_ids=ids, labels=labels, num_return_sequences=2, max_new_tokens=6
    )
    assert [response.labels for response in found] == [labels[0]] * 2 + [labels[1]] * 2
    assert [response.prompt_token_ids.tolist() for response in found] == [
        *([rows[0]] * 2), *([rows[1]] * 2),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "inputs",
    [
        {"inputs_embeds": torch.zeros(1, 3, 32)},
        {},
        {"input_ids": torch.tensor([5, 6])},
        {"input_ids": torch.ones(1, 3)},
        {"input_ids": torch.ones(1, 3, dtype=torch.bool)},
        {"input_ids": [[5, 6], [7]]},
        {"input_ids": "text"},
        {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([1, 1])},
        {"input_ids": torch.tensor([[5, 6]]), "attention_mask": torch.tensor([[1, 0]])},
        {"input_ids": [[5, 6]], "labels": [{}, {}]},
        {"input_ids": [[5, 6]], "labels": "week"},
        {"input_ids": [[5, 6]], "labels": None},
        {"input_ids": [[5, 6]], "stop_strings": ["x"]},
        {"input_ids": [[5, 6]], "max_time": 1.0},
        {"input_ids": [[5, 6]], "num_beams": 2},
    ],
    ids=lambda inputs: ",".join(inputs),
)
def test_bad_inputs_are_one_line(keyring, model, inputs):
    with pytest.raises(UsageError) as refused:
        adapter.mark(keyring).generate(model, **{"labels": {}, **inputs})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("labels", [{"wek": WEEKS[0]}, {"week": "1999-W01"}, {"account": "7"}])
def test_misspelt_labels_are_refused_as_by_a_server(keyring, model, labels):
    with pytest.raises(ConfigurationMismatchError, match="must have a key"):
        adapter.mark(keyring).generate(model, **_inputs([5]), labels=labels)


def test_a_keyring_without_its_secret_is_one_line(keyring, model, tmp_path, tokenizer_path):
    folder = tmp_path / "k"
    make_keyring(folder, tokenizer_path)
    for known in (folder, str(folder)):
        assert repr(adapter.mark(known)).startswith("Marked(keyring=")
    for wrong in (Keyring.load(folder), None, 7):
        with pytest.raises(UsageError, match="unlocked keyring"):
            adapter.mark(wrong)
    other = ResponseSink(Watermark.load(folder), tmp_path / "a.jsonl")
    with pytest.raises(ConfigurationMismatchError, match="the sink must be of keyring"):
        adapter.mark(keyring).generate(model, **_inputs([5]), labels={}, sink=other)
    (folder / "master.key").unlink()
    with pytest.raises(ProvenanceError) as refused:
        adapter.mark(folder)
    assert "\n" not in str(refused.value)
    with pytest.raises(ProvenanceError):
        adapter.mark(tmp_path / "nothing")


def test_a_device_without_kernels_is_logged(keyring, caplog):
    arguments = TransformersWatermark(Watermark(keyring)).generate_arguments(_inputs([5]), [{}])
    with caplog.at_level(logging.INFO, "provenance.embed"):
        arguments["watermarking_config"].construct_processor(10, "cpu")
        assert not caplog.records
        arguments["watermarking_config"].construct_processor(10, "meta")
    (record,) = caplog.records
    assert "no kernels on meta" in record.getMessage()


def test_without_torch_the_adapter_is_one_line_that_names_the_extra():
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "try:\n    import provenance.embed.transformers\n"
        "except Exception as error:\n    print(type(error).__name__, error)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ, check=True
    )
    assert done.stdout.startswith("MissingExtraError")
    assert "provenance-watermark[torch]" in done.stdout
