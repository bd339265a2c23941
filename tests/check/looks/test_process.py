"""A check over batches: what is revealed, when, and what its numbers are."""

from __future__ import annotations

import functools
import json
import math
from dataclasses import replace

import numpy as np
import pytest

from provenance.check.controls import control_placebo
from provenance.check.examine import check_outputs
from provenance.check.looks import look_controls as controls
from provenance.check.looks.conclude import conclude
from provenance.check.looks.process import add_outputs, start
from provenance.check.looks.revealed import extend_sheet
from provenance.check.score import WeightedPairs, score, weigh_observations
from provenance.check.weigh import MAXIMAL_WEIGHTS
from provenance.errors import ConfigurationMismatchError, DataError, UsageError
from provenance.keys.keyring import Key
from provenance.marks import SchemePlacebos
from provenance.marks.alpha import family_weights
from provenance.marks.own import make_scheme
from provenance.stats.evalues import adjust_e, average_e
from provenance.stats.mixture import log10_mixture, mixture_slopes
from provenance.stats.tables import ClassTable
from provenance.suspect.access.outputs import observe
from provenance.suspect.observations import Expectations, add_expectations
from tests.check.looks.conftest import SETTINGS
from tests.world.synthetic import (
    LABELS,
    Teacher,
    innocent,
    make_world,
    write_outputs,
)


@pytest.fixture(scope="module")
def checks(world, observed):
    """The check after 0, 1, .. 4 batches."""
    found = [start(world.index, world.keyring, SETTINGS)]
    for part in observed:
        found.append(add_outputs(found[-1], part, world.index, world.keyring))
    return found


def _rows(pairs):
    return list(zip(map(tuple, pairs.contexts.tolist()), pairs.tokens.tolist(), strict=True))


def test_nothing_is_known_before_the_first_batch(world, checks):
    verdict = conclude(checks[0], world.keyring)
    assert (verdict.conclusion, verdict.log10_e, verdict.log10_p) == ("inconclusive", 0.0, 0.0)
    assert verdict.reasons == ("no outputs were added yet",)
    assert verdict.controls == () == verdict.looks


def test_the_guilty_suspect_is_found_with_its_values_and_controls_pass(world, checks):
    verdict = conclude(checks[-1], world.keyring)
    assert verdict.conclusion == "evidence"
    assert verdict.log10_p < -20
    assert verdict.controls_passed
    assert [control.name for control in verdict.controls] == [
        "placebo keys (global)",
        "control slot",
        "unserved values",
    ]
    found = verdict.attributed
    assert found
    assert all(set(values) <= set(LABELS[slot]) for slot, values in found.items())


def test_the_loss_against_one_check_of_everything_is_what_it_should_be(world, batches, checks):
    """Less evidence than the fixed-n check of all outputs, and not by an order of magnitude."""
    plain = check_outputs(
        observe(batches[:3], world.tokenizer, world.keyring.public),
        world.index,
        world.keyring,
        SETTINGS,
    )
    sequential = conclude(checks[3], world.keyring).log10_p
    assert plain.log10_p < sequential < plain.log10_p / 10


def test_every_number_follows_from_the_class_tables(world, checks):
    slopes = mixture_slopes(
        make_scheme("gumbel", world.keyring.public.scheme.parameters).null_law,
        MAXIMAL_WEIGHTS[SETTINGS.rule],
    )
    weights = family_weights([sheet.keys[0] for sheet in checks[-1].tested])
    paths = []
    for check in checks[1:]:
        evidence = [
            log10_mixture(sheet.processes[0].table, slopes) if sheet.processes[0].table.coins else 0
            for sheet in check.tested
        ]
        paths.append(evidence)
    verdict = conclude(checks[-1], world.keyring)
    family = [average_e(row, weights) for row in paths]
    np.testing.assert_allclose([look.log10_e for look in verdict.looks], family, atol=1e-9)
    assert verdict.log10_e == pytest.approx(family[-1])
    assert verdict.log10_p == pytest.approx(-max(family))
    adjusted = np.array([adjust_e(row, weights) for row in paths]).max(axis=0)
    np.testing.assert_allclose(
        [one.log10_p for one in verdict.hypotheses], np.minimum(0, -adjusted), atol=1e-9
    )
    for one in verdict.hypotheses:
        assert one.rejected == (one.log10_p <= math.log10(SETTINGS.alpha))
    # some intersection holds all keys, so no key is found that the family is not
    assert verdict.log10_p <= min(one.log10_p for one in verdict.hypotheses) + 1e-9


