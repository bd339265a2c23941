"""The fast world counts like the product, and its gate in small: see `make bench-innocents`."""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pytest

from provenance.coins.contexts import unpack
from provenance.keys.schedule import Schedule
from provenance.served.records import READ, list_array, pack_drawn
from provenance.served.windows import windows
from provenance.stats.inversion import log10_upper_tail
from provenance.stats.tables import ClassTable
from provenance.suspect.positions import find_positions
from tests.world.innocents import gate
from tests.world.innocents.coins import marks_of, words_of
from tests.world.innocents.counting import (
    count_served,
    drop_ends,
    find_marked,
    list_draws,
    retokenise,
)
from tests.world.innocents.language import draw_language, mix_languages, scale_ends
from tests.world.innocents.suspects import match_letters
from tests.world.innocents.traffic import Traffic, serve
from tests.world.innocents.weighing import weigh_ends, weigh_unserved

SHARE = 0.3
SHAPES = {
    "plain": Traffic(150),
    "retries": Traffic(60, attempts=5, until=1.3, rare=True),
    "best of 3": Traffic(60, attempts=3, until=np.inf),
    "turns": Traffic(60, turns=4, going_on=-1.0),
    "pasted": Traffic(150, pasting=0.5, liked=True),
}


@dataclass(frozen=True)
class Selector:
    """What `windows` may know of a mark, with the fast world's selector."""

    key: int
    context_width: int
    stride: int

    @property
    def schedule(self):
        return Schedule.from_shares({"global": SHARE}, {})

    def slots_of_names(self, names):
        columns = unpack(names, self.context_width).astype(np.int64)
        contexts = columns @ self.stride ** np.arange(self.context_width - 1, -1, -1)
        return marks_of(self.key, contexts, SHARE).astype(np.uint8)


def _split(ids, lengths):
    return [part.astype(np.uint32) for part in np.split(ids, np.cumsum(lengths)[:-1])]


def _batch(responses, conversations, prompts):
    rows = len(responses.lengths)
    bits = np.split(responses.drawn, np.cumsum(responses.lengths)[:-1])
    asked = _split(responses.prompts, responses.prompt_lengths) if prompts else [None] * rows
    columns = {
        "response_id": [str(i) for i in range(rows)],
        "marked": find_marked(responses).tolist(),
        "labels": [[]] * rows,
        "token_ids": list_array(_split(responses.ids, responses.lengths)),
        "prompt_token_ids": list_array(asked),
        "conversation_id": [str(i) if conversations else None for i in responses.requests],
        "time": [None] * rows,
        "drawn": [pack_drawn(part) if part.any() else None for part in bits],
        "finish": [None] * rows,
        "whole": [True] * rows,
    }
    arrays = [
        columns[field.name]
        if isinstance(columns[field.name], pa.Array)
        else pa.array(columns[field.name], field.type)
        for field in READ
    ]
    return pa.RecordBatch.from_arrays(arrays, schema=READ)


@pytest.mark.parametrize("width", [1, 2])
@pytest.mark.parametrize("shape", SHAPES)
def test_contexts_are_counted_as_the_product_counts_them(shape, width):
    language = draw_language(3, 40, width)
    responses = serve(language, SHAPES[shape], 77, SHARE, 5)
    selector = Selector(77, width, language.stride)
    for conversations in (False, True):
        for prompts in (False, True):
            table = windows(_batch(responses, conversations, prompts), selector)
            found = table.to_pydict()
            of_slot = np.array(found["slot"]) == 1
            packed = np.array(found["context"])[of_slot]
            columns = unpack(packed, width).astype(np.int64)
            names = columns @ language.stride ** np.arange(width - 1, -1, -1)
            if conversations:
                lineages = np.array(found["lineage"], dtype=np.int64)[of_slot]
                names = np.unique(np.stack([names, lineages]), axis=1)[0]
            expected = np.bincount(names, minlength=language.contexts)
            own = count_served(responses, language, conversations=conversations, prompts=prompts)
            marked = marks_of(77, np.arange(language.contexts), SHARE)
            assert expected.sum() > 100
            assert own[marked].tolist() == expected[marked].tolist()


