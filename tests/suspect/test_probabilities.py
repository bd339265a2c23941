"""Reading with weights: documents, and masses against slow oracles, position by position."""

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

from provenance.check.score import weigh_observations
from provenance.coins.contexts import unpack
from provenance.errors import ConfigurationMismatchError, DataError
from provenance.keys.schedule import SELECTOR_KEY
from provenance.served.writer import LogWriter
from provenance.storage.files import sha256_of_file
from provenance.suspect.access.documents import Documents, find_served
from provenance.suspect.access.outputs import read_positions
from provenance.suspect.access.probabilities import expect_with_model, observe_weights
from provenance.suspect.passes import Reading
from tests.suspect.lab import (
    LEAST,
    Document,
    Markov,
    quote,
    read_documents,
    slow_foreign_read,
    slow_read,
    slow_served,
)
from tests.world.synthetic import Teacher, make_world

WIDTH = 2


@pytest.fixture(scope="module")
def documents(log, tokenizer, index, keyring):
    return Documents([log], tokenizer, index, keyring)


@pytest.fixture(scope="module")
def slow_documents(log, tokenizer):
    return list(read_documents(log, tokenizer))


@pytest.fixture(scope="module")
def served(slow_documents):
    return slow_served(slow_documents, WIDTH)


# ---- documents ----


def _walk(documents):
    """(document, place, context, token, wanted) of every position, over all parts."""
    found, start = [], 0
    for positions, wanted in documents:
        contexts = unpack(positions.contexts, WIDTH).tolist()
        columns = (positions.rows, positions.offsets, positions.tokens, wanted)
        for context, row, place, token, want in zip(
            contexts, *(column.tolist() for column in columns), strict=True
        ):
            found.append((start + row, place, tuple(context), token, want))
        start += len(positions.outputs)
    return found


def _slow_walk(slow_documents, served):
    return [
        (row, place, context, one.ids[place], context in served)
        for row, one in enumerate(slow_documents)
        for place, context in one.positions(WIDTH)
    ]


def test_positions_are_first_occurrences_outside_of_the_prompt(documents, slow_documents, served):
    found = _walk(documents)
    assert found == _slow_walk(slow_documents, served)
    assert any(not want for *_, want in found), "some context was served unmarked only"
    # the rules have something to do in this log
    [(positions, _)] = list(documents)
    assert positions.repeated > 10
    assert positions.prompted > 10
    assert positions.quoted > 10
    assert positions.with_prompt == sum(bool(one.prompt) for one in slow_documents)
    assert positions.short_outputs == 2


@pytest.mark.parametrize("limit", [1, 13, 23, 24, 25, 1000])
def test_a_limit_reads_the_first_documents(documents, slow_documents, served, limit):
    found = _walk(dataclasses.replace(documents, limit=limit))
    assert found == _slow_walk(slow_documents[:limit], served)


@pytest.mark.parametrize("limit", [None, 5])
def test_unmarked_only_reads_all_unmarked_documents(documents, slow_documents, served, limit):
    chosen = dataclasses.replace(documents, limit=limit, unmarked_only=True)
    unmarked = [one for one in slow_documents if not one.marked][:limit]
    assert _walk(chosen) == _slow_walk(unmarked, served)


@pytest.mark.parametrize("limit", [None, 5, 6, 7])
def test_many_parts_are_one_reading(documents, slow_documents, served, monkeypatch, limit):
    monkeypatch.setattr("provenance.suspect.access.documents.PART_DOCUMENTS", 3)
    chosen = dataclasses.replace(documents, limit=limit)
    assert all(len(positions.outputs) <= 3 for positions, _ in chosen)
    assert _walk(chosen) == _slow_walk(slow_documents[:limit], served)


def test_unmarked_documents_behind_parts_without_any(
    tmp_path, documents, slow_documents, served, monkeypatch
):
    """A whole part can be empty before a document that counts comes."""
    monkeypatch.setattr("provenance.suspect.access.documents.PART_DOCUMENTS", 4)
    with LogWriter(tmp_path / "late.jsonl") as log:
        for i, one in enumerate(slow_documents[:9]):
            log.write(f"r{i}", labels={}, marked=i < 8, token_ids=one.ids)
    late = dataclasses.replace(documents, paths=[tmp_path / "late.jsonl"], unmarked_only=True)
    assert {row for row, *_ in _walk(dataclasses.replace(late, limit=1))} <= {0}
    assert len(list(late)) == 1


