"""Both vLLM processors step by step: on vLLM's real classes where it is installed, else on a fake.

Where vLLM is installed its own sampler says what the final probabilities are.
"""

import importlib
import inspect
from dataclasses import fields
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from hypothesis import given, settings  # noqa: E402
from hypothesis import strategies as st  # noqa: E402

from provenance.embed.rules import PromptContexts  # noqa: E402
from provenance.embed.vllm.requests import KEYRING_VARIABLE, LABELS_FIELD  # noqa: E402
from provenance.embed.watermark import Watermark  # noqa: E402
from provenance.errors import ConfigurationMismatchError, UsageError  # noqa: E402
from provenance.keys.keyring import SchemeSpecification, add_value  # noqa: E402
from provenance.keys.worker import export_worker  # noqa: E402
from tests.conftest import make_keyring  # noqa: E402
from tests.embed import vllm_fake as fake  # noqa: E402
from tests.embed.conftest import ADAPTERS, REAL  # noqa: E402
from tests.embed.device import DEVICE  # noqa: E402
from tests.embed.vllm_parts import (  # noqa: E402
    SLOTS,
    make_context,
    make_logits,
    make_parameters,
    make_v1,
    make_v2,
)

needs_vllm = pytest.mark.skipif(not REAL, reason="vLLM is not installed: docs/serving.md says how")
pytestmark = pytest.mark.usefixtures("vllm")


@pytest.fixture(params=["gumbel", "green", "tournament"])
def scheme(request):
    return SchemeSpecification(request.param)


def _labels(parameters):
    items = (parameters.extra_args or {}).get(LABELS_FIELD)
    return None if items is None else dict(item.split("=", 1) for item in items)


def _check_step(watermark, before, after, requests, size):
    """Each row is untouched, or holds just the token that `Watermark.draw` gives. Marked rows.

    A request is its parameters, the ids of its response, and those of its prompt unless none.
    """
    marked = []
    for row, (parameters, response, *asked) in enumerate(requests):
        labels = _labels(parameters)
        ids = np.array(response, dtype=np.uint32)
        draw = None
        if labels is not None:
            prompt = watermark.read_prompt(asked[0] if asked else [])
            draw = watermark.draw(labels, ids, *_final(before[row], parameters, size), prompt)
        if draw is None or draw.key is None:
            assert torch.equal(after[row], before[row])
        else:
            assert after[row].isfinite().nonzero().tolist() == [[draw.token]]
            assert float(after[row, draw.token]) == 0
            marked.append(row)
    return marked


def _final(row, parameters, size):
    """Candidates and probabilities after top-k and top-p, by the fake's plain definition."""
    k = parameters.top_k if 0 < parameters.top_k < size else size
    final = fake.apply_top_k_top_p(
        row.unsqueeze(0), torch.tensor([k]), torch.tensor([parameters.top_p])
    )[0]
    kept = final.isfinite().nonzero().squeeze(1)
    return kept.numpy().astype(np.uint32), final[kept].double().softmax(0).numpy()


# --- the fake -------------------------------------------------------------------------------------


@needs_vllm
def test_the_fake_is_like_vllm(vllm):
    for path, contents in fake.CONTENTS.items():
        for name, ours in contents.items():
            theirs = getattr(vllm[path], name)
            if name == "MoveDirectionality":
                assert [d.name for d in theirs] == [d.name for d in ours]
            elif name.startswith(("Batch", "LogitsContext", "LogitsProcRequest")):
                assert [f.name for f in fields(theirs)] == [f.name for f in fields(ours)]
            elif inspect.isclass(ours):
                assert theirs.__abstractmethods__ == ours.__abstractmethods__
                methods = [n for n in vars(ours) if inspect.isfunction(vars(ours)[n])]
                for method in [*methods, "validate_params"]:
                    both = [inspect.signature(getattr(c, method)) for c in (theirs, ours)]
                    assert list(both[0].parameters) == list(both[1].parameters)
            else:
                both = [inspect.signature(f) for f in (theirs, ours)]
                assert list(both[0].parameters) == list(both[1].parameters)
    assert fake.same_top_k_top_p(vllm[fake.SAMPLER].apply_top_k_top_p)


# --- V1 -------------------------------------------------------------------------------------------


def _add(vllm, processor, requests, removed=(), moved=()):
    added = [
        (i, p, prompt[0] if prompt else None, output)
        for i, (p, output, *prompt) in requests.items()
    ]
    update = vllm[fake.V1].BatchUpdate(len(added), list(removed), added, list(moved))
    processor.update_state(update)


