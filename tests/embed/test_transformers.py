"""The transformers adapter on a tiny real Llama: final probabilities, padding, batches, errors."""

import copy
import os
import subprocess
import sys

import numpy as np
import pytest

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from provenance.contexts import response_contexts  # noqa: E402
from provenance.embed.transformers import (  # noqa: E402
    TransformersWatermark,
    generate_responses,
)
from provenance.embed.watermark import Watermark  # noqa: E402
from provenance.errors import ConfigurationMismatchError, UsageError  # noqa: E402

PAD, END = 0, 1
WEEKS = ("2026-W17", "2026-W18")


@pytest.fixture(scope="module")
def model(keyring):
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=keyring.public.vocabulary_size,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    return transformers.LlamaForCausalLM(config).eval()


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


def _z(watermark, labels, responses):
    """z of the key that each marked position should carry."""
    keyring, scores = watermark.keyring, []
    for mapping, ids in zip(labels, responses, strict=True):
        contexts, tokens = response_contexts(ids, keyring.context_width)
        marked = watermark.marked_positions(mapping, ids)[keyring.context_width :]
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
    right, scored = _z(watermark, labels, responses)
    swapped = [{"week": WEEKS[1 - i % 2], "cohort": "ba"[i % 2]} for i in range(12)]
    assert scored > 100
    assert right > 10
    # under the other row's labels only the global key still scores
    wrong, _ = _z(watermark, swapped, responses)
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

    from tests.conftest import make_keyring

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
    z, _ = _z(watermark, [labels[0]] * 3 + [labels[1]] * 3, responses)
    assert z > 5
    adapter = TransformersWatermark(watermark)
    for prompts in ([[5, 6, 7]], [[9], [8, 7]]):
        again = _inputs(*prompts)
        arguments = adapter.generate_arguments(again, [{}] * len(prompts))
        output = model.generate(**again, **arguments, max_new_tokens=8, pad_token_id=PAD)
        assert output.shape[0] == len(prompts)


def test_greedy_and_beams_cannot_be_asked_for_with_the_mark(keyring, model):
    inputs = _inputs([5, 6, 7])
    arguments = TransformersWatermark(Watermark(keyring)).generate_arguments(inputs, [{}])
    with pytest.raises(TypeError):
        model.generate(**inputs, **arguments, do_sample=False)
    with pytest.raises(TypeError):
        model.generate(**inputs, **arguments, num_beams=3)


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
    assert [response.prompt_index for response in found] == [0, 1, 2, 3]
    for response, mapping in zip(found, labels, strict=True):
        assert END not in response.token_ids
        own = fast_tokenizer(prompts[response.prompt_index])["input_ids"]
        assert response.prompt_token_ids.tolist() == own
        marked = watermark.marked_positions(mapping, response.token_ids).any()
        assert response.marked == bool(marked)
    with pytest.raises(UsageError):
        next(generate_responses(model, fast_tokenizer, prompts, labels, watermark, temperature=0.0))


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
    assert "provenance[torch]" in done.stdout
