"""Innocent readers under the true keys of many keyrings, and readers that leak."""

import dataclasses
import json

import numpy as np
import pytest

from provenance.check.examine import CheckSettings, check_outputs
from provenance.check.score import score, weigh_observations
from provenance.errors import ConfigurationMismatchError
from provenance.marks.own import make_scheme
from provenance.suspect.access.documents import Documents
from provenance.suspect.access.probabilities import observe_logprobs, observe_weights
from tests.suspect.lab import Markov
from tests.world.synthetic import Teacher, make_world

RESIDUAL = CheckSettings(rule="residual", placebo_keys=60)


@pytest.fixture(scope="module")
def teacher():
    return Teacher.draw(0)


@pytest.fixture(scope="module")
def make(tmp_path_factory, teacher):
    made = {}

    def world(seed):
        if seed not in made:
            folder = tmp_path_factory.mktemp("validity")
            made[seed] = make_world(folder, teacher, 2 * seed, 40, 40)
        return made[seed]

    return world


def _documents(world):
    return Documents([world.folder / "served.jsonl"], world.tokenizer, world.index, world.keyring)


def _z(world, observed):
    """z of every true key."""
    keyring = world.keyring
    scheme = make_scheme(keyring.public.scheme.name, keyring.public.scheme.parameters)
    weighing = weigh_observations(observed, world.index, keyring, "residual")
    return [score(p, keyring.key(*pair), scheme).z for pair, p in weighing.hypotheses.items()]


def _assert_standard(z):
    """Mean 0 and sd 1, within 4 standard errors."""
    assert abs(np.mean(z)) < 4 / np.sqrt(len(z))
    assert abs(np.std(z) - 1) < 4 / np.sqrt(2 * len(z))


@pytest.mark.parametrize(
    "keyrings", [5, pytest.param(60, marks=pytest.mark.slow)], ids=["few", "many"]
)
def test_true_keys_of_an_innocent_reader_are_standard(make, teacher, keyrings):
    """Marked documents, read in full; as good a model of the language as there is."""
    alone, beside, leaking = [], [], []
    suspect, other = Markov(teacher), Markov(teacher, shift=1)
    for seed in range(keyrings):
        world = make(seed)
        alone += _z(world, observe_weights(suspect, None, _documents(world)))
        beside += _z(world, observe_weights(suspect, other, _documents(world)))
        if seed < 2:
            leak = observe_weights(Markov(teacher, 0.1), other, _documents(world))
            leaking += _z(world, leak)
    assert len(alone) == len(beside) == 7 * keyrings
    _assert_standard(alone)
    _assert_standard(beside)
    assert np.mean(leaking) > 2, "the same test sees a reader that knows the log"


def test_a_reader_that_knows_the_log_fails_the_innocent_control(make, teacher):
    """Placebo keys and the control slot cannot see it; an innocent model under the keys can."""
    world = make(0)
    reference = Markov(teacher, shift=1)
    observed = observe_weights(Markov(teacher), reference, _documents(world))
    leaking = observe_weights(Markov(teacher, 0.3), reference, _documents(world))
    fair = check_outputs(observed, world.index, world.keyring, RESIDUAL, {"fair": observed})
    assert not fair.found_evidence
    assert fair.controls_passed
    found = check_outputs(observed, world.index, world.keyring, RESIDUAL, {"leak": leaking})
    failed = [control.name for control in found.controls if not control.passed]
    assert failed == ["innocent leak"]
    assert found.conclusion == "inconclusive"
    assert "innocent leak" in found.reasons[0]
    alone = check_outputs(leaking, world.index, world.keyring, RESIDUAL)
    assert alone.controls_passed
    assert alone.conclusion == "evidence"


