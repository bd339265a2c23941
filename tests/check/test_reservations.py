"""What is held against evidence, and which innocent model lifts it."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from provenance.check.reservations import list_reservations

LOG = {"marked_responses": 100, "unended": 7, "marked_retokenised": 0}


def _result(z, coins, log10_p=-30.0, name="global"):
    tail = SimpleNamespace(z=z, coins=coins, log10_p=log10_p)
    return SimpleNamespace(name=name, tail=tail, log10_adjusted=log10_p)


def _inputs(log, innocents, **source):
    return {
        "index": log,
        "outputs": {"source": {"access": "outputs", **source}},
        "innocent_keys": {
            name: {key: {"coins": coins, "z": z} for key, (coins, z) in keys.items()}
            for name, keys in innocents.items()
        },
    }


@pytest.mark.parametrize(
    ("innocents", "lifted"),
    [
        ({}, ""),
        ({"large": {"global": (1000, 0.5)}}, "large"),
        ({"small": {"global": (999, 0.5)}}, ""),
        ({"another key": {"week=a": (5000, 0.5)}}, ""),
        # selection would show there too: the suspect must exceed what it shows
        ({"like the suspect": {"global": (5000, 10.0)}}, ""),
        ({"nearly so": {"global": (5000, 6.0)}}, ""),  # (11 - 6) / sqrt(2) = 3.5: p 2e-4
        ({"less so": {"global": (5000, 5.5)}}, "less so"),  # 3.9: p 5e-5
        ({"small": {"global": (9, 0.0)}, "large": {"global": (2000, 1.0)}}, "large"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_an_innocent_lifts_a_reservation_if_it_is_as_large_and_shows_less(innocents, lifted):
    results = [_result(11.0, 1000), _result(2.0, 50, -1.0, "week=a")]
    (found,) = list_reservations(_inputs(LOG, innocents), results, 1e-4)
    assert (found.against, found.lifted_by) == ("evidence", lifted)
    assert found.forbids("evidence") == (not lifted)
    assert not found.forbids("no evidence")
    assert "7 of the index's 100 marked responses" in str(found)


def test_each_reason_is_said_and_a_right_log_has_none():
    results = [_result(11.0, 1000)]
    right = {"marked_responses": 100, "unended": 0, "marked_retokenised": 0}
    assert list_reservations(_inputs(right, {}), results, 1e-4) == []
    old = {"outputs": {"source": {}}}  # verdicts of version 1 said nothing of the log
    assert list_reservations(old, results, 1e-4) == []
    text = {"marked_responses": 100, "unended": 3, "marked_retokenised": 4}
    found = list_reservations(_inputs(text, {}, open_documents=5), results, 1e-4)
    assert [one.reason.split(" ")[0] for one in found] == ["3", "4", "5"]
    assert {one.against for one in found} == {"evidence"}
    assert list_reservations(_inputs(text, {}), [], 1e-4)[0].lifted_by == ""


def test_a_log_that_weighs_nothing_is_held_against_nobody():
    """Marks whose contexts share coins test every context of the suspect, whatever the log lost."""
    log = {"marked_responses": 100, "unended": 100, "marked_retokenised": 0, "counts_weigh": False}
    assert list_reservations(_inputs(log, {}), [_result(11.0, 1000)], 1e-4) == []