def test_no_document_is_a_data_error(tmp_path, documents, slow_documents):
    with LogWriter(tmp_path / "marked.jsonl") as log:
        log.write("r", labels={}, marked=True, token_ids=slow_documents[0].ids)
    marked = dataclasses.replace(documents, paths=[tmp_path / "marked.jsonl"])
    assert len(list(marked)) == 1
    with pytest.raises(DataError, match="another tokenizer can only read unmarked"):
        list(dataclasses.replace(marked, unmarked_only=True))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(DataError, match=r"empty\.jsonl"):
        list(dataclasses.replace(documents, paths=[tmp_path / "empty.jsonl"]))


def test_documents_without_an_indexed_context_are_a_data_error(tmp_path, documents):
    with LogWriter(tmp_path / "strange.jsonl") as log:
        log.write("r", labels={}, marked=True, token_ids=[390, 391, 392, 393, 394])
    strange = dataclasses.replace(documents, paths=[tmp_path / "strange.jsonl"])

    class Mute:
        def __init__(self):
            self.description = {"kind": "fake"}
            self.reads_other_tokens = False

        def read(self, positions, wanted):
            assert not wanted.any()
            none = np.empty(0, dtype=np.int64)
            tally = {"positions": 0.0, "positions_read": 0.0, "mass_kept": 0.0}
            return Reading(none, none.astype(np.uint32), np.empty(0), none, tally)

    with pytest.raises(DataError, match="served marked"):
        observe_weights(Mute(), None, strange)


def test_served_contexts_equal_a_set(index, keyring, served, slow_documents):
    rng = np.random.default_rng(1)
    contexts = [c for one in slow_documents for _, c in one.windows(WIDTH)]
    contexts += [tuple(c) for c in rng.integers(0, 400, (300, 2)).tolist()]
    packed = np.array([(a << 21) | b for a, b in contexts], dtype=np.int64)
    assert find_served(packed, index, keyring).tolist() == [c in served for c in contexts]
    assert find_served(packed[:0], index, keyring).tolist() == []


# ---- weights against a slow oracle ----


def _as_dict(contexts, tokens, *values):
    rows = zip(contexts.tolist(), tokens.tolist(), *(v.tolist() for v in values), strict=True)
    return {(c, t): rest for c, t, *rest in rows}


def _assert_masses(found, slow, places=1):
    """Equal up to probabilities at the threshold, which rounding may keep or drop."""
    for pair in {*found, *slow}:
        tolerance = 1e-4 * max(slow.get(pair, 0), 1) + 1.02 * LEAST * places
        near = found.get(pair, 0.0), slow.get(pair, 0.0)
        assert near[0] == pytest.approx(near[1], abs=tolerance), pair
    close = [abs(found.get(p, 0) - slow.get(p, 0)) < 1e-4 for p in {*found, *slow}]
    assert np.mean(close) > 0.99


def test_weights_without_a_reference_equal_the_oracle(
    load, suspect_folder, documents, slow_documents, served, keyring, log
):
    observed = observe_weights(load(suspect_folder), None, documents)
    size = keyring.public.vocabulary_size
    slow = slow_read(suspect_folder, slow_documents, WIDTH, size, served)
    found = _as_dict(observed.contexts, observed.tokens, observed.masses, observed.totals)
    _assert_masses({pair: mass for pair, (mass, _) in found.items()}, slow.masses)
    assert all(slow.visits[context] == total for (context, _), (_, total) in found.items())
    assert not observed.expected.any()
    assert observed.sampled is False
    assert observed.positions == sum(slow.visits.values())
    assert observed.outputs == len(slow_documents)
    assert observed.tokens_read == sum(len(one.ids) for one in slow_documents)
    assert observed.short_outputs == 2
    assert observed.sha256 == {log.name: sha256_of_file(log)}
    assert observed.reference == {}
    assert observed.source["access"] == "weights"
    assert observed.source["positions_kept"] == observed.source["mass_kept"] == 1.0
    assert observed.source["positions"] == observed.positions
    hashes = observed.source["weights"]
    assert hashes == {"model.safetensors": sha256_of_file(suspect_folder / "model.safetensors")}