class EvenOnly:
    """A reference with another tokenizer: it can read a position if an even token stands there.

    Like a tokenizer that joins a word with odd tokens: whether there is a boundary depends on the
    token that stands behind it. It has twins for the tokens of one parity only.
    """

    def __init__(self, reader, parity):
        self._reader, self._parity = reader, parity
        self.description = {"kind": "fake", "name": "even only"}
        self.reads_other_tokens = True

    def read(self, positions, wanted):
        usable = wanted & (positions.tokens % 2 == 0)
        reading = self._reader.read(positions, usable)
        kept = reading.tokens % 2 == self._parity
        return dataclasses.replace(
            reading,
            contexts=reading.contexts[kept],
            tokens=reading.tokens[kept],
            masses=reading.masses[kept],
            tally={**reading.tally, "positions": float(wanted.sum())},
        )


def _write_logprobs(world, reader):
    """The logprobs of a reader over the marked responses, as vLLM would give them for a prompt."""
    path = world.folder / "logprobs.jsonl"
    with path.open("w") as file:
        for positions, _ in _documents(world):
            reading = reader.rows(positions)
            lists = [[[] for _ in ids] for ids in positions.outputs]
            for row, place, probabilities in zip(
                positions.rows, positions.offsets, reading, strict=True
            ):
                chosen = np.flatnonzero(probabilities > 0.002)
                lists[row][place] = [[int(i), float(np.log(probabilities[i]))] for i in chosen]
            for ids, listed in zip(positions.outputs, lists, strict=True):
                record = {"output_token_ids": ids.tolist(), "top_logprobs": listed}
                file.write(json.dumps(record) + "\n")
    return path


def test_logprobs_with_a_reference_that_reads_other_tokens_are_refused(make, teacher):
    """Measured before it was refused: z of an innocent -2.4 or +1.8 on average."""
    world = make(0)
    path = _write_logprobs(world, Markov(teacher))
    with pytest.raises(ConfigurationMismatchError):
        observe_logprobs(
            [path], EvenOnly(Markov(teacher), 1), world.tokenizer, world.index, world.keyring
        )


def test_logprobs_of_an_innocent_over_marked_responses_are_standard(make, teacher):
    z = []
    for seed in range(5):
        world = make(seed)
        path = _write_logprobs(world, Markov(teacher))
        reference = Markov(teacher, shift=1)
        observed = observe_logprobs([path], reference, world.tokenizer, world.index, world.keyring)
        z += _z(world, observed)
    _assert_standard(z)


def _write_prompt_logprobs(world, reader, count):
    """As vLLM lists tokens of a prompt: the most probable ones, and the one that stands there."""
    path = world.folder / f"top-{count}.jsonl"
    with path.open("w") as file:
        for positions, _ in _documents(world):
            rows = reader.rows(positions)
            lists = [[None, *({} for _ in ids[1:])] for ids in positions.outputs]
            places = zip(positions.rows, positions.offsets, positions.tokens, rows, strict=True)
            for row, place, token, probabilities in places:
                best = dict.fromkeys([*np.argsort(-probabilities)[:count].tolist(), int(token)])
                values = np.log(np.maximum(probabilities, 1e-12))
                lists[row][place] = {str(i): {"logprob": float(values[i])} for i in best}
            for ids, listed in zip(positions.outputs, lists, strict=True):
                record = {"prompt_token_ids": ids.tolist(), "prompt_logprobs": listed}
                file.write(json.dumps({**record, "response_start": 0}) + "\n")
    return path


def test_a_token_that_is_listed_because_it_stands_there_does_not_accuse(make, teacher, monkeypatch):
    """The five most probable tokens and the one that the coin chose; the double keeps that one."""
    reference, cleaned, listed = Markov(teacher, shift=1), [], []
    for seed in range(5):
        world = make(seed)
        path = _write_prompt_logprobs(world, Markov(teacher), 5)
        fixed = ([path], reference, world.tokenizer, world.index, world.keyring)
        cleaned += _z(world, observe_logprobs(*fixed))
        with monkeypatch.context() as patch:
            patch.setattr(
                "provenance.suspect.access.logprobs.forget_chosen", lambda lists, _: lists
            )
            listed += _z(world, observe_logprobs(*fixed))
    _assert_standard(cleaned)
    assert np.mean(listed) > 6 / np.sqrt(len(listed))
