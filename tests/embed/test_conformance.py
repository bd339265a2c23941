"""The conformance check passes a right adapter and sees every way to be wrong that it names."""

from __future__ import annotations

import random

import numpy as np
import pytest

from provenance.embed import conformance
from provenance.embed.conformance import ConformanceReport
from provenance.embed.watermark import Watermark
from provenance.served.records import ServedResponse
from tests.embed.toy import ToyAdapter

SAME = "same ids for the same uniforms, no state left behind"
NEIGHBOURS = "rows do not depend on neighbours or padding"
OVER_KEYS = "marked draws follow the model over keys"
ORDINARY = "ordinary draws follow the model"
REPLAY = "marked draws are those of the coins"
BEFORE = "so are those of a keyring of before"
REPEATS = "repeated contexts are drawn unmarked"
PROMPT = "contexts do not reach into the prompt"
PROMPTED = "contexts of the prompt are drawn unmarked"
END = "the end token ends a response"
FOUND = "marks are found by detect"
OTHERS = "no key of another label is found"
OWN = "equal requests get randomness of their own"
GLOBALS = "no global generator is used or seeded"


class Unmarked(ToyAdapter):
    def draw(self, watermark, numbers, responses, scores, requests, ids):
        return watermark.draw_scores(np.full_like(numbers, -1), responses, scores, self.read)


class RemarksRepeats(ToyAdapter):
    """Shows the watermark the last token only: it cannot see that a context was there before."""

    def draw(self, watermark, numbers, responses, scores, requests, ids):
        return watermark.draw_scores(numbers, responses[:, -1:], scores, self.read)


class WrongPadding(ToyAdapter):
    """Cuts each row at the length of its own prompt, not at the padded width."""

    def draw(self, watermark, numbers, responses, scores, requests, ids):
        rows = [
            watermark.draw_scores(
                numbers[i : i + 1],
                ids[i : i + 1, len(request.prompt) :],
                scores[i : i + 1],
                self.read[i],
            )[0]
            for i, request in enumerate(requests)
        ]
        return np.array(rows)


class ReachesIntoThePrompt(ToyAdapter):
    def draw(self, watermark, numbers, responses, scores, requests, ids):
        start = ids.shape[1] - responses.shape[1]
        return watermark.draw_scores(numbers, ids[:, start - 1 :], scores, self.read)


class ForgetsThePrompt(ToyAdapter):
    """As under the keyrings of before: marks contexts that stand in the prompt."""

    def draw(self, watermark, numbers, responses, scores, requests, ids):
        empty = watermark.read_prompts([()] * len(requests))
        return watermark.draw_scores(numbers, responses, scores, empty)


class PromptOfTheNeighbour(ToyAdapter):
    def draw(self, watermark, numbers, responses, scores, requests, ids):
        others = watermark.read_prompts([request.prompt for request in requests[1:] + requests[:1]])
        return watermark.draw_scores(numbers, responses, scores, others)


class HotMarkedDraws(ToyAdapter):
    """Draws before the temperature is applied."""

    def draw(self, watermark, numbers, responses, scores, requests, ids):
        return watermark.draw_scores(numbers, responses, scores * np.float32(0.6), self.read)


class IgnoresTopK(ToyAdapter):
    """The model's probabilities have survivors only; the draw sees all tokens."""

    def probabilities(self, prompt, response):
        p = super().probabilities(prompt, response)
        return np.where(p < np.sort(p, axis=1)[:, -30:-29], 0, p)


class LabelsOfTheNeighbour(ToyAdapter):
    def draw(self, watermark, numbers, responses, scores, requests, ids):
        return watermark.draw_scores(np.roll(numbers, 1, axis=0), responses, scores, self.read)


class LabelsOfTheFirstRow(ToyAdapter):
    def draw(self, watermark, numbers, responses, scores, requests, ids):
        return watermark.draw_scores(
            np.tile(numbers[:1], (len(numbers), 1)), responses, scores, self.read
        )


class OneLabelForAll(ToyAdapter):
    def draw(self, watermark, numbers, responses, scores, requests, ids):
        wrong = watermark.key_numbers([{"trial": "trial-01"}] * len(numbers))
        return watermark.draw_scores(wrong, responses, scores, self.read)


class GoesOnAfterTheEnd(ToyAdapter):
    def cut(self, ids):
        return ids


class DropsTheEnd(ToyAdapter):
    """What every adapter did once: the end token was drawn by the coins, and then forgotten."""

    def cut(self, ids):
        ends = np.flatnonzero(ids == self.end_token)
        return ids[: ends[0]] if ends.size else ids