def test_weights_with_a_reference_equal_the_oracle(
    load, suspect_folder, base_folder, documents, slow_documents, served, keyring
):
    observed = observe_weights(load(suspect_folder), load(base_folder), documents)
    size = keyring.public.vocabulary_size
    slow = slow_read(suspect_folder, slow_documents, WIDTH, size, served)
    base = slow_read(base_folder, slow_documents, WIDTH, size, served)
    found = _as_dict(observed.contexts, observed.tokens, observed.masses, observed.expected)
    _assert_masses({pair: mass for pair, (mass, _) in found.items()}, slow.masses)
    _assert_masses({pair: mass for pair, (_, mass) in found.items()}, base.masses)
    assert observed.reference["positions_kept"] == 1.0
    assert observed.reference["weights"] != observed.source["weights"]


def test_a_limit_of_pairs_is_passed_through(load, suspect_folder, documents, monkeypatch):
    monkeypatch.setattr("provenance.suspect.passes.sum_passes.__defaults__", (50,))
    observed = observe_weights(load(suspect_folder), None, documents)
    assert observed.contexts.shape == (50,)


def test_another_model_of_the_same_words_weighs_something(
    load, suspect_folder, base_folder, documents, index, keyring
):
    observed = observe_weights(load(suspect_folder), load(base_folder), documents)
    weighing = weigh_observations(observed, index, keyring, "residual")
    assert sum(map(len, weighing.hypotheses.values())) > 500


def test_a_suspect_that_is_its_own_reference_works_with_a_cache(
    load, suspect_folder, documents, tmp_path
):
    """`--innocent BASE --reference BASE --cache DIR`."""
    observe_weights(load(suspect_folder), load(suspect_folder), documents, cache=tmp_path)


# ---- another tokenizer ----


@pytest.fixture(scope="module")
def foreign(load, foreign_folder):
    return load(foreign_folder, other_tokenizer=True)


def test_another_tokenizer_needs_permission(load, foreign_folder, suspect_folder):
    with pytest.raises(ConfigurationMismatchError):
        load(foreign_folder)
    assert load(suspect_folder, other_tokenizer=True).reads_other_tokens is False


@pytest.fixture(scope="module")
def slow_foreign(foreign_folder, foreign_tokenizer, tokenizer, slow_documents, served, keyring):
    pytest.importorskip("torch")
    unmarked = [one for one in slow_documents if not one.marked]
    return slow_foreign_read(
        foreign_folder,
        foreign_tokenizer,
        tokenizer,
        unmarked,
        WIDTH,
        keyring.public.vocabulary_size,
        served,
    )


def test_a_suspect_with_another_tokenizer_reads_unmarked_documents(
    foreign, documents, slow_foreign, slow_documents
):
    observed = observe_weights(foreign, None, documents)
    slow, positions, kept = slow_foreign
    found = _as_dict(observed.contexts, observed.tokens, observed.masses, observed.totals)
    _assert_masses({pair: mass for pair, (mass, _) in found.items()}, slow.masses)
    assert all(slow.visits[context] == total for (context, _), (_, total) in found.items())
    read = sum(slow.visits.values())
    assert observed.outputs == sum(not one.marked for one in slow_documents)
    assert observed.positions == read
    assert 0 < read < positions, "some positions cannot be read, and that is reported"
    assert observed.source["positions"] == positions
    assert observed.source["positions_kept"] == pytest.approx(read / positions)
    assert observed.source["mass_kept"] == pytest.approx(kept / read, rel=1e-4)
    assert 0 < observed.source["mass_kept"] < 1