@pytest.mark.parametrize("width", [1, 2])
def test_positions_of_outputs_are_those_of_the_product(width):
    language = draw_language(4, 30, width, merging=0.2)
    responses = serve(language, SHAPES["turns"], None, 0, 6)
    text = retokenise(drop_ends(responses, language), language)
    assert (text.ids > language.words).any()
    outputs = _split(text.ids, text.lengths)
    asked = _split(text.prompts, text.prompt_lengths)
    positions = find_positions(outputs, asked, list(range(len(asked))), width, {})
    draws = list_draws(text, language, prompts=True)
    columns = unpack(positions.contexts, width).astype(np.int64)
    names = columns @ language.stride ** np.arange(width - 1, -1, -1)
    assert draws.contexts.tolist() == names.tolist()
    assert draws.tokens.tolist() == positions.tokens.tolist()
    assert draws.rows.tolist() == positions.rows.tolist()


def test_marked_draws_follow_the_coins_and_the_language():
    """Over keys every candidate is drawn as often as it is probable; the end like any other."""
    language = draw_language(5, 20, 1, ends=0.5)
    enders = np.flatnonzero((language.candidates == language.end).any(axis=1))
    state = int(enders[language.probabilities[enders].max(axis=1).argmin()])
    counts, trials = np.zeros(language.ids), 4000
    for key in range(trials):
        responses = serve(language, Traffic(1, 2), key, 1.0, key)
        # the first id is the beginning, drawn from the language's words at random
        first, second = responses.ids[:2]
        counts[second] += first == state
    expected = np.zeros(language.ids)
    np.add.at(expected, language.candidates[state], language.probabilities[state])
    n = counts.sum()
    assert n > 100
    assert counts[expected == 0].sum() == 0
    error = np.sqrt(expected * (1 - expected) / n)
    assert (np.abs(counts / n - expected) <= 4 * error + 1e-12).all()
    log = serve(draw_language(6, 60), Traffic(500), 9, SHARE, 1)
    draws = list_draws(log, draw_language(6, 60))
    coined = log.drawn[draws.places]
    scores = gate.SCHEME.score(words_of(9, draws.contexts, draws.tokens))
    assert scores[coined].mean() > 1.5 * gate.LAW.mean
    assert abs(scores[~coined].mean() / gate.LAW.mean - 1) < 0.15


def test_a_mixture_adds_up_and_scaled_ends_are_rarer():
    first, second = draw_language(1, 30, candidates=6), draw_language(2, 30, candidates=6)
    mixed = mix_languages(first, second, 0.25)
    assert mixed.probabilities.sum(axis=1) == pytest.approx(1)
    for state in (3, 450):
        wanted, found = np.zeros((2, mixed.ids))
        np.add.at(wanted, first.candidates[state], 0.75 * first.probabilities[state])
        np.add.at(wanted, second.candidates[state], 0.25 * second.probabilities[state])
        np.add.at(found, mixed.candidates[state], mixed.probabilities[state])
        assert found == pytest.approx(wanted)
    rarer = scale_ends(first, 0.5)
    assert rarer.probabilities.sum(axis=1) == pytest.approx(1)
    ends = first.candidates == first.end
    assert rarer.probabilities[ends] == pytest.approx(first.probabilities[ends] / 2)


def test_quotations_are_matched_like_substrings_of_letters():
    """Against a slow oracle: twelve letters of the output that stand in the prompt."""
    language = draw_language(7, 12)
    responses = drop_ends(serve(language, Traffic(40, turns=2), None, 0, 3), language)
    found = match_letters(responses, language)

    def letters(ids):
        return "".join("" if i < 2 else f"{chr(97 + i // 2)}xyz" for i in ids)

    places = iter(found)
    matched = 0
    outputs = _split(responses.ids, responses.lengths)
    for ids, prompt in zip(
        outputs, _split(responses.prompts, responses.prompt_lengths), strict=True
    ):
        shown = letters(prompt)
        words = [j for j, i in enumerate(ids) if i >= 2]
        inside = set()
        for a in range(len(words) - 2):
            if letters(ids[words[a] : words[a + 2] + 1]) in shown:
                inside |= set(range(words[a], words[a + 2] + 1))
        assert [next(places) for _ in ids] == [j in inside for j in range(len(ids))]
        matched += len(inside)
    assert matched > 20