class SaysThatAllWereCut(ToyAdapter):
    """A log of it claims that the end token was not drawn."""

    def cut(self, ids):
        return ServedResponse(token_ids=super().cut(ids), finish="length")


class NeverEnds(ToyAdapter):
    def draw(self, watermark, numbers, responses, scores, requests, ids):
        scores[:, self.end_token] = -np.inf
        return watermark.draw_scores(numbers, responses, scores, self.read)


class KeepsItsGenerator(ToyAdapter):
    """One generator for all calls: what was served before changes what comes next."""

    kept = None

    def load(self, keys, seed):
        if self.kept is None:
            self.kept = Watermark.load(keys, np.random.default_rng(seed))
        return self.kept


class KeepsItsKeyring(ToyAdapter):
    """An engine that goes on under the keyring that it started with."""

    kept = None

    def load(self, keys, seed):
        self.kept = self.kept or keys
        return super().load(self.kept, seed)


class OneUniformForAllRows(ToyAdapter):
    def load(self, keys, seed):
        class Constant(np.random.Generator):
            def random(self, size=None):
                return np.full(size, super().random())

        return Watermark.load(keys, Constant(np.random.PCG64(seed)))


class UsesNumpysGlobalGenerator(ToyAdapter):
    def load(self, keys, seed):
        np.random.seed(seed)
        return super().load(keys, np.random.randint(2**31))


class UsesPythonsGlobalGenerator(ToyAdapter):
    def load(self, keys, seed):
        return super().load(keys, random.getrandbits(30))


class SeedsTorch(ToyAdapter):
    def load(self, keys, seed):
        pytest.importorskip("torch").manual_seed(seed)
        return super().load(keys, seed)


def _check(adapter_class, tokenizer_path, keyring, tmp_path) -> ConformanceReport:
    adapter = adapter_class(tokenizer_path, keyring.public.vocabulary_size)
    return conformance.check(adapter, tmp_path)


def test_a_right_adapter_passes_and_the_report_has_a_line_for_each_rule(
    tokenizer_path, keyring, tmp_path
):
    report = _check(ToyAdapter, tokenizer_path, keyring, tmp_path)
    assert report.passed, str(report)
    assert [line.name for line in report.lines] == [
        *(SAME, NEIGHBOURS, OVER_KEYS, ORDINARY, REPLAY, REPEATS, PROMPTED),
        *(END, FOUND, OTHERS, OWN, GLOBALS, BEFORE, PROMPT),
    ]
    assert str(report).count("\npass") == len(report.lines) - 1


@pytest.mark.parametrize(
    ("adapter_class", "seen"),
    [
        (Unmarked, {REPLAY, FOUND, NEIGHBOURS}),
        (RemarksRepeats, {REPEATS}),
        (WrongPadding, {PROMPT}),
        (ReachesIntoThePrompt, {PROMPT}),
        (ForgetsThePrompt, {PROMPTED}),
        (PromptOfTheNeighbour, {PROMPTED}),
        (HotMarkedDraws, {OVER_KEYS, ORDINARY}),
        (IgnoresTopK, {OVER_KEYS, ORDINARY}),
        (LabelsOfTheNeighbour, {REPLAY, NEIGHBOURS}),
        (LabelsOfTheFirstRow, {REPLAY, NEIGHBOURS}),
        (OneLabelForAll, {REPLAY, FOUND, OTHERS}),
        (GoesOnAfterTheEnd, {END}),
        (DropsTheEnd, {END}),
        (SaysThatAllWereCut, {END}),
        (NeverEnds, {END}),
        (KeepsItsGenerator, {SAME}),
        (KeepsItsKeyring, {BEFORE}),
        (OneUniformForAllRows, {OWN}),
        (UsesNumpysGlobalGenerator, {GLOBALS}),
        (UsesPythonsGlobalGenerator, {GLOBALS}),
        (SeedsTorch, {GLOBALS}),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_every_wrong_adapter_is_seen(adapter_class, seen, tokenizer_path, keyring, tmp_path):
    report = _check(adapter_class, tokenizer_path, keyring, tmp_path)
    assert seen <= set(report.failed()), str(report)


def test_a_line_without_enough_to_judge_by_fails_and_says_so(tokenizer_path, keyring, tmp_path):
    class Short(ToyAdapter):
        new_tokens = 2

    report = _check(Short, tokenizer_path, keyring, tmp_path)
    assert {REPEATS, END} <= set(report.failed())
    assert "needed" in str(report)
