"""Rules 1 to 3 of the mark: every copy against a plain reading of the sentences."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provenance.embed.rules import PromptContexts, check_labels, name_keys
from provenance.embed.watermark import Watermark
from provenance.errors import ConfigurationMismatchError, UsageError
from tests.conftest import make_keyring

SHARES = {"global": 0.3, "week": 0.2, "capability": 0.2, "cohort": 0.2}
LABELS = (
    {},
    {"week": "2026-W17"},
    {"week": "2026-W18", "cohort": "a", "account": "7"},
    {"week": "2026-W17", "capability": "code", "cohort": "b"},
)


@pytest.fixture(
    scope="module",
    params=[(width, reads) for width in (1, 2, 3) for reads in (True, False)],
    ids=lambda param: f"k={param[0]},{'new' if param[1] else 'old'}",
)
def watermark(request, tmp_path_factory, tokenizer_path):
    folder, (width, reads) = tmp_path_factory.mktemp("keys"), request.param
    return Watermark(
        make_keyring(folder, tokenizer_path, width=width, shares=SHARES, reads_prompt=reads)
    )


def _read_plainly(keyring, labels, ids, prompt):
    """The name of the key that decides each token, and the token after the last: None for none."""
    width, names = keyring.context_width, []
    prompted = []
    if keyring.public.reads_prompt:
        prompted = [tuple(prompt[i : i + width]) for i in range(len(prompt) - width + 1)]
    for n in range(len(ids) + 1):
        context = tuple(ids[n - width : n])
        earlier = [tuple(ids[i - width : i]) for i in range(width, n)]
        names.append(None)
        if n < width or context in earlier or context in prompted:  # rules 1 and 2
            continue
        slot = keyring.schedule.names[keyring.slots_of(np.array([context], dtype=np.uint32))[0]]
        if slot == "global":  # rule 3
            names[-1] = ("global", "")
        elif slot != "control" and slot in labels:
            names[-1] = (slot, labels[slot])
    return names


def _make_responses(width):
    """Random, and made to repeat: constants, short periods, a context that overlaps itself."""
    rng = np.random.default_rng(width)
    for size in (1, 2, 3, 12, 300):
        for length in (0, 1, 2, 3, 4, 7, 40):
            yield rng.integers(0, size, length).tolist()
    for period in (1, 2, 3, 4, 5):
        yield (rng.integers(0, 300, period).tolist() * 20)[:30]
    start = rng.integers(0, 300, width).tolist()
    yield [*start, *rng.integers(0, 300, 9).tolist(), *start]  # the first context, again at the end
    yield [*start, *start[1:], 5, *start, 6]


def _make_cases(width):
    """Each response after prompts: none, shorter than k, of its own ids, long and random."""
    rng = np.random.default_rng(width)
    for ids in _make_responses(width):
        yield ids, []
        yield ids, [7] * (width - 1)
        yield ids, [*rng.integers(0, 300, 5).tolist(), *ids[-width - 1 :]]  # at the very end
        yield ids, [*ids[:width], 300, *ids[2:], *ids[2:]]  # at the beginning, and repeated
        yield ids, rng.integers(0, 1 + max([*ids, 1]), 40).tolist()


def _fill(responses, beyond=9):
    """Rows of equal length, padded at the end with ids that must not matter."""
    longest = max(4, max(map(len, responses)))
    padded = np.full((len(responses), longest), beyond, dtype=np.uint32)
    for row, ids in enumerate(responses):
        padded[row, : len(ids)] = ids
    return padded, np.array([len(ids) for ids in responses])


def test_the_hosts_forms_read_the_rules(watermark):
    """The next token of a batch, and the tokens of a whole response."""
    keyring, seen = watermark.keyring, set()
    for number, (ids, prompt) in enumerate(_make_cases(keyring.context_width)):
        labels = LABELS[number % len(LABELS)]
        names = _read_plainly(keyring, labels, ids, prompt)
        prefixes = [np.array(ids[:n], dtype=np.uint32) for n in range(len(ids) + 1)]
        prompts = [watermark.read_prompt(prompt)] * len(prefixes)
        keys = watermark.next_keys([labels] * len(prefixes), prefixes, prompts)
        assert [None if key is None else (key.slot, key.value) for key in keys] == names
        whole = np.array(ids, dtype=np.uint32)
        marked = watermark.marked_positions(labels, whole, prompt)
        assert marked.tolist() == [name is not None for name in names[:-1]]
        seen |= set(names)
    assert {None, ("global", ""), ("week", "2026-W17"), ("capability", "code")} < seen
    assert {("cohort", "a"), ("cohort", "b")} < seen


def test_the_rows_of_a_batch_look_into_their_own_prompts(watermark):
    """`draw_scores`: which rows the coins decide, shown by uniforms that change the others."""
    keyring, size = watermark.keyring, watermark.keyring.public.vocabulary_size
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 300, (40, 12)).tolist()
    cases = [(row, row[i % 13 :]) for i, row in enumerate(rows)]
    responses = np.array([ids for ids, _ in cases], dtype=np.uint32)
    scores = np.zeros((len(cases), size), dtype=np.float32)
    scores[:, 90:] = -np.inf
    drawn = []
    for seed in range(8):
        mark = Watermark(keyring, np.random.default_rng(seed))
        numbers = mark.key_numbers([LABELS[0]] * len(cases))
        prompts = mark.read_prompts([prompt for _, prompt in cases])
        drawn.append(mark.draw_scores(numbers, responses, scores, prompts))
        twice = mark.draw_scores(
            np.repeat(numbers, 2, axis=0),
            np.repeat(responses, 2, axis=0),
            np.repeat(scores, 2, axis=0),
            prompts.repeat(2),
        )
        drawn += [twice[::2], twice[1::2]]
    steady = (np.array(drawn) == drawn[0]).all(axis=0)
    names = [_read_plainly(keyring, LABELS[0], ids, prompt)[-1] for ids, prompt in cases]
    assert steady.tolist() == [name is not None for name in names]
    assert 0 < steady.sum() < len(cases)


@pytest.mark.parametrize("fused", [False, True], ids=["torch", "triton"])
def test_the_devices_copies_read_the_rules(watermark, fused):
    torch = pytest.importorskip("torch")
    from provenance.embed.device.torch_batch import DevicePrompts, DeviceWatermark
    from provenance.embed.device.torch_coins import has_kernels, pack_keys
    from tests.embed.device import DEVICE

    if fused and not has_kernels(torch.device(DEVICE)):
        pytest.skip("the kernels need a GPU, or TRITON_INTERPRET=1")
    keyring, rng = watermark.keyring, np.random.default_rng(0)
    device = DeviceWatermark(keyring, DEVICE)
    cases = [
        (labels, ids[:n], prompt, _read_plainly(keyring, labels, ids, prompt)[n])
        for number, (ids, prompt) in enumerate(_make_cases(keyring.context_width))
        for labels in [LABELS[number % len(LABELS)]]
        for n in {0, 1, 2, 3, len(ids) // 2, len(ids)}
        if n <= len(ids)
    ]
    if fused and DEVICE == "cpu":  # the interpreter takes a second a row
        cases = [cases[i] for i in rng.permutation(len(cases))[:40]]
    padded, lengths = _fill([ids for _, ids, _, _ in cases])
    seeds = [i.to_bytes(32, "little") for i in range(len(cases))]
    order = rng.permutation(len(cases))  # the prompts stand elsewhere than their rows
    asked, sizes = _fill([cases[i][2] for i in order])
    rows = np.argsort(order)
    prompts = DevicePrompts(
        torch.from_numpy(asked.astype(np.int32)).to(DEVICE),
        torch.from_numpy(rows).to(DEVICE),
        torch.from_numpy(sizes[rows]).to(DEVICE),
    )
    marked, keys, nonces = device._find_keys(
        torch.from_numpy(padded.astype(np.int64)).to(DEVICE),
        torch.from_numpy(lengths).to(DEVICE),
        torch.from_numpy(np.stack([device.key_numbers(case[0]) for case in cases])).to(DEVICE),
        pack_keys(seeds, DEVICE),
        prompts if keyring.reads_prompt else None,
        fused,
    )
    width = keyring.context_width
    for row, (_, ids, _, name) in enumerate(cases):
        assert bool(marked[row]) == (name is not None)
        secret = seeds[row] if name is None else keyring.key(*name).reveal()
        assert keys[row].cpu().numpy().tobytes() == secret
        nonce = [len(ids)] if name is None else ids[len(ids) - width :]
        assert nonces[row].tolist() == [-1] * (3 - len(nonce)) + nonce


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    ids=st.lists(st.integers(0, 3), max_size=14),
    prompt=st.lists(st.integers(0, 3), max_size=9),
    labels=st.sampled_from(LABELS),
)
def test_any_short_response(watermark, ids, prompt, labels):
    names = _read_plainly(watermark.keyring, labels, ids, prompt)
    array = np.array(ids, dtype=np.uint32)
    (key,) = watermark.next_keys([labels], [array], [watermark.read_prompt(prompt)])
    assert (None if key is None else (key.slot, key.value)) == names[-1]
    marked = watermark.marked_positions(labels, array, prompt).tolist()
    assert marked == [name is not None for name in names[:-1]]


def test_without_the_prompt_nothing_is_drawn_or_replayed(watermark):
    ids, scores = np.array([[5, 6, 7, 8]], dtype=np.uint32), np.zeros((1, 90), dtype=np.float32)
    few = np.arange(9, dtype=np.uint32)
    numbers, reads = watermark.key_numbers([{}]), watermark.keyring.reads_prompt
    two = watermark.read_prompts([[1, 2, 3], [4]])
    for draw in (
        lambda: watermark.draw({}, ids[0], few, np.ones(9)),
        lambda: watermark.next_keys([{}], [ids[0]]),
        lambda: watermark.next_keys([{}], [ids[0]], two),
        lambda: watermark.draw_batch([{}], [ids[0]], np.ones((1, 9))),
        lambda: watermark.draw_scores(numbers, ids, scores),
        lambda: watermark.draw_scores(numbers, ids, scores, two),
        lambda: watermark.marked_positions({}, ids[0]),
    ):
        if reads:
            with pytest.raises(UsageError, match="prompts must be given") as refused:
                draw()
            assert "\n" not in str(refused.value)
        else:
            draw()


def test_placeholders_in_a_prompt_are_in_no_context():
    """Images stand in a prompt as ids that are no token's: negative, or beyond every vocabulary."""
    read = PromptContexts.read([[5, 6, -1, 7, 8, 1 << 21, 9, 10, 11]], 2)
    held = {(a, b) for a in range(12) for b in range(12) if read.hold(np.array([a, b], np.uint32))}
    assert held == {(5, 6), (7, 8), (9, 10), (10, 11)}
    assert len(read[0]) == 1


def test_labels_name_keys_and_misspelt_ones_are_refused_where_that_is_asked(watermark):
    keyring = watermark.keyring
    named = name_keys(keyring.schedule, LABELS[2])
    assert named == [None, ("global", ""), ("week", "2026-W18"), None, ("cohort", "a")]
    check_labels(keyring, LABELS[2], names_may_be_unknown=True)
    for wrong in (LABELS[2], {"wek": "2026-W17"}, {"week": "1999-W01"}, {"control": ""}):
        with pytest.raises(ConfigurationMismatchError, match="must have a key") as refused:
            check_labels(keyring, wrong, names_may_be_unknown=False)
        assert "\n" not in str(refused.value)