def test_a_reference_with_another_tokenizer_leaves_marked_documents_out_for_both(
    load, foreign, suspect_folder, documents, slow_documents, slow_foreign, served, keyring
):
    observed = observe_weights(load(suspect_folder), foreign, documents)
    unmarked = [one for one in slow_documents if not one.marked]
    size = keyring.public.vocabulary_size
    own = slow_read(suspect_folder, unmarked, WIDTH, size, served)
    expected, _, _ = slow_foreign
    found = _as_dict(observed.contexts, observed.tokens, observed.masses, observed.expected)
    assert observed.outputs == len(unmarked)
    read = {context for context, _ in found}
    assert read <= set(expected.visits), "a context that the reference never read is left out"
    assert set(own.visits) - read
    _assert_masses(
        {pair: mass for pair, (mass, _) in found.items()},
        {pair: mass for pair, mass in own.masses.items() if pair[0] in expected.visits},
    )
    _assert_masses(
        {pair: mass for pair, (_, mass) in found.items()},
        {
            (c, t): mass * own.visits[c] / expected.visits[c]
            for (c, t), mass in expected.masses.items()
        },
        places=max(own.visits.values()),
    )


def test_the_cache_does_not_mix_marked_and_unmarked_readings(
    load, foreign, suspect_folder, documents, tmp_path
):
    one = observe_weights(load(suspect_folder), None, documents, cache=tmp_path)
    two = observe_weights(load(suspect_folder), foreign, documents, cache=tmp_path)
    assert one.outputs > two.outputs
    three = observe_weights(
        load(suspect_folder), None, dataclasses.replace(documents, limit=5), cache=tmp_path
    )
    assert three.outputs == 5


# ---- a reference for outputs ----


