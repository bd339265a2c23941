"""Sentences: every conclusion reads right, and a rounded p is never smaller than p."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from provenance.check.findings import Reservation
from provenance.check.verdict import Verdict
from provenance.evidence.report.wording import (
    ASSUMPTIONS,
    NOT_SHOWN,
    describe_strength,
    find_standing,
    say_finding,
    say_frequency,
    say_p,
    show_name,
    shows_numbers,
)

EXPECTED = {
    "evidence": ("consistent with the model having been trained", "fewer than 1 of 1 billion"),
    "none": ("found no evidence", "not proof that it was not"),
    "untested": ("nothing was tested", "must not be read as “no evidence found”"),
    "little": ("too little data to answer", "must not be read as “no evidence found”"),
    "reserved": ("forbids the conclusion", "neither for nor against"),
    "invalid": ("control of this check failed", "Nothing in this report is evidence"),
    "twins": ("251 of 300 pairs", "fewer than 1 of 1 billion"),
    "planned": ("consistent with the model having been trained", "at least those of"),
}


@pytest.mark.parametrize("kind", EXPECTED)
def test_the_finding_is_two_sentences_that_say_what_was_concluded(cases, kind):
    verdict, _, _ = cases[kind]
    finding = say_finding(verdict)
    assert len(finding) == 2
    text = " ".join(finding)
    for part in EXPECTED[kind]:
        assert part in text
    assert find_standing(verdict) == ("evidence" if kind == "planned" else kind)


def test_no_sentence_calls_p_a_probability_of_innocence(cases):
    for verdict, _, _ in cases.values():
        text = " ".join(say_finding(verdict)).lower()
        assert "innocent" not in text
        assert "probability" not in text
        assert "guilty" not in text
    assert any("Not the probability that the model is innocent" in item for item in NOT_SHOWN)
    assert all(item.endswith((".", ").")) for item in (*ASSUMPTIONS, *NOT_SHOWN))


@pytest.mark.parametrize("kind", ["evidence", "none"])
def test_whatever_contradicts_itself_is_invalid(cases, kind):
    verdict, _, _ = cases[kind]
    failed = (replace(verdict.controls[0], passed=False), *verdict.controls[1:])
    assert find_standing(replace(verdict, controls=failed)) == "invalid"
    unfound = tuple(replace(one, rejected=False) for one in verdict.hypotheses)
    contradictory = replace(verdict, conclusion="evidence", hypotheses=unfound)
    assert find_standing(contradictory) == "invalid"
    twins = cases["twins"][0].twins
    assert find_standing(replace(contradictory, twins=twins)) == "twins"


@pytest.mark.parametrize(
    ("kind", "conclusion", "standing"),
    [
        ("evidence", "evidence", "evidence"),
        ("none", "no evidence", "none"),
        ("twins", "no evidence", "twins"),
        ("untested", "nothing scored", "untested"),
        ("invalid", "invalid", "invalid"),
    ],
)
def test_verdicts_of_version_1_are_still_read(cases, kind, conclusion, standing):
    document = cases[kind][0].to_json()
    old = {k: v for k, v in document.items() if k not in ("reasons", "reservations", "found_by")}
    old |= {"conclusion": conclusion, "schema_version": 1}
    verdict = Verdict.from_json(json.loads(json.dumps(old)))
    assert find_standing(verdict) == standing
    assert len(say_finding(verdict)) == 2
    assert verdict.to_json()["conclusion"] == conclusion


def test_no_number_is_shown_where_it_could_be_taken_for_what_may_not_be_said(cases):
    shown = {kind: shows_numbers(verdict) for kind, (verdict, _, _) in cases.items()}
    assert {kind for kind, numbers in shown.items() if not numbers} == {"invalid", "reserved"}
    held = (Reservation("r", "no evidence"),)
    innocent = replace(cases["none"][0], conclusion="inconclusive", reservations=held)
    assert find_standing(innocent) == "reserved"
    assert shows_numbers(innocent)


@pytest.mark.parametrize(
    ("log10_p", "words"),
    [
        (0.0, "at most 100 of 100"),
        (-0.2, "at most 64 of 100"),
        (-1.0, "at most 10 of 100"),
        (-2.0, "at most 1 of 100"),
        (-2.5, "fewer than 1 of 100"),
        (-4.0, "at most 1 of 10,000"),
        (-5.9, "fewer than 1 of 100,000"),
        (-6.1, "fewer than 1 of 1 million"),
        (-8.5, "fewer than 1 of 100 million"),
        (-9.5, "fewer than 1 of 1 billion"),
        (-1000.5, "fewer than 1 of 1 billion"),
    ],
)
def test_natural_frequencies(log10_p, words):
    assert str(say_frequency(log10_p)) == f"a result this strong would occur in {words} such checks"


@given(st.floats(-1e4, 0.0))
def test_a_frequency_is_never_rarer_than_p(log10_p):
    text = str(say_frequency(log10_p)).replace(",", "")
    few = re.search(r"at most (\d+) of 100 such", text)
    if few and log10_p > -2:
        assert int(few[1]) / 100 >= 10**log10_p - 1e-12
        assert int(few[1]) / 100 < 10**log10_p + 0.011
        return
    power = re.search(r"1 of (\d+)(?: (million|billion))? such", text)
    assert power is not None
    zeros = len(power[1]) - 1 + {"million": 6, "billion": 9}.get(power[2] or "", 0)
    assert log10_p <= -zeros
    assert -zeros < log10_p + 1 or zeros == 9
    assert ("fewer" in text) == (log10_p < -zeros)


@given(st.floats(-1e4, 0.0))
def test_a_printed_p_is_p_rounded_up_to_two_digits(log10_p):
    text = str(say_p(log10_p))
    found = re.fullmatch(r"([\d.]+) × 10<sup>−(\d+)</sup>", text)
    if found is None:
        assert 10**log10_p - 1e-9 <= float(text) <= 1.1 * 10**log10_p + 1e-9
        return
    assert 1 <= float(found[1]) < 10
    excess = float(found[1]) * 10 ** (-int(found[2]) - log10_p)
    assert 1 - 1e-9 <= excess <= 1.1


def test_the_warning_about_mistakes_comes_with_huge_exponents_only():
    assert describe_strength(-8.9) == ""
    assert "Mistakes of people" in describe_strength(-9.1)


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("<script>", "&lt;script&gt;"),
        ("\"'&", "&#34;&#39;&amp;"),
        ("a\x1b[0m\nb", "a�[0m�b"),
        ("‮gpj.exe", "�gpj.exe"),
        ("\ud800", "�"),
        ("שלום", "שלום"),
        ("x" * 10_000, "x" * 30 + "…" + "x" * 29),
    ],
)
def test_names_of_others_are_made_harmless(name, shown):
    assert str(show_name(name)) == f"<bdi>{shown}</bdi>"
