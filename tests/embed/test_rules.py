"""Rules 1 to 3 of the mark: every copy against a plain reading of the sentences."""

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from provenance.embed.rules import check_labels, name_keys
from provenance.embed.watermark import Watermark
from provenance.errors import ConfigurationMismatchError
from tests.conftest import make_keyring

SHARES = {"global": 0.3, "week": 0.2, "capability": 0.2, "cohort": 0.2}
LABELS = (
    {},
    {"week": "2026-W17"},
    {"week": "2026-W18", "cohort": "a", "account": "7"},
    {"week": "2026-W17", "capability": "code", "cohort": "b"},
)


@pytest.fixture(scope="module", params=[1, 2, 3], ids=lambda width: f"k={width}")
def watermark(request, tmp_path_factory, tokenizer_path):
    folder = tmp_path_factory.mktemp("keys")
    return Watermark(make_keyring(folder, tokenizer_path, width=request.param, shares=SHARES))


def _read_plainly(keyring, labels, ids):
    """The name of the key that decides each token, and the token after the last: None for none."""
    width, names = keyring.context_width, []
    for n in range(len(ids) + 1):
        context = tuple(ids[n - width : n])
        earlier = [tuple(ids[i - width : i]) for i in range(width, n)]
        names.append(None)
        if n < width or context in earlier:  # rules 1 and 2
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
    for labels in LABELS:
        for ids in _make_responses(keyring.context_width):
            names = _read_plainly(keyring, labels, ids)
            prefixes = [np.array(ids[:n], dtype=np.uint32) for n in range(len(ids) + 1)]
            keys = watermark.next_keys([labels] * len(prefixes), prefixes)
            assert [None if key is None else (key.slot, key.value) for key in keys] == names
            marked = watermark.marked_positions(labels, np.array(ids, dtype=np.uint32))
            assert marked.tolist() == [name is not None for name in names[:-1]]
            seen |= set(names)
    assert {None, ("global", ""), ("week", "2026-W17"), ("capability", "code")} < seen
    assert {("cohort", "a"), ("cohort", "b")} < seen


@pytest.mark.parametrize("fused", [False, True], ids=["torch", "triton"])
def test_the_devices_copies_read_the_rules(watermark, fused):
    torch = pytest.importorskip("torch")
    from provenance.embed.device.torch_batch import DeviceWatermark
    from provenance.embed.device.torch_coins import has_kernels, pack_keys
    from tests.embed.device import DEVICE

    if fused and not has_kernels(torch.device(DEVICE)):
        pytest.skip("the kernels need a GPU, or TRITON_INTERPRET=1")
    keyring = watermark.keyring
    device = DeviceWatermark(keyring, DEVICE)
    cases = [
        (labels, ids[:n], _read_plainly(keyring, labels, ids)[n])
        for labels in LABELS
        for ids in _make_responses(keyring.context_width)
        for n in {0, 1, 2, 3, len(ids) // 2, len(ids)}
        if n <= len(ids)
    ]
    if fused and DEVICE == "cpu":  # the interpreter takes a second a row
        cases = [cases[i] for i in np.random.default_rng(0).permutation(len(cases))[:40]]
    padded, lengths = _fill([ids for _, ids, _ in cases])
    seeds = [i.to_bytes(32, "little") for i in range(len(cases))]
    marked, keys, nonces = device._find_keys(
        torch.from_numpy(padded.astype(np.int64)).to(DEVICE),
        torch.from_numpy(lengths).to(DEVICE),
        torch.from_numpy(np.stack([device.key_numbers(case[0]) for case in cases])).to(DEVICE),
        pack_keys(seeds, DEVICE),
        fused,
    )
    width = keyring.context_width
    for row, (_, ids, name) in enumerate(cases):
        assert bool(marked[row]) == (name is not None)
        secret = seeds[row] if name is None else keyring.key(*name).reveal()
        assert keys[row].cpu().numpy().tobytes() == secret
        nonce = [len(ids)] if name is None else ids[len(ids) - width :]
        assert nonces[row].tolist() == [-1] * (3 - len(nonce)) + nonce


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(ids=st.lists(st.integers(0, 2), max_size=14), labels=st.sampled_from(LABELS))
def test_any_short_response(watermark, ids, labels):
    names = _read_plainly(watermark.keyring, labels, ids)
    array = np.array(ids, dtype=np.uint32)
    (key,) = watermark.next_keys([labels], [array])
    assert (None if key is None else (key.slot, key.value)) == names[-1]
    marked = watermark.marked_positions(labels, array).tolist()
    assert marked == [name is not None for name in names[:-1]]


def test_labels_name_keys_and_misspelt_ones_are_refused_where_that_is_asked(watermark):
    keyring = watermark.keyring
    named = name_keys(keyring.schedule, LABELS[2])
    assert named == [None, ("global", ""), ("week", "2026-W18"), None, ("cohort", "a")]
    check_labels(keyring, LABELS[2], names_may_be_unknown=True)
    for wrong in (LABELS[2], {"wek": "2026-W17"}, {"week": "1999-W01"}, {"control": ""}):
        with pytest.raises(ConfigurationMismatchError, match="must have a key") as refused:
            check_labels(keyring, wrong, names_may_be_unknown=False)
        assert "\n" not in str(refused.value)