def _write_outputs(path, tokenizer, slow_documents):
    lines = [
        {"prompt": tokenizer.decode(one.prompt), "output": tokenizer.decode(one.ids)}
        for one in slow_documents
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def outputs(tmp_path_factory, tokenizer, slow_documents):
    path = tmp_path_factory.mktemp("outputs") / "outputs.jsonl"
    return _write_outputs(path, tokenizer, slow_documents)


@pytest.fixture(scope="module")
def output_positions(outputs, tokenizer, keyring):
    return read_positions([outputs], tokenizer, keyring.public)


def _slow_outputs(positions, tokenizer):
    return [
        Document(
            prompt.tolist(),
            ids.tolist(),
            False,
            quote(tokenizer, prompt.tolist(), ids.tolist(), drawn=True),
        )
        for prompt, ids in zip(positions.prompts, positions.outputs, strict=True)
    ]


def test_expectations_of_a_model_equal_the_oracle(
    load, base_folder, output_positions, index, keyring, served, tokenizer, monkeypatch
):
    size = keyring.public.vocabulary_size
    documents = _slow_outputs(output_positions, tokenizer)
    slow = slow_read(base_folder, documents, WIDTH, size, served)
    for part in (256, 7):
        monkeypatch.setattr("provenance.suspect.access.probabilities.PART_DOCUMENTS", part)
        told = []
        expected = expect_with_model(
            load(base_folder),
            output_positions,
            index,
            keyring,
            progress=lambda *pair, told=told: told.append(pair),
        )
        found = _as_dict(expected.contexts, expected.tokens, expected.masses)
        _assert_masses({pair: mass for pair, (mass,) in found.items()}, slow.masses)
        assert expected.reference["kind"] == "model"
        assert expected.reference["positions_kept"] == 1.0
        assert told == [("reference", n + 1) for n in range(-(-24 // part))]


def test_expectations_with_another_tokenizer_are_scaled_to_where_the_context_stood(
    foreign, foreign_folder, foreign_tokenizer, tokenizer, output_positions, index, keyring, served
):
    expected = expect_with_model(foreign, output_positions, index, keyring)
    size = keyring.public.vocabulary_size
    documents = _slow_outputs(output_positions, tokenizer)
    slow, positions, _ = slow_foreign_read(
        foreign_folder, foreign_tokenizer, tokenizer, documents, WIDTH, size, served
    )
    stood = Counter()
    for one in documents:
        stood.update((a << 21) | b for _, (a, b) in one.positions(WIDTH))
    scaled = {(c, t): mass * stood[c] / slow.visits[c] for (c, t), mass in slow.masses.items()}
    found = _as_dict(expected.contexts, expected.tokens, expected.masses)
    _assert_masses({pair: mass for pair, (mass,) in found.items()}, scaled, places=10)
    assert expected.reference["positions"] == positions
    assert 0 < expected.reference["positions_kept"] < 1


# ---- resuming ----


class Breaking:
    """A reader that stops after some parts, as if the process had been killed."""

    def __init__(self, reader, parts):
        self._reader, self._left = reader, parts
        self.description = reader.description
        self.reads_other_tokens = reader.reads_other_tokens
        self.read_parts = 0

    def read(self, positions, wanted):
        if self._left == 0:
            raise KeyboardInterrupt
        self._left -= 1
        self.read_parts += 1
        return self._reader.read(positions, wanted)


@pytest.fixture(scope="module")
def teacher():
    return Teacher.draw(0)


@pytest.fixture(scope="module")
def world(tmp_path_factory, teacher):
    return make_world(tmp_path_factory.mktemp("world"), teacher, 1, 120, 40)


def _read_world(world):
    return Documents([world.folder / "served.jsonl"], world.tokenizer, world.index, world.keyring)


def test_a_suspect_that_is_its_own_reference_weighs_nothing(world, teacher, monkeypatch):
    monkeypatch.setattr("provenance.suspect.access.documents.PART_DOCUMENTS", 2)
    for _ in range(3):
        observed = observe_weights(Markov(teacher), Markov(teacher), _read_world(world))
        np.testing.assert_allclose(observed.masses, observed.expected, rtol=1e-9)
        weighing = weigh_observations(observed, world.index, world.keyring, "residual")
        assert sum(map(len, weighing.hypotheses.values())) == 0


def test_a_pass_that_was_cut_off_gives_the_identical_verdict(world, teacher, tmp_path, monkeypatch):
    from provenance.check.examine import CheckSettings, check_outputs

    monkeypatch.setattr("provenance.suspect.access.documents.PART_DOCUMENTS", 20)
    settings = CheckSettings(rule="residual", placebo_keys=50)
    suspect, reference = Markov(teacher, 0.1, "suspect"), Markov(teacher, 0, "reference")

    def verdict(one, two, cache):
        observed = observe_weights(one, two, _read_world(world), cache=cache)
        found = check_outputs(observed, world.index, world.keyring, settings)
        return json.dumps(found.to_json(), sort_keys=True)

    whole = verdict(suspect, reference, None)
    assert json.loads(whole)["conclusion"] == "evidence"
    for one, two in ((Breaking(suspect, 2), reference), (suspect, Breaking(reference, 3))):
        with pytest.raises(KeyboardInterrupt):
            verdict(one, two, tmp_path)
    one, two = Breaking(suspect, 6), Breaking(reference, 6)
    assert verdict(one, two, tmp_path) == whole
    assert (one.read_parts, two.read_parts) == (0, 3)


def test_a_complete_cache_never_loads_the_model(
    load, suspect_folder, documents, tmp_path, monkeypatch
):
    whole = observe_weights(load(suspect_folder), None, documents, cache=tmp_path)
    monkeypatch.setattr(
        "provenance.suspect.models.language_model.load_model",
        lambda _: pytest.fail("it was loaded"),
    )
    again = observe_weights(load(suspect_folder), None, documents, cache=tmp_path)
    np.testing.assert_allclose(again.masses, whole.masses, rtol=1e-12)
    assert again.source == whole.source


# ---- weights never see coins ----


def test_an_observation_opens_no_marking_key(world, teacher, monkeypatch):
    opened = []
    original = type(world.keyring).key

    def spy(self, slot, value):
        opened.append((slot, value))
        return original(self, slot, value)

    monkeypatch.setattr(type(world.keyring), "key", spy)
    observed = observe_weights(Markov(teacher), None, _read_world(world))
    weigh_observations(observed, world.index, world.keyring, "residual")
    assert set(opened) <= {SELECTOR_KEY}
    assert observed.masses.size > 1000