def _requests(generator, length=9):
    """Labelled rows with all sorts of limits, unlabelled ones between them.

    The context of every third row stands in its prompt.
    """
    outputs = generator.integers(0, 400, (40, length)).tolist()
    limits = [{}, {"top_k": 5}, {"top_p": 0.7}, {"top_k": 40, "top_p": 0.9}, {"top_k": 10**6}]
    labels = [("week=a",), None, ("week=b",), ()]
    return {
        i: (
            make_parameters(labels[i % 4], **limits[i % 5]),
            output,
            _make_prompt(generator, i, output),
        )
        for i, output in enumerate(outputs)
    }


def _make_prompt(generator, i, output):
    """An image, then ids; every third holds the next context of its response, at its very end."""
    ids = [-1, *generator.integers(0, 400, 40 + i).tolist()]
    return ids if i % 3 else [*ids, *output[-2:]]


def test_v1_draws_the_marked_rows_and_leaves_the_others(vllm, folder):
    watermark = Watermark.load(folder)
    size = watermark.keyring.public.vocabulary_size
    processor = make_v1(size)
    assert processor.is_argmax_invariant()
    requests = _requests(np.random.default_rng(1))
    _add(vllm, processor, requests)
    for step in range(4):
        before = make_logits(40, size, step)
        after = processor.apply(before.clone())
        marked = _check_step(watermark, before, after, list(requests.values()), size)
        assert 3 < len(marked) < 30
        for row, (_, output, _) in requests.items():
            output.append(int(after[row].argmax()))
        processor.update_state(None)


def test_v1_follows_rows_that_leave_and_move(vllm, folder):
    watermark = Watermark.load(folder)
    size = watermark.keyring.public.vocabulary_size
    processor = make_v1(size)
    requests = _requests(np.random.default_rng(2))
    _add(vllm, processor, requests)
    ways = vllm[fake.V1].MoveDirectionality
    moved = [(0, 2, ways.SWAP), (39, 4, ways.UNIDIRECTIONAL)]
    newcomer = (make_parameters(("week=b",)), [7, 8, 9, 10])
    _add(vllm, processor, {6: newcomer}, removed=[4, 10], moved=moved)
    requests[6] = newcomer
    requests[0], requests[2] = requests[2], requests[0]
    requests[4] = requests.pop(39)
    requests[10] = requests[39] = (make_parameters(None), [])
    before = make_logits(40, size)
    after = processor.apply(before.clone())
    assert _check_step(watermark, before, after, [requests[i] for i in range(40)], size)


def test_v1_preemption_changes_nothing(vllm, folder):
    """A request that comes back with its output in a new list draws as if it had never left."""
    size = Watermark.load(folder).keyring.public.vocabulary_size
    before = make_logits(40, size)
    requests = _requests(np.random.default_rng(3))
    stayed, returned = make_v1(size), make_v1(size)
    _add(vllm, stayed, requests)
    _add(vllm, returned, requests)
    _add(vllm, returned, {}, removed=list(range(40)))
    assert torch.equal(returned.apply(before.clone()), before)
    _add(
        vllm,
        returned,
        {i: (p, list(output), prompt) for i, (p, output, prompt) in requests.items()},
    )
    assert torch.equal(returned.apply(before.clone()), stayed.apply(before.clone()))


def test_v1_leaves_rows_whose_last_id_is_not_there_yet_or_that_are_no_distribution(vllm, folder):
    size = Watermark.load(folder).keyring.public.vocabulary_size
    processor = make_v1(size)
    generator = np.random.default_rng(4)
    rows = {
        i: (make_parameters(), [*generator.integers(0, 400, 6).tolist(), -1]) for i in range(40)
    }
    _add(vllm, processor, rows)
    before = make_logits(40, size)
    assert torch.equal(processor.apply(before.clone()), before)
    for _, output in rows.values():
        output[-1] = 5
    assert not torch.equal(processor.apply(before.clone()), before)
    for value in (float("nan"), float("inf")):
        broken = before.clone()
        broken[:, 3] = value
        assert torch.equal(processor.apply(broken.clone()).isnan(), broken.isnan())
        assert (processor.apply(broken.clone()).isfinite().sum(dim=1) == size - 1).all()