def test_the_expansion_decides_only_where_it_agrees_with_the_exact_tail():
    rng = np.random.default_rng(1)
    compared = 0
    for trial in range(20):
        n = int(rng.integers(60, 3000))
        weights = rng.integers(1, 112, n) * (1 if trial % 2 else rng.choice([-1, 1], n))
        words = rng.integers(0, 2**32, n, dtype=np.uint64).astype(np.uint32)
        boost = rng.random(n) < rng.uniform(0, 4) / np.sqrt(n)
        words[boost & (weights > 0)] = 2**32 - 1 - words[boost & (weights > 0)] // 8
        scores = gate.SCHEME.score(words)
        approximate = gate.approximate_tail(weights, scores)
        exact = log10_upper_tail(ClassTable.from_scores(weights, scores, gate.LAW))
        assert approximate != 0 or exact > np.log10(0.05)
        for level in gate.LEVELS:
            if not gate.is_close(approximate, level):
                assert (approximate <= np.log10(level)) == (exact <= np.log10(level))
                compared += 1
    assert compared > 50


def test_the_controls_of_selection_weigh_what_they_say():
    n = np.array([0, 0, 3, 0])
    unserved = weigh_unserved(np.array([4.0, 0.0, 9.0, 100.0]), np.array([7, 7, 9, 5000]), n)
    assert unserved.tolist() == [round(8 * np.log(8)), 0, 0, round(16 * np.log(1025))]
    ends = weigh_ends(
        np.array([5, 6, 5]), np.array([4.0, 4.0, 1.0]), np.array([3, 3, 0]), ends=(5, 7)
    )
    assert ends.tolist() == [round(8 * np.log(4)), 0, 0]


def _cell(**changes):
    cell = {
        "checks": 10_000, "coins": 5000, "mean_z": 0.0, "standard_error": 0.01, "sd_z": 1.0,
        "sd_error": 0.007, "rejected": {"0.05": 500, "0.01": 100, "0.001": 10, "0.0001": 1},
    }  # fmt: skip
    return {**cell, **changes}


@pytest.mark.parametrize(
    "changes",
    [
        {"mean_z": 0.05},
        {"mean_z": -0.05},
        {"sd_z": 1.05},
        {"sd_z": 0.95},
        *({"rejected": {**_cell()["rejected"], level: n}} for level, n in
          (("0.05", 700), ("0.05", 300), ("0.01", 160), ("0.001", 30), ("0.0001", 10))),
    ],
)  # fmt: skip
def test_every_line_of_the_gate_can_fail(changes):
    assert gate.judge(_cell()) == []
    assert len(gate.judge(_cell(**changes))) == 1


@pytest.fixture(scope="module")
def small():
    """20 keys of three experiments."""
    return {
        name: {(cell["cell"], cell["kind"]): cell for cell in gate.run_experiment(name, 0)["cells"]}
        for name in ("short", "quoted", "reading_k1")
    }


def test_innocent_suspects_pass_and_faults_are_seen(small):
    sound = [
        cell for cells in small.values() for (_, kind), cell in cells.items() if kind == "sound"
    ]
    assert len(sound) > 20
    assert [gate.judge(cell) for cell in sound] == [[]] * len(sound)
    for rule, reference in (
        ("presence", "none"),
        ("log-sqrt", "none"),
        ("residual", "right model"),
    ):
        fault = small["short"][f"text, {reference} | {rule} | end dropped, then marked", "fault"]
        assert "mean" in gate.judge(fault)
        assert fault["mean_z"] > 0.8
    fault = small["quoted"]["quotes, ids only, none | log-sqrt | reached", "fault"]
    assert fault["mean_z"] > 5


def test_the_controls_of_selection_see_a_dropped_end(small):
    names = ("text, none | unserved", "text, right model | ends")
    for name, least in zip(names, (2, 3), strict=True):
        assert abs(small["short"][f"{name} | reached", "sound"]["mean_z"]) < 0.6
        assert small["short"][f"{name} | end dropped, then marked", "told"]["mean_z"] < -least
    name = "reads log short, right model | ends | reached"
    assert small["reading_k1"][name, "told"]["mean_z"] < -1.5


def test_a_response_whose_only_keyed_draw_was_the_end_is_marked():
    language = draw_language(8, 30)
    responses = serve(language, Traffic(300), 5, SHARE, 1)
    late = find_marked(drop_ends(responses, language))
    assert (find_marked(responses) & ~late).any()
    assert not (late & ~find_marked(responses)).any()