def test_evidence_that_was_reached_stays_when_later_batches_take_it_back(world, observed):
    """Outputs of an innocent after those of the guilty: E falls, the anytime p does not rise."""
    check = start(world.index, world.keyring, SETTINGS)
    outputs, prompts = innocent("ordinary", world, np.random.default_rng(8))
    path = write_outputs(world.folder / "after.jsonl", outputs, prompts)
    for part in (observed[0], observe([path], world.tokenizer, world.keyring.public)):
        check = add_outputs(check, part, world.index, world.keyring)
    verdict = conclude(check, world.keyring)
    first, last = (look.log10_e for look in verdict.looks)
    assert last < first - 0.5
    assert verdict.log10_e == last
    assert verdict.log10_p == -first
    assert verdict.found_evidence
    # likewise for each key
    before = conclude(
        replace(check, batches=check.batches[:1], sheets=_after(check, 1)), world.keyring
    )
    for one, two in zip(before.hypotheses, verdict.hypotheses, strict=True):
        assert two.log10_p <= one.log10_p
        assert two.rejected >= one.rejected
    assert any(
        two.log10_e < one.log10_e
        for one, two in zip(before.hypotheses, verdict.hypotheses, strict=True)
    )


def _after(check, number):
    """The sheets as they were after some batches."""
    sheets = []
    for sheet in check.sheets:
        processes = []
        for process in sheet.processes:
            looks = process.looks[:number]
            table = functools.reduce(
                ClassTable.merge, (look.table for look in looks), ClassTable(())
            )
            processes.append(replace(process, looks=looks, table=table))
        sheets.append(replace(sheet, processes=tuple(processes)))
    return tuple(sheets)


def test_each_pair_is_revealed_once_with_the_weight_of_the_batch_in_which_it_came(
    world, observed, checks
):
    scheme = make_scheme("gumbel", world.keyring.public.scheme.parameters)
    for number, sheet in enumerate(checks[-1].sheets):
        seen: dict[tuple[tuple[int, ...], int], int] = {}
        for part, batch in zip(observed, checks[-1].batches, strict=True):
            weighing = weigh_observations(part, world.index, world.keyring, SETTINGS.rule)
            pairs = {
                "tested": weighing.hypotheses.get(sheet.keys[0]),
                "control slot": weighing.control,
                "unserved values": weighing.pooled[sheet.slot],
            }[sheet.role]
            expected = {
                row: weight
                for row, weight in zip(_rows(pairs), pairs.weights.tolist(), strict=True)
                if row not in seen
            }
            own = batch.revealed[number]
            found = dict(zip(_rows(own.pairs), own.pairs.weights.tolist(), strict=True))
            assert found == expected
            assert batch.known[number] == len(pairs) - len(expected)
            seen |= expected
            for column, key in enumerate(sheet.keys):
                words = world.keyring.key(*key).words(own.pairs.contexts, own.pairs.tokens)
                np.testing.assert_array_equal(own.scores[:, column], scheme.score(words))
    assert sum(checks[-1].batches[3].known) > 0