def test_v1_seeds_repeat_the_draws_of_schemes_that_need_uniforms(vllm, tmp_path, tokenizer_path,
                                                                 monkeypatch, scheme):  # fmt: skip
    ring = make_keyring(tmp_path, tokenizer_path, scheme, shares={"global": 1.0}, values={})
    monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path))
    size = ring.public.vocabulary_size
    before = torch.zeros(60, size)
    output = [5, 6, 7]

    def tokens(seeds):
        processor = make_v1(size)
        _add(
            vllm, processor, {i: (make_parameters((), seed=s), output) for i, s in enumerate(seeds)}
        )
        return processor.apply(before.clone()).argmax(dim=1).tolist()

    first = tokens(range(60))
    assert tokens(range(60)) == first
    assert (len(set(first)) == 1) == (scheme.name == "gumbel")
    if scheme.name != "gumbel":
        assert tokens([None] * 60) != tokens([None] * 60)
        assert tokens([-3] * 60) == tokens([-3] * 60)


EVENTS = st.lists(
    st.one_of(st.integers(0, 400), st.sampled_from(["drop", "drop 2", "placeholder", "new list"])),
    max_size=200,
)


@settings(max_examples=100, deadline=None)
@given(EVENTS)
def test_v1_ids_of_a_row_are_those_of_vllms_list_whatever_happens_to_it(events):
    module = importlib.import_module(ADAPTERS[0])
    row = module._Row(None, None, PromptContexts.read([[]], 2), None, [])
    for event in events:
        if isinstance(event, int):
            if row.output and row.output[-1] == -1:
                row.output.pop()
            row.output.append(event)
        elif event.startswith("drop"):
            del row.output[-len(event.split()) :]
        elif event == "placeholder" and (not row.output or row.output[-1] >= 0):
            row.output.append(-1)
        elif event == "new list":
            row.output = list(row.output)
        found = row.response()
        if row.output and row.output[-1] == -1:
            assert found is None
        else:
            assert found.tolist() == row.output
            assert found.dtype == np.uint32


def test_v1_a_value_added_while_serving_is_drawn_with_its_key(vllm, folder):
    size = Watermark.load(folder).keyring.public.vocabulary_size
    processor = make_v1(size)
    add_value(folder, "week", "c")
    requests = {
        i: (make_parameters(("week=c",)), np.random.default_rng(i).integers(0, 400, 5).tolist())
        for i in range(40)
    }
    _add(vllm, processor, requests)
    before = make_logits(40, size)
    after = processor.apply(before.clone())
    assert _check_step(Watermark.load(folder), before, after, list(requests.values()), size)


@pytest.mark.parametrize("number", [0, 1])
def test_a_server_that_would_show_or_lose_the_mark_does_not_start(folder, monkeypatch, number):
    make = [make_v1, make_v2][number]
    size = Watermark.load(folder).keyring.public.vocabulary_size
    make(size)
    with pytest.raises(ConfigurationMismatchError, match="logprobs"):
        make(size, mode="processed_logprobs")
    with pytest.raises(ConfigurationMismatchError, match="vocabulary"):
        make(size + 1)
    if make is make_v2:
        with pytest.raises(ConfigurationMismatchError, match="one watermark"):
            make(size, watermark_config=SimpleNamespace(key=1))
    monkeypatch.delenv(KEYRING_VARIABLE)
    with pytest.raises(UsageError, match=KEYRING_VARIABLE):
        make(size)


@pytest.mark.parametrize("name", ADAPTERS)
def test_requests_are_refused_before_the_engine_sees_them(folder, name):
    processor = importlib.import_module(name).WatermarkLogitsProcessor
    processor.validate_params(make_parameters(("week=a",)))
    processor.validate_params(make_parameters(None, temperature=0.0))
    for bad in (
        make_parameters(("week=z",)),
        make_parameters(("week",)),
        make_parameters((), temperature=0.0),
    ):
        with pytest.raises(ValueError, match="must"):
            processor.validate_params(bad)


# --- V2 -------------------------------------------------------------------------------------------


def _enter(processor, slot, parameters, prompt, output):
    """What the runner does when a request enters, or comes back after preemption."""
    ids = [*prompt, *output]
    processor.states.all_token_ids.np[slot, : len(ids)] = ids
    processor.states.prompt_len.np[slot] = len(prompt)
    processor.states.total_len.np[slot] = len(ids)
    asked = processor.add_request(slot, parameters)
    assert asked == (parameters.extra_args is not None)
    processor.apply_staged_writes()


def _apply(processor, before, context):
    """The rows after a step on the device, on the host again."""
    return processor.apply(before.clone().to(DEVICE), context).cpu()


def _final_v2(row, parameters, size):
    scaled = row / parameters.temperature
    if parameters.min_p:
        scaled = scaled.masked_fill(
            scaled < scaled.max() + np.log(np.float32(parameters.min_p)), float("-inf")
        )
    return _final(scaled, parameters, size)


def _check_v2(watermark, before, after, requests, size):
    marked = []
    for row, (parameters, response, *asked) in enumerate(requests):
        labels, draw = _labels(parameters), None
        if labels is not None and response is not None:
            ids = np.array(response, dtype=np.uint32)
            prompt = watermark.read_prompt(asked[0] if asked else [])
            draw = watermark.draw(labels, ids, *_final_v2(before[row], parameters, size), prompt)
        if draw is None or draw.key is None:
            assert torch.equal(after[row], before[row])
        else:
            assert after[row].isfinite().nonzero().tolist() == [[draw.token]]
            marked.append(row)
    return marked


LIMITS = [
    {},
    {"top_k": 4, "temperature": 0.5},
    {"top_p": 0.7, "temperature": 1.5},
    {"top_k": 6, "top_p": 0.9, "min_p": 0.05},
    {"min_p": 0.2, "temperature": 0.8},
]


@pytest.mark.parametrize("limits", [LIMITS, [LIMITS[1]], [LIMITS[1], LIMITS[3]]])
def test_v2_draws_the_marked_rows_and_leaves_the_others(folder, limits):
    """The second and third table take the path of few survivors."""
    watermark = Watermark.load(folder)
    size = watermark.keyring.public.vocabulary_size
    processor, generator = make_v2(size), np.random.default_rng(1)
    slots = generator.permutation(SLOTS)[:40].tolist()
    labels = [("week=a",), None, ("week=b",), ()]
    requests = []
    for i, slot in enumerate(slots):
        parameters = make_parameters(labels[i % 4], **limits[i % len(limits)])
        output = generator.integers(0, 400, 2 + i // 2).tolist()
        prompt = _make_prompt(generator, i, output)
        _enter(processor, slot, parameters, prompt, output)
        requests.append((parameters, output, prompt))
    before = make_logits(40, size)
    after = _apply(processor, before, make_context(processor, slots))
    assert 3 < len(_check_v2(watermark, before, after, requests, size)) < 30


def test_v2_prompts_and_short_responses_are_not_marked(folder):
    size = Watermark.load(folder).keyring.public.vocabulary_size
    processor = make_v2(size)
    for slot in range(40):
        _enter(processor, slot, make_parameters(), list(range(slot, slot + 30)), [5][: slot % 2])
    context = make_context(processor, list(range(40)))
    before = make_logits(40, size)
    assert torch.equal(_apply(processor, before, context), before)


def test_v2_leaves_rows_that_are_no_distribution(folder):
    size = Watermark.load(folder).keyring.public.vocabulary_size
    processor = make_v2(size)
    for slot in range(40):
        _enter(processor, slot, make_parameters(), [1], [slot, 7, slot + 1])
    context, before = make_context(processor, list(range(40))), make_logits(40, size)
    assert not torch.equal(_apply(processor, before, context), before)
    for value in (float("nan"), float("inf")):
        broken = before.clone()
        broken[:, 3] = value
        assert torch.equal(_apply(processor, broken, context).isfinite(), broken.isfinite())


def test_v2_drafts_belong_to_the_context(folder):
    watermark = Watermark.load(folder)
    size = watermark.keyring.public.vocabulary_size
    processor, generator = make_v2(size, num_speculative_tokens=3), np.random.default_rng(2)
    slots, drafts, requests = list(range(20)), [], []
    for slot in slots:
        parameters = make_parameters(("week=a",) if slot % 4 else None, **LIMITS[slot % 5])
        prompt = generator.integers(0, 400, 5).tolist()
        output = generator.integers(0, 400, slot % 7 + 1).tolist()
        _enter(processor, slot, parameters, prompt, output)
        drafts.append(generator.integers(0, 400, slot % 4).tolist())
        requests += [
            (parameters, [*output, *drafts[-1][:j]], prompt) for j in range(len(drafts[-1]) + 1)
        ]
    before = make_logits(len(requests), size)
    after = _apply(processor, before, make_context(processor, slots, drafts))
    assert len(_check_v2(watermark, before, after, requests, size)) > 3


def test_v2_slots_are_used_again_without_a_trace_of_the_last_request(folder):
    watermark = Watermark.load(folder)
    size = watermark.keyring.public.vocabulary_size
    processor, generator = make_v2(size, num_speculative_tokens=1), np.random.default_rng(3)
    outputs = [generator.integers(0, 400, 8).tolist() for _ in range(20)]
    for slot, output in enumerate(outputs):
        _enter(processor, slot, make_parameters(top_k=3), [1, 2], output)
    others = [None, ("week=b",)]
    requests = []
    for slot, output in enumerate(outputs):
        parameters = make_parameters(others[slot % 2])
        _enter(processor, slot, parameters, [1, 2], output)
        requests += [(parameters, output), (parameters, [*output, 9])]
    before = make_logits(40, size)
    context = make_context(processor, list(range(20)), [[9]] * 20)
    after = _apply(processor, before, context)
    assert len(_check_v2(watermark, before, after, requests, size)) > 3


def test_v2_a_value_added_while_serving_is_drawn_with_its_key(folder):
    size = Watermark.load(folder).keyring.public.vocabulary_size
    processor, generator = make_v2(size), np.random.default_rng(4)
    requests = []
    for slot in range(40):
        if slot == 20:
            add_value(folder, "week", "0 sorts first")
        label = "week=b" if slot < 20 else "week=0 sorts first"
        output = generator.integers(0, 400, 8).tolist()
        _enter(processor, slot, make_parameters((label,)), [1, 2], output)
        requests.append((make_parameters((label,)), output))
    before = make_logits(40, size)
    after = _apply(processor, before, make_context(processor, list(range(40))))
    assert _check_v2(Watermark.load(folder), before, after, requests, size)


def test_v2_uniforms_follow_from_seed_and_position(tmp_path, tokenizer_path, monkeypatch, scheme):
    ring = make_keyring(tmp_path, tokenizer_path, scheme, shares={"global": 1.0}, values={})
    monkeypatch.setenv(KEYRING_VARIABLE, str(tmp_path))
    size = ring.public.vocabulary_size

    def tokens(seeds):
        processor = make_v2(size)
        for slot, seed in enumerate(seeds):
            _enter(processor, slot, make_parameters((), seed=seed), [1, 2], [5, 6, 7])
        context = make_context(processor, list(range(len(seeds))))
        return _apply(processor, torch.zeros(len(seeds), size), context).argmax(dim=1).tolist()

    first = tokens(range(60))
    assert tokens(range(60)) == first
    assert (len(set(first)) == 1) == (scheme.name == "gumbel")
    if scheme.name != "gumbel":
        assert tokens([None] * 60) != tokens([None] * 60)


# --- both with a worker's keys --------------------------------------------------------------------


@pytest.mark.parametrize("name", ["V1", "V2"])
def test_a_worker_draws_what_the_keyring_would_and_goes_on_when_its_file_changes(
    vllm, folder, monkeypatch, tmp_path, name
):
    """Rows of a label whose key the new file has no longer are drawn under it to their end."""
    file = tmp_path / "worker.key"

    def export(*values):
        ring, expires = Watermark.load(folder).keyring, datetime.now(UTC) + timedelta(days=1)
        export_worker(ring, values, expires=expires, file=file)

    export("week=a")
    monkeypatch.setenv(KEYRING_VARIABLE, str(file))
    size, generator = (
        Watermark.load(folder).keyring.public.vocabulary_size,
        np.random.default_rng(8),
    )
    processor, requests = (make_v1 if name == "V1" else make_v2)(size), {}
    for slot in range(40):
        if slot == 20:
            add_value(folder, "week", "c")
            with pytest.raises(ConfigurationMismatchError, match="export-worker"):
                type(processor).validate_params(make_parameters(("week=c",)))
            export("week=b", "week=c")
        labels = ("week=a",) if slot < 20 else ("week=c",)
        type(processor).validate_params(make_parameters(labels))
        requests[slot] = (make_parameters(labels), generator.integers(0, 400, 8).tolist())
        if name == "V1":
            _add(vllm, processor, {slot: requests[slot]})
        else:
            _enter(processor, slot, requests[slot][0], [1, 2], requests[slot][1])
    before, rows, watermark = make_logits(40, size), list(requests.values()), Watermark.load(folder)
    if name == "V1":
        marked = _check_step(watermark, before, processor.apply(before.clone()), rows, size)
    else:
        after = _apply(processor, before, make_context(processor, list(range(40))))
        marked = _check_v2(watermark, before, after, rows, size)
    assert min(marked) < 20 <= max(marked)