def test_no_key_opens_a_coin_twice_and_none_outside_its_slot_and_the_control_slot(
    world, observed, monkeypatch
):
    """What really goes through `Key.words`, not what the program says of itself."""
    opened: dict[tuple[str, str], list[tuple[tuple[int, ...], int]]] = {}
    original = Key.words

    def words(self, contexts, tokens):
        rows = zip(map(tuple, contexts.tolist()), tokens.tolist(), strict=True)
        opened.setdefault((self.slot, self.value), []).extend(rows)
        return original(self, contexts, tokens)

    check = start(world.index, world.keyring, SETTINGS)
    monkeypatch.setattr(Key, "words", words)
    for part in observed:
        check = add_outputs(check, part, world.index, world.keyring)
    before = {key: len(rows) for key, rows in opened.items()}
    conclude(check, world.keyring)
    assert {key: len(rows) for key, rows in opened.items()} == before
    names = list(world.keyring.schedule.names)
    for key, rows in opened.items():
        if key[0] in ("selector", "placebo"):  # they mark nothing; placebo keys are random ones
            continue
        assert len(set(rows)) == len(rows)
        contexts = np.array([context for context, _ in rows], dtype=np.uint32)
        slots = {names[number] for number in world.keyring.slots_of(contexts)}
        assert slots <= {key[0], "control"}


def test_a_batch_of_known_outputs_changes_no_evidence(world, batches, checks, tmp_path):
    """The same text in another file (another hash): every pair is known."""
    again = tmp_path / "again.jsonl"
    again.write_text(batches[0].read_text() + "\n")
    part = observe([again], world.tokenizer, world.keyring.public)
    check = add_outputs(checks[1], part, world.index, world.keyring)
    verdict, before = conclude(check, world.keyring), conclude(checks[1], world.keyring)
    assert verdict.looks[-1].coins == 0
    assert verdict.looks[-1].known == before.looks[0].coins
    assert verdict.log10_e == before.log10_e


def test_wrong_uses_are_refused(world, observed, checks, tmp_path):
    with pytest.raises(DataError, match=r"batch 1 .*Collect other outputs"):
        add_outputs(checks[1], observed[0], world.index, world.keyring)
    with pytest.raises(UsageError, match="sampled outputs"):
        add_outputs(checks[1], replace(observed[1], sampled=False), world.index, world.keyring)
    with pytest.raises(ConfigurationMismatchError, match="index must be"):
        add_outputs(replace(checks[1], index_sha256="0"), observed[1], world.index, world.keyring)
    with pytest.raises(ConfigurationMismatchError, match="keyring must be"):
        add_outputs(replace(checks[1], keyring_id="0"), observed[1], world.index, world.keyring)
    none = np.zeros(0, dtype=np.int64)
    expectations = Expectations(none, none.astype(np.uint32), none.astype(float), {"kind": "x"})
    other = add_expectations(observed[1], expectations)
    with pytest.raises(ConfigurationMismatchError, match="reference must be"):
        add_outputs(checks[1], other, world.index, world.keyring)


def test_the_report_is_strict_json_and_holds_no_key(world, checks):
    text = json.dumps(conclude(checks[-1], world.keyring).to_json(), allow_nan=False)
    for pair, commitment in world.keyring.public.commitments.items():
        assert world.keyring.key(*pair).reveal().hex() not in text
        assert commitment.sha256 in text


def test_a_control_that_failed_at_one_look_stays_failed(world, checks):
    broken = list(checks[-1].batches)
    placebo = replace(broken[1].placebo[0], passed=False, log10_p=-9.0)
    broken[1] = replace(broken[1], placebo=(placebo,))
    verdict = conclude(replace(checks[-1], batches=tuple(broken)), world.keyring)
    assert verdict.conclusion == "inconclusive"
    assert "controls failed" in verdict.reasons[0]
    assert not verdict.found_evidence
    assert verdict.attributed == {}
    assert verdict.controls[0].detail.startswith("look 2: ")


def test_evidence_against_a_control_that_was_reached_stays(world, checks):
    """E of the unserved values was 1e5 after the first batch and falls: the control has failed."""
    sheets = []
    for sheet in checks[2].sheets:
        if sheet.role == "unserved values":
            processes = []
            for process in sheet.processes:
                first, second = process.looks
                looks = (replace(first, log10_e=5.0), replace(second, log10_e=-1.0))
                processes.append(replace(process, looks=looks))
            sheet = replace(sheet, processes=tuple(processes))
        sheets.append(sheet)
    verdict = conclude(replace(checks[2], sheets=tuple(sheets)), world.keyring)
    assert verdict.conclusion == "inconclusive"
    assert "controls failed" in verdict.reasons[0]
    (failed,) = [control for control in verdict.controls if not control.passed]
    assert (failed.name, failed.log10_p) == ("unserved values", -5.0)


def test_placebos_see_all_pairs_so_far_new_keys_and_their_share_of_the_level(
    world, observed, checks, monkeypatch
):
    """The shares 1/2, 1/6, 1/12, ... add up to 1 over any number of looks."""
    calls = []
    original = controls.control_placebo

    def record(pairs, name, table, scheme, keys, seed, share):
        calls.append((name, len(pairs), table.coins, seed, share))
        return original(pairs, name, table, scheme, keys, seed, share)

    monkeypatch.setattr(controls, "control_placebo", record)
    check = checks[0]
    for part in observed[:3]:
        check = add_outputs(check, part, world.index, world.keyring)
    own = [call for call in calls if call[0] == "global"]
    assert [share for *_, share in own] == [1 / 2, 1 / 6, 1 / 12]
    assert len({seed for *_, seed, _ in own}) == 3
    place = [sheet.keys[0] for sheet in check.tested].index(("global", ""))
    sizes = np.cumsum([len(batch.revealed[place].pairs) for batch in check.batches])
    assert [pairs for _, pairs, *_ in own] == sizes.tolist() == [coins for _, _, coins, *_ in own]


def test_the_p_of_a_placebo_control_is_corrected_for_its_share(world, checks):
    """Pairs that are counted three times: the spread of placebo z is too wide."""
    place = [sheet.keys[0] for sheet in checks[1].tested].index(("global", ""))
    pairs = checks[1].batches[0].revealed[place].pairs
    wide = WeightedPairs(*(np.repeat(part, 3, axis=0) for part in vars(pairs).values()))
    scheme = make_scheme("gumbel", world.keyring.public.scheme.parameters)
    key = world.keyring.key("global", "")
    arguments = (wide, "global", score(wide, key, scheme), SchemePlacebos(scheme), 60, b"0" * 32)
    whole, small = (control_placebo(*arguments, share) for share in (1.0, 1e-9))
    assert not whole.passed
    assert small.log10_p == pytest.approx(min(0.0, whole.log10_p + 9), abs=1e-9)
    assert small.passed == (small.log10_p >= -3)


def test_a_mark_in_the_control_slot_fails_its_control(world, checks):
    """Scores that lean towards the keys where no mark was ever put."""
    sheet = next(one for one in checks[0].sheets if one.role == "control slot")
    control = checks[-1].batches[0].revealed[checks[0].sheets.index(sheet)]
    high = int(control.scores.max())
    lean = lambda rows: np.where(rows % 3 == 0, high, control.scores[rows, 0])  # noqa: E731
    grown, _, _ = extend_sheet(sheet, control.pairs, [lean] * len(sheet.keys))
    check = replace(
        checks[1],
        sheets=tuple(grown if one.role == "control slot" else one for one in checks[1].sheets),
    )
    verdict = conclude(check, world.keyring)
    assert verdict.conclusion == "inconclusive"
    assert "controls failed" in verdict.reasons[0]
    assert [c.name for c in verdict.controls if not c.passed] == ["control slot"]


def test_an_index_without_marked_responses_is_refused(world, monkeypatch):
    monkeypatch.setattr(type(world.index), "values_served", lambda self, slot: [])
    with pytest.raises(DataError, match="must hold marked responses"):
        start(world.index, world.keyring, SETTINGS)


# --- H0 ------------------------------------------------------------------------------------------


def _random_keys(world, kind, rng, runs):
    """Hostile text in three batches, weighed once; then `runs` random keys on the same weights.

    A fresh key per run makes the coins independent of text and weights, as under H0. Returns the
    largest log10 E of each run, its z at the end, and the z of the test double: coins of earlier
    batches weighed and counted again.
    """
    outputs, prompts = innocent(kind, world, rng)
    batches = []
    for rows in np.array_split(np.arange(len(outputs)), 3):
        path = world.folder / f"null-{kind}-{rows[0]}.jsonl"
        write_outputs(path, [outputs[i] for i in rows], [prompts[i] for i in rows])
        part = observe([path], world.tokenizer, world.keyring.public)
        weighing = weigh_observations(part, world.index, world.keyring, "log-sqrt")
        batches.append(weighing.hypotheses["global", ""])
    scheme = make_scheme("gumbel", world.keyring.public.scheme.parameters)
    empty = start(world.index, world.keyring, SETTINGS).tested[0]
    assert empty.keys == (("global", ""),)
    best, z, doubles = [], [], []
    for _ in range(runs):
        key = Key(rng.bytes(32), "global", "")
        sheet, double = empty, ClassTable(())
        for pairs in batches:
            scores = scheme.score(key.words(pairs.contexts, pairs.tokens))
            sheet, _, _ = extend_sheet(sheet, pairs, [scores.__getitem__])
            double = double.merge(ClassTable.from_scores(pairs.weights, scores, scheme.null_law))
        best.append(-sheet.processes[0].log10_p)
        z.append(sheet.processes[0].table.z)
        doubles.append(double.z)
    return best, z, doubles


@pytest.mark.parametrize("kind", ["ordinary", "templates", "repeats", "prompts"])
def test_innocent_suspects_are_not_accused_at_any_look(world, kind):
    """150 random keys per kind of hostile text; false alarm rate of this test 1e-6."""
    runs = 150
    best, z, _ = _random_keys(world, kind, np.random.default_rng(17), runs)
    for alpha in (0.5, 0.1, 0.01):
        crossed = sum(value >= -math.log10(alpha) for value in best)
        assert crossed <= runs * alpha + 4.9 * math.sqrt(runs * alpha * (1 - alpha)) + 1
    # sd of z is 1: 4.9 standard errors of a standard deviation, and some for skewness
    assert abs(np.std(z) - 1) < 0.35
    assert abs(np.mean(z)) < 4.9 / math.sqrt(runs)


def test_weighing_revealed_coins_again_would_be_seen(world):
    """The test double: outputs that repeat, every batch counted anew. z is far too wide."""
    _, _, z = _random_keys(world, "repeats", np.random.default_rng(17), 150)
    assert np.std(z) > 1.35


def test_under_the_true_keys_innocents_pass_the_whole_line(tmp_path):
    teacher = Teacher.draw(0)
    for seed in range(2):
        world = make_world(tmp_path / f"w{seed}", teacher, 500 + seed, responses=60)
        for kind in ("ordinary", "prompts"):
            outputs, prompts = innocent(kind, world, np.random.default_rng(seed))
            check = start(world.index, world.keyring, SETTINGS)
            for rows in np.array_split(np.arange(len(outputs)), 2):
                path = tmp_path / f"{seed}-{kind}-{rows[0]}.jsonl"
                write_outputs(path, [outputs[i] for i in rows], [prompts[i] for i in rows])
                part = observe([path], world.tokenizer, world.keyring.public)
                check = add_outputs(check, part, world.index, world.keyring)
            verdict = conclude(check, world.keyring)
            # so few outputs would not show a guilty one either
            assert verdict.conclusion == "inconclusive"
            assert verdict.exit_code == 3
            (reason,) = verdict.reasons
            assert "too little data" in reason
            assert verdict.log10_p > -3
            assert verdict.controls_passed


def test_the_declared_scale_bounds_every_weight(world, observed):
    for rule in ("presence", "log-sqrt"):
        weighing = weigh_observations(observed[0], world.index, world.keyring, rule)
        for pairs in weighing.hypotheses.values():
            assert np.abs(pairs.weights).max() <= MAXIMAL_WEIGHTS[rule]


def test_a_log_that_may_have_lost_its_ends_is_no_evidence(checks, world):
    """No innocent model stands beside a sequential check, so nothing lifts the reservation."""
    log = {"marked_responses": 200, "unended": 3, "marked_retokenised": 0}
    verdict = conclude(replace(checks[-1], log=log), world.keyring)
    assert verdict.log10_p < -20
    assert verdict.conclusion == "inconclusive"
    assert "3 of the index's 200 marked responses" in verdict.reasons[0]
